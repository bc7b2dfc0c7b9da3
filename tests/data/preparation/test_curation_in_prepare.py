"""Curation within preparation: the corpus has the remaining documents, and the report says what was removed."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from data import InputError
from data.corpus.corpora import Document, documents
from data.curation.curate import CurateConfig
from data.preparation.config import PrepareConfig
from data.preparation.pipeline import report_sample_fraction
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.preparation.splitting import Splitting
from data.tokenizers import build
from data.tokenizers.build import TokenizerConfig
from tests import messy
from tests.survey import survey


def write(folder: Path, texts: list[str], *, files: int = 3) -> Path:
    """Writes the texts as JSON Lines, divided among some files."""
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
    """Returns the documents of a split."""
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
def test_a_prepared_corpus_equals_the_survey(tmp_path, monkeypatch, rules):
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
        in_val=lambda document: splitting.is_candidate(document.name, sha256(document.text.encode()).digest()),
    )
    assert len(splits["val"]) > 10 and splits == kept
    found = summary_of(folder)
    for split in splits:
        found["splits"][split]["sources"] = surveyed["splits"][split]["sources"] = {}
    assert found == json.loads(json.dumps(surveyed))


def test_the_number_of_processes_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data.corpus.corpora.BLOCK", 20_000)
    corpus = write(tmp_path / "notes", [document.text for document in messy.documents(120)])
    rules = CurateConfig(min_characters=20, repair_mojibake=True, line_copies=1)
    tokens = TokenizerConfig(kind="bpe", vocab_size=400)
    one, two = (
        prepared(corpus, datasets=f"datasets{workers}", curate=rules, tokenizer=tokens, workers=workers)
        for workers in (1, 2)
    )
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert {Path("report.json"), Path("report.md")} <= set(files)
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_copies_are_removed_and_training_has_no_copy_of_validation(tmp_path):
    texts = [f"document {i}: " + f"words {i % 7} " * 20 for i in range(60)]
    corpus = tmp_path / "notes"
    corpus.mkdir()
    for number, text in enumerate(texts):
        (corpus / f"{number:02d}.txt").write_text(text)
    (corpus / "00-again.txt").write_text(texts[7])  # sorted before 07.txt, so this one stays
    (corpus / "zz-50.txt").write_text(texts[50])  # 50.txt is held out
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
    assert any("curation removed 2 of 62 documents" in line for line in said)
    assert "07.txt (of 00-again.txt)" in (folder / "report.md").read_text()


def test_a_position_split_has_no_copies_in_validation(tmp_path):
    texts = [f"{n} words" for n in range(200)] + ["one that is long " * 5000]
    folder = prepared(write(tmp_path / "notes", texts + texts[:200], files=1))
    assert json.loads((folder / "index.json").read_text())["split"] == "position"
    assert {rule: entry["documents"] for rule, entry in summary_of(folder)["curation"].items()} == {"duplicate": 200}


def test_a_document_in_both_splits_counts_once(tmp_path):
    texts = [f"document {n} " * 100 + "\nrights\n" for n in range(3)]
    folder = prepared(write(tmp_path / "notes", texts), curate=CurateConfig(drop_lines="rights"))
    assert summary_of(folder)["read"] == {"documents": 3, "bytes": len("".join(texts))}


def test_removed_documents_do_not_train_the_tokenizer(tmp_path):
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


def test_curation_settings_are_part_of_the_fingerprint(tmp_path):
    corpus = write(tmp_path / "notes", [f"text {i}" for i in range(100)])
    rules = [CurateConfig(), CurateConfig(overlap=False), CurateConfig(min_characters=1), CurateConfig(line_copies=9)]
    assert len({prepared(corpus, curate=rule) for rule in rules}) == len(rules)
    assert prepared(corpus, curate=CurateConfig()) == prepared(corpus)


def test_dropped_documents_are_part_of_the_fingerprint(tmp_path):
    texts = [f"text number {i}" for i in range(100)]
    corpus, rules = write(tmp_path / "notes", [*texts, "a"]), CurateConfig(min_characters=5)
    first = prepared(corpus, curate=rules)
    write(corpus, [*texts, "b"])
    assert prepared(corpus, curate=rules) != first


def test_a_corpus_with_nothing_left_is_one_line(tmp_path):
    corpus = write(tmp_path / "notes", [f"text {i}" for i in range(100)])
    with pytest.raises(InputError, match=r"curation removed all of its 100 documents \(min_characters 100\)") as caught:
        prepared(corpus, curate=CurateConfig(min_characters=1000))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"curate\.min_letters=3"):
        prepared(corpus, curate=CurateConfig(min_letters=3))


def test_the_report_links_a_picture_only_if_there_is_one(tmp_path):
    corpus = write(tmp_path / "notes", [f"text {i}" for i in range(100)])
    assert "report.png" not in (prepared(corpus) / "report.md").read_text()

    def show(summary, picture):
        assert summary["splits"]["train"]["documents"] > 50
        picture.write_bytes(b"drawn")

    config = PrepareConfig(corpus=str(corpus), datasets=str(tmp_path / "other"), tokenizer=TokenizerConfig("byte"))
    folder = prepare(config, say=[].append, show=show)
    assert (folder / "report.png").read_bytes() == b"drawn" and "(report.png)" in (folder / "report.md").read_text()
    prepare(config, say=[].append, show=None)  # found: nothing is shown


def findings_of(folder: Path) -> str:
    """Returns the section of report.md with the findings, empty if there are none."""
    _, _, text = (folder / "report.md").read_text().partition("## Findings")
    return text.partition("##")[0]


def test_skipped_documents_are_findings(tmp_path):
    corpus = write(tmp_path / "notes", [f"text {i}" for i in range(50)])
    (corpus / "latin.txt").write_bytes("Über".encode("latin-1"))
    (corpus / "torn.jsonl").write_text('{"text": "a"}\n{"text": \n')
    text = findings_of(prepared(corpus, max_bad_lines=1))
    assert "**1 document** (4 bytes), such as `latin.txt`: skipped, because the text is not UTF-8" in text
    assert "iconv" in text and "`invalid_utf8=replace`" in text
    assert "**1 broken JSON line**" in text and "`torn.jsonl:2`: skipped" in text
    text = findings_of(prepared(corpus, max_bad_lines=1, invalid_utf8="replace"))
    assert "`latin.txt`: not UTF-8, so invalid bytes were replaced" in text


@pytest.mark.parametrize("workers", [1, 2])
def test_findings_and_unmatched_patterns_are_printed(tmp_path, workers):
    corpus, said = write(tmp_path / "notes", [f"text {i}\nPatient: {i}" for i in range(50)]), []
    rules = CurateConfig(drop_lines=["Patient", "text 1*"])
    folder = prepared(corpus, said=said, curate=rules, workers=workers)
    expected = "curate.drop_lines: 'Patient' matched no line; a pattern must match the whole line: '*Patient*' would"
    assert sum(line.startswith(expected) for line in said) == 1
    number = findings_of(folder).count("\n- ")
    found = "findings about the text, each" if number > 1 else "finding about the text,"
    assert said[-1] == f"{number} {found} with a suggestion: {folder / 'report.md'}"
    clean = prepared(write(tmp_path / "clean", [f"text {i * 7919}" for i in range(50)]), said=said, val_fraction=0.0)
    assert ("a suggestion" in said[-1]) == bool(findings_of(clean))


def test_the_sample_for_the_detailed_statistics_is_bounded():
    assert report_sample_fraction(100, 1_000_000) == 1
    assert report_sample_fraction(300_000, 32_000_000) == 1
    assert report_sample_fraction(10_000, 64_000_000) == pytest.approx(0.5)
    assert report_sample_fraction(40_000, 400_000_000) == pytest.approx(0.1)
    assert report_sample_fraction(400_000, 2_000_000_000) == pytest.approx(0.032)
    assert report_sample_fraction(250, 2_000_000_000) == pytest.approx(0.04)  # ten of them
    assert report_sample_fraction(1, 2_000_000_000) == 1
