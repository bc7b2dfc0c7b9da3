"""Preparation at full size: MB/s, and the memory of all its processes together, on a corpus that is made for it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf import cli
from data.corpus.corpora import documents
from data.pool import ROOT, available_cpus

from .measure import Target, print_json

MOST_MEMORY = 400e6  # bytes
TRAINED, GIVEN = "tokenizer trained on a sample", "given tokenizer"
WANTED = {TRAINED: 20e6, GIVEN: 28e6}  # bytes/s on two cores
LAYOUTS = ("jsonl", "files", "text")
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "ou")]


@dataclass
class Config:
    """The keys of `python -m scripts.bench prepare`."""

    sizes: list[float] = field(default_factory=lambda: [200e6, 2e9])  # bytes of the corpora
    layout: str = "jsonl"  # jsonl: files of 100 MB; files: one a document; text: one file, documents set apart by lines
    vocab_size: int = 16384
    folder: str | None = None  # where to work, and to keep the corpora; null: a temporary folder
    datasets: str = field(default="datasets", metadata={"kind": "path"})  # where the built-in corpora's downloads are
    workers: int = 0
    every: float = 0.1  # seconds between two looks at the memory
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.layout in LAYOUTS else [f"layout={self.layout!r} is not one of {', '.join(LAYOUTS)}"]
        if not self.sizes or min(self.sizes) < 1e6:
            found.append(f"sizes={self.sizes} must be numbers of bytes, at least 1e6")
        return found


def texts(paragraphs: list[str], size: int) -> Iterator[str]:
    """Documents of `size` bytes in all, of paragraphs in a random order, most of them with a word that never was."""
    draw = random.Random(0)
    while size > 0:
        chosen = draw.choices(paragraphs, k=min(200, 1 + int(draw.paretovariate(0.9))))
        invented = ["".join(draw.choices(SYLLABLES, k=draw.randrange(2, 5))) for _ in chosen]
        text = "\n\n".join(f"{word} {paragraph}" for word, paragraph in zip(invented, chosen, strict=True))
        size -= len(text.encode())
        yield text


def make_corpus(folder: Path, cfg: Config, size: int) -> Path:
    """The corpus, made in `folder` from the built-in ones if it is not there yet."""
    target = folder / f"{cfg.layout}-{size // 10**6}MB"
    if target.exists():
        return target
    paragraphs = [
        paragraph
        for document in documents(["shakespeare", "pystdlib"], cache=cfg.datasets)
        for paragraph in re.split(r"\n\s*\n", document.text)
        if paragraph.strip()
    ]
    making = Path(tempfile.mkdtemp(dir=folder))
    stream, written = None, 0
    for number, text in enumerate(texts(paragraphs, size)):
        if cfg.layout == "files":
            path = making / f"{number // 1000:06d}" / f"{number:09d}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            continue
        if stream is None or (cfg.layout == "jsonl" and stream.tell() > 100e6):
            stream = (making / f"{number:09d}.{'jsonl' if cfg.layout == 'jsonl' else 'txt'}").open("wb")
        line = json.dumps({"id": number, "text": text}, ensure_ascii=False) if cfg.layout == "jsonl" else f"{text}\n<|>"
        stream.write(line.encode() + b"\n")
        written += 1
    if stream:
        stream.close()
    making.rename(target)
    return target


def memory_of(process: int) -> tuple[int, int]:
    """(PSS, RSS) in bytes, summed over a process and all below it. PSS counts a page that several share once."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    pss = rss = 0
    todo = [process]
    while todo:
        number = todo.pop()
        todo += parents.get(number, [])
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        figures = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines[1:])}
        pss, rss = pss + figures.get("Pss", 0) * 1024, rss + figures.get("Rss", 0) * 1024
    return pss, rss


def measure(cfg: Config, corpus: Path, datasets: Path, *settings: str) -> dict[str, Any]:
    """Prepares a corpus in a process of its own."""
    command = [sys.executable, "-m", "scripts.prepare", f"corpus={corpus}", f"datasets={datasets}"]
    command += [f"workers={cfg.workers}", *settings]
    if cfg.layout == "text":
        command.append("document_separator=<|>")
    n_bytes = sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file())
    start, peak, peak_rss, log = time.perf_counter(), 0, 0, datasets.parent / "prepare.log"
    with log.open("w") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as process:
        while process.poll() is None:
            pss, rss = memory_of(process.pid)
            peak, peak_rss = max(peak, pss), max(peak_rss, rss)
            time.sleep(cfg.every)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise cli.InputError(f"{' '.join(command)} failed: {log.read_text()[-500:]}")
    return {
        "bytes": n_bytes,
        "seconds": round(seconds, 2),
        "megabytes_per_second": round(n_bytes / seconds / 1e6, 2),
        "peak_pss": peak,
        "peak_rss": peak_rss,
        "folder": log.read_text().split()[-1],
    }


def main(cfg: Config, overrides: cli.Overrides) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(cfg.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows: dict[str, Any] = {}
        for size in map(int, cfg.sizes):
            corpus, datasets = make_corpus(folder, cfg, size), folder / "prepared"
            shutil.rmtree(datasets, ignore_errors=True)
            datasets.mkdir()
            trained = measure(cfg, corpus, datasets, f"tokenizer.vocab_size={cfg.vocab_size}")
            given = f"tokenizer.path={trained['folder']}/tokenizer"
            again = measure(cfg, corpus, datasets, given)
            shutil.rmtree(datasets, ignore_errors=True)
            for name, row in ((TRAINED, trained), (GIVEN, again)):
                rows[f"{size / 1e6:,.0f} MB, {name}"] = row
                print(
                    f"{size / 1e6:>7,.0f} MB, {name:<30} {row['megabytes_per_second']:>6.1f} MB/s in "
                    f"{row['seconds']:.0f} s; peak memory {row['peak_pss'] / 1e6:.0f} MB (PSS of all processes; the "
                    f"sum of their RSS {row['peak_rss'] / 1e6:.0f})",
                    flush=True,
                )
                print(Target(f"MB/s on {available_cpus()} CPUs", row["megabytes_per_second"] * 1e6 / WANTED[name], 1.0))
                print(Target(f"{MOST_MEMORY / 1e6:.0f} MB against its memory", MOST_MEMORY / row["peak_pss"], 1.0))
        print_json({"benchmark": "prepare", "layout": cfg.layout, "cpus": available_cpus(), "runs": rows})
