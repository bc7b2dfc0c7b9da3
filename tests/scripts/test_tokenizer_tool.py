"""scripts.tokenizer: train, compare, show and export; a mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.display.tables import readable
from data.tokenizers.build import TokenizerConfig, build, load, shortfall
from tests.programs import Ended, run

TEXTS = [f"To be, or not to be: that is question {number}.\nслово не воробей\n" for number in range(20)]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 20 documents, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return tmp_path / "texts"


def tokenizer_tool(*arguments: object) -> Ended:
    return run("tokenize", *map(str, arguments))


def test_train_show_compare_export(corpus: Path, tmp_path: Path) -> None:
    ended = tokenizer_tool(f"corpus={corpus}", "out=tok", "tokenizer.vocab_size=5000", "tokenizer.pattern=gpt4")
    assert ended.status == 0 and not ended.err, ended.err
    tokenizer = load(tmp_path / "tok")
    assert f"tokenizer.vocab_size=5000 is lowered to {tokenizer.vocab_size}" in ended.out

    ended = tokenizer_tool("mode=show", "tokenizers=tok", "text=to be|é")
    assert ended.status == 0 and not ended.err, ended.err
    title, cut = ended.out.splitlines()
    tokens = [tokenizer.token_bytes(token) for token in tokenizer.encode("to be|é")]
    assert title == f"tok: {len(tokens)} tokens of 8 bytes" and cut == "¦".join(map(readable, tokens))

    ended = tokenizer_tool("mode=compare", f"corpus={corpus}", "tokenizers=[tok,char,bpe:300]", "json=c.json")
    assert ended.status == 0 and ended.err == "wrote c.json\n", ended.err
    figures = json.loads((tmp_path / "c.json").read_text())
    held = [TEXTS[0], TEXTS[10]]
    assert figures["bytes"] == sum(len(text.encode()) for text in held)
    assert [row["name"] for row in figures["tokenizers"]] == ["tok", "char", "bpe:300"]
    assert figures["tokenizers"][0]["tokens"] == sum(len(tokenizer.encode(text)) for text in held)
    assert figures["tokenizers"][1]["fertility"]["Cyrillic"]["per_character"] == 1
    assert "Cyrillic" in ended.out and "bytes/token" in ended.out
    # Only tokenizers that are trained here have certainly not seen the held-out documents.
    assert [row["trained_here"] for row in figures["tokenizers"]] == [False, True, True]
    assert "tok *" in ended.out and "char *" not in ended.out and "bpe:300 *" not in ended.out
    assert "may have seen this text" in ended.out

    ended = tokenizer_tool("mode=export", "tokenizers=tok", "out=.")
    assert ended.status == 0 and not ended.err, ended.err
    exported = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(exported["model"]["vocab"]) == tokenizer.vocab_size


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["mode=trian", "out=x"], "train, compare"),
        ([], "out is required"),
        (["mode=export", "out=x"], "tokenizers is required"),
        (["mode=show"], "tokenizers is required"),
        (["mode=show", "tokenizers=nowhere", "text=x"], "'nowhere' is neither a folder"),
        (["mode=show", "tokenizers=.", "text=x"], ". contains no tokenizer.json"),
        (["mode=show", "tokenizers=bpe:many", "text=x", "corpus=texts"], "'many' is not a size"),
        (["mode=compare", "tokenizers=bpe:7", "corpus=texts"], "vocab_size=7"),
        (["mode=export", "tokenizers=char", "out=x"], "train 'char' first"),
        (["mode=export", "tokenizers=letters", "out=x"], "of kind char cannot be exported"),
        (["corpus=texts", "out=letters"], "already exists"),
        (["corpus=texts", "out=x", "tokenizer.pattern=("], "is not a regular expression"),
        (["corpus=texts", "out=x", "tokenizer.pattern=gpt9"], "neither gpt2 nor gpt4"),
        (["corpus=texts", "out=x", "invalid_utf8=mend"], "invalid_utf8='mend' is not one of"),
        (["corpus=texts", "out=x", "document_separator="], "document_separator="),
        (["corpus=texts", "out=x", "max_bad_lines=-1"], "max_bad_lines=-1"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], part: str, corpus: Path, tmp_path: Path) -> None:
    build(TokenizerConfig(kind="char"), TEXTS).save(tmp_path / "letters")
    ended = tokenizer_tool(*arguments)
    assert ended.status == 2 and part in ended.err and ended.err.count("\n") == 1, ended.err


def test_a_corpus_is_read_as_in_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of kind char has the characters of all documents."""
    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_bytes(b"one\n#|\ntwo\n")  # the line with # separates documents
    (texts / "b.txt").write_bytes(b"three \xff\n")
    (texts / "c.jsonl").write_text('{"text": "four"}\n{"text": "fi')
    settings = ["document_separator=#|", "invalid_utf8=replace", "max_bad_lines=1"]
    kind = ["corpus=texts", "tokenizer=char"]
    ended = tokenizer_tool(*kind, *settings, "out=tok")
    assert ended.status == 0 and not ended.err, ended.err
    assert "c.jsonl:2 (broken line)" in ended.out and "b.txt:1 (not UTF-8, replaced by U+FFFD)" in ended.out
    assert json.loads((tmp_path / "tok" / "tokenizer.json").read_text())["characters"] == "".join(
        sorted(set("one\ntwothree \ufffdfour"))
    )
    ended = tokenizer_tool(*kind, *settings[:2], "out=other")
    assert ended.status == 2 and "c.jsonl:2" in ended.err and ended.err.count("\n") == 1


def test_a_vocabulary_that_is_too_large_for_the_text_is_reported() -> None:
    for kind in ("bpe", "sentencepiece"):
        config = TokenizerConfig(kind=kind, vocab_size=5000)
        tokenizer = build(config, TEXTS)
        assert str(tokenizer.vocab_size) in (shortfall(config, tokenizer) or "")
    config = TokenizerConfig(vocab_size=300)
    assert shortfall(config, build(config, TEXTS)) is None
    assert shortfall(TokenizerConfig(kind="byte"), build(TokenizerConfig(kind="byte"), [])) is None
