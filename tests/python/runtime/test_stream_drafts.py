"""Making a draft of a model whose weights are read while it runs, and what its builder refuses."""

import _thread
import threading
import time

import numpy as np
import pytest
from runtime_models import save_low
from streamed import streaming

from tmac import _core
from tmac.runtime.loading import open_model
from tmac.runtime.streaming.load import StreamedModel

PLANES = 4
SNAIL = 4000  # bytes a second: a pass takes minutes
SOON = 20.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_low(tmp_path_factory.mktemp("model"), bits=8, hidden_size=128, intermediate_size=256)


@pytest.fixture
def model(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path))
    streaming(monkeypatch, planes=PLANES)
    streamed = StreamedModel("64G", cache_type="f16", positions=256, rows=256, texts=1, resident_planes=PLANES)
    return streamed.load(open_model(checkpoint))


def interrupted(model):
    """make_draft() until Ctrl-C."""
    timer = threading.Timer(0.3, _thread.interrupt_main)
    begin = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.make_draft(PLANES)
    timer.join()
    assert time.perf_counter() - begin < SOON
    assert model.draft is None


def test_ctrl_c_while_a_draft_reads(model):
    model.limit_stream(SNAIL)
    interrupted(model)
    model.limit_stream(0)
    model.make_draft(PLANES)
    assert model.draft is not None


def test_ctrl_c_while_a_draft_waits_for_its_turn(model):
    model.limit_stream(SNAIL)
    decoder = _core.Decoder(model)
    ids = np.arange(4, dtype=np.int32)
    passes = threading.Thread(target=decoder.forward, args=([decoder.create()], [ids], "prompt", [ids]))
    passes.start()
    time.sleep(0.3)
    interrupted(model)
    assert passes.is_alive()
    model.limit_stream(0)
    passes.join()
    model.make_draft(PLANES)


@pytest.mark.parametrize("limit", [1e-9, 5e-324])
def test_the_slowest_limit_holds_back(model, limit):
    """Longer than a clock can count."""
    model.limit_stream(limit)
    for _ in range(2):
        interrupted(model)


def test_a_draft_of_a_draft_is_refused(model):
    model.make_draft(PLANES)
    with pytest.raises(ValueError, match="is that of a draft: a draft is made of the model itself"):
        model.draft.make_draft(PLANES // 2)


def test_a_builder_opens_one_file(checkpoint, tmp_path, monkeypatch):
    """A second one would be another file than that of the matrices which are placed already."""
    original = _core.ModelBuilder.build

    def build(builder):
        (path,) = (tmp_path / "packed").iterdir()
        about = path.stat()
        with pytest.raises(ValueError, match="one packed file, and it is open already"):
            builder.open_packed(str(path), about.st_size, about.st_mtime_ns, [([], 0), ([], 0)])
        return original(builder)

    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_core.ModelBuilder, "build", build)
    streaming(monkeypatch)
    streamed = StreamedModel("64G", cache_type="f16", positions=256, rows=256, texts=1)
    assert streamed.load(open_model(checkpoint)).stream_statistics() is not None
