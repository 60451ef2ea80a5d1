"""A draft of tmac.attach guesses in native_generate: the text, the logits and the cache are those without it."""

import importlib.util
import threading
from pathlib import Path

import pytest
import torch
from native_models import IDS, NATIVE, Recorder, low, runtime_models
from transformers import StoppingCriteria, StoppingCriteriaList

import tmac
from tmac.hf import NativeCache
from tmac.hf.native_attachment import current_attachment
from tmac.nn import PackedModule

_PATH = Path(__file__).parents[1] / "runtime" / "speculation" / "drafts_for_tests.py"
_SPEC = importlib.util.spec_from_file_location("drafts_for_tests", _PATH)
drafts_for_tests = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(drafts_for_tests)

ONE = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
LONG = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 40}
SAMPLED = {"do_sample": True, "max_new_tokens": 40, "eos_token_id": None}


def guess(model, draft, seed=0, truth=None):
    """Attaches a draft that guesses in every pass; `truth`: one that knows the text."""
    tmac.attach(model, draft=draft)
    drafting = current_attachment(model).drafting
    drafting.controller = drafts_for_tests.EagerController(seed)
    if truth is not None:
        guesses = drafts_for_tests.random_guesses([truth[0].tolist()], 96, seed)
        drafting.draft = drafts_for_tests.TreeDraft(guesses)
    return drafting


def generate(model, ids=ONE, seed=None, **options):
    """The output, with everything that can be asked for, and what the draft did."""
    if seed is not None:
        torch.manual_seed(seed)
    cache = options.pop("past_key_values", NativeCache())
    wanted = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    out = model.generate(ids, past_key_values=cache, **options, **wanted, **NATIVE)
    return out, cache.speculation


def assert_same(got, want):
    assert torch.equal(got.sequences, want.sequences)
    for ours, theirs in ((got.logits, want.logits), (got.scores, want.scores)):
        assert len(ours) == len(theirs)
        assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))
    assert got.past_key_values.tokens == want.past_key_values.tokens
    assert torch.equal(got.past_key_values.ids, want.past_key_values.ids)


def other_model():
    return low(seed=3)


@pytest.mark.parametrize(
    ("draft", "options"),
    [
        ("ngram", LONG),
        (other_model, SAMPLED),
        ("known", LONG),
        ("known", {**SAMPLED, "top_k": 5, "temperature": 0.7}),
        ("known", {**LONG, "repetition_penalty": 3.0}),
    ],
    ids=["ngram", "model", "known", "sampled", "penalties"],
)
def test_the_output_is_that_without_a_draft(draft, options):
    model = low(activation="group")
    want, nothing = generate(model, seed=1, **options)
    assert nothing is None
    truth = want.sequences if draft == "known" else None
    guess(model, draft() if callable(draft) else "ngram", truth=truth)
    got, stats = generate(model, seed=1, **options)
    assert_same(got, want)
    assert (stats.tokens, stats.error) == (39, None)  # the first one comes with the prompt
    assert stats.tokens == stats.passes + sum(stats.accepted)
    if truth is not None:
        assert sum(stats.accepted) > 0
        assert stats.passes < 39


@pytest.mark.parametrize("family", ["Mistral", "Qwen3", "Gemma3Text"])
def test_other_families(family):
    """Two of them with windows that are shorter than the text."""
    model = low(family)
    want, _ = generate(model, **LONG)
    guess(model, "ngram", truth=want.sequences)
    got, stats = generate(model, **LONG)
    assert_same(got, want)
    assert sum(stats.accepted) > 0


@pytest.mark.parametrize(("width", "draft"), [(8, "planes:4"), (4, "planes:3"), (4, "ngram+planes:2"), (8, "auto")])
def test_planes_of_the_model(width, draft):
    model = runtime_models.model_of(runtime_models.config_of("Llama"), 0, scale=0.2)
    model = tmac.quantize_(model, tmac.QuantConfig(bits=width, head_bits=width, embedding_bits=width))
    want, _ = generate(model, **LONG)
    before = {layer.weight.data_ptr() for layer in packed_layers(model)}
    guess(model, draft)
    got, stats = generate(model, **LONG)
    assert_same(got, want)
    moved = [layer for layer in packed_layers(model) if layer.weight.data_ptr() not in before]
    assert bool(moved) == (width == 4)  # of eight bits the upper four lie together anyway
    assert sum(stats.drafted) > 0
    assert stats.draft_passes > 0 or draft == "auto"


def packed_layers(model):
    return [module for module in model.modules() if isinstance(module, PackedModule)]


def test_a_conversation_goes_on_from_the_cache():
    model, cache, other = low(), NativeCache(), NativeCache()
    first, _ = generate(model, past_key_values=other, **LONG)
    more = torch.cat([first.sequences, torch.tensor([[9, 5, 6]])], 1)
    second, _ = generate(model, more, past_key_values=other, **LONG)
    drafting = guess(model, "ngram", truth=second.sequences)
    assert torch.equal(generate(model, past_key_values=cache, **LONG)[0].sequences, first.sequences)
    got, stats = generate(model, more, past_key_values=cache, **LONG)
    assert_same(got, second)
    assert sum(stats.accepted) > 0
    assert drafting.draft.opened == drafting.draft.closed == 2


class _After(StoppingCriteria):
    def __init__(self, columns):
        self.columns = columns

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] >= self.columns])


def test_an_end_inside_of_a_tree():
    model = low()
    want, _ = generate(model, **LONG)
    for number in range(3):
        guess(model, "ngram", number, want.sequences)
        for columns in (12, 17, 30):
            got, _ = generate(model, stopping_criteria=StoppingCriteriaList([_After(columns)]), **LONG)
            assert torch.equal(got.sequences, want.sequences[:, :columns])
            assert got.past_key_values.tokens == [want.sequences[0, : columns - 1].tolist()]
        end = int(want.sequences[0, 20])
        plain = model.generate(ONE, max_new_tokens=40, do_sample=False, eos_token_id=end, speculative=False, **NATIVE)
        assert torch.equal(generate(model, max_new_tokens=40, do_sample=False, eos_token_id=end)[0].sequences, plain)
        assert generate(model, do_sample=False, max_new_tokens=1)[0].sequences.shape == (1, 11)


def test_streamers():
    model, ours, theirs = low(), Recorder(), Recorder()
    want = model.generate(ONE, streamer=theirs, **LONG, **NATIVE)
    guess(model, "ngram", truth=want)
    model.generate(ONE, streamer=ours, **LONG, **NATIVE)
    assert ours.pieces == theirs.pieces
    assert (len(ours.pieces), ours.ended) == (41, 1)


def test_who_does_without_a_draft():
    model = low()
    guess(model, "ngram")
    cache = NativeCache()
    model.generate(ONE, past_key_values=cache, speculative=False, **LONG, **NATIVE)
    assert cache.speculation is None
    cache = NativeCache()
    model.generate(IDS, past_key_values=cache, **LONG, **NATIVE)  # two sequences
    assert cache.speculation is None
    tmac.attach(model)
    assert current_attachment(model).drafting is None


def test_another_pass_in_the_middle_of_a_tree():
    """A processor that generates by itself, as another thread might: the tree is lost, and nothing else."""
    model = low()
    want, _ = generate(model, **LONG)
    guess(model, "ngram", truth=want.sequences)
    alone = model.generate(IDS, max_new_tokens=3, do_sample=False, **NATIVE)
    inner = []

    def disturb(ids, scores):
        if ids.shape[1] % 3 == 0:
            with torch.no_grad():
                inner.append(model.generate(IDS, max_new_tokens=3, do_sample=False, **NATIVE))
        return scores

    got, stats = generate(model, logits_processor=[disturb], **LONG)
    assert_same(got, want)
    assert sum(stats.accepted) > 0
    assert len(inner) > 5
    assert all(torch.equal(each, alone) for each in inner)


def test_threads():
    """One of them guesses, the others do without."""
    model = low()
    want = [model.generate(IDS[i : i + 1], **LONG, **NATIVE) for i in range(2)]
    guess(model, other_model())
    got = [None] * 4

    def work(i):
        got[i] = model.generate(IDS[i % 2 : i % 2 + 1], **LONG, **NATIVE)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, want[i % 2]) for i, each in enumerate(got))


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_a_processor_that_fails_inside_of_a_tree(error):
    model, seen = low(), []
    want, _ = generate(model, **LONG)
    drafting = guess(model, "ngram", truth=want.sequences)

    def fail(ids, scores):
        seen.append(ids)
        if len(seen) == 20:
            raise error
        return scores

    cache = NativeCache()
    with pytest.raises(error):
        generate(model, logits_processor=[fail], past_key_values=cache, **LONG)
    assert cache.attachment.decoder.length(cache.sequences[0]) == len(cache.tokens[0])
    assert drafting.draft.opened == drafting.draft.closed == 1
    assert_same(generate(model, past_key_values=cache, **LONG)[0], want)


def test_a_draft_that_fails():
    model = low()
    want, _ = generate(model, **LONG)
    drafting = guess(model, "ngram")
    drafting.draft = drafts_for_tests.TreeDraft(drafts_for_tests.raising)
    got, stats = generate(model, **LONG)
    assert_same(got, want)
    assert stats.error == "ArithmeticError: a draft that fails"


def test_what_is_attached_again():
    model = low()
    tmac.attach(model, draft="ngram")
    first = current_attachment(model)
    assert current_attachment(tmac.attach(model, draft="ngram")) is first
    draft = other_model()
    tmac.attach(model, draft=draft)
    second = current_attachment(model)
    assert second is not first
    assert current_attachment(tmac.attach(model, draft=draft)) is second
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    third = current_attachment(model)
    assert third is not second
    assert third.drafting.draft.name == second.drafting.draft.name == "model:LlamaForCausalLM"


def test_a_checkpoint_as_the_draft(tmp_path, tiny_gguf):
    model = low("Llama", vocab_size=270)
    want, _ = generate(model, **LONG)
    guess(model, f"ngram+model:{tiny_gguf}")
    got, stats = generate(model, **LONG)
    assert_same(got, want)
    assert stats.draft == f"ngram+model:{tiny_gguf}"
    with pytest.raises(OSError, match="none"):
        tmac.attach(model, draft=f"model:{tmp_path / 'none'}")


def test_drafts_that_cannot_be(tiny_gguf):
    model = low()
    for draft in (f"model:{tiny_gguf}", low(vocab_size=270)):
        with pytest.raises(ValueError, match=r"\[attach\] draft: expected a vocabulary of 96 tokens.*found 270"):
            tmac.attach(model, draft=draft)
    with pytest.raises(ValueError, match=r"draft: expected 'ngram'.*found 'n-gram'"):
        tmac.attach(model, draft="n-gram")
    with pytest.raises(TypeError, match=r"draft: expected 'ngram'.*found 3"):
        tmac.attach(model, draft=3)
    with pytest.raises(ValueError, match=r"\[attach\] expected a model of transformers, got torch"):
        tmac.attach(model, draft=torch.nn.Linear(2, 2))
