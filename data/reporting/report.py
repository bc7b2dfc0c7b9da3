"""The data report: what a corpus holds and what curation did to it, as JSON for programs and Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..corpus.reading import Skipped
from ..curation.curate import CurateConfig
from ..curation.removals import Ledger
from ..tokenizers.build import Tokenizer
from .advice import Summary, code, count, findings, looked_at, percent
from .statistics import Statistics
from .yardsticks import CONTEXTS, windows

RULES = {  # how the report names what the ledger counts
    "duplicate": "copies of earlier documents",
    "near duplicate": "near copies of earlier documents",
    "in validation": "copies of validation documents",
    "near copy in validation": "near copies of validation documents",
    "empty": "documents without text",
    "repair_mojibake": "wrong decoding put right",
    "control_characters": "control characters removed",
    "drop_lines": "lines removed by drop_lines",
    "line_copies": "lines removed by line_copies",
}


def summarise(
    statistics: dict[str, Statistics],
    ledger: Ledger,
    tokenizer: Tokenizer,
    *,
    settings: dict[str, Any],
    yardsticks: dict[str, Any] | None = None,
    documents: int | None = None,
    left_out: Skipped | None = None,
) -> Summary:
    """What report.json holds. statistics: by split, `train` and perhaps `val`; settings: asdict of the CurateConfig;
    yardsticks: what data/yardsticks.py found; documents: how many are left, where they may be in both splits;
    left_out: what could not be read."""
    splits = {name: split.to_dict(tokenizer) for name, split in statistics.items()}
    curation = {rule: {"what": what_it_is(rule)} | entry for rule, entry in ledger.to_dict().items()}
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
        "left_out": left_out.to_dict() if left_out else {},
        "idle_patterns": ledger.idle(CurateConfig(**settings)),
        "yardsticks": yardsticks,
    }


def what_it_is(rule: str) -> str:
    """A rule of the ledger in words."""
    name, _, kept = rule.partition(", ")
    return RULES.get(name, f"documents dropped by {name}") + (" (kept)" if kept else "")


def report(summary: Summary, *, title: str, about: Iterable[str] = (), picture: str | None = None) -> str:
    """The report as Markdown. about: lines to stand under the title; picture: the file name of its plots."""
    parts = [[f"# {title}", "", *about], _splits(summary), _to_decide(summary)]
    parts += [[f"![Lengths, scripts, tokens, what was removed]({picture})"]] if picture else []
    parts += [_curation(summary), _documents(summary), _characters(summary), _lines(summary)]
    parts += [_tokens(summary), _windows(summary), _yardsticks(summary)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def table(columns: str, rows: Iterable[Iterable[Any]]) -> list[str]:
    """Markdown's table; `columns` are parted by |, and those that begin with > are set right. Empty without rows."""
    names = [name.strip() for name in columns.split("|")]
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    head = ["| " + " | ".join(name.lstrip("> ") for name in names) + " |"]
    return [*head, "|" + "|".join("---:" if n.startswith(">") else "---" for n in names) + "|", *lines] if lines else []


def _splits(summary: Summary) -> list[str]:
    rows = []
    for name, split in summary["splits"].items():
        documents, n_bytes, tokens = split["documents"], split["bytes"], split["tokens"]
        middle = _middle(split["lengths"])
        rows.append([name, f"{documents:,}", f"{n_bytes:,}", f"{tokens:,}", f"{n_bytes / max(1, tokens):.3f}", middle])
    lines = table("split|> documents|> bytes|> tokens|> bytes/token|> tokens in the middle document", rows)
    sources = [
        [split, code(source), *(f"{row[key]:,}" for key in ("documents", "bytes", "tokens"))]
        for split, figures in summary["splits"].items()
        for source, row in figures["sources"].items()
        if len(figures["sources"]) > 1
    ]
    return lines + (["", *table("split|source|> documents|> bytes|> tokens", sources)] if sources else [])


def _middle(lengths: list[dict[str, Any]]) -> str:
    half, so_far = sum(row["documents"] for row in lengths) / 2, 0
    for row in lengths:
        so_far += row["documents"]
        if so_far >= half:
            return f"about {float(format(row['at_least'] * 2**0.125, '.2g')):,.0f}"  # the middle of the bin
    return "0"


def _to_decide(summary: Summary) -> list[str]:
    found = findings(summary)
    basis = [f"{_basis(summary)}What stands after “about” is reckoned from these.", ""] if _basis(summary) else []
    return ["## To decide", "", *basis, *(f"- {sentence}" for sentence in found)] if found else []


def _curation(summary: Summary) -> list[str]:
    read, n_bytes = summary["read"], max(1, summary["read"]["bytes"])
    text = f"{count(read['documents'], 'document')} with {read['bytes']:,} bytes were read"
    entries = sorted(summary["curation"].values(), key=lambda entry: (bool(entry["count"]), -entry["bytes"]))
    if not entries:
        return ["## What curation did", "", f"{text}; no rule found anything to remove."]
    rows = []
    for entry in entries:
        inside = f"{entry['count']:,}" if entry["count"] else ""
        examples = ", ".join(code(example, limit=60) for example in entry["examples"][:3])
        size = [f"{entry['bytes']:,}", percent(entry["bytes"] / n_bytes)]
        rows.append([entry["what"], f"{entry['documents']:,}", inside, *size, examples])
    left = summary["left"]
    text += f", {left['documents']:,} with {left['bytes']:,} bytes ({percent(left['bytes'] / n_bytes)}) are left. "
    columns = "what|> documents|> lines or characters in them|> bytes|> of all|such as"
    return ["## What curation did", "", text + _rules(summary["settings"]), "", *table(columns, rows)]


def _rules(settings: dict[str, Any]) -> str:
    unused = () if settings.get("near_duplicates") else ("similarity",)
    on = {name: value for name, value in settings.items() if value not in (None, False) and name not in unused}
    shown = ", ".join(code(f"curate.{name}={json.dumps(value, ensure_ascii=False)}") for name, value in on.items())
    return f"Rules that were on: {shown or 'none'}."


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
    lines = ["## Documents", "", *table("tokens|> training documents|> of them|> of the tokens", rows), ""]
    for which in ("longest", "shortest"):
        shown = ", ".join(
            f"{code(r['name'], limit=50)} ({r['bytes']:,} bytes)" for r in summary["splits"]["train"][which]
        )
        lines += [f"{which.capitalize()}: {shown}.", ""]
    return lines[:-1]


def _characters(summary: Summary) -> list[str]:
    look = looked_at(summary)
    letters = max(1, sum(row["letters"] for row in look["scripts"]))
    scripts = [
        [
            row["script"],
            percent(row["letters"] / letters),
            f"{row['different']:,}",
            f"{row['documents']:,}",
            ", ".join(code(name, limit=40) for name in row["examples"][:2]) if row["documents"] else "",
        ]
        for row in look["scripts"][:12]
    ]
    classes = ", ".join(f"{name} {percent(n / max(1, look['characters']))}" for name, n in look["classes"].items() if n)
    lines = ["## Characters", "", _basis(summary) + f"Of all characters: {classes}.", ""]
    lines += table("script|> of the letters|> different letters|> documents mostly in it|such as", scripts)
    shares = [
        [kind, *(_quantile(bins, part) for part in (0.01, 0.1, 0.5, 0.9, 0.99))]
        for kind, bins in look["shares"].items()
    ]
    lines += ["", "How the documents differ, for choosing `curate.min_letters`, `max_digits`, `max_symbols`:", ""]
    lines += table("share of|> 1 % have less than|> 10 %|> half|> 90 %|> 99 %", shares)
    fewest = ", ".join(f"{code(r['name'], limit=50)} ({percent(r['share'])})" for r in look["fewest_letters"])
    lines += ["", f"Fewest letters: {fewest}."]
    if look["unusual"]:
        rows = [[row["code"], row["name"].lower(), f"{row['times']:,}"] for row in look["unusual"]]
        lines += ["", "Characters that one does not see, or that stand for lost ones:", ""]
        lines += table("character|name|> times", rows)
    damage = look["mojibake"]
    if damage["traces"]:
        lines += [
            "",
            f"Traces of a wrong decoding: {damage['traces']:,} in {count(damage['documents'], 'document')}.",
            "",
        ]
        rows = [[code(e["name"], limit=50), f"{e['traces']:,}", code(e["text"])] for e in damage["examples"]]
        lines += table("document|> traces|one of them", rows)
    return lines


def _basis(summary: Summary) -> str:
    """What the close look is based on, if not on all."""
    looked, total = looked_at(summary)["documents"], summary["splits"]["train"]["documents"]
    return "" if looked == total else f"Looked at: {looked:,} of the {total:,} training documents, drawn by chance. "


def _quantile(bins: list[int], part: float) -> str:
    so_far, total = 0, sum(bins)
    for place, number in enumerate(bins, start=1):
        so_far += number
        if so_far >= part * total:
            return f"{place / len(bins):.0%}"
    return "100%"


def _lines(summary: Summary) -> list[str]:
    look = looked_at(summary)
    if not look["lines"]:
        return []
    note = f" A count may be up to {look['lines_missed']:,} too small." if look["lines_missed"] else ""
    rows = [
        [code(row["line"]), f"{row['times']:,}", percent(row["bytes"] / max(1, look["characters"]))]
        for row in look["lines"]
    ]
    head = f"{_basis(summary)}The lines that take the most room, of those that occur again and again.{note}"
    return ["## Repeated lines", "", head, "", *table("line|> times|> of the text", rows)]


def _tokens(summary: Summary) -> list[str]:
    words = summary["splits"]["train"]["vocabulary"]
    whole = (summary.get("yardsticks") or {}).get("word_tokens")
    lines = [
        f"Of the {words['size']:,} tokens {words['size'] - words['used']:,} never occur in training and "
        f"{words['under_100']:,} fewer than 100 times"
        + (f"; {whole:,} are words of the text by themselves." if whole is not None else "."),
        "",
        *table("longest tokens|> times", [[code(row["text"]), f"{row['times']:,}"] for row in words["longest"]]),
    ]
    return ["## Vocabulary", "", *lines]


def _windows(summary: Summary) -> list[str]:
    train = summary["splits"]["train"]
    stream = train["tokens"] + train["documents"] + 1  # an END before, and after each
    rows = []
    for context in CONTEXTS:
        if stream > 2 * context:
            found = windows(stream, train["lengths"], context)
            longer, held, lost = (percent(found[key]) for key in ("documents_longer", "tokens_in_longer", "lost"))
            rows.append([context, f"{found['windows']:,}", f"{found['windows'] / 16:,.0f}", lost, longer, held])
    if not rows:
        return []
    columns = "context|> windows an epoch|> steps an epoch, 16 windows each|> tokens that an epoch leaves out"
    columns += "|> documents longer than a window|> tokens in these"
    return ["## Windows", "", *table(columns, rows)]


def _yardsticks(summary: Summary) -> list[str]:
    found = summary.get("yardsticks")
    if not found:
        return []
    held_out = "xz_val" in found
    rows = [
        ["counts of single tokens", f"{found['unigram']:.3f}"],
        ["counts of pairs of tokens", f"{found['bigram']:.3f}"],
    ]
    rows += [["gzip -9, training text", f"{found['gzip']:.3f}"], ["xz -6, training text", f"{found['xz']:.3f}"]]
    if held_out:
        rows += [["xz -6, validation text by itself", f"{found['xz_val']:.3f}"]]
        rows += [["xz -6, validation text after training text", f"{found['xz_val_after']:.3f}"]]
    entropy = summary["splits"]["train"]["vocabulary"]["entropy"]
    pieces = f"{found['train_bytes']:,} bytes of training"
    pieces += f" and {found['val_bytes']:,} bytes of validation text" if held_out else " text"
    head = (
        f"Bits per byte to hold a model's `val_bits_per_byte` against, taken on pieces of {pieces}; the counts are of "
        f"training tokens{', tried on validation' if held_out else ''}; gzip and xz get {found['compressed_bytes']:,} "
        f"bytes of the training text, and at most a quarter as many of validation. The entropy of all single training "
        f"tokens is {entropy:.2f} bits a token."
    )
    return ["## Yardsticks", "", head, "", *table("what|> bits/byte", rows)]
