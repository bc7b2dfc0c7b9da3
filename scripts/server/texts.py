"""Text and tokens: tokenize, detokenize, the next token under filters, and the surprisal of each token of a text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from starlette.requests import Request

from model.inference.inspect import most_probable
from model.inference.sampling import SamplingConfig, filtered
from model.inference.score import windows
from model.language_model import LanguageModel

from .bodies import ApiError, Fields, Json, is_ids, read_body, read_json, write_answer
from .generation import number_of, sampling_of, spelled
from .models import Models, Served
from .streaming import unless_gone

MOST_TOKENS = 20_000  # of a text whose surprisal is asked for
WORD = re.compile(r"\s*(?:\w+(?:['’-]\w+)*|[^\w\s]+)|\s+")
Figures = tuple[float, int, float, list[tuple[int, float]]]  # log-probability, rank, entropy, the best ids with theirs
FILTERS = ("temperature", "top_p", "top_k", "min_p", "typical_p")


async def tokenizer_info(request: Request) -> Json:
    """The special tokens by their roles. What starts a text, and is an empty prompt, is mostly the end token."""
    served = Models.here(request).get(request.query_params.get("model"))
    tokenizer, chat = served.lm.tokenizer, served.task.chat
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    [start], end = served.lm.encode(()), names[tokenizer.end_id]
    found = {
        "eos_token": end,
        "bos_token": names[start],
        "pad_token": end,
        "chat_template": chat.jinja() if chat else None,
    }
    return Json(found | {"vocab_size": tokenizer.vocab_size, "model_max_length": served.context})


async def tokenize(request: Request) -> Json:
    """The ids of a text. A text that is the name of a special token, and nothing else, is that token."""
    fields = Fields(await read_json(request), ["model", "prompt", "add_special_tokens"])
    served, text = Models.here(request).of(fields), fields.text("prompt")
    special = served.lm.tokenizer.special_tokens

    def ids_and_texts() -> Json:
        ids = [special[text]] if text in special else served.lm.tokenizer.encode(text)
        texts = [spelled(served, token) for token in ids]
        return Json({"tokens": ids, "count": len(ids), "max_model_len": served.context, "token_strs": texts})

    return await read_body(request, ids_and_texts)


async def detokenize(request: Request) -> Json:
    fields = Fields(await read_json(request), ["model", "tokens"])
    served, ids = Models.here(request).of(fields), fields.get("tokens", list)

    def text() -> Json:
        if not is_ids(ids, served.lm.tokenizer.vocab_size):
            raise fields.error("tokens", f"must be ids below {served.lm.tokenizer.vocab_size}")
        return Json({"prompt": served.lm.tokenizer.decode(ids)})

    return await read_body(request, text)


async def next_tokens(request: Request) -> Json:
    """The most probable next tokens, before and after the filters, and the mass that each filter removes."""
    fields = Fields(await read_json(request), ["model", "prompt", "top", *FILTERS])
    served = Models.here(request).of(fields)
    top, sampling = fields.integer("top", 20, low=1, high=1000), sampling_of(fields)
    ids = await read_body(request, partial(served.ids, fields))
    request.scope["tokens"][0] = len(ids)
    found = await unless_gone(request, served.alone(partial(filter_next, served, ids, top, sampling)))
    return Json({"object": "next_tokens", "model": served.name} | found)


@torch.no_grad()
def filter_next(served: Served, ids: list[int], top: int, sampling: SamplingConfig) -> dict[str, Any]:
    lm = served.lm
    inputs = torch.tensor([ids[-lm.model.config.context :]], device=lm.compute.device)
    with lm.compute.autocast():
        logits = lm.model.head(lm.model.hidden(inputs)[:, -1]).float()  # (1, V)
    before = own = logits.softmax(-1)
    filters = []
    for name, after in filtered(logits, sampling):
        removed = before.masked_fill(after > 0, 0).sum().item()
        moved = (after - before).abs().sum().item() / 2  # also what temperature, which removes nothing, changes
        filters.append({"name": name, "removed": removed, "moved": moved, "kept": int((after > 0).sum())})
        before = after
    [best] = most_probable(own, top)
    tokens = [
        {"id": token, "token": spelled(served, token), "probability": p, "filtered": before[0, token].item()}
        for token, p in best
    ]
    entropy = torch.special.entr(own.double()).sum().item()
    return {"tokens": tokens, "filters": filters, "entropy": entropy}


async def surprisal(request: Request) -> Json:
    """Each token of a text with its log-probability, its rank, and what the model would rather have written."""
    fields = Fields(await read_json(request), ["model", "text", "prompt", "top"])
    served, top = Models.here(request).of(fields), fields.integer("top", 10, low=0, high=50)
    prefix, ids = await read_body(request, partial(prompt_and_text, fields, served))
    request.scope["tokens"][0] = len(prefix) + len(ids)
    rows = await unless_gone(request, score_text(served, prefix, ids, top))
    return await write_answer(lambda: Json(described(served, ids, rows)), figures=len(ids) * (1 + top))


def prompt_and_text(fields: Fields, served: Served) -> tuple[list[int], list[int]]:
    """The ids of what is read first, and of the text to score. Raises ApiError."""
    prefix, continued = served.ids(fields), bool(fields.values.get("prompt"))
    ids = served.lm.tokenizer.encode(fields.text("text"), continued=continued)
    if not 0 < len(ids) <= MOST_TOKENS:
        raise fields.error("text", f"has {len(ids):,} tokens; it must have 1 to {MOST_TOKENS:,}")
    return prefix, ids


async def score_text(served: Served, prefix: list[int], ids: list[int], top: int) -> list[Figures]:
    """Scores a text window by window, as sample.py mode=score does."""
    lm = served.lm
    rows: list[Figures] = []
    for inputs, places in windows(prefix, ids, context=lm.model.config.context):
        targets = [ids[number] for _, number in places]
        rows += await served.alone(partial(score_window, lm, inputs, places[0][0], targets, top))
    return rows


def described(served: Served, ids: list[int], rows: list[Figures]) -> dict[str, Any]:
    """A text's tokens with their figures, and its words."""
    pieces = [served.lm.tokenizer.token_bytes(token) for token in ids]
    tokens: list[dict[str, Any]] = []
    start = 0
    for token, piece, (log_probability, rank, entropy, best) in zip(ids, pieces, rows, strict=True):
        alternatives = [{"id": other, "token": spelled(served, other), "logprob": number_of(p)} for other, p in best]
        place = {"id": token, "token": spelled(served, token), "start": start, "end": start + len(piece)}
        figures = {"logprob": number_of(log_probability), "rank": rank, "entropy": entropy}
        tokens.append(place | figures | {"top": alternatives})
        start += len(piece)
    raw = b"".join(pieces)
    text = raw.decode("utf-8", "replace")
    found = {"object": "surprisal", "model": served.name, "text": text, "bytes": len(raw)}
    total = math.fsum(row["logprob"] for row in tokens)
    return found | {"logprob": total, "tokens": tokens, "words": words_of(raw, tokens)}


@torch.no_grad()
def score_window(lm: LanguageModel, inputs: Sequence[int], first: int, targets: list[int], top: int) -> list[Figures]:
    """The figures of each target; the first target follows position `first` of the inputs."""
    found: list[Figures] = []
    with lm.compute.autocast():
        h = lm.model.hidden(torch.tensor([list(inputs)], device=lm.compute.device))[0, first:]  # (N, D)
    wanted = torch.tensor(targets, device=lm.compute.device)
    for some, ids in zip(h.split(128), wanted.split(128), strict=True):
        with lm.compute.autocast():
            logits = lm.model.head(some)  # (n, V)
        log_p = logits.float().log_softmax(-1)
        if not bool(log_p.isfinite().all()):
            raise ApiError("the model's logits are not finite numbers", status=500)
        own = log_p.gather(-1, ids[:, None])  # (n, 1)
        entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(-1)
        columns = own[:, 0].tolist(), ((log_p > own).sum(-1) + 1).tolist(), entropy.tolist()
        found += list(zip(*columns, most_probable(log_p, top), strict=True))
    return found


def words_of(raw: bytes, tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tokens in groups, whose boundaries are those of words and of tokens: a token of two words joins them.

    So the log-probabilities of the groups add up to that of the text. start and end count bytes.
    """
    text = raw.decode("utf-8", "surrogateescape")
    sizes = (len(match.group().encode("utf-8", "surrogateescape")) for match in WORD.finditer(text))
    ends = set(itertools.accumulate(sizes))
    groups: list[dict[str, Any]] = []
    begin = 0
    for number, token in enumerate(tokens, start=1):
        if token["end"] in ends or number == len(tokens):
            some = tokens[begin:number]
            start, end = some[0]["start"], some[-1]["end"]
            piece = raw[start:end].decode("utf-8", "replace")
            total = sum(row["logprob"] for row in some)
            groups.append({"text": piece, "start": start, "end": end, "logprob": total, "tokens": [begin, number]})
            begin = number
    return groups
