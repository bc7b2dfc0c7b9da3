"""Hugging Face's tokenizer.json: read with what lies beside it, and written.

Two differences remain. There, the name of a special token in plain text is that token; here only with
tokenizer.allow_special=true, and never <|endoftext|>. And only here are very long runs cut (see Pattern.segments), so
their tokens can differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import InputError
from ..labelled.rows import chat_end
from ..labelled.templates import ChatTemplate
from ..tokenizers.base import END, Tokenizer
from ..tokenizers.bpe import SINGLE_BYTES
from ..tokenizers.kinds import BytePairTokenizer, ByteTokenizer
from . import sentencepiece_model
from .byte_level.merges import Pair, needed_pairs
from .byte_level.patterns import GPT2, expression_of
from .byte_level.vocabulary import BYTE_CHARS, ByteLevel, spell
from .chat_jinja import read_template
from .imported import Imported

LARGEST = 200_000_000  # bytes of a file
MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")  # what no ordinary text is: the name of a special token
NO_TEXT = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def from_huggingface(folder: Path, *, trusted: str | None = None) -> Imported:
    """Reads the tokenizer of a model's folder: tokenizer.json, the names of special tokens, the chat template.

    trusted: an expression that may cut the text, besides the known ones.
    Raises InputError for what is missing, damaged or hostile, and for a tokenizer that none of ours can equal.
    """
    folder = Path(folder)
    config = read_json(folder / "tokenizer_config.json", missing={})
    if config.get("auto_map"):
        raise InputError(f"{folder}: tokenizer_config.json names code of its own (auto_map), which is never run")
    names = special_names(folder, config)
    path = folder / "tokenizer.json"
    spm = folder / sentencepiece_model.FILE
    content = read_json(path, missing={} if spm.exists() else None)
    if content.get("version") != "1.0" and "kind" in content:
        raise InputError(f"{path} is a tokenizer of this program: give it as tokenizer.path={folder}")
    notes: list[str] = []
    try:
        if spm.exists() and not is_byte_level(content):
            added = content.get("added_tokens") or [
                {**entry, "id": int(token)} for token, entry in (config.get("added_tokens_decoder") or {}).items()
            ]
            tokenizer: Tokenizer = sentencepiece_model.from_sentencepiece(
                spm,
                added=added_tokens(added, path, notes),
                names=names,
                adds_start=config.get("add_bos_token", True) is True,
                notes=notes,
            )
        else:
            tokenizer = parse(content, path=path, config=config, names=names, trusted=trusted, notes=notes).tokenizer()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise InputError(f"{path} is damaged, or of an unknown form ({reason}); copy it again") from None
    return Imported(tokenizer, read_chat(folder, config, names, tokenizer, notes), notes)


def is_byte_level(content: dict[str, Any]) -> bool:
    model = content.get("model") or {}
    return model.get("type", "BPE" if "merges" in model else None) == "BPE" and not model.get("byte_fallback")


def read_json(path: Path, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the object in a JSON file, or `missing` if there is no such file and it is given."""
    if missing is not None and not path.exists():
        return missing
    try:
        if path.exists() and not path.is_file():  # a link to a device has no end
            raise InputError(f"{path} is not a file; copy it again")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes, more than any tokenizer ({LARGEST:,})")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; a model without it needs tokenizer=") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not JSON ({str(error)[:100]}); copy it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; copy it again")
    return content


def special_names(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Returns the names of the tokens with a role, such as eos_token, from the files that may say so."""
    names = {}
    for source in (read_json(folder / "special_tokens_map.json", missing={}), config):
        for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
            name = source.get(role)
            name = name.get("content") if isinstance(name, dict) else name
            if isinstance(name, str) and name:
                names[role] = name
    return names


def parse(
    content: dict[str, Any],
    *,
    path: Path,
    config: dict[str, Any],
    names: dict[str, str],
    trusted: str | None,
    notes: list[str],
) -> ByteLevel:
    """Returns what tokenizer.json says, checked for what would change a text."""
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        what = "BPE with byte fallback" if model.get("byte_fallback") else f"{model.get('type')}"
        raise InputError(
            f"{path}: a tokenizer of the form {what[:60]} cannot be read, only byte-level BPE; a folder with "
            "sentencepiece's tokenizer.model can"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise InputError(f"{path}: {key}={str(model[key])[:60]!r} is not supported")
    normalizer = content.get("normalizer")
    if normalizer and (normalizer["type"] != "Sequence" or normalizer["normalizers"]):
        raise InputError(
            f"{path}: it changes the text first ({normalizer['type'][:60]}); here every text stays as it is"
        )
    steps = cut_steps(content.get("pre_tokenizer"), path)
    if config.get("tokenizer_class") in ("GPT2Tokenizer", "GPT2TokenizerFast") and steps != (GPT2,):
        notes.append(
            "tokenizer_config.json says GPT2Tokenizer, with which some versions of transformers ignore how "
            "tokenizer.json cuts a text; here tokenizer.json decides"
        )
    special = added_tokens(content.get("added_tokens") or [], path, notes)
    start = start_name(content.get("post_processor"), path)
    if start is None and config.get("add_bos_token") is True:
        notes.append("tokenizer_config.json asks for a token before every text, tokenizer.json does not: none is added")
    merges: list[Pair] = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges.append((left + "", right + ""))  # a TypeError for what is no text
    vocabulary = model["vocab"]
    for name, token in special.items():
        if vocabulary.get(name, token) != token:
            raise InputError(f"{path}: {name[:60]!r} has two ids, {vocabulary[name]} and {token}")
    unknown = model.get("unk_token")
    if unknown is not None and not {*BYTE_CHARS} <= vocabulary.keys() and unknown in vocabulary:
        raise InputError(f"{path}: a byte without a token becomes {str(unknown)[:60]!r}, which is not supported")
    return ByteLevel(
        ids={name: token for name, token in vocabulary.items() if name not in special},
        merges=merges,
        special=special,
        expression=expression_of(steps, place=str(path), trusted=trusted),
        place=str(path),
        end=names.get("eos_token"),
        start=start,
        whole_first=bool(model.get("ignore_merges")),
        notes=notes,
    )


def cut_steps(pre_tokenizer: dict[str, Any] | None, path: Path) -> tuple[str, ...]:
    """Returns the expressions that cut a text, one after another. The bytes must come last."""
    parts = [pre_tokenizer or {}]
    if parts[0].get("type") == "Sequence":
        parts = parts[0]["pretokenizers"]
    steps: list[str] = []
    for part in parts:
        match part:
            case {"type": "ByteLevel"} if part is parts[-1] and not part.get("add_prefix_space"):
                return (*steps, *([GPT2] if part.get("use_regex", True) else []))
            case {"type": "Split", "pattern": {"Regex": str(step)}, "behavior": "Isolated" | "isolated"} if (
                not part.get("invert")
            ):
                steps.append(step)
            case {"type": "Digits", "individual_digits": True}:
                steps.append(r"\p{N}")
            case _:
                break
    wrong = json.dumps(part, ensure_ascii=False) if part else "nothing"
    raise InputError(f"{path}: the pre-tokenizer {wrong[:60]} is not supported, only known expressions, then ByteLevel")


def added_tokens(entries: list[dict[str, Any]], path: Path, notes: list[str]) -> dict[str, int]:
    """Returns the special tokens."""
    special: dict[str, int] = {}
    ordinary = []
    for entry in entries:
        name, token = entry["content"], entry["id"]
        if name in special or not isinstance(name, str):
            raise InputError(f"{path}: the added token {str(name)[:60]!r} occurs twice, or is no text")
        if any(entry.get(key) for key in ("lstrip", "rstrip", "single_word")):
            raise InputError(
                f"{path}: the added token {name[:60]!r} takes its neighbours along, which is not supported"
            )
        if not entry.get("special"):
            if not MARKER.fullmatch(name):
                raise InputError(f"{path}: the added token {name[:60]!r} is found in any text, which is not supported")
            ordinary.append(name)
        special[name] = token
    if ordinary:
        notes.append(f"{', '.join(ordinary[:4])}: found in every text elsewhere; here only where special tokens are")
    return special


def start_name(post_processor: dict[str, Any] | None, path: Path) -> str | None:
    """Returns the name of the token that stands before every text, or None."""
    parts = [post_processor or {"type": "ByteLevel"}]
    if parts[0]["type"] == "Sequence":
        parts = parts[0]["processors"]
    found = None
    for part in parts:
        if part["type"] == "ByteLevel":
            continue
        kinds = [next(iter(piece)) for piece in part.get("single", [])]
        if part["type"] != "TemplateProcessing" or kinds not in (["Sequence"], ["SpecialToken", "Sequence"]) or found:
            raise InputError(f"{path}: the post-processor {part['type'][:60]} adds more than a token before each text")
        if kinds[0] == "SpecialToken":
            (found,) = part["special_tokens"][part["single"][0]["SpecialToken"]["id"]]["tokens"]
    return found


def read_chat(
    folder: Path, config: dict[str, Any], names: dict[str, str], tokenizer: Tokenizer, notes: list[str]
) -> ChatTemplate | None:
    """Returns the chat template with our names of the special tokens; None if there is none, or no known one."""
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
    if (path := folder / "chat_template.jinja").is_file():
        try:
            source = path.read_text(encoding="utf-8") if path.stat().st_size < LARGEST else None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}; copy it again") from None
    return chat_of(source, names, tokenizer, notes)


def chat_of(source: Any, names: dict[str, str], tokenizer: Tokenizer, notes: list[str]) -> ChatTemplate | None:
    """Returns the template that this Jinja source means, with END for the end token's name."""
    if not isinstance(source, str) or not source:
        return None
    chat = read_template(source, names=names)
    if chat is None:
        notes.append("the chat template is of no known form and left out: choose one with chat_template=")
        return None
    return renamed(chat, tokenizer.end_name, END)


def renamed(chat: ChatTemplate, old: str, new: str) -> ChatTemplate:
    """Returns the template with another name of a special token."""
    roles = {role: (pair[0].replace(old, new), pair[1].replace(old, new)) for role, pair in chat.roles.items()}
    return replace(chat, roles=roles, start=chat.start.replace(old, new))


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of tokenizer.json. Raises InputError for a kind that is not byte-level."""
    if isinstance(tokenizer, BytePairTokenizer):
        ranks, pattern = tokenizer.ranks, {"Regex": tokenizer.pattern.source}
    elif isinstance(tokenizer, ByteTokenizer):
        ranks, pattern = SINGLE_BYTES, {"Regex": GPT2}  # without merges, any pattern will do
    else:
        raise InputError(f"a tokenizer of kind {tokenizer.kind} cannot be exported; only bpe, tiktoken and byte can")
    cut = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    special = names_elsewhere(tokenizer, ranks)
    added = [{"id": token, "content": name, **NO_TEXT} for name, token in sorted(special.items(), key=lambda x: x[1])]
    start = None
    if tokenizer.start_id is not None:
        name = next(name for name, token in special.items() if token == tokenizer.start_id)
        text = {"Sequence": {"id": "A", "type_id": 0}}
        before = {"SpecialToken": {"id": name, "type_id": 0}}
        start = {
            "type": "TemplateProcessing",
            "single": [before, text],
            "pair": [before, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [tokenizer.start_id], "tokens": [name]}},
        }
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, LEVEL]},
        "post_processor": start,
        "decoder": LEVEL,
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # a pretoken that is a token needs no merges
            "vocab": {spell(token): rank for token, rank in ranks.items()} | special,
            "merges": [list(pair) for pair in merge_pairs(ranks)],
        },
    }


def names_elsewhere(tokenizer: Tokenizer, ranks: Iterable[bytes] = ()) -> dict[str, int]:
    """Returns the special tokens with the end token's name in the program that the tokenizer is from."""
    special = {tokenizer.end_name if name == END else name: token for name, token in tokenizer.special_tokens.items()}
    if taken := special.keys() & set(map(spell, ranks)):
        raise InputError(f"the special token {min(taken)!r} has the name of an ordinary token: it cannot be exported")
    return special


def end_of(tokenizer: Tokenizer, chat: ChatTemplate | None) -> int:
    """Returns the token at which other programs stop: the one that ends an answer in a chat, or the end token."""
    ends = chat_end(chat, tokenizer)[1] if chat else ()
    return ends[0] if ends else tokenizer.end_id


def merge_pairs(ranks: dict[bytes, int]) -> list[Pair]:
    """Returns the merges of ranks: one a token, or, if a token's own bytes do not lead to it, all that would.

    In tokenizer.json a merge is one pair of tokens. Here any two neighbours merge if their bytes together are a token.
    """
    tokens = sorted(ranks, key=ranks.__getitem__)
    pairs, unreachable = needed_pairs(map(spell, tokens))
    if not unreachable:
        return pairs
    every = ((token[:place], token[place:]) for token in tokens for place in range(len(token) - 1, 0, -1))
    return [(spell(left), spell(right)) for left, right in every if left in ranks and right in ranks]
