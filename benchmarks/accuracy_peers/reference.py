"""The float model that every tool starts from, in the forms that they read: written once into a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy_peers.texts import calibration_text, held_out_texts

WINDOW = 512  # positions, the token for the beginning included
MORE_TOKENS = 40_960  # of the calibration's source, behind the calibration
GGUF = "model-f32.gguf"
Ids = NDArray[np.int64]


class Reference:
    """Folder of the dequantized model: Hugging Face files in float32, the same as GGUF, and the tokens.

    Args:
        model: a GGUF file, or a folder of any format that `tmac.from_pretrained` reads.
        folder: for the files; made and filled where it is not there.
        calibration, text: files of UTF-8, or None for the texts of the packages gensim and evals.
        calibration_windows, text_windows: how many windows are used.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        calibration: Path | None = None,
        text: Path | None = None,
        calibration_windows: int = 32,
        text_windows: int = 200,
    ) -> None:
        self.source, self.folder, self.model = model, folder, folder / "float"
        self.windows, self.calibration = folder / "calibration.npy", folder / "calibration.txt"
        self.more = folder / "more.txt"
        self.held_out = folder / "text.npy"
        if not self.held_out.exists():
            self._write(calibration, text, calibration_windows, text_windows)

    def _write(self, calibration: Path | None, text: Path | None, calibration_windows: int, text_windows: int) -> None:
        from tmac.hf import from_pretrained, load_tokenizer

        self.model.mkdir(parents=True, exist_ok=True)
        tokenizer = load_tokenizer(self.source)
        tokenizer.save_pretrained(self.model)
        model = from_pretrained(self.source, activation="float")
        if hasattr(model, "hf_quantizer"):
            model = model.dequantize()
        model.float().save_pretrained(self.model)
        if self.source.suffix == ".gguf":
            write_float_gguf(self.source, self.model / GGUF)
        bos = bos_of(tokenizer)
        source = calibration_text() if calibration is None else calibration.read_text(encoding="utf-8")
        used = cut(tokenizer, [source], calibration_windows, bos)
        np.save(self.windows, used)
        behind = tokenizer(source, add_special_tokens=False).input_ids[used.size :]
        self.more.write_text(tokenizer.decode(behind[: MORE_TOKENS + WINDOW]), encoding="utf-8")
        self.calibration.write_text(tokenizer.decode(used[:, bos is not None :].reshape(-1)), encoding="utf-8")
        sources = held_out_texts() if text is None else [text.read_text(encoding="utf-8")]
        np.save(self.held_out, cut(tokenizer, sources, text_windows, bos))

    def text(self) -> Ids:
        """Held-out tokens `[windows, WINDOW]`."""
        ids: Ids = np.load(self.held_out)
        return ids

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.model / "config.json").read_text())
        return config


def bos_of(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before every text, or None."""
    ids = tokenizer("a").input_ids
    first: int | None = tokenizer.bos_token_id
    return first if ids and ids[0] == first else None


def cut(tokenizer: Any, sources: list[str], windows: int, bos: int | None) -> Ids:
    """Windows `[windows, WINDOW]` of equal parts of the sources. Raises ValueError where a source is too short."""
    step = WINDOW - (bos is not None)
    parts = []
    for number, source in enumerate(sources):
        count = windows * (number + 1) // len(sources) - windows * number // len(sources)
        ids = tokenizer(source, add_special_tokens=False).input_ids
        if len(ids) < count * step:
            raise ValueError(f"[accuracy] expected a text of at least {count * step} tokens, found {len(ids)}")
        parts.append(np.array(ids[: count * step], np.int64).reshape(count, step))
    body = np.concatenate(parts)
    return body if bos is None else np.pad(body, ((0, 0), (1, 0)), constant_values=bos)


def write_float_gguf(source: Path, target: Path) -> None:
    """The same GGUF file with every tensor as float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    name = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(target, name)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == gguf.Keys.General.FILE_TYPE:
            value = int(gguf.LlamaFileType.ALL_F32)
        writer.add_key_value(field.name, value, kind, field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        dense = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, dense.reshape([int(size) for size in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
