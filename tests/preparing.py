"""Helpers for tests of preparation: a config, a preparation, and the documents read back."""

from __future__ import annotations

from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.tokenizers import build
from data.tokenizers.build import TokenizerConfig


def config(tmp_path, **settings) -> PrepareConfig:
    defaults = {"corpus": str(tmp_path / "notes"), "datasets": str(tmp_path / "datasets")}
    return PrepareConfig(**(defaults | {"tokenizer": TokenizerConfig(kind="byte")} | settings))


def quiet(line: str) -> None:
    pass


def run(tmp_path, **settings):
    return prepare(config(tmp_path, **settings), say=quiet)


def published(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "datasets").iterdir() if not path.name.startswith(".lock"))


def read(directory, split) -> dict[str, list[str]]:
    """Returns the texts of a split by document name, decoded from the tokens at the stored offsets."""
    tokens = build.load(directory / "tokenizer")
    opened = open_split(directory, split)
    ids = opened.tokens[:]
    assert ids[0] == tokens.end_id and ids[-1] == tokens.end_id
    offsets = opened.document_offsets
    assert all(ids[offset - 1] == tokens.end_id for offset in offsets)
    found: dict[str, list[str]] = {}
    stops = [*offsets[1:].tolist(), opened.n_tokens]
    for name, start, stop in zip(opened.document_names, offsets.tolist(), stops, strict=True):
        found.setdefault(name, []).append(tokens.decode(ids[start : stop - 1].tolist()))
    assert opened.n_bytes == sum(len(text.encode()) for texts in found.values() for text in texts)
    assert opened.documents[:, 1].tolist() == [len(texts[0].encode()) for texts in found.values()]
    return found


def folder_of(directory) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
