"""The automatic flow from end to end on a tiny random model."""

import dataclasses
import json
import math
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra tmac-cpu[hf]")

import torch
import transformers
from full_disk import small_files
from safetensors.torch import load_file, save_file

import tmac
from tmac.evaluation.choices import Question, answer_questions
from tmac.evaluation.scorer import EngineScorer, NoNumbersError
from tmac.files import replacing
from tmac.formats import open_checkpoint
from tmac.hf import auto, auto_judge
from tmac.hf.auto import auto_quantize
from tmac.hf.auto_model import open_float
from tmac.hf.scorer import HFScorer
from tmac.quant import codes_cache, loss_journal, trial_log

VOCABULARY = 96
SMALL = {
    "calibration_tokens": 512,
    "gradient_tokens": 256,
    "evaluation_tokens": 768,
    "probe_tokens": 384,
    "window": 64,
    "progress": False,
    "scorer": "hf",
    "widths": (2, 4, 6),
}


def text(seed, tokens=1024):
    """Tokens that follow a pattern, so that a model can learn something of them."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 4, tokens)
    return (np.cumsum(steps) % VOCABULARY).tolist()


def make_model(tied=True, seed=0, **changes):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        **changes,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor(text(3, 2048)).view(-1, 64)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("float")
    model.save_pretrained(path)
    return path


def quantize(source, out, **options):
    options = {"calibration": text(0), "text": text(1), "sequential": True, **SMALL, **options}
    return auto_quantize(source, out, **options)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """But for the one of the fixture `found`, which comes before."""
    monkeypatch.setattr(auto, "write_plot", lambda report, folder: None)


def contents(folder):
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("auto") / "out"
    return quantize(folder, out, max_loss=0.05)


def test_the_model_that_was_found_holds_the_bound(found, model):
    assert found.held
    assert found.upper <= 0.05
    checkpoint = open_checkpoint(found.path)
    assert checkpoint.tied == {"lm_head": "model.embed_tokens"}
    assert {name: layer.spec for name, layer in checkpoint.layers.items()} == found.specs
    assert len(found.specs) == 15
    assert set(checkpoint.tensors) == {name for name, _ in model.named_parameters() if "norm" in name}


def test_the_loss_that_is_reported_is_the_one_of_the_model(found, model):
    from tmac.evaluation.metrics import token_losses
    from tmac.hf.scorer import HFScorer

    ids = text(1)[: SMALL["evaluation_tokens"]]
    losses = token_losses(HFScorer(tmac.from_pretrained(found.path)), ids, 64)
    reference = token_losses(HFScorer(model), ids, 64)
    assert math.expm1(losses.mean() - reference.mean()) == pytest.approx(found.loss, abs=1e-5)


def test_the_engine_measures_the_families_that_it_knows(folder, model, tmp_path):
    from tmac.evaluation.metrics import token_losses
    from tmac.evaluation.scorer import EngineScorer
    from tmac.hf.scorer import HFScorer

    options = {"scorer": "auto", "sequential": False, "widths": (4,), "bits": 5.0, "probe_tokens": 768}
    result = quantize(folder, tmp_path / "out", **options)
    assert "tmac.Engine" in result.report["rule"]
    ids = text(1)[: SMALL["evaluation_tokens"]]
    with tmac.Engine.from_pretrained(result.path) as engine:
        losses = token_losses(EngineScorer(engine), ids, 64, bos=False)
    reference = token_losses(HFScorer(model), ids, 64)
    assert math.expm1(losses.mean() - reference.mean()) == pytest.approx(result.loss, abs=1e-5)


def test_the_sizes_are_those_of_the_file(found):
    checkpoint = open_checkpoint(found.path)
    bits = sum(8 * layer.nbytes for layer in checkpoint.layers.values())
    weights = sum(layer.out_features * layer.in_features for layer in checkpoint.layers.values())
    assert found.bits_per_weight == pytest.approx(bits / weights)
    assert found.bytes_per_token == bits // 8


def test_the_report(found):
    folder = found.search_folder
    assert folder == found.path.with_name("out.search")
    report = json.loads((folder / "report.json").read_text())
    assert report["held"] is True
    assert "upper bound of the ratio of perplexities" in report["rule"]
    assert report["bits_per_weight"] == found.bits_per_weight
    assert report["layers"].keys() == found.specs.keys()
    assert report["next_smaller"]["measured"]["upper"] > 0.05 or report["reason"] != "the next smaller trial fails"
    assert any("fewer than the 100,000" in note for note in report["notes"])
    pytest.importorskip("matplotlib")
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_measures_nothing_and_writes_the_same(found, folder, monkeypatch):
    before = contents(found.path)
    monkeypatch.setattr(auto_judge, "trial_scorer", None)  # nothing is measured again
    again = quantize(folder, found.path, max_loss=0.05)
    assert again.specs == found.specs
    assert contents(found.path) == before


class Killed(BaseException):
    """A kill: nothing catches it."""


def test_a_search_that_is_killed_after_any_step_ends_with_the_same_bytes(found, folder, tmp_path, monkeypatch):
    """Every write to the disk is a step: the run is killed before it, or when half of the bytes are there."""
    expected = contents(found.path)
    append, append_losses = trial_log.TrialLog._append, loss_journal._append
    steps, at = [0], [-1]

    def step(finish, half):
        steps[0] += 1
        if steps[0] == at[0]:
            half()
            raise Killed
        return finish()

    @contextmanager
    def dying(path):
        temporary = path.with_name(f".{path.name}.dead.tmp")
        yield temporary
        os.truncate(temporary, temporary.stat().st_size // 2)
        raise Killed

    def replacing_killed(path):
        steps[0] += 1
        return dying(path) if steps[0] == at[0] else replacing(path)

    def append_killed(log, entry):
        def half():
            with log.path.open("ab") as file:
                file.write(json.dumps(entry).encode()[:-7])

        return step(lambda: append(log, entry), half)

    def losses_killed(file, content):
        step(lambda: append_losses(file, content), lambda: append_losses(file, content[: len(content) // 2]))

    for module in _users("replacing"):
        monkeypatch.setattr(module, "replacing", replacing_killed)
    monkeypatch.setattr(trial_log.TrialLog, "_append", append_killed)
    monkeypatch.setattr(loss_journal, "_append", losses_killed)
    out = tmp_path / "out"
    rng = np.random.default_rng(0)
    kills = 0
    while True:
        steps[0], at[0] = 0, int(rng.integers(1, 24))
        try:
            quantize(folder, out, max_loss=0.05)
            break
        except Killed:
            kills += 1
    assert kills > 5
    assert contents(out) == expected
    assert not list(tmp_path.rglob(".*"))


def _users(name):
    import sys

    return [module for key, module in sys.modules.items() if key.startswith("tmac.") and hasattr(module, name)]


def test_a_model_in_memory_gives_the_same_model(found, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = quantize(model, None, max_loss=0.05)
    assert result.path is None
    assert result.search_folder is None
    assert result.specs == found.specs
    assert isinstance(result.model.model.layers[0].mlp.up_proj, tmac.nn.QuantLinear)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    ids = torch.tensor([text(5, 32)])
    torch.testing.assert_close(
        result.model(input_ids=ids).logits, tmac.from_pretrained(found.path)(input_ids=ids).logits, rtol=0, atol=0
    )


def test_a_bit_budget(folder, tmp_path):
    result = quantize(folder, tmp_path / "out", bits=4.5, sequential=False)
    assert result.held
    assert 4.0 < result.bits_per_weight <= 4.5


def test_an_impossible_bound_gives_the_best_model(folder, tmp_path):
    result = quantize(folder, tmp_path / "out", max_loss=0.01, widths=(1,))
    assert not result.held
    assert {spec.bits for spec in result.specs.values()} == {1}
    assert result.path.exists()


def test_heads_of_their_own_and_biases(tmp_path):
    model = make_model(tied=False, attention_bias=True)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    result = quantize(model, tmp_path / "out", max_loss=0.05)
    assert result.held
    checkpoint = open_checkpoint(result.path)
    assert {"lm_head", "model.embed_tokens"} <= checkpoint.layers.keys()
    name = "model.layers.1.self_attn.q_proj"
    assert np.array_equal(checkpoint.layers[name].read().bias, model.model.layers[1].self_attn.q_proj.bias.numpy())


def test_a_tied_head_that_the_file_has_twice_is_quantized_once(folder, found, tmp_path):
    twice = shutil.copytree(folder, tmp_path / "twice")
    tensors = load_file(twice / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, twice / "model.safetensors")
    matrices = open_float(twice).matrices
    assert (matrices[0].kind, matrices[0].tied) == ("embedding", ("lm_head",))
    assert not any(matrix.kind == "head" for matrix in matrices)
    result = quantize(twice, tmp_path / "out", max_loss=0.05)
    assert result.specs == found.specs
    assert contents(result.path) == contents(found.path)
    changed = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    save_file(changed, twice / "model.safetensors")
    assert [matrix.kind for matrix in open_float(twice).matrices if matrix.kind != "linear"] == ["embedding", "head"]


def test_a_model_that_says_nothing_any_more_is_a_trial_like_others(folder, found, tmp_path, monkeypatch):
    losses = EngineScorer.losses

    def wrecked(scorer, ids):
        sizes = {layer.spec.bits for layer in open_checkpoint(tmp_path / "out.search" / "trial").layers.values()}
        if 2 in sizes:
            raise NoNumbersError("there is a NaN among the logits of row 3")
        return losses(scorer, ids)

    monkeypatch.setattr(EngineScorer, "losses", wrecked)
    result = quantize(folder, tmp_path / "out", max_loss=0.3, scorer="engine", sequential=False, widths=(2, 8))
    assert result.held
    assert 2 not in {spec.bits for spec in result.specs.values()}
    worst = max(trial["measured"]["loss"] for trial in result.report["trials"])
    assert worst == auto_judge.WRECKED
    json.loads((tmp_path / "out.search" / "report.json").read_text(), parse_constant=pytest.fail)


def test_fresh_measures_again(folder, tmp_path):
    first = quantize(folder, tmp_path / "out", bits=4.5, sequential=False)
    (path,) = (tmp_path / "out.search" / "measured").rglob("*.losses")
    before = path.stat()
    quantize(folder, tmp_path / "out", bits=4.5, sequential=False, force=True)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    again = quantize(folder, tmp_path / "out", bits=4.5, sequential=False, force=True, resume=False)
    assert path.stat().st_mtime_ns > before.st_mtime_ns
    assert again.loss == first.loss


def test_a_folder_named_after_logits_hides_no_error(folder, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise ValueError(f"{tmp_path}/logit: the head is missing")

    monkeypatch.setattr(auto_judge, "from_pretrained", broken)
    with pytest.raises(ValueError, match="the head is missing"):
        quantize(folder, tmp_path / "logit" / "out", bits=4.5, sequential=False)


@pytest.mark.parametrize("wrecked", [math.inf, math.nan])
def test_a_function_that_returns_no_number_for_a_trial(folder, tmp_path, wrecked):
    values = iter([1.0])
    result = quantize(
        folder, tmp_path / "out", bits=4.5, sequential=False, evaluate=lambda model: next(values, wrecked)
    )
    assert result.loss == auto_judge.WRECKED


def test_a_function_of_the_user(folder, tmp_path):
    seen = []

    def evaluate(model):
        seen.append(model)
        with torch.no_grad():
            ids = torch.tensor(text(1)[:256]).view(-1, 64)
            return -float(model(input_ids=ids, labels=ids).loss)

    result = quantize(folder, tmp_path / "out", max_loss=0.02, evaluate=evaluate, text=None)
    assert result.held
    assert result.report["measured"]["value"] == pytest.approx(evaluate(tmac.from_pretrained(result.path)))
    assert "evaluate(model)" in result.report["rule"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": text(0, 100)}, "the calibration text has 100 tokens, expected at least 512"),
        ({"text": text(1, 100)}, "the evaluation text has 100 tokens, expected at least 768"),
        ({"text": text(0)}, "the calibration text is the held-out text"),
        ({"calibration": ["a text"]}, "no tokenizer for the calibration text"),
        ({"calibration": 3.5}, "expected the calibration text as"),
        ({"max_loss": -1.0}, "max_loss must be a positive number"),
        ({"max_loss": 0.01, "bits": 3.0}, "either max_loss or bits"),
        ({"budget": 0.0}, "budget"),
        ({"metric": "speed"}, "metric must be"),
        ({"recipe": "magic"}, "recipe must be one of"),
        ({"widths": (0, 4)}, "widths must be"),
        ({"scorer": "paper"}, "scorer must be"),
        ({"calibration_tokens": 10}, "calibration_tokens must be at least 64"),
        ({"probe_tokens": 100}, "probe_tokens must be at least 128, found 100"),
        ({"calibration": [96] * 512}, "token ids of 0 to 95, but the calibration text has 96 to 96"),
        ({"text": [-1] * 768}, "token ids of 0 to 95, but the evaluation text has -1"),
        ({"window": 129, "evaluation_tokens": 258, "text": text(1)}, "window must be at most the 128 positions"),
    ],
)
def test_wrong_arguments(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quantize(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_log_of_another_search_is_refused_and_can_be_discarded(folder, tmp_path):
    options = {"bits": 5.0, "widths": (4, 5), "sequential": False}
    quantize(folder, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="changed: calibration "):
        quantize(folder, tmp_path / "out", **options, calibration=text(9))
    other = make_model(seed=1)
    with pytest.raises(ValueError, match="changed: model "):
        quantize(other, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="changed: widths "):
        quantize(folder, tmp_path / "out", bits=5.0, widths=(4, 6), sequential=False)
    quantize(other, tmp_path / "out", **options, resume=False, force=True)


def test_an_out_that_exists_is_kept(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="out exists already"):
        quantize(folder, tmp_path / "out", max_loss=0.05)
    assert (tmp_path / "out" / "file").read_text() == "mine"


def test_an_out_that_must_not_be_replaced_is_told_before_the_search(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    with pytest.raises(tmac.FormatError, match="expected a checkpoint of our own format to replace"):
        quantize(folder, tmp_path / "out", max_loss=0.05, force=True)
    assert not (tmp_path / "out.search" / "statistics").exists()


def test_accuracy_is_that_of_the_model_beside_its_own_float_model(folder, tmp_path):
    class Tokenizer:
        bos_token_id = None

        def __call__(self, text, **_):
            return {"input_ids": [ord(letter) % VOCABULARY for letter in text]}

    questions = [Question("abc"[: 1 + n % 3], (chr(97 + n), chr(98 + n), chr(100 + n)), n % 3) for n in range(20)]
    options = {"metric": "accuracy", "questions": questions, "bits": 5.0, "sequential": False, "widths": (4,)}
    options |= {"text": None, "tokenizer": Tokenizer()}
    quantize(folder, tmp_path / "out", **options)
    other = make_model(seed=5)
    found = quantize(other, tmp_path / "out", **options, resume=False, force=True)
    wanted = answer_questions(HFScorer(other, Tokenizer()), questions).accuracy
    assert found.report["measured"]["float accuracy"] == wanted


def test_a_model_that_the_engine_cannot_follow_is_measured_by_transformers(folder):
    model = open_float(folder)
    assert auto_judge.choose_scorer(model, "auto") == "engine"
    config = {**model.checkpoint.config, "rope_parameters": {"rope_type": "magic", "rope_theta": 1e4}}
    strange = dataclasses.replace(model, checkpoint=dataclasses.replace(model.checkpoint, config=config))
    assert auto_judge.choose_scorer(strange, "auto") == "hf"


def test_the_scale_of_an_embedding_beside_learned_positions():
    config = transformers.OPTConfig(
        vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config)
    torch.nn.init.normal_(model.model.decoder.embed_positions.weight)
    assert open_float(model).embedding_scale() == pytest.approx(1.0, abs=1e-5)


def test_nan_is_named_where_another_model_was_searched_before(folder, tmp_path):
    quantize(folder, tmp_path / "out", bits=5.0, sequential=False, widths=(4,))
    model = make_model()
    model.model.layers[0].mlp.up_proj.weight[3, 5] = math.nan
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj: the weight holds NaN"):
        quantize(model, tmp_path / "out", bits=5.0, resume=False, force=True)


def test_hidden_states_that_do_not_fit_on_the_disk_leave_nothing(tmp_path):
    options = {"calibration": text(0, 8192), "calibration_tokens": 8192, "bits": 5.0, "widths": (4,)}
    model = make_model()
    with small_files(600_000), pytest.raises(OSError, match=r"hidden.*cannot be written"):
        quantize(model, tmp_path / "out", **options)
    assert not list((tmp_path / "out.search").rglob(".*"))


def test_a_weight_that_holds_nan_is_named(tmp_path):
    model = make_model()
    model.model.layers[1].mlp.down_proj.weight[3, 5] = math.nan
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj: the weight holds NaN"):
        quantize(model, tmp_path / "out", max_loss=0.05)


def test_a_dead_layer_is_rounded_and_named(tmp_path):
    model = make_model()
    model.model.layers[1].mlp.gate_proj.weight.zero_()  # silu(0) * up is 0: nothing reaches down_proj
    result = quantize(model, tmp_path / "out", max_loss=0.05)
    assert result.report["not_activated"] == ["model.layers.1.mlp.down_proj"]


def test_a_disk_that_is_full_leaves_a_search_that_can_go_on(folder, found, tmp_path, monkeypatch):
    write = codes_cache.write_atomically
    room = [25]

    def full(path, content):
        room[0] -= 1
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(codes_cache, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            quantize(folder, tmp_path / "out", max_loss=0.05)
    quantize(folder, tmp_path / "out", max_loss=0.05)
    assert contents(tmp_path / "out") == contents(found.path)
