"""A model whose weights are read while it runs gives the bits of one in memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from runtime_models import FAMILIES, config_of, model_of
from streamed import open_streamed, streaming

import tmac
from tmac import _core
from tmac.runtime.loading import load_weights, open_model
from tmac.runtime.streaming.load import StreamedModel

BITS = (4, 8, 3, 2)
SPLITS = [{"whole": 0}, {"whole": 2, "slots": 3}, {"whole": 1, "planes": 2}, {"whole": 0, "planes": 4, "slots": 1}]
PROMPT = [5, 9, 33, 71, 12, 6, 7, 8, 44, 3, 90, 21, 17, 60, 61, 62]
OPTIONS = {"max_new_tokens": 9, "ignore_eos": True, "temperature": 1.0, "seed": 3, "logprobs": 1}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMAC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def saved(folder, family, bits):
    model = model_of(config_of(family))
    if bits is not None:
        tmac.quantize_(model, tmac.QuantConfig(bits=bits, group_size=32))
    model.save_pretrained(folder)
    return folder


MODELS = [*zip(FAMILIES, BITS * 4, strict=False), ("Llama", None), ("Mixtral", None)]


@pytest.fixture(scope="module", params=enumerate(MODELS), ids=lambda one: "-".join(map(str, one[1])))
def checkpoint(request, tmp_path_factory):
    """A saved model, and two ways to divide it."""
    number, (family, bits) = request.param
    splits = SPLITS[number % 4], SPLITS[(number + 1 + number // 4 % 3) % 4]
    return saved(tmp_path_factory.mktemp("model"), family, bits), splits


def outputs(engine):
    texts = engine.generate([PROMPT, PROMPT[3:], PROMPT[7:]], **OPTIONS)
    return engine.logits(PROMPT), [(text.token_ids, text.logprobs) for text in texts]


def test_the_bits_are_those_of_the_model_in_memory(checkpoint, monkeypatch):
    path, splits = checkpoint
    with tmac.Engine.from_pretrained(path, chunk_size=7) as engine:
        logits, texts = outputs(engine)
        assert engine.streamed is None
    for split in splits:
        streaming(monkeypatch, **split)
        with open_streamed(path, chunk_size=7) as engine:
            found, others = outputs(engine)
            statistics, plan = engine.streamed.statistics(), engine.streamed.plan
        assert np.array_equal(found.view(np.uint32), logits.view(np.uint32)), split
        assert others == texts, split
        if plan.streamed:
            assert statistics["bytes_per_pass"] == plan.streamed
            assert statistics["bytes_read"] >= statistics["passes"] * plan.streamed
            assert statistics["passes"] > len(PROMPT) // 7 + OPTIONS["max_new_tokens"]
        else:
            assert statistics is None


def test_everything_fits(tmp_path):
    """Then nothing is read while the model runs."""
    path = saved(tmp_path / "model", "Qwen2Moe", 4)
    with open_streamed(path) as engine:
        assert engine.streamed.statistics() is None
        assert engine.streamed.plan.streamed == engine.streamed.plan.ring == 0
        logits = engine.logits(PROMPT)
    with tmac.Engine.from_pretrained(path) as engine:
        assert np.array_equal(engine.logits(PROMPT), logits)


@pytest.mark.parametrize("embedding_bits", [None, 1, 2, 3, 4, 6, 8])
def test_an_embedding_on_the_disk(embedding_bits, tmp_path, monkeypatch):
    """Rows of every block of every layout, the last one included, are those of the embedding in memory."""
    model = model_of(config_of("Llama", vocab_size=700))
    model.save_pretrained(tmp_path / "model")
    options = {"embedding_bits": embedding_bits, "head_bits": 4}
    ids = [*np.random.default_rng(0).permutation(700).tolist()[:200], 0, 63, 64, 255, 256, 511, 512, 699, 0, 699]
    with tmac.Engine.from_pretrained(tmp_path / "model", **options) as engine:
        wanted = engine.logits(ids)
    for slots in (2, None):
        if slots:
            streaming(monkeypatch, slots=slots)
        else:
            monkeypatch.undo()
        with open_streamed(tmp_path / "model", **options) as engine:
            assert (engine.streamed.plan.embedding > 0) == (slots is None)
            assert np.array_equal(engine.logits(ids).view(np.uint32), wanted.view(np.uint32))


def test_a_part_is_read_once_in_a_pass_and_ahead_of_it(tmp_path, monkeypatch):
    path = saved(tmp_path / "model", "Llama", 4)
    streaming(monkeypatch)
    with open_streamed(path) as engine:
        engine.logits(PROMPT)
        before = engine.streamed.statistics()
        for _ in range(5):
            engine.logits(PROMPT)
        after = engine.streamed.statistics()
    assert after["passes"] - before["passes"] == 5
    largest = after["ring_bytes"]  # what is read ahead is no more than the ring has
    assert 0 <= after["bytes_read"] - before["bytes_read"] - 5 * after["bytes_per_pass"] + largest <= 2 * largest


DRAFTED = [("Llama", 8, 4), ("Qwen3", 4, 2), ("Mixtral", 3, 2), ("GPTNeoX", 8, 4)]


def draft_and_target(decoder, tokens):
    """Logits of a chain of drafted tokens behind a prompt, then of the target for the same."""
    sequence, ids = decoder.create(), np.array(PROMPT, np.int32)
    decoder.forward([sequence], [ids], "prompt", [np.zeros(0, np.int32)])
    nodes, parents = np.array(tokens, np.int32), np.arange(-1, len(tokens) - 1, dtype=np.int32)
    drafted = decoder.forward_tree(sequence, nodes, parents, draft=True)
    verified = decoder.forward_tree(sequence, nodes, parents)
    decoder.release(sequence)
    return drafted, verified


@pytest.mark.parametrize(("family", "bits", "planes"), DRAFTED)
def test_the_planes_in_memory_draft(family, bits, planes, tmp_path, monkeypatch):
    """The draft of a model in memory, bit by bit: it is fitted to all planes, and computed without reading any."""
    path = saved(tmp_path / "model", family, bits)
    opened = open_model(path)
    builder = _core.ModelBuilder(opened.description.config)
    load_weights(opened, builder, plane_layout=True)
    resident = builder.build()
    resident.make_draft(planes)
    tokens = [7, 8, 9, 10]
    wanted = draft_and_target(_core.Decoder(resident), tokens)
    streaming(monkeypatch, planes=planes)
    streamed = StreamedModel("64G", cache_type="f16", positions=256, rows=256, texts=1, resident_planes=planes)
    model = streamed.load(open_model(path))
    for _ in range(2):  # once before any pass, and once after some
        model.make_draft(planes)
        found = draft_and_target(_core.Decoder(model), tokens)
        for one, other in zip(found, wanted, strict=True):
            assert np.array_equal(one.view(np.uint32), other.view(np.uint32))
    decoder = _core.Decoder(model)
    sequence, before = decoder.create(), streamed.statistics()["passes"]
    decoder.forward_tree(sequence, np.array(tokens, np.int32), np.full(4, -1, np.int32), draft=True)
    assert streamed.statistics()["passes"] == before


def test_planes_that_are_not_in_memory_cannot_draft(tmp_path, monkeypatch):
    path = saved(tmp_path / "model", "Llama", 8)
    streaming(monkeypatch)
    model = StreamedModel("64G", cache_type="f16", positions=256, rows=256, texts=1).load(open_model(path))
    with pytest.raises(ValueError, match="not in memory"):
        model.make_draft(4)
    assert model.draft is None


def test_threads_and_decoders_take_turns(tmp_path, monkeypatch):
    """Two decoders of one model cannot use the ring at the same time."""
    streaming(monkeypatch)
    with open_streamed(saved(tmp_path / "model", "Llama", 4)) as engine:
        wanted = engine.logits(PROMPT)
        model = engine.streamed._model

        def one(_):
            decoder = _core.Decoder(model)
            found = []
            for _ in range(10):
                sequence, ids = decoder.create(), np.array(PROMPT, np.int32)
                found.append(decoder.forward([sequence], [ids], "prompt", [np.arange(len(ids), dtype=np.int32)]))
            return found

        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(one, range(4)):
                for logits in found:
                    assert np.array_equal(logits, wanted)
