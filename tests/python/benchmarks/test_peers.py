"""The peers' harness: what is compared, what is refused, and one peer that the tests' own environment has."""

import importlib
import importlib.util
import json
import sys

import numpy as np
import pytest


def job_of(**changes):
    from benchmarks.peers.peer import Job

    return Job(**{"n": 4, "k": 8, "m": 2, "threads": 1, "cached": True, **changes})


def fake_peer(error=0.0, module="numpy"):
    """A peer that multiplies with numpy and is off by a factor of 1 + error."""
    from benchmarks.peers.peer import Kernel, Loaded, NotTimedError, Peer

    class Fake(Peer):
        name = "fake"
        install = "pip install fake"

        def versions(self):
            return {"fake": "1"}

        def kernels(self):
            return [Kernel("plain", {"bits": 4, "group_size": 32}, 0.01)]

        def load(self, kernel, job):
            if job.k % 2:
                raise NotTimedError("k is odd")
            weight, x = np.ones((job.n, job.k), np.float32), job.input()
            return Loaded(lambda: x @ weight.T, 1, weight.nbytes, (1 + error) * (x @ weight.T), weight, x)

    Fake.module = module
    return Fake()


def test_a_worker_answers_each_request():
    from dataclasses import asdict

    from benchmarks.peers.peer import answers

    requests = [
        {"do": "hello"},
        {"do": "load", "kernel": "plain", "job": asdict(job_of(k=7))},
        {"do": "load", "kernel": "plain", "job": asdict(job_of())},
        {"do": "run"},
    ]
    hello, refused, loaded, run = answers(fake_peer(), iter(requests))
    assert hello["versions"] == {"fake": "1"}
    assert [kernel["name"] for kernel in hello["kernels"]] == ["plain"]
    assert refused == {"not_timed": "k is odd"}
    assert (loaded["bytes"], loaded["copies"]) == (4 * 8 * 4, 1)
    assert loaded["relative_l2_error"] < 1e-6
    assert run["seconds"] > 0


def test_a_peer_s_wrong_answer_is_not_timed():
    from benchmarks.peers.peer import NotTimedError

    peer = fake_peer(error=0.02)
    with pytest.raises(NotTimedError, match=r"relative error 0\.02 is no rounding"):
        peer.checked(peer.kernels()[0], job_of())


def test_weights_are_cycled_unless_cached():
    from benchmarks.timing import STREAMED_BYTES

    assert job_of().copies(1 << 20) == 1
    streamed = job_of(cached=False)
    assert streamed.copies(8 << 20) * (8 << 20) > STREAMED_BYTES
    assert job_of(cached=False, m=128).copies(8 << 20) * (8 << 20) > STREAMED_BYTES // 16


def test_copies_are_kept_for_the_next_job_with_the_same_weight():
    peer, made = fake_peer(), []

    def make():
        made.append(len(made))
        return made[-1]

    assert peer.copies_of("a", make, 3) == [0, 1, 2]
    assert peer.copies_of("a", make, 2) == [0, 1]
    assert peer.copies_of("a", make, 4) == [0, 1, 2, 3]
    assert peer.copies_of("b", make, 1) == [4]
    assert peer.copies_of("a", make, 1) == [5]


def test_a_long_round_is_not_repeated(monkeypatch):
    from benchmarks.peers import peer

    def rounds_of(seconds):
        monkeypatch.setattr(peer, "timed", lambda call, first, calls: call(0) or seconds)
        calls = []
        assert peer.one_run(lambda: calls.append(1)) == seconds
        return len(calls)

    assert rounds_of(peer.LONG_SECONDS * 1.01) == 1
    assert rounds_of(peer.LONG_SECONDS * 0.99) == 2


def test_our_weights_serve_the_jobs_that_follow():
    from benchmarks.peers.tmac_kernels import Tmac

    ours = Tmac()
    kernel = ours.kernel(json.dumps({"bits": 2, "group_size": 32}))
    first = ours.weights(kernel, job_of(n=32, k=64))
    assert ours.weights(kernel, job_of(n=32, k=64, m=20, threads=2)) is first
    assert ours.weights(kernel, job_of(n=64, k=64)) is not first
    loaded = ours.checked(kernel, job_of(n=32, k=64, m=20))
    assert loaded.copies == 1
    assert loaded.extra["kernel"] == ours.weights(kernel, job_of(n=32, k=64)).prompt_kernel
    assert set(loaded.run()) == {"seconds", "read_seconds"}


def test_a_peer_that_is_missing_is_named_with_its_command(capsys):
    from benchmarks.peers.peer import main

    assert main(fake_peer(module="no_such_package"), []) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"fake is not installed in {sys.executable}: pip install fake"]


def test_every_peer_s_file_starts_where_the_peer_is_missing(run_benchmark):
    from benchmarks.peers.__main__ import MODULES

    for name, module in MODULES.items():
        peer = next(
            value() for value in vars(importlib.import_module(f"benchmarks.peers.{module}")).values() if is_peer(value)
        )
        assert peer.name == name
        if importlib.util.find_spec(peer.module) is None:
            result = run_benchmark(f"benchmarks.peers.{module}")
            assert result.returncode == 3
            assert result.stderr.strip().endswith(peer.install)


def is_peer(value):
    from benchmarks.peers.peer import Peer

    return isinstance(value, type) and issubclass(value, Peer) and value is not Peer


@pytest.fixture
def rows():
    """One that we win and one that we lose."""
    from benchmarks.peers.table import PeerRow

    kernel = {"name": "plain", "ours": {"bits": 4, "group_size": -1, "zero_point": "offset"}}
    theirs = {"bytes": 16, "relative_l2_error": 0.001, "repacked": True}
    mine = {"bytes": 18, "relative_l2_error": 0.002, "kernel": "qgemm"}
    return [
        PeerRow.of("fake", kernel, job_of(), theirs, mine, [(factor * 3e-6, 2e-6, 1e-6)] * 7) for factor in (1, 0.5)
    ]


def test_a_row_compares_the_medians_of_each_round(rows):
    won, lost = rows
    assert (won.times_as_fast, lost.times_as_fast) == (1.5, 0.75)
    assert (won.theirs.bits_per_weight, won.ours.bits_per_weight) == (4.0, 4.5)
    assert won.theirs.time.median_us == 3.0
    assert won.ours.kernel == "qgemm per row offset"
    assert won.read_gb_per_s == 0.02
    assert won.theirs.details == {"repacked": True}


@pytest.fixture
def report(rows):
    """A run as its JSON file holds it."""
    from benchmarks.report import report_text

    head = {
        "machine": {"cpu": "A CPU", "cpus": 2},
        "versions": {"fake": {"fake": "1"}},
        "not_run": ["fake other 4x8 m=1 threads=1: k is odd"],
    }
    return json.loads(report_text(head, rows))


def test_a_row_can_be_read_back(rows, report):
    from benchmarks.peers.readme import rows_of

    assert rows_of(report) == rows


def test_the_summary_has_a_line_per_kernel_and_marks_what_we_lose(rows, report):
    from benchmarks.peers.readme import summary

    report["rows"][1]["job"]["m"] = 8
    lines = summary(report).splitlines()
    assert lines[0].endswith("| m=2 | m=8 |")
    assert (
        lines[2]
        == "| fake plain | 4.00 | 1.0e-03 | qgemm per row offset | 4.50 | 2.0e-03 | 3 / 2 (1.50) | 2 / 2 (**0.75**) |"
    )
    assert len({line.count("|") for line in lines[:3]}) == 1
    assert "4x8, weights cached" in lines[-1]
    assert "A CPU, 2 CPUs; fake 1" in lines[-1]


def test_the_full_table_holds_every_row_and_what_was_not_run(report):
    from benchmarks.peers.readme import everything

    lines = everything(report).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert [line.split("|")[-2].strip() for line in lines[2:4]] == ["1.50", "0.75"]
    assert lines[-1] == "- fake other 4x8 m=1 threads=1: k is odd"


def test_tables_are_written_between_their_marks(report, tmp_path):
    from benchmarks.peers.readme import PLACES, write_tables

    source = tmp_path / "run.json"
    source.write_text(json.dumps(report))
    for name in PLACES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before\n<!-- peers: old.json -->\nold\n<!-- end of peers -->\nafter\n")
    write_tables(source, tmp_path)
    for name, render in PLACES.items():
        expected = f"before\n<!-- peers: run.json -->\n{render(report)}<!-- end of peers -->\nafter\n"
        assert (tmp_path / name).read_text() == expected


def test_a_document_without_the_marks_is_named():
    from benchmarks.peers.readme import MARKS

    with pytest.raises(ValueError, match="0 places marked"):
        MARKS.replaced("text", "run.json", "body\n")
    with pytest.raises(ValueError, match="no <!-- peers: FILE"):
        MARKS.source("text")


def test_matmulnbits_codes_lie_from_the_lowest_bits_on():
    from benchmarks.peers.onnxruntime_cpu import dequantize

    scales = np.full((1, 1), 2.0, np.float32)
    np.testing.assert_array_equal(dequantize(np.array([[[0x1F]]], np.uint8), scales, 4), [[[14, -14]]])
    np.testing.assert_array_equal(dequantize(np.array([[[0b11100100]]], np.uint8), scales, 2), [[[-4, -2, 0, 2]]])


def test_without_options_one_shape_is_run_and_the_others_where_asked_for():
    from benchmarks.peers.__main__ import jobs, parse
    from benchmarks.tables import SHAPES

    named = ["--python", "torch=python3"]
    few, every = jobs(parse(named)), jobs(parse([*named, "--every-shape"]))
    assert {(job.n, job.k) for job in few} == {SHAPES[0]}
    assert {(job.m, job.threads) for job in few} >= {(1, 1), (1, 2), (8, 1), (128, 1)}
    assert every[: len(few)] == few
    assert {(job.n, job.k) for job in every} == set(SHAPES)
    assert [str(job) for job in jobs(parse([*named, "--m", "3"]))] == ["4096x4096 m=3 threads=1"]


def test_environments_are_found_by_their_names(tmp_path):
    from benchmarks.peers.__main__ import interpreters, parse

    python = tmp_path / "peer-onnxruntime" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    options = parse(["--environments", str(tmp_path), "--python", "torch=python3"])
    assert interpreters(options) == {"onnxruntime": str(python), "torch": "python3"}


def test_a_peer_with_fixed_threads_has_a_process_for_each_number(monkeypatch):
    from benchmarks.peers import __main__ as run

    started = []
    monkeypatch.setattr(run, "Worker", lambda name, python, module, threads=0: (name, threads))
    monkeypatch.setattr(run, "run_jobs", lambda worker, part, *_: started.append((*worker, part)) or [])
    options = run.parse(["--python", "torch=python3", "--m", "1", "8", "--threads", "1", "2"])
    for name in ("torch", "auto-round-lib"):
        assert list(run.run_peer(name, "python3", options, {})) == []
    assert [(name, threads) for name, threads, _ in started] == [
        ("torch", 0), ("auto-round-lib", 1), ("auto-round-lib", 2)
    ]  # fmt: skip
    assert [{job.threads for job in part} for _, _, part in started] == [{1, 2}, {1}, {2}]
    assert [len(part) for _, _, part in started] == [4, 2, 2]


def test_torch_s_operators_beside_ours(run_benchmark, tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs the extra tmac-cpu[torch]")
    report = tmp_path / "report.json"
    result = run_benchmark(
        "benchmarks.peers", "--python", f"torch={sys.executable}", "--shapes", "64x128", "65x130", "--m", 1, 2,
        "--cached", "--kernels", "int", "--json", report,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads(report.read_text())
    assert "torch" in content["versions"]
    assert {(row["job"]["n"], row["job"]["m"]) for row in content["rows"]} == {(64, 1), (64, 2), (65, 1), (65, 2)}
    assert "torch int4pack g128, bf16 65x130 m=1 threads=1: k is not a multiple of 128" in content["not_run"]
    assert "onnxruntime: no interpreter was named" in content["not_run"]


def test_a_worker_that_fails_ends_its_rows_only(run_benchmark):
    result = run_benchmark(
        "benchmarks.peers", "--python", f"llama-cpp-python={sys.executable}", "--shapes", "64x128", "--cached"
    )
    if importlib.util.find_spec("llama_cpp") is not None:
        pytest.skip("this environment has the peer")
    assert result.returncode == 0
    assert "not run: llama-cpp-python: llama-cpp-python ended with status 3" in result.stdout
    assert "pip install" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no interpreter"),
        (("--python", "torch=python3", "--readme"), "--json FILE or --from FILE"),
        (("--python", "numpy=python3"), "NAME is one of torch"),
        (("--python", "torch"), "NAME=INTERPRETER"),
        (("--python", "torch=python3", "--runs", 6), "at least 7"),
    ],
)
def test_options_are_checked(run_benchmark, arguments, message):
    result = run_benchmark("benchmarks.peers", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
