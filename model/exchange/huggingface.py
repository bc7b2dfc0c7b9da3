"""Directories of Hugging Face's transformers, config.json and safetensors files, read and written without it."""

from __future__ import annotations

import errno
import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import InputError
from ..checkpoints.reader import read_json
from ..checkpoints.tensors import TensorFiles, is_finite
from ..config import ModelConfig
from .huggingface_config import find_class, read_config, special_ids, write_config
from .huggingface_families import Family, Link, links, with_neutral
from .source import LazyWeights, Source, SpecialIds

DOWNLOAD_AGAIN = "download it again"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PLAIN_NAME = re.compile(r"\w[\w.-]{0,199}\.safetensors", re.ASCII)  # leads into no other folder
INDEX = "model.safetensors.index.json"
LARGEST_JSON = 2**26  # bytes
SHARD_BYTES = 5 * 10**9  # of weights in one file; while it is written, as much memory is in use
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_model(folder: Path) -> Source:
    """Reads a model that transformers' save_pretrained wrote: GPT-2, Llama, Mistral, Arcee or NanoChat.

    Names, shapes and dtypes are compared with config.json before any weight is read; then each weight is read once to
    refuse NaN and infinity. Raises InputError, with one line, for everything that this project's models would not
    compute in the same way.
    """
    if str(folder).encode(errors="ignore").decode() != str(folder):  # safetensors cannot open it
        raise InputError(f"{str(folder)!r} is not UTF-8; rename the folder")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a directory; name the one that holds config.json and model.safetensors")
    path = folder / "config.json"
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} holds an adapter, not a model; merge it into its model in peft and save that")
    family, architecture, config = read_config(read_small_json(path), path)
    files = open_files(folder)
    names = without_prefix(files, family)
    wanted = links(family, config)
    check_names(files, names, family, wanted, tied=config.tie_embeddings)
    dtypes = check_headers(files, names, family, wanted)

    def get(name: str) -> Tensor:
        return files[names[name.removeprefix(family.prefix)]]

    for link in wanted:
        for name in link.theirs:
            if not is_finite(get(name)):
                raise InputError(f"{folder}: tensor {name!r} holds NaN or infinity; {DOWNLOAD_AGAIN}")
    notes = []
    if "lm_head.weight" in names and config.tie_embeddings:
        embedding = next(link for link in wanted if link.ours == "embed.weight").theirs[0]
        if not get("lm_head.weight").equal(get(embedding)):
            raise InputError(
                f"{path}: tie_word_embeddings is true, and yet lm_head.weight differs from {embedding}; if the head is "
                "a matrix of its own, set tie_word_embeddings to false"
            )
    if others := [DTYPES[dtype] for dtype in dtypes if dtype != "F32"]:
        notes.append(f"weights in {' and '.join(sorted(others))} became float32, which holds the same numbers")
    weights = LazyWeights({link.ours: partial(link.to_ours, get) for link in wanted})
    return Source(config, weights, notes, architecture)


def open_files(folder: Path) -> TensorFiles:
    """Opens model.safetensors, or the files that the index of a model in several files names."""
    if (single := folder / "model.safetensors").exists():
        return TensorFiles([single], advice=DOWNLOAD_AGAIN)
    path = folder / INDEX
    if not path.exists():
        raise InputError(no_tensors(folder))
    places = read_small_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{path}: weight_map is missing or not an object; {DOWNLOAD_AGAIN}")
    for place in places.values():
        if not isinstance(place, str) or not PLAIN_NAME.fullmatch(place):
            raise InputError(f"{path} names the file {json.dumps(place)[:99]}: not a plain name; {DOWNLOAD_AGAIN}")
        if not (folder / place).is_file():
            raise InputError(f"{folder / place} is missing; {DOWNLOAD_AGAIN}")
    files = TensorFiles([folder / place for place in sorted(set(places.values()))], advice=DOWNLOAD_AGAIN)
    for name, place in places.items():
        if name not in files or files.found[name][0].name != place:
            raise InputError(
                f"{folder / place} lacks the tensor {name[:99]!r}, which {INDEX} places there; {DOWNLOAD_AGAIN}"
            )
    return files


def no_tensors(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickles:
        return f"{folder} holds no model.safetensors; name the folder of a model that transformers saved"
    return (
        f"{folder} holds pickled weights ({pickles[0][:99]}), which can run code and are never opened: where you trust "
        "them, open the model in transformers and write it with save_pretrained; for nanoGPT's ckpt.pt see "
        "scripts/README.md#nanogpt"
    )


def without_prefix(files: TensorFiles, family: Family) -> dict[str, str]:
    """Returns each tensor's name in the files by its name without the family's prefix, and without known buffers."""
    names: dict[str, str] = {}
    for name in files:
        bare = name.removeprefix(family.prefix)
        if bare in names:
            raise InputError(
                f"{files.found[name][0]} holds both {name[:99]!r} and {names[bare][:99]!r}; {DOWNLOAD_AGAIN}"
            )
        if not re.fullmatch(family.buffers, bare):
            names[bare] = name
    return names


def check_names(files: TensorFiles, names: dict[str, str], family: Family, wanted: list[Link], *, tied: bool) -> None:
    expected = {name.removeprefix(family.prefix) for link in wanted for name in link.theirs}
    if tied:
        names = {bare: name for bare, name in names.items() if bare != "lm_head.weight"}
    if unknown := sorted(names.keys() - expected):
        name = names[unknown[0]]
        raise InputError(
            f"{files.found[name][0]} holds the tensor {name[:99]!r}, which {family.name} of this config.json does not "
            "have; choose another model"
        )
    if missing := sorted(expected - names.keys()):
        raise InputError(
            f"no file holds the tensor {missing[0]!r}, which {family.name} of this config.json has; {DOWNLOAD_AGAIN}"
        )


def check_headers(files: TensorFiles, names: dict[str, str], family: Family, wanted: list[Link]) -> Counter[str]:
    """Compares shapes and dtypes with config.json. Returns how many tensors have each dtype."""
    dtypes: Counter[str] = Counter()
    for link in wanted:
        for name, shape in link.their_shapes():
            saved = names[name.removeprefix(family.prefix)]
            found, dtype = files.header(saved)
            if found != shape:
                problem = f"has the shape {found} instead of {shape}, which config.json implies; {DOWNLOAD_AGAIN}"
            elif dtype not in DTYPES:
                problem = f"has the dtype {dtype}, not one of {', '.join(DTYPES)}; choose the model in one of these"
            else:
                dtypes[dtype] += 1
                continue
            raise InputError(f"{files.found[saved][0]}: tensor {saved!r} {problem}")
    return dtypes


def read_small_json(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # a link to a device has no end
        raise InputError(f"{path} is not a file; {DOWNLOAD_AGAIN}")
    if path.exists() and path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{path} has more than {LARGEST_JSON:,} bytes: not a file of settings; {DOWNLOAD_AGAIN}")
    return read_json(path, advice=DOWNLOAD_AGAIN)


def write_model(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], *, ids: SpecialIds) -> str:
    """Writes config.json, generation_config.json and the weights into a new folder. Returns the name of the class.

    Models beyond 5 GB become several files, so that besides `weights` at most one file's tensors are in memory.
    Raises InputError before anything is written if no class of transformers computes such a model.
    """
    family, exported = find_class(config)
    values = write_config(family, exported, ids, dropout=config.dropout)
    files = share_out(links(family, exported))
    get = with_neutral(weights, exported)
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        tensors = {theirs: tensor for link in part for theirs, tensor in link.to_theirs(get)}
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})  # which transformers insists on
        except SafetensorError as error:  # a full disk
            raise OSError(errno.EIO, str(error), str(folder / name)) from None
        (folder / name).chmod(folder.stat().st_mode & 0o666)  # safetensors makes files private
        places |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        size = sum(link.n_bytes for part in files for link in part)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    write_json(folder / "config.json", values)
    write_json(folder / "generation_config.json", special_ids(ids))
    return family.name


def share_out(wanted: list[Link]) -> list[list[Link]]:
    """Returns the weights of each file, in their order, with at most SHARD_BYTES in one unless a weight has more."""
    files: list[list[Link]] = [[]]
    for link in wanted:
        if files[-1] and sum(other.n_bytes for other in files[-1]) + link.n_bytes > SHARD_BYTES:
            files.append([])
        files[-1].append(link)
    return files


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
