"""The tokenizer in the metadata of a GGUF file, as llama.cpp reads it: read, and written.

llama.cpp knows a pattern by a name (tokenizer.ggml.pre), so only patterns with a name can be written. As in
tokenizer.json, the name of a special token in plain text is that token there, if the program asks for it.
"""

from __future__ import annotations

from typing import Any

from .. import InputError
from ..labelled.templates import ChatTemplate
from ..tokenizers.base import END, Tokenizer
from ..tokenizers.kinds import BytePairTokenizer
from .byte_level.merges import needed_pairs
from .byte_level.patterns import BY_PRE, CUTS, pre_of
from .byte_level.vocabulary import ByteLevel, spell
from .imported import Imported
from .tokenizer_json import MARKER, chat_of, end_of, names_elsewhere, renamed

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # token types; 6, a byte, is sentencepiece's
PLACE = "the GGUF file's tokenizer"
LLAMA3 = CUTS["llama3"].pre  # with these, llama.cpp needs no merges for whole tokens, and adds the start token


def from_gguf(metadata: dict[str, Any]) -> Imported:
    """Reads the tokenizer of a GGUF file. Raises InputError for what is damaged, or cannot be equalled."""
    model = metadata.get(f"{KEY}model")
    if model != "gpt2":
        what = "sentencepiece's, in a form of its own" if model == "llama" else "of no known kind"
        raise InputError(
            f"{PLACE} is {str(model)[:40]!r}, {what}: only byte-level BPE ('gpt2') can be read from GGUF; import the "
            "model's Hugging Face folder, with tokenizer.json or tokenizer.model, instead"
        )
    tokens, merges = (_texts(metadata, key) for key in ("tokens", "merges"))
    types = metadata.get(f"{KEY}token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list | tuple) or len(types) != len(tokens) or len({*tokens}) != len(tokens):
        raise InputError(f"{PLACE} is damaged: {len(tokens)} tokens with a repetition, or with other types than tokens")
    pre = metadata.get(f"{KEY}pre")
    cut = BY_PRE.get(pre) if isinstance(pre, str) else None
    if cut is None:
        raise InputError(
            f"{PLACE}: tokenizer.ggml.pre={str(pre)[:40]!r}, how a text is cut, is not one of {', '.join(BY_PRE)}: "
            "import the model's Hugging Face folder instead"
        )
    if metadata.get(f"{KEY}add_eos_token"):
        raise InputError(f"{PLACE} adds a token after every text (add_eos_token), which is not supported")
    notes: list[str] = []
    roles = {role: _role(metadata, role, tokens) for role in ("bos", "eos")}
    special = _special(tokens, types, roles, notes)
    adds_start = metadata.get(f"{KEY}add_bos_token", pre in LLAMA3)
    left_out = {token for token, kind in enumerate(types) if kind == UNUSED} | {*special.values()}
    read = ByteLevel(
        ids={name: token for token, name in enumerate(tokens) if token not in left_out},
        merges=[tuple(merge.split(" ")) for merge in merges],  # type: ignore[misc]  # two, checked by _texts
        special=special,
        expression=cut.expression,
        place=PLACE,
        end=roles["eos"],
        start=roles["bos"] if adds_start else None,
        whole_first=pre in LLAMA3,
        notes=notes,
    )
    tokenizer = read.tokenizer()
    names = {f"{role}_token": name for role, name in roles.items() if name is not None}
    return Imported(tokenizer, chat_of(metadata.get("tokenizer.chat_template"), names, tokenizer, notes), notes)


def _texts(metadata: dict[str, Any], key: str) -> list[str]:
    values = metadata.get(KEY + key)
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{PLACE} is damaged: {KEY}{key} is missing, or no list of texts")
    if key == "merges" and (wrong := next((value for value in values if value.count(" ") != 1), None)):
        raise InputError(f"{PLACE} is damaged: the merge {wrong[:60]!r} is not two tokens with a space between them")
    return list(values)


def _role(metadata: dict[str, Any], role: str, tokens: list[str]) -> str | None:
    """Returns the name of the token with this role, or None."""
    token = metadata.get(f"{KEY}{role}_token_id")
    if token is None:
        return None
    if type(token) is not int or not 0 <= token < len(tokens):
        raise InputError(f"{PLACE}: {role}_token_id={str(token)[:20]} is not the id of one of {len(tokens)} tokens")
    return tokens[token]


def _special(tokens: list[str], types: Any, roles: dict[str, str | None], notes: list[str]) -> dict[str, int]:
    """Returns the special tokens: control tokens, those with a role, and markers that a user has defined."""
    special, ordinary = {}, []
    for token, (name, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == USER_DEFINED:
            if not MARKER.fullmatch(name):
                raise InputError(f"{PLACE}: the added token {name[:60]!r} is found in any text, which is not supported")
            ordinary.append(name)
        elif kind not in (NORMAL, UNKNOWN, CONTROL, UNUSED):
            raise InputError(f"{PLACE}: the token {name[:60]!r} is of type {str(kind)[:20]}, which is not supported")
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) or name in roles.values():
            special[name] = token
    if ordinary:
        notes.append(f"{', '.join(ordinary[:4])}: found in every text elsewhere; here only where special tokens are")
    return special


def to_gguf(tokenizer: Tokenizer, chat: ChatTemplate | None = None) -> dict[str, Any]:
    """Returns the metadata of a GGUF file. Raises InputError for a tokenizer that the format cannot express."""
    can = "only bpe and tiktoken can, with the pattern gpt2 or that of an imported model"
    if not isinstance(tokenizer, BytePairTokenizer):
        raise InputError(f"a tokenizer of kind {tokenizer.kind} cannot be exported to GGUF; {can}")
    ranks, expression = tokenizer.ranks, tokenizer.pattern.expression
    pre = pre_of(expression)
    if pre is None:
        raise InputError(
            f"tokenizer.pattern={expression[:60]!r} has no name in GGUF, so the tokenizer cannot be exported to it; "
            f"{can}. Hugging Face's format takes any pattern"
        )
    pairs, unreachable = needed_pairs(map(spell, sorted(ranks, key=ranks.__getitem__)))
    if unreachable:
        raise InputError(
            f"the tokenizer cannot be exported to GGUF: no merges lead to its token {unreachable[0][:40]!r}; Hugging "
            "Face's format can express it"
        )
    special = names_elsewhere(tokenizer, ranks)
    tokens = [f"[UNUSED_{token}]" for token in range(tokenizer.vocab_size)]  # some vocabularies skip ids
    types = [UNUSED] * len(tokens)
    for names, kind in (({spell(token): rank for token, rank in ranks.items()}, NORMAL), (special, CONTROL)):
        for name, token in names.items():
            tokens[token], types[token] = name, kind
    metadata: dict[str, Any] = {
        f"{KEY}model": "gpt2",
        f"{KEY}pre": pre,
        f"{KEY}tokens": tokens,
        f"{KEY}token_type": types,
        f"{KEY}merges": [" ".join(pair) for pair in pairs],
        f"{KEY}bos_token_id": tokenizer.stream_start,
        f"{KEY}eos_token_id": end_of(tokenizer, chat),
        f"{KEY}padding_token_id": tokenizer.end_id,
        f"{KEY}add_bos_token": tokenizer.start_id is not None,
        f"{KEY}add_eos_token": False,
    }
    if chat:
        metadata["tokenizer.chat_template"] = renamed(chat, END, tokenizer.end_name).jinja()
    return metadata
