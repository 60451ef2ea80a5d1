"""`_core.ModelBuilder` and `_core.Decoder` called directly: wrong arguments, threads, the interpreter's end."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tmac import QuantSpec, _core
from tmac.codes import round_to_nearest

HIDDEN, VOCAB, INNER, DIM = 64, 50, 96, 16


def config(**changes):
    plain = {
        "family": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": DIM,
        "context_length": 512,
        "norm_eps": 1e-6,
        "activation": "silu",
        "attention_scale": 0.25,
        "rope": [{"inv_freq": [1.0, 0.25, 0.0625]}],
    }
    return plain | changes


def mixture(**changes):
    experts = {"num_experts": 3, "experts_per_token": 2, "moe_intermediate_size": 40}
    layers = changes.get("num_layers", 2)
    return config(family="mixtral", sparse_layers=[True] * layers, **experts) | changes


def weights_of(values):
    """Random float weights by name."""
    rng = np.random.default_rng(0)

    def mlp(prefix, inner):
        return {
            f"{prefix}gate": (inner, HIDDEN),
            f"{prefix}up": (inner, HIDDEN),
            f"{prefix}down": (HIDDEN, inner),
        }

    shapes: dict[str, tuple[int, ...]] = {"embedding": (VOCAB, HIDDEN), "final_norm": (HIDDEN,)}
    for i in range(values["num_layers"]):
        layer = f"layers.{i}."
        shapes |= {f"{layer}{name}": (HIDDEN,) for name in ("input_norm", "pre_mlp_norm")}
        shapes |= {f"{layer}q": (4 * DIM, HIDDEN), f"{layer}o": (HIDDEN, 4 * DIM)}
        shapes |= {f"{layer}{name}": (2 * DIM, HIDDEN) for name in "kv"}
        if "num_experts" in values:
            shapes[f"{layer}router"] = (values["num_experts"], HIDDEN)
            for expert in range(values["num_experts"]):
                shapes |= mlp(f"{layer}experts.{expert}.", values["moe_intermediate_size"])
        else:
            shapes |= mlp(layer, INNER)
    return {name: rng.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in shapes.items()}


def build(values):
    builder = _core.ModelBuilder(values)
    for name, array in weights_of(values).items():
        builder.add_floats(name, array, "F32")
    return builder.build()


def ids(*tokens):
    return np.array(tokens, np.int32)


def run(decoder, seq, tokens, phase="prompt", **options):
    """Logits of the last token."""
    return decoder.forward([seq], [ids(*tokens)], phase, [ids(len(tokens) - 1)], **options)[0]


def test_a_decoder_needs_a_model():
    with pytest.raises(TypeError):
        _core.Decoder(None)


def test_weights_must_be_aligned():
    shifted = np.zeros(VOCAB * HIDDEN * 4 + 1, np.uint8)[1:].view(np.float32).reshape(VOCAB, HIDDEN)
    with pytest.raises(ValueError, match=r"embedding.* must be aligned"):
        _core.ModelBuilder(config()).add_floats("embedding", shifted, "F32")


@pytest.mark.parametrize("size", [-1, 2**62])
def test_sizes_of_layers_that_a_mixture_does_not_have_are_checked(size):
    with pytest.raises(ValueError, match="intermediate_size must be in 0"):
        _core.ModelBuilder(mixture(intermediate_size=size))


def test_a_shared_expert_without_weights_is_named_when_the_model_is_built():
    with pytest.raises(ValueError, match=r"shared\.gate' is missing"):
        build(mixture(shared_intermediate_size=40))


@pytest.mark.parametrize("values", [config(), mixture()], ids=["dense", "mixture"])
def test_decoders_of_one_model_run_in_several_threads(values):
    model = build(values)
    tokens = np.random.default_rng(1).integers(0, VOCAB, 70).tolist()
    got = {}

    def write(name, threads):
        decoder = _core.Decoder(model)
        seq = decoder.create()
        rows = [run(decoder, seq, tokens, num_threads=threads)]
        for _ in range(20):
            rows.append(run(decoder, seq, [int(rows[-1].argmax())], "decode", num_threads=threads))
        got[name] = np.stack(rows)

    write("alone", 1)
    writers = [threading.Thread(target=write, args=(i, 1 + i % 3)) for i in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert all(np.array_equal(got[i], got["alone"]) for i in range(6))


def test_the_process_ends_while_daemon_threads_decode():
    script = f"""
import sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_decoder_binding import _core, build, config, run

model = build(config(num_layers=60))

def work(threads):
    decoder = _core.Decoder(model)
    while True:
        seq = decoder.create()
        run(decoder, seq, [1] * 60, num_threads=threads)
        decoder.release(seq)

for threads in (1, 1, 2):
    threading.Thread(target=work, args=(threads,), daemon=True).start()
time.sleep(0.3)
print("end", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_tree_grows_from_call_to_call():
    decoder = _core.Decoder(build(config()))
    seq = decoder.create()
    run(decoder, seq, [3] * 20)
    tokens, parents = ids(5, 6, 7, 8, 9), ids(-1, 0, -1, 1, 2)
    whole = decoder.forward_tree(seq, tokens, parents)
    begun = decoder.forward_tree(seq, tokens[:2], parents[:2])
    rest = decoder.forward_tree(seq, tokens, parents, first=2)
    assert whole.shape == (5, VOCAB)
    assert rest.shape == (3, VOCAB)
    assert np.array_equal(np.concatenate([begun, rest]), whole)
    assert decoder.forward_tree(seq, tokens, parents, first=5).shape == (0, VOCAB)
    decoder.keep(seq, [0, 1, 3])
    assert decoder.length(seq) == 23
    with pytest.raises(ValueError, match="first=2, but of the tree behind sequence"):
        decoder.forward_tree(seq, tokens, parents, first=2)
    with pytest.raises(ValueError, match="first=6 of 5 nodes"):
        decoder.forward_tree(seq, tokens, parents, first=6)


def test_a_model_without_a_draft_refuses_to_draft():
    decoder = _core.Decoder(build(config()))
    with pytest.raises(ValueError, match=r"no draft: make_draft\(\)"):
        decoder.forward_tree(decoder.create(), ids(1), ids(-1), draft=True)


def packed_model(bits, **packing):
    """`build` with matrices rounded to `bits`."""
    values = config()
    spec = QuantSpec(bits, 32)
    builder = _core.ModelBuilder(values)
    for name, array in weights_of(values).items():
        if array.ndim == 1:
            builder.add_floats(name, array, "F32")
        else:
            builder.add_packed(name, round_to_nearest(array, spec).pack(**packing).buffer())
    return builder.build()


@pytest.mark.parametrize(("bits", "planes"), [(8, 4), (4, 3)])
def test_leading_planes_draft_over_the_same_cache(bits, planes):
    model = packed_model(bits, plane_layout=True)
    assert model.draft is None
    model.make_draft(planes)
    assert model.draft.bytes_per_token < model.bytes_per_token
    decoder = _core.Decoder(model)
    seq = decoder.create()
    run(decoder, seq, [3] * 20)
    tokens, parents = ids(5, 6, 7), ids(-1, 0, -1)
    model_logits = decoder.forward_tree(seq, tokens, parents)
    first = decoder.forward_tree(seq, tokens[:1], parents[:1], draft=True)
    drafted = decoder.forward_tree(seq, tokens, parents, first=1, draft=True)
    assert not np.array_equal(first, model_logits[:1])
    assert np.array_equal(np.concatenate([first, drafted]), decoder.forward_tree(seq, tokens, parents, draft=True))
    with pytest.raises(ValueError, match="node 0 was computed with the draft"):
        decoder.keep(seq, [0])
    assert np.array_equal(decoder.forward_tree(seq, tokens, parents), model_logits)
    decoder.keep(seq, [0, 1])

    alone = _core.Decoder(model.draft)
    other = alone.create()
    run(alone, other, [3] * 20)
    assert alone.forward_tree(other, tokens, parents).shape == (3, VOCAB)


def test_a_layout_for_planes_changes_no_bit_of_the_model():
    tokens = np.random.default_rng(2).integers(0, VOCAB, 30).tolist()
    got = []
    for packing in ({}, {"plane_layout": True}):
        decoder = _core.Decoder(packed_model(4, **packing))
        seq = decoder.create()
        got.append([run(decoder, seq, tokens), run(decoder, seq, [4], "decode"), run(decoder, seq, [5, 6], "decode")])
    assert np.array_equal(got[0], got[1])


def test_drafts_that_a_model_cannot_have_are_named():
    model = packed_model(8)
    for planes in (0, 8):
        with pytest.raises(ValueError, match=f"1 to 7 planes, not {planes}"):
            model.make_draft(planes)
    with pytest.raises(ValueError, match="no matrix has more than 4 planes"):
        packed_model(4, plane_layout=True).make_draft(4)
    with pytest.raises(ValueError, match="no matrix has more than 4 planes"):
        build(config()).make_draft(4)
