"""Recognizes by content the files and folders that this program or wandb wrote, so that no corpus contains them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

OWN = "written by this program: name it to read it"  # a reason to leave a file out
MAX_BYTES = 8 << 20  # larger files are not parsed

# A folder with a file of this name that holds these fields is a prepared corpus, a saved step or a tokenizer.
MANIFESTS = {
    "index.json": {"format", "fingerprint", "tokenizer", "splits"},
    "manifest.json": {"format", "step", "files"},
    "tokenizer.json": {"format", "kind", "vocab_size", "special_tokens", "sha256"},
}
RUN_FILES = {"config.yaml", "metrics.jsonl", "references.json", "timing.json", "loss.png", "latest", "best"}
WANDB_RUN = re.compile(r"(offline-)?run-\d{8}_\d{6}-\w+")

# How json= and out= files start, and the fields of the first object: of sample.py and of scripts.
RESULT_STARTS = (b'{\n "', b'[\n {\n  "', b'{"version"')
RESULT_FIELDS = (
    {"text", "tokens", "log_probabilities"},
    {"prompt", "words", "continues", "unexplored"},
    {"prompt", "text", "tokens", "bits_per_byte"},
    {"examples", "questions", "accuracies"},
    {"checkpoint", "loss", "bits_per_byte"},
    {"checkpoint", "accuracy", "accuracy_low"},
    {"bytes", "tokenizers"},
    {"version", "model", "added_tokens"},
    {"difference", "margin", "verdict"},
)
ONLY_FIELDS = ({"prompt", "tokens"}, {"prompt", "continuations"}, {"prompt", "options"})  # too common as a subset


def is_own_folder(folder: str, names: Collection[str]) -> bool:
    """True for a run directory, a saved step, a prepared corpus, a tokenizer, and the folders of wandb.

    names: of the files and folders in it.
    """
    return (
        _is_run(folder, names)
        or any(name in names and fields <= _fields(Path(folder, name)) for name, fields in MANIFESTS.items())
        or _is_wandb_run(names)
        or any(WANDB_RUN.fullmatch(name) and _is_wandb_run(visible_names(Path(folder, name))) for name in names)
    )


def is_only_own(folder: str, names: Collection[str]) -> bool:
    """True for a folder that this program wrote, except a run directory with other files in it (run_dir=.)."""
    if not _is_run(folder, names):
        return is_own_folder(folder, names)
    others = (Path(folder, name) for name in names if name not in RUN_FILES)
    return all(is_own_folder(str(path), visible_names(path)) for path in others)


def own_files(folder: str, names: Collection[str]) -> set[str]:
    """Returns the names of files of results, and in a folder that is also a run directory, of the run's files."""
    found = RUN_FILES.intersection(names) if _is_run(folder, names) else set()
    for name in names:
        if not name.endswith((".json", ".yaml")):
            continue
        path = Path(folder, name)
        if name.endswith(".about.json") and {"prompts", "checkpoint"} <= _fields(path):
            outputs = name.removesuffix(".about.json")
            found |= {name, outputs, f"{outputs}.partial"}
        elif _head(path).startswith(RESULT_STARTS):
            fields = _fields(path)
            if fields in ONLY_FIELDS or any(wanted <= fields for wanted in RESULT_FIELDS):
                found.add(name)
        elif name == "multirun.yaml" and _head(path).startswith(b"hydra:"):
            found.add(name)
    return found


def _is_run(folder: str, names: Collection[str]) -> bool:
    if "config.yaml" not in names:
        return False
    has_metrics = "metrics.jsonl" in names and _head(Path(folder, "metrics.jsonl")).startswith(b'{"step"')
    return has_metrics or re.search(rb"^run_dir:", _head(Path(folder, "config.yaml")), re.MULTILINE) is not None


def _is_wandb_run(names: Collection[str]) -> bool:
    return any(name.startswith("run-") and name.endswith(".wandb") for name in names)


def visible_names(folder: Path) -> list[str]:
    """Returns the names of the files and folders in a folder, except hidden ones."""
    with suppress(OSError):
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    return []


def _head(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(1 << 16)
    return b""


def _fields(path: Path) -> set[str]:
    """The fields of a JSON object, or of the first one in a list; nothing for other content."""
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            content = json.loads(path.read_bytes())
            first = content[0] if isinstance(content, list) and content else content
            return set(first) if isinstance(first, dict) else set()
    return set()
