"""Decides where a word begins and ends: a state machine over the bytes that follow a prompt.

It reads bytes, not tokens: one token may hold the end of a word and the start of the next, half a word or half a
character. It recognizes outcomes: a word, or whatever comes in its place, such as a comma or a line end.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .. import InputError

RULES = ("unicode", "space", "character")
MID_LETTERS = "'’-‐‑"  # apostrophes and hyphens: part of a word if a letter follows (MidLetter in Unicode's UAX #29)
# Scripts written without spaces between words, by the first words of their characters' Unicode names.
WITHOUT_SPACES = tuple(
    "CJK UNIFIED,CJK COMPATIBILITY IDEOGRAPH,IDEOGRAPHIC,HIRAGANA,KATAKANA,HALFWIDTH KATAKANA,BOPOMOFO,THAI,LAO,KHMER,"
    "MYANMAR,TIBETAN,YI SYLLABLE,NEW TAI LUE,TAI LE,TAI THAM,BALINESE,JAVANESE".split(",")
)


class State(NamedTuple):
    """The machine's memory. `pending` holds bytes whose meaning depends on the next ones.

    phase  healing            `pending` holds prompt bytes that token healing removed; tokens must reproduce them first
           prompt_word        directly after a prompt that ends in a word character: a letter would continue that word
           prompt_mid_letter  the same after an apostrophe or hyphen, which a letter would add to that word
           before_word        before the outcome; one space may be skipped
           after_space        before the outcome, after the skipped space
           word               inside a word
    """

    phase: str
    pending: bytes = b""


class Step(NamedTuple):
    """The effect of a token's bytes on a state.

    kind     None while the outcome is open; else `word`, `character` (in a script without spaces), `punctuation` (also
             symbols and controls), `space`, `byte` (invalid UTF-8), `special`, or `continues` (the prompt's last word
             continues, so no new outcome begins). The token's remaining bytes then do not matter.
    certain  bytes of the outcome that no later byte can change: inside a word those that this token added, else all of
             them. Appended to the word so far they are a prefix of every outcome that may follow.
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

    unicode    letters, marks and numbers (Unicode's L, M and N), with single apostrophes and hyphens between them;
               in a script without spaces each character is an outcome
    space      everything between white space
    character  each character is an outcome, and no space is skipped
    """

    kind: str = "unicode"
    mid_letters: str = MID_LETTERS  # unicode: allowed inside a word, before a word character

    def validate(self) -> list[str]:
        return [] if self.kind in RULES else [f"word_rule={self.kind!r} is not one of {', '.join(RULES)}"]

    def start(self, prompt: str, *, spaced: bool) -> State:
        """Returns the state after a prompt. With `spaced`, its trailing space counts as the skipped one."""
        if spaced:
            return State("before_word" if self.kind == "character" else "after_space")
        last = self.classify(prompt[-1:])
        if last == "word":
            return State("prompt_word")
        if last == "mid_letter" and len(prompt) > 1 and self.classify(prompt[-2]) == "word":
            return State("prompt_mid_letter")
        return State("before_word")

    def classify(self, character: str) -> str:
        """Returns `word`, `mid_letter`, `blank` (U+0020), `space` (other white space), `character` or `punctuation`."""
        return _classify(self.kind, self.mid_letters, character)

    def read(self, state: State, token: bytes) -> Step:
        """Returns the effect of a token's bytes on a state (any phase but healing)."""
        phase, pending = state
        data = pending + token
        certain, undecided = b"", 0  # the word's bytes in `data` so far; where the undecided bytes begin
        mid_letter = 0  # the length of an undecided apostrophe or hyphen
        spaced = False
        position = 0
        while position < len(data):
            character, size = _character(data, position)
            if size == 0:  # an unfinished UTF-8 sequence
                break
            kind = self.classify(character) if character else "byte"
            position += size
            if phase in ("prompt_word", "prompt_mid_letter") and kind == "word":
                return Step("continues", b"")
            if phase == "prompt_mid_letter" or (phase == "prompt_word" and mid_letter):
                if mid_letter:  # no letter follows the apostrophe, so it is an outcome of its own
                    return Step("punctuation", data[undecided : undecided + mid_letter])
                phase = "before_word"
            if phase == "word":
                if kind == "word":
                    certain += data[undecided:position]
                    undecided, mid_letter = position, 0
                elif kind == "mid_letter" and not mid_letter:
                    mid_letter = size
                else:
                    return Step("word", certain, spaced=spaced)
            elif phase == "prompt_word" and kind == "mid_letter":
                mid_letter = size
            elif kind == "word":
                phase, certain, undecided = "word", data[undecided:position], position
            elif kind == "blank" and phase != "after_space" and self.kind != "character":
                phase, spaced, undecided = "after_space", True, position
            else:
                kind = {"mid_letter": "punctuation", "blank": "space"}.get(kind, kind)
                return Step(kind, data[undecided:position], spaced=spaced)
        rest = data[undecided:]
        if rest and phase == "after_space":
            phase = "before_word"  # the unfinished character cannot be a second space, so both phases read it alike
        return Step(None, certain if phase == "word" else rest[:1], State(phase, rest), spaced)

    def end(self, state: State) -> Step:
        """Returns the effect of a special token on a state."""
        phase, pending = state
        if phase == "word":
            return Step("word", b"")
        if not pending:
            return Step("special", b"")
        character, size = _character(pending, 0)
        return Step("punctuation", pending[:size]) if character else Step("byte", pending[:1])


@lru_cache(maxsize=1 << 16)
def _classify(rule: str, mid_letters: str, character: str) -> str:
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
    return "mid_letter" if character in mid_letters else "punctuation"


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


def checked(rule: WordRule | None) -> WordRule:
    """Returns the rule, or the default one. Raises InputError if it is invalid."""
    rule = rule or WordRule()
    if problems := rule.validate():
        raise InputError(*problems)
    return rule
