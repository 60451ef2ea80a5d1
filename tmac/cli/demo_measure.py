"""What the demo measures: speed side by side, perplexity, memory."""

from __future__ import annotations

import copy
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from torch import Tensor, nn
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    Models = Mapping[str, LlamaForCausalLM]

TEXT = f"pydoc topics of Python {platform.python_version()}"
WINDOW = 512
PREFILL_TOKENS, PREFILL_SAMPLES = 128, 5
CONTEXT_TOKENS, DECODE_TOKENS, DECODE_SAMPLES = 64, 16, 7


def progress_bar(console: Console) -> Progress:
    """A bar that leaves nothing behind."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


def stream_answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, max_new_tokens: int, out: TextIO
) -> str:
    """The greedy answer to a prompt under the chat template, written to `out` word by word."""
    import torch
    from transformers import TextStreamer

    class Stream(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(text, end="\n" if stream_end else "", file=out, flush=True)

    chat = [{"role": "user", "content": prompt}]
    if tokenizer.chat_template is None:
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    streamer = Stream(tokenizer, skip_prompt=True, skip_special_tokens=True)
    generate: Callable[..., Tensor] = cast(Any, model).generate
    with torch.no_grad():
        ids = generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
    answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return cast(str, answer)


def as_bfloat16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy in bfloat16; the rotary frequencies stay in float32, as transformers keeps them."""
    import torch

    half = copy.deepcopy(model)
    torch.nn.Module.to(half, torch.bfloat16)
    half.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    return half


def text_ids(tokenizer: PreTrainedTokenizerFast, tokens: int) -> Tensor:
    """The first tokens of the standard library's help topics, English prose about Python, in sorted order."""
    from pydoc_data.topics import topics

    import torch

    text = "\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer(text[: 16 * tokens], verbose=False)["input_ids"][:tokens]  # no word here is longer than 16 letters
    return torch.tensor(ids)


def speeds(models: Models, ids: Tensor, bar: Progress) -> dict[str, dict[str, Any]]:
    """Tokens per second of each model: medians of samples that are taken in turn, so that all see the same machine."""
    prompt, context = ids[None, :PREFILL_TOKENS], ids[None, :CONTEXT_TOKENS]
    prefill = {name: lambda model=model: _prefill(model, prompt) for name, model in models.items()}
    decode = {name: _Decoder(model, context) for name, model in models.items()}
    prefill_samples = _in_turn(prefill, PREFILL_SAMPLES, bar, "measuring prefill")
    decode_samples = _in_turn(decode, DECODE_SAMPLES, bar, "measuring decoding")
    return {
        name: {
            "prefill": statistics.median(prefill_samples[name]),
            "decode": statistics.median(decode_samples[name]),
            "prefill_samples": prefill_samples[name],
            "decode_samples": decode_samples[name],
        }
        for name in models
    }


def _in_turn(jobs: Mapping[str, Callable[[], int]], samples: int, bar: Progress, title: str) -> dict[str, list[float]]:
    """Tokens per second, `samples` times each; one run of each before them is not counted."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    names = list(jobs)
    task = bar.add_task(title, total=(samples + 1) * len(names))
    for turn in range(samples + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            tokens = jobs[name]()
            found[name].append(tokens / (time.perf_counter() - started))
            bar.advance(task)
    return {name: values[1:] for name, values in found.items()}


def _prefill(model: LlamaForCausalLM, prompt: Tensor) -> int:
    import torch

    with torch.no_grad():
        model(prompt, use_cache=True, logits_to_keep=1)
    return prompt.shape[1]


class _Decoder:
    """Decodes greedily after a context, each time from the same place."""

    def __init__(self, model: LlamaForCausalLM, context: Tensor) -> None:
        import torch

        self.model = model
        with torch.no_grad():
            output = model(context, use_cache=True, logits_to_keep=1)
        self.cache, self.first = output.past_key_values, output.logits[:, -1:].argmax(-1)

    def __call__(self) -> int:
        import torch

        token = self.first
        with torch.no_grad():
            for _ in range(DECODE_TOKENS):
                token = self.model(token, past_key_values=self.cache, use_cache=True).logits[:, -1:].argmax(-1)
        self.cache.crop(-DECODE_TOKENS)
        return DECODE_TOKENS


def qualities(models: Models, ids: Tensor, bar: Progress) -> dict[str, dict[str, float]]:
    """Perplexity of each model, and how often it finds the same next token as the first one."""
    import torch

    from tmac.quant.evaluate import perplexity

    windows = -(-len(ids) // WINDOW)
    task = bar.add_task("measuring perplexity", total=windows * len(models))
    found: dict[str, dict[str, float]] = {}
    reference: Tensor | None = None
    for name, model in models.items():
        recorder = _recorder(model, lambda: bar.advance(task))
        value = perplexity(recorder, ids, window=WINDOW)
        tokens = torch.cat(recorder.tokens)  # type: ignore[arg-type]
        reference = tokens if reference is None else reference
        found[name] = {"perplexity": value, "agreement": float((tokens == reference).float().mean())}
    return found


def _recorder(model: LlamaForCausalLM, on_window: Callable[[], None]) -> nn.Module:
    """The model, as a module that returns its logits and keeps the most likely token of every position in `tokens`, so
    that one pass gives perplexity and agreement."""
    import torch

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.tokens: list[Tensor] = []

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.model(ids, use_cache=False).logits
            self.tokens.append(logits[0].argmax(-1))
            on_window()
            return logits

    return Recorder()


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, a shared one once."""
    storages = [tensor.untyped_storage() for tensor in [*model.parameters(), *model.buffers()]]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; None where the system does not tell without another package."""
    if not sys.platform.startswith("linux"):
        return None
    import os

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine(model: nn.Module) -> dict[str, Any]:
    """What the numbers were taken on, and the kernels that ran."""
    import torch
    import transformers

    import tmac
    from tmac import _core
    from tmac.cli.info import overrides
    from tmac.nn import QuantLinear

    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    return {
        "kernels": dict(Counter(layer.kernel for layer in layers)),
        "cpu": _core.cpu_model(),
        "threads": torch.get_num_threads(),
        "overrides": overrides(),
        "versions": {"tmac": tmac.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
