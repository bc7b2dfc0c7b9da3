"""Fixtures for the scripts."""

from __future__ import annotations

import pytest

from tests.conftest import POEM
from tests.programs import NANO, ok


@pytest.fixture(scope="session")
def better(tmp_path_factory):
    """A run that has learned a little of the poem, with another tokenizer and context than `trained`."""
    folder = tmp_path_factory.mktemp("better")
    (folder / "poem.txt").write_text("".join(f"{number}. {POEM}" for number in range(30)), encoding="utf-8")
    options = [*NANO, "tokenizer=byte", "model.context=24", "steps=30", f"run_dir={folder / 'run'}"]
    ok("train", f"corpus={folder / 'poem.txt'}", f"datasets={folder / 'datasets'}", *options)
    return folder / "run"
