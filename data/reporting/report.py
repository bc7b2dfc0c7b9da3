"""The data report: what a corpus contains and what curation removed, as report.json and as report.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..corpus.reading import Skipped
from ..curation.curate import CurateConfig
from ..curation.removals import Removals
from ..tokenizers.build import Tokenizer
from .advice import Summary, code, codes, detailed, findings, percent, plural
from .statistics import Statistics

CONTEXTS = (128, 256, 512, 1024, 2048)
RULES = {  # names of the rules in the report
    "duplicate": "exact copies of earlier documents",
    "near duplicate": "near copies of earlier documents",
    "in validation": "exact copies of validation documents",
    "near copy in validation": "near copies of validation documents",
    "empty": "documents without text",
    "repair_mojibake": "repaired mojibake",
    "control_characters": "control characters removed",
    "drop_lines": "lines removed by drop_lines",
    "line_copies": "lines removed by line_copies",
}
BASELINES = {
    "unigram": "unigram counts",
    "bigram": "bigram counts",
    "xz": "xz -6, training text",
    "xz_val": "xz -6, validation text by itself",
    "xz_val_after": "xz -6, validation text after training text",
}


def summarize(
    statistics: dict[str, Statistics],
    removals: Removals,
    tokenizer: Tokenizer,
    *,
    settings: dict[str, Any],
    baselines: dict[str, Any] | None = None,
    documents: int | None = None,
    skipped: Skipped | None = None,
) -> Summary:
    """Returns the content of report.json.

    statistics: by split, `train` and perhaps `val`. settings: asdict of the CurateConfig. baselines: from
    corpus_baselines(). documents: the number that remain, if a document may be in both splits. skipped: documents not
    read, or repaired.
    """
    splits = {name: split.to_dict(tokenizer) for name, split in statistics.items()}
    curation = {rule: {"what": rule_name(rule)} | entry for rule, entry in removals.to_dict().items()}
    removed = [entry for rule, entry in curation.items() if not rule.endswith(", kept")]
    left = {key: sum(split[key] for split in splits.values()) for key in ("documents", "bytes")}
    left["documents"] = left["documents"] if documents is None else documents
    return {
        "read": {
            "documents": left["documents"] + sum(entry["documents"] for entry in removed if not entry["count"]),
            "bytes": left["bytes"] + sum(entry["bytes"] for entry in removed),
        },
        "left": left,
        "settings": settings,
        "curation": curation,
        "splits": splits,
        "left_out": skipped.to_dict() if skipped else {},
        "idle_patterns": removals.unmatched_patterns(CurateConfig(**settings)),
        "yardsticks": baselines,
    }


def rule_name(rule: str) -> str:
    """Returns a rule's name for readers."""
    name, _, kept = rule.partition(", ")
    return RULES.get(name, f"documents dropped by {name}") + (" (kept)" if kept else "")


def report(summary: Summary, *, title: str, head: Iterable[str] = (), picture: str | None = None) -> str:
    """Returns report.md. head: lines below the title. picture: the file name of the plots."""
    image = [f"![Document lengths, scripts, removals]({picture})"] if picture else []
    sections = [[f"# {title}", "", *head], _splits(summary), _findings(summary), image, _curation(summary)]
    sections += [_documents(summary), _characters(summary), _lines(summary), _tokens(summary), _windows(summary)]
    sections += [_baselines(summary)]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def table(columns: str, rows: Iterable[Iterable[Any]]) -> list[str]:
    """Returns a Markdown table, or nothing if there are no rows. Whole numbers get thousands separators.

    columns: names separated by |; a name that starts with > is aligned right.
    """
    names = [name.strip() for name in columns.split("|")]
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    head = [[name.lstrip("> ") for name in names], ["---:" if name.startswith(">") else "---" for name in names]]
    return ["| " + " | ".join(row) + " |" for row in head + cells] if cells else []


def _splits(summary: Summary) -> list[str]:
    sizes, sources = [], []
    for name, split in summary["splits"].items():
        rate = f"{split['bytes'] / max(1, split['tokens']):.3f}"
        sizes.append([name, split["documents"], split["bytes"], split["tokens"], rate])
        if len(split["sources"]) > 1:
            sources += [[name, code(source), *row.values()] for source, row in split["sources"].items()]
    lines = table("split|> documents|> bytes|> tokens|> bytes/token", sizes)
    return [*lines, "", *table("split|source|> documents|> bytes|> tokens", sources)] if sources else lines


def _findings(summary: Summary) -> list[str]:
    found = findings(summary)
    basis = [f"{_basis(summary)}Numbers with “about” are estimates from this sample.", ""] if _basis(summary) else []
    lines = [*basis, *(f"- {sentence}" for sentence in found)]
    return ["## Findings", "", *lines] if found else []


def _curation(summary: Summary) -> list[str]:
    read, left = summary["read"], summary["left"]
    text = f"Read: {plural(read['documents'], 'document')}, {read['bytes']:,} bytes."
    entries = sorted(summary["curation"].values(), key=lambda entry: (bool(entry["count"]), -entry["bytes"]))
    if not entries:
        return ["## Curation", "", f"{text} The rules removed nothing."]
    n_bytes = max(1, read["bytes"])
    rows = [
        [
            entry["what"],
            entry["documents"],
            entry["count"] or "",
            entry["bytes"],
            percent(entry["bytes"] / n_bytes),
            codes(entry["examples"], limit=60),
        ]
        for entry in entries
    ]
    unused = () if summary["settings"].get("near_duplicates") else ("similarity",)
    on = {k: value for k, value in summary["settings"].items() if value not in (None, False) and k not in unused}
    rules = ", ".join(code(f"curate.{name}={json.dumps(value, ensure_ascii=False)}") for name, value in on.items())
    text += f" Left: {plural(left['documents'], 'document')}, {left['bytes']:,} bytes"
    text += f" ({percent(left['bytes'] / n_bytes)}). Active rules: {rules or 'none'}."
    columns = "rule|> documents|> lines or characters in them|> bytes|> of all bytes|examples"
    return ["## Curation", "", text, "", *table(columns, rows)]


def _documents(summary: Summary) -> list[str]:
    train = summary["splits"]["train"]
    octaves: dict[int, list[int]] = {}
    for row in train["lengths"]:
        octave = octaves.setdefault(int(row["at_least"]).bit_length() - 1, [0, 0])
        octave[0] += row["documents"]
        octave[1] += row["tokens"]
    total, tokens = max(1, train["documents"]), max(1, train["tokens"])
    rows = [
        [f"{2**k:,} to {2 ** (k + 1) - 1:,}", number, percent(number / total), percent(held / tokens)]
        for k, (number, held) in octaves.items()
    ]
    columns = "tokens per document|> training documents|> of all documents|> of all tokens"
    lines = ["## Document lengths", "", *table(columns, rows)]
    for which in ("longest", "shortest"):
        shown = ", ".join(f"{code(row['name'], limit=50)} ({row['bytes']:,} bytes)" for row in train[which])
        lines += ["", f"{which.capitalize()}: {shown}."]
    return lines


def _characters(summary: Summary) -> list[str]:
    sampled = detailed(summary)
    letters = max(1, sum(row["letters"] for row in sampled["scripts"]))
    scripts = [
        [row["script"], percent(row["letters"] / letters), row["different"], row["documents"], codes(row["examples"])]
        for row in sampled["scripts"][:12]
    ]
    total = max(1, sampled["characters"])
    classes = ", ".join(f"{name} {percent(n / total)}" for name, n in sampled["classes"].items() if n)
    lines = ["## Characters", "", _basis(summary) + f"All characters: {classes}.", ""]
    lines += table("script|> of all letters|> different letters|> documents mostly in it|examples", scripts)
    shares = [
        [kind, *(_quantile(bins, part) for part in (0.01, 0.1, 0.5, 0.9, 0.99))]
        for kind, bins in sampled["shares"].items()
    ]
    lines += ["", "Quantiles over documents, for choosing `curate.min_letters`, `max_digits` and `max_symbols`:", ""]
    lines += table("share of|> 1% of documents are below|> 10%|> 50%|> 90%|> 99%", shares)
    fewest = ", ".join(f"{code(r['name'], limit=50)} ({percent(r['share'])})" for r in sampled["fewest_letters"])
    lines += ["", f"Fewest letters: {fewest}."]
    if sampled["unusual"]:
        rows = [[row["code"], row["name"].lower(), row["times"]] for row in sampled["unusual"]]
        lines += ["", "Invisible, control and replacement characters:", "", *table("character|name|> times", rows)]
    damage = sampled["mojibake"]
    if damage["traces"]:
        times = f"{damage['traces']:,} times in {plural(damage['documents'], 'document')}"
        rows = [[code(e["name"], limit=50), e["traces"], code(e["text"])] for e in damage["examples"]]
        lines += ["", f"Mojibake (text decoded with a wrong encoding): {times}.", ""]
        lines += table("document|> times|example", rows)
    return lines


def _basis(summary: Summary) -> str:
    """Returns a sentence about the sample of documents, or nothing if the detailed statistics cover all."""
    sampled, total = detailed(summary)["documents"], summary["splits"]["train"]["documents"]
    return "" if sampled == total else f"From a random sample of {sampled:,} of the {total:,} training documents. "


def _quantile(bins: list[int], part: float) -> str:
    return f"{(np.searchsorted(np.cumsum(bins), part * sum(bins)) + 1) / len(bins):.0%}"


def _lines(summary: Summary) -> list[str]:
    sampled = detailed(summary)
    rows = [
        [code(row["line"]), row["times"], percent(row["bytes"] / max(1, sampled["characters"]))]
        for row in sampled["lines"]
    ]
    missed = f" A count may be too small by up to {sampled['lines_missed']:,}." if sampled["lines_missed"] else ""
    intro = f"{_basis(summary)}The repeated lines with the most bytes, and the most frequent ones.{missed}"
    return ["## Repeated lines", "", intro, "", *table("line|> times|> of the text", rows)] if rows else []


def _tokens(summary: Summary) -> list[str]:
    words = summary["splits"]["train"]["vocabulary"]
    unused = words["size"] - words["used"]
    text = f"Of {words['size']:,} tokens, {unused + words['under_100']:,} occur fewer than 100 times in the training "
    text += f"split, {unused:,} of them never. In the table, ␣ is a space and ↵ a line end."
    rows = [[code(row["text"].replace(" ", "␣").replace("\n", "↵")), row["times"]] for row in words["longest"]]
    return ["## Vocabulary", "", text, "", *table("longest tokens|> times", rows)]


def _windows(summary: Summary) -> list[str]:
    train = summary["splits"]["train"]
    stream = train["tokens"] + train["documents"] + 1  # an end token first, and after each document
    rows = []
    for context in CONTEXTS:
        if stream > 2 * context:
            count, longer, held = windows(stream, train["lengths"], context)
            rows.append([str(context), count, percent(longer), percent(held)])
    columns = "context|> windows per epoch|> documents longer than a window|> tokens in them"
    return ["## Windows", "", *table(columns, rows)] if rows else []


def windows(n_tokens: int, lengths: Sequence[dict[str, Any]], context: int) -> tuple[int, float, float]:
    """Returns how windows of `context` tokens divide a token stream (packing=stream).

    That is (windows per epoch, share of the documents that are longer than a window, share of the tokens in them).
    lengths: the histogram of Statistics, which makes this exact if `context` is a power of two.
    """
    longer = [row for row in lengths if row["at_least"] >= context]
    documents, tokens = (
        sum(row[key] for row in longer) / max(1, sum(row[key] for row in lengths)) for key in ("documents", "tokens")
    )
    return max(1, (n_tokens - 1) // context - 1), documents, tokens  # as in batching/packing.py


def _baselines(summary: Summary) -> list[str]:
    found = summary["yardsticks"]
    if not found:
        return []
    val_sample = f" and {found['val_bytes']:,} bytes of validation text" if "xz_val" in found else ""
    intro = (
        f"Bits per byte to compare a model's `val_bits_per_byte` with, from samples of {found['train_bytes']:,} bytes "
        f"of training text{val_sample}. Counts are of training tokens{', scored on validation' * bool(val_sample)}. "
        f"xz compresses {found['compressed_bytes']:,} bytes of training text, and at most a quarter as many of "
        "validation text."
    )
    rows = [[name, f"{found[key]:.3f}"] for key, name in BASELINES.items() if key in found]
    return ["## Baselines", "", intro, "", *table("baseline|> bits/byte", rows)]
