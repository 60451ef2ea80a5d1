import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmac.serve.tool_calls import ToolCall, ToolCallParser, knows_format

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "</x>"]}}\n</tool_call>'
PARSED = ToolCall("f", '{"a": [1, "</x>"]}')
TEXTS = {
    "nothing": ("", []),
    "text": ("a < b <tool> <tool_cal", ["a < b <tool> <tool_cal"]),
    "blank": (" \n", [" \n"]),
    "call": (CALL, [PARSED]),
    "two": (f"{CALL}\n{CALL}\n", [PARSED, PARSED]),
    "around": (f"before \n\n{CALL}\nafter", ["before", PARSED, "after"]),
    "cut off": (CALL[:-5], [CALL[:-5]]),
    "no JSON": ("<tool_call>{a}</tool_call>!", ["<tool_call>{a}</tool_call>!"]),
    "no name": ('<tool_call>{"a": 1}</tool_call>', ['<tool_call>{"a": 1}</tool_call>']),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', [ToolCall("f", "{}")]),
    "arguments of another kind": ('<tool_call>{"name": "f", "arguments": 3}</tool_call>',) * 1
    + (['<tool_call>{"name": "f", "arguments": 3}</tool_call>'],),
    "a wrong one, then a right one": (f"<tool_call>1</tool_call>{CALL}", ["<tool_call>1</tool_call>", PARSED]),
}


def parsed(pieces):
    """What a parser gives out, neighbouring texts joined."""
    parser, found = ToolCallParser(), []
    for part in [*(part for piece in pieces for part in parser.feed(piece)), *parser.finish()]:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_texts_and_calls(name):
    text, expected = TEXTS[name]
    assert parsed([text]) == expected
    assert parsed(text) == expected


@given(st.data())
def test_how_a_text_is_cut_does_not_matter(data):
    parts = st.sampled_from([CALL, " ", "\n", "x", "<tool_call>", "</tool_call>", "{}", "<", "é"])
    text = "".join(data.draw(st.lists(parts, max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parsed(pieces) == parsed([text])


def test_text_is_not_held_back():
    assert ToolCallParser().feed("all of it") == ["all of it"]


def test_which_templates_say_so():
    assert knows_format("write <tool_call> ... </tool_call>")
    assert not knows_format("write [TOOL_CALLS]")
    assert not knows_format(None)
