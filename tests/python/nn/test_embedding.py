"""QuantEmbedding: rows of a packed table, their state, and a table that a head shares."""

import copy
import io
import pickle

import pytest
import torch

from tmac import QuantSpec
from tmac.nn import QuantEmbedding, QuantLinear

from .layers import EXACT, TERNARY, W4, assert_same_bits, random_codes, random_input

SPECS = [W4, TERNARY, QuantSpec(3, 64, zero_point="integer"), QuantSpec(8, 64), QuantSpec(1, 32)]
IDS = torch.tensor([[0, 39, 7], [7, 1, 38]])


class Scaled(torch.nn.Embedding):
    def __init__(self, *args, scale):
        super().__init__(*args)
        self.embed_scale = scale

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


def table(spec=W4, perm=False, **options):
    codes = random_codes(spec, 40, 96, perm)
    empty = QuantEmbedding(40, 96, spec, **options)
    empty.load_state_dict({name: torch.from_numpy(array) for name, array in codes.to_tensors().items()})
    return empty


def tied(spec=EXACT):
    embedding = table(spec)
    head = QuantLinear(96, 40, False, spec)
    head.share_(embedding)
    return torch.nn.ModuleDict({"head": head, "embedding": embedding})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("perm", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rows_are_those_of_the_dense_table(spec, perm, dtype):
    embedding = table(spec, perm, dtype=dtype)
    for ids in (IDS, IDS.int(), IDS.T, IDS[0, 0], IDS[:, :0]):
        assert_same_bits(embedding(ids), embedding.dequantize()[ids.long()].to(dtype))


def test_what_it_takes_over_from_a_float_embedding():
    plain = torch.nn.Embedding(40, 96, padding_idx=3).to(torch.bfloat16)
    embedding = QuantEmbedding.from_embedding(plain, W4)
    assert (embedding.padding_idx, embedding.scale, embedding.dtype) == (3, None, torch.bfloat16)
    scaled = QuantEmbedding.from_embedding(Scaled(40, 96, scale=9.3), W4)
    assert_same_bits(scaled(IDS), scaled.dequantize()[IDS] * 9.3)
    half = scaled.to(torch.bfloat16)
    assert_same_bits(half(IDS), half.dequantize()[IDS].bfloat16() * torch.tensor(9.3, dtype=torch.bfloat16))


def test_a_table_that_is_looked_up_in_another_way_is_refused():
    class Odd(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids + 2)

    for module in (Odd(40, 96), torch.nn.Embedding(40, 96, max_norm=1.0)):
        with pytest.raises(ValueError, match="not looked up as they are"):
            QuantEmbedding.from_embedding(module, W4)


@pytest.mark.parametrize("ids", [[40], [-1], [2**40]])
def test_ids_outside_the_table_are_refused(ids):
    with pytest.raises(ValueError, match="40"):
        table()(torch.tensor(ids))


def test_ids_must_be_integers():
    with pytest.raises(ValueError, match=r"ids have dtype torch\.float32"):
        table()(torch.zeros(3))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("names", [("head", "embedding"), ("embedding", "head")])
def test_a_shared_table_stays_one_copy(how, names):
    both = tied()
    model = torch.nn.ModuleDict({name: both[name] for name in names})
    x = random_input(2, 96)
    rows, logits = model["embedding"](IDS), model["head"](x)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        data = pickle.dumps(model)
        assert len(data) < 1.5 * len(pickle.dumps(table(EXACT)))
        twin = pickle.loads(data)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert twin["head"].weight is twin["embedding"].weight
    assert twin["head"].weight is not model["head"].weight
    assert twin["head"].shared_with is twin["embedding"]
    assert twin["embedding"].shared_with is None
    assert_same_bits(twin["embedding"](IDS), rows)
    assert_same_bits(twin["head"](x), logits)


def test_a_shared_table_moves_with_either_module():
    for name in ("head", "embedding"):
        model = tied(W4)
        rows = model["embedding"](IDS)
        assert model[name].repack_("qgemm_mad_w4_scalar")
        assert model["head"].weight is model["embedding"].weight
        assert_same_bits(model["embedding"](IDS), rows)
        model.to(torch.bfloat16)
        assert model["head"].weight is model["embedding"].weight


def test_one_copy_alone_is_a_copy_of_its_own():
    head = copy.deepcopy(tied()["head"])
    assert_same_bits(head(random_input(2, 96)), tied()["head"](random_input(2, 96)))


def test_other_shapes_are_not_shared():
    with pytest.raises(ValueError, match=r"\[40, 96\] cannot be shared"):
        QuantLinear(96, 41, False, W4).share_(table())


def test_operator_compile_and_export():
    embedding = table()
    want = embedding(IDS)
    torch.library.opcheck(torch.ops.tmac.embedding.default, (IDS, embedding.weight, 96, torch.float32))
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(IDS), want)
    assert_same_bits(torch.export.export(embedding, (IDS,)).module()(IDS), want)
    assert_same_bits(torch.func.vmap(embedding)(IDS), want)
