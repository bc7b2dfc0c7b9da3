"""The chat: reads a line, streams the continuation, and runs a few commands."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import cli
from ..cli.config import check_config
from ..cli.fields import nearest, typed

CONTINUES = "A line is added to the text so far, on a new line unless it is empty or begins with a space."
ANSWERS = "Each line is answered independently."
COMMANDS = """\
  /set KEY=VALUE   change a setting; without arguments, list the settings
  /undo            remove the last line and its answer
  /reset           clear the text so far
  /quit            or Ctrl-D; Ctrl-C stops an answer, or quits at the prompt"""


def chat(
    stream: Callable[[str, Any, int], Iterable[str]],
    *,
    settings: Any,
    keys: Iterable[str] = (),
    views: Mapping[str, Callable[[str, Any], None]] | None = None,
    history: bool = True,
    echo: bool = True,
    length: Callable[[str], int] = len,
    context: float = float("inf"),
    note: Callable[[str], str | None] = lambda line: None,
) -> int:
    """Reads lines and prints their continuations until the input ends. Returns the exit status.

    stream: (text, settings, turn) -> pieces of the continuation of a text of any length. turn counts the answers, so
    that each can draw its own random numbers.
    settings: a config dataclass of sample.py, of which /set changes `keys`, checked as on the command line.
    views: the commands that print something about a text, such as /words: name -> (text, settings) -> None.
    history: a line continues the text so far; False: each line is a prompt, as for fine-tuned models.
    echo: repeat the line before its continuation, so that both read as one text.
    length: text -> number of tokens; once it exceeds `context`, a note says that the model sees only the end.
    note: line -> what to say about a line before its continuation, if anything.
    """
    session = Session(stream, settings, tuple(keys), views or {}, history, echo, length, context, note)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{CONTINUES if history else ANSWERS} /help lists the commands.")
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    with line_history() if interactive else contextlib.nullcontext():
        while True:
            try:
                line = input("> ") if interactive else next_line()
            except (EOFError, KeyboardInterrupt):
                if interactive:
                    print()
                return 0
            try:
                if line.startswith("/"):
                    if session.command(line) == "quit":
                        return 0
                else:
                    session.answer(line)
            except Exception as error:
                if not cli.is_user_mistake(error):
                    raise
                print(*(f"error: {argument}" for argument in error.args), sep="\n")


def next_line() -> str:
    """Reads a line from standard input without its line end. Raises EOFError at the end of the input."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return cli.given_text(line)


@dataclasses.dataclass
class Session:
    """The text so far, changed by each line that is typed."""

    stream: Callable[[str, Any, int], Iterable[str]]
    settings: Any
    keys: tuple[str, ...]
    views: Mapping[str, Callable[[str, Any], None]]
    history: bool
    echo: bool
    length: Callable[[str], int]
    context: float
    note: Callable[[str], str | None] = lambda line: None
    text: str = ""
    earlier: list[str] = dataclasses.field(default_factory=list)  # the text before each change, for /undo
    turn: int = 0
    told: bool = False  # whether the note about the context was printed

    def answer(self, line: str) -> None:
        """Adds a line and the model's continuation. Ctrl-C ends the answer; the part so far is kept."""
        before = self.text if self.history else ""
        joined = line if not before or not line or before[-1:].isspace() or line[0].isspace() else f"\n{line}"
        text = before + joined
        if not self.told and self.length(text) > self.context:
            print(f"(longer than the model's context of {self.context} tokens: the model sees only the end)")
            self.told = True
        if note := self.note(line):
            print(f"({note})")
        self.earlier.append(self.text)
        if self.echo:
            print(joined.removeprefix("\n"), end="", flush=True)
        try:
            for piece in self.stream(text, self.settings, self.turn):
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
        except BaseException:
            self.earlier.pop()
            raise
        finally:
            print()
        self.text = text
        self.turn += 1

    def command(self, line: str) -> str:
        """Runs a command line such as "/set top_k=5" and returns the command's name."""
        name, _, argument = line[1:].partition(" ")
        if name == "help":
            print(CONTINUES if self.history else ANSWERS)
            print(COMMANDS)
            print(
                *(f"  /{view:<15} next {view} after the text so far, or after a given text" for view in self.views),
                sep="\n",
            )
        elif name == "reset":
            self.earlier.append(self.text)
            self.text = ""
        elif name == "undo":
            self.text = self.earlier.pop() if self.earlier else ""
            print(f"...{self.text[-60:]!r}" if self.text else "(the text is empty)")
        elif name == "set":
            if argument:
                self.settings = changed(self.settings, argument, keys=self.keys)
            print(*(f"{key}={typed(getattr(self.settings, key))}" for key in self.keys))
        elif name in self.views:
            self.views[name](argument or self.text, self.settings)
        elif name != "quit":
            known = ["help", "quit", "reset", "set", "undo", *self.views]
            near = nearest(name, known)
            hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
            raise cli.InputError(f"there is no command /{name}; {hint}")
        return name


def changed(settings: Any, argument: str, *, keys: Iterable[str]) -> Any:
    """Returns settings changed by "temperature=0.5 top_k=null". Raises InputError as the command line would."""
    keys = list(keys)
    try:
        words = shlex.split(argument)
    except ValueError as error:
        raise cli.InputError(f"/set {argument}: {str(error).lower()}; close the quotes") from None
    for word in words:
        key = word.partition("=")[0]
        if key not in keys:
            near = nearest(key, keys)
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
