"""Findings: what stands out in a corpus's statistics, as sentences that name the setting for it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from ..corpus.reading import BAD_LINE, NOT_UTF8, REPLACED
from .baselines import VERBATIM_BYTES
from .frequent_lines import MAX_LINE

Summary = dict[str, Any]  # the content of report.json: see report.summarize()

FEW_LETTERS = 0.5  # a document with a smaller share of letters is probably a table, code or noise
SHORT = 16  # tokens
COSTLY_LINE = 0.003  # fraction of the text
MARKUP = 0.005  # fraction of the documents
IDENTIFIERS = 0.005  # lines of one shape per document
VERBATIM = 0.05  # fraction of the validation passages that training text contains too
STRAY_SCRIPT = 0.2  # a script that fewer documents are mostly in may be there by mistake
MARKER = re.compile(r"<[|/]?\w+[|/]?>")  # such as <|assistant|>
END_MARKER = re.compile(r"<[|/]?(?i:end\w*|eo[sdt]|sep\w*|document|doc|s)[|/]?>")
ICONV = "Convert them with `iconv -f WINDOWS-1252 -t UTF-8` (or from their real encoding)"
NOT_READ = {  # reason -> what is counted, what happened and the fix
    NOT_UTF8: ("document", f"skipped, because the text is not UTF-8. {ICONV}, or set `invalid_utf8=replace`."),
    REPLACED: ("document", f"not UTF-8, so invalid bytes were replaced by U+FFFD. {ICONV} to keep all of the text."),
    BAD_LINE: ("broken JSON line", "skipped, as `max_bad_lines=` allows. Fix the file, or the program that wrote it."),
}


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


def estimate(summary: Summary, number: int, thing: str = "time") -> str:
    """Scales a count of the detailed statistics to all training documents: "about" and two digits if sampled."""
    sampled, total = detailed(summary)["documents"], summary["splits"]["train"]["documents"]
    if sampled == total:
        return plural(number, thing)
    return "about " + plural(int(float(format(number * total / max(1, sampled), ".2g"))), thing)


def documents(summary: Summary, number: int) -> str:
    """Formats a number of documents of the detailed statistics, with their share."""
    return f"**{estimate(summary, number, 'document')}** ({percent(number / detailed(summary)['documents'])})"


def code(text: str, *, limit: int = 90) -> str:
    """Formats any text as Markdown code, on one line and safe in a table."""
    text = " ".join(text.split()) if text.strip() else repr(text)[1:-1]
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text).replace("|", "¦").replace("`", "ˋ")
    return f"`{text}`"


def codes(names: list[str], *, limit: int = 40) -> str:
    """Formats up to three names as a list of Markdown code."""
    return ", ".join(code(name, limit=limit) for name in names[:3])


def percent(share: float) -> str:
    """Formats a share with two significant digits; a small share never becomes 0%."""
    if share < 0:
        return f"-{percent(-share)}"
    return f"{share:.1%}" if share >= 0.01 or not share else f"{share:.2%}" if share >= 0.0001 else "<0.01%"


def plural(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _not_read(summary: Summary) -> Iterator[str]:
    for reason, entry in summary["left_out"].items():
        if reason in NOT_READ:
            thing, what = NOT_READ[reason]
            example = code((entry["examples"] or ["?"])[0], limit=60)
            yield f"**{plural(entry['documents'], thing)}** ({entry['bytes']:,} bytes), such as {example}: {what}"


def _unknown(summary: Summary) -> Iterator[str]:
    for name, split in summary["splits"].items():
        if unknown := split["unknown_characters"]:
            most = ", ".join(f"{code(character)} {count:,} times" for character, count in list(unknown.items())[:3])
            some = f"**{plural(sum(unknown.values()), 'character')}** of the {name} split are unknown to the tokenizer"
            yield f"{some} ({most}): a model cannot tell them apart. `tokenizer=bpe` knows all characters."


def _special_tokens(summary: Summary) -> Iterator[str]:
    if names := summary["splits"]["train"]["special_tokens_as_text"]:
        counts = ", ".join(f"{code(name)} {count:,} times" for name, count in names.items())
        some = f"**{plural(sum(names.values()), 'special token')}** in the text ({counts})"
        yield f"{some} are ordinary text: `tokenizer.allow_special=true` makes them tokens."


def _unmatched_patterns(summary: Summary) -> Iterator[str]:
    if patterns := summary["idle_patterns"]:
        yield unmatched_patterns(patterns, show=code)


def unmatched_patterns(patterns: list[str], *, show: Callable[[str], str] = repr) -> str:
    """Returns the message that some patterns of drop_lines matched no line, with a likely reason."""
    wider = f"*{patterns[0].strip('*')}*"
    hint = "" if wider == patterns[0] else f": {show(wider)} would match lines that contain it"
    names = ", ".join(map(show, patterns))
    return f"curate.drop_lines: {names} matched no line; a pattern must match the whole line{hint}"


def _identifiers(summary: Summary) -> Iterator[str]:
    for row in detailed(summary)["shapes"][:1]:
        if row["times"] > max(9, IDENTIFIERS * detailed(summary)["documents"]):
            some = f"**{estimate(summary, row['times'], 'line')}** that differ only in their digits"
            yield f"{some}, such as {code(row['line'])} (`#`: digits). Identifiers? Do they identify people?"


def _copies(summary: Summary) -> Iterator[str]:
    total = summary["read"]["documents"]
    for rule, setting in (
        ("duplicate", "curate.exact_duplicates=true"),
        ("in validation", "curate.overlap=true"),
        ("near copy in validation", "curate.overlap=true"),
    ):
        if entry := summary["curation"].get(f"{rule}, kept"):
            number, kind = entry["documents"], entry["what"].removesuffix(" (kept)")
            yield f"Kept: **{plural(number, 'document')}** ({percent(number / total)}), {kind}. `{setting}` drops them."
    if total >= 100 and not summary["settings"].get("near_duplicates"):
        yield "Near duplicates were not searched for: `curate.near_duplicates=true` does, but takes time."


def _leaks(summary: Summary) -> Iterator[str]:
    baselines = summary["yardsticks"] or {}
    if "xz_val" not in baselines or baselines["val_bytes"] <= 10_000:
        return
    alone, after = baselines["xz_val"], baselines["xz_val_after"]
    share, fix = percent(baselines["val_verbatim"]), "Hold out by source or date (`val_include=`)."
    if baselines["val_verbatim"] > VERBATIM:
        yield (
            f"**The splits share whole passages**: in samples, training text contains {share} of the validation "
            f"passages of {VERBATIM_BYTES} bytes word for word. The validation loss will be too low. {fix}"
        )
    elif after < 0.7 * alone:
        yield (
            f"xz needs {alone:.2f} bits/byte for validation text by itself, but {after:.2f} after training text. The "
            f"splits may share passages or templates, so the validation loss may be too low. {fix}"
        )


def _mojibake(summary: Summary) -> Iterator[str]:
    damage = detailed(summary)["mojibake"]
    if damage["documents"] > 0.001 * detailed(summary)["documents"]:
        example = damage["examples"][0]
        drops = " and ".join(
            f"`curate.max_mojibake={share}` would drop {estimate(summary, number, 'document')}"
            for share, number in damage["above"].items()
        )
        repair = "First repair what can be repaired (`curate.repair_mojibake=true`) and prepare again. "
        yield (
            f"{documents(summary, damage['documents'])} contain mojibake, text decoded with a wrong encoding, such as "
            f"{code(example['text'])} in {code(example['name'])}. "
            f"{'' if summary['settings'].get('repair_mojibake') else repair}As the text is now, {drops}."
        )


def _markup(summary: Summary) -> Iterator[str]:
    markup = detailed(summary)["markup"]
    if markup["documents"] > MARKUP * detailed(summary)["documents"]:
        some = f"{documents(summary, markup['documents'])} with HTML tags or entities ({codes(markup['examples'])})"
        yield f"{some}: a model learns to write them. If they are not intended, convert the documents to text first."


def _lines(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    costly = [row for row in sampled["lines"] if row["bytes"] > COSTLY_LINE * sampled["characters"]]
    markers = [row for row in costly if MARKER.fullmatch(row["line"])]
    costly = [row for row in costly if row not in markers]
    for row in markers[:1]:
        many = f"**`{row['line']}`** is a line of its own {estimate(summary, row['times'])}"
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
        largest = costly[0]["line"]
        symbols = " If it separates documents, name it in `document_separator=` instead."
        yield (
            f"**{plural(len(costly), 'line')}** repeated many times: {percent(share)} of the text. The largest, "
            f"{code(largest, limit=60)}, occurs {estimate(summary, costly[0]['times'])}."
            + (f" To remove them: {code(setting, limit=3 * 2 * MAX_LINE)}" if patterns else "")
            + ("" if any(map(str.isalnum, largest)) else symbols)
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
        some = f"{documents(summary, few)} with less than half letters"
        names = codes([row["name"] for row in sampled["fewest_letters"]])
        yield f"{some} ({names}): tables, numbers or noise? `curate.min_letters={FEW_LETTERS}` drops them."


def _short(summary: Summary) -> Iterator[str]:
    train = summary["splits"]["train"]
    short = sum(row["documents"] for row in train["lengths"] if row["at_least"] < SHORT)
    if short > 0.01 * train["documents"]:
        some = f"**{plural(short, 'document')}** ({percent(short / train['documents'])}) with fewer than {SHORT} tokens"
        yield f"{some}, such as {code(train['shortest'][0]['name'])}: `curate.min_characters=` sets a minimum length."


def _scripts(summary: Summary) -> Iterator[str]:
    for row in detailed(summary)["scripts"][1:4]:
        if 0 < row["documents"] < STRAY_SCRIPT * detailed(summary)["documents"]:
            some = f"{documents(summary, row['documents'])} mostly in {row['script']} script ({codes(row['examples'])})"
            yield f"{some}: if they do not belong here, `exclude=` leaves out documents by name."


def _control_characters(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    if number := sampled["classes"]["control"]:
        repairable = sampled["high_controls"] and not summary["settings"].get("repair_mojibake")
        some = f"**{estimate(summary, number, 'control character')}** in the text"
        if repairable:
            yield (
                f"{some}; those from U+0080 to U+009F are quotes, dashes or letters decoded with a wrong encoding. "
                "Repair them before the removal: `curate.repair_mojibake=true curate.control_characters=true`."
            )
        else:
            yield f"{some}: `curate.control_characters=true` removes them."


def _hyphens(summary: Summary) -> Iterator[str]:
    sampled = detailed(summary)
    if sampled["hyphens"] > sampled["characters"] / 3000:
        some = f"**{estimate(summary, sampled['hyphens'], 'line')}** that end in a hyphen"
        yield f"{some}: the page layout divided words. Export the text with a converter that joins them."


def _vocabulary(summary: Summary) -> Iterator[str]:
    words = summary["splits"]["train"]["vocabulary"]
    unused = words["size"] - words["used"]
    rare = unused + words["under_100"]
    if words["size"] > 1000 and rare > 0.75 * words["size"]:
        some = f"**{rare:,} of {words['size']:,} tokens** occur fewer than 100 times, {unused:,} of them never"
        yield f"{some}: a model learns little about them. Use a smaller `tokenizer.vocab_size=`, or more text."
