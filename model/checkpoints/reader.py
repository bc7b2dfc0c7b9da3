"""Reads run directories: every file is verified before it is used, and nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import InputError
from ..config import REMOVED, RENAMED, ModelConfig
from ..distributed import sharded
from ..gpt import GPT

FORMAT = 1
RENAMED_TENSOR = ("unembed.weight", "lm_head.weight")  # the name in older checkpoints, and the name now
COPY_AGAIN = "copy the checkpoint again, or choose another"


@dataclass(frozen=True)
class Checkpoint:
    """A verified step directory."""

    directory: Path
    manifest: dict[str, Any]
    config: ModelConfig

    @property
    def step(self) -> int:
        return self.manifest["step"]

    def weights(self) -> TensorFiles:
        return self.tensors("model")

    def tensors(self, stem: str) -> TensorFiles:
        """The tensors of STEM.safetensors, or of STEM-00001-of-0000N.safetensors if N ranks wrote them."""
        return TensorFiles([self.directory / name for name in tensor_files(stem, self.manifest["files"])])

    def check_weights(self, model: GPT) -> None:
        """Raises InputError with the first tensor that does not fit the model, which may be on the meta device."""
        weights, own = self.weights(), model.state_dict()
        for name in own.keys() | weights.keys():
            if name not in weights or name not in own or own[name].shape != weights.shape(name):
                raise InputError(f"{self.directory / 'model.safetensors'}: tensor {name!r} does not fit model.json")

    def load_into(self, model: GPT) -> None:
        """Copies the weights into a model of the same shape, sharded or not. Raises InputError if they do not fit."""
        self.check_weights(model)
        weights = self.weights()
        for name, value in model.state_dict().items():
            sharded.to_local(value).copy_(weights[name][sharded.local_rows(value)])

    def model(self, device: torch.device) -> GPT:
        """Returns the network with these weights, in evaluation mode."""
        with torch.device("meta"):  # names and shapes, no storage
            model = GPT(self.config)
        model.to_empty(device=device)
        self.load_into(model)
        return model.eval()

    def check_tokenizer(self, *, vocab_size: int, fingerprint: str) -> None:
        """Raises InputError unless the model was trained with a tokenizer of this size and fingerprint."""
        own = self.config.vocab_size, self.manifest.get("tokenizer_fingerprint", fingerprint)
        if (vocab_size, fingerprint) != own:
            raise InputError(
                f"{self.directory / 'tokenizer'} ({vocab_size} ids, {fingerprint:.12}) is not the tokenizer that the "
                f"model was trained with ({own[0]} ids, {own[1]!s:.12}); {COPY_AGAIN}"
            )

    def train_state(self) -> tuple[TensorFiles, dict[str, Any]]:
        """Returns the tensors and the plain values from which training resumes."""
        if "train_state.json" not in self.manifest["files"]:
            raise InputError(f"{self.directory} holds no training state; use checkpoint= instead of resume=")
        return self.tensors("train_state"), read_json(self.directory / "train_state.json")


def steps(run_dir: Path) -> list[Path]:
    """Returns the published step directories, newest first."""
    return sorted((p for p in run_dir.glob("step_*") if p.is_dir() and p.name[5:].isdigit()), reverse=True)


def newest(run_dir: Path, *, say: Callable[[str], None] = print) -> Checkpoint | None:
    """Returns the newest intact step and warns about damaged newer ones; None if no step was published.

    Raises InputError if all published steps are damaged.
    """
    published = steps(run_dir)
    reasons = []
    for directory in published:
        try:
            checkpoint = verify(directory)
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            say(f"warning: {reason}; falling back to {directory.name}")
        return checkpoint
    if published:
        raise InputError(f"{run_dir} has no intact step: {'; '.join(reasons)}")
    return None


def find(path: Path) -> Checkpoint:
    """Opens a run directory (its newest intact step), RUN/best, RUN/latest or a step directory."""
    if str(path).encode(errors="ignore").decode() != str(path):  # safetensors cannot open it
        raise InputError(f"checkpoint={str(path)!r} is not UTF-8; rename the folder")
    if path.name in ("best", "latest") and path.is_file():
        name = read_pointer(path.parent, path.name)
        if name is None:
            raise InputError(f"{path} does not name a step of {path.parent}")
        return verify(path.parent / name)
    if path.name in ("best", "latest") and path.parent.is_dir() and not path.exists():
        raise InputError(f"{path.parent} has no {path.name} step (nothing evaluated?); name the run directory")
    if not path.exists():
        raise InputError(f"checkpoint={path}: there is no such directory")
    if (path / "manifest.json").exists() or path.name.startswith("step_"):
        return verify(path)
    found = newest(path) if path.is_dir() else None
    if found is None:
        raise InputError(f"checkpoint={path} holds no saved step (step_*/manifest.json)")
    return found


def source(run_dir: str | None, start: str | None, *, resume: bool) -> Checkpoint:
    """Returns the checkpoint to start from: the run's own newest step if it is resumed and has one, else `start`."""
    own = newest(Path(run_dir or ""), say=lambda line: None) if resume else None
    return own or find(Path(start or ""))


def verify(directory: Path, *, contents: bool = True) -> Checkpoint:
    """Checks every file's size and sha256 against the manifest. Raises InputError with the file that differs.

    With contents=False it checks sizes only, because another process has just verified the contents.
    """
    manifest = read_json(directory / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{directory / 'manifest.json'}: this version reads format {FORMAT}, not {manifest.get('format')!r}"
        )
    files, step = manifest.get("files"), manifest.get("step")
    if not (
        isinstance(files, dict) and all(isinstance(entry, dict) for entry in files.values()) and isinstance(step, int)
    ):
        raise InputError(f"{directory / 'manifest.json'}: `files` or `step` is missing or invalid; {COPY_AGAIN}")
    for name in ("model.json", *tensor_files("model", files), "tokenizer/tokenizer.json"):
        if name not in files:
            raise InputError(f"{directory / 'manifest.json'} does not list {name}; {COPY_AGAIN}")
    for name, entry in files.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {COPY_AGAIN}")
        if (size := path.stat().st_size) != entry.get("bytes"):
            raise InputError(f"{path} is damaged: {size} bytes instead of {entry.get('bytes')}; {COPY_AGAIN}")
        if contents and sha256(path) != entry.get("sha256"):
            raise InputError(f"{path} is damaged: its sha256 is not the manifest's; {COPY_AGAIN}")
    return Checkpoint(directory, manifest, read_config(directory / "model.json"))


def tensor_files(stem: str, listed: Iterable[str]) -> list[str]:
    """Returns STEM.safetensors, or all N names STEM-00001-of-0000N.safetensors if the first is listed."""
    for name in listed:
        if parts := re.fullmatch(stem + r"-00001-of-(\d{5})\.safetensors", name):
            return [f"{stem}-{number:05d}-of-{parts[1]}.safetensors" for number in range(1, int(parts[1]) + 1)]
    return [f"{stem}.safetensors"]


def read_config(path: Path) -> ModelConfig:
    values = read_json(path)
    for name, off in REMOVED.items():
        value = values.pop(name, off)
        if value != off and off is not None:
            raise InputError(f"{path}: {name}={value!r} is not supported any more; use an older version")
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    known = {f.name for f in fields(ModelConfig)}
    if unknown := sorted(values.keys() - known):
        raise InputError(f"{path}: unknown model setting {unknown[0]!r}")
    for f in fields(ModelConfig):
        allowed: Any = int | None if f.default is None else int | float if f.type == "float" else type(f.default)
        value = values.get(f.name, f.default)
        if not isinstance(value, allowed) or isinstance(value, bool) != (allowed is bool):
            raise InputError(f"{path}: {f.name} is {value!r}, not {f.type}; {COPY_AGAIN}")
    config = ModelConfig(**values)
    if problems := config.validate():
        raise InputError(f"{path}: {problems[0]}")
    return config


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of safetensors files, by name. The files are memory-mapped; a tensor is read when it is accessed."""

    def __init__(self, paths: list[Path]) -> None:
        self.files: dict[str, Any] = {}
        self.paths: dict[str, Path] = {}
        self.saved: dict[str, str] = {}  # the name of each tensor in its file
        for path in paths:
            with self.readable(path):
                file = safe_open(path, framework="pt")
                for saved in file.keys():
                    name = saved.replace(*RENAMED_TENSOR)
                    self.files[name], self.paths[name], self.saved[name] = file, path, saved

    def __getitem__(self, name: str) -> Tensor:
        with self.readable(self.paths[name]):
            return self.files[name].get_tensor(self.saved[name])

    def shape(self, name: str) -> torch.Size:
        """Returns the shape of a tensor without reading it."""
        with self.readable(self.paths[name]):
            return torch.Size(self.files[name].get_slice(self.saved[name]).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    @staticmethod
    @contextlib.contextmanager
    def readable(path: Path) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}; {COPY_AGAIN}") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; {COPY_AGAIN}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object; {COPY_AGAIN}")
    return values


def read_pointer(run_dir: Path, name: str) -> str | None:
    """Returns the step directory that the text file `latest` or `best` names, if it exists."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        target = (run_dir / name).read_text(encoding="utf-8").strip()
        if target.startswith("step_") and (run_dir / target).is_dir():
            return target
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
