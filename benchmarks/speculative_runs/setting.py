"""What is measured: the models, the drafts of every table, and how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.speculative_runs.rows import AGREEMENT, MEMORY, PLAIN, STREAMED, VERIFY
from benchmarks.speculative_runs.texts import STREAMED_TEXTS, TEXTS

MODEL = "model"  # stands for the other checkpoint
DRAFTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    VERIFY: {"W8": (PLAIN, "planes:4"), "W4": (PLAIN, "planes:3")},
    AGREEMENT: {"W8": ("planes:4", MODEL), "W4": ("planes:3", "planes:2", MODEL)},
    MEMORY: {"W8": ("planes:4", "ngram+planes:4"), "W4": ("ngram", "ngram+planes:3", "auto")},
    STREAMED: {"W8": ("planes:4", MODEL), "W4": ("planes:3", "planes:2", MODEL)},
}
PASS_ROWS = (1, 2, 4, 8, 16)
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Setting:
    """Args:
    models: path of the checkpoint by the name of its weights.
    draft_model: another one with the same tokens; None: there is none.
    work: the folder for files that can be large.
    threads: of a pass.
    runs: of everything, in turn.
    tokens: of a text.
    few_tokens: of a text where each token takes as long as the disk takes to read the model.
    texts: names of `benchmarks.speculative_runs.texts`, for weights in memory.
    streamed_texts: the same for weights on a disk.
    share: of the weights that the limit of memory holds.
    disks: "as it is", or bytes per second as `parse_memory` reads them.
    programs: the folder of llama.cpp's; None: there is none.
    peers: the files for them by the name of the weights.
    drafts: in the place of those of the tables.
    """

    models: Mapping[str, Path]
    draft_model: Path | None
    work: Path
    threads: int = 2
    runs: int = 5
    tokens: int = 128
    few_tokens: int = 16
    texts: tuple[str, ...] = tuple(TEXTS)
    streamed_texts: tuple[str, ...] = STREAMED_TEXTS
    share: float = 0.6
    disks: tuple[str, ...] = (AS_IT_IS, "500M")
    programs: Path | None = None
    peers: Mapping[str, Path] = field(default_factory=dict)
    drafts: tuple[str, ...] | None = None

    @property
    def cache(self) -> Path:
        """Where packed files go."""
        return self.work / "packed"

    def drafts_of(self, table: str, weights: str) -> Sequence[str]:
        """Names of drafts for a table."""
        return self.drafts or DRAFTS[table].get(weights, ())

    def engine_draft(self, draft: str) -> str | None:
        """What `Engine.from_pretrained` takes for a name. Raises ValueError where it is another model, and there is
        none."""
        if draft == PLAIN:
            return None
        if MODEL not in draft.split("+"):
            return draft
        if self.draft_model is None:
            raise ValueError("--draft-model names no checkpoint")
        return draft.replace(MODEL, f"{MODEL}:{self.draft_model}")
