"""Plain against speculative decoding: which runs there are, and what is made of them."""

import pytest

from tmac.runtime.draft_speed import compare
from tmac.runtime.generate import Generation, Timings
from tmac.runtime.speculation.stats import SpeculationStats


class Recorder:
    """An engine that is told how fast it is.

    Args:
        rates: (prompt, speculative) -> tokens per second, one for each run in turn.
        wrong: (prompt, number of the run) whose last token is another one.
        room: tokens that the context has room for.
    """

    def __init__(self, rates=None, wrong=None, room=100):
        self.rates, self.wrong, self.room = rates or {}, wrong, room
        self.calls = []

    def drop_prompts(self):
        self.calls.append("drop")

    def generate(self, prompt, *, speculative, max_new_tokens, ignore_eos, **options):
        assert ignore_eos
        self.calls.append((prompt, speculative))
        runs = [call for call in self.calls if call == (prompt, speculative)]
        rate = self.rates.get((prompt, speculative), [1.0] * len(runs))[len(runs) - 1]
        count = min(max_new_tokens, self.room)
        ids = list(range(count))
        if (prompt, len([call for call in self.calls if call[0] == prompt])) == self.wrong:
            ids[-1] = -1
        timings = Timings(generation=(count - 1) / rate, generated_tokens=count)
        return Generation(
            "", ids, "length", len(prompt), timings, None, None, SpeculationStats("x") if speculative else None
        )


def test_runs_take_turns_and_the_first_round_is_not_timed():
    rates = {("a", False): [99, 1, 2, 6], ("a", True): [99, 3, 8, 4]}
    engine = Recorder(rates)
    one, other = compare(engine, {"first": "a", "second": "b"}, max_new_tokens=5, repetitions=3)
    assert engine.calls[::2] == ["drop"] * 16
    round_ = [("a", False), ("a", True), ("b", False), ("b", True)]
    turned = [("a", True), ("a", False), ("b", True), ("b", False)]
    assert engine.calls[1::2] == [*round_, *turned, *round_, *turned]
    assert (one.plain, one.drafted) == (pytest.approx([1, 2, 6]), pytest.approx([3, 8, 4]))
    assert one.factor == pytest.approx(2.0)
    assert (one.name, one.token_ids, one.prompt_tokens, len(one.stats)) == ("first", [0, 1, 2, 3, 4], 1, 3)
    assert other.factor == pytest.approx(1.0)
    found = one.to_dict()
    assert (found["plain_ts"], found["draft_ts"]) == (pytest.approx(2.0), pytest.approx(4.0))


def test_plain_runs_alone():
    engine = Recorder()
    (found,) = compare(engine, {"x": "a"}, max_new_tokens=2, repetitions=2, draft=False)
    assert engine.calls[1::2] == [("a", False)] * 3
    assert (found.factor, found.drafted, found.to_dict()["draft_ts"]) == (None, [], None)


@pytest.mark.parametrize("run", [2, 3, 6])
def test_another_text_is_an_error(run):
    with pytest.raises(RuntimeError, match=r"\[compare\] x: token 3 is -1, expected 3"):
        compare(Recorder(wrong=("a", run)), {"x": "a"}, max_new_tokens=4, repetitions=2)


def test_a_text_that_ends_early_is_an_error():
    with pytest.raises(ValueError, match="x: expected 9 tokens after 3, found room for 8"):
        compare(Recorder(room=8), {"x": "aaa"}, max_new_tokens=9, repetitions=1)
