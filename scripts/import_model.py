"""Imports a pretrained model: a Hugging Face directory or a GGUF file becomes a run directory, with a proof."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from conf import cli
from data.exchange import tokenizer_gguf, tokenizer_json
from data.exchange.imported import Imported
from data.exchange.smollm2 import PRETRAINED, Pretrained
from data.exchange.tasks import PROMPT, encode, proof_texts
from data.files import new_path
from data.labelled.templates import Task
from data.tokenizers.build import Tokenizer, TokenizerConfig, build, load
from model import InputError
from model.checkpoints import reader
from model.checkpoints.writer import Peers, Snapshot, write
from model.exchange import gguf_model, huggingface
from model.exchange.gguf_file import GgufFile
from model.exchange.other_programs import (
    Ours,
    Transformers,
    is_installed,
    missing_for_transformers,
    transformers_reads,
)
from model.exchange.proof import Program, Tasks
from model.exchange.proof import prove as prove_equal
from model.exchange.source import Source
from model.threads import share_cpus

CPU = torch.device("cpu")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
HUB_FILES = ["*.json", "model*.safetensors", "tokenizer.model", "chat_template.jinja"]


@dataclass
class ImportConfig:
    """The keys of `python -m scripts.import_model`."""

    # smollm2, a Hugging Face directory, a .gguf file, or the name of a model on the Hugging Face hub
    source: str | None = field(default=None, metadata={"kind": "path"})
    run_dir: str | None = field(default=None, metadata={"kind": "path"})  # the run directory to make
    # for a source without one: the folder of a saved tokenizer, or gpt2
    tokenizer: str | None = field(default=None, metadata={"kind": "path"})
    datasets: str = field(default="datasets", metadata={"kind": "path"})  # where downloads are kept
    proof: bool = True  # compare with transformers' reading of the same files, where it is installed
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.source else [f"source is required: {', '.join(PRETRAINED)}, a directory or a .gguf file"]
        return found + ([] if self.run_dir else ["run_dir is required: a new directory, such as run_dir=out/smollm2"])


@dataclass(frozen=True)
class Origin:
    """Where a model comes from. One of folder and gguf is set."""

    name: str
    known: Pretrained | None = None
    folder: Path | None = None
    gguf: Path | None = None


def find(cfg: ImportConfig) -> Origin:
    """The files that source= names; fetched if it is a known model or a name on the hub. Raises InputError."""
    name = cfg.source or ""
    if name in PRETRAINED:
        known = PRETRAINED[name]
        if not is_installed("gguf"):
            raise InputError(f"source={name} needs the extra gguf: pip install -e '.[gguf]'")
        print(known.attribution)
        return Origin(name, known, gguf=known.fetch(Path(cfg.datasets).expanduser()))
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() in huggingface.PICKLES:
            raise InputError(
                f"source={name} is a pickle, which can run any code when it is opened, so it is not opened here; "
                "convert it to safetensors where it was made: see scripts/README.md#nanogpt"
            )
        return Origin(path.name, gguf=path)
    if path.is_dir():
        if any(path.glob("step_*/manifest.json")):
            raise InputError(f"source={name} is a run directory already: use it as checkpoint={name}")
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "config.json").exists() or not ggufs:
            return Origin(path.resolve().name, folder=path)
        if len(ggufs) > 1:
            raise InputError(f"source={name} holds {len(ggufs)} GGUF files: name one, such as source={ggufs[0]}")
        return Origin(ggufs[0].name, gguf=ggufs[0])
    if HUB_NAME.fullmatch(name) and not os.path.exists(path.parent):
        return Origin(name, folder=from_hub(name))
    raise InputError(f"source={name}: there is no such directory or file; known names: {', '.join(PRETRAINED)}")


def from_hub(name: str) -> Path:
    """Downloads a model from the Hugging Face hub, without pickles and code."""
    if not is_installed("huggingface_hub"):
        raise InputError(f"source={name} is not a path; to fetch it from the hub: pip install -e '.[hub]'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # its own classes, and those of the HTTP library below it
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"source={name} cannot be fetched from the hub: {reason}") from None


def read(origin: Origin, tokenizer: Tokenizer | None) -> tuple[Source, Imported, Callable[[], Program] | None]:
    """The model, its tokenizer and the other program if it reads both; weights are read when they are accessed."""
    if origin.gguf is not None:
        if tokenizer is not None:
            raise InputError("tokenizer= is for a directory without one; a GGUF file has its own: leave it out")
        source = gguf_model.read_model(file := GgufFile(origin.gguf))
        other = partial(Transformers.of_gguf, file) if transformers_reads(source) else None
        return source, tokenizer_gguf.from_gguf(file.metadata), other
    assert origin.folder is not None
    if tokenizer is not None:
        return huggingface.read_model(origin.folder), Imported(tokenizer), None
    other = partial(Transformers, origin.folder)
    return huggingface.read_model(origin.folder), tokenizer_json.from_huggingface(origin.folder), other


def given_tokenizer(cfg: ImportConfig) -> Tokenizer | None:
    """The tokenizer that tokenizer= names."""
    if cfg.tokenizer is None:
        return None
    if cfg.tokenizer == "gpt2":
        config = TokenizerConfig(kind="tiktoken", encoding="gpt2")
        return build(config, [], cache=Path(cfg.datasets).expanduser())
    return load(Path(cfg.tokenizer).expanduser())


def write_run(run_dir: Path, source: Source, imported: Imported, facts: dict[str, Any]) -> Path:
    """Writes the run directory's only step, number 0, without training state; returns it."""
    tokenizer, chat = imported.tokenizer, imported.chat
    files = [lambda step: tokenizer.save(step / "tokenizer")]
    if chat is not None:
        files.append(Task(chat=chat).save)
    weights = {name: source.weights[name] for name in sorted(source.weights)}
    manifest = {"tokens": 0, "tokenizer_fingerprint": tokenizer.fingerprint, **facts}
    new = Snapshot(0, source.config, {"model.safetensors": weights}, {}, None, manifest, files)
    if not new.is_finite():
        raise InputError("weights hold NaN or infinity: the file is damaged, or the model diverged; get another copy")
    return write(run_dir, new, best=True, keep_last=1, peers=Peers())


def prove(step: Path, origin: Origin, tokenizer: Tokenizer, other: Callable[[], Program]) -> list[str]:
    """Compares what was written, read again, with transformers' reading of the source. Raises InputError."""
    if missing := missing_for_transformers(gguf=origin.gguf is not None):
        print(f"note: not compared with transformers: pip install -e '.[proof]' installs {', '.join(missing)}")
        return []
    config = (checkpoint := reader.verify(step)).config
    tasks = Tasks.of(**proof_texts(tokenizer), vocab_size=config.vocab_size, context=config.context)
    print("proof: the same answers from")
    return prove_equal(
        Ours(checkpoint.model(CPU), partial(encode, tokenizer)),
        [other],
        tasks,
        context=config.context,
    )


def main(cfg: ImportConfig, overrides: cli.Overrides) -> None:
    start = time.perf_counter()
    run_dir = Path(cfg.run_dir or "").expanduser()
    with new_path(run_dir) as temporary, share_cpus(CPU):
        origin = find(cfg)
        source, imported, other = read(origin, given_tokenizer(cfg))
        imported = imported.filled(source.config.vocab_size)
        for note in (*source.notes, *imported.notes):
            print(f"note: {note}")
        facts = {"source": origin.name, "architecture": source.architecture}
        if origin.known:
            facts |= {"source": origin.known.attribution, "licence": origin.known.licence}
        step = write_run(temporary, source, imported, facts)
        if cfg.proof and other is not None:
            prove(step, origin, imported.tokenizer, other)
        elif cfg.proof:
            print("note: not compared with transformers, which does not read this model with its tokenizer")
    print(f"{origin.name} -> {run_dir} in {time.perf_counter() - start:.0f} s; next:")
    checkpoint = shlex.quote(f"checkpoint={run_dir}")
    print(f'  python sample.py {checkpoint} mode=next_word prompt="{PROMPT}"')
    if imported.chat is not None:
        print(f"  python sample.py {checkpoint} mode=chat temperature=0.3")


if __name__ == "__main__":
    cli.run(main, ImportConfig, name="import_model")
