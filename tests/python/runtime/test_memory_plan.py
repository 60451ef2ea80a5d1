"""Which layers stay in memory, and whether the process keeps to its limit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from runtime_models import SIZES, model_of, save_words

import tmac
from tmac.runtime.streaming.memory import cache_bytes, parse_memory, peak_bytes, resident_bytes, written
from tmac.runtime.streaming.packed_index import BLOCK, Section
from tmac.runtime.streaming.plan import HUGE_PAGE, MARGIN, divide, make_plan

MB = 1 << 20


@pytest.mark.parametrize(
    ("value", "nbytes"),
    [
        (5, 5),
        ("7", 7),
        ("700M", 700 * MB),
        ("1.5G", 1536 * MB),
        ("512 MiB", 512 * MB),
        ("64kb", 65536),
        (".5g", MB << 9),
    ],
)
def test_sizes(value, nbytes):
    assert parse_memory("memory_limit", value) == nbytes


@pytest.mark.parametrize("value", ["", "M", "-1M", "1e9", "700 X", "0", 0, -5, "nan", "1.2.3M", "9" * 30])
def test_what_is_no_size(value):
    with pytest.raises(ValueError, match="memory_limit: expected"):
        parse_memory("memory_limit", value)


@pytest.mark.parametrize("value", [1.5, True, None, [1]])
def test_what_is_of_no_type_for_a_size(value):
    with pytest.raises(TypeError, match="memory_limit: expected"):
        parse_memory("memory_limit", value)


def test_a_written_size_is_never_less():
    for nbytes in (1, MB - 1, MB, MB + 1, 12345678901):
        assert 0 <= parse_memory("x", written(nbytes)) - nbytes < MB


def layers_of(sizes):
    """Layers whose sections have these sizes: group values, planes 0, 1, ... or 0, 4."""
    layers, at = [], BLOCK
    for parts in sizes:
        sections = []
        for plane, size in parts.items():
            sections.append(Section(at, at + size * BLOCK, 0, plane))
            at += size * BLOCK
        layers.append(tuple(sections))
    return layers


W8 = {-1: 100, 0: 400, 4: 400}
MIXED = {-1: 100, 0: 400}


def test_as_many_whole_layers_as_fit():
    layers = layers_of([W8] * 10)
    size = 900 * BLOCK
    for limit in (64 * MB, 32 * MB, 15 * MB):
        plan = make_plan(limit, layers, {"process": 4 * MB})
        whole = plan.resident.count(3)
        assert plan.total <= limit
        assert set(plan.resident) <= {0, 3}
        assert plan.streamed == (10 - whole) * size
        assert (
            whole == 10
            or divide(limit, layers, {"process": 4 * MB}, resident_planes=None, slots=2, whole=whole + 1).total > limit
        )
    assert make_plan(64 * MB, layers, {}).ring == 0


def test_those_that_are_read_lie_apart():
    layers = layers_of([W8] * 12)
    plan = divide(0, layers, {}, resident_planes=None, slots=2, whole=8)
    assert plan.resident == (0, 3, 3) * 4


def test_planes_of_a_draft_stay():
    layers = layers_of([W8, MIXED, {-1: 10, 0: 50, 1: 50, 2: 50, 3: 50}])
    for planes, resident in ((None, (0, 0, 0)), (1, (2, 2, 2)), (3, (2, 2, 4)), (4, (2, 2, 5)), (5, (3, 2, 5))):
        plan = divide(0, layers, {}, resident_planes=planes, slots=2, whole=0)
        assert plan.resident == resident, planes
    assert plan.streamed == plan.ring == 0  # five planes are everything


def test_the_ring_holds_the_largest_missing_part():
    layers = layers_of([W8, {-1: 100, 0: 2000, 4: 700}, W8, W8])
    plan = divide(0, layers, {}, resident_planes=4, slots=2, whole=0)
    assert plan.ring == 2 * -(-700 * BLOCK // HUGE_PAGE) * HUGE_PAGE
    assert plan.weights == -(-(3 * 500 + 2100) * BLOCK // HUGE_PAGE) * HUGE_PAGE


def test_an_embedding_stays_where_everything_does():
    layers = layers_of([W8] * 10)
    everything = make_plan(64 * MB, layers, {}).total
    for limit, embedding in ((everything + 5 * MB, 5 * MB), (everything + 5 * MB - 1, 0), (everything, 0)):
        plan = make_plan(limit, layers, {}, embedding=5 * MB)
        assert (plan.embedding, plan.streamed) == (embedding, 0)
        assert plan.total <= limit
    assert make_plan(everything - 1, layers, {}, embedding=5 * MB).embedding == 0
    assert make_plan(everything, layers, {}, embedding=5 * MB, resident_planes=5).streamed == 0


def test_too_little():
    layers = layers_of([W8] * 10)
    fixed = {"process": 30 * MB, "KV cache": 5 * MB}
    message = r"needs at least 47M, found 20M \(43M of 20M: process 30M, KV cache 5M"
    with pytest.raises(ValueError, match=message) as error:
        make_plan(20 * MB, layers, fixed)
    needed = parse_memory("x", re.search(r"least (\w+)", str(error.value))[1])
    assert make_plan(needed, layers, fixed).total <= needed
    assert make_plan(needed - MARGIN, layers, fixed).resident == (0,) * 10
    with pytest.raises(ValueError, match="needs at least 47M"):
        make_plan(needed - MARGIN - MB, layers, fixed)


@given(
    st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=4), min_size=1, max_size=40),
    st.integers(0, 200 * MB),
    st.none() | st.integers(1, 4),
    st.integers(1, 3),
)
def test_a_plan_keeps_to_its_limit(sizes, limit, planes, slots):
    layers = layers_of([dict(zip((-1, 0, 1, 2), parts, strict=False)) for parts in sizes])
    try:
        plan = make_plan(limit, layers, {"process": MB}, resident_planes=planes, slots=slots)
    except ValueError as error:
        needed = parse_memory("x", re.search(r"least (\w+)", str(error))[1])
        assert needed >= limit
        assert make_plan(needed, layers, {"process": MB}, resident_planes=planes, slots=slots).total <= needed
        return
    assert plan.total <= limit
    everything = sum(section.nbytes for layer in layers for section in layer)
    stays = sum(section.nbytes for layer, count in zip(layers, plan.resident, strict=True) for section in layer[:count])
    assert plan.streamed == everything - stays
    assert 0 <= plan.weights - stays < HUGE_PAGE


@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("head", [16, 24])
def test_the_size_of_a_cache(cache_type, head):
    """Never less than what the core takes, and no more than the size of its slabs on top."""
    config = transformers.LlamaConfig(**SIZES | {"head_dim": head, "max_position_embeddings": 4096})
    model = model_of(config)
    with tmac.Engine.from_pretrained(_saved(model), cache_type=cache_type, max_positions=1000) as engine:
        engine.logits([1] * 1000)
        engine.generate([2] * 990, max_new_tokens=2)
        with engine.exclusive() as decoder:
            found = decoder.cache_bytes
    content = {"head_dim": head, "num_kv_heads": 2, "num_layers": 4}
    guess = cache_bytes(content, cache_type, 1000)
    assert 0.4 * found <= guess <= 1.2 * found


def _saved(model):
    import tempfile

    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    return folder


def test_what_this_process_has():
    assert 10 * MB < resident_bytes() <= peak_bytes() + MB


RUN = """
import json, sys
import tmac
limit, draft, options = json.loads(sys.argv[2]), json.loads(sys.argv[3]), {"max_new_tokens": 6, "ignore_eos": True}
sizes = {"memory_limit": limit, "max_positions": 256, "context_length": 256}
with tmac.Engine.from_pretrained(sys.argv[1], draft=draft, **sizes) as engine:
    if draft:
        sys.path.insert(0, sys.argv[4])
        from drafts_for_tests import EagerController
        engine._passes._speculator.controller = EagerController()
    texts = engine.generate([[5, 6, 7], list(range(1, 60))], **options)
    texts.append(engine.generate(list(range(1, 60)), **{**options, "max_new_tokens": 10}))
    stats = texts[-1].speculation
    assert not draft or stats.error is None and stats.draft_passes + stats.ahead_passes > 2, stats
    logits = engine.logits(list(range(1, 100)))
    plan = engine.streamed and engine.streamed.plan
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
print(json.dumps([[text.token_ids for text in texts], float(logits.sum()), peak, plan and plan.streamed]))
"""


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """100 MB of floats in twelve layers."""
    import torch

    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 1000}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | sizes)).half()
    folder = tmp_path_factory.mktemp("larger")
    model.save_pretrained(folder)
    return folder


def run(model, limit, cache, draft=None):
    environment = {**os.environ, "TMAC_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    tests = Path(__file__).parent / "speculation"
    return subprocess.run(
        [sys.executable, "-c", RUN, str(model), json.dumps(limit), json.dumps(draft), str(tests)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def least_of(model, cache, draft=None):
    """The limit that a process says that it needs."""
    failed = run(model, "1M", cache, draft)
    needed = re.search(r"ValueError: memory_limit: this model needs at least (\w+), found 1M", failed.stderr)
    assert needed, failed.stderr
    return parse_memory("x", needed[1])


def outcome(done):
    """(texts and the sum of logits, peak, bytes that a pass reads)"""
    assert done.returncode == 0, done.stderr
    *found, peak, streamed = json.loads(done.stdout)
    return found, peak, streamed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_keeps_to_its_limit(larger, tmp_path):
    """With as little as it says that it needs, and with a bit more; making the packed file included."""
    least = least_of(larger, tmp_path)
    found = []
    for limit in (least + 2 * MB, least + 40 * MB, None):
        for path in (tmp_path / "packed").iterdir():
            path.unlink()
        found.append(outcome(run(larger, limit, tmp_path)))
    (small, peak, streamed), (more, other_peak, other_streamed), (resident, whole, _) = found
    assert peak <= least + 2 * MB
    assert other_peak <= least + 40 * MB
    assert 0 < other_streamed < streamed
    assert small == more == resident
    assert whole > peak + 30 * MB  # what was saved


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory):
    """A model of 30 MB, what it gives, and what it needs without a draft."""
    import torch

    folder = tmp_path_factory.mktemp("eight_bits")
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 1000}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | sizes))
    tmac.quantize_(model, tmac.QuantConfig(bits=8, group_size=32))
    model.save_pretrained(folder)
    save_words(folder, [f"t{token}" for token in range(1000)])
    return folder, outcome(run(folder, None, folder))[0], least_of(folder, folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("draft", "more"), [("planes:4", 10 * MB), ("model:PATH", 25 * MB)])
def test_the_process_keeps_to_its_limit_with_a_draft(eight_bits, draft, more, tmp_path):
    """With no more than it says that it needs; the planes, or all of a model that equals the target, are part of it."""
    path, expected, least_without = eight_bits
    draft = draft.replace("PATH", str(path))
    least = least_of(path, tmp_path, draft)
    assert least > least_without + more
    found, peak, streamed = outcome(run(path, least, tmp_path, draft))
    assert found == expected
    assert peak <= least
    assert streamed > 0


def test_a_limit_is_looked_at_first():
    with pytest.raises(ValueError, match="memory_limit: expected a size like"):
        tmac.Engine.from_pretrained("nowhere", memory_limit="many")
