"""The writer of the run directory: a step is published whole or not at all, whenever and wherever a save ends."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
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
from ..distributed.matrix_ownership import OwnedTensor
from ..gpt import GPT
from .reader import FORMAT, pointer, read_json, sha256, steps


class Peers:
    """The ranks that save together: of each thing that they do, all know whether it went well everywhere.

    One writer writes alone; the others then have nothing to do but to learn how it ended.
    """

    def __init__(self, rank: int = 0, writers: int = 1) -> None:
        self.rank, self.writers = rank, writers
        # A group of its own: what a thread sends must not come between what the loop sends.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def agree(self, well: bool) -> bool:
        """Whether it went well on all ranks, which must all ask."""
        failed = torch.tensor([int(not well)])
        if self.group is not None:
            dist.all_reduce(failed, group=self.group)
        return not failed

    def do(self, action: Callable[[], None]) -> None:
        """Runs `action` on each writer. Raises its error, or OSError where it failed on another."""
        error: BaseException | None = None
        try:
            action()
        except BaseException as caught:
            error = caught
        well = self.agree(error is None) if self.writers > 1 else error is None
        if error is not None:
            raise error
        if not well:
            raise OSError("another rank could not write its part")


@dataclass(frozen=True)
class Snapshot:
    """All that a save writes, copied: training may go on and change what it was copied from."""

    step: int
    config: ModelConfig
    files: dict[str, dict[str, Tensor]]  # tensors by file, those alone that this rank writes
    index: dict[str, str]  # the file of every weight, where there are several files
    state: dict[str, Any]
    facts: dict[str, Any]  # go into the manifest
    save_tokenizer: Callable[[Path], None]


def snapshot(
    step: int,
    *,
    model: GPT,
    tensors: Mapping[str, Tensor | OwnedTensor],
    state: dict[str, Any],
    facts: dict[str, Any],
    save_tokenizer: Callable[[Path], None],
    peers: Peers,
) -> Snapshot:
    """Copies weights and training state to the memory of the hosts; all ranks must ask.

    One writer: rank 0 copies all, whatever the sharding. More: each rank copies an equal part, one file of each kind.
    """
    weights, index = copied(model.state_dict(), "model", peers.rank, peers.writers)
    rest, _ = copied(tensors, "train_state", peers.rank, peers.writers)
    return Snapshot(step, model.config, weights | rest, index, copy.deepcopy(state), facts, save_tokenizer)


def copied(
    tensors: Mapping[str, Tensor | OwnedTensor], stem: str, rank: int, writers: int
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Copies of this rank's share of the tensors, under the name of its file; and the file of each tensor.

    Tensor by tensor, so that no rank holds more than one beside its share. Sorted, so that equal models give equal
    files.
    """
    names = [f"{stem}-{number:05d}-of-{writers:05d}.safetensors" for number in range(1, writers + 1)]
    names = names if writers > 1 else [f"{stem}.safetensors"]
    load = [0] * writers
    mine: dict[str, Tensor] = {}
    index: dict[str, str] = {}
    for name in sorted(tensors):
        value, writer = tensors[name], load.index(min(load))
        load[writer] += value.shape.numel() * 4
        index[name] = names[writer]
        if isinstance(value, OwnedTensor):
            value = value.broadcast()
        elif rank == writer or sharded.is_sharded(value):
            value = sharded.full_tensor(value)
        if rank == writer:
            assert isinstance(value, Tensor)
            mine[name] = value.to("cpu", copy=True).contiguous()
    return ({names[rank]: mine} if rank < writers else {}), (index if writers > 1 else {})


def write(run_dir: Path, new: Snapshot, *, best: bool, keep_last: int, peers: Peers) -> Path:
    """Publishes RUN/step_N: temporary directory, every file flushed, rename, then `latest` (and `best`), then prune.

    A process killed anywhere in between leaves the earlier steps as they were. Several `peers` write to one file
    system. Raises OSError where that fails; the earlier steps are as they were then too.
    """
    final = run_dir / f"step_{new.step:08d}"
    temporary = run_dir / f".tmp-{final.name}"
    first = peers.rank == 0
    if peers.rank < peers.writers:
        peers.do(lambda: begin(temporary) if first else None)
        peers.do(lambda: write_tensors(temporary, new, part=peers.rank))
        peers.do(lambda: publish(run_dir, temporary, final, new, best=best, keep_last=keep_last) if first else None)
    return final


def begin(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "tokenizer").mkdir(parents=True)


def write_tensors(temporary: Path, new: Snapshot, *, part: int) -> None:
    """Writes this rank's files, and what the manifest is to say about them."""
    described = temporary / f"part-{part:05d}.json"
    described.touch()
    for name, tensors in new.files.items():
        try:
            # No metadata block: its key order would differ from process to process.
            save_file(tensors, temporary / name)
        except SafetensorError as error:  # a full disk
            raise OSError(f"{temporary / name}: {error}") from None
        (temporary / name).chmod(described.stat().st_mode & 0o777)  # it makes files that nobody else may read
    write_json(described, {name: describe(temporary / name) for name in new.files})


def publish(run_dir: Path, temporary: Path, final: Path, new: Snapshot, *, best: bool, keep_last: int) -> None:
    """The rest of a save, once all tensors are on disk: by one rank."""
    files: dict[str, Any] = {}
    for path in sorted(temporary.glob("part-*.json")):
        files |= read_json(path)
        path.unlink()
    write_json(temporary / "model.json", asdict(new.config))
    write_json(temporary / "train_state.json", new.state)
    if new.index:  # as other programs know it
        write_json(temporary / "model.safetensors.index.json", {"metadata": {}, "weight_map": new.index})
    new.save_tokenizer(temporary / "tokenizer")
    for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
        name = str(path.relative_to(temporary))
        files[name] = files.get(name) or describe(path)
    write_json(temporary / "manifest.json", {"format": FORMAT, "step": new.step, **new.facts, "files": files})
    for path in (temporary / "tokenizer", temporary):
        flush(path)
    if final.exists():  # a damaged step of the same number, which a resumed run passes again
        discard(final)
    temporary.rename(final)
    flush(run_dir)
    point(run_dir, "latest", final.name)
    if best:
        point(run_dir, "best", final.name)
    prune(run_dir, keep_last, newest=new.step)


def describe(path: Path) -> dict[str, Any]:
    """Flushes a file; what the manifest says about it."""
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def prune(run_dir: Path, keep_last: int, *, newest: int) -> None:
    """Removes all steps but the last `keep_last` and the one that `best` names, and what killed writers left.

    Steps beyond `newest` go too: they were damaged, or the run would not have gone on from before them.
    """
    valid = [path for path in steps(run_dir) if int(path.name[5:]) <= newest]
    keep = {path.name for path in valid[: max(1, keep_last)]} | {pointer(run_dir, "best")}
    for path in steps(run_dir):
        if path not in valid or path.name not in keep:
            discard(path)
    for leftover in run_dir.glob(".tmp-step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def discard(step: Path) -> None:
    """Removes a step directory; renamed first, so that a kill halfway leaves no half step under a good name."""
    doomed = step.with_name(f".tmp-{step.name}-discarded")
    step.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    flush(path)


def point(run_dir: Path, name: str, target: str) -> None:
    """Makes the text file `latest` or `best` name a step."""
    temporary = run_dir / f".tmp-{name}"
    temporary.write_text(target + "\n", encoding="utf-8")
    flush(temporary)
    temporary.replace(run_dir / name)
    flush(run_dir)


def flush(path: Path) -> None:
    """fsync of a file or a directory: after it, a power cut no longer takes it back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
