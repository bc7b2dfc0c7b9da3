"""Findings: what in a corpus's statistics deserves a decision, in sentences that name the setting for it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from ..corpus.reading import BAD_LINE, NOT_UTF8, REPLACED
from .yardsticks import VERBATIM_BYTES

Summary = dict[str, Any]  # what report.json holds: data/report.py

FEW_LETTERS = 0.5  # a document with a smaller share of letters is a table, code, or noise
SHORT = 16  # tokens
COSTLY_LINE = 0.003  # share of the text
MARKUP = 0.005  # share of the documents
IDENTIFIERS = 0.005  # lines of one shape for each document
VERBATIM = 0.05  # share of the pieces of validation text that training has too
STRAY_SCRIPT = 0.2  # share of the documents below which a script counts as a stray one


def findings(summary: Summary) -> list[str]:
    """One sentence or two on each matter, the weightiest kinds first; Markdown."""
    rules: tuple[Callable[[Summary], Iterator[str]], ...] = (
        _unread, _idle, _identifiers, _copies, _leaks, _damage, _markup, _lines, _letters, _short, _scripts,
        _invisible, _hyphens, _vocabulary,
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
    if not alone or yardsticks["val_bytes"] <= 10_000:
        return
    verbatim = yardsticks.get("val_verbatim", 0.0)
    hint = "Hold out by source or time (`val_include=`)."
    if verbatim > VERBATIM:
        yield (
            f"**Whole passages are in both splits**: of pieces of {VERBATIM_BYTES} bytes of validation text, "
            f"{percent(verbatim)} stand in training text word for word (samples of both were compared), so the "
            f"validation loss will flatter. {hint}"
        )
    elif after < 0.7 * alone:
        yield (
            f"xz needs {alone:.2f} bits/byte for validation text, but {after:.2f} after training text: the two may "
            f"share passages or templates ({percent(verbatim)} of pieces of {VERBATIM_BYTES} bytes stand in both word "
            f"for word, in samples), and the validation loss may flatter. {hint}"
        )


def _damage(summary: Summary) -> Iterator[str]:
    look, settings = looked_at(summary), summary["settings"]
    damage, total = look["mojibake"], look["documents"]
    if damage["documents"] > 0.001 * total:
        example = damage["examples"][0]
        drops = " and ".join(
            f"`curate.max_mojibake={share}` would drop {estimated(summary, documents)} of them"
            for share, documents in damage["above"].items()
        )
        repair = "First repair what can be (`curate.repair_mojibake=true`) and prepare again. "
        yield (
            f"**{estimated(summary, damage['documents'], 'document')}** ({percent(damage['documents'] / total)}) show "
            f"traces of a wrong decoding, such as {code(example['text'])} in {code(example['name'])}. "
            f"{'' if settings.get('repair_mojibake') else repair}As they are, {drops}."
        )


def _lines(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    costly = [row for row in look["lines"] if row["bytes"] > COSTLY_LINE * look["characters"]]
    if costly:
        patterns = [pattern for row in costly[:3] if (pattern := _pattern(row["line"])).strip("?* ")]
        setting = shlex.quote("curate.drop_lines=" + json.dumps(patterns, ensure_ascii=False))
        share = sum(row["bytes"] for row in costly) / max(1, look["characters"])
        yield (
            f"**{count(len(costly), 'line')}** recurring all over take {percent(share)} of the text; the costliest, "
            f"{code(costly[0]['line'], limit=60)}, stands there {estimated(summary, costly[0]['times'])} times."
            + (f" To remove them: {code(setting, limit=250)}" if patterns else "")
        )


def _pattern(line: str) -> str:
    """A pattern for a line, of characters that mean nothing to Hydra, JSON or Markdown: it can be pasted as it is."""
    line = "".join(c if c.isprintable() and c not in "[]'\"\\$|`" else "?" for c in line)
    if len(line) > 50:
        line = line[:45].rstrip() + "*"
    return re.sub(r"\s\s+", "*", line)


def _letters(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    bins = look["shares"]["letters"]
    few = sum(bins[: int(FEW_LETTERS * len(bins))])
    if 0 < few < 0.5 * look["documents"]:
        names = ", ".join(code(row["name"], limit=40) for row in look["fewest_letters"][:3])
        yield (
            f"**{estimated(summary, few, 'document')}** ({percent(few / look['documents'])}) consist of letters "
            f"for less than half ({names}): tables, numbers, noise? `curate.min_letters={FEW_LETTERS}` drops them."
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
            share = percent(row["documents"] / look["documents"])
            yield (
                f"**{estimated(summary, row['documents'], 'document')}** ({share}) are mostly {row['script']} "
                f"({names}): meant to be there? `exclude=` leaves documents out by name."
            )


def _invisible(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    if number := look["classes"]["control"]:
        halves = look["high_controls"] and not summary["settings"].get("repair_mojibake")
        yield f"**{estimated(summary, number, 'control character')}** are in the text: " + (
            f"{estimated(summary, look['high_controls'])} of them (U+0080 to U+009F) may be halves of characters that "
            "were decoded wrongly, and without them these cannot be put right: remove them only together with "
            "`curate.repair_mojibake=true`, which comes first: `curate.repair_mojibake=true "
            "curate.control_characters=true`."
            if halves
            else "`curate.control_characters=true` removes them."
        )


def _markup(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    markup, total = look["markup"], look["documents"]
    if markup["documents"] > MARKUP * total:
        names = ", ".join(code(name, limit=40) for name in markup["examples"][:3])
        yield (
            f"**{estimated(summary, markup['documents'], 'document')}** ({percent(markup['documents'] / total)}) have "
            f"tags or entities of HTML ({names}): meant to be there? If not, convert them to text before; a model "
            "learns to write them too."
        )


def _identifiers(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    for row in look["shapes"][:1]:
        if row["times"] > max(9, IDENTIFIERS * look["documents"]):
            yield (
                f"**{estimated(summary, row['times'], 'line')}** differ in their digits only, as {code(row['line'])} "
                "(`#` stands for digits): this looks like identifiers: look whether they name people."
            )


def _unread(summary: Summary) -> Iterator[str]:
    for reason, entry in (summary.get("left_out") or {}).items():
        some = f"({entry['bytes']:,} bytes), such as {code((entry['examples'] or ['?'])[0], limit=60)},"
        if reason == NOT_UTF8:
            yield (
                f"**{count(entry['documents'], 'document')}** {some} left out for not being UTF-8: convert with "
                "`iconv -f WINDOWS-1252 -t UTF-8`, or what they were written in, or set `invalid_utf8=replace` to "
                "have U+FFFD for what cannot be read."
            )
        elif reason == REPLACED:
            yield (
                f"**{count(entry['documents'], 'document')}** {some} not UTF-8: U+FFFD stands for what could not be "
                "read; convert with `iconv -f WINDOWS-1252 -t UTF-8`, or what they were written in, to have all of it."
            )
        elif reason == BAD_LINE:
            yield (
                f"**{count(entry['documents'], 'line')} of JSON** {some} broken and left out, as `max_bad_lines=` "
                "allows: see to what wrote them, or mend them."
            )


def _idle(summary: Summary) -> Iterator[str]:
    if idle := summary.get("idle_patterns"):
        yield idle_patterns(idle, show=code)


def idle_patterns(patterns: list[str], *, show: Callable[[str], str] = repr) -> str:
    """That some patterns of drop_lines did nothing, and why that may be."""
    wider = f"*{patterns[0].strip('*')}*"
    hint = "" if wider == patterns[0] else f": {show(wider)} would match those that have it in them"
    return f"drop_lines: {', '.join(map(show, patterns))} matched no line; patterns match whole lines{hint}"


def _hyphens(summary: Summary) -> Iterator[str]:
    look = looked_at(summary)
    if look["hyphens"] > look["characters"] / 3000:
        yield (
            f"**{estimated(summary, look['hyphens'])} lines end in a hyphen**: words cut in two by a page's layout "
            "stay so; a converter that joins them (when a PDF is exported) is worth more than a larger model."
        )


def _vocabulary(summary: Summary) -> Iterator[str]:
    words = summary["splits"]["train"]["vocabulary"]
    rare = words["size"] - words["used"] + words["under_100"]
    if words["size"] > 1000 and rare > 0.75 * words["size"]:
        yield (
            f"**{rare:,} of {words['size']:,} tokens** occur fewer than 100 times, {words['size'] - words['used']:,} "
            "never: little is learned of them. A smaller `tokenizer.vocab_size=`, or more text."
        )
