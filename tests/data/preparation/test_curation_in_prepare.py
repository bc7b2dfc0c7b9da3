"""Curation within preparation: the corpus is what the rules leave, and the report says what they removed."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from data import InputError
from data.corpus.corpora import Document, documents
from data.curation.curate import CurateConfig, clean, refuse
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.preparation.splitting import Splitting
from data.reporting.survey import survey
from data.tokenizers import build
from data.tokenizers.build import TokenizerConfig
from tests import messy


def write(folder: Path, texts: list[str], *, files: int = 3) -> Path:
    """The texts as lines of JSON in some files, one after the other."""
    folder.mkdir(exist_ok=True)
    for number in range(files):
        part = texts[number * len(texts) // files : (number + 1) * len(texts) // files]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return folder


def prepared(corpus: Path, *, datasets: str = "datasets", said: list[str] | None = None, **settings: Any) -> Path:
    options = {"tokenizer": TokenizerConfig(kind="byte")} | settings
    config = PrepareConfig(corpus=str(corpus), datasets=str(corpus.parent / datasets), **options)
    return prepare(config, say=[].append if said is None else said.append)


def read(folder: Path, split: str) -> list[Document]:
    """The documents of a split."""
    tokens, opened = build.load(folder / "tokenizer"), open_split(folder, split)
    starts = opened.document_offsets.tolist()
    stops = [*starts[1:], opened.n_tokens]
    return [
        Document(name, tokens.decode(opened.tokens[start : stop - 1].tolist()))
        for name, start, stop in zip(opened.document_names, starts, stops, strict=True)
    ]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


RULES = {
    "default": CurateConfig(),
    "many": CurateConfig(
        min_letters=0.5, max_mojibake=0.01, min_characters=20, drop_lines="*All rights reserved*", near_duplicates=True
    ),
    "none": CurateConfig(exact_duplicates=False, overlap=False, control_characters=True, repair_mojibake=True),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_a_messy_corpus_is_what_the_survey_keeps_and_counts(tmp_path, monkeypatch, rules):
    if rules.near_duplicates:
        pytest.importorskip("rensa")
    monkeypatch.setattr("data.corpus.corpora.BLOCK", 20_000)  # many blocks
    corpus = write(tmp_path / "notes", [document.text for document in messy.documents(170)])
    folder = prepared(corpus, curate=rules, workers=1)
    splits = {split: read(folder, split) for split in ("train", "val")}
    splitting, byte = Splitting(None, 0.1), build.load(folder / "tokenizer")
    surveyed, kept = survey(
        documents(str(corpus)),
        byte,
        config=rules,
        in_val=lambda document: splitting.chooses(document.name, sha256(document.text.encode()).digest()),
    )
    assert len(splits["val"]) > 10 and splits == kept
    found = summary_of(folder)
    for split in splits:
        found["splits"][split]["sources"] = surveyed["splits"][split]["sources"] = {}
    assert found == json.loads(json.dumps(surveyed))


def test_the_number_of_processes_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data.corpus.corpora.BLOCK", 20_000)
    corpus = write(tmp_path / "notes", [document.text for document in messy.documents(170)])
    rules = CurateConfig(min_characters=20, repair_mojibake=True, line_copies=1)
    tokens = TokenizerConfig(kind="bpe", vocab_size=400)
    alone, shared = (
        prepared(corpus, datasets=f"datasets{workers}", curate=rules, tokenizer=tokens, workers=workers)
        for workers in (1, 3)
    )
    files = sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(shared) for path in shared.rglob("*") if path.is_file())
    assert {Path("report.json"), Path("report.md")} <= set(files)
    assert all((alone / file).read_bytes() == (shared / file).read_bytes() for file in files)


def test_planted_copies_go_and_training_has_nothing_of_validation(tmp_path):
    texts = [f"document {i}: " + f"words {i % 7} " * 20 for i in range(60)]
    corpus = tmp_path / "notes"
    corpus.mkdir()
    for number, text in enumerate(texts):
        (corpus / f"{number:02d}.txt").write_text(text)
    (corpus / "00-again.txt").write_text(texts[7])  # before 07.txt: this one stays
    (corpus / "zz-50.txt").write_text(texts[50])  # 50.txt is for validation
    said: list[str] = []
    folder = prepared(corpus, val_include="5?.txt", tokenizer=TokenizerConfig(kind="bpe", vocab_size=300), said=said)
    train, val = ({d.name for d in read(folder, split)} for split in ("train", "val"))
    assert val == {f"5{i}.txt" for i in range(10)}
    assert train == {f"{i:02d}.txt" for i in range(50) if i != 7} | {"00-again.txt"}
    entries = summary_of(folder)["curation"]
    assert {rule: entry["examples"] for rule, entry in entries.items()} == {
        "duplicate": ["07.txt (of 00-again.txt)"],
        "in validation": ["zz-50.txt (of 50.txt)"],
    }
    assert sum(entry["bytes"] for entry in entries.values()) == len(texts[7]) + len(texts[50])
    assert any("leaves out 2 documents of 62" in line for line in said)
    assert "07.txt (of 00-again.txt)" in (folder / "report.md").read_text()


def test_where_each_document_is_on_both_sides_none_is_a_copy_in_validation(tmp_path):
    texts = [f"{n} words" for n in range(200)] + ["one that is long " * 5000]
    folder = prepared(write(tmp_path / "notes", texts + texts[:200], files=1))
    assert json.loads((folder / "index.json").read_text())["split"] == "position"
    assert {rule: entry["documents"] for rule, entry in summary_of(folder)["curation"].items()} == {"duplicate": 200}


def test_a_document_in_both_splits_is_read_once(tmp_path):
    texts = [f"document {n} " * 100 + "\nrights\n" for n in range(3)]
    folder = prepared(write(tmp_path / "notes", texts), curate=CurateConfig(drop_lines="rights"))
    assert summary_of(folder)["read"] == {"documents": 3, "bytes": len("".join(texts))}


def test_what_is_left_out_trains_no_tokenizer(tmp_path):
    texts = [f"document {i} of plain words\n" for i in range(50)]
    copies = ["qqxzqqxz jjkvjjkv " * 50] * 30 + ["#" * 400 + "\u2603"]
    corpus = write(tmp_path / "notes", texts + copies)
    rules = CurateConfig(max_symbols=0.5)
    folder = prepared(corpus, curate=rules, val_fraction=0.0, tokenizer=TokenizerConfig(kind="char"))
    tokens = build.load(folder / "tokenizer")
    characters = {tokens.token_bytes(number) for number in range(tokens.vocab_size)}
    assert {b"q", b"j"} <= characters and not {b"#", "\u2603".encode()} & characters
    assert [document.text for document in read(folder, "train")] == [*texts, copies[0]]
    assert summary_of(folder)["curation"]["duplicate"]["documents"] == 29


def test_settings_of_curation_are_part_of_the_fingerprint(tmp_path):
    corpus = write(tmp_path / "notes", [f"text {i}" for i in range(100)])
    rules = [CurateConfig(), CurateConfig(overlap=False), CurateConfig(min_characters=1), CurateConfig(line_copies=9)]
    assert len({prepared(corpus, curate=rule) for rule in rules}) == len(rules)
    assert prepared(corpus, curate=CurateConfig()) == prepared(corpus)


def test_a_document_that_a_rule_drops_counts_for_the_fingerprint_too(tmp_path):
    texts = [f"text number {i}" for i in range(100)]
    corpus, rules = write(tmp_path / "notes", [*texts, "a"]), CurateConfig(min_characters=5)
    first = prepared(corpus, curate=rules)
    write(corpus, [*texts, "b"])
    assert prepared(corpus, curate=rules) != first


def test_a_corpus_of_which_nothing_is_left_is_one_line(tmp_path):
    corpus = write(tmp_path / "notes", [f"text {i}" for i in range(100)])
    with pytest.raises(InputError, match=r"none of its 100 documents is left \(min_characters 100\)") as caught:
        prepared(corpus, curate=CurateConfig(min_characters=1000))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"curate\.min_letters=3"):
        prepared(corpus, curate=CurateConfig(min_letters=3))


def test_a_picture_is_named_only_where_one_was_drawn(tmp_path):
    corpus = write(tmp_path / "notes", [f"text {i}" for i in range(100)])
    assert "report.png" not in (prepared(corpus) / "report.md").read_text()

    def show(summary, picture):
        assert summary["splits"]["train"]["documents"] > 50
        picture.write_bytes(b"drawn")

    config = PrepareConfig(corpus=str(corpus), datasets=str(tmp_path / "other"), tokenizer=TokenizerConfig("byte"))
    folder = prepare(config, say=[].append, show=show)
    assert (folder / "report.png").read_bytes() == b"drawn" and "(report.png)" in (folder / "report.md").read_text()
    prepare(config, say=[].append, show=None)  # found: nothing is shown


def test_what_could_not_be_read_is_a_matter_to_decide(tmp_path):
    corpus = write(tmp_path / "notes", [f"text {i}" for i in range(50)])
    (corpus / "latin.txt").write_bytes("Über".encode("latin-1"))
    (corpus / "torn.jsonl").write_text('{"text": "a"}\n{"text": \n')
    text = (prepared(corpus, max_bad_lines=1) / "report.md").read_text().split("## To decide")[1].split("##")[0]
    assert "**1 document** (4 bytes), such as `latin.txt`, left out for not being UTF-8" in text
    assert "iconv" in text and "`invalid_utf8=replace`" in text
    assert "**1 line of JSON**" in text and "`torn.jsonl:2`, broken" in text
    text = (prepared(corpus, max_bad_lines=1, invalid_utf8="replace") / "report.md").read_text()
    assert "`latin.txt`, not UTF-8: U+FFFD stands for" in text.split("## To decide")[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_to_decide_and_patterns_that_match_nothing_are_said(tmp_path, workers):
    corpus, said = write(tmp_path / "notes", [f"text {i}\nPatient: {i}" for i in range(50)]), []
    rules = CurateConfig(drop_lines=["Patient", "text 1*"])
    folder = prepared(corpus, said=said, curate=rules, workers=workers)
    wanted = "drop_lines: 'Patient' matched no line; patterns match whole lines: '*Patient*' would match"
    assert sum(line.startswith(wanted) for line in said) == 1
    number = (folder / "report.md").read_text().split("## To decide")[1].split("##")[0].count("\n- ")
    assert (
        said[-1] == f"{number} {'findings need' if number > 1 else 'finding needs'} a decision: {folder / 'report.md'}"
    )
    clean = write(tmp_path / "clean", [f"text {i * 7919}" for i in range(50)])
    prepared(clean, said=said, tokenizer=TokenizerConfig("byte"), val_fraction=0.0, curate=CurateConfig())
    assert ("a decision" in said[-1]) == (
        "To decide" in (next((tmp_path / "datasets").glob("clean-*")) / "report.md").read_text()
    )


def test_by_default_curation_leaves_the_text_of_documents_as_it_is():
    rules, changed, empty = CurateConfig(), 0, 0
    for document in documents("pystdlib", include="[a-e]*"):
        text, removed = clean(document.text, rules)
        changed += text != document.text or bool(removed)
        empty += refuse(text, rules) is not None
    assert (changed, empty) == (0, 0)


def test_how_much_is_looked_at_closely_is_bounded():
    assert looked_at(100, 1_000_000) == 1
    assert looked_at(300_000, 32_000_000) == 1
    assert looked_at(10_000, 64_000_000) == pytest.approx(0.5)
    assert looked_at(40_000, 400_000_000) == pytest.approx(0.1)
    assert looked_at(400_000, 2_000_000_000) == pytest.approx(0.032)
    assert looked_at(250, 2_000_000_000) == pytest.approx(0.04)  # ten of them
    assert looked_at(1, 2_000_000_000) == 1
