"""Long texts: while one is encoded, or a large answer is written as JSON, the server answers other requests."""

from __future__ import annotations

import asyncio
import json
import threading

import anyio
import pytest

from data.tokenizers.kinds import ByteTokenizer
from scripts.server import bodies
from scripts.server.app import POST

CHOICE = {"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "b"}]}
BODIES = {
    "/v1/completions": {"prompt": "hello", "max_tokens": 1},
    "/v1/chat/completions": {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1},
    "/v1/decisions": {"input": "hello", "questions": [CHOICE]},
    "/v1/next_words": {"prompt": "hello", "max_expansions": 2},
    "/v1/next_tokens": {"prompt": "hello"},
    "/v1/surprisal": {"text": "hello"},
    "/v1/attention": {"prompt": "hello"},
    "/v1/lens": {"prompt": "hello"},
    "/tokenize": {"prompt": "hello"},
}


@pytest.mark.parametrize("path", [path for path in POST if path != "/detokenize"])
def test_other_requests_are_answered_while_a_long_body_is_encoded(client, monkeypatch, path):
    monkeypatch.setattr(bodies, "LONG_BODY", 1)  # every body is long
    encode, answered, waited = ByteTokenizer._encode, threading.Event(), []

    def slow(self, texts):
        waited.append(answered.wait(5))
        return encode(self, texts)

    monkeypatch.setattr(ByteTokenizer, "_encode", slow)

    async def ask():
        asked = asyncio.create_task(client.request("POST", path, [json.dumps(BODIES[path]).encode()]))
        await asyncio.sleep(0.02)
        other = await client.request("GET", "/v1/models", [])
        answered.set()
        return other, await asked

    other, answer = asyncio.run(ask())
    assert (other.status, answer.status) == (200, 200) and waited and all(waited), answer.body


def test_an_error_in_a_thread_is_the_same_answer(client, monkeypatch):
    expected = client.post("/v1/completions", {"prompt": "x" * 5000})
    monkeypatch.setattr(bodies, "LONG_BODY", 1)
    answer = client.post("/v1/completions", {"prompt": "x" * 5000})
    assert (answer.status, answer.json) == (expected.status, expected.json) and answer.status == 400


def test_all_questions_of_a_body_are_read_in_one_thread(client, monkeypatch):
    monkeypatch.setattr(bodies, "LONG_BODY", 1)
    threads, run_sync = [], anyio.to_thread.run_sync

    async def counted(work, **options):
        threads.append(work)
        return await run_sync(work, **options)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    answer = client.post("/v1/decisions", {"input": "hello", "questions": [CHOICE] * 5})
    assert len(answer.json["answers"]) == 5 and len(threads) == 1


@pytest.mark.parametrize(
    "content",
    [{}, [], [[]], {"a": {}}, [1, 2], list(range(2500)), [[list(range(2001)), [], 3], "é", None], "\ud800",
     {"a": [{"b": 0.5, "c": None}] * 1001, 'd"': True, "e": [{}], "f": [[0.1, -0.0], [1e-9]]}],
)  # fmt: skip
def test_json_in_parts_is_the_same_json(content):
    assert bodies.as_json(content) == json.dumps(content, separators=(",", ":")).encode()


def test_no_part_of_a_large_answer_is_long():
    rows = [[[0.5] * 128] * 128] * 9
    assert max(map(len, bodies.json_parts({"attention": rows, "tokens": [{"id": 1}] * 10**4}))) < 20_000
