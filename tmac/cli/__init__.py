"""The command `tmac`: one file per subcommand, whose imports wait until it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tmac.cli import bench, chat, convert, demo, eval, generate, info, quantize, serve, tune  # noqa: A004
from tmac.cli.errors import CommandError

USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `tmac ARGUMENTS` and returns its exit status.

    0: done; 2: something the user can put right, told in one line; 130: interrupted by Ctrl-C.
    """
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for instance, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        print(f"tmac: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return status


def _user_errors() -> tuple[type[Exception], ...]:
    from tmac import FormatError, UnsupportedSpecError
    from tmac._core import DamagedFileError

    return CommandError, FormatError, UnsupportedSpecError, DamagedFileError, OSError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tmac", description="Low-bit language models on ordinary CPUs.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (info, demo, generate, chat, serve, eval, bench, quantize, convert, tune):
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").splitlines()[0].partition(": ")[2].rstrip(".")
        command = commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from tmac import __version__

        print(f"tmac {__version__}")
        parser.exit()
