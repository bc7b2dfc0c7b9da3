"""A survey: documents through curation and statistics in one process, without writing any shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from hashlib import sha256

import numpy as np

from ..corpus.corpora import Document
from ..curation.curate import CurateConfig, clean, refuse
from ..curation.duplicates import SIGNATURE, duplicates, signature
from ..curation.removals import Ledger, size
from ..tokenizers.build import Tokenizer
from .advice import Summary
from .report import summarise
from .statistics import Statistics
from .yardsticks import yardsticks


def survey(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    config: CurateConfig | None = None,
    in_val: Callable[[Document], bool] | None = None,
) -> tuple[Summary, dict[str, list[Document]]]:
    """What report.json of these documents would hold, and the documents of each split that are left.

    in_val: whether a document is held out; a tenth of them by default, by a hash of their text. All of the documents
    are held in memory, which preparation does not do: this is for looking at a corpus in Python.
    """
    config = config or CurateConfig()
    ledger, kept, digests, signatures = Ledger(), [], [], []
    for document in documents:
        text, removed = clean(document.text, config)
        ledger.cleaned(removed, document, config)
        if rule := refuse(text, config):
            ledger.drop(rule, document)
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
        document, of = kept[position], kept[copy.of].name
        ledger.copy(copy, document.name, n_bytes=size(document), of=of)
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
    measured = yardsticks(streams["train"], streams["val"] if splits["val"] else None, tokenizer)
    if not splits["val"]:
        del statistics["val"]
    return summarise(statistics, ledger, tokenizer, settings=asdict(config), yardsticks=measured), splits
