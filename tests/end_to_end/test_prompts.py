"""Every way to give a prompt reads the same text: no byte order mark, no carriage return, no last line end."""

from __future__ import annotations

import io
import json
import sys

import pytest

from conf.cli import given_text
from tests.programs import ok, one_line, run

MEANT = "Listen to"


@pytest.mark.parametrize(
    "raw, text",
    [
        ("\ufeffa\r\n", "a"), ("a\n", "a"), ("a", "a"), ("a\r", "a"), ("\ufeff", ""), ("", ""), ("\r\n", ""),
        ("a\r\nb\r\n", "a\nb"), ("a\n\n", "a\n"), ("a \n", "a "), ("a\rb", "a\rb"), ("a\ufeff", "a\ufeff"),
    ],
)  # fmt: skip
def test_given_text(raw, text):
    assert given_text(raw) == text


def as_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="\n"))


@pytest.mark.parametrize("before, after", [(b"", b""), (b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n"), (b"", b"\r")])
def test_a_file_standard_input_the_chat_and_bulk_prompts_agree(trained, tmp_path, monkeypatch, before, after):
    monkeypatch.chdir(tmp_path)
    content = before + MEANT.encode() + after
    (tmp_path / "prompt.txt").write_bytes(content)
    common = (f"checkpoint={trained}", "device=cpu")
    ok("sample", *common, "mode=next_token", "prompt_file=prompt.txt", "json=file.json")
    as_stdin(monkeypatch, content)
    ok("sample", *common, "mode=next_token", "json=stdin.json")
    ok("sample", *common, "mode=next_token", "prompts=prompt.txt", "outputs=bulk.json")
    found = {name: json.loads((tmp_path / f"{name}.json").read_text())["prompt"] for name in ("file", "stdin", "bulk")}
    assert found == dict.fromkeys(found, MEANT)
    as_stdin(monkeypatch, content + (b"/quit" + after if after.endswith(b"\n") else b""))
    expected = ok("sample", *common, f"prompt={MEANT}", "max_new_tokens=3")
    assert ok("sample", *common, "mode=chat", "max_new_tokens=3") == expected


@pytest.mark.parametrize("content", ["Listen to".encode("utf-16"), "Listen to".encode("utf-16-le"), b"caf\xe9\n"])
def test_text_that_is_not_utf_8_is_refused_by_every_reader_of_prompts(trained, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_bytes(content)
    common = (f"checkpoint={trained}", "device=cpu")
    assert "iconv" in one_line(run("sample", *common, "mode=next_token", "prompt_file=prompt.txt"))
    assert "iconv" in one_line(run("sample", *common, "mode=next_token", "prompts=prompt.txt", "outputs=bulk.json"))
    as_stdin(monkeypatch, content)
    assert "iconv" in one_line(run("sample", *common, "mode=next_token"))
    as_stdin(monkeypatch, content)
    assert "error: a line is not UTF-8" in ok("sample", *common, "mode=chat", "max_new_tokens=3")


def test_notes_say_what_the_prompt_is_and_how_it_joins_the_text(trained, monkeypatch):
    common = (f"checkpoint={trained}", "device=cpu")
    as_stdin(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert "no prompt is given" in run("sample", *common, "mode=next_token").err
    assert "no prompt" not in run("sample", *common, "mode=next_token", "prompt=").err
    joined = "note: no space between the prompt and"
    for prompt, text, noted in (
        ("Listen", "text=to", True), ("Listen", "text= to", False), ("Listen", "text=.", False),
        ("Listen ", "text=to", False), ("", "text=to", False), ("你", "text=好", False),
        ("Listen", "options=[ to, your]", True), ("Listen", 'options=[" to", " your"]', False),
    ):  # fmt: skip
        assert (joined in run("sample", *common, "mode=score", f"prompt={prompt}", text).err) == noted, (prompt, text)


def test_a_stop_string_is_counted_among_the_tokens(trained):
    how = (f"checkpoint={trained}", "device=cpu", "prompt=Listen to", "num_samples=2", "max_new_tokens=40")
    assert "tokens, the stop string included," in ok("sample", *how, "stop=[e, o, t, a, ' ']")
    assert "included" not in ok("sample", *how)
