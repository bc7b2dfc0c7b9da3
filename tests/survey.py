"""A survey: the report of documents in memory, by the rules and statistics of preparation, without writing shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from hashlib import sha256

import numpy as np

from data.corpus.reading import Document
from data.curation.curate import CurateConfig, clean, refuse
from data.curation.duplicates import SIGNATURE, duplicates, signature
from data.curation.removals import Removals, size
from data.reporting.advice import Summary
from data.reporting.baselines import corpus_baselines
from data.reporting.report import summarize
from data.reporting.statistics import Statistics
from data.tokenizers.build import Tokenizer


def survey(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    config: CurateConfig | None = None,
    in_val: Callable[[Document], bool] | None = None,
) -> tuple[Summary, dict[str, list[Document]]]:
    """Returns what report.json would hold, and the remaining documents of each split.

    in_val: True for the documents to hold out; by default a tenth of them, by a hash of their text. All documents are
    in memory, unlike in preparation.
    """
    config = config or CurateConfig()
    removals, kept, digests, signatures = Removals(), [], [], []
    for document in documents:
        text, removed = clean(document.text, config)
        removals.add_cleaned(removed, document, config)
        if rule := refuse(text, config):
            removals.add_document(rule, document)
            continue
        kept.append(Document(document.name, text))
        digests.append(sha256(text.encode(errors="replace")).digest())
        signatures.append(signature(text, config) or b"")
    if in_val is None:
        is_val = np.array([digest[0] < 26 for digest in digests], bool)
    else:
        is_val = np.array([in_val(document) for document in kept], bool)
    hashes = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    sketches = np.frombuffer(b"".join(signatures), np.uint8).reshape(-1, SIGNATURE) if config.near_duplicates else None
    copies = duplicates(hashes, sketches, is_val, config)
    for position, copy in sorted(copies.items()):
        document, original = kept[position], kept[copy.original].name
        removals.add_copy(copy, document.name, n_bytes=size(document), original=original)
    splits: dict[str, list[Document]] = {"train": [], "val": []}
    for position, document in enumerate(kept):
        if not (position in copies and copies[position].removed):
            splits["val" if is_val[position] else "train"].append(document)
    statistics, streams = {}, {}
    for split, members in splits.items():
        statistics[split] = Statistics(tokenizer.vocab_size)
        encoded = tokenizer.encode_batch([document.text for document in members])
        for document, ids in zip(members, encoded, strict=True):
            statistics[split].add(document, ids)
        end = np.array([tokenizer.end_id])
        streams[split] = [np.concatenate([end, *(part for ids in encoded for part in (ids, end))]).astype(np.int64)]
    baselines = corpus_baselines(streams["train"], streams["val"] if splits["val"] else None, tokenizer)
    if not splits["val"]:
        del statistics["val"]
    return summarize(statistics, removals, tokenizer, settings=asdict(config), baselines=baselines), splits
