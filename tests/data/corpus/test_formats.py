"""Formats: the documents are the same whatever the compression, the container and the size of the chunks."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys

import pytest

from data import InputError
from data.corpus import chunks, corpora, formats, reading
from data.corpus.corpora import Corpus, documents
from data.corpus.reading import ReadOptions, Skipped, documents_of
from data.corpus.sources import File

TEXTS = ["one\ntwo", "ünï ✓ \u2028 x", "third\n\nparagraph\n"]


def texts(corpus, skipped=None, cache=None, **settings) -> dict[str, str]:
    skipped = Skipped() if skipped is None else skipped
    found = {}
    with Corpus(corpus, ReadOptions(**settings), cache=cache) as opened:
        for block in opened.blocks():
            for chunk in block.chunks:
                found |= {d.name: d.text for d in documents_of(chunk, opened.options, skipped)}
    return found


def refused(corpus, **settings) -> str:
    with pytest.raises(InputError) as caught:
        list(documents(str(corpus), **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def limit_documents(monkeypatch, n_bytes: int = 500) -> None:
    for module in (chunks, formats, reading):
        monkeypatch.setattr(module, "MAX_DOCUMENT", n_bytes)


def lines() -> bytes:
    return "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)).encode()


def zstd(content: bytes) -> bytes:
    packer = pytest.importorskip("zstandard").ZstdCompressor()
    return packer.compress(content[:20]) + packer.compress(content[20:])  # two frames, as `cat a.zst b.zst` gives


def parquet(path, column="text", values=tuple(TEXTS)) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    writer.write_table(pyarrow.table({"id": list(range(len(values))), column: list(values)}), path)


def test_every_compression_and_container_gives_the_same_documents(tmp_path):
    expected = {f"x.jsonl{suffix}:{n}": text for suffix in ("", ".gz", ".zst") for n, text in enumerate(TEXTS, start=1)}
    (tmp_path / "x.jsonl").write_bytes(lines())
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines()))
    (tmp_path / "x.jsonl.zst").write_bytes(zstd(lines()))
    (tmp_path / "y.txt.zst").write_bytes(zstd(TEXTS[2].encode()))
    parquet(tmp_path / "z.parquet")
    expected |= {"y.txt.zst": TEXTS[2]} | {f"z.parquet:{n}": text for n, text in enumerate(TEXTS, start=1)}
    assert texts(str(tmp_path)) == expected


def test_truncated_compressed_files_are_refused(tmp_path):
    for name, content in (("x.jsonl.gz", gzip.compress(lines())), ("x.jsonl.zst", zstd(lines()))):
        for cut in (9, len(content) // 2, len(content) - 1):
            (tmp_path / name).write_bytes(content[:cut])
            assert f"{name}: damaged" in refused(tmp_path / name)
    (tmp_path / "x.zst").write_bytes(b"no zstd at all")
    assert "x.zst: damaged zstd" in refused(tmp_path / "x.zst")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 and no more")
    assert "z.parquet: not a readable parquet" in refused(tmp_path / "z.parquet")


def test_compressed_parquet_is_refused(tmp_path):
    for name, compress in (("z.parquet.gz", gzip.compress), ("z.zst", zstd)):
        (tmp_path / name).write_bytes(compress(b"PAR1"))
        assert f"{name} is compressed; decompress it (.parquet files are" in refused(tmp_path / name)


def test_a_parquet_error_names_the_columns_and_empty_cells_are_skipped(tmp_path):
    parquet(tmp_path / "z.parquet", "body", ["a", None, "b"])
    assert "no column 'text'" in (message := refused(tmp_path / "z.parquet")) and "id, body" in message
    skipped = Skipped()
    assert texts(str(tmp_path), skipped, text_field="body") == {"z.parquet:1": "a", "z.parquet:3": "b"}
    assert skipped.counts == {"empty": [1, 0]}
    assert "row 1 is not text but int" in refused(tmp_path / "z.parquet", text_field="id")


def test_a_new_table_format_is_a_function_and_an_entry_in_tables(tmp_path, monkeypatch):
    def list_chunks(file, text_field):
        rows = (tmp_path / file.name).read_text().splitlines()
        yield chunks.Chunk(chunks.ROWS, file.path, file.name, file.explicit, file.n_bytes, 1, False, b"", rows)

    monkeypatch.setitem(formats.TABLES, ".list", list_chunks)
    monkeypatch.setitem(formats.TABLE_SIGNATURES, b"a list:", ".list")
    (tmp_path / "x.list").write_text("one\n\nthree\n")
    (tmp_path / "y").write_text("a list:\ntwo\n")
    assert texts(str(tmp_path)) == {"x.list:1": "one", "x.list:3": "three", "y:1": "a list:", "y:2": "two"}


@pytest.mark.parametrize("package, file", [("pyarrow", "a.parquet"), ("zstandard", "a.txt.zst")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package, file):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / file).write_bytes(b"content")
    extra = {"pyarrow": "[parquet]", "zstandard": "[zstd]"}[package]
    assert extra in (message := refused(tmp_path / file)) and package in message


def test_a_separator_divides_a_file(tmp_path):
    content = "first\nline\n<|>\nsecond\n<|>\r\n<|>\nnot <|>\n<|> not\nthird\n<|>"
    (tmp_path / "x.txt").write_text(content)
    expected = {"x.txt:1": "first\nline\n", "x.txt:4": "second\n", "x.txt:7": "not <|>\n<|> not\nthird\n"}
    assert texts(str(tmp_path), separator="<|>") == expected
    assert {d.name: d.text for d in documents(str(tmp_path), document_separator="<|>")} == expected
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(content.encode()))
    assert texts(str(tmp_path / "x.txt.gz"), separator="<|>") == {
        k.replace(":", ".gz:"): v for k, v in expected.items()
    }


def paragraphs(draw: random.Random) -> str:
    words = ["a", "bb", "é", "✓✓", "\n", "\n\n", "\r\n", " ", "---\n", "\n---\n"]
    return "".join(draw.choices(words, weights=[9, 9, 2, 2, 2, 1, 1, 9, 1, 3], k=draw.randrange(3000)))


@pytest.mark.parametrize("separator", [None, "---"])
def test_chunks_of_any_size_give_the_same_documents_and_lose_nothing(tmp_path, monkeypatch, separator):
    draw = random.Random(1)
    limit_documents(monkeypatch)
    for _ in range(20):
        content = paragraphs(draw)
        (tmp_path / "x.txt").write_bytes(content.encode())
        (tmp_path / "x.txt.gz").write_bytes(gzip.compress(content.encode()))
        found = []
        for size in (7, 100, 1 << 20):
            monkeypatch.setattr(formats, "CHUNK", size)
            for name in ("x.txt", "x.txt.gz"):
                read = texts(str(tmp_path / name), separator=separator)
                found.append({key.replace(".gz", ""): text for key, text in read.items()})
        assert all(other == found[0] for other in found[1:])
        joined = "".join(found[0].values())
        if separator is None:
            assert joined == content
        assert all(len(text.encode()) <= 500 for text in found[0].values())
        for name, text in found[0].items():  # a document's name ends in the line where it starts
            line = int(name.partition(":")[2] or 1)
            assert content.split("\n")[line - 1].endswith(text.partition("\n")[0]) or "\n" not in text


def test_a_long_text_in_json_is_split_like_a_text_file(tmp_path, monkeypatch):
    limit_documents(monkeypatch)
    text = "word " * 300
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "short"}))
    found = texts(str(tmp_path))
    assert list(found) == ["x.jsonl:1/1", "x.jsonl:1/2", "x.jsonl:1/3", "x.jsonl:2"]
    assert "".join(list(found.values())[:3]) == text
    monkeypatch.setattr(formats, "MAX_LINE", 1000)
    monkeypatch.setattr(formats, "CHUNK", 100)
    assert "a line of more than" in refused(tmp_path / "x.jsonl")


def test_invalid_utf8_is_refused_skipped_or_replaced(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"one\ntwo \xff\xfe\n")
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    skipped = Skipped()
    assert texts(str(tmp_path), skipped) == {"good.txt": "good", "x.jsonl:1": "fine"}
    assert skipped.counts == {"not UTF-8: convert it with iconv": [2, 24]}
    repaired = texts(str(tmp_path), skipped := Skipped(), invalid_utf8="replace")
    assert repaired["bad.txt"] == "one\ntwo \ufffd\ufffd\n" and repaired["x.jsonl:2"] == "\ufffd"
    assert skipped.counts == {"not UTF-8, replaced by U+FFFD": [2, 24]}
    with pytest.raises(InputError, match=r"bad\.txt:2: byte 0xff is not UTF-8"):
        texts(str(tmp_path), invalid_utf8="refuse")
    with pytest.raises(InputError, match=r"x\.jsonl:2: byte 0xff is not UTF-8"):
        texts(str(tmp_path / "x.jsonl"))


def test_a_large_binary_file_in_a_folder_is_not_read_to_its_end(tmp_path, monkeypatch):
    limit_documents(monkeypatch)
    monkeypatch.setattr(formats, "CHUNK", 100)
    (tmp_path / "a.bin").write_bytes(b"\0" * 5000)
    (tmp_path / "b.txt").write_text("text")
    skipped = Skipped()
    assert texts(str(tmp_path), skipped) == {"b.txt": "text"}
    assert skipped.examples == ["a.bin (binary)"] and skipped.counts == {"binary": [1, 5000]}


def test_continuation_bytes_without_end_are_still_split(tmp_path, monkeypatch):
    limit_documents(monkeypatch)
    (tmp_path / "x").write_bytes(b"\x80" * 2000)
    (tmp_path / "y").write_text("why")
    skipped = Skipped()
    assert list(texts(str(tmp_path), skipped)) == ["y"]
    assert sum(size for _, size in skipped.counts.values()) == 2000


def test_include_and_exclude_match_a_file_or_a_document_in_it(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(lines())
    (tmp_path / "y.txt").write_text("why")
    assert list(texts(str(tmp_path), include="*.jsonl")) == ["x.jsonl:1", "x.jsonl:2", "x.jsonl:3"]
    assert list(texts(str(tmp_path), include="*.jsonl", exclude="*:2")) == ["x.jsonl:1", "x.jsonl:3"]
    assert list(texts(str(tmp_path), exclude=["*.jsonl"])) == ["y.txt"]


class Input:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


def test_standard_input_is_spooled_and_its_format_detected(tmp_path, monkeypatch):
    for content, name in (
        (lines(), "stdin.jsonl"),
        (gzip.compress(lines()), "stdin.jsonl.gz"),
        (zstd(lines()), "stdin.jsonl.zst"),
    ):
        monkeypatch.setattr(sys, "stdin", Input(content))
        with Corpus("-", ReadOptions(), cache=tmp_path / "new") as corpus:
            for _ in range(2):  # it can be read again
                (block,) = corpus.blocks()
                found = [d for chunk in block.chunks for d in documents_of(chunk, corpus.options, Skipped())]
                assert [d.text for d in found] == TEXTS and found[2].name == f"{name}:3"
        assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr(sys, "stdin", Input(b"{not json}\nplain text"))
    assert texts("-", cache=tmp_path) == {"stdin": "{not json}\nplain text"}


@pytest.mark.parametrize("first", ['{"body": "cut sho', "", '{"body": "' + "w " * 600_000 + '"}'])
def test_json_lines_on_standard_input_are_detected_whatever_the_first_line(tmp_path, monkeypatch, first):
    content = "\n".join([first, *(json.dumps({"body": f"t {n}"}) for n in range(40))])
    monkeypatch.setattr(sys, "stdin", Input(content.encode()))
    with Corpus("-", ReadOptions(text_field="body"), cache=tmp_path) as corpus:
        assert {chunk.kind for block in corpus.blocks() for chunk in block.chunks} == {chunks.JSON_LINES}


def test_folders_are_walked_in_the_order_of_full_names(tmp_path):
    names = ["a/b.txt", "a-c.txt", "a.txt", "a/b/c.txt", "ab/x.txt", "a b.txt", "é.txt", "z/0/1/2.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(texts(str(tmp_path))) == sorted(names)


def test_a_block_has_one_source_and_about_block_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "BLOCK", 100)
    for source in ("one", "two"):
        (tmp_path / source).mkdir()
        for n in range(30):
            (tmp_path / source / f"{n:02}.txt").write_text("x" * 30)
    with Corpus([str(tmp_path / "one"), str(tmp_path / "two")], ReadOptions(), cache=tmp_path) as corpus:
        blocks = list(corpus.blocks())
        assert corpus.n_bytes() == sum(block.n_bytes for block in blocks) == 1800
    assert [block.source for block in blocks] == [0] * 10 + [1] * 10
    assert all(len(block.chunks) == 3 for block in blocks)
    assert File("p", "n", 1).place == "p"


def test_blocks_of_compressed_files_are_small_in_memory(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1_000_000))
    with Corpus(str(tmp_path / "x.jsonl.gz"), ReadOptions(), cache=tmp_path) as corpus:
        assert max(sum(len(p.content) for p in b.chunks) for b in corpus.blocks()) < 4 << 20
