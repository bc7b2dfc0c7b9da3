"""Where a word begins and ends: a state machine over the bytes that follow a prompt.

It reads bytes and not tokens, for a token may hold the end of one word and the beginning of the next, half a word or
half a character. What it decides between are outcomes: a word, or what else may come in its place.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .. import InputError

RULES = ("unicode", "space", "character")
INNER = "'’-‐‑"  # apostrophes and hyphens: inside a word if a letter follows
# Scripts written without spaces between words, by how the names of their characters in Unicode begin.
WITHOUT_SPACES = (
    *(
        "CJK UNIFIED",
        "CJK COMPATIBILITY IDEOGRAPH",
        "IDEOGRAPHIC",
        "HIRAGANA",
        "KATAKANA",
        "HALFWIDTH KATAKANA",
        "BOPOMOFO",
        "THAI",
    ),
    *("LAO", "KHMER", "MYANMAR", "TIBETAN", "YI SYLLABLE", "NEW TAI LUE", "TAI LE", "TAI THAM", "BALINESE", "JAVANESE"),
)


class State(NamedTuple):
    """What must be known of the bytes so far. `pending` are those whose meaning the next ones decide.

    phase  border     `pending` is what remains of the prompt's own bytes, to be repeated before anything counts
           edge       right behind the prompt, whose last character is part of a word: a letter would continue that
           edge_inner the same, behind a hyphen or apostrophe that only a letter would make a part of the prompt's word
           lead       nothing yet: one space may be skipped
           spaced     nothing yet, and the space is skipped
           word       inside a word
    """

    phase: str
    pending: bytes = b""


class Step(NamedTuple):
    """What the bytes of a token do to a state.

    kind is None while the outcome is open, then `state` tells how it goes on. Otherwise the outcome is known and what
    is left of the token does not matter: `word`, `character` (of a script without spaces), `punctuation` (and symbols,
    controls), `space`, `byte` (that no UTF-8 has there), `special`, or `continues`: no new outcome begins, the prompt's
    last word goes on. `head` are bytes of the outcome: inside a word those that come on top, else all that are certain,
    whatever follows. So the bytes before and the head together are a prefix of any outcome that may come of it.
    `spaced`: a space was skipped.
    """

    kind: str | None
    head: bytes
    state: State | None = None
    spaced: bool = False


@dataclass(frozen=True)
class WordRule:
    """What counts as a word.

    unicode    letters, marks and numbers (Unicode's L, M and N), with single apostrophes and hyphens between them;
               a character of a script that is written without spaces is an outcome by itself
    space      whatever stands between white space
    character  every character is an outcome by itself, and no space is skipped
    """

    kind: str = "unicode"
    inner: str = INNER  # unicode: may stand inside a word, before a word character

    def validate(self) -> list[str]:
        return [] if self.kind in RULES else [f"word_rule={self.kind!r} is not one of {', '.join(RULES)}"]

    def start(self, prompt: str, *, spaced: bool) -> State:
        """The state behind a prompt (with spaced: whose trailing space has been taken as the one that is skipped)."""
        if spaced:
            return State("lead" if self.kind == "character" else "spaced")
        last = self.classify(prompt[-1:])
        if last == "word":
            return State("edge")
        if last == "inner" and len(prompt) > 1 and self.classify(prompt[-2]) == "word":
            return State("edge_inner")
        return State("lead")

    def classify(self, character: str) -> str:
        """`word`, `inner`, `blank` (U+0020), `space` (other white space), `character` or `punctuation`."""
        return _classify(self.kind, self.inner, character)

    def read(self, state: State, token: bytes) -> Step:
        """What a token of these bytes does to a state (not to a border)."""
        phase, pending = state
        done, start = b"", 0  # the bytes of the word so far, from the state's pending ones on; where `waiting` begins
        data = pending + token
        inner = 0  # the length of a pending apostrophe or hyphen at `start`
        spaced = False
        position = 0
        while position < len(data):
            character, size = _character(data, position)
            if size == 0:  # an unfinished UTF-8 sequence: wait
                break
            sort = self.classify(character) if character else "byte"
            position += size
            if phase in ("edge", "edge_inner") and sort == "word":
                return Step("continues", b"")
            if phase == "edge_inner" or (phase == "edge" and inner):
                if inner:  # the apostrophe was none of the prompt's word: it is the outcome itself
                    return Step("punctuation", data[start : start + inner])
                phase = "lead"
            if phase == "word":
                if sort == "word":
                    done += data[start:position]
                    start, inner = position, 0
                elif sort == "inner" and not inner:
                    inner = size
                else:
                    return Step("word", done, spaced=spaced)
            elif phase == "edge" and sort == "inner":
                inner = size
            elif sort == "word":
                phase, done, start = "word", data[start:position], position
            elif sort == "blank" and phase != "spaced" and self.kind != "character":
                phase, spaced, start = "spaced", True, position
            else:
                kind = {"inner": "punctuation", "blank": "space"}.get(sort, sort)
                return Step(kind, data[start:position], spaced=spaced)
        waiting = data[start:]
        if waiting and phase == "spaced":
            phase = "lead"  # no unfinished character is a second space: from here both are one
        return Step(None, done if phase == "word" else waiting[:1], State(phase, waiting), spaced)

    def end(self, state: State) -> Step:
        """What a special token does to a state."""
        phase, pending = state
        if phase == "word":
            return Step("word", b"")
        if not pending:
            return Step("special", b"")
        character, size = _character(pending, 0)
        return Step("punctuation", pending[:size]) if character else Step("byte", pending[:1])


@lru_cache(maxsize=1 << 16)
def _classify(rule: str, inner: str, character: str) -> str:
    if not character:
        return ""
    if character == " ":
        return "blank"
    if character.isspace():
        return "space"
    if rule == "space":
        return "word"
    if rule == "character":
        return "character"
    if unicodedata.category(character)[0] in "LMN":
        return "character" if unicodedata.name(character, "").startswith(WITHOUT_SPACES) else "word"
    return "inner" if character in inner else "punctuation"


def _character(data: bytes, position: int) -> tuple[str, int]:
    """The character at a position and its length; ("", 1) for a byte that no UTF-8 has there, ("", 0) if unfinished."""
    first = data[position]
    if first < 0x80:
        return chr(first), 1
    size = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    part = data[position : position + size]
    try:
        return part.decode(), size
    except UnicodeDecodeError as error:
        unfinished = error.start == 0 and error.reason == "unexpected end of data"
        return "", 0 if unfinished else 1


def checked(rule: WordRule | None) -> WordRule:
    """The rule, or the default one. Raises InputError for what is wrong with it."""
    rule = rule or WordRule()
    if problems := rule.validate():
        raise InputError(*problems)
    return rule
