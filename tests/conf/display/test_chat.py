"""Chat: lines become text, commands work, and no input ends the program except /quit, Ctrl-C or its end."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from conf.display import chat as chats
from conf.display.chat import Chat
from model import InputError
from model.sample_settings import ChatConfig, TextConfig

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = ChatConfig(checkpoint="x")


@pytest.fixture
def talk(monkeypatch, capsys):
    """Runs a chat over the lines; returns its output and the (text, settings) of each call of the model."""

    def run(*lines, answer=(" yes", "."), **options):
        asked = []

        def stream(text, settings, turn):
            assert turn == len(asked) or answer != (" yes", ".")
            asked.append((text, settings))
            for piece in answer:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece

        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        keys = ("temperature", "top_k", "max_new_tokens")
        assert Chat(stream, **{"settings": SETTINGS, "keys": keys} | options).run() == 0
        captured = capsys.readouterr()
        assert not captured.err
        return captured.out, asked

    return run


def texts(asked):
    return [text for text, _ in asked]


def test_each_line_continues_the_text_so_far(talk):
    out, asked = talk("Is it?", "And", "", " so")
    assert texts(asked) == [
        "Is it?",
        "Is it? yes.\nAnd",
        "Is it? yes.\nAnd yes.",
        "Is it? yes.\nAnd yes. yes. so",
    ]
    assert out == "Is it? yes.\nAnd yes.\n yes.\n so yes.\n"


def test_without_history_each_line_is_a_prompt(talk):
    out, asked = talk("one", "two", history=False)
    assert texts(asked) == ["one", "two"] and out == " yes.\n yes.\n"


def test_reset_and_undo(talk):
    _, asked = talk("one", "/reset", "two", "/undo", "three", "/undo", "/undo", "four")
    assert texts(asked) == ["one", "two", "three", "one yes.\nfour"]
    assert "(the text is empty)" in talk("/undo")[0]
    assert "...'one yes.'" in talk("one", "two", "/undo")[0]


def test_views_show_the_text_so_far_or_a_given_text(talk):
    seen = []
    views = {"words": lambda text, settings: seen.append((text, settings.top_k))}
    talk("/words", "one", "/words", "/set top_k=3", "/words another text", views=views)
    assert seen == [("", None), ("one yes.", None), ("another text", 3)]


def test_settings_change_as_on_the_command_line(talk):
    out, asked = talk("/set temperature=0.5 top_k=4", "a", "/set top_k=null", "b", "/set")
    assert [(s.temperature, s.top_k) for _, s in asked] == [(0.5, 4), (0.5, None)]
    assert SETTINGS.temperature == 0.7 and TextConfig().temperature == 1.0  # the chat has its own default
    assert out.splitlines()[-1] == "temperature=0.5 top_k=null max_new_tokens=200"


@pytest.mark.parametrize(
    "line, message",
    [
        ("/set temprature=1", "'temprature' cannot be changed here; did you mean 'temperature'?"),
        ("/set checkpoint=y", "'checkpoint' cannot be changed here"),
        ("/set temperature=-1", "temperature=-1.0 must be 0"),
        ("/set temperature=warm", "temperature=warm does not fit"),
        ("/set temperature", "is not key=value"),
        ("/set top_k='1", "close the quote"),
        ("/wrds", "there is no command /wrds; did you mean /words?"),
        ("/xyzzy", "/help lists the commands"),
        ("/", "there is no command /"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(talk, line, message):
    out, asked = talk("one", line, "two", views={"words": lambda text, settings: None})
    [error] = [row for row in out.splitlines() if row.startswith("error: ")]
    assert message in error
    assert texts(asked) == ["one", "one yes.\ntwo"] and asked[1][1] == SETTINGS


def test_an_error_of_the_model_is_one_line_and_the_text_stays(talk):
    out, asked = talk("one", "two", answer=[InputError("the prompt is too long; shorten it")])
    assert out.splitlines().count("error: the prompt is too long; shorten it") == 2
    assert texts(asked) == ["one", "two"]
    assert "(the text is empty)" in talk("one", "/undo", answer=[InputError("no")])[0]
    session = Chat(lambda *_: iter([1 / 0]), SETTINGS)
    with pytest.raises(ZeroDivisionError):
        session.answer("one")
    assert session.earlier == [] and session.said == ""  # nothing to undo
    with pytest.raises(ZeroDivisionError):  # a bug is not a user's mistake
        talk("one", answer=[ZeroDivisionError()])


def test_an_interrupt_stops_the_answer_and_keeps_its_beginning(talk):
    out, asked = talk("one", "two", answer=[" ye", KeyboardInterrupt(), "s"])
    assert texts(asked) == ["one", "one ye\ntwo"] and out == "one ye\ntwo ye\n"


def test_a_note_says_once_that_the_text_exceeds_the_context(talk):
    out, asked = talk("one", "two", "three", context=6)
    assert out.count("context of 6 tokens") == 1 and len(asked) == 3
    assert out.index("context of 6") > out.index("one yes.")


def test_help_quit_and_the_end_of_the_input(talk):
    out, asked = talk("/help", "/quit", "one", views={"words": print})
    assert not asked and all(f"/{name}" in out for name in ("set", "undo", "reset", "quit", "words"))
    assert talk() == ("", [])
    _, asked = talk("no newline at the end"[:-1])
    assert len(asked) == 1


PROGRAM = """
import sys, time
from dataclasses import dataclass
from conf.display.chat import Chat
@dataclass
class Settings:
    x: int = 1
def stream(text, settings, turn):
    yield " answer"
    if "wait" in text:
        print(" waiting", end="", flush=True)
        time.sleep(600)
sys.exit(Chat(stream, settings=Settings()).run())
"""


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=os.environ | {"TERM": "dumb"} | environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )
        os.close(slave)
        self.unread = ""

    def until(self, text: str) -> None:
        """Reads until the text has been printed."""
        while text not in self.unread:
            ready, _, _ = select.select([self.master], [], [], 60)  # fail rather than hang
            try:
                piece = os.read(self.master, 1000).decode() if ready else ""
            except OSError:  # the other side is closed
                piece = ""
            assert piece, f"{text!r} is not in {self.unread!r}"
            self.unread += piece
        self.unread = self.unread.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self, last: str) -> int:
        """Types the last key until the program ends: readline notices a signal just before it waits only at the next
        key."""
        try:
            for _ in range(60):
                with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                    self.type(last)
                    return self.process.wait(timeout=1)
            return self.process.wait(timeout=1)
        finally:
            self.process.kill()
            os.close(self.master)


def test_on_a_terminal_control_c_stops_the_answer_then_the_program(tmp_path):
    terminal = Terminal(XDG_STATE_HOME=str(tmp_path))
    terminal.until("> ")
    terminal.type("wait for it\n")
    terminal.until("waiting")
    terminal.type("\x03")
    terminal.until("> ")
    terminal.type("/words\n")
    terminal.until("no command /words")
    terminal.until("> ")
    assert terminal.end("\x03") == 0
    assert "wait for it" in (tmp_path / "nextword" / "history").read_text()

    terminal = Terminal(XDG_STATE_HOME=str(tmp_path))  # with the lines of the last session
    terminal.until("> ")
    terminal.type("\x1b[A\x1b[A\n")
    terminal.until("wait for it")
    terminal.until("waiting")
    terminal.type("\x03")
    terminal.until("> ")
    assert terminal.end("\x04") == 0


def test_the_chat_works_if_its_history_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    terminal = Terminal(XDG_STATE_HOME=str(tmp_path / "file"))
    terminal.until("> ")
    terminal.type("one\n")
    terminal.until("answer")
    terminal.until("> ")
    assert terminal.end("/quit\n") == 0


def test_the_history_is_in_the_state_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert chats.history_path() == Path("/state/nextword/history")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert chats.history_path() == Path("/home/someone/.local/state/nextword/history")
