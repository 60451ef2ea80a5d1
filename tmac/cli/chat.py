"""`tmac chat`: a conversation with an instruct model, on a terminal or through a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.conversation import Conversation
from tmac.cli.engine_options import (
    add_generation_options,
    add_loading_options,
    generation_options,
    load_engine,
    speeds,
    user_errors,
)
from tmac.cli.errors import CommandError
from tmac.cli.speculation import StatsReport, add_stats_options, check_stats_options

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tmac.runtime.engine import Engine

PROMPT, CONTINUED = "> ", "... "
FENCE = '"""'
COMMANDS = {
    "/reset": "forgets the conversation, not the system message",
    "/undo": "forgets the last question and its answer",
    "/system TEXT": "sets the system message; without TEXT there is none",
    "/save FILE": "writes the conversation to a file",
    "/load FILE": "goes on with a conversation from a file",
    "/help": "prints this",
    "/exit": "ends; so does Ctrl-D. Ctrl-C stops an answer",
}
MULTI_LINE = f"A line that ends in \\ goes on in the next one; lines between {FENCE} and {FENCE} are one message."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac chat`."""
    add_loading_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--load", type=Path, metavar="FILE", help="go on with a conversation that /save wrote")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="print tokens as they come (default)"
    )
    add_generation_options(parser, most=None)
    add_stats_options(parser)


def run(args: argparse.Namespace) -> int:
    """Talks until the input ends."""
    check_stats_options(args)
    options = generation_options(args)
    conversation = Conversation() if args.load is None else Conversation.load(args.load)
    if args.system is not None:
        conversation.system = args.system
    engine = load_engine(args)
    report = StatsReport(engine, args)
    try:
        Chat(engine, conversation, options, stream=args.stream, report=report).talk()
        report.finish()
    finally:
        engine.close()
    return 0


class Chat:
    """The loop: reads a message, answers it, prints the speeds.

    The engine keeps evaluated prompts, so that a turn evaluates the last answer and what is new.

    Args:
        engine: that answers.
        conversation: so far.
        options: of `Engine.chat`.
        stream: whether tokens are printed as they come.
        report: of what the draft did.
    """

    def __init__(
        self, engine: Engine, conversation: Conversation, options: dict[str, Any], *, stream: bool, report: StatsReport
    ) -> None:
        self.engine, self.conversation, self.options, self.stream = engine, conversation, options, stream
        self.report = report
        self.interactive = sys.stdin.isatty()

    def talk(self) -> None:
        """Until the input ends. In a pipe an error ends it, on a terminal the user may try again."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - input() edits its line with it
            print("/help lists the commands, Ctrl-D ends.", file=sys.stderr)
        while True:
            try:
                message = self.read()
            except EOFError:
                return
            except KeyboardInterrupt:  # at the prompt: forgets the line
                print(file=sys.stderr)
                if not self.interactive:
                    raise
                continue
            if message.strip() == "/exit":
                return
            if message.strip():
                self.take(message)

    def take(self, message: str) -> None:
        """Runs a command, or answers."""
        try:
            if message.startswith("/"):
                self.command(message)
            else:
                self.answer(message)
        except CommandError as error:
            if not self.interactive:
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)

    def read(self) -> str:
        """A message: a line, lines that end in a backslash, or what stands between fences. EOFError at the end."""
        line = self.line(PROMPT)
        if line.strip().startswith(FENCE):
            lines = [line.strip().removeprefix(FENCE)]
            while not lines[-1].rstrip().endswith(FENCE):
                lines.append(self.line(CONTINUED))
            lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
            return "\n".join(lines).strip("\n")
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self.line(CONTINUED))
        return "\n".join(lines)

    def line(self, prompt: str) -> str:
        """A line without its end. EOFError where there is none."""
        if self.interactive:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def command(self, text: str) -> None:
        """One of `COMMANDS`. Raises CommandError for another."""
        name, _, rest = text.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/reset": lambda _: self.conversation.reset(),
            "/undo": lambda _: self.conversation.undo(),
            "/system": self.set_system,
            "/save": lambda path: self.conversation.save(_path(name, path)),
            "/load": self.load,
            "/help": lambda _: print(*_help(), sep="\n", file=sys.stderr),
        }
        if name not in commands:
            raise CommandError(f"unknown command {name}; known are {', '.join(map(_name, COMMANDS))}")
        commands[name](rest.strip())

    def set_system(self, text: str) -> None:
        """The system message from now on."""
        self.conversation.system = text or None

    def load(self, path: str) -> None:
        """Another conversation in place of this one."""
        self.conversation = Conversation.load(_path("/load", path))

    def answer(self, message: str) -> None:
        """Prints the answer and the speeds. Ctrl-C ends the answer; what was printed is part of the conversation."""
        pieces: list[str] = []
        last = None
        messages = self.conversation.with_user(message)
        try:
            with user_errors(), contextlib.closing(self.chunks(messages)) as chunks:
                for chunk in chunks:
                    pieces.append(chunk.text)
                    if self.stream:
                        print(chunk.text, end="", flush=True)
                    last = chunk if chunk.timings is not None else last
        except KeyboardInterrupt:
            if not self.interactive:
                raise
        finally:
            text = "".join(pieces)
            if text:  # without an answer the question is forgotten too
                self.conversation.add(message, text)
            if text or last is not None:
                print("" if self.stream else text, flush=True)
        print(f"[{speeds(last.timings)}]" if last is not None else "[stopped]", file=sys.stderr)
        if last is not None:
            self.report.add(last.speculation)

    def chunks(self, messages: list[dict[str, str]]) -> Generator[Any, None, None]:
        """The answer piece by piece, as a generator: closing it cancels the rest."""
        yield from self.engine.chat(messages, stream=True, **self.options)


def _path(command: str, text: str) -> Path:
    if not text:
        raise CommandError(f"{command} needs the name of a file")
    return Path(text).expanduser()


def _name(command: str) -> str:
    return command.partition(" ")[0]


def _help() -> Iterator[str]:
    width = max(map(len, COMMANDS))
    yield from (f"{command.ljust(width)}  {text}" for command, text in COMMANDS.items())
    yield MULTI_LINE
