"""Characters that a tokenizer does not know: counted exactly, and named wherever text is read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batching.batches import WindowEvaluation
from data.labelled.examples import Example, note_unknown
from data.labelled.rows import ExampleEvaluation, Rows
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.tokenizers.base import END
from data.tokenizers.build import TokenizerConfig, build
from data.tokenizers.unknown import unknown_in, unknown_note

LETTERS = build(TokenizerConfig(kind="char"), ["the quick brown fox jumps over a lazy dog. "])
BYTES = build(TokenizerConfig(kind="byte"), [])


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=(), exclude_characters="\ufffd")) | st.text("theox éž中\ud83d\ude00")
)
def test_unknown_is_empty_exactly_if_the_text_comes_back(text: str) -> None:
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    for tokenizer in (LETTERS, BYTES):
        unknown = tokenizer.unknown(text)
        assert bool(unknown) == (tokenizer.decode(tokenizer.encode(text)) != joined)
        assert not set(unknown) - set(joined) and all(joined.count(c) == n for c, n in unknown.items())


def test_special_tokens_are_known_where_they_are_allowed() -> None:
    config = TokenizerConfig(kind="char", special_tokens=["<|user|>"], allow_special=True)
    assert build(config, ["<|user|>hi"]).unknown("<|user|>hi!") == Counter("!")


def test_the_message_counts_and_shows_the_most_frequent() -> None:
    note = unknown_note(Counter("ééé中中abc"), "notes.txt", fix="do this")
    assert "8 characters in notes.txt ('é' 3 times, '中' 2 times, 'a', ...)" in note and note.endswith("; do this")
    assert "1 character in x ('a'):" in unknown_note(Counter("a"), "x") and "\n" not in note
    assert unknown_in(["é", "aé"], BYTES) == Counter() and unknown_in(["é", "aé"], LETTERS) == Counter("éé")


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("letters")
    LETTERS.save(folder)
    return folder


def test_a_prepared_corpus_counts_them_and_has_no_bits_per_byte(letters: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the café jumps over. " * 100, encoding="utf-8")
    config = PrepareConfig(
        corpus=str(tmp_path / "a.txt"), datasets=str(tmp_path), tokenizer=TokenizerConfig(path=str(letters))
    )
    for _ in range(2):  # also when the corpus is already prepared
        said: list[str] = []
        folder = prepare(config, say=said.append)
        notes = [line for line in said if "does not know" in line]
        assert len(notes) == 2 and "90 characters in the train split ('é' 90 times)" in notes[0]
        assert "10 characters in the val split" in notes[1] and "tokenizer=bpe" in notes[1]
    split = open_split(folder, "val")
    assert split.unknown == {"é": 10} and WindowEvaluation(split, context=8).n_bytes is None
    assert json.loads((folder / "report.json").read_text())["yardsticks"] is None


def test_a_corpus_that_the_tokenizer_knows_says_nothing(letters: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the fox jumps over. " * 100)
    said: list[str] = []
    tokenizer = TokenizerConfig(path=str(letters))
    folder = prepare(
        PrepareConfig(corpus=str(tmp_path / "a.txt"), datasets=str(tmp_path), tokenizer=tokenizer), say=said.append
    )
    assert not [line for line in said if line.startswith("note")]
    assert WindowEvaluation(open_split(folder, "val"), context=8).n_bytes == 200


def test_a_corpus_that_an_older_version_prepared_is_prepared_again(letters: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the fox é " * 100, encoding="utf-8")
    config = PrepareConfig(
        corpus=str(tmp_path / "a.txt"), datasets=str(tmp_path), tokenizer=TokenizerConfig(path=str(letters))
    )
    folder = prepare(config, say=lambda line: None)
    index = json.loads((folder / "index.json").read_text())
    for split in index["splits"].values():
        del split["unknown_characters"]
    (folder / "index.json").write_text(json.dumps(index))
    said: list[str] = []
    assert prepare(config, say=said.append) == folder
    assert any("older version" in line for line in said) and any("does not know" in line for line in said)


def test_examples_are_counted_and_their_bits_per_byte_left_out() -> None:
    examples = [Example("the fox ", "café"), Example("thé ", "dog")]
    (note,) = note_unknown(examples, LETTERS, "e.jsonl")
    assert "2 characters in e.jsonl ('é' 2 times)" in note and "1 of them are in completions" in note
    assert not note_unknown(examples, BYTES, "e.jsonl")
    assert ExampleEvaluation(Rows(examples, LETTERS, context=32)).n_bytes is None
    assert ExampleEvaluation(Rows(examples[1:], LETTERS, context=32)).n_bytes == 3
    assert ExampleEvaluation(Rows(examples, BYTES, context=32)).n_bytes == 8


@pytest.mark.parametrize("text", ["日本", "कि", "é", "😀"])
def test_the_preview_shows_whole_characters_of_tokens_that_are_single_bytes(text: str) -> None:
    shown = Rows([Example(f"a{text}", f"{text}b")], BYTES, context=64).tokens(0)
    assert shown == [("a", False), *((c, False) for c in text), *((c, True) for c in text), ("b", True), (END, True)]
