"""Exports a checkpoint for other programs: a Hugging Face directory or a GGUF file, with a proof."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from conf import cli
from conf.run.runs import corpus_of
from data.exchange import tokenizer_gguf, tokenizer_json
from data.exchange.imported import Imported
from data.exchange.model_card import ModelFacts, model_card
from data.exchange.tasks import encode, proof_texts
from data.exchange.tokenizer_folder import to_huggingface
from data.files import new_path
from data.labelled.templates import ChatTemplate, Task
from data.tokenizers.build import Tokenizer
from data.tokenizers.build import load as load_tokenizer
from data.tokenizers.kinds import BytePairTokenizer
from model import InputError
from model.checkpoints import reader
from model.checkpoints.reader import Checkpoint, weight_shapes
from model.exchange import gguf_model, huggingface
from model.exchange.gguf_file import GgufFile
from model.exchange.other_programs import (
    LlamaCpp,
    Ours,
    Transformers,
    is_installed,
    missing_for_transformers,
    transformers_reads,
)
from model.exchange.proof import DIVERGENCE, EXACT, Program, Tasks, logits_of
from model.exchange.proof import prove as prove_equal
from model.exchange.source import Source, SpecialIds
from model.inference.quantize import QualityLoss, compare_logits
from model.threads import share_cpus

CPU = torch.device("cpu")
FORMATS, TYPES = ("hf", "gguf"), ("F32", "F16", "Q8_0")
IN_GGUF = {"needs": ("format=gguf",)}


@dataclass
class ExportConfig:
    """The keys of `python -m scripts.export`."""

    checkpoint: str | None = field(default=None, metadata={"kind": "path"})  # a run directory
    format: str = "hf"  # hf: a directory for transformers | gguf: a file for llama.cpp
    out: str | None = field(default=None, metadata={"kind": "path"})  # the directory or .gguf file to make
    type: str = field(default="F32", metadata=IN_GGUF)  # F32 | F16 | Q8_0: how matrices are stored
    proof: bool = True  # compare with transformers and llama.cpp, where they are installed
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.checkpoint else ["checkpoint is required: a run directory, such as checkpoint=out/notes"]
        if not self.out:
            found.append("out is required: a new directory, such as out=out/export, or a file such as out=notes.gguf")
        if self.format not in FORMATS:
            found.append(f"format={self.format!r} is not one of {', '.join(FORMATS)}")
        if self.type not in TYPES:
            found.append(f"type={self.type!r} is not one of {', '.join(TYPES)}")
        if self.format == "hf" and self.out and Path(self.out).suffix.lower() == ".gguf":
            found.append(f"out={self.out} names a GGUF file: set format=gguf, or name a directory")
        if self.format == "gguf" and self.out and Path(self.out).suffix.lower() != ".gguf":
            found.append(f"out={self.out} must be a file that ends in .gguf")
        return found


@dataclass(frozen=True)
class Exported:
    """A checkpoint with all that an export needs of it."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    chat: ChatTemplate | None

    @staticmethod
    def of(path: Path) -> Exported:
        found = reader.find(path)
        tokenizer = load_tokenizer(found.directory / "tokenizer")
        found.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
        task = Task.load(found.directory)
        return Exported(found, tokenizer, task.chat if task else None)

    def facts(self, family: str, proof: list[str], name: str) -> ModelFacts:
        """What the model card says: from the step's manifest and the run's config.yaml."""
        manifest, config = self.checkpoint.manifest, self.checkpoint.config
        corpus = corpus_of(self.checkpoint.directory.parent)
        parameters = sum(math.prod(shape) for shape in weight_shapes(config).values())
        return ModelFacts(
            name=name, family=family, parameters=parameters, context=config.context, corpus=corpus,
            tokenizer=self.tokenizer.kind, vocab_size=config.vocab_size, chat=self.chat is not None, path=name,
            licence=manifest.get("licence"), origin=manifest.get("source"), proof=proof,
            step=manifest["step"] or None, tokens=manifest.get("tokens") or None, loss=manifest.get("val_loss"),
            bits_per_byte=manifest.get("val_bits_per_byte"),
        )  # fmt: skip

    def write_huggingface(self, folder: Path) -> str:
        """Writes weights, settings and tokenizer; returns the name of the class."""
        config = self.checkpoint.config
        ids = SpecialIds(tokenizer_json.end_of(self.tokenizer, self.chat), start_id=self.tokenizer.stream_start)
        name = huggingface.write_model(folder, config, self.checkpoint.weights(), ids=ids)
        to_huggingface(folder, self.tokenizer, context=config.context, chat=self.chat)
        return name

    def write_gguf(self, path: Path, kind: str) -> str:
        tokenizer = tokenizer_gguf.to_gguf(self.tokenizer, self.chat)
        about = {"name": self.checkpoint.directory.parent.name}
        if licence := self.checkpoint.manifest.get("licence"):
            about["license"] = licence
        weights, config = self.checkpoint.weights(), self.checkpoint.config
        return gguf_model.write_model(path, config, weights, kind=kind, tokenizer=tokenizer, about=about)


def prove(path: Path, exported: Exported, cfg: ExportConfig) -> list[str]:
    """Reads what was written with this project's own reader and the other programs. Raises InputError."""
    config, tokenizer = exported.checkpoint.config, exported.tokenizer
    weights = exported.checkpoint.weights()
    source, imported = read_again(path, cfg.format, tokenizer)
    texts = proof_texts(tokenizer, known_only=cfg.format == "gguf")
    tasks = Tasks.of(**texts, vocab_size=config.vocab_size, context=config.context)
    exact = logits_of(Ours.of(config, weights, partial(encode, tokenizer)), tasks)
    ours = Ours.of(source.config, source.weights, partial(encode, imported.tokenizer))
    print("proof: the same answers from")
    loss = compare_logits(exact, logits_of(ours, tasks))
    lines = [compare_weights(source, weights, loss, cfg)]
    print(f"  {lines[0]}")
    lines += [compare_tokenizers(tokenizer, imported.tokenizer, tasks)]
    print(f"  {lines[1]}")
    return lines + prove_equal(ours, others(path, cfg, source), tasks, context=config.context)


def read_again(path: Path, format: str, tokenizer: Tokenizer) -> tuple[Source, Imported]:
    if format == "hf":
        trusted = tokenizer.pattern.expression if isinstance(tokenizer, BytePairTokenizer) else None
        return huggingface.read_model(path), tokenizer_json.from_huggingface(path, trusted=trusted)
    file = GgufFile(path)
    return gguf_model.read_model(file), tokenizer_gguf.from_gguf(file.metadata)


def compare_weights(source: Source, weights: Mapping[str, Tensor], loss: QualityLoss, cfg: ExportConfig) -> str:
    """Says that the weights are the same bits, or what rounding them costs. Raises InputError if they differ.

    loss: of the logits. It shows too whether the settings, which are not weights, are the same.
    """
    rounded = cfg.format == "gguf" and cfg.type != "F32"
    if not (loss.divergence <= DIVERGENCE if rounded else loss.largest <= EXACT):
        raise InputError(f"not published: {loss} when the model is read again")
    if rounded:
        return f"read again: rounded to {cfg.type}, {loss}"
    for name, value in source.weights.items():
        if not torch.equal(value, weights[name] if name in weights else neutral(value, name)):
            raise InputError(f"not published: {name} has other bits when it is read again")
    return f"read again: {len(source.weights)} tensors, the same bits"


def neutral(value: Tensor, name: str) -> Tensor:
    """What a weight that the network lacks and the format asks for must be: a bias of 0, or a norm's weight of 1."""
    return torch.zeros_like(value) if name.endswith(".bias") else torch.ones_like(value)


def compare_tokenizers(ours: Tokenizer, again: Tokenizer, tasks: Tasks) -> str:
    for special, texts in ((False, tasks.plain), (True, tasks.special)):
        for text in texts:
            if encode(ours, text, special) != encode(again, text, special):
                raise InputError(f"not published: the tokenizer gives other ids when it is read again: {text[:40]!r}")
    return f"read again: the same ids of {len(tasks.plain) + len(tasks.special):,} texts"


def others(path: Path, cfg: ExportConfig, source: Source) -> Iterator[Callable[[], Program]]:
    """The other programs that can read what was written; says which are not installed."""
    readers: dict[str, tuple[list[str], Callable[[], Program]]] = {}  # what is missing, and how to open it
    if cfg.format == "hf":
        readers["transformers"] = missing_for_transformers(gguf=False), lambda: Transformers(path)
    else:
        if transformers_reads(source):
            missing = missing_for_transformers(gguf=True)
            readers["transformers"] = missing, lambda: Transformers.of_gguf(GgufFile(path))
        missing = [] if is_installed("llama_cpp") else ["llama_cpp"]
        readers["llama.cpp"] = missing, lambda: LlamaCpp(path, context=source.config.context, kind=cfg.type)
    for name, (missing, open_program) in readers.items():
        if missing:
            print(f"note: not compared with {name}: {', '.join(missing)} is not installed")
        else:
            yield open_program


def main(cfg: ExportConfig, overrides: cli.Overrides) -> None:
    start, target = time.perf_counter(), Path(cfg.out or "").expanduser()
    exported = Exported.of(Path(cfg.checkpoint or "").expanduser())
    with new_path(target) as path, share_cpus(CPU):
        if cfg.format == "hf":
            name = exported.write_huggingface(path)
        else:
            name = exported.write_gguf(path, cfg.type)
        lines = prove(path, exported, cfg) if cfg.proof else []
        if cfg.format == "hf":
            (path / "README.md").write_text(model_card(exported.facts(name, lines, target.name)), encoding="utf-8")
    print(f"{exported.checkpoint.directory} -> {target} ({name}) in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    cli.run(main, ExportConfig, name="export")
