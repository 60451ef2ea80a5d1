"""Tokenizers of checkpoints against transformers' own, and an engine's parts without torch."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
from recording_builder import RecordingBuilder
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer

import tmac
from tmac import FormatError
from tmac.formats import open_checkpoint
from tmac.runtime.loading import load_engine_parts
from tmac.runtime.tokenizer import load_tokenizer

TEXTS = ["Hello, world!", " two  spaces\n", "日本 🙂", "<s>x</s>", "", "a<|user|>b"]


@pytest.fixture
def folder(fixtures_dir, tmp_path):
    """A float model with a tokenizer; `write(**tokenizer_config)` changes its configuration."""
    shutil.copytree(fixtures_dir / "base256-fp16", tmp_path / "model", copy_function=shutil.copyfile)
    (tmp_path / "model").chmod(0o755)
    return tmp_path / "model"


def write(folder, name="tokenizer_config.json", **content):
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **content}))


def same(folder):
    """Both tokenizers, after a comparison on all texts."""
    ours, theirs = load_tokenizer(open_checkpoint(folder)), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, add_special_tokens=special) == ids
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.vocab_size == len(theirs)
    return ours, theirs


def test_the_fixture(folder):
    ours, theirs = same(folder)
    assert ours.special["eos_token"] == theirs.eos_token
    assert ours.eos_ids == {theirs.eos_token_id, *eos_of(folder)}
    assert ours.chat_template is None
    assert ours.token_to_id(theirs.eos_token) == theirs.eos_token_id
    assert ours.id_to_token(theirs.eos_token_id) == theirs.eos_token
    assert (
        json.loads(ours.to_json())["model"]["type"]
        == json.loads((folder / "tokenizer.json").read_text())["model"]["type"]
    )


def eos_of(folder):
    value = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id", [])
    return value if isinstance(value, list) else [value]


def words(folder, post_processor=True):
    """A tokenizer of words with special tokens in its vocabulary."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "Hello": 3, "world": 4, "<|user|>": 5, "a": 6, "b": 7, "!": 8, ",": 9}
    backend = Backend(models.WordLevel(vocab, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<|user|>"])
    if post_processor:
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    backend.enable_truncation(2)
    backend.enable_padding(length=5)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    write(folder, tokenizer_class="PreTrainedTokenizerFast", unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("post_processor", [True, False])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": True},
        {"add_bos_token": False},
    ],
)
def test_first_and_last_tokens(folder, flags, post_processor):
    words(folder, post_processor)
    write(folder, **flags)
    ours = load_tokenizer(open_checkpoint(folder))
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        expected = theirs(text, truncation=False, padding=False)["input_ids"]
        assert ours.encode(text) == expected, text
    assert ours.bos_id == 1
    assert {1, 2, 5} <= ours.special_ids
    assert ours.eos_ids == {2, *eos_of(folder)}


def test_what_ends_an_answer(folder):
    words(folder)
    cases = [
        ({"eos_token_id": [5, 4]}, {}, {2, 4, 5}),
        ({"eos_token_id": 5}, {"eos_token_id": 4}, {2, 5}),
        ({}, {"eos_token_id": 4}, {2, 4}),
        ({}, {"eos_token_id": None}, {2}),
    ]
    for generation, config, expected in cases:
        (folder / "generation_config.json").write_text(json.dumps(generation))
        write(folder, "config.json", **config)
        assert load_tokenizer(open_checkpoint(folder)).eos_ids == expected
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(FormatError, match="eos_token_id: expected token ids"):
        load_tokenizer(open_checkpoint(folder))


def test_where_templates_are(folder):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert load_tokenizer(open_checkpoint(folder)).chat_template.source() == "json"
    write(folder, chat_template=[{"name": "default", "template": "{{ eos_token }}"}, {"name": "rag", "template": "r"}])
    templates = load_tokenizer(open_checkpoint(folder)).chat_template
    theirs = AutoTokenizer.from_pretrained(folder)
    assert templates.templates.keys() == {"default", "rag"}
    messages = [{"role": "user", "content": "x"}]
    assert templates.render(messages) == theirs.apply_chat_template(messages, tokenize=False) == theirs.eos_token
    (folder / "chat_template.jinja").write_text("alone")
    assert load_tokenizer(open_checkpoint(folder)).chat_template.source() == "alone"


def test_damaged_files(folder):
    ours = load_tokenizer(open_checkpoint(folder))
    with pytest.raises(ValueError, match="the text is no Unicode"):
        ours.encode("\ud800")
    with pytest.raises(ValueError, match="expected ids of 0 and more"):
        ours.decode([-1])
    for text in (
        "{}",
        "[]",
        "not json",
        '{"version": "1.0"}',
        '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
    ):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(FormatError, match=r"tokenizer\.json: the tokenizers package refuses it"):
            load_tokenizer(open_checkpoint(folder))
    (folder / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="expected UTF-8"):
        load_tokenizer(open_checkpoint(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer\.json"):
        load_tokenizer(open_checkpoint(folder))


def test_tokenizers_in_gguf_files(tiny_model):
    ours, theirs = load_tokenizer(open_checkpoint(tiny_model)), tmac.load_tokenizer(tiny_model)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert theirs.eos_token_id in ours.eos_ids


@pytest.fixture(scope="session")
def tiny_model():
    from pathlib import Path

    return Path(__file__).parents[2] / "data" / "tiny_llama.gguf"


BLOCKED = textwrap.dedent("""
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "transformers"):
                raise ImportError(f"{name} is blocked")

    sys.meta_path.insert(0, Blocker())
    sys.path.insert(0, sys.argv[2])
    from recording_builder import RecordingBuilder
    from tmac.runtime.loading import load_engine_parts

    parts = load_engine_parts(sys.argv[1], make_builder=RecordingBuilder)
    messages = [{"role": "user", "content": "Hi"}]
    text = parts.chat_template.render(messages) if parts.chat_template else "Hi"
    print(repr((text, parts.tokenizer.encode(text, add_special_tokens=False), sorted(parts.eos_ids))))
    print(len(parts.model.names), parts.context_length)
    assert not {"torch", "transformers"} & set(sys.modules)
""")


def without_torch(path, tests):
    command = [sys.executable, "-c", BLOCKED, str(path), str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_process_without_torch(tiny_model, request):
    lines = without_torch(tiny_model, request.path.parent)
    parts = load_engine_parts(tiny_model, make_builder=RecordingBuilder)
    assert lines[1] == f"{len(parts.model.names)} {parts.context_length}"
    assert parts.config["model_type"] == "llama"
    assert parts.model_config["family"] == "llama"


def test_smollm2_without_torch(smollm2, request):
    """SmolLM2's GGUF file: tokenizer and template are those of transformers."""
    theirs = tmac.load_tokenizer(smollm2)
    theirs.chat_template = theirs.chat_template or load_tokenizer(open_checkpoint(smollm2)).chat_template.source()
    messages = [{"role": "user", "content": "Hi"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "<|im_start|>assistant" in text
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    lines = without_torch(smollm2, request.path.parent)
    assert lines[0] == repr((text, ids, [theirs.eos_token_id]))
    assert lines[1].split()[0] == str(2 + 30 * 9)
