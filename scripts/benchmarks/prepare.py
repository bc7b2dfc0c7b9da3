"""Preparation at full size: MB/s and the memory of all its processes, on a corpus generated for it."""

from __future__ import annotations

import json
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
from conf.cli.child import descendants
from data.corpus.corpora import documents
from data.pool import available_cpus

from .measure import ROOT, print_json

FILE_SIZE = 100_000_000  # characters in each JSON Lines file
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "ou")]


@dataclass
class Config:
    """The keys of `python -m scripts.bench prepare`."""

    sizes: list[float] = field(default_factory=lambda: [200e6, 2e9])  # bytes of each corpus
    vocab_size: int = 16384
    # where to work and keep the corpora; null: a temporary folder
    folder: str | None = field(default=None, metadata={"kind": "path"})
    datasets: str = field(default="datasets", metadata={"kind": "path"})  # where downloads are kept
    workers: int = 0  # 0: as many as there are CPUs
    every: float = 0.1  # seconds between two readings of the memory
    debug: bool = False

    def validate(self) -> list[str]:
        if self.sizes and min(self.sizes) >= 1e6:
            return []
        return [f"sizes={self.sizes} must be numbers of bytes, at least 1e6"]


def texts(paragraphs: list[str], size: int) -> Iterator[str]:
    """Yields documents of random paragraphs, `size` bytes in all. Each paragraph starts with an invented word."""
    draw = random.Random(0)
    while size > 0:
        chosen = draw.choices(paragraphs, k=min(200, 1 + int(draw.paretovariate(0.9))))
        invented = ["".join(draw.choices(SYLLABLES, k=draw.randrange(2, 5))) for _ in chosen]
        text = "\n\n".join(f"{word} {paragraph}" for word, paragraph in zip(invented, chosen, strict=True))
        size -= len(text.encode())
        yield text


def make_corpus(folder: Path, cfg: Config, size: int) -> Path:
    """Writes the corpus as JSON Lines, unless `folder` has it already."""
    target = folder / f"jsonl-{size // 10**6}MB"
    if target.exists():
        return target
    paragraphs = [
        paragraph
        for document in documents(["shakespeare", "pystdlib"], cache=cfg.datasets)
        for paragraph in re.split(r"\n\s*\n", document.text)
        if paragraph.strip()
    ]
    unfinished = Path(tempfile.mkdtemp(dir=folder))
    written = 0
    for number, text in enumerate(texts(paragraphs, size)):
        line = json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n"
        with (unfinished / f"{written // FILE_SIZE:05d}.jsonl").open("a", encoding="utf-8") as file:
            written += file.write(line)
    unfinished.rename(target)
    return target


def memory_of(process: int) -> tuple[int, int]:
    """(PSS, RSS) in bytes of a process and all its descendants. PSS counts pages that several share once."""
    pss = rss = 0
    for number in (process, *descendants(process)):
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        figures = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines[1:])}
        pss, rss = pss + figures.get("Pss", 0) * 1024, rss + figures.get("Rss", 0) * 1024
    return pss, rss


def measure(cfg: Config, corpus: Path, datasets: Path, *settings: str) -> dict[str, Any]:
    """Prepares a corpus in a new process, and watches its memory."""
    command = [sys.executable, "-m", "scripts.prepare", f"corpus={corpus}", f"datasets={datasets}"]
    command += [f"workers={cfg.workers}", *settings]
    n_bytes = sum(path.stat().st_size for path in corpus.iterdir())
    start, peak_pss, peak_rss, log = time.perf_counter(), 0, 0, datasets.parent / "prepare.log"
    with log.open("w") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as process:
        while process.poll() is None:
            pss, rss = memory_of(process.pid)
            peak_pss, peak_rss = max(peak_pss, pss), max(peak_rss, rss)
            time.sleep(cfg.every)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise cli.InputError(f"{' '.join(command)} failed: {log.read_text()[-500:]}")
    return {
        "bytes": n_bytes,
        "seconds": round(seconds, 2),
        "megabytes_per_second": round(n_bytes / seconds / 1e6, 2),
        "peak_pss": peak_pss,
        "peak_rss": peak_rss,
        "folder": log.read_text().split()[-1],
    }


def main(cfg: Config, overrides: cli.Overrides) -> None:
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(cfg.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for size in map(int, cfg.sizes):
            corpus, datasets = make_corpus(folder, cfg, size), folder / "prepared"
            shutil.rmtree(datasets, ignore_errors=True)
            datasets.mkdir()
            trained = measure(cfg, corpus, datasets, f"tokenizer.vocab_size={cfg.vocab_size}")
            given = measure(cfg, corpus, datasets, f"tokenizer.path={trained['folder']}/tokenizer")
            shutil.rmtree(datasets, ignore_errors=True)
            for name, row in (("trained tokenizer", trained), ("given tokenizer", given)):
                rows[f"{size / 1e6:,.0f} MB, {name}"] = row
                print(
                    f"{size / 1e6:>7,.0f} MB, {name:<18} {row['megabytes_per_second']:>6.1f} MB/s in "
                    f"{row['seconds']:.0f} s; peak memory of all processes {row['peak_pss'] / 1e6:.0f} MB (PSS), "
                    f"{row['peak_rss'] / 1e6:.0f} MB (sum of RSS)",
                    flush=True,
                )
    print_json({"benchmark": "prepare", "cpus": available_cpus(), "runs": rows})
