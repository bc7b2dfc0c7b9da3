"""sentencepiece's tokenizer.model, as Llama 2 has one, read as a tokenizer that gives the same ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import InputError
from ..tokenizers.base import END
from ..tokenizers.bpe import MAX_VOCABULARY
from ..tokenizers.kinds import PrefixedSentencePiece

FILE = "tokenizer.model"
LARGEST = 50_000_000  # bytes
# Numbers of fields in sentencepiece_model.proto: of the model, of its trainer_spec and of its normalizer_spec.
TRAINER, NORMALIZER = 2, 3
MODEL_TYPE, SUFFIX = 3, 24
CHARSMAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES = 2, 3, 4, 5
UNIGRAM, BPE = 1, 2
# A message that occurs twice is merged, and the last value counts: this turns the model's own prefix off.
NO_DUMMY_PREFIX = bytes([NORMALIZER << 3 | 2, 2, DUMMY_PREFIX << 3, 0])


def from_sentencepiece(
    path: Path, *, added: dict[str, int], names: dict[str, str], adds_start: bool, notes: list[str]
) -> PrefixedSentencePiece:
    """Reads the model. Raises InputError for what is damaged, and for a model that changes a text before it cuts it.

    added: special tokens that are not in the model. names: of the tokens with a role, such as eos_token.
    """
    import sentencepiece

    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file; copy it again")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes, more than any sentencepiece model")
        content = path.read_bytes()
        dummy_prefix = check_model(content, path)
        processor = sentencepiece.SentencePieceProcessor(model_proto=content + NO_DUMMY_PREFIX)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; copy it again") from None
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged, or no sentencepiece model; copy it again") from None
    size = processor.vocab_size()
    if size > MAX_VOCABULARY:
        raise InputError(f"{path} has {size} tokens, more than {MAX_VOCABULARY}")
    if sum(map(processor.is_byte, range(size))) != 256:
        raise InputError(f"{path} has no token for each byte (byte_fallback), so it loses text: it is not supported")
    special = {
        processor.id_to_piece(token): token
        for token in range(size)
        if processor.is_control(token) or processor.is_unknown(token)
    }
    for name, token in added.items():
        if (
            (token < size and processor.id_to_piece(token) != name)
            or type(token) is not int
            or token >= 2 * size + 1_000
        ):
            raise InputError(f"{path}: the added token {name[:60]!r} has the id {str(token)[:20]} of another token")
        special[name] = token
    if len({*special.values()}) != len(special):
        raise InputError(f"{path}: two special tokens have the same id")
    own = {
        f"{role}_token": processor.id_to_piece(token)
        for role, token in (("eos", processor.eos_id()), ("bos", processor.bos_id()))
        if token >= 0
    }
    names = own | names
    end = END if END in special else names.get("eos_token", "")
    if end not in special:
        raise InputError(f"{path}: there is neither {END} nor another special token that ends a text (eos_token)")
    start = names.get("bos_token") if adds_start else None
    if start is not None and start not in special:
        raise InputError(f"{path}: the token before every text, {start[:60]!r}, is no special token")
    start_id = None if start is None else special[start]
    special = {END if name == end else name: token for name, token in special.items()}
    tokenizer = PrefixedSentencePiece(content + NO_DUMMY_PREFIX, special, prefix=" " if dummy_prefix else "")
    tokenizer.start_id, tokenizer.end_name = start_id, end
    if end != END:
        notes.append(f"the token that ends a text, {end}, is called {END} here")
    if dummy_prefix:
        notes.append("a space stands before every text, and decoding returns it; U+2581 in a text becomes a space")
    return tokenizer


def check_model(content: bytes, path: Path) -> bool:
    """Returns whether the model puts a space before a text. Raises InputError if it changes more than that."""
    trainer, normalizer = (
        {key: value for number, part in fields(content) if number == which for key, value in fields(part)}
        for which in (TRAINER, NORMALIZER)
    )
    changes = {
        f"the model is neither unigram nor bpe ({trainer.get(MODEL_TYPE)})": trainer.get(MODEL_TYPE, UNIGRAM)
        not in (UNIGRAM, BPE),
        "it replaces characters (normalization)": bool(normalizer.get(CHARSMAP)),
        "it removes repeated spaces (remove_extra_whitespaces)": normalizer.get(REMOVE_SPACES, 1),
        "it keeps spaces as they are (escape_whitespaces)": not normalizer.get(ESCAPE_SPACES, 1),
        "spaces end its tokens (treat_whitespace_as_suffix)": trainer.get(SUFFIX, 0),
    }
    if wrong := next((reason for reason, found in changes.items() if found), None):
        raise InputError(f"{path} cannot be read: {wrong}, which is not supported; here every text stays as it is")
    return bool(normalizer.get(DUMMY_PREFIX, 1))


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of the fields of a protocol buffer: whole numbers and bytes; others as None."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    while at < len(message):
        key = number()
        kind = key & 7
        value: Any = None
        if kind == 0:
            value = number()
        elif kind == 2:
            length = number()
            value = message[at : at + length]
            if len(value) != length:
                raise ValueError("the file ends too early")
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("unknown kind of field")
        yield key >> 3, value
