"""Duplicate detection: exact and near copies planted among many documents, how many are found, and how fast."""

from __future__ import annotations

import random
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from conf import cli
from data import InputError
from data.corpus.corpora import documents
from data.curation.curate import CurateConfig
from data.curation.duplicates import SIGNATURE, duplicates, shingle_hashes, signature

from .measure import print_json, timed

LENGTHS = ((100, 200), (200, 1000), (1000, 5000))  # words; copies are planted, and recall is shown, in each class


@dataclass
class Config:
    """The keys of `python -m scripts.bench curate`."""

    # where the words come from; a list for several, such as '[pystdlib,shakespeare]'
    corpus: Any = field(default="pystdlib", metadata={"kind": "path", "list": True})
    documents: int = 20_000  # originals and copies
    exact: int = 1_000  # exact copies
    near: int = 1_000  # near copies
    changed: float = 0.05  # share of the words that differ in a near copy
    similarity: float = 0.65  # curate.similarity
    seed: int = 0
    datasets: str = field(default="datasets", metadata={"kind": "path"})  # where downloads are kept
    debug: bool = False

    def validate(self) -> list[str]:
        found = CurateConfig(similarity=self.similarity).validate()
        if not 0 < self.exact + self.near < self.documents // 2:
            found.append("exact + near copies must be more than none, and fewer than half of the documents")
        return found


@dataclass
class Planted:
    """Documents in random order, and the positions of the copies."""

    texts: list[str]
    is_val: np.ndarray  # (N,) bool
    exact: list[tuple[int, int]]  # positions of an original and its copy
    near: list[tuple[int, int]]


def originals(words: list[str], count: int, rng: random.Random) -> Iterator[str]:
    """Cuts a text into documents of 100 to 5,000 words, most of them short, that share nothing.

    words: the result of re.split with (\\w+), in which separators and words alternate.
    """
    if len(words) // 2 < 120 * count:
        raise InputError(f"the corpus has {len(words) // 2:,} words, too few for {count:,} documents of 100 or more")
    place = 0
    for left in range(count, 0, -1):
        mean = (len(words) - place) / 2 / left  # words per remaining document
        length = min(5000, int(100 * rng.paretovariate(max(1.05, mean / max(1, mean - 100)))))
        yield "".join(words[place : place + 2 * length])
        place += 2 * length


def near_copy(text: str, share: float, vocabulary: list[str], rng: random.Random) -> str:
    """Replaces a share of the words, at least one, by other words."""
    parts = re.split(r"(\w+)", text)
    places = range(1, len(parts), 2)
    for place in rng.sample(places, max(1, round(share * len(places)))):
        before = parts[place]
        while parts[place] == before:
            parts[place] = rng.choice(vocabulary)
    return "".join(parts)


def n_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def plant(cfg: Config) -> Planted:
    """The documents of the benchmark. A tenth of them are in validation."""
    rng = random.Random(cfg.seed)
    words = [part for d in documents(cfg.corpus, cache=cfg.datasets) for part in re.split(r"(\w+)", d.text + "\n")]
    texts = list(originals(words, cfg.documents - cfg.exact - cfg.near, rng))
    vocabulary = words[1:200_000:2]
    by_length = [[i for i, text in enumerate(texts) if low <= n_words(text) < high] for low, high in LENGTHS]
    copied: list[int] = []  # the originals to copy, evenly from all classes as long as they last
    for members in by_length:
        rng.shuffle(members)
    while len(copied) < cfg.exact + cfg.near:
        copied += [members.pop() for members in by_length if members]
    rng.shuffle(copied)
    del copied[cfg.exact + cfg.near :]
    copies = [texts[i] for i in copied[: cfg.exact]]
    copies += [near_copy(texts[i], cfg.changed, vocabulary, rng) for i in copied[cfg.exact :]]
    position = list(range(cfg.documents))
    rng.shuffle(position)
    shuffled = [""] * cfg.documents
    for place, text in zip(position, texts + copies, strict=True):
        shuffled[place] = text
    pairs = [(position[i], position[len(texts) + k]) for k, i in enumerate(copied)]
    is_val = np.array([rng.random() < 0.1 for _ in shuffled])
    return Planted(shuffled, is_val, pairs[: cfg.exact], pairs[cfg.exact :])


def jaccard(one: str, two: str) -> float:
    """The exact Jaccard similarity of two texts' shingles."""
    first, second = set(shingle_hashes(one).tolist()), set(shingle_hashes(two).tolist())
    return len(first & second) / max(1, len(first | second))


def main(cfg: Config, overrides: cli.Overrides) -> None:
    planted = plant(cfg)
    texts, is_val = planted.texts, planted.is_val
    rules = CurateConfig(near_duplicates=True, similarity=cfg.similarity)
    signature(texts[0], rules)  # builds the tables of characters, once per process

    def sign() -> tuple[np.ndarray, np.ndarray]:
        digests = b"".join(sha256(text.encode()).digest() for text in texts)
        signatures = b"".join(signature(text, rules) or b"" for text in texts)
        return (
            np.frombuffer(digests, np.uint8).reshape(-1, 32),
            np.frombuffer(signatures, np.uint8).reshape(-1, SIGNATURE),
        )

    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    sign_seconds, disturbed, (digests, signatures) = timed(sign)
    compare_seconds, _, found = timed(lambda: duplicates(digests, signatures, is_val, rules))
    pairs = planted.exact + planted.near
    in_pairs = {position for pair in pairs for position in pair}
    others = {position: copy for position, copy in found.items() if not {position, copy.original} & in_pairs}
    wrong = sum(jaccard(texts[position], texts[copy.original]) < cfg.similarity for position, copy in others.items())

    def recall(some: list[tuple[int, int]]) -> float:
        return sum(one in found or two in found for one, two in some) / max(1, len(some))

    across = [pair for pair in pairs if is_val[pair[0]] != is_val[pair[1]]]
    removed = [pair for pair in across if any(p in found and found[p].removed and not is_val[p] for p in pair)]
    lengths = [(pair, n_words(texts[pair[0]])) for pair in planted.near]
    figures = {
        "documents": cfg.documents,
        "megabytes": round(megabytes, 1),
        "exact copies found": recall(planted.exact),
        "near copies found": recall(planted.near),
    }
    for low, high in LENGTHS:
        figures[f"near copies found, {low:,} to {high:,} words"] = recall([p for p, n in lengths if low <= n < high])
    figures |= {
        "copies across the splits": len(across),
        "share of these removed from training": len(removed) / max(1, len(across)),
        "other documents found": len(others),
        "false positives among these (by exact similarity)": wrong,
        "false positives, share of all other documents": wrong / (cfg.documents - len(in_pairs)),
        "seconds for digests and signatures": round(sign_seconds, 2),
        "megabytes per second": round(megabytes / sign_seconds, 1),
        "seconds for the comparison": round(compare_seconds, 2),
        "peak memory, megabytes (texts included)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "disturbed": disturbed,
    }
    for name, value in figures.items():
        print(f"{name:<50} {value:,.4g}" if isinstance(value, float) else f"{name:<50} {value:,}")
    print_json({"benchmark": "curate"} | figures)
