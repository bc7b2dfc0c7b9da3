"""New properties, each of which fails before the patch or under the mutation that it is named for."""

from __future__ import annotations

import io
import json
import sys

import pytest

from data import InputError, corpora, formats
from data.corpora import Corpus, documents
from data.curate import CurateConfig
from data.pool import Pool
from data.reading import LeftOut, Reading
from data.tokenizer import TokenizerConfig, build

from .preparing import config, quiet, run
from .test_duplicates import found, text_of, with_changes


class Unloadable:
    def __reduce__(self):
        return __import__, ("no_such_module_at_all",)


def test_what_a_worker_cannot_load_is_an_error_and_no_wait():
    with Pool(2) as pool:
        with pytest.raises(RuntimeError, match="no_such_module_at_all"):
            list(pool.map(len, [Unloadable(), "a"]))


def test_the_working_directory_is_not_where_workers_import_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.py").write_text("raise SystemExit")
    with Pool(2) as pool:
        assert [n for _, n in pool.map(len, ["a", "bb"])] == [1, 2]


def test_bytes_that_go_on_and_on_are_no_endless_character(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST_DOCUMENT", 500)
    (tmp_path / "x").write_bytes(b"\x80" * 2000)
    (tmp_path / "y").write_text("why")
    left_out = LeftOut()
    assert [d.name for d in documents(str(tmp_path), left_out=left_out)] == ["y"]
    assert sum(size for _, size in left_out.counts.values()) == 2000


def test_blocks_are_small_in_memory_too(tmp_path):
    import gzip

    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1_000_000))
    with Corpus(str(tmp_path / "x.jsonl.gz"), Reading(), cache=tmp_path) as corpus:
        assert max(sum(len(p.content) for p in b.pieces) for b in corpus.blocks()) < 4 << 20


@pytest.mark.parametrize("first", ['{"body": "cut sho', "", '{"body": "' + "w " * 600_000 + '"}'])
def test_json_lines_on_standard_input_are_seen_whatever_the_first(tmp_path, monkeypatch, first):
    content = "\n".join([first, *(json.dumps({"body": f"t {n}"}) for n in range(40))])
    stdin = type("S", (), {"buffer": io.BytesIO(content.encode()), "isatty": lambda self: False})()
    monkeypatch.setattr(sys, "stdin", stdin)
    with Corpus("-", Reading(text_field="body"), cache=tmp_path) as corpus:
        assert {piece.kind for block in corpus.blocks() for piece in block.pieces} == {formats.LINES}


def test_excluded_files_need_not_be_readable(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(b"damaged")
    (tmp_path / "b.txt").write_text("b")
    assert [d.name for d in documents(str(tmp_path), exclude="*.gz")] == ["b.txt"]


def test_no_near_copy_of_validation_stays_because_it_is_there_twice():
    import random

    rng = random.Random(1)
    held = text_of(rng, 300)
    near = with_changes(held, rng, 25)
    copies = found([held, near, near], val={0}, config=CurateConfig(near_duplicates=True, exact_duplicates=False))
    assert {i: c.removed for i, c in copies.items()} == {1: True, 2: True}
    assert {i: c.removed for i, c in found([held] * 3, val={0}, config=CurateConfig(overlap=False)).items()} == {
        1: False, 2: True
    }  # fmt: skip


def test_a_document_in_both_splits_is_read_once(tmp_path):
    (tmp_path / "notes").mkdir()
    for n in range(3):
        (tmp_path / "notes" / f"{n}").write_text(f"document {n} " * 100 + "\nrights\n")
    directory = run(tmp_path, curate=CurateConfig(drop_lines="rights"))
    size = sum(path.stat().st_size for path in (tmp_path / "notes").iterdir())
    assert json.loads((directory / "report.json").read_text())["read"] == {"documents": 3, "bytes": size}


def test_a_failure_in_reading_is_not_sentencepieces():
    def texts(error):
        yield "some words and more words " * 50
        raise error

    for error in (InputError("changed"), KeyboardInterrupt(), OSError("gone")):
        with pytest.raises(type(error)) as caught:
            build(TokenizerConfig("sentencepiece", vocab_size=300), texts(error))
        assert caught.value is error


def test_a_share_of_symbols_is_exact():
    from data.curate import refuse

    assert all(
        refuse("a" * n + "1" * m, CurateConfig(max_symbols=0.0)) is None for n in range(30) for m in range(1, 30)
    )


def test_where_each_document_is_on_both_sides_none_is_a_copy_in_validation(tmp_path):  # is_val & whole
    (tmp_path / "notes").mkdir()
    texts = [f"{n} words" for n in range(200)] + ["one that is long " * 5000]
    (tmp_path / "notes" / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts + texts[:200]))
    directory = run(tmp_path)
    assert json.loads((directory / "index.json").read_text())["split"] == "position"
    curation = json.loads((directory / "report.json").read_text())["curation"]
    assert {rule: entry["documents"] for rule, entry in curation.items()} == {"duplicate": 200}


@pytest.mark.parametrize("change", ["more", "fewer", "shorter"])
def test_files_that_come_or_go_meanwhile_are_noticed(tmp_path, monkeypatch, change):
    from data import prepare as preparation
    from data import tokenizer

    monkeypatch.setattr(corpora, "MOST_PIECES", 10)
    notes = tmp_path / "notes"
    notes.mkdir()
    for n in range(30):
        (notes / f"{n:02}.jsonl").write_text(f'{{"text": "{n} a"}}\n{{"text": "{n} b"}}\n')
    make = tokenizer.build

    def then(*arguments, **_):
        if change == "more":
            for n in range(30, 45):
                (notes / f"{n}.jsonl").write_text('{"text": "new"}\n')
        elif change == "fewer":
            for n in range(20, 30):
                (notes / f"{n}.jsonl").unlink()
        else:
            (notes / "29.jsonl").write_text('{"text": "29 a"}\n')
        return make(*arguments)

    monkeypatch.setattr(preparation.tokenizers, "build", then)
    with pytest.raises(InputError, match={"more": "changed|grew", "fewer": "vanished", "shorter": "vanished"}[change]):
        preparation.prepare(config(tmp_path), say=quiet)
