"""Logits and texts have the same bits on any number of threads, in any batch and for any size of chunks."""

import numpy as np
import pytest
from test_checkpoints import GGUF_FAMILIES
from test_real_models import PROMPTS

import tmac

OPTIONS = {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 1, "temperature": 1.0}
OTHERS = [{"num_threads": 2, "chunk_size": 7}, {"num_threads": 3}]
BATCH = 8


def assert_same_bits(path, prompts, text):
    """`prompts` are token ids of texts that go on, `text` those of one that is looked at."""
    with tmac.Engine.from_pretrained(path, num_threads=1, kept_positions=0) as engine:
        logits, alone = engine.logits(text), [engine.generate(prompt, **OPTIONS) for prompt in prompts]
    for options in OTHERS:
        with tmac.Engine.from_pretrained(path, kept_positions=0, **options) as engine:
            assert np.array_equal(engine.logits(text).view(np.uint32), logits.view(np.uint32)), options
            together = engine.generate(prompts, **OPTIONS)
        for one, other in zip(alone, together, strict=True):
            assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs), options


def test_of_a_real_model(smollm2):
    with tmac.Engine.from_pretrained(smollm2) as engine:
        prompts = [engine.tokenizer.encode(prompt) for prompt in PROMPTS[:BATCH]]
    assert_same_bits(smollm2, prompts, [token for prompt in prompts[:4] for token in prompt])


@pytest.mark.parametrize("path", GGUF_FAMILIES, ids=lambda path: path.stem)
def test_of_every_family(path):
    ids = np.random.default_rng(0).integers(4, 64, (BATCH, 150))
    prompts = [row[: 1 + 9 * number].tolist() for number, row in enumerate(ids)]
    assert_same_bits(path, prompts, ids[-1].tolist())
