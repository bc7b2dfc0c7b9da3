"""Token boundaries in a text, with and without colours."""

from __future__ import annotations

import pytest

from conf.display.tokens import show_cuts


def test_without_colours_tokens_are_separated_and_bytes_named(capsys: pytest.CaptureFixture[str]) -> None:
    show_cuts([b"a|", b" b", b"\xc3", b"\xa9", b"\n", b"\x00c"], title="three")
    assert capsys.readouterr().out == "three\na|¦ b¦<C3>¦<A9>¦↵\n<\\x00>c\n"


def test_with_colours_nothing_is_inserted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    show_cuts([b"a", b" b", b"c"], title="three")
    out = capsys.readouterr().out
    assert out.count("\x1b[30;48;") == 3 and "|" not in out  # 256 colours or all: rich caches the codes
