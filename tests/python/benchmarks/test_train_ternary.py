"""A ternary model trained for a few seconds: what is exported, that nothing is lost on the way, and bad input."""

import bz2
import json
from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra tmac-cpu[hf]")

import tmac
from tmac.evaluation.packaged import FILES
from tmac.formats import open_checkpoint

SIZES = {"vocabulary": 320, "hidden": 32, "ffn": 48, "layers": 2, "heads": 2, "key_heads": 1, "context": 48}
STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def ternary(repository):
    """The modules under test; the checkout is on the path while they are imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository))
        import benchmarks.train_ternary
        from benchmarks.ternary import check, data, export, model, reference, train

        class Modules:
            main = staticmethod(benchmarks.train_ternary.main)

        for module in (check, data, export, model, reference, train):
            setattr(Modules, module.__name__.rpartition(".")[2], module)
        return Modules


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts(repository):
    return sorted((repository / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def corpus(ternary, texts):
    return ternary.data.corpus(ternary.data.read_texts(texts), SIZES["vocabulary"], SIZES["context"])


def fresh(ternary, corpus, low=False, seed=0):
    return ternary.model.build(ternary.model.Shape(**SIZES), corpus.end, seed, low)


def trained_with(ternary, corpus, low=False, **changes):
    model = fresh(ternary, corpus, low)
    training = ternary.train.Training(**{"steps": STEPS, "texts": 4, "low": low, **changes})
    curve = ternary.train.train(model, corpus.train, SIZES["context"], training, lambda *_: None)
    return model.eval(), curve


@pytest.fixture(scope="module")
def trained(ternary, corpus, tmp_path_factory):
    """(model, its loss curve, the folder it was exported to)."""
    model, curve = trained_with(ternary, corpus)
    folder = tmp_path_factory.mktemp("ternary") / "model"
    ternary.export.export(model, corpus.tokenizer, folder)
    return model, curve, folder


@pytest.fixture(scope="module")
def checks(ternary, corpus, trained):
    model, _, folder = trained
    return ternary.check.check(model, folder, corpus.held_out[:288], SIZES["context"])


def test_the_loss_falls(trained):
    points = trained[1].points
    assert [point.step for point in points] == list(range(1, STEPS + 1))
    assert points[-1].loss < points[0].loss - 0.1
    assert trained[1].tokens == STEPS * 4 * SIZES["context"]


def test_nothing_is_lost(checks):
    assert checks.failures() == []
    assert len(checks.layers) == 7 * SIZES["layers"]


def test_perplexities(checks):
    """The same bits of logits are the same perplexity; the other two only come near."""
    found = {each.way: each for each in checks.perplexities}
    assert set(found) == {"trained", "tmac.from_pretrained", "tmac.Engine", "transformers"}
    assert found["tmac.from_pretrained"].perplexity == found["trained"].perplexity
    assert 1 < found["trained"].perplexity < SIZES["vocabulary"]


def test_another_weight_is_found_out(ternary, corpus, trained):
    """One trit of one layer: nothing that has to be the same is."""
    model, _, folder = trained
    name, layer = next(iter(ternary.model.linears(model).items()))
    before = layer.weight.detach().clone()
    with torch.no_grad():
        size = layer.weight.abs().mean()
        layer.weight[0, 0] = 0.9 * size * -float(before[0, 0].sign())
    try:
        found = ternary.check.check(model, folder, corpus.held_out[:96], SIZES["context"]).failures()
    finally:
        with torch.no_grad():
            layer.weight.copy_(before)
    assert f"{name}: the sums differ" in found
    assert f"{name}: the outputs differ" in found
    assert any("tmac.from_pretrained: the logits differ" in each for each in found)
    assert any("tmac.Engine: the logits differ" in each for each in found)


def test_the_file_is_the_format_of_transformers(ternary, trained):
    """Its codes are the trained ones, its scale is bit for bit the one of training, and the packing is theirs."""
    model, _, folder = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BitNetForCausalLM"]
    assert config["quantization_config"]["linear_class"] == "bitlinear"
    stored = open_checkpoint(folder)
    layers = ternary.model.linears(model)
    assert set(stored.layers) == set(layers)
    for name, layer in layers.items():
        codes = stored.layers[name].read()
        values, scale, _ = ternary.model.ternary(layer.weight.detach())
        assert np.array_equal(codes.codes.astype(int) - 1, values.numpy())
        assert (codes.scales.astype(np.float32) == scale.numpy()).all()
    theirs = dict(ternary.check.transformers_model(folder).named_modules())
    from transformers.integrations.bitnet import pack_weights

    for name, layer in layers.items():
        values = ternary.model.ternary(layer.weight.detach()).values
        assert torch.equal(theirs[name].weight, pack_weights(values.clone()))


def test_the_tokenizer_is_the_same_everywhere(corpus, trained):
    from transformers import AutoTokenizer

    folder = trained[2]
    text = "A ternary weight: -1, 0 and 1.\n\nÜber é 漢字"
    ids = corpus.tokenizer.encode(text).ids
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ids
    with tmac.Engine.from_pretrained(str(folder)) as engine:
        assert engine.tokenizer.encode(text) == ids
        assert engine.eos_ids == {corpus.end}
        assert 1 <= len(engine.generate("A weight", max_new_tokens=4, temperature=0.0).token_ids) <= 4


def test_the_same_seed_is_the_same_model(ternary, corpus, trained):
    again, curve = trained_with(ternary, corpus)
    assert [point.loss for point in curve.points] == [point.loss for point in trained[1].points]
    for name, value in again.state_dict().items():
        assert torch.equal(value, trained[0].state_dict()[name]), name
    other, _ = trained_with(ternary, corpus, seed=1)
    assert not torch.equal(other.lm_head.weight, again.lm_head.weight)


def test_gradients_in_bf16_only_change_gradients(ternary, corpus):
    """bf16 has 8 significant bits, so each factor of a term is off by 2^-9 at most; integers are not off at all."""
    ids = corpus.train[: 2 * SIZES["context"]].view(2, -1)
    found = {}
    for low in (False, True):
        model = fresh(ternary, corpus, low)
        loss = ternary.model.next_token_loss(model, ids, low)
        loss.backward()
        found[low] = float(loss.detach()), [parameter.grad for parameter in model.parameters()]
    assert found[False][0] == found[True][0]
    for exact, low in zip(found[False][1], found[True][1], strict=True):
        assert not torch.equal(exact, low)
        assert (exact - low).norm() < 0.05 * exact.norm()


def test_the_straight_through_gradient(ternary):
    """That of a plain product of the rounded factors."""
    torch.manual_seed(0)
    layer = ternary.model.TernaryLinear(24, 8)
    x = torch.randn(5, 24, requires_grad=True)
    layer(x).backward(torch.ones(5, 8))
    values, scale, _ = ternary.model.ternary(layer.weight.detach())
    integers, unit = ternary.model.rounded(x.detach())
    assert torch.allclose(x.grad, torch.ones(5, 8) @ (values * scale), rtol=1e-5, atol=1e-7)
    assert torch.allclose(layer.weight.grad, torch.ones(8, 5) @ (integers * unit), rtol=1e-5, atol=1e-6)


def test_two_stages(ternary):
    training = ternary.train.Training(peak=1.0, decay=0.1)
    shares = [index / 1000 for index in range(1001)]
    rates, decays = zip(*(ternary.train.rate_and_decay(share, training) for share in shares), strict=True)
    assert max(rates) == pytest.approx(0.972, abs=1e-3)  # a linear decay behind a warm-up of 3 %
    assert rates[499] == pytest.approx(0.53, abs=2e-3)
    assert rates[500] == pytest.approx(0.33)
    assert rates[0] == rates[1000] == 0
    assert set(decays[:500]) == {0.1}
    assert set(decays[500:]) == {0.0}


def test_time_is_kept(ternary, corpus):
    _, curve = trained_with(ternary, corpus, steps=None, minutes=0.01)
    assert 0.6 <= curve.seconds < 5


def test_a_fused_product_is_rounded_once(ternary):
    """Against exact fractions. The last numbers are near the middle of two f32 numbers, and f64 rounds them to it."""
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 200)).astype(np.float32)
    x, y = 2.0**-12, 2.0**-11
    a[100:150], b[100:150], c[100:150] = 1 + x, (1 - x + x * x) * 2.0**-24, 1  # 1 + half a step * (1 + x^3)
    a[150:], b[150:], c[150:] = 1 - y, (1 + y + y * y) * 2.0**-24, 1 + 2.0**-23  # * (1 - y^3)
    a[125:175] *= -1
    c[125:175] *= -1
    assert (a.astype(np.float64) * b + c).astype(np.float32)[100] != ternary.reference.fma(a, b, c)[100]
    for result, factors in zip(ternary.reference.fma(a, b, c), zip(a, b, c, strict=True), strict=True):
        one, two, three = (Fraction(float(each)) for each in factors)
        error = abs(Fraction(float(result)) - (one * two + three))
        for neighbour in (np.nextafter(result, np.float32(np.inf)), np.nextafter(result, np.float32(-np.inf))):
            assert error < abs(Fraction(float(neighbour)) - (one * two + three))


@pytest.mark.parametrize("stage", ["packed_state", "_bring_to_disk"])
def test_an_interrupted_export_leaves_nothing(ternary, corpus, trained, tmp_path, monkeypatch, stage):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ternary.export, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        ternary.export.export(trained[0], corpus.tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    ternary.export.export(trained[0], corpus.tokenizer, tmp_path / "model")
    whole = (tmp_path / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(ternary.export, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        ternary.export.export(trained[0], corpus.tokenizer, tmp_path / "model", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == whole


def arguments(folder, texts, *more):
    sizes = [word for name, value in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [str(folder), "--text", *map(str, texts), "--texts", "4", "--check-tokens", "96", *sizes, *more]


def test_the_command(ternary, texts, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert ternary.main(arguments(tmp_path / "model", texts, "--steps", "3", "--json", str(report))) == 0
    printed = capsys.readouterr().out
    assert "lossless: every bit that has to be the same is" in printed
    found = json.loads(report.read_text())
    assert [row["step"] for row in found["rows"]] == [1, 2, 3]
    assert found["checks"]["logits_of_engine"] is True
    assert found["training"]["steps"] == 3
    assert found["command"][3] == "model"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "report.json"]
    assert ternary.main(arguments(tmp_path / "model", texts, "--steps", "3")) == 2
    assert "exists already: --force replaces it" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(ternary, texts, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ternary.train, "_step", interrupted)
    assert ternary.main(arguments(tmp_path / "model", texts, "--steps", "3")) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hidden", "30", "--heads", "4"], "expected heads that divide the hidden size"),
        (["--ffn", "50"], "expected multiples of 4"),
        (["--vocabulary", "20000"], "expected a vocabulary of 20000, but this text gives"),
        (["--context", "1000000"], "expected more than 1000000 tokens for training"),
        (["--rate", "1e30"], "the loss became"),
    ],
)
def test_bad_settings(ternary, texts, tmp_path, capsys, more, message):
    assert ternary.main(arguments(tmp_path / "model", texts, "--steps", "3", *more)) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing(ternary, monkeypatch):
    monkeypatch.setitem(FILES, "gensim/wikipedia", ("no_such_package_of_texts", "1.0", "dump.bz2"))
    install = "pip install --no-deps no_such_package_of_texts==1.0, or give --text FILES"
    with pytest.raises(ValueError, match=install):
        ternary.data.read_texts()


def test_files_that_are_no_text(ternary, tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        ternary.data.read_texts([tmp_path / "missing"])
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    with pytest.raises(ValueError, match="latin: expected UTF-8"):
        ternary.data.read_texts([tmp_path / "latin"])
    (tmp_path / "short").write_text("short")
    with pytest.raises(ValueError, match="expected a text of 200 characters or more"):
        ternary.data.corpus(ternary.data.read_texts([tmp_path / "short"]), 320, 48)


def test_the_texts_of_a_package(ternary, tmp_path, monkeypatch):
    """A dump and a news file of another package: every article and every line of news is a text."""
    folder = tmp_path / "texts_for_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    page = "<page><ns>0</ns><revision><text>{}</text></revision></page>"
    pages = "".join(page.format(text) for text in ("A '''trit''' is a [[digit]].", "Use\n* One."))
    (folder / "dump.bz2").write_bytes(bz2.compress(f'<mediawiki xmlns="pages">{pages}</mediawiki>'.encode()))
    (folder / "news").write_text("News of one day.\nNews of another.\n")
    monkeypatch.setitem(FILES, "gensim/wikipedia", (folder.name, "1.0", "dump.bz2"))
    monkeypatch.setitem(FILES, "gensim/news", (folder.name, "1.0", "news"))
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = ["A trit is a digit.", "Use\nOne.", "News of one day.", "News of another."]
    assert ternary.data.read_texts() == expected
