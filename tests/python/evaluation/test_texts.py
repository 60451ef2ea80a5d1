"""Local texts, packaged texts, and Wikipedia's markup."""

import bz2
import importlib.util
import sys

import pytest

from tmac.evaluation import packaged
from tmac.evaluation.texts import TEXTS, load_documents, load_text
from tmac.evaluation.wiki_text import articles, plain_text


def test_a_file_of_text_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n One.\n\nTwo: é.\n", encoding="utf-8")
    assert load_documents(path) == ["One.\n\nTwo: é."]
    assert load_text(str(path)) == "One.\n\nTwo: é."


def test_a_file_of_json_lines_is_a_document_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "One."}\n\n{"text": " "}\n{"id": 3, "text": "T\\u00e9n."}\n', encoding="utf-8")
    assert load_documents(path) == ["One.", "Tén."]
    assert load_text(path) == "One.\n\nTén."
    assert load_documents(path, max_characters=4) == ["One."]
    assert load_documents(path, max_characters=5) == ["One.", "Tén."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: expected a JSON object"),
        (b'{"text": "a"}\n\n["text"]\n', "line 3: expected a JSON object, found list"),
        (b'{"txet": "a", "id": 1}', "line 1: expected a text in 'text', found only 'txet', 'id'"),
        (b"{}", "line 1: expected a text in 'text', found only nothing"),
        (b'{"text": 5}', "line 1: expected a text in 'text', found int"),
        (b'{"text": "\xff"}', "line 1: expected a JSON object"),
        (b"[" * 100_000, "line 1: expected a JSON object"),
        (b"", "expected a JSON object a line, found none"),
        (b"\n \n", "expected a JSON object a line, found none"),
        (b'{"text": ""}', "holds no text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_text(path)
    assert "bad.jsonl" in str(raised.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"ab\xffcd")
    with pytest.raises(ValueError, match=r"bad.txt: expected UTF-8 text \(invalid start byte at byte 2\)"):
        load_text(path)
    path.write_bytes(b" \n")
    with pytest.raises(ValueError, match=r"bad.txt holds no text"):
        load_text(path)
    with pytest.raises(FileNotFoundError):
        load_text(tmp_path / "none.txt")


def test_an_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match=r"expected a text, one of package:gensim/news, .*, found package:gensim/novels"
    ):
        load_text("package:gensim/novels")
    with pytest.raises(ValueError, match=r"one of package:gensim/news, .*package:evals/logiqa, found package:a/b"):
        packaged.packaged_file("package:a/b")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gensim, which is not installed: pip install --no-deps gensim==4.4.0"):
        load_text("package:gensim/news")


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Packages of these names, whose files the tests write: nothing of the real ones is imported."""
    for package, _, inside in packaged.FILES.values():
        (tmp_path / package / inside).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / package / "__init__.py").write_text("raise ImportError('it was imported')")
        sys.modules.pop(package, None)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: tmp_path / packaged.FILES[name][0] / packaged.FILES[name][2]


def test_packaged_texts(installed):
    installed("gensim/news").write_text("First.\nSecond.\n")
    assert load_documents("package:gensim/news") == ["First.", "Second."]
    installed("evals/owt").write_text('{"0": "Right order.", "1": "order. Right"}\n{"0": "Two."}\n')
    assert load_documents("package:evals/owt") == ["Right order.", "Two."]
    with pytest.raises(ValueError, match="whose installed version lacks it: pip install --no-deps evals==3"):
        load_text("package:evals/wikipedia")


@pytest.mark.parametrize("name", TEXTS)
def test_installed_texts_are_long_and_plain(name):
    package = name.removeprefix("package:").partition("/")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    documents = load_documents(name, max_characters=200_000)
    text = "\n\n".join(documents)
    assert len(documents) > 2
    assert len(text) >= 200_000
    for mark in ("{{", "}}", "[[", "<ref", "&nbsp;", "'''"):
        assert mark not in text


PAGES = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>A</title><ns>0</ns><redirect title="B"/><revision><text>#REDIRECT [[B]]</text></revision></page>
<page><title>B</title><ns>0</ns>
<revision><id>1</id><text>'''B''' is a [[letter|sign]] &amp;lt; C.</text></revision></page>
<page><title>Talk:B</title><ns>1</ns><revision><text>Chat.</text></revision></page>
<page><title>C</title><ns>0</ns><revision><text>C.</text></revision></page>
</mediawiki>"""


def test_a_dump_is_its_articles(tmp_path):
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress(PAGES.encode()))
    assert list(articles(path)) == ["B is a sign < C.", "C."]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''slanted''.", "Bold and slanted."),
        ("A [[page]], a [[page|word]] and [[:Category:Things|things]].", "A page, a word and things."),
        ("[[File:a.jpg|thumb|A [[cat]] [http://a.b c]]]Text.", "Text."),
        ("Text.[[Category:Things]]\n[[fr:Chose]]\n[[zh-min-nan:X]]", "Text."),
        ("See [http://a.b the page], [http://a.b] and [//a.b it].", "See the page, and it."),
        ("A<ref>{{cite|a}}</ref> b<ref name=x/> c<ref name='y'>d</ref>.", "A b c."),
        ("A{{x|{{y|z}} {1} }} b<!-- c {{ -->.", "A b."),
        ("{{lang|fr|mur}}, {{convert|10|km|mi}} and {{nowrap|a b}}.", "mur, 10 km and a b."),
        ("Before.\n{| class=x\n|-\n| a\n{| b\n|}\n|| c\n|}\nAfter.", "Before.\nAfter."),
        ("== Title ==\n* one\n** two\n: three\n;four", "Title\none\ntwo\nthree\nfour"),
        ("Text.\n== See also ==\n* [[A]]\n=== More ===\n* b\n== History ==\nOld.", "Text.\nHistory\nOld."),
        ("Text.\n== Notes ==\nx\n= Top =\nMore.", "Text.\nTop\nMore."),
        ("A ({{IPA|x}}; {{lang-fr|y}}) is ({{z}}, b) c .", "A is (b) c."),
        ("x<math>a<b</math> y<br />z <div class='a'>w</div>__TOC__", "x yz w"),
        ("1&nbsp;km, a &amp;amp; b &lt; c", "1 km, a & b < c"),
        ("{{open [[open {| open <ref> unclosed", "{{open [[open {| open unclosed"),
        ("", ""),
    ],
)
def test_markup_becomes_text(markup, text):
    assert plain_text(markup) == text
