"""Other programs that read a model which was imported or exported: this project, transformers and llama.cpp."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import InputError
from ..checkpoints.reader import without_storage
from ..config import ModelConfig
from ..distributed import sharded
from ..gpt import GPT
from ..inference.generate import generate
from ..inference.sampling import SamplingConfig
from .gguf_file import GgufFile
from .proof import EXACT
from .source import Source

# llama.cpp's tolerances. It looks GELU up in a table of float16 numbers, and rounds activations where weights are F16,
# and so much where they are Q8_0 that single logits differ by several units.
LLAMA_CPP = {"F32": 5e-3, "F16": 5e-2}
DIGITS_FIRST = ("smollm", "starcoder", "refact")  # of tokenizer.ggml.pre


@dataclass(frozen=True)
class Ours:
    """This project, with a model in memory. encode_text takes a text and whether special tokens are read in it."""

    model: GPT
    encode_text: Callable[[str, bool], list[int]]
    name: str = "nextword"
    tolerance: float = EXACT

    @staticmethod
    @torch.no_grad()
    def of(config: ModelConfig, weights: Mapping[str, Tensor], encode_text: Callable[[str, bool], list[int]]) -> Ours:
        """A model with these weights, which are copied one after another."""
        model = without_storage(config)
        sharded.allocate(model, torch.device("cpu"), random_init=False)
        for name, value in model.state_dict().items():
            value.copy_(weights[name])
        return Ours(model.eval(), encode_text)

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self.encode_text(text, special)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.model(torch.tensor([list(ids)]))[0].float()

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        steps = generate(self.model, [ids], max_new_tokens=count, sampling=SamplingConfig(temperature=0))
        return [new.id for [new] in steps if new is not None]


def transformers_reads(source: Source) -> bool:
    """True if transformers computes the same from a GGUF file of this model.

    It forgets a GPT-2's context, and a Llama's biases and rotary scaling, and it does not know Arcee.
    """
    if source.architecture == "gpt2":
        return source.config.context == 1024
    return source.architecture == "llama" and not source.config.bias and source.config.rotary_scaling is None


class Transformers:
    """Hugging Face's transformers, in float32. Opens no pickles and runs no code from the directory."""

    tolerance = EXACT

    def __init__(self, folder: Path, *, gguf_file: str | None = None, digits_first: bool = False) -> None:
        """digits_first: the tokenizer of a GGUF file isolates digits, which transformers forgets when it reads one."""
        import transformers

        self.name = f"transformers {transformers.__version__}"
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        if gguf_file is not None:
            options["gguf_file"] = gguf_file
        try:
            with quiet():
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
                self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        except Exception as error:  # of any kind: these are other people's programs
            raise InputError(f"{self.name} cannot open {gguf_file or folder}: {one_line(error)}") from error
        self.tokenizer.model_max_length = 10**9  # texts are only encoded
        if digits_first:
            from tokenizers.pre_tokenizers import ByteLevel, Digits
            from tokenizers.pre_tokenizers import Sequence as InOrder

            parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
            self.tokenizer.backend_tokenizer.pre_tokenizer = InOrder(parts)
        self.model.eval()

    @staticmethod
    def of_gguf(file: GgufFile) -> Transformers:
        digits_first = file.metadata.get("tokenizer.ggml.pre") in DIGITS_FIRST
        return Transformers(file.path.parent, gguf_file=file.path.name, digits_first=digits_first)

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.model(torch.tensor([list(ids)])).logits[0].float()

    @torch.no_grad()
    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        cache, given, new = None, torch.tensor([list(ids)]), list[int]()
        for _ in range(count):
            out = self.model(given, past_key_values=cache, use_cache=True)
            cache, given = out.past_key_values, out.logits[:, -1:].argmax(-1)
            new.append(int(given))
        return new


class LlamaCpp:
    """llama.cpp through llama-cpp-python, with a float32 cache.

    It reads one token at a time: some of its builds crash on batches of products with quantized weights.
    """

    def __init__(self, path: Path, *, context: int, kind: str) -> None:
        """kind: how the file stores matrices, F32, F16 or Q8_0."""
        import llama_cpp

        self.tolerance = LLAMA_CPP.get(kind)
        self.name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        try:
            with quiet():
                self.llama = llama_cpp.Llama(
                    str(path), n_ctx=max(256, context), n_batch=1, n_ubatch=1, logits_all=True, flash_attn=False,
                    type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False,
                )  # fmt: skip
        except Exception as error:
            raise InputError(f"{self.name} cannot open {path}: {one_line(error)}") from error

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=special)

    def logits(self, ids: Sequence[int]) -> Tensor:
        self.llama.reset()
        self.llama.eval(list(ids))
        return torch.from_numpy(self.llama.scores[: len(ids)].copy()).float()

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        new: list[int] = []
        self.llama.reset()
        self.llama.eval(list(ids))
        while len(new) < count:
            new.append(int(self.llama.scores[self.llama.n_tokens - 1].argmax()))
            self.llama.eval(new[-1:])
        return new


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def missing_for_transformers(*, gguf: bool) -> list[str]:
    """The packages that are not installed, of those with which transformers reads a directory or a GGUF file."""
    needed = ("transformers", "gguf", "accelerate") if gguf else ("transformers",)
    return [package for package in needed if not is_installed(package)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what libraries print while they load: progress bars and remarks, from C++ too."""
    with open(os.devnull, "w") as nowhere:
        saved = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
