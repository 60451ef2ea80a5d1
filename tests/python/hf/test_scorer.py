"""The Hugging Face scorer: batches, the beginning's token, and the numbers of the native engine."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from native_models import runtime_models

import tmac
from tmac.evaluation.metrics import compare, perplexity, token_losses
from tmac.evaluation.scorer import EngineScorer
from tmac.hf.scorer import HFScorer
from tmac.quant.evaluate import perplexity as window_perplexity

IDS = torch.randint(3, 96, (150,), generator=torch.Generator().manual_seed(1)).tolist()
FAMILIES = ("Llama", "Gemma3Text", "Qwen3")


def model_of(family="Llama", **changes):
    return runtime_models.model_of(runtime_models.config_of(family, **changes), scale=0.2)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    """A low-bit model that rounds no activation, and the engine over the same packed weights."""
    model = model_of(request.param)
    tmac.quantize_(model, tmac.QuantConfig(bits=4, group_size=32, head_bits=8, activation="float"))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    with tmac.Engine.from_pretrained(folder, cache_type="f32", chunk_size=32) as engine:
        yield HFScorer(model), EngineScorer(engine)


def test_both_paths_have_the_same_numbers(both):
    hf, engine = both
    assert hf.vocab_size == engine.vocab_size
    assert hf.context_length == engine.context_length
    np.testing.assert_allclose(token_losses(engine, IDS, 64), token_losses(hf, IDS, 64), atol=1e-4)
    found = compare(hf, engine, IDS, 64)
    np.testing.assert_allclose(found.reference_losses, token_losses(hf, IDS, 64), atol=1e-4)
    assert found.kl.max() <= 1e-5
    assert found.top1 == 1


def test_a_batch_changes_no_number(both):
    hf, _ = both
    texts = [IDS[:40], IDS[40:60], IDS[60:61], IDS[61:100]]
    alone = [hf.losses(ids) for ids in texts]
    hf._batch = 3
    try:
        for found, wanted in zip(hf.losses_of(texts), alone, strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, atol=1e-4)
    finally:
        hf._batch = None


def test_losses_are_the_cross_entropy_of_the_model():
    model = model_of().train()
    scorer = HFScorer(model)
    found = scorer.losses(IDS[:60])
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS[:60]])).logits[0]
    wanted = F.cross_entropy(logits[:-1], torch.tensor(IDS[1:60]), reduction="none")
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    np.testing.assert_array_equal(scorer.logits(IDS[:60]), logits.numpy())
    assert perplexity(token_losses(scorer, IDS, 64)) == pytest.approx(window_perplexity(model, torch.tensor(IDS), 64))


def test_logits_of_half_precision_are_widened():
    scorer = HFScorer(model_of().to(torch.bfloat16))
    assert scorer.logits(IDS[:20]).dtype == np.float32
    assert np.isfinite(token_losses(scorer, IDS, 64)).all()


class Tokenizer:
    """As transformers' tokenizers are called; `begins`: with or without the beginning's token."""

    bos_token_id = 7

    def __init__(self, begins):
        self.begins = begins

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [ord(character) % 80 + 10 for character in text]
        return {"input_ids": [7, *ids] if self.begins and add_special_tokens else ids}


def test_windows_begin_as_the_tokenizer_says():
    model = model_of()
    begins, plain = HFScorer(model, Tokenizer(True)), HFScorer(model, Tokenizer(False))
    assert (begins.bos_id, begins.add_bos, plain.bos_id, plain.add_bos) == (7, True, 7, False)
    assert begins.encode("some text") == plain.encode("some text")
    assert len(token_losses(begins, IDS, 50)) == 150
    assert len(token_losses(plain, IDS, 50)) == 147
    np.testing.assert_array_equal(token_losses(begins, IDS, 50), token_losses(plain, IDS, 50, bos=True))
    np.testing.assert_array_equal(token_losses(begins, IDS, 50, bos=False), token_losses(plain, IDS, 50))


def test_what_cannot_be_scored_is_refused():
    scorer = HFScorer(model_of(), name="tiny")
    with pytest.raises(ValueError, match="tiny has no tokenizer"):
        scorer.encode("text")
    with pytest.raises(ValueError, match="0 to 95, found 3 to 96"):
        scorer.logits([3, 96])
    with pytest.raises(ValueError, match="1 to 256 tokens, found 0"):
        scorer.logits([])
    with pytest.raises(ValueError, match="1 to 256 tokens, found 257"):
        scorer.losses([3] * 257)
    with pytest.raises(ValueError, match="batch of at least one"):
        HFScorer(model_of(), batch=0)


def test_logits_that_are_no_numbers_are_named():
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN among the logits"):
        token_losses(HFScorer(model), IDS, 64)
