"""Whole models beside other engines': the files that peers read, the peers' interfaces, the run and its tables."""

import json
import math
import os
import stat
import sys

import numpy as np
import pytest

TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture
def shapes(monkeypatch):
    """Tiny shapes in place of the real ones."""
    from tmac.runtime import synthetic

    found = {
        "tiny": TINY,
        "tiny-tied": {**TINY, "tie_word_embeddings": True},
        "tiny-narrow": {**TINY, "hidden_size": 96, "intermediate_size": 160, "tie_word_embeddings": True},
        "tiny-bitnet": {**TINY, "model_type": "bitnet", "tie_word_embeddings": True},
        "tiny-qwen3": {**TINY, "model_type": "qwen3", "head_dim": 64},
    }
    monkeypatch.setattr(synthetic, "SHAPES", found)
    monkeypatch.setattr("benchmarks.synthetic_gguf.SHAPES", found)
    return found


# Bytes that a generated token reads, in GB, as measured in these engines with the files of their own llama-quantize.
@pytest.mark.parametrize(
    ("shape", "mix", "gigabytes"),
    [
        ("llama-2-7b", "Q4_0", 3.751),
        ("llama-2-7b", "Q2_K", 2.489),
        ("llama-2-7b", "TQ2_0", 1.778),
        ("bitnet-2b-4t", "TQ2_0", 0.808),
        ("bitnet-2b-4t", "TQ2_0-F16", 1.196),
        ("bitnet-2b-4t", "TQ1_0", 0.711),
    ],
)
def test_a_mix_has_the_bytes_of_the_quantizers(shape, mix, gigabytes):
    """Norms, a thousandth of all, are not counted here."""
    from benchmarks.synthetic_gguf import bytes_per_token

    assert bytes_per_token(shape, mix) / 1e9 == pytest.approx(gigabytes, rel=3e-3)


@pytest.mark.parametrize(
    ("shape", "mix"),
    [
        ("tiny", "Q4_0"),
        ("tiny", "Q2_K"),
        ("tiny", "TQ1_0"),
        ("tiny", "TQ2_0"),
        ("tiny-tied", "TQ2_0"),
        ("tiny-tied", "TQ2_0-F16"),
        ("tiny-narrow", "Q4_0"),
        ("tiny-bitnet", "TQ2_0"),
        ("tiny-qwen3", "Q4_0"),
    ],
)
def test_a_file_is_a_model_that_our_runtime_runs(shapes, tmp_path, shape, mix):
    from benchmarks.end_to_end import our_file
    from benchmarks.peers.whole_models import gguf_bytes_per_token
    from benchmarks.synthetic_gguf import bytes_per_token, gguf_file

    path = gguf_file(tmp_path, shape, mix)
    assert gguf_file(tmp_path, shape, mix) == path
    assert [each.name for each in tmp_path.iterdir()] == [f"{shape}-{mix}.gguf"]
    norms = gguf_bytes_per_token(path) - bytes_per_token(shape, mix)
    assert 0 < norms < 20_000
    logits = our_file(path).logits([1, 2, 3], 1)
    assert logits.shape == (64,)
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "TQ1_0", "TQ2_0"])
def test_random_blocks_are_weights_of_the_size_that_products_need(kind):
    """About 1 / sqrt(columns), within a factor of 4: the codes of K types are not spread evenly."""
    import gguf

    from benchmarks.synthetic_gguf import matrix_bytes, random_matrix

    data = random_matrix(np.random.default_rng(0), kind, (80, 512))
    assert data.nbytes == matrix_bytes(kind, (80, 512))
    weight = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert weight.shape == (80, 512)
    assert 0.25 < np.sqrt(np.mean(weight**2)) * math.sqrt(512) < 4
    if kind.startswith("TQ"):
        assert len(np.unique(weight)) == 3


def test_columns_that_are_no_multiple_of_a_block_are_named():
    from benchmarks.synthetic_gguf import matrix_bytes

    with pytest.raises(ValueError, match="Q2_K needs multiples of 256 columns, not 96"):
        matrix_bytes("Q2_K", (4, 96))


@pytest.fixture
def executable(tmp_path):
    """`executable(text)`: a program that is that Python text."""

    def make(text):
        path = tmp_path / "llama-bench"
        path.write_text(f"#!{sys.executable}\nimport json, sys\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture
def llama_bench(shapes, tmp_path):
    """A `LlamaBench` with a tiny file."""
    from benchmarks.peers.whole_models import LlamaBench
    from benchmarks.synthetic_gguf import gguf_file
    from tmac.runtime.synthetic import shape_description

    config = shape_description("tiny").config
    path = gguf_file(tmp_path / "files", "tiny", "Q4_0")
    return lambda program, *options: LlamaBench("llama.cpp", program, "Q4_0", path, config, options)


ANSWER = """
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
row = {"n_prompt": int(options["-p"]), "n_gen": int(options["-n"]), "avg_ts": 8.0, "build_commit": "abc"}
print(json.dumps([row]))
"""


@pytest.mark.skipif(os.name == "nt", reason="a script with a first line that names its interpreter")
def test_llama_bench_is_asked_for_one_run(executable, llama_bench):
    from tmac.runtime.speed import Case

    peer = llama_bench(executable(ANSWER), "-rtr", "1")
    assert peer.run(Case(0, 32), 2) == pytest.approx(4.0)
    assert peer.run(Case(128, 0, 64), 2) == pytest.approx(16.0)
    assert peer.versions == {"llama.cpp": "abc"}
    assert peer.core_seconds() > 0
    command = peer.command(Case(128, 0, 64), 2)[2:]
    assert command[1:] == ["-p", "128", "-n", "0", "-d", "64", "-t", "2", "-r", "1", "-o", "json", "-rtr", "1"]
    cached = 2 * 2 * 2 * 2 * 64 * (10 + 11) // 2  # two layers, keys and values of two heads, f16
    assert peer.bytes_per_token(Case(0, 2, 9)) == peer.weight_bytes + cached


@pytest.mark.skipif(os.name == "nt", reason="a script with a first line that names its interpreter")
@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("sys.exit('no such type')", "ended with status 1 and said no such type"),
        ("print('[]')", "ended with status 0 and said nothing"),
        ("print('{')", "ended with status 0"),
        (ANSWER.replace("8.0", "0.0"), "reported 0.0 tokens per second"),
    ],
)
def test_a_peer_that_fails_says_why(executable, llama_bench, program, message):
    from benchmarks.peers.whole_models import PeerError
    from tmac.runtime.speed import Case

    with pytest.raises(PeerError, match=message):
        llama_bench(executable(program)).run(Case(0, 4), 1)


def test_a_peer_that_is_not_there_says_so(llama_bench):
    from benchmarks.peers.whole_models import PeerError
    from tmac.runtime.speed import Case

    with pytest.raises(PeerError, match=r"llama\.cpp: No such file"):
        llama_bench("/no/such/llama-bench").run(Case(0, 4), 1)


@pytest.fixture
def tiny_run(shapes, monkeypatch, tmp_path):
    """`tiny_run(*options)` runs the benchmark with one tiny block and gives its report."""
    from benchmarks import end_to_end
    from tmac import QuantSpec
    from tmac.runtime import speed

    for name in ("TMAC_LLAMA_BENCH", "TMAC_IK_LLAMA_BENCH", "TMAC_IK_MODELS"):
        monkeypatch.delenv(name, raising=False)
    block = end_to_end.Block("tiny", "W4", QuantSpec(4, 32), QuantSpec(6, 32), "Q4_0", ("Q4_0", "IQ4_KS"))
    monkeypatch.setattr(end_to_end, "BLOCKS", (block,))
    monkeypatch.setattr(end_to_end, "CONTEXT_BLOCKS", ("tiny/W4",))
    monkeypatch.setattr(end_to_end, "DEPTH", 60)
    monkeypatch.setattr(end_to_end, "PROMPTS", (8, 16))
    monkeypatch.setattr(end_to_end, "GENERATED", 4)
    monkeypatch.setattr(speed.ReadProbe.__init__, "__defaults__", (1 << 16,))

    def run(*options):
        path = tmp_path / "report.json"
        assert end_to_end.main(["--runs", "2", "--cache", str(tmp_path), "--json", str(path), *options]) == 0
        return json.loads(path.read_text())

    return run


@pytest.mark.skipif(os.name == "nt", reason="a script with a first line that names its interpreter")
def test_a_run_has_every_row_and_its_page_every_line(tiny_run, executable, monkeypatch):
    from benchmarks.end_to_end_page import page

    program = executable(ANSWER)
    monkeypatch.setenv("TMAC_LLAMA_BENCH", program)
    monkeypatch.setenv("TMAC_IK_LLAMA_BENCH", program)
    report = tiny_run()
    engines = ["tmac", "llama.cpp", "ik_llama.cpp"]
    tests = [("tg4", 1), ("tg4", 2), ("pp8", 2), ("pp16", 2)]
    rows = [(row["engine"], row["test"], row["n_threads"]) for row in report["rows"]]
    assert rows == [(engine, *test) for test in tests for engine in engines]
    assert report["not_run"] == ["tiny/W4: ik_llama.cpp IQ4_KS: no tiny-IQ4_KS.gguf in TMAC_IK_MODELS"]
    assert report["versions"] == {"llama.cpp": "abc", "ik_llama.cpp": "abc"}
    assert [(row["cache_type"], row["n_threads"]) for row in report["contexts"]] == [
        ("f16", 1), ("f16", 2), ("int8", 1), ("int8", 2)
    ]  # fmt: skip
    assert all(row["cache_gb_per_s"] > 0 for row in report["contexts"])
    assert [profile["n_threads"] for profile in report["profiles"]] == [1, 2]
    text = page(report)
    for line in (
        "| tiny | tmac W4 g32, head W6 g32 |",
        "| tiny | llama.cpp Q4_0 |",
        "| tiny | ik_llama.cpp Q4_0 -rtr 1 |",
    ):
        assert text.count(line) == 2
    assert "8.0 (8.0..8.0)" in text
    assert "| tiny | tg4 @ d60 | int8 | 2 |" in text
    assert "gate up" in text
    assert report["not_run"][0] in text


def test_a_peer_that_cannot_start_is_named(tiny_run, monkeypatch, tmp_path):
    monkeypatch.setenv("TMAC_LLAMA_BENCH", str(tmp_path / "missing"))
    report = tiny_run("--threads", "1", "--prompt-threads", "1")
    assert {row["engine"] for row in report["rows"]} == {"tmac"}
    assert report["not_run"] == ["tiny/W4: llama.cpp Q4_0: llama.cpp: No such file or directory"]


def test_a_real_file_needs_no_block(tiny_run, tiny_file):
    report = tiny_run("--blocks", "--threads", "1", "--prompt-threads", "1", "--real", str(tiny_file))
    assert [(row["block"], row["test"]) for row in report["rows"]] == [
        ("tiny_llama", "tg4"), ("tiny_llama", "pp8"), ("tiny_llama", "pp16")
    ]  # fmt: skip


def test_a_run_in_parts_keeps_the_other_blocks(tiny_run, tiny_file, monkeypatch, tmp_path):
    short = ("--threads", "1", "--prompt-threads", "1")
    monkeypatch.setenv("TMAC_LLAMA_BENCH", str(tmp_path / "missing"))
    first = tiny_run(*short)
    monkeypatch.delenv("TMAC_LLAMA_BENCH")
    both = tiny_run(*short, "--blocks", "--real", str(tiny_file), "--add")
    assert both["rows"][:3] == first["rows"]
    assert {row["block"] for row in both["rows"]} == {"tiny/W4", "tiny_llama"}
    assert (both["contexts"], both["not_run"]) == (first["contexts"], first["not_run"])
    assert both["command"][: len(first["command"]) + 1] == [*first["command"], "&&"]
    again = tiny_run(*short, "--add")
    assert len(again["rows"]) == len(both["rows"])
    assert again["not_run"] == []
    with pytest.raises(SystemExit, match="--add: the file has another runs: 2, here 3"):
        tiny_run(*short, "--add", "--runs", "3")


@pytest.fixture
def tiny_file(repository):
    return repository / "tests" / "data" / "tiny_llama.gguf"


class OtherEngine:
    engine, closed = "other", False

    def __init__(self, path, logits):
        self.path, self.answer = path, logits

    def logits(self, ids, threads):
        return self.answer

    def close(self):
        self.closed = True


def test_answers_that_differ_are_not_timed(tiny_file):
    from benchmarks.end_to_end import our_file, same_answers

    ours = our_file(tiny_file)
    ids = np.random.default_rng(0).integers(0, ours.config["vocab_size"], 32).tolist()
    report = {"checks": [], "not_run": []}
    right = OtherEngine(tiny_file, ours.logits(ids, 1) + 1)
    assert same_answers("block", ours, right, report)
    assert not right.closed
    wrong = OtherEngine(tiny_file, ours.logits(ids, 1)[::-1])
    assert not same_answers("block", ours, wrong, report)
    assert wrong.closed
    assert len(report["checks"]) == 2
    assert "logits correlate with" in report["not_run"][0]


def test_the_factor_is_over_the_best_peer_and_bold_where_we_lose():
    from benchmarks.end_to_end_page import factor

    def row(engine, rate, threads=1):
        return {"engine": engine, "block": "b", "test": "tg32", "n_threads": threads, "median_ts": rate}

    ours, lost = row("tmac", 10.0), row("tmac", 4.0)
    peers = [row("a", 5.0), row("b", 8.0), row("c", 90.0, threads=2)]
    assert factor(ours, [ours, *peers]) == ", 1.25x"
    assert factor(lost, [lost, *peers]) == ", **0.50x**"
    assert factor(ours, [ours]) == factor(peers[0], [ours, *peers]) == ""


def test_the_page_shows_the_committed_run(repository):
    from benchmarks.end_to_end_page import MARKS, PAGE, page

    text = (repository / PAGE).read_text(encoding="utf-8")
    path = MARKS.source(text)
    committed = sorted((repository / "benchmarks" / "results").glob("*-end-to-end.json"))
    if not committed:
        assert path == "none"
        return
    assert repository / path in committed
    assert text == MARKS.replaced(text, path, page(json.loads((repository / path).read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "options", [["--runs", "0"], ["--threads", "0"], ["--page"], ["--add"], ["--blocks", "huge/W4"]]
)
def test_a_bad_option_is_named(options, capsys):
    from benchmarks import end_to_end

    with pytest.raises(SystemExit) as stopped:
        end_to_end.main(options)
    assert stopped.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_llama_cpp_is_asked_for_in_one_process(monkeypatch, shapes, tmp_path):
    from benchmarks.peers import whole_models
    from benchmarks.synthetic_gguf import gguf_file
    from tmac.runtime.speed import Case
    from tmac.runtime.synthetic import shape_description

    asked = []

    class FakeWorker:
        def __init__(self, name, python, module):
            asked.append((python, module))

        def ask(self, **request):
            asked.append(request)
            return {"versions": {"llama-cpp-python": "1"}, "seconds": 2.0, "core_seconds": 3.0, "logits": [0.5]}

        def close(self):
            asked.append("closed")

    monkeypatch.setattr(whole_models, "Worker", FakeWorker)
    path = gguf_file(tmp_path, "tiny", "Q4_0")
    peer = whole_models.LlamaCppPython("python", "Q4_0", path, shape_description("tiny").config)
    assert peer.run(Case(0, 4), 2) == 2.0
    assert peer.core_seconds() == 3.0
    assert peer.logits([1], 1) == [0.5]
    peer.close()
    run = {"do": "run", "prompt": 0, "generated": 4, "depth": 0, "threads": 2}
    assert asked[0] == ("python", "llama_decode")
    assert asked[3:] == [run, {"do": "logits", "ids": [1], "threads": 1}, "closed"]


def test_the_worker_says_how_its_package_is_installed(run_benchmark):
    done = run_benchmark("benchmarks.peers.llama_decode", "file.gguf")
    assert done.returncode == 3
    assert "llama-cpp-python==0.3.36" in done.stderr
