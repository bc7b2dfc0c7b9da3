"""What all tokenizers share: their settings, encoding and decoding, the files they are kept in, the fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import InputError
from . import bpe
from .pretokenize import PATTERNS, Pattern

END = "<|endoftext|>"  # follows each document and starts the stream; an empty prompt is it
UNKNOWN = "<|unknown|>"  # of kind char: stands for each character that the training text did not have
FORMAT = 1
NAMES = ("byte", "char", "bpe", "sentencepiece", "tiktoken")


@dataclass
class TokenizerConfig:
    """Which tokenizer to build. The comments name the kinds that a field matters to, where it is not all of them."""

    kind: str = "bpe"  # byte | char | bpe | sentencepiece | tiktoken
    vocab_size: int = 4096  # all ids, special tokens too (bpe, sentencepiece); fewer if the text has no more to give
    pattern: str = "gpt2"  # gpt2, gpt4 or a regular expression of one's own (bpe, tiktoken with a ranks file)
    min_frequency: int = 1  # a pair of tokens that occurs less often is not merged (bpe)
    special_tokens: list[str] = field(default_factory=list)  # besides <|endoftext|>
    algorithm: str = "unigram"  # unigram | bpe (sentencepiece)
    encoding: str = "gpt2"  # the name of an encoding that tiktoken knows, or the path of a ranks file (tiktoken)
    path: str | None = None  # a tokenizer directory, used as it is: all other settings are then without effect

    def validate(self) -> list[str]:
        """Everything that is wrong with the settings, one line each."""
        if self.path is not None:
            return []
        found = []
        if self.kind not in NAMES:
            found.append(f"tokenizer.kind={self.kind!r} is not one of {', '.join(NAMES)}")
        if self.algorithm not in ("unigram", "bpe"):
            found.append(f"tokenizer.algorithm={self.algorithm!r} is not one of unigram, bpe")
        reserved = [END, UNKNOWN] if self.kind == "char" else [END]
        for index, token in enumerate(self.special_tokens):
            if not isinstance(token, str) or not token or token != well_formed(token):
                found.append(f"tokenizer.special_tokens[{index}]={token!r} must be text of at least one character")
            elif token in reserved or token in self.special_tokens[:index]:
                found.append(f"tokenizer.special_tokens[{index}]={token!r} is there already: leave it out")
        if self.kind in ("bpe", "sentencepiece"):
            least = 256 + 1 + len(self.special_tokens) + (self.kind == "sentencepiece")
            if not least <= self.vocab_size <= bpe.LARGEST_VOCABULARY:
                found.append(
                    f"tokenizer.vocab_size={self.vocab_size} must be {least} (256 bytes and the special tokens) "
                    f"to {bpe.LARGEST_VOCABULARY}"
                )
        if self.min_frequency < 1:
            found.append(f"tokenizer.min_frequency={self.min_frequency} must be at least 1")
        if self.kind in ("bpe", "tiktoken"):
            if self.pattern not in PATTERNS and re.fullmatch(r"[\w-]+", self.pattern):  # it could match itself alone
                names = " nor ".join(PATTERNS)
                found.append(f"tokenizer.pattern={self.pattern!r} is neither {names}, nor a regular expression")
            try:
                bpe.production_encoder(bpe.SINGLE_BYTES, Pattern(self.pattern))
            except InputError as error:
                found.append(str(error))
        return found


class Tokenizer:
    """What all kinds share. A kind adds _encode, how to train and restore it, and what it keeps in its directory.

    Text that is no Unicode (a lone surrogate) is encoded as U+FFFD; all other text survives encode and decode exactly,
    but for unseen characters of kind char.
    """

    kind = ""
    file = ""  # the name of what lies beside tokenizer.json; empty if nothing does

    def __init__(self, ordinary: dict[int, bytes], special_tokens: dict[str, int]) -> None:
        table = ordinary | {number: token.encode() for token, number in special_tokens.items()}
        if END not in special_tokens or len(table) != len(ordinary) + len(special_tokens):
            raise ValueError(f"special tokens without {END}, or with the id of another token")
        if any(type(token) is not int or not 0 <= token < 2 * bpe.LARGEST_VOCABULARY for token in table):
            raise ValueError("a token id is no number, or too large a one")
        self.special_tokens = special_tokens
        self.vocab_size = max(table) + 1
        self.end_id = special_tokens[END]
        self._table = [table.get(number, b"") for number in range(self.vocab_size)]  # some encodings skip ids
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str], *, workers: int = 0) -> Tokenizer:
        """Learn from texts, on `workers` processes where the kind can (0: as many as there are CPUs)."""
        raise NotImplementedError

    @classmethod
    def restore(cls, about: dict[str, Any], content: bytes) -> Tokenizer:
        """The tokenizer whose tokenizer.json is about and whose other file has this content."""
        raise NotImplementedError

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, special tokens taken as text: arrays of uint32."""
        raise NotImplementedError

    def _about(self) -> dict[str, Any]:
        """What this kind adds to tokenizer.json."""
        return {}

    def _content(self) -> bytes:
        """The content of `file`."""
        return b""

    def encode(self, text: str, *, allowed_special: bool = False) -> list[int]:
        """The ids of a text. A special token's name in it is text like any other, unless allowed_special."""
        parts = self._special.split(well_formed(text)) if allowed_special else [well_formed(text)]
        ids: list[int] = []
        for index, part in enumerate(parts):  # text and special tokens take turns
            ids += [self.special_tokens[part]] if index % 2 else self._encode([part])[0].tolist()
        return ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, as arrays of uint32; on several threads where the kind can."""
        return self._encode([well_formed(text) for text in texts])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that an id stands for: often no whole character; of a special token, its name."""
        return self.decode_bytes([token])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise InputError(f"token id {wrong} is not in 0 to {self.vocab_size - 1}: is this another tokenizer's?")
        return b"".join([self._table[token] for token in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def _described(self) -> dict[str, Any]:
        """What tokenizer.json says, but for its own sha256."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "special_tokens": self.special_tokens,
            **self._about(),
        }

    @property
    def fingerprint(self) -> str:
        """A sha256 over all that save writes: equal if and only if the tokenizers are."""
        return digest(self._described(), self._content())

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and, where the kind has one, its other file."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        if self.file:
            (Path(directory) / self.file).write_bytes(self._content())
        about = {**self._described(), "sha256": self.fingerprint}
        (Path(directory) / "tokenizer.json").write_bytes(json.dumps(about, indent=1).encode() + b"\n")


def digest(about: dict[str, Any], content: bytes) -> str:
    """The sha256 of a tokenizer's description and of the other file's content."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode() + b"\n" + content).hexdigest()


def well_formed(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 can hold (json's \\ud800), as U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
