"""Words of UAX #29 with this project's changes as one regular expression: an independent form of the word machine."""

from __future__ import annotations

from functools import lru_cache

import regex

PARTS = {
    "E": r"[\p{Word_Break=Extend}\p{Word_Break=Format}\p{Word_Break=ZWJ}]",
    "H": r"\p{Word_Break=Hebrew_Letter}",
    "L": r"[\p{Word_Break=ALetter}\p{Word_Break=Hebrew_Letter}\p{No}]",
    "D": r"\p{Word_Break=Numeric}",
    "A": r"[\p{Word_Break=ALetter}\p{Word_Break=Hebrew_Letter}\p{No}\p{Word_Break=Numeric}]",
    "K": r"\p{Word_Break=Katakana}",
    "U": r"[\p{Word_Break=ExtendNumLet}--\s]",
    "S": r"[[\p{L}\p{Nl}]--[\p{Word_Break=ALetter}\p{Word_Break=Hebrew_Letter}\p{Word_Break=Katakana}"
    r"\p{Word_Break=Extend}]]",
    "F": r"\p{Regional_Indicator}",
    "P": r"[\p{Extended_Pictographic}--\p{Word_Break=ALetter}]",
}
STEPS = (  # what joins a word, after the characters before it
    "(?<=<A><E>*)<A>",  # WB5, WB8 to WB10
    "(?<=<L><E>*)[·׳״‧]<E>*<L>",  # WB6, WB7
    "(?<=<A><E>*)['’‘＇‐‑-]<E>*<A>",  # apostrophes and hyphens
    "(?<=<H><E>*)'|(?<=<H><E>*'<E>*)<A>",  # WB7a
    '(?<=<H><E>*)"<E>*<H>',  # WB7b, WB7c
    "(?<=<D><E>*)[.,;،٬⁄]<E>*<D>",  # WB11, WB12
    "(?<=<K><E>*)<K>",  # WB13
    "(?<=[<A><K><U>]<E>*)<U>|(?<=<U><E>*)[<A><K>]",  # WB13a, WB13b
)
PATTERN = (
    f"[<A><K><U>]<E>*(?:(?:{'|'.join(STEPS)})<E>*)*"  # a word
    "|<S><E>*"  # a character of a script without spaces
    "|<F><E>*(?:<F><E>*)?|<P><E>*(?:(?<=\u200d)<P><E>*)*"  # a flag, an emoji
    "|."
)
for name, part in PARTS.items():
    PATTERN = PATTERN.replace(f"<{name}>", part)
OUTCOME = regex.compile(PATTERN, flags=regex.DOTALL | regex.V1)
PROBES = "a!1אカ_😀🇩\u200d"


def outcome(prompt: str, text: str) -> str:
    """Returns the outcome that the text after a prompt begins with; "continues" if it continues the prompt's last."""
    position, whole = 0, prompt + text
    while position < len(prompt):
        position += len(OUTCOME.match(whole[position:])[0])
    if position > len(prompt):
        return "continues"
    rest = text.removeprefix(" ")
    return OUTCOME.match(rest)[0] if rest else ""


@lru_cache(maxsize=1 << 16)
def decided_outcome(prompt: str, text: str) -> str | None:
    """Like outcome(), or None if more text could change it."""
    found = outcome(prompt, text + PROBES[0])
    return found if all(outcome(prompt, text + probe) == found for probe in PROBES[1:]) else None
