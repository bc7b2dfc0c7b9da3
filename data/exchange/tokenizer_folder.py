"""Writes the files of a tokenizer into a folder for Hugging Face's libraries, so that AutoTokenizer gives our ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..labelled.templates import ChatTemplate
from ..tokenizers.base import END, Tokenizer
from .tokenizer_json import end_of, names_elsewhere, renamed, to_tokenizer_json


def to_huggingface(folder: Path, tokenizer: Tokenizer, *, context: int, chat: ChatTemplate | None = None) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json. Raises InputError before it writes.

    context: the longest text, in tokens. The class PreTrainedTokenizerFast reads tokenizer.json as it is; others, also
    the one that transformers picks for a GPT-2 without this file, put their own pattern in its place.
    """
    content = to_tokenizer_json(tokenizer)
    names = {token: name for name, token in names_elsewhere(tokenizer).items()}
    roles = {
        "bos_token": names[tokenizer.stream_start],
        "eos_token": names[end_of(tokenizer, chat)],
        "pad_token": names[tokenizer.end_id],
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "add_bos_token": tokenizer.start_id is not None,
        "add_eos_token": False,
        **roles,
    }
    if chat:
        config["chat_template"] = renamed(chat, END, tokenizer.end_name).jinja()
    for name, value in (
        ("tokenizer.json", content),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", roles),
    ):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
