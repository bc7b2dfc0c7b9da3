"""The chat: reads a line, streams the continuation or the answer, and runs a few commands."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..cli.arguments import split_settings
from ..cli.config import check_config
from ..cli.fields import nearest, typed

CONTINUES = "A line is added to the text so far, on a new line unless it is empty or begins with a space."
NOT_UTF_8 = re.compile(r"[\0\udc80-\udcff]")  # NUL as in UTF-16, and what surrogateescape makes of other bytes
ANSWERS = "Each line is answered independently."
MESSAGES = "Each line is a message, which the model answers."
COMMANDS = """\
  /set KEY=VALUE   change a setting; without arguments, list the settings
  /undo            remove the last line and its answer
  /reset           clear what was said so far
  /quit            or Ctrl-D; Ctrl-C stops an answer, or quits at the prompt"""


@dataclasses.dataclass
class Chat:
    """A text that each typed line continues. run() reads lines until the input ends.

    stream: (text, settings, turn) -> pieces of the continuation of a text of any length. turn counts the answers, so
    that each can draw its own random numbers.
    settings: a config dataclass of sample.py, of which /set changes `keys`, checked as on the command line.
    views: the commands that print something about a text, such as /words: name -> (text, settings) -> None.
    history: a line continues the text so far, and is repeated before its continuation, so that both read as one text;
    False: each line is a prompt, as for fine-tuned models.
    start: what was said before the first line.
    length: text -> number of tokens; once it exceeds `context`, a note says that the model sees only the end.
    note: line -> what to say about a line before its continuation, if anything.
    """

    stream: Callable[[Any, Any, int], Iterable[str]]
    settings: Any
    keys: Sequence[str] = ()
    views: Mapping[str, Callable[[Any, Any], None]] = dataclasses.field(default_factory=dict)
    history: bool = True
    start: Any = ""
    length: Callable[[Any], int] = len
    context: float = float("inf")
    note: Callable[[str], str | None] = lambda line: None
    said: Any = dataclasses.field(default="", init=False)  # so far: a text
    earlier: list[Any] = dataclasses.field(default_factory=list, init=False)  # what was said before, for /undo
    turn: int = dataclasses.field(default=0, init=False)
    told: bool = dataclasses.field(default=False, init=False)  # whether the note about the context was printed

    def __post_init__(self) -> None:
        self.said = self.start

    @property
    def about(self) -> str:
        return CONTINUES if self.history else ANSWERS

    def with_line(self, before: Any, line: str) -> Any:
        """Returns what was said, and then a line."""
        return before + (line if not before or not line or before[-1].isspace() or line[0].isspace() else f"\n{line}")

    def with_answer(self, said: Any, answer: str) -> Any:
        """Returns what was said, and then the model's continuation."""
        return said + answer

    def echo(self, said: Any, before: Any) -> str:
        """Returns what to print before a continuation, so that both read as one text."""
        return said[len(before) :].removeprefix("\n") if self.history else ""

    def asked(self) -> Any:
        """Returns what the next words continue."""
        return self.said

    def last(self) -> str:
        """Returns the text that was said last."""
        return self.said

    def run(self) -> int:
        """Reads lines and prints their continuations. Returns the exit status."""
        interactive = sys.stdin.isatty()
        if interactive:
            print(f"{self.about} /help lists the commands.")
        elif isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        with line_history() if interactive else contextlib.nullcontext():
            while True:
                try:
                    line = input("> ") if interactive else sys.stdin.readline()
                except (EOFError, KeyboardInterrupt):
                    print()
                    return 0
                if not (line or interactive):  # the end of a file
                    return 0
                try:
                    if NOT_UTF_8.search(line):
                        raise cli.InputError("a line is not UTF-8; convert it (iconv)")
                    if not line.startswith("/"):
                        self.answer(cli.given_text(line))
                    elif self.command(cli.given_text(line)) == "quit":
                        return 0
                except Exception as error:
                    if not cli.is_user_mistake(error):
                        raise
                    print(*(f"error: {argument}" for argument in error.args), sep="\n")

    def answer(self, line: str) -> None:
        """Adds a line and the model's continuation. Ctrl-C ends the answer; the part so far is kept."""
        before = self.said if self.history else self.start
        said, answer = self.with_line(before, line), ""
        if not self.told and self.length(said) > self.context:
            print(f"(longer than the model's context of {self.context} tokens: the model sees only the end)")
            self.told = True
        if note := self.note(line):
            print(f"({note})")
        print(self.echo(said, before), end="", flush=True)
        try:
            for piece in self.stream(said, self.settings, self.turn):
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
        finally:
            print()
        self.earlier.append(self.said)
        self.said = self.with_answer(said, answer)
        self.turn += 1

    def command(self, line: str) -> str:
        """Runs a command line such as "/set top_k=5" and returns the command's name."""
        name, _, argument = line[1:].partition(" ")
        if name == "help":
            views = (f"  /{view:<15} next {view} after the text so far, or after a given text" for view in self.views)
            print(self.about, COMMANDS, *views, sep="\n")
        elif name == "reset":
            self.earlier.append(self.said)
            self.said = self.start
        elif name == "undo":
            self.said = self.earlier.pop() if self.earlier else self.start
            print(f"...{self.last()[-60:]!r}" if self.last() else "(the text is empty)")
        elif name == "set":
            if argument:
                self.settings = changed(self.settings, argument, keys=self.keys)
            print(*(f"{key}={typed(getattr(self.settings, key))}" for key in self.keys))
        elif name in self.views:
            self.views[name](argument or self.asked(), self.settings)
        elif name != "quit":
            known = ["help", "quit", "reset", "set", "undo", *self.views]
            near = nearest(name, known)
            hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
            raise cli.InputError(f"there is no command /{name}; {hint}")
        return name


@dataclasses.dataclass
class Messages(Chat):
    """A chat of messages: what was said is a list of {"role": "user" or "assistant", "content": text}.

    start: the system's message, if there is one. suffix: text that the model writes at the end of an answer, and that
    is no part of it. Blank lines are left out.
    """

    suffix: str = ""

    @property
    def about(self) -> str:
        return MESSAGES if self.history else ANSWERS

    def answer(self, line: str) -> None:
        if line.strip():
            super().answer(line)

    def with_line(self, before: Any, line: str) -> Any:
        return [*before, {"role": "user", "content": line}]

    def with_answer(self, said: Any, answer: str) -> Any:
        return [*said, {"role": "assistant", "content": answer.removesuffix(self.suffix)}]

    def echo(self, said: Any, before: Any) -> str:
        return ""

    def asked(self) -> Any:
        """Returns the messages without an answer to the last one."""
        return self.said[:-1] if self.said and self.said[-1]["role"] == "assistant" else self.said

    def last(self) -> str:
        return self.said[-1]["content"] if self.said else ""


def changed(settings: Any, argument: str, *, keys: Sequence[str]) -> Any:
    """Returns settings changed by "temperature=0.5 top_k=null". Raises InputError as the command line would."""
    words = split_settings("/set", argument)
    for word in words:
        key = word.partition("=")[0]
        if key not in keys:
            near = nearest(key, list(keys))
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(keys)}"
            raise cli.InputError(f"/set {word}: {key!r} cannot be changed here; {hint}")
    _, chosen = cli.compose(type(settings), name="sample", arguments=words, check=False)
    result = dataclasses.replace(settings, **chosen)
    check_config(result)
    return result


def history_path() -> Path:
    """Returns the file of typed lines, in the user's state directory (XDG Base Directory specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()) / "nextword" / "history"


@contextlib.contextmanager
def line_history() -> Iterator[None]:
    """Line editing with a history that is kept across sessions if its file can be written."""
    try:
        import readline
    except ImportError:  # not on every platform
        yield
        return
    trouble = contextlib.suppress(OSError, RuntimeError)  # RuntimeError: there is no home directory
    readline.clear_history()
    with trouble:
        readline.read_history_file(history_path())
    try:
        yield
    finally:
        with trouble:
            history_path().parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(history_path())
