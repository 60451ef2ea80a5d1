"""Low-bit tiny models for the tests of the native decoder, and what it means that two texts are the same."""

import importlib.util
from pathlib import Path

import torch
from transformers.generation.streamers import BaseStreamer

import tmac
from tmac import QuantConfig, native_generate

_PATH = Path(__file__).parents[1] / "runtime" / "runtime_models.py"
_SPEC = importlib.util.spec_from_file_location("runtime_models", _PATH)
runtime_models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(runtime_models)

FAMILIES = (
    runtime_models.FAMILIES
)  # every class of models that the runtime decodes, with windows shorter than the texts
IDS = torch.arange(3, 35).reshape(2, 16)
NATIVE = {"custom_generate": native_generate}
BOUND = 1e-4  # of the largest logit: two ways to add the same exact products


def low(family="Llama", activation="float", seed=0, quantize=True, **changes):
    """Layers of 4 bits, head of 8 and embedding of 4; nothing is rounded on the way where the activation is float."""
    model = runtime_models.model_of(runtime_models.config_of(family, **changes), seed, scale=0.2)
    if not quantize:
        return model
    return tmac.quantize_(model, QuantConfig(head_bits=8, embedding_bits=4, activation=activation))


def agreement(model):
    """The share of logit rows, over steps of a text that both ways are made to write, that agree within `BOUND`.

    Rounded activations part ways: a sum that differs in its last bit may round to the next code, and the layers after
    it round all of that again. An encoding that is another one moves every row.
    """
    ids = torch.arange(3, 83).reshape(16, 5)  # 16 sequences: QuantLinear takes more of them for a prompt
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    forced = [lambda ids, scores: torch.nn.functional.one_hot((ids[:, -1] * 7 + 3) % 96, 96).float()]
    want = torch.stack(model.generate(ids, logits_processor=forced, **options).logits)
    got = torch.stack(model.generate(ids, logits_processor=forced, **options, **NATIVE).logits)
    return float(((got - want).abs().amax(-1) <= BOUND * want.abs().amax(-1)).float().mean())


def assert_same_text(model, ids, **options):
    """Generates with and without the native decoder; gives both outputs.

    Raw logits may differ by `BOUND` of the largest. Where the tokens of a row differ, the two candidates must be as
    near to one another as that allows, and the rest of the row is not compared: it continues another text.
    """
    options = {"max_new_tokens": 24, "do_sample": False, **options, "return_dict_in_generate": True}
    want = model.generate(ids, output_logits=True, output_scores=True, **options)
    got = model.generate(ids, output_logits=True, output_scores=True, **options, **NATIVE)
    assert got.sequences.shape == want.sequences.shape
    columns = ids.shape[1]
    for row in range(len(got.sequences)):
        for step, (ours, theirs) in enumerate(zip(got.logits, want.logits, strict=True)):
            slack = BOUND * float(theirs[row].abs().max())
            assert float((ours[row] - theirs[row]).abs().max()) <= slack, (row, step)
            mine, its = int(got.sequences[row, columns + step]), int(want.sequences[row, columns + step])
            if mine != its:
                scores = want.scores[step][row]
                assert float(scores[its] - scores[mine]) <= 2 * slack, f"row {row}, step {step}: {mine} for {its}"
                break
    return got, want


class Recorder(BaseStreamer):
    """Keeps what a text is streamed as."""

    def __init__(self):
        self.pieces, self.ended = [], 0

    def put(self, value):
        self.pieces.append(value.tolist())

    def end(self):
        self.ended += 1
