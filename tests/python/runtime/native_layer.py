"""One layer of the native decoder, alone."""

import numpy as np

from tmac import _core


class NativeLayer:
    """A model of one layer: its embedding is what the layer is given, its head shows what the final norm gives.

    A norm hides the length of a row (and a layer norm its mean), not a direction, so that no change of some of its
    numbers passes unseen.

    Args:
        weights: of the whole model, as `tmac.hf.native_weights.read_weights` gives them.
        index: of the layer.
        inputs: f32 `[rows, hidden]`, at most as many rows as columns. Token t is row t.
    """

    def __init__(self, weights, index, inputs):
        config = {**weights.config, "num_layers": 1, "embedding_scale": 1.0, "logit_scale": 1.0, "logit_softcap": 0.0}
        for key in ("windows", "layer_rope", "sparse_layers"):
            config[key] = config[key][index : index + 1]
        hidden = config["vocab_size"] = config["hidden_size"]
        embedding = np.zeros((hidden, hidden), np.float32)
        embedding[: len(inputs)] = inputs
        builder = _core.ModelBuilder(config)
        builder.add_floats("embedding", embedding, "F32")
        builder.add_floats("head", np.eye(hidden, dtype=np.float32), "F32")
        builder.add_floats("final_norm", np.ones(hidden, np.float32), "F32")
        for name, matrix in _of_layer(weights.matrices, index):
            bias = None if matrix.bias is None else matrix.bias.numpy()
            if matrix.packed:
                builder.add_packed(name, matrix.weight.numpy(), bias)
            else:
                builder.add_floats(name, matrix.weight.numpy(), "F32", bias)
        for name, vector in _of_layer(weights.vectors, index):
            builder.add_floats(name, vector.numpy(), "F32")
        self._is_layer_norm = config["family"] == "gpt_neox"
        self._eps = config["norm_eps"]
        self._decoder = _core.Decoder(builder.build(), "f32")

    def run(self, ids, phase, piece):
        """The final norms of the hidden states, `[texts * length, hidden]`.

        Args:
            ids: i32 `[texts, length]`, rows of the inputs.
            phase: "prompt" or "decode".
            piece: tokens of each text that go through together.
        """
        sequences = [self._decoder.create() for _ in ids]
        found = []
        for at in range(0, ids.shape[1], piece):
            chunks = list(ids[:, at : at + piece].copy())
            wanted = [np.arange(len(chunk), dtype=np.int32) for chunk in chunks]
            found.append(self._decoder.forward(sequences, chunks, phase, wanted).reshape(len(ids), len(chunks[0]), -1))
        return np.concatenate(found, axis=1).reshape(ids.size, -1)

    def norm(self, hidden):
        """The final norm of f32 `[rows, hidden]`, in f64."""
        x = hidden.astype(np.float64)
        x = x - x.mean(1, keepdims=True) if self._is_layer_norm else x
        return x / np.sqrt(np.square(x).mean(1, keepdims=True) + self._eps)


def _of_layer(named, index):
    """Those of a layer, named as if there were no other."""
    before = f"layers.{index}."
    return [(f"layers.0.{name.removeprefix(before)}", each) for name, each in named.items() if name.startswith(before)]
