"""Tables: complete and plain off a terminal, in any encoding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conf.display import tables

ROOT = Path(__file__).resolve().parents[3]
ODD = [" body", "\n", "$\\x$", "你好", "\x00\t", "[bold]", "\ud800", "�", ""]
WORDS: list[dict[str, Any]] = [
    {"word": "heart", "kind": "word", "lower": 0.4, "upper": 0.5, "tokenisations": 3},
    {"word": "friend's", "kind": "word", "lower": 0.1, "upper": 0.2, "tokenisations": 12},
    {"word": "\n", "kind": "space", "lower": 0.05, "upper": 0.05, "tokenisations": 1},
]


STOPPED = {"unseen": 0.0, "stopped": "certified"}


def words(prompt: str, rows: list[dict[str, Any]] = WORDS) -> dict[str, Any]:
    return {"prompt": prompt, "words": rows, "continues": 0.25, "unexplored": 0.125} | STOPPED


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Makes standard output look like a wide terminal with colours."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return monkeypatch


def test_a_table_of_tokens_is_plain_and_complete_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": 37, "text": text, "probability": 0.3 / rank} for rank, text in enumerate(ODD[:6], start=1)]
    rows += [{"id": 9, "text": "long " * 40, "probability": 0.0}]
    tables.next_tables([{"prompt": "[x]", "tokens": rows}])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Next token after '[x]'"
    assert lines[1].split() == ["rank", "probability", "cumulative", "id", "text"]
    assert len(lines) == 2 + len(rows) and not any("\x1b" in line or line != line.rstrip() for line in lines)
    for line, row in zip(lines[2:], rows, strict=True):
        assert repr(row["text"]) in line and f"{row['probability']:.4%}" in line
    assert lines[3].split()[2] == "45.00%"
    tables.next_tables([{"prompt": "", "tokens": []}, {"prompt": "y", "tokens": tables.grouped(rows)}])
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.splitlines()[0] == "Next token after ''" and "variants" not in first + second
    rows = tables.grouped([{"id": 1, "text": " you", "probability": 0.2}, {"id": 2, "text": "You", "probability": 0.1}])
    tables.next_tables([{"prompt": "x", "tokens": rows}])
    out = capsys.readouterr().out
    assert "30.0000%" in out and out.splitlines()[-1].endswith("' you', 'You'")


def test_a_table_of_words_shows_bounds_and_the_mass_outside(capsys: pytest.CaptureFixture[str]) -> None:
    tables.next_tables([words("Listen to your"), words("", [])])
    first, second = capsys.readouterr().out.split("\n\n")
    lines = first.splitlines()
    assert lines[0] == "Next word after 'Listen to your'"
    assert lines[1].split() == ["rank", "lower", "bound", "upper", "bound", "tokenizations", "kind", "word"]
    assert lines[2].split() == ["1", "40.000%", "50.000%", "3", "heart", "█" * 16 + "░" * 4]
    assert lines[4].split()[4:] == ["space", r"'\n'", "██"]
    summary = (
        "at least 25.00% probability that the prompt's last word continues (the rows are conditional on a new word); "
    )
    summary += "12.50% unexplored; "
    assert lines[5] == summary + "the order of these rows is certain"
    assert second.splitlines()[0] == "Next word after ''"
    tables.next_tables([words("") | {"continues": 1.0, "unexplored": 0.0}])
    assert "\n100.00% probability that the prompt's" in capsys.readouterr().out  # exact


def test_tables_are_side_by_side_only_if_they_fit(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns, together in (("200", True), ("100", False)):
        terminal.setenv("COLUMNS", columns)
        tables.next_tables([words("one"), words("two")])
        lines = capsys.readouterr().out.splitlines()
        assert any("'one'" in line and "'two'" in line for line in lines) == together
        assert sum("heart" in line for line in lines) == (1 if together else 2)


def test_grouping_adds_up_variants_without_changing_the_rows() -> None:
    rows = [
        {"word": "you", "kind": "word", "lower": 0.3, "upper": 0.6, "tokenisations": 1},
        {"word": "a", "kind": "word", "lower": 0.25, "upper": 0.3, "tokenisations": 1},
        {"word": "You", "kind": "word", "lower": 0.2, "upper": 0.5, "tokenisations": 2},
        {"word": " ", "kind": "space", "lower": 0.01, "upper": 0.02, "tokenisations": 1},
        {"word": "\n", "kind": "space", "lower": 0.01, "upper": 0.02, "tokenisations": 1},
    ]
    before = [dict(row) for row in rows]
    got = tables.grouped(rows)
    assert [row["variants"] for row in got] == [["you", "You"], ["a"], [" "], ["\n"]]
    assert got[0]["word"] == "you" and got[0]["tokenisations"] == 3
    assert got[0]["lower"] == pytest.approx(0.5) and got[0]["upper"] == 1.0
    assert rows == before
    [token] = tables.grouped([{"text": " Heart", "probability": 0.1}, {"text": "heart", "probability": 0.2}])
    assert token["text"] == "heart" and token["probability"] == pytest.approx(0.3)


def test_a_tree_shows_probabilities_given_the_parent_and_of_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    leaf = {"text": "[b] and", "probability": 0.2}
    nodes = [{"text": " heart", "probability": 0.5, "children": [leaf]}, {"text": "\n", "probability": 0.1}]
    tables.continuation_tree(nodes, prompt="Listen to your")
    assert capsys.readouterr().out.splitlines() == [
        "'Listen to your'",
        "├── 50.00% ' heart'",
        "│   └── 20.00% '[b] and'  10.00%",
        "└── 10.00% '\\n'",
    ]


SCORE: dict[str, Any] = {
    "prompt": "A: ",
    "text": "to 你\n",
    "tokens": [
        {"id": 1, "text": "to", "log_probability": -0.6931471805599453},
        {"id": 2, "text": " ", "log_probability": 0.0},
        {"id": 3, "text": "", "log_probability": -1.3862943611198906},
        {"id": 4, "text": "你\n", "log_probability": -0.6931471805599453},
    ],
    "log_probability": -2.772588722239781,
    "bits_per_byte": 4 / 7,
}


def test_surprisal_is_in_brackets_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    tables.surprisal(SCORE)
    out = capsys.readouterr().out
    assert out.startswith("A: to[1.0] [0.0]你\n[3.0]\n")  # the two tokens of one character together
    assert "-2.773 nats = -4.00 bits over 4 tokens and 7 bytes: 0.5714 bits/byte, 1.000 bits/token" in out


def test_surprisal_is_a_colour_with_a_legend_on_a_terminal(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.surprisal(SCORE)
    out = capsys.readouterr().out
    assert "[1.0]" not in out and "bits per token:" in out and "12 or more" in out
    assert out.count("\x1b[") > 10
    terminal.setenv("NO_COLOR", "1")
    tables.surprisal(SCORE)
    assert "to[1.0]" in capsys.readouterr().out


def test_options_have_a_star_at_the_best_of_each_method(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"option": " yes", "log_probability": -2.0, "per_byte": -0.5, "pmi": 1.0, "probability": 0.75},
        {"option": " indeed", "log_probability": -3.0, "per_byte": -0.4, "pmi": 2.0, "probability": 0.25},
    ]
    tables.option_table(rows, prompt="Is it?", method="raw")
    _, _, yes, indeed, caption = capsys.readouterr().out.splitlines()
    assert yes.split()[:5] == ["'", "yes'", "-2.000*", "-0.500", "1.000"] and "75.00%*" in yes
    assert indeed.split()[2:5] == ["-3.000", "-0.400*", "2.000*"] and "25.00%*" not in indeed
    assert "method=raw" in caption


def test_accuracies_are_shown_with_intervals_and_the_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"method": "raw", "accuracy": 0.5, "low": 0.4, "high": 0.6, "group_low": 0.3, "group_high": 0.7}
    tables.accuracy_table([row, {"method": "guessing", "accuracy": 0.25}], title="9 questions")
    title, _, raw, guessing = capsys.readouterr().out.splitlines()
    assert title == "9 questions" and guessing.split() == ["guessing", "25.0%", "█" * 10]
    assert "50.0%  40.0% to 60.0%" in raw and "30.0% to 70.0%" in raw and raw.endswith(" " + "█" * 20)


def test_explain_table_shows_every_filter(capsys: pytest.CaptureFixture[str]) -> None:
    filters = [
        {"name": "penalties", "before": 0.1, "after": 0.1, "removed": 0.0},
        {"name": "temperature", "before": 0.1, "after": 0.2, "removed": 0.0},
        {"name": "top_k", "before": 0.2, "after": 0.25, "removed": 0.2},
        {"name": "top_p", "before": 0.25, "after": 0.5, "removed": 0.5},
    ]
    row = {"text": " gut", "rank": 3, "probability": 0.1, "filters": filters}
    others = [{"text": " heart", "probability": 0.5}]
    tables.explain_table([{**row, "alternatives": others}, {**row, "filters": filters[:2]}], prompt="Listen to your")
    _, head, first, second, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["token", "rank", "model", "temperature", "top_k", "top_p", "removed", "first", "choices"]
    assert first.split()[2:6] == ["3", "10.00%", "20.00%", "25.00%"]
    assert first.split()[6:] == ["(-20.0%)", "50.00%", "(-50.0%)", "60.00%", "'", "heart'", "50.0%"]
    assert second.split()[2:] == ["3", "10.00%", "20.00%", "0.00%"]
    tables.explain_table([row])
    assert len(capsys.readouterr().out.splitlines()) == 3  # no title; a caption once
    tables.explain_table([{**row, "filters": filters[:1]}])
    head, _, caption = capsys.readouterr().out.splitlines()
    assert head.split() == ["token", "rank", "model"] and caption == "the token's probability in the model"
    tables.explain_table([])


def test_everything_survives_an_ascii_pipe() -> None:
    code = (
        "from conf.display import tables as t; from tests.conf.display.test_tables import SCORE, words\n"
        "t.next_tables([{'prompt': 'é', 'tokens': [{'id': 1, 'text': 'é', 'probability': 1}]}]); t.surprisal(SCORE)\n"
        "t.next_tables([words('é'), words('x')]); t.continuation_tree([{'text': 'é', 'probability': 0.5}], prompt='é')"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "'\\xe9'" in done.stdout and "\\u4f60" in done.stdout, done.stderr


def test_a_joiner_inside_a_word_is_shown_as_it_is() -> None:
    page = tables.Page()
    assert page.named("می\u200cروم") == "می\u200cروم"
    assert page.named("می\u200c") == r"'می\u200c'" and page.named("a\u200b") == r"'a\u200b'"


def test_without_colours_tokens_are_separated_and_bytes_named(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_cuts([b"a|", b" b", b"\xc3", b"\xa9", b"\n", b"\x00c"], title="three")
    assert capsys.readouterr().out == "three\na|¦ b¦<C3>¦<A9>¦↵\n<\\x00>c\n"


def test_with_colours_nothing_is_inserted(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_cuts([b"a", b" b", b"c"], title="three")
    out = capsys.readouterr().out
    assert out.count("\x1b[30;48;") == 3 and "|" not in out  # 256 colours or all: rich caches the codes
