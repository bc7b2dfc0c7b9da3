"""Advice: every finding is followed as it is written, and the text afterwards is what a reader would want."""

from __future__ import annotations

import html
import json
import random
import re
import shlex
from pathlib import Path

import pytest

from conf import cli
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.reporting import advice
from data.reporting.advice import findings
from tests.preparing import read

COVERED: set[str] = set()  # names of the rules whose finding a test has followed
WORDS = "the quick brown fox jumps over a lazy dog while many other small animals sleep near old trees".split()


def prose(seed: int, n: int = 40) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n))


class Corpus:
    """A folder of documents, and what its latest preparation found and said."""

    def __init__(self, folder: Path, files: dict[str, str | bytes]) -> None:
        self.folder = folder / "notes"
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)

    def prepare(self, *arguments: str) -> dict[str, str]:
        """Returns the text of each document."""
        config = (
            PrepareConfig() if not arguments else cli.compose(PrepareConfig, name="prepare", arguments=arguments)[0]
        )
        config.corpus, config.datasets = str(self.folder), str(self.folder.parent / "datasets")
        config.val_fraction = 0
        if not {argument.partition("=")[0] for argument in arguments} & {"tokenizer", "tokenizer.path"}:
            config.tokenizer.kind = "byte"
        self.said: list[str] = []
        directory = prepare(config, say=self.said.append)
        self.found = findings(json.loads((directory / "report.json").read_text()))
        splits = json.loads((directory / "index.json").read_text())["splits"]
        return {name: texts[0] for split in splits for name, texts in read(directory, split).items()}

    def finding(self, rule: str, part: str) -> str:
        (finding,) = [line for line in self.found if part in line]
        COVERED.add(rule)
        return finding

    def has(self, part: str) -> bool:
        return any(part in line for line in self.found)


def settings(finding: str) -> list[list[str]]:
    """The settings with a value in a finding, one list for each piece of code."""
    found = [[word for word in shlex.split(part) if re.match(r"[\w.]+=.", word)] for part in commands(finding)]
    return [words for words in found if words]


def commands(finding: str) -> list[str]:
    return [part for part in re.findall(r"`([^`]+)`", finding) if "=" in part]


def test_characters_of_windows_1252_are_repaired_and_not_deleted(tmp_path):
    damaged = "{}: I don\x92t know\x85 he said \x93yes\x94 \x96 \x80 5 \x07\x81"
    corpus = Corpus(tmp_path, {f"{n}.txt": damaged.format(n) for n in range(20)})
    corpus.prepare()
    (words,) = settings(corpus.finding("_control_characters", "control characters"))
    assert words == ["curate.repair_mojibake=true", "curate.control_characters=true"]
    texts = corpus.prepare(*words)
    assert texts["7.txt"] == "7: I don’t know… he said “yes” – € 5 " and not corpus.has("control character")
    assert "don’t" in corpus.prepare("curate.repair_mojibake=true")["7.txt"] and corpus.has("control character")


def test_other_control_characters_are_removed_and_nothing_else(tmp_path):
    corpus = Corpus(tmp_path, {f"{n}.txt": f"{n}: don’t\x07 go, “über”\tall\r\n" for n in range(20)})
    corpus.prepare()
    (words,) = settings(corpus.finding("_control_characters", "control characters"))
    assert words == ["curate.control_characters=true"]
    assert corpus.prepare(*words)["3.txt"] == "3: don’t go, “über”\tall\r\n"


def test_mojibake_is_repaired_first_and_the_limits_drop_as_many_documents_as_they_say(tmp_path):
    files = {f"{n}.txt": prose(n) + (" Ã¼ber â€™" if n < 30 else "") + ("Ã ß" * 20 if n < 9 else "") for n in range(60)}
    corpus = Corpus(tmp_path, files)
    before = corpus.prepare()
    finding = corpus.finding("_mojibake", "contain mojibake")
    (repair,), *limits = settings(finding)
    numbers = [int(number) for number in re.findall(r"would drop (\d+)", finding)]
    for (limit,), number in zip(limits, numbers, strict=True):
        assert len(before) - len(corpus.prepare(limit)) == number > 0
    after = corpus.prepare(repair)
    assert after["20.txt"] == before["20.txt"].replace("Ã¼", "ü").replace("â€™", "’")
    assert after["50.txt"] == before["50.txt"]


STORIES = [f"Story {n}: {prose(n, 12)}" for n in range(90)]


@pytest.mark.parametrize("marker", ["<|endoftext|>", "<|end_of_text|>", "<|separator|>", "</document>"])
def test_lines_that_end_documents_become_separators(tmp_path, marker):
    corpus = Corpus(tmp_path, {"all.txt": "".join(f"{story}\n{marker}\n" for story in STORIES)})
    corpus.prepare()
    ((word,),) = settings(corpus.finding("_lines", "looks like the end of a document"))
    assert not corpus.has("drop_lines")
    texts = corpus.prepare(word)
    assert list(texts.values()) == [f"{story}\n" for story in STORIES]


def test_other_markers_become_special_tokens(tmp_path):
    corpus = Corpus(tmp_path, {"all.txt": "".join(f"{story}\n<|assistant|>\n" for story in STORIES)})
    before = corpus.prepare()
    (words,) = settings(corpus.finding("_lines", "one token"))
    assert not corpus.has("drop_lines")
    assert corpus.prepare(*words) == before and not [line for line in corpus.said if line.startswith("note:")]
    corpus.prepare(words[0])
    (word,) = settings(corpus.finding("_special_tokens", "special tokens"))
    assert word == [words[1]] and any("ordinary text" in line for line in corpus.said)


@pytest.mark.parametrize(
    "line",
    [
        "Copyright 2021 by Example Ltd. All rights reserved worldwide.",
        "Copyright 2021 by Example Ltd. All rights reserved " * 5 + "worldwide",
        "Page  [1]\tof 'this' \"book\" | $HOME",
        "=== * end of page * ===",
    ],
)
def test_repeated_lines_are_dropped_and_lines_that_begin_like_them_stay(tmp_path, line):
    own = [f"{story}\n{line[:46]}, but {n} differs\n{line[:3]}\n" for n, story in enumerate(STORIES)]
    corpus = Corpus(tmp_path, {f"{n}.txt": f"{text}{line}\n" for n, text in enumerate(own)})
    corpus.prepare()
    (word,) = settings(corpus.finding("_lines", "repeated many times"))[0]
    texts = corpus.prepare(word)
    assert {texts[f"{n}.txt"] for n in range(90)} == set(own)


def test_a_line_of_symbols_may_be_a_separator(tmp_path):
    corpus = Corpus(tmp_path, {"all.txt": "".join(f"{story}\n==========\n" for story in STORIES)})
    corpus.prepare()
    finding = corpus.finding("_lines", "document_separator=")
    assert settings(finding) and "If it separates documents" in finding
    assert len(corpus.prepare("document_separator===========")) == 90 and not corpus.has("==========")


def test_documents_with_few_letters_are_dropped_and_no_others(tmp_path):
    files = {f"{n}.txt": prose(n) if n % 5 else "1 | 2 | 3 " * 9 + f"{n} abc" for n in range(50)}
    corpus = Corpus(tmp_path, files)
    corpus.prepare()
    finding = corpus.finding("_letters", "less than half letters")
    ((word,),) = settings(finding)
    assert corpus.prepare(word).keys() == {name for name, text in files.items() if "|" not in text}
    assert "**10 documents**" in finding and not corpus.has("less than half")


def test_short_documents_are_dropped(tmp_path):
    corpus = Corpus(tmp_path, {f"{n}.txt": prose(n) if n % 5 else f"short {n}" for n in range(50)})
    corpus.prepare()
    assert "`curate.min_characters=`" in corpus.finding("_short", "fewer than 16 tokens")
    assert len(corpus.prepare("curate.min_characters=16")) == 40 and not corpus.has("fewer than")


def test_documents_in_another_script_are_left_out_by_the_names_shown(tmp_path):
    files = {f"{n}.txt": f"{n} {prose(n)}" for n in range(40)} | {"ru/a.txt": "Пациенты " * 30, "ru/b.txt": "Мир " * 50}
    corpus = Corpus(tmp_path, files)
    corpus.prepare()
    finding = corpus.finding("_scripts", "Cyrillic")
    names = re.search(r"\((`.*`)\)", finding)[1].replace("`", "").split(", ")
    assert "`exclude=`" in finding and len(corpus.prepare(f"exclude={json.dumps(names)}")) == 40
    assert not corpus.has("Cyrillic") and not [line for line in corpus.said if line.startswith("note:")]


@pytest.mark.parametrize(
    "part, arguments, left",
    [
        ("exact copies of earlier documents", ["curate.exact_duplicates=false"], 30),
        ("exact copies of validation documents", ["val_include=v*", "curate.overlap=false"], 31),
    ],
)
def test_copies_are_dropped(tmp_path, part, arguments, left):
    corpus = Corpus(tmp_path, {f"{n}.txt": prose(n) for n in range(30)} | {"copy.txt": prose(1)})
    if "validation" in part:
        corpus = Corpus(tmp_path, {"v1.txt": prose(2), "v2.txt": prose(99)})
    corpus.prepare(*arguments)
    (words,) = settings(corpus.finding("_copies", part))
    given = [argument for argument in arguments if argument.partition("=")[0] != words[0].partition("=")[0]]
    texts = corpus.prepare(*given, *words)
    assert len(texts) == left and len(set(texts.values())) == left and not corpus.has("Kept")


def test_near_copies_are_found_and_dropped(tmp_path):
    pytest.importorskip("rensa")
    long = prose(1, 300)
    corpus = Corpus(tmp_path, {f"{n}.txt": f"{n} {prose(n, 300)}" for n in range(2, 110)} | {"v1.txt": f"{long} end"})
    corpus = Corpus(tmp_path, {"a.txt": long, "b.txt": f"{long} and more"})
    corpus.prepare("val_include=v*")
    (words,) = settings(corpus.finding("_copies", "Near duplicates were not searched for"))
    assert not {"a.txt", "b.txt"} & corpus.prepare("val_include=v*", *words).keys() and not corpus.has("Near")
    assert "a.txt" in corpus.prepare("val_include=v*", *words, "curate.overlap=false")
    (overlap,) = settings(corpus.finding("_copies", "near copies of validation documents"))
    assert "a.txt" not in corpus.prepare("val_include=v*", *words, *overlap) and not corpus.has("near copies")


def test_splits_that_share_passages_are_cured_by_holding_out_a_source(tmp_path):
    rng = random.Random(0)
    passages = ["".join(rng.choice("abcdefgh ") for _ in range(600)) for _ in range(60)]
    files = {f"a{n}.txt": f"{n} {p}" for n, p in enumerate(passages)} | {
        f"b{n}.txt": "".join(rng.choice("abcdefgh ") for _ in range(600)) for n in range(60)
    }
    corpus = Corpus(tmp_path, files | {f"again{n}.txt": f"again {n} {p}" for n, p in enumerate(passages)})
    corpus.prepare("val_include=again*")
    assert "`val_include=`" in corpus.finding("_leaks", "share whole passages")
    corpus.prepare("val_include=b*")
    assert not corpus.has("share whole passages")


def test_text_that_is_not_utf8_is_converted_or_replaced(tmp_path):
    text = "Müller’s café costs 5 €. " * 9
    corpus = Corpus(tmp_path, {f"{n}.txt": f"{n} {text}" for n in range(9)} | {"old.txt": text.encode("cp1252")})
    assert "old.txt" not in corpus.prepare()
    finding = corpus.finding("_not_read", "not UTF-8")
    assert "iconv -f WINDOWS-1252 -t UTF-8" in finding and settings(finding) == [["invalid_utf8=replace"]]
    assert "M\ufffdller" in corpus.prepare("invalid_utf8=replace")["old.txt"]
    assert "iconv" in corpus.finding("_not_read", "not UTF-8")
    (corpus.folder / "old.txt").write_bytes((corpus.folder / "old.txt").read_bytes().decode("cp1252").encode())
    assert corpus.prepare()["old.txt"] == text and not corpus.has("UTF-8")


def test_a_broken_line_of_json_is_fixed(tmp_path):
    lines = [json.dumps({"text": f"{n} {prose(n)}"}) for n in range(20)]
    corpus = Corpus(tmp_path, {"a.jsonl": "\n".join([*lines, '{"text": "last'])})
    assert len(corpus.prepare("max_bad_lines=1")) == 20
    assert "Fix the file" in corpus.finding("_not_read", "broken JSON line")
    (corpus.folder / "a.jsonl").write_text("\n".join([*lines, '{"text": "last"}']))
    assert len(corpus.prepare("max_bad_lines=1")) == 21 and not corpus.has("broken")


def test_the_wider_pattern_matches(tmp_path):
    corpus = Corpus(tmp_path, {f"{n}.txt": f"{prose(n)}\nPatient: {n}\n" for n in range(20)})
    corpus.prepare("curate.drop_lines=Patient")
    (wider,) = re.findall(r"`(\*[^`]+)` would match", corpus.finding("_unmatched_patterns", "matched no line"))
    assert corpus.prepare(f"curate.drop_lines={wider}")["3.txt"] == f"{prose(3)}\n" and not corpus.has(
        "matched no line"
    )


def test_a_smaller_vocabulary_has_no_rare_tokens(tmp_path):
    corpus = Corpus(tmp_path, {f"{n}.txt": prose(n, 200) for n in range(40)})
    rng = random.Random(1)
    names = " ".join("".join(rng.choice("abcdefghijklmno") for _ in range(8)) for _ in range(900))
    (corpus.folder / "names.txt").write_text(names)
    corpus.prepare("tokenizer=bpe", "tokenizer.vocab_size=1200")
    assert "`tokenizer.vocab_size=`" in corpus.finding("_vocabulary", "occur fewer than 100 times")
    corpus.prepare("tokenizer=bpe", "tokenizer.vocab_size=300")
    assert not corpus.has("occur fewer than 100 times")


def test_a_tokenizer_that_knows_all_characters_loses_none(tmp_path):
    from data.tokenizers.build import TokenizerConfig, build

    build(TokenizerConfig(kind="char"), [prose(1)]).save(tmp_path / "char")
    corpus = Corpus(tmp_path, {f"{n}.txt": f"{prose(n)} Üé" for n in range(20)})
    with pytest.raises(AssertionError):  # the text that is read back is not the same
        corpus.prepare(f"tokenizer.path={tmp_path / 'char'}")
    ((word,),) = settings(corpus.finding("_unknown", "unknown to the tokenizer"))
    assert corpus.prepare(word, "tokenizer.vocab_size=300")["1.txt"] == f"{prose(1)} Üé" and not corpus.has("unknown")


@pytest.mark.parametrize(
    "rule, part, text, mended",
    [
        (
            "_markup",
            "HTML tags",
            "<p>a &amp; b &nbsp;c</p> and {}",
            lambda text: html.unescape(re.sub("<.*?>", "", text)),
        ),
        ("_hyphens", "end in a hyphen", "an ani-\nmal and {} de-\ntails", lambda text: text.replace("-\n", "")),
        ("_identifiers", "differ only in their digits", "Patient: {}1000123", lambda text: re.sub(r"\d+", "N", text)),
    ],
)
def test_text_that_no_setting_mends(tmp_path, rule, part, text, mended):
    corpus = Corpus(tmp_path, {f"{n}.txt": f"{prose(n)}\n{text.format(n)}\n" for n in range(40)})
    corpus.prepare()
    assert not settings(corpus.finding(rule, part))
    for path in corpus.folder.iterdir():
        path.write_text(mended(path.read_text()))
    corpus.prepare()
    assert not corpus.has(part)


def test_a_setting_that_matches_nothing_is_said(tmp_path):
    corpus = Corpus(tmp_path, {"a.txt": "one\n---\ntwo\n", "b.txt": "three\n"})
    for arguments, part in (
        (["document_separator=<|>"], "document_separator='<|>' equals no line"),
        (["text_field=content"], "text_field='content' has no effect"),
        (["exclude=c*"], "exclude='c*' matches no name"),
        (["document_separator=---"], ""),
        (["exclude=a*"], ""),
        (["document_separator=---", "exclude=a.txt:1"], ""),
    ):
        for _ in range(2):  # also when the corpus is already prepared
            corpus.prepare(*arguments)
            assert [part in line for line in corpus.said if line.startswith("note:")] == [True] * bool(part)
    (corpus.folder / "c.jsonl").write_text('{"content": "x"}\n')
    corpus.prepare("text_field=content")
    assert not [line for line in corpus.said if line.startswith("note:")]


def test_every_rule_was_followed():
    rules = {name for name, rule in vars(advice).items() if name.startswith("_") and callable(rule)} - {"_pattern"}
    assert rules == COVERED
