"""Findings: what in a corpus's statistics needs a decision, as sentences that name the setting for it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from ..corpus.reading import BAD_LINE, NOT_UTF8, REPLACED
from .baselines import VERBATIM_BYTES
from .frequent_lines import MAX_LINE

Summary = dict[str, Any]  # the content of report.json: see report.summarise()

FEW_LETTERS = 0.5  # a document with a smaller share of letters is probably a table, code or noise
SHORT = 16  # tokens
COSTLY_LINE = 0.003  # fraction of the text
MARKUP = 0.005  # fraction of the documents
IDENTIFIERS = 0.005  # lines of one shape per document
VERBATIM = 0.05  # fraction of the validation passages that training text contains too
STRAY_SCRIPT = 0.2  # a script that fewer documents are mostly in may be there by mistake
MARKER = re.compile(r"<[|/]?\w+[|/]?>")  # such as <|assistant|>
END_MARKER = re.compile(r"<[|/]?(?i:end\w*|eo[sdt]|sep\w*|document|doc|s)[|/]?>")
SEPARATES = "If it separates documents, name it in `document_separator=` instead."
ICONV = "`iconv -f WINDOWS-1252 -t UTF-8` (or from their real encoding)"


def findings(summary: Summary) -> list[str]:
    """Returns one to three sentences of Markdown per finding, the most important kinds first."""
    rules: tuple[Callable[[Summary], Iterator[str]], ...] = (
        _not_read, _unknown, _special_tokens, _unmatched_patterns, _identifiers, _copies, _leaks, _mojibake, _markup,
        _lines, _letters, _short, _scripts, _control_characters, _hyphens, _vocabulary,
    )  # fmt: skip
    return [sentence for rule in rules for sentence in rule(summary)]


def detailed(summary: Summary) -> dict[str, Any]:
    """Returns the detailed statistics of the training split, which may cover a sample of its documents."""
    return summary["splits"]["train"]["looked_at"]


def estimate(summary: Summary, number: int, thing: str = "") -> str:
    """Scales a count of the detailed statistics to all training documents: "about" and two digits if sampled."""
    sampled, total = detailed(summary)["documents"], summary["splits"]["train"]["documents"]
    if sampled == total:
        return plural(number, thing) if thing else f"{number:,}"
    number = int(float(format(number * total / max(1, sampled), ".2g")))
    return "about " + (plural(number, thing) if thing else f"{number:,}")


def code(text: str, *, limit: int = 90) -> str:
    """Formats any text as Markdown code, on one line and safe in a table."""
    text = " ".join(text.split()) if text.strip() else repr(text)[1:-1]
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text).replace("|", "¦").replace("`", "ˋ")
    return f"`{text}`"


def percent(share: float) -> str:
    """Formats a share with two significant digits; a small share never becomes 0 %."""
    if share < 0:
        return f"-{percent(-share)}"
    return f"{share:.1%}" if share >= 0.01 or not share else f"{share:.2%}" if share >= 0.0001 else "<0.01%"


def plural(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _copies(summary: Summary) -> Iterator[str]:
    rules, total = summary["curation"], summary["read"]["documents"]
    for rule, kind, setting in (
        ("duplicate", "exact copies of earlier documents", "curate.exact_duplicates=true"),
        ("in validation", "exact copies of validation documents", "curate.overlap=true"),
        ("near copy in validation", "near copies of validation documents", "curate.overlap=true"),
    ):
        if entry := rules.get(f"{rule}, kept"):
            share = percent(entry["documents"] / total)
            yield f"Kept: **{plural(entry['documents'], 'document')}** ({share}), {kind}. `{setting}` drops them."
    if total >= 100 and not summary["settings"].get("near_duplicates"):
        yield "Near duplicates were not searched for: `curate.near_duplicates=true` does, but takes time."


def _leaks(summary: Summary) -> Iterator[str]:
    baselines = summary.get("yardsticks") or {}
    alone, after = baselines.get("xz_val"), baselines.get("xz_val_after")
    if not alone or baselines["val_bytes"] <= 10_000:
        return
    verbatim = baselines.get("val_verbatim", 0.0)
    hint = "Hold out by source or date (`val_include=`)."
    if verbatim > VERBATIM:
        yield (
            f"**The splits share whole passages**: training text contains {percent(verbatim)} of the validation "
            f"passages of {VERBATIM_BYTES} bytes word for word (samples of both were compared), so the validation loss "
            f"will be too low. {hint}"
        )
    elif after < 0.7 * alone:
        yield (
            f"xz needs {alone:.2f} bits/byte for validation text by itself, but {after:.2f} after training text. The "
            f"splits may share passages or templates (training text contains {percent(verbatim)} of the validation "
            f"passages of {VERBATIM_BYTES} bytes word for word, in samples), so the validation loss may be too low. "
            f"{hint}"
        )


def _mojibake(summary: Summary) -> Iterator[str]:
    sampled, settings = detailed(summary), summary["settings"]
    damage, total = sampled["mojibake"], sampled["documents"]
    if damage["documents"] > 0.001 * total:
        example = damage["examples"][0]
        drops = " and ".join(
            f"`curate.max_mojibake={share}` would drop {estimate(summary, documents)} of them"
            for share, documents in damage["above"].items()
        )
        repair = "First repair what can be repaired (`curate.repair_mojibake=true`) and prepare again. "
        yield (
            f"**{estimate(summary, damage['documents'], 'document')}** ({percent(damage['documents'] / total)}) "
            f"contain mojibake, text decoded with a wrong encoding, such as {code(example['text'])} in "
            f"{code(example['name'])}. {'' if settings.get('repair_mojibake') else repair}As the text is now, {drops}."
        )


def _lines(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    costly = [row for row in sampled["lines"] if row["bytes"] > COSTLY_LINE * sampled["characters"]]
    for row in [row for row in costly if MARKER.fullmatch(row["line"])][:1]:
        costly = [other for other in costly if not MARKER.fullmatch(other["line"])]
        many = f"**`{row['line']}`** is a line of its own {estimate(summary, row['times'])} times"
        if END_MARKER.fullmatch(row["line"]):
            separator = shlex.quote(f"document_separator={row['line']}")
            yield f"{many}, which looks like the end of a document. In text files, `{separator}` divides there."
        else:
            special = shlex.quote(f'tokenizer.special_tokens=["{row["line"]}"]')
            yield f"{many}. `{special} tokenizer.allow_special=true` makes such a marker one token."
    if costly:
        patterns = [pattern for row in costly[:3] if (pattern := _pattern(row["line"])).count("?") < len(pattern) / 2]
        setting = shlex.quote("curate.drop_lines=" + json.dumps(patterns, ensure_ascii=False))
        share = sum(row["bytes"] for row in costly) / max(1, sampled["characters"])
        yield (
            f"**{plural(len(costly), 'line')}** repeated many times: {percent(share)} of the text. The largest, "
            f"{code(costly[0]['line'], limit=60)}, occurs {estimate(summary, costly[0]['times'])} times."
            + (f" To remove them: {code(setting, limit=3 * 2 * MAX_LINE)}" if patterns else "")
            + ("" if any(map(str.isalnum, costly[0]["line"])) else f" {SEPARATES}")
        )


def _pattern(line: str) -> str:
    """Returns a pattern for a line, and for hardly any other. Characters that are special to the command line, JSON or
    Markdown become ?, which matches one character; so do runs of spaces.
    """
    text = "".join(c if c.isprintable() and c not in "*[]'\"\\$|`" else "?" for c in line)
    text = re.sub(r"\s\s+", lambda run: "?" * len(run.group()), text)
    return text if len(line) < MAX_LINE else text.rstrip() + "*"  # the rest of a longer line was not recorded


def _letters(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    bins = sampled["shares"]["letters"]
    few = sum(bins[: int(FEW_LETTERS * len(bins))])
    if 0 < few < 0.5 * sampled["documents"]:
        names = ", ".join(code(row["name"], limit=40) for row in sampled["fewest_letters"][:3])
        yield (
            f"**{estimate(summary, few, 'document')}** ({percent(few / sampled['documents'])}) with less than half "
            f"letters ({names}): tables, numbers or noise? `curate.min_letters={FEW_LETTERS}` drops them."
        )


def _short(summary: Summary) -> Iterator[str]:
    train = summary["splits"]["train"]
    short = sum(row["documents"] for row in train["lengths"] if row["at_least"] < SHORT)
    if short > 0.01 * train["documents"]:
        yield (
            f"**{plural(short, 'document')}** ({percent(short / train['documents'])}) with fewer than {SHORT} tokens, "
            f"such as {code(train['shortest'][0]['name'])}: `curate.min_characters=` sets a minimum length."
        )


def _scripts(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    for row in sampled["scripts"][1:4]:
        if 0 < row["documents"] < STRAY_SCRIPT * sampled["documents"]:
            names = ", ".join(code(name, limit=40) for name in row["examples"][:3])
            share = percent(row["documents"] / sampled["documents"])
            yield (
                f"**{estimate(summary, row['documents'], 'document')}** ({share}) mostly in {row['script']} "
                f"script ({names}): if they do not belong here, `exclude=` leaves out documents by name."
            )


def _control_characters(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    if number := sampled["classes"]["control"]:
        repairable = sampled["high_controls"] and not summary["settings"].get("repair_mojibake")
        yield f"**{estimate(summary, number, 'control character')}** in the text: " + (
            f"{estimate(summary, sampled['high_controls'])} of them (U+0080 to U+009F) are quotes, dashes or parts of "
            "letters, decoded with a wrong encoding. Remove control characters only together with the repair, which "
            "runs first: `curate.repair_mojibake=true curate.control_characters=true`."
            if repairable
            else "`curate.control_characters=true` removes them."
        )


def _markup(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    markup, total = sampled["markup"], sampled["documents"]
    if markup["documents"] > MARKUP * total:
        names = ", ".join(code(name, limit=40) for name in markup["examples"][:3])
        yield (
            f"**{estimate(summary, markup['documents'], 'document')}** ({percent(markup['documents'] / total)}) with "
            f"HTML tags or entities ({names}): if they are not intended, convert the documents to text first; a model "
            "learns to write them too."
        )


def _identifiers(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    for row in sampled["shapes"][:1]:
        if row["times"] > max(9, IDENTIFIERS * sampled["documents"]):
            yield (
                f"**{estimate(summary, row['times'], 'line')}** that differ only in their digits, such as "
                f"{code(row['line'])} (`#` stands for digits). They look like identifiers: check whether they identify "
                "people."
            )


def _not_read(summary: Summary) -> Iterator[str]:
    for reason, entry in (summary.get("left_out") or {}).items():
        some = f"({entry['bytes']:,} bytes), such as {code((entry['examples'] or ['?'])[0], limit=60)}:"
        documents = f"**{plural(entry['documents'], 'document')}** {some}"
        if reason == NOT_UTF8:
            yield (
                f"{documents} skipped, because the text is not UTF-8. Convert it with {ICONV}, or set "
                "`invalid_utf8=replace` to replace invalid bytes by U+FFFD."
            )
        elif reason == REPLACED:
            yield (
                f"{documents} not UTF-8, so invalid bytes were replaced by U+FFFD. Convert with {ICONV} to keep all "
                "of the text."
            )
        elif reason == BAD_LINE:
            yield (
                f"**{plural(entry['documents'], 'broken line')}** of JSON {some} skipped, as `max_bad_lines=` allows. "
                "Fix the file, or the program that wrote it."
            )


def _unknown(summary: Summary) -> Iterator[str]:
    for name, split in summary["splits"].items():
        if unknown := split["unknown_characters"]:
            most = ", ".join(f"{code(character)} {count:,} times" for character, count in list(unknown.items())[:3])
            yield (
                f"**{plural(sum(unknown.values()), 'character')}** of the {name} split are unknown to the tokenizer "
                f"({most}): to a model they are all the same, and there are no bits/byte. `tokenizer=bpe` knows all."
            )


def _special_tokens(summary: Summary) -> Iterator[str]:
    names = summary["splits"]["train"]["special_tokens_as_text"]
    if names:
        counts = ", ".join(f"{code(name)} {count:,} times" for name, count in names.items())
        yield (
            f"**{plural(sum(names.values()), 'special token')}** in the text ({counts}) are ordinary text: "
            "`tokenizer.allow_special=true` makes them tokens."
        )


def _unmatched_patterns(summary: Summary) -> Iterator[str]:
    if patterns := summary.get("idle_patterns"):
        yield unmatched_patterns(patterns, show=code)


def unmatched_patterns(patterns: list[str], *, show: Callable[[str], str] = repr) -> str:
    """Returns the message that some patterns of drop_lines matched no line, with a likely reason."""
    wider = f"*{patterns[0].strip('*')}*"
    hint = "" if wider == patterns[0] else f": {show(wider)} would match lines that contain it"
    names = ", ".join(map(show, patterns))
    return f"curate.drop_lines: {names} matched no line; a pattern must match the whole line{hint}"


def _hyphens(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    if sampled["hyphens"] > sampled["characters"] / 3000:
        yield (
            f"**{estimate(summary, sampled['hyphens'], 'line')}** that end in a hyphen: the page layout divided "
            "words. Export the text (for example from a PDF) with a converter that joins them."
        )


def _vocabulary(summary: Summary) -> Iterator[str]:
    words = summary["splits"]["train"]["vocabulary"]
    unused = words["size"] - words["used"]
    rare = unused + words["under_100"]
    if words["size"] > 1000 and rare > 0.75 * words["size"]:
        yield (
            f"**{rare:,} of {words['size']:,} tokens** occur fewer than 100 times, {unused:,} of them never, so a "
            "model learns little about them. Use a smaller `tokenizer.vocab_size=`, or more text."
        )
