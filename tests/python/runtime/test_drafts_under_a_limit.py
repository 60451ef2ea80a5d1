"""Drafts of a model whose weights are read while it runs: what stays in memory for them, and the same text."""

from types import SimpleNamespace

import pytest
from runtime_models import SIZES, save_low, save_words
from streamed import LIMIT, open_streamed, streaming

import tmac
from tmac.runtime.streaming.load import StreamedModel
from tmac.runtime.streaming.packed_index import BLOCK, NO_CODES, Section
from tmac.runtime.streaming.plan import HUGE_PAGE

PROMPT = [5, 9, 33, 71, 12, 6, 7, 8, 44, 3, 5, 9, 33, 71, 12, 6]
OPTIONS = {"max_new_tokens": 40, "ignore_eos": True, "temperature": 0.5, "seed": 3}


@pytest.fixture(scope="module", params=[8, 4])
def checkpoint(request, tmp_path_factory):
    """A saved model of so many bits, and its text without a draft or a limit."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMAC_CACHE_DIR", str(folder / "cache"))
        save_words(folder, [f"t{token}" for token in range(SIZES["vocab_size"])])
        save_low(folder, bits=request.param)
        with tmac.Engine.from_pretrained(folder, num_threads=1) as engine:
            yield folder, request.param, engine.generate(PROMPT, **OPTIONS).token_ids


@pytest.mark.parametrize("name", ["ngram", "planes", "ngram+planes", "model", "ngram+model", "auto"])
def test_the_text_is_the_plain_one(checkpoint, name, monkeypatch):
    path, bits, expected = checkpoint
    planes = bits // 2
    streaming(monkeypatch, whole=1, planes=planes if name in ("planes", "ngram+planes", "auto") else None)
    draft = name.replace("planes", f"planes:{planes}").replace("model", f"model:{path}")
    with open_streamed(path, draft=draft, num_threads=1) as engine:
        assert engine.streamed.plan.streamed > 0
        results = [engine.generate(PROMPT, **OPTIONS) for _ in range(2)]
    for result in results:
        assert result.token_ids == expected
        assert result.speculation.error is None
        assert result.speculation.bytes_read > 0


def test_another_model_is_part_of_the_limit(checkpoint):
    path, _, _ = checkpoint
    with open_streamed(path, draft=f"model:{path}", max_positions=128) as engine:
        plan = engine.streamed.plan
        assert plan.fixed["draft"] >= plan.fixed["KV cache"]
    with open_streamed(path, max_positions=128) as engine:
        assert engine.streamed.plan.fixed["draft"] == 0


def index_of(layers):
    """Layers whose group values and planes have so many blocks each."""
    at, made = 0, []
    for parts in layers:
        sections = []
        for plane, blocks in enumerate(parts, NO_CODES):
            sections.append(Section(at, at + blocks * BLOCK, 0, plane))
            at += blocks * BLOCK
        made.append(tuple(sections))
    return SimpleNamespace(layers=tuple(made), top=(Section(at, at + BLOCK, 0),))


@pytest.mark.parametrize(
    ("room", "planes"),
    [
        (8 * 50, None),  # everything
        (8 * 40 + 2 * 10 + 8, 4),
        (8 * 30 + 2 * 20 + 8, 3),
        (8 * 20, None),  # whole layers only
    ],
)
def test_auto_keeps_the_planes_that_fit(room, planes):
    megabyte = HUGE_PAGE // BLOCK // 2
    index = index_of([[0, *[10 * megabyte] * 5]] * 8)
    model = StreamedModel(room << 20, cache_type="f16", positions=1, rows=1, texts=1, optional_planes=(4, 3))
    plan = model._plan(index, {"context_length": 1}, {})
    assert model.resident_planes == planes
    assert plan.total <= room << 20
    assert (plan.streamed == 0) == (room == 400)


def test_a_limit_that_is_too_small_for_the_planes(checkpoint):
    path, bits, _ = checkpoint
    with pytest.raises(ValueError, match=r"memory_limit: this model needs at least \d+M, found 1M"):
        tmac.Engine.from_pretrained(path, memory_limit="1M", draft=f"planes:{bits // 2}")
    with pytest.raises(ValueError, match="draft: expected"):
        tmac.Engine.from_pretrained(path, memory_limit=LIMIT, draft="planes:9")
