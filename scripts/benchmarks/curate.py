"""Planted copies: how many exact and near copies among many documents are found, how many others, and how fast."""

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

CLASSES = ((100, 200), (200, 1000), (1000, 5000))  # words a document: their results are shown apart too


@dataclass
class Config:
    """The keys of `python -m scripts.bench curate`."""

    # where the words come from; a list for several, such as '[pystdlib,shakespeare]'
    corpus: Any = field(default="pystdlib", metadata={"kind": "path", "list": True})
    documents: int = 20_000  # in all
    exact: int = 1_000  # of which are exact copies of others
    near: int = 1_000  # and copies in which
    changed: float = 0.05  # this share of the words is another word
    similarity: float = 0.65  # curate.similarity
    seed: int = 0
    datasets: str = field(default="datasets", metadata={"kind": "path"})  # where downloads are kept
    debug: bool = False

    def validate(self) -> list[str]:
        found = CurateConfig(similarity=self.similarity).validate()
        if not 0 < self.exact + self.near < self.documents // 2:
            found.append("exact + near copies must be fewer than half of the documents, and more than none")
        return found


@dataclass
class Planted:
    """Documents in random order, and where the copies are."""

    texts: list[str]
    is_val: np.ndarray  # (N,) bool
    exact: list[tuple[int, int]]  # positions of an original and its copy
    near: list[tuple[int, int]]


def windows(words: list[str], count: int, rng: random.Random) -> Iterator[str]:
    """Texts of 100 to 5,000 words, most of them short, side by side so that no two share anything.

    words: what re.split gives for (\\w+): separators and words take turns.
    """
    if len(words) // 2 < 120 * count:
        raise InputError(f"the corpus has {len(words) // 2:,} words, too few for {count:,} documents of 100 and more")
    place = 0
    for left in range(count, 0, -1):
        mean = (len(words) - place) / 2 / left  # words for each that is still to come
        length = min(5000, int(100 * rng.paretovariate(max(1.05, mean / max(1, mean - 100)))))
        yield "".join(words[place : place + 2 * length])
        place += 2 * length


def changed(text: str, share: float, vocabulary: list[str], rng: random.Random) -> str:
    """The text with a share of its words, at least one, replaced by others."""
    parts = re.split(r"(\w+)", text)
    places = range(1, len(parts), 2)
    for place in rng.sample(places, max(1, round(share * len(places)))):
        before = parts[place]
        while parts[place] == before:
            parts[place] = rng.choice(vocabulary)
    return "".join(parts)


def plant(cfg: Config) -> Planted:
    """The documents of the benchmark, a tenth of them in validation."""
    rng = random.Random(cfg.seed)
    words = [part for d in documents(cfg.corpus, cache=cfg.datasets) for part in re.split(r"(\w+)", d.text + "\n")]
    originals = list(windows(words, cfg.documents - cfg.exact - cfg.near, rng))
    vocabulary = words[1:200_000:2]
    by_class = [[i for i, text in enumerate(originals) if low <= length_of(text) < high] for low, high in CLASSES]
    chosen: list[int] = []  # evenly from all classes, as far as they have any
    for members in by_class:
        rng.shuffle(members)
    while len(chosen) < cfg.exact + cfg.near:
        chosen += [members.pop() for members in by_class if members]
    rng.shuffle(chosen)
    copies = [originals[i] for i in chosen[: cfg.exact]]
    copies += [changed(originals[i], cfg.changed, vocabulary, rng) for i in chosen[cfg.exact : cfg.exact + cfg.near]]
    order = list(range(cfg.documents))
    rng.shuffle(order)  # order[k]: where document k comes to stand
    texts = [""] * cfg.documents
    for place, text in zip(order, originals + copies, strict=True):
        texts[place] = text
    pairs = [(order[i], order[len(originals) + k]) for k, i in enumerate(chosen[: cfg.exact + cfg.near])]
    is_val = np.array([rng.random() < 0.1 for _ in texts])
    return Planted(texts, is_val, pairs[: cfg.exact], pairs[cfg.exact :])


def length_of(text: str) -> int:
    return len(re.findall(r"\w+", text))


def jaccard(one: str, two: str) -> float:
    """The share of their shingles that both texts have, counted."""
    first, second = set(shingle_hashes(one).tolist()), set(shingle_hashes(two).tolist())
    return len(first & second) / max(1, len(first | second))


def main(cfg: Config, overrides: cli.Overrides) -> None:
    planted = plant(cfg)
    texts, is_val = planted.texts, planted.is_val
    rules = CurateConfig(near_duplicates=True, similarity=cfg.similarity)
    signature(texts[0], rules)  # the tables of characters, once a process
    result: dict[str, Any] = {}

    def sign() -> None:
        digests = b"".join(sha256(text.encode()).digest() for text in texts)
        result["digests"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        signatures = b"".join(signature(text, rules) or b"" for text in texts)
        result["signatures"] = np.frombuffer(signatures, np.uint8).reshape(-1, SIGNATURE)

    def compare() -> None:
        result["found"] = duplicates(result["digests"], result["signatures"], is_val, rules)

    n_bytes = sum(len(text.encode()) for text in texts)
    (signing, disturbed), (comparing, _) = timed(sign), timed(compare)
    found = result["found"]
    copies = {position for pair in planted.exact + planted.near for position in pair}
    others = {position: copy for position, copy in found.items() if not {position, copy.of} & copies}
    nearness = [jaccard(texts[position], texts[copy.of]) for position, copy in others.items()]
    wrong = sum(value < cfg.similarity for value in nearness)
    plain = cfg.documents - len(copies)

    def recall(pairs: list[tuple[int, int]]) -> float:
        return sum(one in found or two in found for one, two in pairs) / max(1, len(pairs))

    across = [pair for pair in planted.exact + planted.near if is_val[pair[0]] != is_val[pair[1]]]
    removed = [pair for pair in across if any(p in found and found[p].removed and not is_val[p] for p in pair)]
    lengths = [(pair, length_of(texts[pair[0]])) for pair in planted.near]
    figures = {
        "documents": cfg.documents,
        "megabytes": round(n_bytes / 1e6, 1),
        "exact copies found": recall(planted.exact),
        "near copies found": recall(planted.near),
    }
    for low, high in CLASSES:
        figures[f"near copies found, {low:,} to {high:,} words"] = recall([p for p, n in lengths if low <= n < high])
    figures |= {
        "copies across the splits": len(across),
        "of these removed from training": len(removed) / max(1, len(across)),
        "other documents found": len(others),
        "of these less near than asked, by counting": wrong,
        "the least near of them": min(nearness, default=1.0),
        "false positives: these, as a share of all others": wrong / plain,
        "seconds for digests and signatures": round(signing, 2),
        "megabytes a second": round(n_bytes / 1e6 / signing, 1),
        "seconds for the comparison": round(comparing, 2),
        "peak memory, megabytes (texts included)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "disturbed": disturbed,
    }
    for name, value in figures.items():
        print(f"{name:<46} {value:,.4g}" if isinstance(value, float) else f"{name:<46} {value:,}")
    print_json({"benchmark": "curate"} | figures)
