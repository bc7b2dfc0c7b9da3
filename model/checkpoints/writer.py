"""Writes checkpoints: a step is published complete or not at all, even if the process is killed while saving."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..config import ModelConfig
from ..distributed import sharded
from ..gpt import GPT
from .reader import FORMAT, read_pointer, sha256, steps
from .tensors import is_finite


class Peers:
    """The ranks that save together. After each action, all of them know whether it succeeded on every rank.

    With one writer, the other ranks write nothing and only learn the outcome.
    """

    def __init__(self, rank: int = 0, writers: int = 1) -> None:
        self.rank, self.writers = rank, writers
        # A separate group: the messages of a background save must not mix with those of the training loop.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def all_succeeded(self, succeeded: bool) -> bool:
        """True if all ranks succeeded; all of them must call this."""
        failed = torch.tensor([int(not succeeded)])
        if self.group is not None:
            dist.all_reduce(failed, group=self.group)
        return not failed

    def do(self, action: Callable[[], None]) -> None:
        """Runs `action` on each writer. Raises its error, or OSError if it failed on another rank."""
        error: BaseException | None = None
        try:
            action()
        except BaseException as caught:
            error = caught
        succeeded = self.all_succeeded(error is None) if self.writers > 1 else error is None
        if error is not None:
            raise error
        if not succeeded:
            raise OSError("another rank could not write its part")


@dataclass(frozen=True)
class Snapshot:
    """A copy of all that a save writes, so that training can continue and change the originals."""

    step: int
    config: ModelConfig
    files: dict[str, dict[str, Tensor]]  # tensors by file name; only those that this rank writes
    index: dict[str, str]  # the file name of every weight, if there are several files
    state: dict[str, Any] | None  # None: no training state, so that no run resumes from this step
    manifest: dict[str, Any]  # further entries of the manifest
    save_files: Sequence[Callable[[Path], None]]  # each writes its files into the step directory

    def is_finite(self) -> bool:
        """True if no tensor that this rank writes holds NaN or infinity."""
        return all(is_finite(tensor) for tensors in self.files.values() for tensor in tensors.values())


def snapshot(
    step: int, *, model: GPT, tensors: Mapping[str, Tensor], state: dict[str, Any], manifest: dict[str, Any],
    save_files: Sequence[Callable[[Path], None]], peers: Peers,
) -> Snapshot:  # fmt: skip
    """Copies weights and training state to CPU memory, about an equal part on each writer; all ranks must call this."""
    weights, index = copy_part(model.state_dict(), "model", peers.rank, peers.writers)
    train_state, _ = copy_part(tensors, "train_state", peers.rank, peers.writers)
    return Snapshot(step, model.config, weights | train_state, index, copy.deepcopy(state), manifest, save_files)


def copy_part(
    tensors: Mapping[str, Tensor], stem: str, rank: int, writers: int
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Returns copies of the tensors that this rank writes, by file name, and the file name of every tensor.

    One tensor after another, so that no rank holds more than one besides its own part, and sorted by name, so that
    equal models give equal files.
    """
    numbers = [f"-{number:05d}-of-{writers:05d}" for number in range(1, writers + 1)] if writers > 1 else [""]
    names = [f"{stem}{number}.safetensors" for number in numbers]
    sizes = [0] * writers
    mine: dict[str, Tensor] = {}
    index: dict[str, str] = {}
    for name in sorted(tensors):
        writer = sizes.index(min(sizes))
        sizes[writer] += tensors[name].numel() * 4
        index[name] = names[writer]
        value = sharded.full_tensor(tensors[name])
        if rank == writer:
            mine[name] = value.to("cpu", copy=True).contiguous()
    return ({names[rank]: mine} if rank < writers else {}), (index if writers > 1 else {})


def write(run_dir: Path, new: Snapshot, *, best: bool, keep_last: int, peers: Peers) -> Path:
    """Publishes RUN/step_N: temporary directory, every file flushed, rename, then `latest` (and `best`), then prune.

    A process killed at any point leaves the earlier steps untouched, and so does an OSError. Several `peers` must see
    the same file system.
    """
    final = run_dir / f"step_{new.step:08d}"
    temporary = run_dir / f".tmp-{final.name}"
    first = peers.rank == 0
    if peers.rank < peers.writers:
        peers.do(lambda: create(temporary) if first else None)
        peers.do(lambda: write_tensors(temporary, new))
        peers.do(lambda: publish(run_dir, temporary, final, new, best=best, keep_last=keep_last) if first else None)
    return final


def create(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "tokenizer").mkdir(parents=True)


def write_tensors(temporary: Path, new: Snapshot) -> None:
    """Writes this rank's tensor files."""
    for name, tensors in new.files.items():
        path = temporary / name
        try:
            save_file(tensors, path)  # without a metadata block, whose key order would differ between processes
        except SafetensorError as error:  # a full disk
            raise OSError(errno.EIO, str(error), str(path)) from None
        path.chmod(temporary.stat().st_mode & 0o666)  # safetensors makes files private
        flush(path)


def publish(run_dir: Path, temporary: Path, final: Path, new: Snapshot, *, best: bool, keep_last: int) -> None:
    """Completes a save on one rank, after all tensors are on disk."""
    write_json(temporary / "model.json", asdict(new.config))
    if new.state is not None:
        write_json(temporary / "train_state.json", new.state)
    if new.index:  # the name and format that transformers uses
        write_json(temporary / "model.safetensors.index.json", {"metadata": {}, "weight_map": new.index})
    for save in new.save_files:
        save(temporary)
    paths = sorted(path for path in temporary.rglob("*") if path.is_file())
    files = {str(path.relative_to(temporary)): flush_and_describe(path) for path in paths}
    write_json(temporary / "manifest.json", {"format": FORMAT, "step": new.step, **new.manifest, "files": files})
    for path in (temporary / "tokenizer", temporary):
        flush(path)
    if final.exists():  # a damaged step of the same number, reached again by a resumed run
        discard(final)
    temporary.rename(final)
    flush(run_dir)
    write_pointer(run_dir, "latest", final.name)
    if best:
        write_pointer(run_dir, "best", final.name)
    prune(run_dir, keep_last, newest=new.step)


def flush_and_describe(path: Path) -> dict[str, Any]:
    """Flushes a file and returns its entry of the manifest."""
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def prune(run_dir: Path, keep_last: int, *, newest: int) -> None:
    """Removes all steps except the last `keep_last` and the best one, and the leftovers of killed writers.

    Also removes steps beyond `newest`: they were damaged, otherwise the run would have resumed from them.
    """
    valid = [path for path in steps(run_dir) if int(path.name[5:]) <= newest]
    keep = {path.name for path in valid[: max(1, keep_last)]} | {read_pointer(run_dir, "best")}
    for path in steps(run_dir):
        if path not in valid or path.name not in keep:
            discard(path)
    for leftover in run_dir.glob(".tmp-step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def discard(step: Path) -> None:
    """Removes a step directory. Renames it first, so that a kill in between leaves no partial step_* directory."""
    doomed = step.with_name(f".tmp-{step.name}-discarded")
    step.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    flush(path)


def write_pointer(run_dir: Path, name: str, target: str) -> None:
    """Writes the name of a step into the text file `latest` or `best`."""
    temporary = run_dir / f".tmp-{name}"
    temporary.write_text(target + "\n", encoding="utf-8")
    flush(temporary)
    temporary.replace(run_dir / name)
    flush(run_dir)


def flush(path: Path) -> None:
    """fsyncs a file or a directory, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
