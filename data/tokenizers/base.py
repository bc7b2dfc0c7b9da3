"""The Tokenizer interface and its settings: encode, decode, save, fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import InputError
from .bpe import MAX_VOCABULARY, SINGLE_BYTES
from .encoder import tiktoken_encoding
from .pretokenize import PATTERNS, Pattern

END = "<|endoftext|>"  # follows each document and starts the stream; an empty prompt is this token
UNKNOWN = "<|unknown|>"  # kind char: stands for each character that is not in the training text
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
FORMAT = 1
NAMES = ("byte", "char", "bpe", "sentencepiece", "tiktoken")  # the kinds; kinds.py has a class for each

PATH = {"kind": "path"}
ADVANCED = {"group": "advanced"}


def needs(*conditions: str) -> dict[str, Any]:
    """Returns the metadata of a field that has an effect only under these conditions, and without `path`."""
    return {"needs": ("path=null", *conditions)}


@dataclass
class TokenizerConfig:
    """Which tokenizer to build. The parentheses name the kinds that use a field; the others ignore it."""

    kind: str = field(default="bpe", metadata=needs())  # byte | char | bpe | sentencepiece | tiktoken
    # of all tokens, special ones included; fewer if the text is too small (bpe, sentencepiece)
    vocab_size: int = field(default=4096, metadata=needs("kind=bpe|sentencepiece"))
    # gpt2, gpt4 or a regular expression of your own (bpe, tiktoken with a ranks file)
    pattern: str = field(default="gpt2", metadata=needs("kind=bpe|tiktoken") | {"kind": "text"})
    # a pair of tokens that occurs less often is not merged (bpe)
    min_frequency: int = field(default=1, metadata=needs("kind=bpe") | ADVANCED)
    # in addition to <|endoftext|>; without allow_special, no text is encoded as these tokens
    special_tokens: list[str] = field(default_factory=list, metadata=needs("allow_special") | ADVANCED)
    # where the name of a special token stands in a text, it is that token; false: it is ordinary text
    allow_special: bool = field(default=False, metadata=needs() | ADVANCED)
    # unigram | bpe (sentencepiece)
    algorithm: str = field(default="unigram", metadata=needs("kind=sentencepiece") | ADVANCED)
    # the name of one of tiktoken's encodings, or the path of a ranks file (tiktoken)
    encoding: str = field(default="gpt2", metadata=needs("kind=tiktoken") | PATH)
    # a saved tokenizer's folder; all other settings are then ignored
    path: str | None = field(default=None, metadata=PATH)

    def validate(self) -> list[str]:
        """Returns everything that is wrong with the settings, one line each."""
        if self.path is not None:
            return []
        found = []
        if self.kind not in NAMES:
            found.append(f"tokenizer.kind={self.kind!r} is not one of {', '.join(NAMES)}")
        if self.algorithm not in ("unigram", "bpe"):
            found.append(f"tokenizer.algorithm={self.algorithm!r} is not one of unigram, bpe")
        reserved = [END, UNKNOWN] if self.kind == "char" else [END]
        for index, token in enumerate(self.special_tokens):
            if not isinstance(token, str) or not token or token != replace_surrogates(token):
                found.append(f"tokenizer.special_tokens[{index}]={token!r} must be text of at least one character")
            elif token in reserved or token in self.special_tokens[:index]:
                found.append(f"tokenizer.special_tokens[{index}]={token!r} already exists: remove it")
        if self.allow_special and not self.special_tokens and self.kind != "tiktoken":
            found.append("tokenizer.allow_special=true needs tokenizer.special_tokens, the list of them")
        if self.kind in ("bpe", "sentencepiece"):
            smallest = 256 + 1 + len(self.special_tokens) + (self.kind == "sentencepiece")
            if not smallest <= self.vocab_size <= MAX_VOCABULARY:
                found.append(f"tokenizer.vocab_size={self.vocab_size} must be {smallest} to {MAX_VOCABULARY}")
        if self.min_frequency < 1:
            found.append(f"tokenizer.min_frequency={self.min_frequency} must be at least 1")
        if self.kind in ("bpe", "tiktoken"):
            if self.pattern not in PATTERNS and re.fullmatch(r"[\w-]+", self.pattern):  # could match only itself
                found.append(f"tokenizer.pattern={self.pattern!r} is neither gpt2 nor gpt4, nor a regular expression")
            try:
                tiktoken_encoding(SINGLE_BYTES, Pattern(self.pattern))
            except InputError as error:
                found.append(str(error))
        if self.kind == "tiktoken" and self.pattern != "gpt2" and ranks_path(self.encoding) is None:
            own = f"tokenizer.encoding={self.encoding} has its own"
            found.append(f"tokenizer.pattern={self.pattern!r} is for ranks files; {own}")
        return found

    def ordinary_text(self, texts: Iterable[str]) -> Iterator[str]:
        """Yields the texts, without special tokens if these are tokens: what a tokenizer is trained on."""
        if self.allow_special and self.special_tokens:
            pattern = any_of(self.special_tokens)
            return (part for text in texts for part in pattern.split(text)[::2])
        return iter(texts)


class Tokenizer:
    """The base class of all kinds.

    A kind implements train, restore and _encode. All text survives encode and decode exactly, except lone surrogates,
    which become U+FFFD, and, with kind char, characters that are not in the training text. unknown() counts both.
    """

    kind = ""
    model_file = ""  # the file saved next to tokenizer.json, if there is one
    allow_special = False  # a special token's name in a text is that token; build and load set it
    unknown_id = -1  # the id of all characters that are not in the vocabulary; -1: there is no such id
    start_id: int | None = None  # a special token that stands before every text, for a model that learned it so
    prefix = ""  # stands before every text that is not empty; decoding returns it
    end_name = END  # the end token's name in the program that the tokenizer is from

    def __init__(
        self, ordinary: dict[int, bytes], special_tokens: dict[str, int], *, model: bytes = b"", **fields: Any
    ) -> None:
        """ordinary, special_tokens: all tokens. model: content of model_file. fields: more fields of tokenizer.json."""
        table = ordinary | {token_id: token.encode() for token, token_id in special_tokens.items()}
        if END not in special_tokens or len(table) != len(ordinary) + len(special_tokens):
            raise ValueError(f"{END} is missing, or a special token has the id of another token")
        if any(type(token_id) is not int or not 0 <= token_id < 2 * MAX_VOCABULARY for token_id in table):
            raise ValueError("a token id is not a whole number, or is too large")
        self.special_tokens, self.model, self._more_fields = special_tokens, model, fields
        self.vocab_size = max(table) + 1
        self.end_id = special_tokens[END]
        self._table = [table.get(token_id, b"") for token_id in range(self.vocab_size)]  # some encodings skip ids

    @property
    def stream_start(self) -> int:
        """The token that a stream starts with: start_id if there is one, otherwise the end token."""
        return self.end_id if self.start_id is None else self.start_id

    @property
    def knows_all(self) -> bool:
        """True if every character has an encoding; unknown() then finds only lone surrogates."""
        return self.unknown_id < 0

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str], *, workers: int = 0) -> Tokenizer:
        """Trains on texts, with `workers` processes if the kind supports it (0: one per CPU)."""
        raise NotImplementedError

    @classmethod
    def restore(cls, about: dict[str, Any], content: bytes) -> Tokenizer:
        """Rebuilds a saved tokenizer from the fields of tokenizer.json and the content of its model file."""
        raise NotImplementedError

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text as uint32. Special tokens in the text are ordinary text."""
        raise NotImplementedError

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        """Returns the ids of a text. Special tokens in it are ordinary text, unless the tokenizer allows them.

        continued: the text follows another one, so it has no prefix.
        """
        return self.encode_batch([text], continued=continued)[0].tolist()

    def encode_batch(self, texts: list[str], *, continued: bool = False) -> list[np.ndarray]:
        """Returns the ids of each text as uint32, using several threads if the kind supports it."""
        split = [self._split(text if continued or not text else self.prefix + text) for text in texts]
        ordinary = iter(self._encode([part for parts in split for part in parts[::2]]))
        special = {name: np.array([token], np.uint32) for name, token in self.special_tokens.items()}
        encoded = []
        for parts in split:
            ids = [special[part] if index % 2 else next(ordinary) for index, part in enumerate(parts)]
            encoded.append(ids[0] if len(ids) == 1 else np.concatenate(ids))
        return encoded

    def encode_ordinary(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text as uint32. Special tokens in it are ordinary text, allowed or not."""
        return self._encode([replace_surrogates(text) for text in texts])

    def _split(self, text: str) -> list[str]:
        """Returns ordinary text at even positions, and special tokens, if they are allowed, at odd ones."""
        text = replace_surrogates(text)
        return self._declared.split(text) if self.allow_special and self._declared else [text]

    @cached_property
    def _declared(self) -> re.Pattern[str] | None:
        """Matches the special tokens that a text may contain: not the end token, which only ends documents."""
        names = [name for name, token in self.special_tokens.items() if token not in (self.end_id, self.unknown_id)]
        return any_of(names) if names else None

    def special_names(self, text: str) -> Counter[str]:
        """Returns the names of declared special tokens in a text, allowed or not, with their counts."""
        return Counter(self._declared.findall(text) if self._declared else ())

    def unknown(self, text: str) -> Counter[str]:
        """Returns the characters that encoding loses, with their counts: unknown ones and lone surrogates."""
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")  # joins pairs
        lost = Counter(LONE_SURROGATE.findall(text))
        return lost + Counter(c for part in self._split(LONE_SURROGATE.sub("", text))[::2] for c in self._unknown(part))

    def _unknown(self, text: str) -> str:
        """Returns the characters of a text that have no encoding of their own."""
        return ""

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes of a token: often not whole characters; for a special token, its name."""
        return self.decode_bytes([token])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of the ids. Raises InputError if an id is not in the vocabulary."""
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise InputError(f"token id {wrong} is not in 0 to {self.vocab_size - 1}; use the tokenizer it is from")
        return b"".join([self._table[token] for token in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def fields(self) -> dict[str, Any]:
        """Returns the content of tokenizer.json, except its sha256."""
        fields = {"format": FORMAT, "kind": self.kind, "vocab_size": self.vocab_size}
        fields["special_tokens"] = self.special_tokens
        optional: dict[str, Any] = {"allow_special": self.allow_special or None, "start_id": self.start_id}
        optional["end_name"] = self.end_name if self.end_name != END else None
        return fields | {key: value for key, value in optional.items() if value is not None} | self._more_fields

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that save writes: equal if and only if the tokenizers are."""
        return digest(self.fields(), self.model)

    def save(self, directory: Path) -> None:
        """Writes tokenizer.json and, if the kind has one, the model file."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.model_file:
            (directory / self.model_file).write_bytes(self.model)
        about = {**self.fields(), "sha256": self.fingerprint}
        (directory / "tokenizer.json").write_bytes(json.dumps(about, indent=1).encode() + b"\n")


def digest(about: dict[str, Any], content: bytes) -> str:
    """Returns the sha256 of the fields of tokenizer.json and the content of the model file."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode() + b"\n" + content).hexdigest()


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates (such as JSON's \\ud800), which UTF-8 cannot encode, by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def ranks_path(encoding: str) -> Path | None:
    """Returns the path of the ranks file that tokenizer.encoding= names, or None for the name of an encoding."""
    path = Path(encoding).expanduser()
    return path if path.suffix == ".tiktoken" or len(path.parts) > 1 or path.is_file() else None


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern that matches any of the names, as a group, the longest first."""
    return re.compile("(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")")


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
