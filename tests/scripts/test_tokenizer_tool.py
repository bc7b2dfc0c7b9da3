"""The program for tokenizers: it trains, compares, shows, exports, and a mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.display.tokens import readable, show_cuts
from data.tokenizers.build import TokenizerConfig, build, load, shortfall
from tests.programs import finish, start

TEXTS = [f"To be, or not to be: that is question {number}.\nслово не воробей\n" for number in range(20)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return tmp_path / "texts"


def run(*arguments: object, cwd: Path):
    return finish(start("-m", "scripts.tokenizer", *map(str, arguments), cwd=cwd))


def test_train_show_compare_export(corpus: Path, tmp_path: Path) -> None:
    ended = run(f"corpus={corpus}", "out=tok", "tokenizer.vocab_size=5000", "tokenizer.pattern=gpt4", cwd=tmp_path)
    assert ended.status == 0 and not ended.err, ended.err
    tokenizer = load(tmp_path / "tok")
    assert f"tokenizer.vocab_size=5000 is lowered to {tokenizer.vocab_size}" in ended.out

    ended = run("mode=show", "tokenizers=tok", "text=to be|é", cwd=tmp_path)
    assert ended.status == 0 and not ended.err, ended.err
    title, cut = ended.out.splitlines()
    tokens = [tokenizer.token_bytes(token) for token in tokenizer.encode("to be|é")]
    assert title == f"tok: {len(tokens)} tokens of 8 bytes" and cut == "¦".join(map(readable, tokens))

    ended = run("mode=compare", f"corpus={corpus}", "tokenizers=[tok,char,bpe:300]", "json=c.json", cwd=tmp_path)
    assert ended.status == 0 and not ended.err, ended.err
    figures = json.loads((tmp_path / "c.json").read_text())
    held = [TEXTS[0], TEXTS[10]]
    assert figures["bytes"] == sum(len(text.encode()) for text in held)
    assert [row["name"] for row in figures["tokenizers"]] == ["tok", "char", "bpe:300"]
    assert figures["tokenizers"][0]["tokens"] == sum(len(tokenizer.encode(text)) for text in held)
    assert figures["tokenizers"][1]["fertility"]["Cyrillic"]["per_character"] == 1
    assert "Cyrillic" in ended.out and "bytes/token" in ended.out
    # Only what is trained here has surely not learned from the documents that it is compared on.
    assert [row["trained_here"] for row in figures["tokenizers"]] == [False, True, True]
    assert "tok *" in ended.out and "char *" not in ended.out and "bpe:300 *" not in ended.out
    assert "may have been trained on this text" in ended.out

    ended = run("mode=export", "tokenizers=tok", "out=.", cwd=tmp_path)
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
        (["mode=show", "tokenizers=nowhere", "text=x"], "'nowhere' is no folder"),
        (["mode=show", "tokenizers=.", "text=x"], "no tokenizer.json in ."),
        (["mode=show", "tokenizers=bpe:many", "text=x", "corpus=texts"], "'many' is not a size"),
        (["mode=compare", "tokenizers=bpe:7", "corpus=texts"], "vocab_size=7"),
        (["mode=export", "tokenizers=char", "out=x"], "must be trained first"),
        (["mode=export", "tokenizers=letters", "out=x"], "of kind char cannot be exported"),
        (["corpus=texts", "out=letters"], "is there already"),
        (["corpus=texts", "out=x", "tokenizer.pattern=("], "is not a regular expression"),
        (["corpus=texts", "out=x", "tokenizer.pattern=gpt9"], "neither gpt2 nor gpt4"),
        (["corpus=texts", "out=x", "invalid_utf8=mend"], "invalid_utf8='mend' is not one of"),
        (["corpus=texts", "out=x", "document_separator="], "document_separator="),
        (["corpus=texts", "out=x", "max_bad_lines=-1"], "max_bad_lines=-1"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], part: str, corpus: Path, tmp_path: Path) -> None:
    build(TokenizerConfig(kind="char"), TEXTS).save(tmp_path / "letters")
    ended = run(*arguments, cwd=tmp_path)
    assert ended.status == 2 and part in ended.err and ended.err.count("\n") == 1, ended.err


def test_a_corpus_is_read_as_preparation_reads_it(tmp_path: Path) -> None:
    """What a tokenizer of kind char learns are the characters of all documents."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_bytes(b"one\n#|\ntwo\n")  # no # where it ends a document
    (texts / "b.txt").write_bytes(b"three \xff\n")
    (texts / "c.jsonl").write_text('{"text": "four"}\n{"text": "fi')
    settings = ["document_separator=#|", "invalid_utf8=replace", "max_bad_lines=1"]
    kind = ["corpus=texts", "tokenizer=char"]
    ended = run(*kind, *settings, "out=tok", cwd=tmp_path)
    assert ended.status == 0 and not ended.err, ended.err
    assert "c.jsonl:2 (broken line)" in ended.out and "b.txt:1 (not UTF-8, replaced by U+FFFD)" in ended.out
    assert json.loads((tmp_path / "tok" / "tokenizer.json").read_text())["characters"] == "".join(
        sorted(set("one\ntwothree \ufffdfour"))
    )
    ended = run(*kind, *settings[:2], "out=other", cwd=tmp_path)
    assert ended.status == 2 and "c.jsonl:2" in ended.err and ended.err.count("\n") == 1


def test_what_a_text_could_not_give_is_said() -> None:
    for kind in ("bpe", "sentencepiece"):
        config = TokenizerConfig(kind=kind, vocab_size=5000)
        tokenizer = build(config, TEXTS)
        assert str(tokenizer.vocab_size) in (shortfall(config, tokenizer) or "")
    config = TokenizerConfig(vocab_size=300)
    assert shortfall(config, build(config, TEXTS)) is None
    assert shortfall(TokenizerConfig(kind="byte"), build(TokenizerConfig(kind="byte"), [])) is None


def test_cuts_are_seen_without_colours_and_bytes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    show_cuts([b"a|", b" b", b"\xc3", b"\xa9", b"\n", b"\x00c"], title="three")
    assert capsys.readouterr().out == "three\na|¦ b¦<C3>¦<A9>¦↵\n<\\x00>c\n"


def test_cuts_are_seen_in_colours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    show_cuts([b"a", b" b", b"c"], title="three")
    out = capsys.readouterr().out
    assert out.count("\x1b[30;48;") == 3 and "|" not in out  # of 256 or of all colours: rich remembers a style's codes
