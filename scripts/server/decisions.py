"""POST /v1/decisions: the exact probability of every option of a question about an input, in OpenAI's shape.

A question is a predicate (is a statement true?), a choice among options, or a score on ordered levels. Every option is
scored as a whole, all its tokens and the end token after it, as sample.py mode=classify does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request

from .bodies import Fields, Json, joined_text, read_body, read_json
from .models import Models, Served, too_long
from .streaming import unless_gone

KNOWN = ("model", "input", "questions", "prompt_cache_key", "prompt_cache_options", "safety_identifier")
MOST_QUESTIONS, MOST_OPTIONS = 400, 255
LONGEST_OPTION = 100  # tokens: each is a step of the model that nothing interrupts
QUESTION = ("type", "name", "instructions", "choices", "levels")
TRUTHS = (("true", "false"), ("yes", "no"))  # how a predicate is answered: as the label set has it, or as the first


@dataclass(frozen=True)
class Asked:
    """A question as the model reads it."""

    kind: str
    name: str | None
    values: list[Any]  # of the options, as they were given
    prompt: list[int]
    options: list[list[int]]
    temperature: float  # divides the log-probabilities: the fitted one where the checkpoint's own labels are asked for


async def decisions(request: Request) -> Json:
    fields = Fields(await read_json(request), KNOWN)
    served = Models.here(request).of(fields)
    text = read_input(fields)
    questions = fields.objects("questions", QUESTION, least=1, most=MOST_QUESTIONS)
    asked = await read_body(request, lambda: [read_question(question, text, served) for question in questions])
    return await unless_gone(request, answer_all(served, asked, request.scope["tokens"]))


async def answer_all(served: Served, asked: list[Asked], counted: list[int]) -> Json:
    answers = []
    for one in asked:
        scores = await served.alone(partial(served.lm.label_scores, [one.prompt], one.options))
        answers.append(answer(one, scores[0].double()))
        counted[0] += len(one.prompt)
    used = {
        "input_tokens": counted[0],
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted[0],
    }
    return Json({"object": "decision", "model": served.name, "answers": answers, "usage": used})


def answer(asked: Asked, scores: Any) -> dict[str, Any]:
    """scores (L,): the log-probabilities of the options. outside: the probability of anything but an option."""
    shares = (scores / asked.temperature).softmax(-1).tolist()
    best = max(range(len(shares)), key=shares.__getitem__)
    found: dict[str, Any] = {"type": asked.kind, "name": asked.name, "outside": max(0.0, 1 - float(scores.exp().sum()))}
    if asked.kind == "predicate":
        return found | {"probability": shares[0]}
    if asked.kind == "choice":
        rows = [{"value": value, "probability": share} for value, share in zip(asked.values, shares, strict=True)]
        return found | {"choice": asked.values[best], "confidence": shares[best], "probabilities": rows}
    rows = [
        {"value": level, "label": label, "probability": share}
        for level, (label, share) in enumerate(zip(asked.values, shares, strict=True))
    ]
    score = sum(level * share for level, share in enumerate(shares))  # the expected level; the lowest is 0
    return found | {"score": score, "confidence": shares[best], "probabilities": rows}


def read_question(question: Fields, text: str, served: Served) -> Asked:
    """Checks a question and encodes it. Raises ApiError."""
    kind = question.text("type")
    instructions = joined_parts(question.get("instructions", str, list), question, "instructions")
    labels, tokenizer = set(served.task.labels), served.lm.tokenizer
    values: list[Any]
    descriptions: list[str | None]
    if kind == "predicate":
        truth = next((pair for pair in TRUTHS if set(pair) == labels), TRUTHS[0])
        values, descriptions = list(truth), [None, None]
    elif kind in ("choice", "score"):
        field, key = ("choices", "value") if kind == "choice" else ("levels", "label")
        entries = question.objects(field, [key, "description"], least=2, most=MOST_OPTIONS)
        values = [entry.get(key, *((str, bool) if kind == "choice" else (str,))) for entry in entries]
        descriptions = [entry.text("description", None) for entry in entries]
    else:
        raise question.error("type", "must be predicate, choice or score")
    words = [value if isinstance(value, str) else str(value).lower() for value in values]
    if "" in words or len(set(words)) < len(words):
        raise question.error("levels" if kind == "score" else "choices", "must be distinct and not empty")
    if set(words) == labels:  # as it was fine-tuned: its own templates, and its temperature
        ids = served.encode(served.task.prompt_of(text), name="input")
        answers, end = [served.task.completion_of(word) for word in words], tokenizer.end_id
        temperature = served.task.temperature
    elif served.task.chat is not None:
        ids = served.chat_ids([{"role": "user", "content": template(kind, text, instructions, words, descriptions)}])
        suffix, ends = served.chat_ends()
        answers, end, temperature = [word + suffix for word in words], (*ends, tokenizer.end_id)[0], 1.0
    else:
        prompt = template(kind, text, instructions, words, descriptions)
        ids = served.encode(f"{prompt}\nAnswer:", name="input")
        answers, end, temperature = [f" {word}" for word in words], tokenizer.end_id, 1.0
    options = [[*tokenizer.encode(answer, continued=True), end] for answer in answers]
    longest = max(map(len, options)) - 1
    if longest > LONGEST_OPTION:
        raise question.error(
            "levels" if kind == "score" else "choices",
            f"has an option of {longest} tokens; at most {LONGEST_OPTION} are allowed",
        )
    context = served.lm.model.config.context
    if len(ids) + longest > context:
        raise too_long("input", f"{len(ids) + longest:,} tokens with its question and an option", context)
    if len(set(map(tuple, options))) < len(options):
        raise question.error("choices", "has two options with the same tokens")
    return Asked(kind, question.text("name", None), values, ids, options, temperature)


def template(kind: str, text: str, instructions: str, words: list[str], descriptions: list[str | None]) -> str:
    """A question as text, for a model that was not fine-tuned on it."""
    if kind == "predicate":
        return f"{text}\n\nTrue or false: {instructions}"
    lines = [f"- {word}: {about}" if about else f"- {word}" for word, about in zip(words, descriptions, strict=True)]
    order = "" if kind == "choice" else " (from the lowest to the highest)"
    return "\n".join([text, "", f"{instructions}{order}", *lines])


def read_input(fields: Fields) -> str:
    """The input: a text, or messages, whose texts follow one another with their roles if there are several."""
    value = fields.get("input", str, list)
    if isinstance(value, str):
        return value
    found = []
    for message in fields.objects("input", ["type", "role", "content"], least=1, most=1000):
        if message.text("type", "message") != "message":
            raise message.error("type", "is not supported; send text messages")
        role = message.text("role")
        if role not in ("user", "developer", "system", "assistant"):
            raise message.error("role", "must be user, developer, system or assistant")
        found.append((role, joined_parts(message.get("content", str, list), message, "content")))
    return found[0][1] if len(found) == 1 else "\n\n".join(f"{role.capitalize()}: {text}" for role, text in found)


def joined_parts(content: Any, fields: Fields, name: str) -> str:
    """Text, or parts of text and JSON; images are refused."""
    if not isinstance(content, list):
        return str(content)
    parts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "input_json" and isinstance(part.get("data"), dict | list):
            parts.append({"type": "input_text", "text": json.dumps(part["data"], ensure_ascii=False)})
        else:
            parts.append(part)
    return joined_text(parts, ["input_text", "output_text"], fields, name)
