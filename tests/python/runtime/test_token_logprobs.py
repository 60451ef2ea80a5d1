"""What servers ask of an engine beside texts: the log-probabilities of a prompt, and the chat template's source."""

import fakes
import numpy as np
import pytest

IDS = list(range(3, 73))


def test_every_token_with_the_most_likely_ones(make_engine):
    engine = make_engine(chunk_size=9)
    rows = fakes.log_softmax(engine.logits(IDS))
    found = engine.token_logprobs(IDS, 3)
    assert [item.token_id for item in found] == IDS[1:]
    np.testing.assert_array_equal([item.logprob for item in found], rows[np.arange(len(IDS) - 1), IDS[1:]])
    for item, row in zip(found, rows, strict=False):
        best = np.argsort(-row, kind="stable")[:3]
        assert item.top == tuple((int(token), float(row[token])) for token in best)


def test_none_of_the_most_likely_ones(make_engine):
    engine = make_engine()
    found = engine.token_logprobs(IDS)
    assert {item.top for item in found} == {()}
    np.testing.assert_array_equal([item.logprob for item in found], engine.log_probabilities(IDS))
    assert engine.token_logprobs([3]) == []


def test_it_can_be_cancelled(make_engine):
    engine = make_engine(chunk_size=10)
    with pytest.raises(RuntimeError, match="cancelled"):
        engine.token_logprobs(IDS, cancelled=lambda: len(engine.decoder.passes) >= 2)
    assert len(engine.decoder.passes) == 2
    assert not engine.decoder.sequences


@pytest.mark.parametrize(("ids", "top"), [([], 0), ([1], -1), ([-1], 0), ([1], 10**6), ([0] * 300, 0)])
def test_wrong_arguments(make_engine, ids, top):
    with pytest.raises(ValueError, match=r"^(ids|top).*: "):
        make_engine().token_logprobs(ids, top)


def test_the_source_of_the_chat_template(make_engine):
    from tmac.runtime.chat_template import ChatTemplates

    engine = make_engine()
    engine._chat_template = None
    assert engine.chat_template() is None
    engine._chat_template = ChatTemplates({"default": "a", "tool_use": "b"})
    assert (engine.chat_template(), engine.chat_template(True)) == ("a", "b")
