"""Calls of generate() that go on from one another's keys and values."""

import copy
import gc
import pickle

import pytest
import torch
from native_models import IDS, NATIVE, low

import tmac
from tmac.hf import NativeCache
from tmac.hf.native_attachment import current_attachment

OPTIONS = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "prefill_chunk_size": 500}
MORE = torch.tensor([[40, 41, 42], [50, 51, 52]])


class _Watched:
    """A model, and how many prompt tokens of each sequence its decoder was given."""

    def __init__(self, monkeypatch, family="Llama"):
        self.model, self.read = low(family), []
        attachment = current_attachment(self.model)
        forward = attachment.forward

        def watched(sequences, tokens, phase, *rest):
            if phase == "prompt":
                self.read.append([len(each) for each in tokens])
            return forward(sequences, tokens, phase, *rest)

        monkeypatch.setattr(attachment, "forward", watched)

    def __call__(self, ids, **options):
        return self.model.generate(ids, **OPTIONS, **options, **NATIVE)

    def plain(self, ids, **options):
        return self.model.generate(ids, **OPTIONS, **options)


@pytest.fixture
def watched(monkeypatch):
    return _Watched(monkeypatch)


def test_a_conversation_reads_what_is_new(watched):
    cache = NativeCache()
    first = watched(IDS, past_key_values=cache)
    assert cache.get_seq_length() == 21
    talk = torch.cat([first, MORE], 1)
    second = watched(talk, past_key_values=cache)
    assert torch.equal(second, watched.plain(talk))
    assert watched.read == [[16, 16], [4, 4]]  # the last token was chosen, and not read
    assert (cache.batch_size, len(cache), bool(cache)) == (2, 4, True)


def test_the_returned_cache_serves_too(watched):
    out = watched(IDS, return_dict_in_generate=True)
    talk = torch.cat([out.sequences, MORE], 1)
    assert torch.equal(watched(talk, past_key_values=out.past_key_values), watched.plain(talk))
    assert watched.read == [[16, 16], [4, 4]]


def test_new_ids_alone_with_the_mask_of_all(watched):
    cache = NativeCache()
    talk = torch.cat([watched(IDS, past_key_values=cache), MORE], 1)
    new, mask = talk[:, cache.get_seq_length() :], torch.ones_like(talk)
    got = watched(new, past_key_values=cache, attention_mask=mask)
    assert torch.equal(got, torch.cat([new, watched.plain(talk)[:, talk.shape[1] :]], 1))
    assert watched.read == [[16, 16], [4, 4]]
    with pytest.raises(ValueError, match="the attention mask has 33 columns"):
        watched(MORE[:, :1], past_key_values=cache, attention_mask=torch.ones(2, 33, dtype=torch.long))


def test_padding_and_sequences_that_have_ended(watched):
    """What a sequence was given after its end is read when it is needed, as transformers has read it."""
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[0, :5], mask[0, :5] = 0, 0
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    start = watched.model.generate(ids, attention_mask=mask, **options)
    options["eos_token_id"] = int(start[0, 17])
    cache = NativeCache()
    first = watched.model.generate(ids, attention_mask=mask, past_key_values=cache, **options, **NATIVE)
    assert first[0, 18:].eq(0).all()
    assert first.shape[1] == 22
    talk = torch.cat([first, MORE], 1)
    both = torch.cat([mask, torch.ones(2, 9, dtype=torch.long)], 1)
    want = watched.plain(talk, attention_mask=both)
    assert torch.equal(watched(talk, attention_mask=both, past_key_values=cache), want)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma3Text"])
def test_another_text_is_read_from_where_it_differs(monkeypatch, family):
    """With a window, what was dropped is read again."""
    watched = _Watched(monkeypatch, family)
    cache, everything = NativeCache(), {"attention_mask": torch.ones(2, 186, dtype=torch.long)}
    first = watched(torch.arange(360).reshape(2, 180) % 93 + 3, past_key_values=cache)
    other = first.clone()
    other[1, 50] = 90
    want = watched.plain(other, **everything)
    assert torch.equal(watched(other, past_key_values=cache, **everything), want)
    assert watched.read[1] == [1, 136 if family == "Llama" else 186]
    shorter = other[:, :7]
    assert torch.equal(watched(shorter, past_key_values=cache), watched.plain(shorter))


def test_copies_share_a_prefix(watched):
    cache = NativeCache()
    watched(IDS, past_key_values=cache)
    before = current_attachment(watched.model).decoder.cache_bytes
    ways = [copy.deepcopy(cache) for _ in range(3)]
    for turn, each in enumerate(ways):
        talk = torch.cat([IDS, MORE + turn], 1)
        assert torch.equal(watched(talk, past_key_values=each), watched.plain(talk))
    assert watched.read[1:] == [[3, 3]] * 3
    del each, ways
    gc.collect()
    current_attachment(watched.model).release([])
    assert current_attachment(watched.model).decoder.cache_bytes == before


def test_rows_are_chosen_and_repeated(watched):
    cache = NativeCache()
    first = watched(IDS, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
    cache.batch_select_indices(torch.tensor([True, True, False, True]))
    assert (cache.batch_size, cache.get_seq_length()) == (3, 21)
    talk = first[[1, 0, 1]]
    assert torch.equal(watched(talk, past_key_values=cache), watched.plain(talk))
    assert watched.read[1:] == [[1, 1, 1]]


def test_cropping_and_emptying(watched):
    cache = NativeCache()
    first = watched(IDS, past_key_values=cache)
    cache.crop(-3)
    assert cache.get_seq_length() == 18
    cache.crop(17)
    assert cache.get_seq_length() == 17
    cache.crop(0)
    new = first[:, 17:19]
    got = watched(new, past_key_values=cache, attention_mask=torch.ones(2, 19, dtype=torch.long))
    assert torch.equal(got[:, 2:], watched.plain(first[:, :19])[:, 19:])
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, cache.get_max_length()) == (0, -1, -1)
    assert current_attachment(watched.model).decoder.cache_bytes == 0
    watched(IDS[:1], past_key_values=cache)


def test_refusals(watched):
    cache = NativeCache()
    first = watched(IDS, past_key_values=cache)
    with pytest.raises(ValueError, match="hold 2 sequences, but 1 are"):
        watched(IDS[:1], past_key_values=cache)
    with pytest.raises(ValueError, match=r"custom_generate=tmac\.native_generate"):
        watched.plain(torch.cat([first, MORE], 1), past_key_values=cache)
    with pytest.raises(ValueError, match="another model"):
        low(seed=1).generate(IDS, past_key_values=cache, **OPTIONS, **NATIVE)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(cache)
    with torch.no_grad():
        watched.model.model.norm.weight.add_(0.5)
    with pytest.raises(ValueError, match="before this one's weights changed"):
        watched(IDS, past_key_values=cache)


def test_a_cache_outlives_detaching(watched):
    cache = NativeCache()
    first = watched(IDS, past_key_values=cache)
    tmac.detach(watched.model)
    assert cache.get_seq_length() == 21
    with pytest.raises(ValueError, match="another model"):
        watched(first, past_key_values=cache)
    cache.reset()
    assert torch.equal(watched(first, past_key_values=cache), watched.plain(first))
