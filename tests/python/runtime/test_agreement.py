"""How far the fast mode of the native decoder is from the Hugging Face path over the same weights: shown, not bounded.

Activations are rounded on both sides, and what is rounded differs in its last bits: the two drift apart
(test_emulation.py). The same figures for two attentions of transformers say how much of that is float32 itself.
"""

import numpy as np
import pytest
import torch
from test_real_models import PROMPTS

import tmac

PIECE = 64  # rows whose probabilities are held in double


@pytest.fixture(scope="module")
def tokens(smollm2):
    with tmac.Engine.from_pretrained(smollm2) as engine:
        return engine.tokenizer.encode("\n\n".join(PROMPTS))


def compare(one, other):
    """Mean and largest Kullback-Leibler divergence in nats, and how often the most probable tokens are the same."""
    divergences, same = [], 0
    for at in range(0, len(one), PIECE):
        p, q = (torch.from_numpy(logits[at : at + PIECE]).double().log_softmax(-1) for logits in (one, other))
        divergences.append((p.exp() * (p - q)).sum(-1))
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    divergence = torch.cat(divergences).numpy()
    return divergence.mean(), divergence.max(), same / len(one)


def test_the_fast_mode_agrees_with_the_hugging_face_path(smollm2, tokens, capsys):
    model = tmac.from_pretrained(smollm2, dtype=torch.float32)
    logits = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            logits[attention] = model(torch.tensor([tokens])).logits[0].numpy()
    wanted = logits.pop("sdpa")
    for cache_type in ("f32", "f16", "int8"):
        with tmac.Engine.from_pretrained(smollm2, cache_type=cache_type) as engine:
            logits[f"native, cache of {cache_type}"] = engine.logits(tokens)
    found = {name: compare(wanted, rows) for name, rows in logits.items()}
    with capsys.disabled():
        print(f"\n{len(tokens)} tokens, against transformers with sdpa:")
        for name, (mean, largest, same) in found.items():
            print(f"  {name}: KL divergence {mean:.2e} on average, {largest:.2e} at most; top-1 {same:.1%} the same")
    for mean, largest, same in found.values():
        assert np.isfinite(largest)
        assert 0 <= mean <= largest
        assert 0 < same <= 1
