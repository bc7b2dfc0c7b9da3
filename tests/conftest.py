"""What the tests share."""

from __future__ import annotations

import pytest
import torch

POEM = "Listen to your heart. Listen to your gut, your body; listen to the wind, that listens to nobody.\n"


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are faster on one thread, and then the tests do not fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def poem(tmp_path):
    """A corpus of one file, large enough for a context of 32."""
    path = tmp_path / "poem.txt"
    path.write_text("".join(f"{number}. {POEM}" for number in range(30)), encoding="utf-8")
    return path
