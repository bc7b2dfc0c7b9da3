"""Reads run directories: every file is verified before it is used, and nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch.overrides import TorchFunctionMode

from .. import InputError
from ..config import REMOVED, RENAMED, ModelConfig
from ..distributed import sharded
from ..gpt import GPT
from .tensors import COPY_AGAIN, Shape, TensorFiles, shape_of_state, tensor_files

FORMAT = 1
STEP = re.compile(r"step_\d{8,18}", re.ASCII)  # the name of a step directory
# Of a file in a manifest. So no name leads out of the step directory, or to a hidden file.
PLAIN_NAME = re.compile(r"(\w[\w.-]{0,99}/)?\w[\w.-]{0,99}", re.ASCII)


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

    def check_weights(self, shapes: Mapping[str, Shape]) -> TensorFiles:
        """Returns the weights. Raises InputError unless these are their names and shapes. Reads only headers."""
        weights = self.weights()
        for name in (*shapes, *weights):
            if name not in weights:
                raise InputError(f"{self.directory} does not fit model.json: there is no tensor {name!r}; {COPY_AGAIN}")
            weights.check(name, shapes.get(name))
        return weights

    def check_tensors(self) -> None:
        """Compares the headers of the tensor files with model.json, and refuses NaN and infinity."""
        shapes = weight_shapes(self.config)
        self.check_weights(shapes).check_finite()
        if "train_state.json" in self.manifest["files"]:
            state = self.tensors("train_state")
            for name in state:
                state.check(name, shape_of_state(name, shapes))
            state.check_finite()

    def load_into(self, model: GPT) -> None:
        """Copies the weights into a model of the same shape, sharded or not. Raises InputError if they do not fit."""
        weights = self.check_weights({name: tuple(value.shape) for name, value in model.state_dict().items()})
        for name, value in model.state_dict().items():
            sharded.to_local(value).copy_(weights[name][sharded.local_rows(value)])

    def model(self, device: torch.device) -> GPT:
        """Returns the network with these weights, in evaluation mode."""
        model = without_storage(self.config)
        sharded.allocate(model, device, random_init=False)
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


class SkipInit(TorchFunctionMode):
    """Skips torch.nn.init in the body, which on the meta device would import torch's compiler: that takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def without_storage(config: ModelConfig) -> GPT:
    """Returns a network with names and shapes only, on torch's meta device."""
    with torch.device("meta"), SkipInit():
        return GPT(config)


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Returns the shape of each weight by name, from a network of one layer and without storage, whatever its size."""
    shapes: dict[str, Shape] = {}
    for name, weight in without_storage(replace(config, n_layer=1)).state_dict().items():
        for layer in range(config.n_layer if name.startswith("blocks.0.") else 1):
            shapes[name.replace("blocks.0.", f"blocks.{layer}.")] = tuple(weight.shape)
    return shapes


def steps(run_dir: Path) -> list[Path]:
    """Returns the published step directories, newest first."""
    return sorted((p for p in run_dir.glob("step_*") if STEP.fullmatch(p.name) and p.is_dir()), reverse=True)


def newest(run_dir: Path, *, say: Callable[[str], None] = print) -> Checkpoint | None:
    """Returns the newest intact step and warns about damaged newer ones; None if no step was published.

    Raises InputError if all published steps are damaged.
    """
    reasons = []
    for directory in steps(run_dir):
        try:
            checkpoint = verify(directory)
        except InputError as error:
            reasons.append(str(error))
        else:
            for reason in reasons:
                say(f"warning: {reason}; falling back to {directory.name}")
            return checkpoint
    if reasons:
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
        near = similar_run(path)
        hint = f"did you mean {near}?" if near else "check the path"
        raise InputError(f"checkpoint={path}: there is no such directory; {hint}")
    if (path / "manifest.json").exists() or path.name.startswith("step_"):
        return verify(path)
    found = newest(path) if path.is_dir() else None
    if found is None and (path.suffix == ".gguf" or (path / "config.json").exists()):
        ready = f"python -m scripts.import_model source={path} run_dir=out/NAME"
        raise InputError(f"checkpoint={path} is a model in another program's format; import it first: {ready}")
    if found is None:
        raise InputError(f"checkpoint={path} holds no saved step (step_*/manifest.json)")
    return found


def similar_run(path: Path) -> Path | None:
    """Returns the path of a run or step that differs from `path` in one folder's name, if a similar one exists."""
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return None
    misspelt, *rest = path.relative_to(folder).parts
    found: dict[str, Path] = {}
    with contextlib.suppress(OSError):  # a folder that may not be read
        for sibling in folder.iterdir():
            other = sibling.joinpath(*rest)
            if other.is_file() or (other.is_dir() and (STEP.fullmatch(other.name) or steps(other))):
                found[sibling.name] = other
    return next((found[name] for name in difflib.get_close_matches(misspelt, found, n=1)), None)


def source(run_dir: str | None, start: str | None, *, resume: bool) -> Checkpoint:
    """Returns the checkpoint to start from: the run's own newest step if it is resumed and has one, else `start`."""
    own = newest(Path(run_dir or ""), say=lambda line: None) if resume else None
    return own or find(Path(start or ""))


def verify(directory: Path) -> Checkpoint:
    """Checks every file's size and sha256 against the manifest, and the tensors against model.json.

    Raises InputError with the file that differs, and for weights or optimizer state that hold NaN or infinity.
    """
    path = directory / "manifest.json"
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: this version reads format {FORMAT}, not {manifest.get('format')!r}")
    files, step = manifest.get("files", {}), manifest.get("step")
    entries = files.values() if isinstance(files, dict) else [None]
    if not (isinstance(step, int) and all(isinstance(entry, dict) for entry in entries)):
        raise InputError(f"{path}: `files` or `step` is missing or invalid; {COPY_AGAIN}")
    if STEP.fullmatch(directory.name) and int(directory.name[5:]) != step:
        raise InputError(f"{path} says that this is step {step}; {COPY_AGAIN}")
    for name in files:
        if not PLAIN_NAME.fullmatch(name):
            raise InputError(f"{path} lists {name[:99]!r}: not a plain name; {COPY_AGAIN}")
    state = ("train_state.json", *tensor_files("train_state", files)) if "train_state.json" in files else ()
    for name in ("model.json", *tensor_files("model", files), *state, "tokenizer/tokenizer.json"):
        if name not in files:
            raise InputError(f"{path} does not list {name}; {COPY_AGAIN}")
    for name, entry in files.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {COPY_AGAIN}")
        if (size := path.stat().st_size) != entry.get("bytes"):
            raise InputError(f"{path} is damaged: {size} bytes instead of {entry.get('bytes')}; {COPY_AGAIN}")
        if sha256(path) != entry.get("sha256"):
            raise InputError(f"{path} is damaged: its sha256 is not the manifest's; {COPY_AGAIN}")
    checkpoint = Checkpoint(directory, manifest, read_config(directory / "model.json"))
    checkpoint.check_tensors()
    return checkpoint


def read_config(path: Path) -> ModelConfig:
    values = read_json(path)
    for name, off in REMOVED.items():
        value = values.pop(name, off)
        if value != off and off is not None:
            raise InputError(f"{path}: {name}={value!r} is not supported any more; use an older version")
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    config = ModelConfig(**check_types(values, ModelConfig, path))
    if problems := config.validate():
        raise InputError(f"{path}: {problems[0]}")
    return config


def check_types(values: dict[str, Any], schema: type, path: Path) -> dict[str, Any]:
    """Returns the values of a JSON file. Raises InputError unless each fits a field of the dataclass `schema`."""
    hints = get_type_hints(schema)
    for name, value in values.items():
        if name not in hints:
            raise InputError(f"{path}: unknown setting {name!r}; use the version that wrote it")
        if not has_type(value, hints[name]):
            expected = getattr(hints[name], "__name__", str(hints[name]).replace("None", "null"))
            raise InputError(f"{path}: {name} is {json.dumps(value)[:99]}, not {expected}; {COPY_AGAIN}")
    return values


def has_type(value: Any, hint: Any) -> bool:
    """True if a JSON value fits a type hint such as int, float | None or tuple[int, float]."""
    if isinstance(hint, types.UnionType):
        return any(has_type(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return isinstance(value, list) and len(value) == len(parts) and all(map(has_type, value, parts))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(has_type(one, *get_args(hint)) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # False for NaN
    return isinstance(value, get_origin(hint) or hint) and isinstance(value, bool) == (hint is bool)


def read_json(path: Path, *, advice: str = COPY_AGAIN) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; {advice}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object; {advice}")
    return values


def read_pointer(run_dir: Path, name: str) -> str | None:
    """Returns the step directory that the text file `latest` or `best` names, if it exists."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        target = (run_dir / name).read_text(encoding="utf-8").strip()
        if STEP.fullmatch(target) and (run_dir / target).is_dir():
            return target
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
