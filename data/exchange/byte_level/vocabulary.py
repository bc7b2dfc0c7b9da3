"""A byte-level vocabulary as other programs write it, and the tokenizer of ours that gives the same ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ... import InputError
from ...tokenizers.base import END
from ...tokenizers.bpe import MAX_VOCABULARY
from ...tokenizers.kinds import TiktokenTokenizer
from ..mixed_text import fuzz_strings, mixed_text
from .merges import Pair, encode_by_list, why_not_ranks

# The character that GPT-2 writes for each byte: itself if it is visible, else the next one from U+0100 on.
VISIBLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
HIDDEN = sorted({*range(256)} - VISIBLE)
BYTE_CHARS = [chr(byte if byte in VISIBLE else 0x100 + HIDDEN.index(byte)) for byte in range(256)]
BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARS)}
LONGEST_TOKEN = 2_000  # bytes
MOST_MERGES = 8 * MAX_VOCABULARY
MOST_UNREACHABLE = 1_000
COMPARED_BYTES, COMPARED_STRINGS, LONGEST_COMPARED = 200_000, 2_000, 100


def spell(token: bytes) -> str:
    return "".join(BYTE_CHARS[byte] for byte in token)


def unspell(token: str) -> bytes:
    """Raises KeyError if a character stands for no byte."""
    return bytes([BYTE_OF[character] for character in token])


@dataclass(frozen=True)
class ByteLevel:
    """What a file says about a byte-level tokenizer."""

    ids: Mapping[str, int]  # the tokens of text, in GPT-2's spelling, and their ids
    merges: list[Pair]
    special: Mapping[str, int]
    expression: str
    place: str  # for messages
    end: str | None = None  # the name of the token that ends a text
    start: str | None = None  # the name of the token that stands before every text
    whole_first: bool = False  # a pretoken that is a token needs no merges
    notes: list[str] = field(default_factory=list)  # what is said is added

    def tokenizer(self) -> TiktokenTokenizer:
        """Returns the tokenizer. Raises InputError for what is damaged, and for what would give other ids."""
        self._check()
        ranks, special = self._ranks()
        if not ranks:
            raise InputError(f"{self.place}: no token is a sequence of bytes; it is not a byte-level tokenizer")
        end_name = END if END in special else self.end
        if end_name not in special:
            raise InputError(
                f"{self.place}: there is neither {END} nor another special token that ends a text (eos_token)"
            )
        if end_name != END:
            special = {END if name == end_name else name: token for name, token in special.items()}
            self.notes.append(f"the token that ends a text, {end_name}, is called {END} here")
        if self.start is not None and self.start not in self.special:
            raise InputError(f"{self.place}: the token before every text, {self.start[:60]!r}, is no special token")
        tokenizer = TiktokenTokenizer(ranks, special, pattern=self.expression)
        tokenizer.end_name = end_name or END
        tokenizer.start_id = None if self.start is None else self.special[self.start]
        self._check_ids(tokenizer)
        if not tokenizer.knows_all:
            self.notes.append(
                f"{len(tokenizer.lost)} byte values have no token; characters that need one are dropped from a text"
            )
        return tokenizer

    def _check(self) -> None:
        """Checks types, sizes and ids."""
        everything = [*self.ids.items(), *self.special.items()]
        if not everything or len(everything) > MAX_VOCABULARY or len(self.merges) > MOST_MERGES:
            raise InputError(f"{self.place}: {len(everything)} tokens and {len(self.merges)} merges are no vocabulary")
        taken: dict[int, str] = {}
        for name, token in everything:
            if type(token) is not int or not 0 <= token < 2 * MAX_VOCABULARY:
                raise InputError(f"{self.place}: {name[:60]!r} has the id {str(token)[:20]}, which is no token id")
            if token in taken:
                raise InputError(f"{self.place}: {taken[token][:60]!r} and {name[:60]!r} have the same id {token}")
            if not name or len(name) > LONGEST_TOKEN:
                raise InputError(f"{self.place}: the token {token} is empty or longer than {LONGEST_TOKEN} characters")
            taken[token] = name
        if max(taken) >= 2 * len(taken) + 1_000:
            raise InputError(f"{self.place}: {len(taken)} tokens have ids up to {max(taken)}: most ids are not used")
        for pair in self.merges:
            for name in (*pair, "".join(pair)):
                if name not in self.ids:
                    where = f"the merge of {pair[0][:40]!r} and {pair[1][:40]!r}"
                    raise InputError(f"{self.place}: {where} needs {name[:60]!r}, which is no token")
        if len({*self.merges}) != len(self.merges):
            raise InputError(f"{self.place}: a merge occurs twice")

    def _ranks(self) -> tuple[dict[bytes, int], dict[str, int]]:
        """Returns the ranks, and the special tokens with the tokens that cannot come out of a text."""
        merged = {left + right for left, right in self.merges}
        ranks, special = {}, dict(self.special)
        unreachable = []
        for name, token in sorted(self.ids.items(), key=lambda item: item[1]):
            try:
                content = unspell(name)
            except KeyError:
                content = None
            if content and (len(content) == 1 or name in merged or self.whole_first):
                ranks[content] = token
            else:
                text = name if content is None else content.decode("utf-8", "replace")
                special[text if text not in special else f"{text}#{token}"] = token
                unreachable.append(text)
        if len(unreachable) > MOST_UNREACHABLE or len(special) != len(self.special) + len(unreachable):
            raise InputError(
                f"{self.place}: {len(unreachable)} tokens cannot come out of a text, such as {unreachable[0][:40]!r}"
            )
        if unreachable:
            number = f"{len(unreachable)} token{'s' * (len(unreachable) != 1)}"
            self.notes.append(f"{number} cannot come out of a text, such as {unreachable[0][:40]!r}: special here")
        return ranks, special

    def _check_ids(self, tokenizer: TiktokenTokenizer) -> None:
        """Proves that our ids are those of the merges, or at least compares them. Raises InputError if they differ."""
        merged = {left + right for left, right in self.merges}
        bare = [token for token in map(spell, tokenizer.ranks) if len(token) > 1 and token not in merged]
        reason = f"{bare[0][:40]!r} has no merge" if bare else why_not_ranks(self.merges, self.ids)
        if reason is None:
            return
        places = {pair: place for place, pair in enumerate(self.merges)}
        texts = [mixed_text(COMPARED_BYTES), *fuzz_strings(COMPARED_STRINGS, 3)]
        pretokens = dict.fromkeys(piece for text in texts for piece in tokenizer.pattern.pretokens(text))
        tokens = (token.decode("utf-8", "ignore") for token in tokenizer.ranks if len(token) <= LONGEST_COMPARED)
        for pretoken in (*pretokens, *tokens):
            word = "".join(BYTE_CHARS[byte] for byte in pretoken.encode() if byte not in tokenizer.lost)
            whole = self.whole_first and word in self.ids
            theirs = [word] if whole else encode_by_list(word, places)
            if [self.ids[token] for token in theirs] != tokenizer.encode_pretoken(pretoken):
                raise InputError(
                    f"{self.place}: its merges cannot be written as ranks: {pretoken[:40]!r} would get other tokens "
                    f"({reason})"
                )
        self.notes.append(f"the ids are equal on {len(pretokens):,} pieces of text, but not proved to be so: {reason}")
