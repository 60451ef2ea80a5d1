"""lm-eval's command with the model "tmac": `python -m tmac.evaluation.lm_eval run --model tmac --model_args ...`."""

from __future__ import annotations

import importlib
import sys


def main() -> int:
    """Registers the model and calls lm-eval's command, which reads the arguments of this process."""
    try:
        importlib.import_module("tmac.evaluation.lm_eval_model")
        command = importlib.import_module("lm_eval.__main__")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        print("tmac: error: lm-eval is not installed: pip install lm-eval", file=sys.stderr)
        return 2
    command.cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
