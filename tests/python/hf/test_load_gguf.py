import random
import struct

import gguf as gguf_package
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tmac.formats import FormatError, gguf
from tmac.formats.gguf import GgufFile
from tmac.hf import load_gguf
from tmac.hf.load import llama_config

IDS = torch.arange(3, 67)[None]


@pytest.fixture(scope="module")
def loaded(tiny_gguf):
    return load_gguf(tiny_gguf)


class Edited(GgufFile):
    def __init__(self, path, changes):
        super().__init__(path)
        merged = {**self.metadata, **changes}
        self.metadata = {key: value for key, value in merged.items() if value is not None}


def replace_once(data, old, new):
    assert data.count(old) == 1
    assert len(old) == len(new)
    return data.replace(old, new)


def test_model_equals_the_one_that_transformers_loads(loaded, tiny_gguf):
    model, _ = loaded
    theirs = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32)
    ours, expected = model.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, theirs(IDS).logits)
    keys = ("vocab_size", "hidden_size", "rms_norm_eps", "rope_parameters", "max_position_embeddings", "eos_token_id")
    for key in keys:
        assert getattr(model.config, key) == getattr(theirs.config, key), key


def test_model_is_ready_to_use(loaded):
    model, tokenizer = loaded
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == 2
    chat = [{"role": "user", "content": "then"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert inputs["input_ids"][0, 0] == 1
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_tokenizer(loaded):
    _, tokenizer = loaded
    tokens = tokenizer.tokenize("the  then 12")
    assert tokens == ["t", "he", "Ġ", "Ġthe", "n", "Ġ", "1", "2"]
    text = "<|im_start|>user\nhéllo 你好 🙂 ½ 2024\t x<|im_end|>\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhéllo 你好 🙂 ½ 2024\t x\n"
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", "<|im_end|>", 270)


def test_every_tensor_is_announced(tiny_gguf):
    names = []
    load_gguf(tiny_gguf, names.append)
    assert names == list(GgufFile(tiny_gguf).tensors)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", None, "expected this metadata key"),
        ("block_count", 3, "expected the tensors of 3 layers"),
        ("block_count", 2**31, "expected the tensors of 2147483648 layers"),
        ("block_count", 1, None),
        ("embedding_length", 2**31, "expected 32, found 2147483648"),
        ("feed_forward_length", 65, r"expected \(65, 32\), found \(64, 32\)"),
        ("attention.head_count", 0, "expected a positive number, found 0"),
        ("attention.head_count", 2**31, "expected 1, found 8"),
        ("attention.head_count", 8, "expected 4, found 8"),
        ("attention.head_count_kv", 3, "blk.0.attn_k.weight: expected"),
        ("attention.head_count_kv", [2, 2], "expected int, found list"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "expected a positive number"),
        ("attention.layer_norm_rms_epsilon", None, "expected this metadata key"),
        ("rope.freq_base", float("inf"), "expected a positive number"),
        ("rope.dimension_count", 4, "expected 8, found 4"),
        ("rope.scaling.type", "yarn", "unscaled rotary frequencies, found 'yarn'"),
        ("expert_count", 8, "plain llama model, found 8"),
        ("context_length", "long", "expected int, found str"),
    ],
)
def test_bad_configuration(tiny_gguf, key, value, message):
    file = Edited(tiny_gguf, {f"llama.{key}": value})
    if message is None:
        assert llama_config(file).num_hidden_layers == value
        return
    with pytest.raises(FormatError, match=message) as raised:
        llama_config(file)
    assert str(tiny_gguf) in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"blk.1.attn_v.weight", b"blk.1.attn_v.weirdo", r"blk\.1\.attn_v\.weirdo: expected only the tensors"),
        (b"blk.1.attn_v.weight", b"blk.9.attn_v.weight", r"expected only tensors of this model's layers"),
        (b"blk.1.attn_v.weight", b"blk.1.attn_v.biases", r"expected only the tensors"),
        (b"output_norm.weight", b"output_____.weight", r"output_____\.weight: expected only the tensors"),
    ],
)
def test_bad_names(tiny_gguf, tmp_path, old, new, message):
    path = tmp_path / "names.gguf"
    path.write_bytes(replace_once(tiny_gguf.read_bytes(), old, new))
    with pytest.raises(FormatError, match=message):
        load_gguf(path)


def write_gguf(path, layers, tensors):
    """A file whose header is that of a llama with 4 heads; `tensors` are (name, shape, type number) without data."""
    writer = gguf_package.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_head_count(4)
    for name, shape, kind in tensors:
        dtype = gguf_package.GGMLQuantizationType(kind)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), int(np.prod(shape)) * 4, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.write(bytes(8192))
    return path


F32 = 0
MATRICES = [("token_embd.weight", (4, 32), F32), ("blk.0.attn_q.weight", (32, 32), F32)]


@pytest.mark.parametrize(
    ("layers", "name", "message"),
    [
        (10**9, "blk.999999999.attn_q.weight", r"expected the tensors of 1000000000 layers, found 3 tensors"),
        (3, "blk.2.attn_q.weight", r"expected the tensors of 3 layers, but blk\.1\.attn_q\.weight is missing"),
    ],
)
def test_more_layers_than_the_file_has(tmp_path, layers, name, message):
    path = write_gguf(tmp_path / "layers.gguf", layers, [*MATRICES, (name, (4, 4), F32)])
    with pytest.raises(FormatError, match=rf"layers\.gguf: llama\.block_count: {message}"):
        llama_config(GgufFile(path))


@pytest.mark.parametrize(
    ("name", "columns", "rows", "kind"), [("token_embd.weight", 32, 270, 8), ("blk.0.attn_q.weight", 32, 32, 3)]
)
def test_shapes_of_an_unknown_type_are_not_believed(tiny_gguf, tmp_path, name, columns, rows, kind):
    path, layout = tmp_path / "huge.gguf", "<IQQI"
    old, new = struct.pack(layout, 2, columns, rows, kind), struct.pack(layout, 2, columns, 2**36, 38)
    path.write_bytes(replace_once(tiny_gguf.read_bytes(), name.encode() + old, name.encode() + new))
    assert GgufFile(path).info(name).shape == (2**36, columns)
    with pytest.raises(FormatError, match=rf"{name}: expected a type of ggml, found type 38"):
        load_gguf(path)


def test_more_tokens_than_embeddings(tiny_gguf, tmp_path):
    path = tmp_path / "rows.gguf"
    old, new = (b"token_embd.weight" + struct.pack("<IQQI", 2, 32, rows, 8) for rows in (270, 269))
    path.write_bytes(replace_once(tiny_gguf.read_bytes(), old, new))
    message = r"tokenizer\.ggml\.tokens: expected no more tokens than the 269 rows of token_embd\.weight, found 270"
    with pytest.raises(FormatError, match=message):
        load_gguf(path)


def test_another_architecture(tiny_gguf, tmp_path):
    path = tmp_path / "falcon.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))
    with pytest.raises(FormatError, match=r"general\.architecture: expected one of llama, found 'mamba'"):
        load_gguf(path)


def test_a_file_without_a_norm(tiny_gguf, monkeypatch):
    tensors = gguf.llama_tensors
    without = [pair for pair in tensors(GgufFile(tiny_gguf)) if pair[0] != "model.norm.weight"]
    monkeypatch.setattr("tmac.hf.load.llama_tensors", lambda file, on_tensor: iter(without))
    with pytest.raises(FormatError, match=r"expected 1 more tensors, the first for model\.norm\.weight"):
        load_gguf(tiny_gguf)


def test_flipped_bytes_load_or_raise_format_errors(tiny_gguf, tmp_path, test_budget):
    data = tiny_gguf.read_bytes()
    start = min(info.offset for info in GgufFile(tiny_gguf).tensors.values())
    rng, path = random.Random(0), tmp_path / "flipped.gguf"
    outcomes = {True: 0, False: 0}
    for _ in range(round(1000 * test_budget)):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 4])):
            damaged[rng.randrange(start if rng.random() < 0.9 else len(data))] = rng.randrange(256)
        path.write_bytes(damaged)
        outcomes[loads(path)] += 1
    assert min(outcomes.values()) > 0


def loads(path):
    try:
        load_gguf(path)
    except FormatError as error:
        return str(path) not in str(error) and pytest.fail(f"the message does not name the file: {error}")
    return True
