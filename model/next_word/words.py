"""Decides where a word begins and ends: a state machine over the bytes that follow a prompt.

It reads bytes, not tokens: one token may hold the end of a word and the start of the next, half a word or half a
character. It recognizes outcomes: a word, or whatever comes in its place, such as a comma or a line end. Words are
those of Unicode's UAX #29 (https://www.unicode.org/reports/tr29/), with the changes that README.md lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .. import InputError
from .characters import word_break

RULES = ("unicode", "space", "character")
MID_ANY = "'’‘＇-‐‑"  # apostrophes and hyphens: join two letters or digits

# What joins an outcome: contexts, classes of the next character, new context (by default the class). A context is the
# class of the outcome's last character. Class names are those of word_break(), rule names those of UAX #29.
JOINS = (
    ("letter hebrew number", "letter hebrew number", ""),  # WB5, WB8, WB9, WB10
    ("letter hebrew", "mid_letter", ""),  # WB6
    ("mid_letter", "letter hebrew", ""),  # WB7
    ("hebrew", "single_quote", "hebrew_quote"),  # WB7a
    ("hebrew", "double_quote", ""),  # WB7b
    ("double_quote", "hebrew", ""),  # WB7c
    ("number", "mid_number", ""),  # WB12
    ("mid_number", "number", ""),  # WB11
    ("letter hebrew number", "mid_any", ""),  # WB6 and WB12, with changes
    ("letter number", "single_quote", ""),  # the same
    ("mid_any single_quote hebrew_quote", "letter hebrew number", ""),  # WB7 and WB11, with changes
    ("katakana", "katakana", ""),  # WB13
    ("letter hebrew number katakana word_connector", "connector", "word_connector"),  # WB13a
    ("connector", "connector", ""),  # WB13a before any word
    ("connector word_connector", "letter hebrew number katakana", ""),  # WB13b
    ("emoji", "joiner", "emoji_joiner"),  # WB3c
    ("emoji_joiner", "emoji", ""),  # WB3c
    ("emoji_joiner", "extend", "emoji"),  # WB3c needs the ZWJ directly before the emoji
    ("flag", "flag", "flag_pair"),  # WB15, WB16
)
NEXT_CONTEXT = {
    (context, kind): new or kind
    for contexts, kinds, new in JOINS
    for context in contexts.split()
    for kind in kinds.split()
}
WAITING = {"mid_letter", "mid_number", "mid_any", "single_quote", "double_quote"}  # join if the next character does
OPENING = {"letter", "hebrew", "number", "katakana", "connector", "ideograph", "emoji", "flag"}  # more may join these
SYMBOLS = ("connector", "emoji", "emoji_joiner", "flag", "flag_pair")
KINDS = {"ideograph": "character"} | dict.fromkeys(SYMBOLS, "punctuation")  # by the last context; by default `word`


def next_context(context: str, kind: str) -> str | None:
    """Returns the context after a character of class `kind`; None if the outcome ends before it.

    Marks and format characters never end an outcome (WB4).
    """
    return NEXT_CONTEXT.get((context, kind), context if kind in ("extend", "joiner") else None)


class State(NamedTuple):
    """The machine's memory.

    phase    healing      `pending` holds prompt bytes that token healing removed; tokens must reproduce them first
             prompt       directly after a prompt whose last word may continue
             before_word  before the outcome; one space may be skipped
             after_space  before the outcome, after the skipped space
             inside       inside the outcome
    pending  bytes whose meaning depends on the next ones
    context  before `pending`, of the prompt's last word or of the outcome: see JOINS
    """

    phase: str
    pending: bytes = b""
    context: str = ""


class Step(NamedTuple):
    """The effect of a token's bytes on a state.

    kind     None while the outcome is open; else `word`, `character` (in a script without spaces), `punctuation` (also
             symbols, emoji and controls), `space`, `byte` (invalid UTF-8), `special`, or `continues` (the prompt's last
             word continues, so no new outcome begins). The token's remaining bytes then do not matter.
    certain  bytes of the outcome that no later byte can change: inside the outcome those that this token added, else
             all of them. Appended to the outcome so far they are a prefix of every outcome that may follow.
    state    the next state while the outcome is open
    spaced   whether a space was skipped
    """

    kind: str | None
    certain: bytes
    state: State | None = None
    spaced: bool = False


@dataclass(frozen=True)
class WordRule:
    """The definition of a word.

    unicode    a word of UAX #29, with the changes that README.md lists
    space      everything between white space
    character  each character is an outcome, and no space is skipped
    """

    kind: str = "unicode"
    mid_any: str = MID_ANY  # unicode: part of a word between two letters or digits

    def __post_init__(self) -> None:
        if self.kind not in RULES:
            raise InputError(f"word_rule={self.kind!r} is not one of {', '.join(RULES)}")

    def start(self, prompt: str, *, spaced: bool) -> State:
        """Returns the state after a prompt. With `spaced`, its trailing space counts as the skipped one."""
        if spaced:
            return State("before_word" if self.kind == "character" else "after_space")
        context = ""
        for character in "" if prompt[-1:].isspace() else "".join(prompt.rsplit(maxsplit=1)[-1:]):
            kind = self.classify(character)
            context = next_context(context, kind) or (kind if kind in OPENING else "")
        return State("prompt", context=context) if context else State("before_word")

    def classify(self, character: str) -> str:
        """Returns the class of a character: `blank` (U+0020), `space` (other white space), or see word_break()."""
        if character.isspace():
            return "blank" if character == " " else "space"
        if self.kind != "unicode":
            return "letter" if self.kind == "space" else "character"
        if character in self.mid_any:
            return "single_quote" if character == "'" else "mid_any"
        return word_break(character)

    def read(self, state: State, token: bytes) -> Step:
        """Returns the effect of a token's bytes on a state (any phase but healing)."""
        phase, pending, settled = state
        data, context = pending + token, settled  # `settled` is the context before the undecided bytes
        certain, undecided = b"", 0  # the outcome's bytes in `data` so far; where the undecided bytes begin
        spaced = False
        position = 0
        while position < len(data):
            character, size = _character(data, position)
            if size == 0:  # an unfinished UTF-8 sequence
                break
            kind = self.classify(character) if character else "byte"
            position += size
            if context:
                after = next_context(context, kind)
                if after is not None:
                    context = after
                    if after not in WAITING:
                        if phase == "prompt":
                            return Step("continues", b"")
                        certain += data[undecided:position]
                        undecided, settled = position, after
                    continue
                if phase == "inside":
                    return Step(KINDS.get(settled, "word"), certain, spaced=spaced)
                if position > size:  # an apostrophe that no letter follows is an outcome of its own
                    return Step("punctuation", data[: _character(data, 0)[1]])
                phase, context, settled = "before_word", "", ""
            if kind in OPENING:
                phase, context, settled = "inside", kind, kind
                certain, undecided = data[undecided:position], position
            elif kind == "blank" and phase != "after_space" and self.kind != "character":
                phase, spaced, undecided = "after_space", True, position
            else:
                kind = {"blank": "space"}.get(kind, kind)
                kind = kind if kind in ("space", "character", "byte") else "punctuation"
                return Step(kind, data[undecided:position], spaced=spaced)
        rest = data[undecided:]
        if rest and phase == "after_space":
            phase = "before_word"  # the unfinished character cannot be a second space, so both phases read it alike
        return Step(None, certain if phase == "inside" else rest[:1], State(phase, rest, settled), spaced)

    def end(self, state: State) -> Step:
        """Returns the effect of a special token on a state."""
        phase, pending, context = state
        if phase == "inside":
            return Step(KINDS.get(context, "word"), b"")
        if not pending:
            return Step("special", b"")
        character, size = _character(pending, 0)
        return Step("punctuation", pending[:size]) if character else Step("byte", pending[:1])


def _character(data: bytes, position: int) -> tuple[str, int]:
    """Returns the character at a position and its length; ("", 1) for an invalid byte, ("", 0) if it is unfinished."""
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
