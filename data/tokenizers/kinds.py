"""The five kinds of tokenizer: bytes, characters, BPE and sentencepiece, trained here or elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from .. import InputError
from .base import END, UNKNOWN, Tokenizer, TokenizerConfig, ranks_path, read_file
from .bpe import SINGLE_BYTES, format_ranks, learn_merges, parse_ranks
from .encoder import Encoder
from .pretokenize import Pattern, count_pretokens

REPLACEMENT = "\ufffd".encode()
NEVER_IN_UTF8 = bytes([0xC0, 0xC1, *range(0xF5, 0x100)])


class ByteTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token."""

    kind = "byte"

    def __init__(self, special_tokens: dict[str, int]) -> None:
        super().__init__({byte: bytes([byte]) for byte in range(256)}, special_tokens)

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str], *, workers: int = 0) -> Tokenizer:
        return cls(assign_ids([END, *config.special_tokens], first=256))

    @classmethod
    def restore(cls, about: dict[str, Any], content: bytes) -> Tokenizer:
        return cls(about["special_tokens"])

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]


class CharTokenizer(Tokenizer):
    """Each character of the training text is a token; all others are the unknown token, which decodes to U+FFFD."""

    kind = "char"

    def __init__(self, characters: str, special_tokens: dict[str, int]) -> None:
        ordinary = {index: character.encode() for index, character in enumerate(characters)}
        super().__init__(ordinary, special_tokens, characters=characters)
        self.unknown_id = special_tokens[UNKNOWN]
        self._table[self.unknown_id] = REPLACEMENT
        self._id_of = np.full(0x110000, self.unknown_id, np.uint32)
        self._id_of[[ord(character) for character in characters]] = range(len(characters))

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str], *, workers: int = 0) -> Tokenizer:
        characters = "".join(sorted(set().union(*map(set, texts))))
        return cls(characters, assign_ids([END, *config.special_tokens, UNKNOWN], first=len(characters)))

    @classmethod
    def restore(cls, about: dict[str, Any], content: bytes) -> Tokenizer:
        if list(about["characters"]) != sorted(set(about["characters"])):
            raise ValueError("the characters are not in order")
        return cls(about["characters"], about["special_tokens"])

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [self._id_of[np.frombuffer(text.encode("utf-32-le"), "<u4")] for text in texts]

    def _unknown(self, text: str) -> str:
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        return codes[self._id_of[codes] == self.unknown_id].tobytes().decode("utf-32-le")


class BytePairTokenizer(Tokenizer):
    """BPE with ranks that were trained here (see bpe.py).

    Encoding may cut characters that are newer than tiktoken's Unicode tables differently than training did. That gives
    other tokens, but the same text.
    """

    kind = "bpe"
    model_file = "ranks.tiktoken"

    def __init__(self, ranks: dict[bytes, int], special_tokens: dict[str, int], *, pattern: str) -> None:
        self.ranks, self.pattern = ranks, Pattern(pattern)
        ordinary = {rank: token for token, rank in ranks.items()}
        # The expression, not its name: the folder must keep its meaning if a later version changes what gpt2 is.
        super().__init__(ordinary, special_tokens, model=format_ranks(ranks), pattern=self.pattern.expression)
        self._encoder = Encoder(ranks, self.pattern)
        # Bytes without a token. Some vocabularies from elsewhere lack those that their training text had none of.
        self.lost = b"".join(byte for byte in SINGLE_BYTES if byte not in ranks)

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str], *, workers: int = 0) -> Tokenizer:
        return cls.from_counts(config, count_pretokens(texts, Pattern(config.pattern), workers=workers))

    @classmethod
    def from_counts(cls, config: TokenizerConfig, counts: dict[str, int]) -> Tokenizer:
        """Trains on pretokens, given the number of occurrences of each (see pretokenize.py)."""
        n_ordinary = config.vocab_size - 1 - len(config.special_tokens)
        ranks = learn_merges(counts, vocab_size=n_ordinary, min_frequency=config.min_frequency)
        return cls(ranks, assign_ids([END, *config.special_tokens], first=len(ranks)), pattern=config.pattern)

    @classmethod
    def restore(cls, about: dict[str, Any], content: bytes) -> Tokenizer:
        return cls(parse_ranks(content, place=cls.model_file), about["special_tokens"], pattern=about["pattern"])

    @property
    def knows_all(self) -> bool:
        return not self.lost.strip(NEVER_IN_UTF8)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        if self.knows_all:
            return self._encoder.encode_batch(texts)
        lossy = [bool(self._unknown(text)) for text in texts]
        whole = iter(self._encoder.encode_batch([text for text, loses in zip(texts, lossy, strict=True) if not loses]))
        return [self._encode_rest(text) if loses else next(whole) for text, loses in zip(texts, lossy, strict=True)]

    def _encode_rest(self, text: str) -> np.ndarray:
        """Returns the ids of a text without its lost bytes. They are left out of their pretokens, as elsewhere."""
        ids = [token for pretoken in self.pattern.pretokens(text) for token in self.encode_pretoken(pretoken)]
        return np.array(ids, np.uint32)

    def encode_pretoken(self, pretoken: str) -> list[int]:
        """Returns the ids of one pretoken, without its lost bytes."""
        kept = pretoken.encode().translate(None, self.lost)
        return self._encoder.encode_piece(kept) if kept else []

    def _unknown(self, text: str) -> str:
        content = text.encode()
        if len(content.translate(None, self.lost)) == len(content):
            return ""
        return "".join(character for character in text if not {*self.lost}.isdisjoint(character.encode()))


class TiktokenTokenizer(BytePairTokenizer):
    """BPE with ranks that were trained elsewhere: one of tiktoken's encodings, with its own ids, or a ranks file."""

    kind = "tiktoken"

    @classmethod
    def restore(cls, about: dict[str, Any], content: bytes) -> Tokenizer:
        ranks = parse_ranks(content, place=cls.model_file, all_bytes=False)
        return cls(ranks, about["special_tokens"], pattern=about["pattern"])

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str], *, workers: int = 0) -> Tokenizer:
        import tiktoken

        if path := ranks_path(config.encoding):
            ranks = parse_ranks(read_file(path), place=str(path))
            first = max(ranks.values()) + 1
            return cls(ranks, assign_ids([END, *config.special_tokens], first=first), pattern=config.pattern)
        if config.encoding not in tiktoken.list_encoding_names():
            names = ", ".join(tiktoken.list_encoding_names())
            raise InputError(f"tokenizer.encoding={config.encoding!r} is neither a ranks file nor one of {names}")
        try:
            encoding = tiktoken.get_encoding(config.encoding)
        except (OSError, ValueError) as error:  # ValueError: the download has the wrong sha256
            failed = f"tokenizer.encoding={config.encoding!r} could not be downloaded ({type(error).__name__})"
            raise InputError(f"{failed}; give a ranks file: tokenizer.encoding=PATH.tiktoken") from None
        theirs = encoding._special_tokens
        ours = [token for token in [END, *config.special_tokens] if token not in theirs]
        special_tokens = {**theirs, **assign_ids(ours, first=encoding.n_vocab)}
        # These encodings spell our patterns differently, but cut the same pretokens.
        known = {"gpt2": "gpt2", "r50k_base": "gpt2", "p50k_base": "gpt2", "cl100k_base": "gpt4"}
        pattern = known.get(config.encoding, encoding._pat_str)
        return cls(encoding._mergeable_ranks, special_tokens, pattern=pattern)


class SentencePieceTokenizer(Tokenizer):
    """sentencepiece (Kudo and Richardson 2018, arXiv:1808.06226), trained without normalization: decoding is exact.

    It sees one line at a time. Line ends and U+2581, which it uses for a space, bypass it as single-byte tokens.
    """

    kind = "sentencepiece"
    model_file = "spm.model"
    bypass = re.compile("([\n\u2581])")

    def __init__(self, model: bytes, special_tokens: dict[str, int]) -> None:
        import sentencepiece

        self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces = [processor.id_to_piece(index) for index in range(processor.vocab_size())]
        ordinary = {index: piece.replace("\u2581", " ").encode() for index, piece in enumerate(pieces)}
        ordinary |= {i: bytes([int(piece[1:-1], 16)]) for i, piece in enumerate(pieces) if processor.is_byte(i)}
        ordinary[processor.unk_id()] = REPLACEMENT
        for token in special_tokens.values():  # control pieces; those that follow are not in the model
            ordinary.pop(token, None)
        super().__init__(ordinary, special_tokens, model=model)
        self._bypass_ids = {
            character: [processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
            for character in "\n\u2581"
        }

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str], *, workers: int = 0) -> Tokenizer:
        import sentencepiece

        # A list: sentencepiece would turn an exception of an iterator into a RuntimeError. It skips lines of more than
        # 4,192 bytes.
        lines = (line for text in texts for line in cls.bypass.split(text)[::2])
        sentences = [line[start : start + 1000] for line in lines for start in range(0, len(line), 1000)]
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type=config.algorithm,
                vocab_size=config.vocab_size - 1 - len(config.special_tokens),
                hard_vocab_limit=False,  # fewer tokens if the text is too small
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                byte_fallback=True,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=4,  # fixed, because the sums, and so the tokens, depend on it
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rpartition("] ")[2] or "no text to train on"
            raise InputError(f"sentencepiece, with tokenizer.vocab_size={config.vocab_size}: {reason}") from None
        content = model.getvalue()
        first = sentencepiece.SentencePieceProcessor(model_proto=content).vocab_size()
        return cls(content, assign_ids([END, *config.special_tokens], first=first))

    @classmethod
    def restore(cls, about: dict[str, Any], content: bytes) -> Tokenizer:
        return PrefixedSentencePiece.of(about, content) if "prefix" in about else cls(content, about["special_tokens"])

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        split = [self.bypass.split(text) for text in texts]  # lines at even positions, bypassed characters at odd ones
        lines = iter(self._processor.encode([line for parts in split for line in parts[::2]]))
        encoded = ((self._bypass_ids[p] if i % 2 else next(lines) for i, p in enumerate(parts)) for parts in split)
        return [np.array([*chain.from_iterable(ids)], np.uint32) for ids in encoded]


class PrefixedSentencePiece(SentencePieceTokenizer):
    """A sentencepiece model from elsewhere, as Llama 2 has one: it sees whole texts, with a space before each.

    The space (the "dummy prefix") is our `prefix`, and the model's own is off, so that a text that continues another
    has none. Decoding returns it: decode(encode(text)) is prefix + text. U+2581 becomes a space.
    """

    def __init__(self, model: bytes, special_tokens: dict[str, int], *, prefix: str) -> None:
        super().__init__(model, special_tokens)
        self.prefix = prefix
        self._more_fields = {"prefix": prefix}

    @classmethod
    def of(cls, about: dict[str, Any], content: bytes) -> PrefixedSentencePiece:
        if about["prefix"] not in ("", " "):
            raise ValueError(f"prefix is {about['prefix']!r}, neither a space nor empty")
        return cls(content, about["special_tokens"], prefix=about["prefix"])

    @property
    def knows_all(self) -> bool:
        return False

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(ids, np.uint32) for ids in self._processor.encode(texts)]

    def _unknown(self, text: str) -> str:
        return "\u2581" * text.count("\u2581")


def assign_ids(special_tokens: list[str], *, first: int) -> dict[str, int]:
    """Numbers special tokens from `first` on."""
    return {token: first + index for index, token in enumerate(special_tokens)}


KINDS: dict[str, type[Tokenizer]] = {
    kind.kind: kind
    for kind in (ByteTokenizer, CharTokenizer, BytePairTokenizer, SentencePieceTokenizer, TiktokenTokenizer)
}
