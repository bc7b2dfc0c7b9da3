"""Models as GGUF files, llama.cpp's format, in both directions; tensors are converted one at a time."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import InputError
from ..config import ModelConfig
from .gguf_config import metadata_of, read_config
from .gguf_file import TYPES, GgufFile
from .gguf_layout import (
    ARCHITECTURES,
    ROPE_FACTORS,
    Architecture,
    as_written,
    choose_architecture,
    layout,
    read_rope_factors,
    rope_factors,
    rotated_heads,
    to_halves,
    to_interleaved,
)  # fmt: skip
from .source import Source

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}  # llama.cpp's numbers of whole files
# The largest number that a type holds. Q8_0 is -127..127 times a float16.
LARGEST = {"F32": torch.finfo(torch.float32).max, "F16": 65504.0, "Q8_0": 127 * 65504.0}


def read_model(file: GgufFile) -> Source:
    """Returns the model in a GGUF file. Raises InputError, before any tensor is read, for all that does not fit."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"{file.path}: architecture {name!r} is none of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    config = read_config(file, architecture)
    weights = Weights(file, config, architecture)
    notes = []
    if packed := {kind: count for kind, count in file.types.most_common() if kind != "F32"}:
        verb = "converted" if packed.keys() <= {"F16", "BF16"} else "dequantized"
        notes.append(f"{verb} from {', '.join(f'{kind} ({count})' for kind, count in packed.items())}")
    if config.tie_embeddings:
        notes.append("the embedding also serves as the output head (tied weights)")
    if config.rotary_scaling is not None:
        notes.append(f"rotary frequencies are scaled: rotary_scaling={config.rotary_scaling}")
    return Source(config, weights, notes, name)


class Weights(Mapping[str, Tensor]):
    """The tensors of a GGUF file under the names of this project; each is read when it is accessed."""

    def __init__(self, file: GgufFile, config: ModelConfig, architecture: Architecture) -> None:
        self.file, self.config = file, config
        self.layout = layout(config, architecture)
        expected = {name: shape for parts in self.layout.values() for name, shape in parts.items()}
        for name, shape in expected.items():
            if name not in file.shapes:
                reason = "; biases must be in all linear layers or in none" if name.endswith(".bias") else ""
                raise InputError(f"{file.path}: there is no tensor {name!r}, {architecture.name} has one{reason}")
            if (found := file.shapes[name]) != shape:
                raise InputError(f"{file.path}: tensor {name!r} has shape {found}; by the metadata it is {shape}")
        for name in file.shapes:
            if name not in expected and name != ROPE_FACTORS:
                raise InputError(f"{file.path}: tensor {name!r} has no place in the architecture {architecture.name}")

    def __getitem__(self, name: str) -> Tensor:
        parts = [self.part(part) for part in self.layout[name]]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if name in ("embed.weight", "lm_head.weight"):
            tensor = F.pad(tensor, (0, 0, 0, self.config.padded_vocab - len(tensor)))
        return tensor

    def part(self, name: str) -> Tensor:
        tensor = self.file.tensor(name)
        heads = rotated_heads(name, self.config)
        return to_halves(tensor, heads) if heads else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)


def write_model(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    kind: str,
    tokenizer: Mapping[str, Any],
    about: Mapping[str, Any],
) -> str:
    """Writes a model, and returns llama.cpp's name of its architecture.

    weights: under the names of gpt.py, float32; one tensor at a time is read and converted. kind: the type of the
    matrices, F32, F16 or Q8_0. Vectors and the position table stay F32; with Q8_0, matrices whose rows are not a
    multiple of 32 become F16. tokenizer: metadata under their whole keys. about: metadata about the model, such as
    name, license and description, without `general.` in front.
    Raises InputError before a file exists, for a shape that no architecture has, for metadata that GGUF cannot hold,
    and without the extra `gguf`; and while writing, for weights that are too large for the type.
    """
    try:
        from gguf.constants import GGMLQuantizationType, GGUFValueType
        from gguf.gguf_writer import GGUFWriter
    except ImportError:
        raise InputError("writing a GGUF file needs the extra gguf: pip install -e '.[gguf]'") from None
    if kind not in FILE_TYPES:
        raise InputError(f"a GGUF file of type {kind!r} cannot be written; take one of {', '.join(FILE_TYPES)}")
    architecture = choose_architecture(config)
    scaled = config.rotary_scaling is not None and len(config.rotary_scaling) == 4
    if scaled and read_rope_factors(rope_factors(config), config) != config.rotary_scaling:
        raise InputError(
            f"GGUF holds only the factors of model.rotary_scaling={config.rotary_scaling}, from which no reader here "
            "could tell it: export with format=hf"
        )
    if (tokens := tokenizer.get("tokenizer.ggml.tokens")) is not None and len(tokens) != config.vocab_size:
        raise InputError(f"the tokenizer has {len(tokens)} tokens and the model {config.vocab_size}; take its own one")
    metadata = {f"general.{key}": value for key, value in about.items()} | {
        "general.type": "model", "general.file_type": FILE_TYPES[kind], "general.quantization_version": 2,
    }  # fmt: skip
    metadata |= {f"{architecture.name}.{key}": value for key, value in metadata_of(config, architecture).items()}
    writer = GGUFWriter(path, architecture.name)
    for key, value in (metadata | dict(tokenizer)).items():
        writer.add_key_value(key, value, GGUFValueType[value_type(key, value)])
    contents = layout(as_written(config, architecture), architecture)
    if scaled:
        contents[ROPE_FACTORS] = {ROPE_FACTORS: (config.head_dim // 2,)}
    kinds = {}
    float32 = torch.empty(0).numpy().dtype  # only uint8 would have a meaning
    for shapes in contents.values():
        for part, shape in shapes.items():
            kinds[part] = stored = kind_of(part, shape, kind)
            block, size = next((entry.block, entry.size) for entry in TYPES.values() if entry.name == stored)
            n_bytes = torch.Size(shape).numel() // block * size
            writer.add_tensor_info(part, shape, float32, n_bytes, raw_dtype=GGMLQuantizationType[stored])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, shapes in contents.items():
            rows = rope_factors(config) if name == ROPE_FACTORS else own_tensor(weights, name, shapes)
            for (part, shape), tensor in zip(shapes.items(), rows.split([s[0] for s in shapes.values()]), strict=True):
                heads = rotated_heads(part, config)
                tensor = to_interleaved(tensor, heads) if heads else tensor
                assert tensor.shape == shape, (part, tensor.shape, shape)
                writer.write_tensor_data(stored_form(part, tensor, kinds[part]))
    except OSError as error:  # a full disk: numpy says only how much was written
        raise OSError(errno.EIO, str(error), str(path)) from None
    finally:
        writer.close()
    return architecture.name


def own_tensor(weights: Mapping[str, Tensor], name: str, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Returns a tensor without the padded rows of embedding and head; ones or zeros if the network has none."""
    n_rows = sum(shape[0] for shape in shapes.values())
    if name not in weights:
        assert name.endswith(("norm.weight", ".bias")), name
        return torch.zeros(n_rows) if name.endswith(".bias") else torch.ones(n_rows)
    return weights[name][:n_rows].detach().float()


def kind_of(part: str, shape: tuple[int, ...], kind: str) -> str:
    """Returns the type in which a tensor is stored. llama.cpp adds vectors and positions as float32."""
    if len(shape) == 1 or part == "position_embd.weight":
        return "F32"
    return "F16" if kind == "Q8_0" and shape[-1] % 32 else kind


def stored_form(part: str, tensor: Tensor, kind: str) -> Any:
    """Returns a numpy array of the numbers or blocks to be stored."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if not tensor.abs().max() <= LARGEST[kind]:  # NaN fails too
        raise InputError(f"tensor {part!r} holds numbers that {kind} cannot hold; export with type=F32")
    return quantize(tensor.contiguous().numpy(), GGMLQuantizationType[kind])


def value_type(key: str, value: Any) -> str:
    """Returns GGUF's type of a metadata value."""
    if isinstance(value, list) and value:
        return "ARRAY"
    if isinstance(value, bool):  # first, for a bool is an int
        return "BOOL"
    if isinstance(value, int) and 0 <= value < 2**32:
        return "UINT32"
    for kind, name in ((float, "FLOAT32"), (str, "STRING")):
        if isinstance(value, kind):
            return name
    raise InputError(f"GGUF metadata cannot hold {key}={value!r:.60}")
