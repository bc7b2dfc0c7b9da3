"""Findings: what in a corpus's statistics deserves a decision, in sentences that name the setting for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Summary = dict[str, Any]  # what report.json holds: data/report.py

FEW_LETTERS = 0.5  # a document with a smaller share of letters is a table, code, or noise
SHORT = 16  # tokens
COSTLY_LINE = 0.003  # share of the text
STRAY_SCRIPT = 0.2  # share of the documents below which a script counts as a stray one


def findings(summary: Summary) -> list[str]:
    """One sentence or two on each matter, the weightiest kinds first; Markdown."""
    rules: tuple[Callable[[Summary], Iterator[str]], ...] = (
        _copies, _leaks, _damage, _lines, _letters, _short, _scripts, _invisible, _hyphens, _vocabulary
    )  # fmt: skip
    return [sentence for rule in rules for sentence in rule(summary)]


def looked_at(summary: Summary) -> dict[str, Any]:
    """The close look at the training split."""
    return summary["splits"]["train"]["looked_at"]


def estimated(summary: Summary, number: int, thing: str = "") -> str:
    """What a count of the close look makes of all training documents, where it was taken of some of them: two digits,
    and `about`."""
    looked, total = looked_at(summary)["documents"], summary["splits"]["train"]["documents"]
    if looked == total:
        return count(number, thing) if thing else f"{number:,}"
    number = int(float(format(number * total / max(1, looked), ".2g")))
    return "about " + (count(number, thing) if thing else f"{number:,}")


def code(text: str, *, limit: int = 90) -> str:
    """Any text as Markdown's code, on one line and safe in a table."""
    text = " ".join(text.split()) if text.strip() else repr(text)[1:-1]
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text).replace("|", "¦").replace("`", "ˋ")
    return f"`{text}`"


def percent(share: float) -> str:
    """A share for people: two digits that matter, and never 0 % of something."""
    return f"{share:.1%}" if share >= 0.01 or not share else f"{share:.2%}" if share >= 0.0001 else "<0.01%"


def count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _copies(summary: Summary) -> Iterator[str]:
    rules, total = summary["curation"], summary["read"]["documents"]
    for rule, setting in (
        ("duplicate", "curate.exact_duplicates=true"),
        ("in validation", "curate.overlap=true"),
        ("near copy in validation", "curate.overlap=true"),
    ):
        if entry := rules.get(f"{rule}, kept"):
            what = {"duplicate": "have the text of an earlier one", "in validation": "stand in validation too"}
            what |= {"near copy in validation": "are near copies of validation documents"}
            yield (
                f"**{count(entry['documents'], 'document')}** ({percent(entry['documents'] / total)}) {what[rule]} and "
                f"stay: `{setting}` would drop them."
            )
    if total >= 100 and not summary["settings"].get("near_duplicates"):
        yield "Near copies were not looked for: `curate.near_duplicates=true` does, and takes its time."


def _leaks(summary: Summary) -> Iterator[str]:
    yardsticks = summary.get("yardsticks") or {}
    alone, after = yardsticks.get("xz_val"), yardsticks.get("xz_val_after")
    if alone and after and after < 0.7 * alone and yardsticks["val_bytes"] > 10_000:
        yield (
            f"xz needs {alone:.2f} bits/byte for validation text, but {after:.2f} after training text: **whole "
            "passages are in both**, so the validation loss will flatter. Hold out by source or time (`val_include=`)."
        )


def _damage(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    damage, total = look["mojibake"], look["documents"]
    if damage["documents"] > 0.001 * total:
        example = damage["examples"][0]
        yield (
            f"**{estimated(summary, damage['documents'], 'document')}** ({percent(damage['documents'] / total)}) show traces of a "
            f"wrong decoding, such as {code(example['text'])} in {code(example['name'])}. "
            "`curate.repair_mojibake=true` puts right what can be, `curate.max_mojibake=0.001` drops the worst."
        )


def _lines(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    costly = [row for row in look["lines"] if row["bytes"] > COSTLY_LINE * look["characters"]]
    if costly:
        patterns = [row["line"].replace("[", "?") + ("*" if len(row["line"]) > 150 else "") for row in costly[:3]]
        shortened = [pattern if len(pattern) <= 50 else pattern[:45].rstrip() + "*" for pattern in patterns]
        share = sum(row["bytes"] for row in costly) / max(1, look["characters"])
        yield (
            f"**{count(len(costly), 'line')}** recurring all over take {percent(share)} of the text; the costliest, "
            f"{code(costly[0]['line'], limit=60)}, stands there {estimated(summary, costly[0]['times'])} times. To remove them: "
            f"{code('curate.drop_lines=' + json.dumps(shortened, ensure_ascii=False), limit=250)}"
        )


def _letters(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    bins = look["shares"]["letters"]
    few = sum(bins[: int(FEW_LETTERS * len(bins))])
    if 0 < few < 0.5 * look["documents"]:
        names = ", ".join(code(row["name"], limit=40) for row in look["fewest_letters"][:3])
        yield (
            f"**{estimated(summary, few, 'document')}** ({percent(few / look['documents'])}) consist of letters for less than half "
            f"({names}): tables, numbers, noise? `curate.min_letters={FEW_LETTERS}` drops them."
        )


def _short(summary: Summary) -> Iterator[str]:
    train = summary["splits"]["train"]
    short = sum(row["documents"] for row in train["lengths"] if row["at_least"] < SHORT)
    if short > 0.01 * train["documents"]:
        yield (
            f"**{count(short, 'document')}** ({percent(short / train['documents'])}) have fewer than {SHORT} tokens, "
            f"such as {code(train['shortest'][0]['name'])}: `curate.min_characters=` sets a least length."
        )


def _scripts(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    for row in look["scripts"][1:4]:
        if 0 < row["documents"] < STRAY_SCRIPT * look["documents"]:
            names = ", ".join(code(name, limit=40) for name in row["examples"][:3])
            yield (
                f"**{estimated(summary, row['documents'], 'document')}** ({percent(row['documents'] / look['documents'])}) are "
                f"mostly {row['script']} ({names}): meant to be there? `exclude=` leaves documents out by name."
            )


def _invisible(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    if look["classes"]["control"]:
        yield (
            f"**{estimated(summary, look['classes']['control'], 'control character')}** are in the text: "
            "`curate.control_characters=true` removes them."
        )


def _hyphens(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    if look["hyphens"] > look["characters"] / 3000:
        yield (
            f"**{estimated(summary, look['hyphens'])} lines end in a hyphen**: words cut in two by a page's layout stay so; "
            "a converter that joins them (when a PDF is exported) is worth more than a larger model."
        )


def _vocabulary(summary: Summary) -> Iterator[str]:
    words = summary["splits"]["train"]["vocabulary"]
    rare = words["size"] - words["used"] + words["under_100"]
    if words["size"] > 1000 and rare > 0.75 * words["size"]:
        yield (
            f"**{rare:,} of {words['size']:,} tokens** occur fewer than 100 times, {words['size'] - words['used']:,} "
            "never: little is learned of them. A smaller `tokenizer.vocab_size=`, or more text."
        )
