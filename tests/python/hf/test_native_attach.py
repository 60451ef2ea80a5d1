"""What tmac.attach reads from a model: the same memory, again when the model has changed, or not at all."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import transformers
from native_models import FAMILIES, IDS, NATIVE, agreement, assert_same_text, low
from torch import nn

import tmac
from tmac import QuantConfig, _core
from tmac.hf.native_attachment import _ATTACHMENTS, current_attachment
from tmac.nn import NormedQuantLinear, PackedModule, QuantExperts, QuantLinear

SHORT = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}


def text(model, native=True):
    return model.generate(IDS, **SHORT, **(NATIVE if native else {}))


def test_attach_and_detach():
    model = low()
    assert model not in _ATTACHMENTS
    assert tmac.attach(model) is model
    first = current_attachment(model)
    assert isinstance(first.decoder, _core.Decoder)
    text(model)
    assert current_attachment(model) is first
    tmac.detach(model)
    tmac.detach(model)
    assert model not in _ATTACHMENTS
    text(model)  # attaches again
    assert current_attachment(model) is not first


def test_cache_types():
    assert current_attachment(low()).cache_type == "f32"
    assert current_attachment(low(activation="group")).cache_type == "f16"
    assert current_attachment(low(quantize=False)).cache_type == "f32"
    model = tmac.attach(low(), cache_type="int8")
    sizes = {}
    for name in ("int8", "f16", "f32"):
        tmac.attach(model, cache_type=name)
        out = model.generate(IDS, return_dict_in_generate=True, **SHORT, **NATIVE)
        sizes[name] = current_attachment(model).decoder.cache_bytes
        assert out.sequences.shape == (2, 22)
    assert sizes["f32"] == 2 * sizes["f16"] > sizes["f16"] > sizes["int8"]
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    assert current_attachment(model).cache_type == "f32"  # what was asked for holds when it is made again
    with pytest.raises(ValueError, match="cache_type is 'f64'"):
        tmac.attach(model, cache_type="f64")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_copied(family):
    """Every matrix is the model's own memory, and what the core counts is their bytes."""
    model = low(family)
    attachment = current_attachment(model)
    addresses = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    matrices = attachment.weights.matrices
    assert {each.weight.untyped_storage().data_ptr() for each in matrices.values()} <= addresses
    packed = sum(each.weight.numel() for each in matrices.values() if each.packed)
    modules = {id(each.weight): each.weight.numel() for each in model.modules() if isinstance(each, PackedModule)}
    assert packed == sum(modules.values())
    floats = sum(each.weight.numel() * each.weight.element_size() for each in matrices.values() if not each.packed)
    assert attachment.model.weight_bytes == packed + floats


def test_the_core_reads_the_memory_of_the_model():
    """Bytes that are written behind torch's back are seen, without attaching again."""
    model, other = low(), low(seed=1)
    want = text(other)
    assert not torch.equal(text(model), want)
    attachment = current_attachment(model)
    for mine, its in zip(model.modules(), other.modules(), strict=True):
        if isinstance(mine, PackedModule):
            mine.weight.data.copy_(its.weight)
    floats = dict(other.named_parameters())
    small = {name: each for name, each in model.named_parameters() if each.dim() == 1 and "anchor" not in name}
    assert current_attachment(model) is attachment
    with torch.no_grad():
        for name, parameter in small.items():
            parameter.copy_(floats[name])
    assert current_attachment(model) is not attachment  # norms and biases are copies, compared by value
    assert torch.equal(text(model), want)


def test_float_memory_is_shared():
    model = low("Llama", quantize=False)
    attachment = current_attachment(model)
    model.lm_head.weight.data.neg_()
    got = text(model)
    assert current_attachment(model) is attachment
    assert torch.equal(got, text(model, native=False))


def _replaced(model):
    model.model.layers[1].mlp.down_proj = low(seed=1).model.layers[1].mlp.down_proj


def _in_place(model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1.0)


def _cast(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16).to(torch.float32)


def _loaded(model):
    model.load_state_dict(low(seed=1).state_dict())


def _bias(model):
    model.model.layers[0].self_attn.q_proj.bias.data.add_(1.0)


def _norm(model):
    model.model.layers[0].input_layernorm.weight.data.mul_(-1.0)


def _config(model):
    model.config.num_hidden_layers = 2


def _quantized(model):
    tmac.quantize_(model, QuantConfig(activation="float"))


def _untied(model):
    model.lm_head = nn.Linear(64, 96, bias=False)


CHANGES = {
    "a module is replaced": (_replaced, True),
    "floats change in place": (_in_place, False),
    "dtypes": (_cast, False),
    "a state dict is loaded": (_loaded, True),
    "a bias changes by .data": (_bias, True),
    "a norm changes by .data": (_norm, True),
    "fewer layers": (_config, True),
    "it is quantized": (_quantized, False),
    "a head of its own": (_untied, True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_attached_again(name):
    change, quantize = CHANGES[name]
    model = low(quantize=quantize)
    before = text(model)
    attachment = current_attachment(model)
    torch.manual_seed(3)
    change(model)
    after = assert_same_text(model, IDS)[0].sequences
    assert current_attachment(model) is not attachment
    if name != "dtypes":
        assert not torch.equal(after[:, : before.shape[1]], before)


def test_repacked_layers_are_attached_again():
    model = tmac.attach(low(activation="group"), cache_type="f32")
    attachment = current_attachment(model)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.repack_("qgemm_mad_w4_scalar" if "lut" in layer.kernel else "qgemm_lut_w4_scalar")
    assert agreement(model) > 0.5
    assert current_attachment(model) is not attachment
    assert current_attachment(model).weights.matrices["layers.0.q"].weight.data_ptr() == layer.weight.data_ptr()


def test_shared_and_separate_heads():
    tied = low("Qwen3", quantize=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert "head" not in current_attachment(tied).weights.matrices
    packed = tmac.quantize_(tied, QuantConfig(head_bits=4, embedding_bits=4, activation="float"))
    assert packed.lm_head.shared_with is packed.model.embed_tokens
    assert "head" not in current_attachment(packed).weights.matrices
    assert_same_text(packed, IDS)
    untied = low("Qwen3")  # a head of 8 bits over a table of 4
    assert "head" in current_attachment(untied).weights.matrices


def test_mixtures_of_experts():
    """Float experts are rows of the tensor that holds all of them."""
    quantized, floats = low("Mixtral"), low("Mixtral", quantize=False)
    assert isinstance(quantized.model.layers[0].mlp.experts, QuantExperts)
    fused = floats.model.layers[2].mlp.experts.gate_up_proj
    expert = current_attachment(floats).weights.matrices["layers.2.experts.3.up"].weight
    assert expert.data_ptr() == fused[3, 96:].data_ptr()
    assert expert.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    assert not current_attachment(quantized).weights.matrices["layers.2.router"].packed


def test_copies_pickles_and_files_know_nothing_of_it(tmp_path):
    model = low()
    before = (set(model.__dict__), list(model.state_dict()), [name for name, _ in model.named_modules()])
    want = text(model)
    assert (set(model.__dict__), list(model.state_dict()), [name for name, _ in model.named_modules()]) == before
    copied = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    model.save_pretrained(tmp_path)
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for other in (copied, loaded, saved):
        assert other not in _ATTACHMENTS
        assert torch.equal(text(other), want)
        assert current_attachment(other) is not current_attachment(model)


def test_a_model_that_is_gone_leaves_nothing():
    model = low()
    text(model)
    decoder = weakref.ref(current_attachment(model))
    weight = weakref.ref(model.lm_head.weight)
    count = len(_ATTACHMENTS)
    del model
    gc.collect()
    assert (decoder(), weight()) == (None, None)
    assert len(_ATTACHMENTS) == count - 1


def test_hidden_states_that_were_asked_for_once_do_no_harm():
    """transformers leaves its recorders on the layers."""
    model = low()
    with torch.no_grad():
        model(IDS, output_hidden_states=True)
    assert any(module._forward_hooks for module in model.modules())
    text(model)


def _hook(model):
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *args: None)


def _pre_hook(model):
    model.model.layers[0].register_forward_pre_hook(lambda *args: None)


def _new_forward(model):
    model.model.layers[0].mlp.forward = lambda x: x


def _own_class(model):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.model.layers[0].mlp.up_proj = Doubled(64, 96)


def _own_model(model):
    model.__class__ = type("Mine", (type(model),), {})


def _parametrized(model):
    model.lm_head = nn.utils.parametrizations.weight_norm(nn.Linear(64, 96))


def _normed(model):
    layer = model.model.layers[0].mlp.up_proj
    model.model.layers[0].mlp.up_proj = NormedQuantLinear(layer.in_features, layer.out_features, spec=layer.spec)


def _empty(model):
    model.model.layers[0].mlp.up_proj = QuantLinear(64, 96, False)


def _meta(model):
    model.model.layers[0].to("meta")


def _double(model):
    model.lm_head = nn.Linear(64, 96, dtype=torch.float64)


def _strided(model):
    model.lm_head = nn.Linear(64, 96)
    model.lm_head.weight = nn.Parameter(torch.randn(64, 96).T)


def _shape(model):
    model.lm_head = nn.Linear(64, 90)


def _missing(model):
    model.model.layers = model.model.layers[:2]


def _epsilon(model):
    model.model.norm.variance_epsilon = 0.1


def _dropout(model):
    model.model.layers[0].self_attn.attention_dropout = 0.1
    model.train()


UNFIT = [
    (_hook, "layers.0.mlp.down_proj: has the forward hook"),
    (_pre_hook, "layers.0: has the forward hook"),
    (_new_forward, r"layers.0.mlp: its forward\(\) was replaced"),
    (_own_class, "layers.0.mlp.up_proj: .*Doubled is no class"),
    (_own_model, "expected a model of transformers"),
    (_parametrized, "lm_head: .*ParametrizedLinear is no class"),
    (_normed, "layers.0.mlp.up_proj: a NormedQuantLinear is not supported"),
    (_empty, "layers.0.mlp.up_proj: is empty"),
    (_meta, "layers.0.*: is on the device meta: has no data"),
    (_double, "lm_head: is torch.float64"),
    (_strided, "lm_head: is not contiguous"),
    (_shape, r"head has shape \[90, 64\], not \[96, 64\]"),
    (_missing, "layers.2.*the model has no such"),
    (_epsilon, "model.norm: its epsilon is 0.1"),
    (_dropout, r"layers.0.self_attn: drops values at random .* model.eval\(\)"),
]


@pytest.mark.parametrize(("change", "message"), UNFIT, ids=lambda each: getattr(each, "__name__", ""))
def test_what_the_native_decoder_cannot_follow_is_refused(change, message):
    """Also where the model was fit before: then it is not decoded with what it was."""
    model = low()
    text(model)
    change(model)
    with pytest.raises(ValueError, match=message):
        text(model)
    assert model not in _ATTACHMENTS
    with pytest.raises(ValueError, match=message):
        tmac.attach(model)


def test_a_hook_on_everything_is_refused():
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        with pytest.raises(ValueError, match="hook on the forward pass of every module"):
            tmac.attach(low())
    finally:
        handle.remove()


def test_training_mode_without_dropout_is_no_obstacle():
    model = low().train()
    assert torch.equal(text(model), text(model, native=False))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 3), "expected a model of transformers, got torch.nn"),
        ("folder", "expected a model of transformers, got builtins.str"),
        (
            transformers.OPTForCausalLM(
                transformers.OPTConfig(
                    vocab_size=9, hidden_size=8, num_hidden_layers=1, ffn_dim=8, num_attention_heads=2
                )
            ),
            r"does not know the family 'opt' \(OPTForCausalLM\); it knows llama, mistral",
        ),
        (low(quantize=False).model, "LlamaModel has no output head"),
    ],
    ids=["module", "string", "family", "headless"],
)
def test_models_that_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        tmac.attach(model)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT's use of transformers
def test_adapters():
    peft = pytest.importorskip("peft")
    for quantize in (True, False):
        model = low(quantize=quantize)
        want = text(model)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(model, config).eval()
        with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj: an adapter of PEFT is active"):
            adapted.generate(IDS, **SHORT, **NATIVE)
        with pytest.raises(ValueError, match="of a model in a wrapper, such as PEFT's"):
            tmac.attach(adapted)
        with adapted.disable_adapter():
            assert torch.equal(adapted.generate(IDS, **SHORT, **NATIVE), want)
        with pytest.raises(ValueError, match="is active"):
            tmac.attach(model)
    adapted.merge_adapter()
    merged = adapted.generate(IDS, **SHORT, **NATIVE)
    assert torch.equal(merged, adapted.generate(IDS, **SHORT))
    assert not torch.equal(merged, want)
    assert torch.equal(text(adapted.unload()), merged)
