"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import InputError
from data.files import new_path


def test_a_new_folder_or_file_appears_only_if_the_body_succeeds(tmp_path):
    with new_path(tmp_path / "a" / "folder") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("1")
        assert not (tmp_path / "a" / "folder").exists()
    with new_path(tmp_path / "file") as temporary:
        temporary.write_text("2")
    assert (tmp_path / "a" / "folder" / "x").read_text() == "1" and (tmp_path / "file").read_text() == "2"
    before = sorted(tmp_path.rglob("*"))
    for make in (lambda path: path.mkdir(), lambda path: path.write_text("half")):
        with pytest.raises(RuntimeError), new_path(tmp_path / "b") as temporary:
            make(temporary)
            raise RuntimeError
    assert sorted(tmp_path.rglob("*")) == before


def test_what_exists_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name in ("file", "folder"):
        with pytest.raises(InputError, match="exists already"), new_path(tmp_path / name):
            raise AssertionError("the body must not run")
    with new_path(tmp_path / "folder" / "inner") as temporary:  # an empty folder may be there
        temporary.mkdir()
    assert (tmp_path / "file").read_text() == "mine"


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(InputError, match="exists already"), new_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "x").write_text("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "x").read_text() == "mine"


def test_the_folder_of_the_shell_and_links_are_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="name a new folder"), new_path(Path(".")):
        raise AssertionError("the body must not run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("link", "broken"):
        with pytest.raises(InputError, match="exists already"), new_path(tmp_path / name):
            raise AssertionError("the body must not run")
