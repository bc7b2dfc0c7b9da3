"""The data report: what a corpus contains and what curation removed, as report.json and as report.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..corpus.reading import Skipped
from ..curation.curate import CurateConfig
from ..curation.removals import Removals
from ..tokenizers.build import Tokenizer
from .advice import Summary, code, detailed, findings, percent, plural
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


def summarise(
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
    sections = [[f"# {title}", "", *head], _splits(summary), _findings(summary)]
    sections += [[f"![Document lengths, scripts, token counts, removals]({picture})"]] if picture else []
    sections += [_curation(summary), _documents(summary), _characters(summary), _lines(summary)]
    sections += [_tokens(summary), _windows(summary), _baselines(summary)]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def table(columns: str, rows: Iterable[Iterable[Any]]) -> list[str]:
    """Returns a Markdown table, or nothing if there are no rows.

    columns: names separated by |; a name that starts with > is aligned right.
    """
    names = [name.strip() for name in columns.split("|")]
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    head = ["| " + " | ".join(name.lstrip("> ") for name in names) + " |"]
    return [*head, "|" + "|".join("---:" if n.startswith(">") else "---" for n in names) + "|", *lines] if lines else []


def _splits(summary: Summary) -> list[str]:
    rows = []
    for name, split in summary["splits"].items():
        documents, n_bytes, tokens = split["documents"], split["bytes"], split["tokens"]
        median = _median(split["lengths"])
        rows.append([name, f"{documents:,}", f"{n_bytes:,}", f"{tokens:,}", f"{n_bytes / max(1, tokens):.3f}", median])
    lines = table("split|> documents|> bytes|> tokens|> bytes/token|> median tokens per document", rows)
    sources = [
        [split, code(source), *(f"{row[key]:,}" for key in ("documents", "bytes", "tokens"))]
        for split, figures in summary["splits"].items()
        for source, row in figures["sources"].items()
        if len(figures["sources"]) > 1
    ]
    return lines + (["", *table("split|source|> documents|> bytes|> tokens", sources)] if sources else [])


def _median(lengths: list[dict[str, Any]]) -> str:
    half, so_far = sum(row["documents"] for row in lengths) / 2, 0
    for row in lengths:
        so_far += row["documents"]
        if so_far >= half:
            return f"about {float(format(row['at_least'] * 2**0.125, '.2g')):,.0f}"  # the middle of the bin
    return "0"


def _findings(summary: Summary) -> list[str]:
    found = findings(summary)
    basis = [f"{_basis(summary)}Numbers with “about” are estimates from this sample.", ""] if _basis(summary) else []
    lines = [*basis, *(f"- {sentence}" for sentence in found)]
    return ["## Findings that need a decision", "", *lines] if found else []


def _curation(summary: Summary) -> list[str]:
    read, n_bytes = summary["read"], max(1, summary["read"]["bytes"])
    text = f"Read: {plural(read['documents'], 'document')}, {read['bytes']:,} bytes."
    entries = sorted(summary["curation"].values(), key=lambda entry: (bool(entry["count"]), -entry["bytes"]))
    if not entries:
        return ["## Curation", "", f"{text} The rules removed nothing."]
    rows = []
    for entry in entries:
        inside = f"{entry['count']:,}" if entry["count"] else ""
        examples = ", ".join(code(example, limit=60) for example in entry["examples"][:3])
        size = [f"{entry['bytes']:,}", percent(entry["bytes"] / n_bytes)]
        rows.append([entry["what"], f"{entry['documents']:,}", inside, *size, examples])
    left = summary["left"]
    text += f" Left: {plural(left['documents'], 'document')}, {left['bytes']:,} bytes"
    text += f" ({percent(left['bytes'] / n_bytes)}). " + _rules(summary["settings"])
    columns = "rule|> documents|> lines or characters in them|> bytes|> of all bytes|examples"
    return ["## Curation", "", text, "", *table(columns, rows)]


def _rules(settings: dict[str, Any]) -> str:
    unused = () if settings.get("near_duplicates") else ("similarity",)
    on = {name: value for name, value in settings.items() if value not in (None, False) and name not in unused}
    shown = ", ".join(code(f"curate.{name}={json.dumps(value, ensure_ascii=False)}") for name, value in on.items())
    return f"Active rules: {shown or 'none'}."


def _documents(summary: Summary) -> list[str]:
    lengths = summary["splits"]["train"]["lengths"]
    total, tokens = (max(1, sum(row[key] for row in lengths)) for key in ("documents", "tokens"))
    octaves: dict[int, list[int]] = {}
    for row in lengths:
        octave = octaves.setdefault(int(row["at_least"]).bit_length() - 1, [0, 0])
        octave[0] += row["documents"]
        octave[1] += row["tokens"]
    rows = [
        [f"{2**k:,} to {2 ** (k + 1) - 1:,}", f"{n:,}", percent(n / total), percent(held / tokens)]
        for k, (n, held) in octaves.items()
    ]
    columns = "tokens per document|> training documents|> of all documents|> of all tokens"
    lines = ["## Document lengths", "", *table(columns, rows), ""]
    for which in ("longest", "shortest"):
        shown = ", ".join(
            f"{code(r['name'], limit=50)} ({r['bytes']:,} bytes)" for r in summary["splits"]["train"][which]
        )
        lines += [f"{which.capitalize()}: {shown}.", ""]
    return lines[:-1]


def _characters(summary: Summary) -> list[str]:
    sampled = detailed(summary)
    letters = max(1, sum(row["letters"] for row in sampled["scripts"]))
    scripts = [
        [
            row["script"],
            percent(row["letters"] / letters),
            f"{row['different']:,}",
            f"{row['documents']:,}",
            ", ".join(code(name, limit=40) for name in row["examples"][:2]) if row["documents"] else "",
        ]
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
    lines += table("share of|> 1 % of documents are below|> 10 %|> 50 %|> 90 %|> 99 %", shares)
    fewest = ", ".join(f"{code(r['name'], limit=50)} ({percent(r['share'])})" for r in sampled["fewest_letters"])
    lines += ["", f"Fewest letters: {fewest}."]
    if sampled["unusual"]:
        rows = [[row["code"], row["name"].lower(), f"{row['times']:,}"] for row in sampled["unusual"]]
        lines += ["", "Invisible, control and replacement characters:", ""]
        lines += table("character|name|> times", rows)
    damage = sampled["mojibake"]
    if damage["traces"]:
        documents = plural(damage["documents"], "document")
        lines += ["", f"Mojibake (text decoded with a wrong encoding): {damage['traces']:,} times in {documents}.", ""]
        rows = [[code(e["name"], limit=50), f"{e['traces']:,}", code(e["text"])] for e in damage["examples"]]
        lines += table("document|> times|example", rows)
    return lines


def _basis(summary: Summary) -> str:
    """Returns a sentence about the sample of documents, or nothing if the detailed statistics cover all."""
    sampled, total = detailed(summary)["documents"], summary["splits"]["train"]["documents"]
    return "" if sampled == total else f"From a random sample of {sampled:,} of the {total:,} training documents. "


def _quantile(bins: list[int], part: float) -> str:
    so_far, total = 0, sum(bins)
    for index, number in enumerate(bins, start=1):
        so_far += number
        if so_far >= part * total:
            return f"{index / len(bins):.0%}"
    return "100%"


def _lines(summary: Summary) -> list[str]:
    sampled = detailed(summary)
    if not sampled["lines"]:
        return []
    note = f" A count may be too small by up to {sampled['lines_missed']:,}." if sampled["lines_missed"] else ""
    rows = [
        [code(row["line"]), f"{row['times']:,}", percent(row["bytes"] / max(1, sampled["characters"]))]
        for row in sampled["lines"]
    ]
    intro = f"{_basis(summary)}The repeated lines with the most bytes, and the most frequent ones.{note}"
    return ["## Repeated lines", "", intro, "", *table("line|> times|> of the text", rows)]


def _tokens(summary: Summary) -> list[str]:
    words = summary["splits"]["train"]["vocabulary"]
    whole_words = (summary.get("yardsticks") or {}).get("word_tokens")
    lines = [
        f"Of {words['size']:,} tokens, {words['size'] - words['used']:,} never occur in the training split, and "
        f"{words['under_100']:,} occur fewer than 100 times"
        + (f"; {whole_words:,} are whole words of the text." if whole_words is not None else "."),
        "",
        *table("longest tokens|> times", [[code(row["text"]), f"{row['times']:,}"] for row in words["longest"]]),
    ]
    return ["## Vocabulary", "", *lines]


def _windows(summary: Summary) -> list[str]:
    train = summary["splits"]["train"]
    stream = train["tokens"] + train["documents"] + 1  # an end token first, and after each document
    rows = []
    for context in CONTEXTS:
        if stream > 2 * context:
            found = windows(stream, train["lengths"], context)
            longer, held, lost = (percent(found[key]) for key in ("documents_longer", "tokens_in_longer", "lost"))
            rows.append([context, f"{found['windows']:,}", f"{found['windows'] / 16:,.0f}", lost, longer, held])
    columns = "context|> windows per epoch|> steps per epoch at batch_size=16|> tokens left out per epoch"
    columns += "|> documents longer than a window|> tokens in them"
    return ["## Windows", "", *table(columns, rows)] if rows else []


def windows(n_tokens: int, lengths: Sequence[dict[str, Any]], context: int) -> dict[str, Any]:
    """Returns how windows of `context` tokens divide a token stream (packing=stream).

    windows: per epoch. lost: the fraction of the tokens that an epoch leaves out. documents_longer, tokens_in_longer:
    the fraction of the documents longer than a window, and of the tokens in them. lengths: the histogram of
    Statistics, which makes this exact if `context` is a power of two.
    """
    count = max(1, (n_tokens - 1) // context - 1)  # as in batching/windows.py
    longer = [row for row in lengths if row["at_least"] >= context]
    return {
        "context": context,
        "windows": count,
        "lost": max(0.0, 1 - count * context / max(1, n_tokens - 1)),
        "documents_longer": sum(r["documents"] for r in longer) / max(1, sum(r["documents"] for r in lengths)),
        "tokens_in_longer": sum(r["tokens"] for r in longer) / max(1, sum(r["tokens"] for r in lengths)),
    }


def _baselines(summary: Summary) -> list[str]:
    found = summary.get("yardsticks")
    if not found:
        return []
    held_out = "xz_val" in found
    names = {"unigram": "unigram counts", "bigram": "bigram counts", "gzip": "gzip -9, training text"}
    names |= {"xz": "xz -6, training text", "xz_val": "xz -6, validation text by itself"}
    names |= {"xz_val_after": "xz -6, validation text after training text"}
    rows = [[name, f"{found[key]:.3f}"] for key, name in names.items() if key in found]
    entropy = summary["splits"]["train"]["vocabulary"]["entropy"]
    val_sample = f" and {found['val_bytes']:,} bytes of validation text" if held_out else " text"
    intro = (
        f"Bits per byte to compare a model's `val_bits_per_byte` with, from samples of {found['train_bytes']:,} bytes "
        f"of training{val_sample}. Counts are of training tokens{', scored on validation' if held_out else ''}. gzip "
        f"and xz compress {found['compressed_bytes']:,} bytes of training text, and at most a quarter as many of "
        f"validation text. The entropy of the training tokens' frequencies is {entropy:.2f} bits per token."
    )
    return ["## Baselines", "", intro, "", *table("baseline|> bits/byte", rows)]
