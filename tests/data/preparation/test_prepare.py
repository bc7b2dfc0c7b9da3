"""Preparation: splits, shards, the fingerprint, and the tokenizer."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest

from data import InputError
from data.curation.curate import CurateConfig
from data.preparation import shards
from data.preparation.manifest import corpus_name
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.tokenizers import build
from data.tokenizers.build import TokenizerConfig
from tests.preparing import config, folder_of, published, quiet, read, run


def test_every_document_is_in_exactly_one_split_and_reads_back(notes, tmp_path):
    directory = run(tmp_path)
    assert json.loads((directory / "index.json").read_text())["split"] == "hash"
    train, val = read(directory, "train"), read(directory, "val")
    assert train and val and not set(train) & set(val)
    assert {name: texts[0] for name, texts in (train | val).items()} == {p.name: p.read_text() for p in notes.iterdir()}


def test_a_hash_split_keeps_equal_documents_together_and_is_stable(notes, tmp_path):
    no_rules = CurateConfig(exact_duplicates=False)
    before = read(run(tmp_path, curate=no_rules), "val")
    for path in sorted(notes.iterdir()):
        (notes / f"copy-{path.name}").write_text(path.read_text())
    after = read(run(tmp_path, curate=no_rules), "val")
    assert set(after) == set(before) | {f"copy-{name}" for name in before}


def test_few_documents_are_split_by_position_in_characters(tmp_path):
    (tmp_path / "notes").mkdir()
    text = "".join(random.Random(0).choices("abcé✓\n", k=1001))
    (tmp_path / "notes" / "only.txt").write_bytes(text.encode())
    said: list[str] = []
    directory = prepare(config(tmp_path, val_fraction=0.3), say=said.append)
    cut = int(1001 * 0.7)
    assert read(directory, "train") == {"only.txt": [text[:cut]]}
    assert read(directory, "val") == {"only.txt": [text[cut:]]}
    [split] = [number for number, line in enumerate(said) if "the last 30% of each document" in line]
    assert "building the tokenizer" in said[split + 1]
    assert "by position" in (directory / "report.md").read_text()


def test_val_include_selects_the_validation_documents(notes, tmp_path):
    directory = run(tmp_path, val_include=["00?.txt", "05*"])
    assert sorted(read(directory, "val")) == sorted(f"{i:03d}.txt" for i in [*range(10), *range(50, 60)])
    assert len(read(directory, "train")) == 80
    for pattern in ("nothing*", "*"):
        with pytest.raises(InputError, match="val_include="):
            run(tmp_path, val_include=pattern)


def test_val_fraction_0_has_no_validation_split(notes, tmp_path):
    directory = run(tmp_path, val_fraction=0.0)
    assert len(read(directory, "train")) == 100
    with pytest.raises(InputError, match="no val split"):
        open_split(directory, "val")


def test_a_char_tokenizer_has_the_validation_characters(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a" * 90 + "z" * 10)
    directory = run(tmp_path, tokenizer=TokenizerConfig(kind="char"))
    assert read(directory, "val") == {"a.txt": ["z" * 10]}


def test_an_unchanged_corpus_is_reused_and_a_changed_one_is_prepared(notes, tmp_path):
    first = run(tmp_path)
    stamp = (first / "index.json").stat().st_mtime_ns
    said: list[str] = []
    assert prepare(config(tmp_path), say=said.append) == first and "already prepared" in said[-1]
    assert (first / "index.json").stat().st_mtime_ns == stamp
    content = (notes / "042.txt").read_bytes()
    (notes / "042.txt").write_bytes(content.replace(b"document", b"documend"))
    second = run(tmp_path)
    assert second != first and first.is_dir()
    (notes / "042.txt").write_bytes(content)
    assert run(tmp_path) == first
    (notes / "042.txt").rename(notes / "042a.txt")  # sorted as before
    assert run(tmp_path) not in (first, second)


def test_settings_are_part_of_the_fingerprint(notes, tmp_path):
    folders = [run(tmp_path), run(tmp_path, val_fraction=0.2), run(tmp_path, tokenizer=TokenizerConfig(kind="char"))]
    folders += [run(tmp_path, exclude="000*"), run(tmp_path, val_include="001*")]
    assert len(set(folders)) == len(folders)


def test_an_existing_tokenizer_is_used_unchanged(notes, tmp_path):
    first = run(tmp_path, tokenizer=TokenizerConfig(kind="char"))
    second = run(tmp_path, tokenizer=TokenizerConfig(kind="char", path=str(first / "tokenizer")), exclude="000*")
    assert build.load(second / "tokenizer").fingerprint == build.load(first / "tokenizer").fingerprint


def test_slices_cross_shards(notes, tmp_path, monkeypatch):
    whole = open_split(run(tmp_path), "train").tokens[:].copy()
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    directory = run(tmp_path, val_fraction=0.1000001)
    opened = open_split(directory, "train", verify=True)
    assert len(list(directory.glob("train_0*.bin"))) == -(-len(whole) // 100) > 3
    assert len(opened.tokens) == len(whole) and np.array_equal(opened.tokens[:], whole)
    for start, stop in [(0, 1), (99, 101), (100, 200), (50, 450), (250, 10**9), (7, 7), (10**9, 10**9)]:
        assert np.array_equal(opened.tokens[start:stop], whole[start:stop])


class WideTokenizer:
    """A character tokenizer whose ids are code points, for any vocab_size."""

    end_id, kind, fingerprint, knows_all, allow_special = 0, "wide", "0", True, True

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def encode_batch(self, texts):
        return [np.array([ord(character) for character in text], np.int64) for text in texts]

    def token_bytes(self, number):
        return chr(number).encode(errors="replace")

    def decode_bytes(self, ids):
        return b"".join(map(self.token_bytes, ids.tolist()))

    def save(self, directory):
        directory.mkdir()


def use(monkeypatch, tokens):
    monkeypatch.setattr(build, "build", lambda *_, **__: tokens)
    monkeypatch.setattr(build, "load", lambda *_: tokens)


@pytest.mark.parametrize("vocab_size, dtype", [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_above_16_bits_are_stored_in_32(tmp_path, monkeypatch, vocab_size, dtype):
    (tmp_path / "notes").mkdir()
    text = "ab" * 50 + chr(vocab_size - 1)
    (tmp_path / "notes" / "a.txt").write_text(text)
    use(monkeypatch, WideTokenizer(vocab_size))
    directory = run(tmp_path, val_fraction=0.0)
    assert json.loads((directory / "index.json").read_text())["dtype"] == dtype
    assert open_split(directory, "train").tokens[1:-1].tolist() == [ord(character) for character in text]


def test_an_id_that_would_overflow_is_refused(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("ab" * 50 + chr(65_536 + 97))
    use(monkeypatch, WideTokenizer(65_536))
    with pytest.raises(InputError, match="65633"):
        run(tmp_path)
    assert published(tmp_path) == []


def test_all_wrong_settings_are_listed(tmp_path):
    problems = config(tmp_path, corpus=[], include=3, val_fraction=1.5).validate()
    assert [problem.split("=")[0] for problem in problems] == ["corpus", "include", "val_fraction"]
    with pytest.raises(InputError, match=r"corpus=.*val_fraction="):
        run(tmp_path, corpus="", val_fraction=-1.0)


def test_folder_names_have_plain_characters():
    assert corpus_name("shakespeare") == "shakespeare"
    assert corpus_name(["shakespeare", "/x/My notes (2024).txt"]) == "shakespeare-My-notes-2024"
    assert corpus_name("/x/notes/**/*.md") == "notes"
    assert corpus_name("/x/.jsonl") == "corpus"


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def test_the_number_of_processes_changes_nothing(notes, tmp_path, monkeypatch):
    (notes / "more.jsonl").write_text(lines(*(f"line {i} é" * (i % 9) for i in range(500))))
    monkeypatch.setattr("data.corpus.corpora.BLOCK", 1000)  # many blocks; some documents are empty
    tokens = TokenizerConfig(kind="char")  # test_curation_in_prepare.py does the same with bpe
    one = run(tmp_path, tokenizer=tokens, workers=1)
    two = prepare(config(tmp_path / "other", corpus=str(notes), tokenizer=tokens, workers=2), say=quiet)
    assert one.name == two.name
    assert folder_of(one) == folder_of(two)


def test_the_parts_of_a_split_are_its_sources(notes, tmp_path):
    (tmp_path / "b.txt").write_text("one document more, of another source")
    (tmp_path / "c.jsonl").write_text(lines(*(f"text {i}" for i in range(100))))
    sources = [str(notes), str(tmp_path / "b.txt"), str(tmp_path / "c.jsonl")]
    directory = run(tmp_path, corpus=sources)
    empty = 0
    for split in ("train", "val"):
        opened = open_split(directory, split)
        assert [part.name for part in opened.parts] == sources
        borders = [0, *(part.stop for part in opened.parts)]
        assert [part.start for part in opened.parts] == borders[:-1] and borders[-1] == opened.n_tokens
        for name, offset in zip(opened.document_names, opened.document_offsets, strict=True):
            (source,) = (n for n, part in enumerate(opened.parts) if part.start <= offset < part.stop)
            assert name.startswith(("notes/", "b.txt", "c.jsonl")[source])
            assert opened.document_at(int(offset)) == name
        empty += sum(part.start == part.stop for part in opened.parts)
    assert empty == 1  # b.txt is in one split


def test_a_tokenizer_is_trained_on_a_sample_of_the_training_text(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    texts = [f"{i} " + chr(97 + i % 26) * 50 for i in range(2000)]
    (tmp_path / "notes" / "x.jsonl").write_text(lines(*texts))
    seen: Counter[str] = Counter()
    original = build.build

    def spy(wanted, texts, counts):
        seen.update(counts)
        return original(wanted, texts, counts=counts)

    monkeypatch.setattr(build, "build", spy)
    said: list[str] = []
    tokens = TokenizerConfig(kind="bpe", vocab_size=280)
    directory = prepare(config(tmp_path, tokenizer=tokens, tokenizer_sample=20_000), say=said.append)
    numbers = {piece for piece in seen if piece.isdigit()}
    assert 200 < len(numbers) < 600 and "training the tokenizer on 2" in "".join(said)
    assert numbers <= {texts[0].split()[0] for texts in read(directory, "train").values()}
    assert sum(count for piece, count in seen.items() if not piece.isdigit()) == len(numbers)
    assert "The tokenizer was trained on 2" in (directory / "report.md").read_text()


def test_a_vocabulary_that_is_too_large_is_lowered_with_a_message(notes, tmp_path):
    said: list[str] = []
    directory = prepare(config(tmp_path, tokenizer=TokenizerConfig(kind="bpe", vocab_size=5000)), say=said.append)
    size = build.load(directory / "tokenizer").vocab_size
    assert 257 < size < 5000
    assert any(f"tokenizer.vocab_size=5000 is lowered to {size}" in line for line in said)


def test_broken_lines_are_skipped_up_to_a_limit(tmp_path):
    (tmp_path / "notes").mkdir()
    path = tmp_path / "notes" / "x.jsonl"
    path.write_text(lines("a", "b") + "{oops\n" + lines("c") + '{"body": 1}\n' + lines("d"))
    with pytest.raises(InputError, match=r"x\.jsonl:3: not JSON"):
        run(tmp_path)
    with pytest.raises(InputError, match=r"x\.jsonl:5: no field 'text'.*\(1 before it"):
        run(tmp_path, max_bad_lines=1)
    said: list[str] = []
    directory = prepare(config(tmp_path, max_bad_lines=2, val_fraction=0.0), say=said.append)
    assert read(directory, "train") == {f"x.jsonl:{n}": [text] for n, text in ((1, "a"), (2, "b"), (4, "c"), (6, "d"))}
    assert any("x.jsonl:3 (broken line), x.jsonl:5 (broken line)" in line for line in said)
    assert "| broken line | 2 | 16 |" in (directory / "report.md").read_text()


class Passes:
    def __init__(self):
        self.log = []

    def begin(self, what, total):
        self.log.append([what, total, 0])

    def advance(self, n_bytes):
        self.log[-1][2] += n_bytes

    def end(self):
        self.log.append("end")


def test_each_pass_reports_its_progress(notes, tmp_path):
    passes = Passes()
    prepare(config(tmp_path, tokenizer=TokenizerConfig(kind="char")), say=quiet, progress=passes)
    size = sum(path.stat().st_size for path in notes.iterdir())
    names = ("reading", "tokenizer", "encoding")
    assert passes.log == [entry for name in names for entry in ([name, size, size], "end")]
