from hypothesis import given
from hypothesis import strategies as st

from tmac.runtime.stop import StopStrings

TEXTS = st.text("ab\n", max_size=24)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def expected(text, stops):
    """(text before the stop string that is complete first, that string), by trying every end."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def cut(draw, text):
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]


@given(st.data(), TEXTS, STOPS)
def test_cuts_make_no_difference(data, text, stops):
    matcher = StopStrings(stops)
    shown = ""
    for piece in cut(data.draw, text):
        shown += matcher.feed(piece)
        # Nothing of a stop string has been shown: what is shown stays the beginning of the answer.
        assert expected(text, stops)[0].startswith(shown)
    shown += matcher.finish()
    assert (shown, matcher.found) == expected(text, stops)


@given(TEXTS, STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text, stops):
    matcher = StopStrings(stops)
    shown = matcher.feed(text)
    if matcher.found is None:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stop_strings_everything_passes():
    matcher = StopStrings([])
    assert matcher.feed("abc") == "abc"
    assert matcher.finish() == ""


def test_a_stop_string_over_three_pieces():
    matcher = StopStrings(["\nUser:"])
    assert [matcher.feed(piece) for piece in ("Yes.\n", "Us", "er: no", "more")] == ["Yes.", "", "", ""]
    assert matcher.found == "\nUser:"


def test_what_was_held_back_comes_when_it_was_none():
    matcher = StopStrings(["abc"])
    assert [matcher.feed(piece) for piece in ("xa", "b", "e", "ab")] == ["x", "", "abe", ""]
    assert matcher.finish() == "ab"
