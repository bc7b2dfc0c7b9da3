"""Next words, next tokens, surprisal, tokenize and detokenize: what the model itself says, for a page to draw."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import pytest

from model.inference.sampling import SamplingConfig
from model.next_word.search import Search
from scripts.server import next_words
from scripts.server.models import Served


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5, "top_k": 30}])
def test_next_words_are_the_models_whole_and_streamed(client, lms, settings):
    body = {"prompt": "Listen to ", "top": 3, "max_expansions": 200, "tolerance": 0.01} | settings
    sampling = SamplingConfig(**settings)
    expected = lms["plain"].next_words("Listen to ", top=3, max_expansions=200, tolerance=0.01, sampling=sampling)
    answer = client.post("/v1/next_words", body).json
    assert {name: answer[name] for name in asdict(expected)} == asdict(expected)
    events = client.post("/v1/next_words", body | {"stream": True}).events
    assert events[-1] == answer
    assert len(events) > 2 and {event["stopped"] for event in events[:-1]} == {"searching"}
    masses = [event["unexplored"] for event in events]
    assert masses == sorted(masses, reverse=True)


def test_a_search_stops_when_its_client_is_gone(client, monkeypatch):
    expanded, expand = [], Search.expand
    monkeypatch.setattr(Search, "expand", lambda self, children: (expanded.append(1), expand(self, children))[1])

    async def leave():
        stay, parts = asyncio.Event(), []
        body = json.dumps({"prompt": "x", "top": 20, "max_expansions": 10**4, "tolerance": 0, "stream": True})

        def on_body(part):
            parts.append(part)
            if len(parts) == 3:
                stay.set()

        await client.request("POST", "/v1/next_words", [body.encode()], stay=stay, on_body=on_body)
        return len(expanded)

    at_the_end = asyncio.run(leave())
    assert at_the_end <= 5
    assert client.post("/v1/next_tokens", {"prompt": "x"}).status == 200  # the worker is free
    assert len(expanded) <= at_the_end + 1


@pytest.mark.parametrize("field, value", [("max_expansions", 10_001), ("max_expansions", 10**9), ("top", 101)])
def test_a_search_that_would_take_the_servers_memory_or_time_is_refused(client, field, value):
    answer = client.post("/v1/next_words", {"prompt": "x", field: value})
    assert answer.status == 400 and f"'{field}' must be 1 to" in answer.json["error"]["message"]


def test_a_large_vocabulary_allows_fewer_expansions(client, monkeypatch):
    monkeypatch.setattr(next_words, "MOST_MASSES", 50 * 259)
    message = client.post("/v1/next_words", {"prompt": "x", "max_expansions": 51}).json["error"]["message"]
    assert "must be 1 to 50" in message
    found = client.post("/v1/next_words", {"prompt": "x", "tolerance": 0}).json
    assert (found["stopped"], found["evaluated"]) == ("max_tokens", 50)


def test_only_some_searches_run_at_a_time_and_the_others_wait(make_client, models, monkeypatch):
    running, most = [], []

    async def alone(self, function):
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(0.001)
        running.pop()
        return function()

    for one in models.by_name.values():
        monkeypatch.setitem(one.__dict__, "searches", asyncio.Semaphore(2))
    monkeypatch.setattr(Served, "alone", alone)
    body = json.dumps({"prompt": "x", "max_expansions": 8, "tolerance": 0}).encode()

    async def ask():
        return await asyncio.gather(*(make_client().request("POST", "/v1/next_words", [body]) for _ in range(6)))

    assert {answer.status for answer in asyncio.run(ask())} == {200} and max(most) == 2


def test_next_tokens_and_the_mass_that_filters_remove(client, lms):
    lm = lms["plain"]
    settings = {"temperature": 0.8, "top_k": 20, "top_p": 0.7}
    answer = client.post("/v1/next_tokens", {"prompt": "Dear", "top": 300} | settings).json
    own, kept = (lm.next_tokens("Dear", top=300, sampling=s) for s in (None, SamplingConfig(**settings)))
    assert {row["id"]: row["probability"] for row in answer["tokens"]} == pytest.approx(
        {t.id: t.probability for t in own}
    )
    assert {row["id"]: row["filtered"] for row in answer["tokens"]} == pytest.approx(
        {t.id: t.probability for t in kept}
    )
    steps = answer["filters"]
    assert [step["name"] for step in steps] == ["temperature", "top_k", "top_p"] and steps[1]["kept"] == 20
    cooler = lm.next_tokens("Dear", top=300, sampling=SamplingConfig(temperature=0.8))
    assert steps[1]["removed"] == pytest.approx(sum(token.probability for token in cooler[20:]), abs=1e-5)


@pytest.mark.parametrize(
    "text, prompt", [("To be – or né", ""), ("x" * 500, ""), (" heart,\n yours", "Listen to your")]
)
def test_surprisal_is_that_of_score_and_the_words_add_up(client, lms, text, prompt):
    expected = lms["plain"].score(text, prompt=prompt)
    answer = client.post("/v1/surprisal", {"text": text, "prompt": prompt, "top": 2}).json
    assert answer["text"] == text and answer["bytes"] == len(text.encode())
    assert answer["logprob"] == pytest.approx(expected.log_probability, abs=1e-3)
    for row, token in zip(answer["tokens"], expected.tokens, strict=True):
        assert row["logprob"] == pytest.approx(token.log_probability, abs=1e-4)
        assert (row["id"], row["rank"]) == (token.id, token.rank) and row["entropy"] == pytest.approx(token.entropy)
        assert len(row["top"]) == 2 and (row["rank"] > 1 or row["top"][0]["id"] == row["id"])
        assert text.encode()[row["start"] : row["end"]] == lms["plain"].tokenizer.token_bytes(row["id"])
    words = answer["words"]
    assert "".join(word["text"] for word in words) == text
    assert sum(word["logprob"] for word in words) == pytest.approx(answer["logprob"])
    assert [word["tokens"][0] for word in words[1:]] == [word["tokens"][1] for word in words[:-1]]


def test_a_model_with_a_start_token_reads_it_first_and_no_prefix_in_mid_text(client, lms, monkeypatch):
    lm = lms["plain"]
    monkeypatch.setattr(lm.tokenizer, "start_id", lm.tokenizer.special_tokens["<|im_start|>"])
    monkeypatch.setattr(lm.tokenizer, "prefix", " ")
    info = client.get("/tokenizer_info").json
    assert (info["bos_token"], info["eos_token"]) == ("<|im_start|>", "<|endoftext|>")
    for prompt in ("", "Listen"):
        answer = client.post("/v1/surprisal", {"text": "to", "prompt": prompt}).json
        assert answer["logprob"] == pytest.approx(lm.score("to", prompt=prompt).log_probability, abs=1e-3)


def test_words_are_grouped(client):
    words = client.post("/v1/surprisal", {"text": "To be – or né."}).json["words"]
    assert [word["text"] for word in words] == ["To", " be", " –", " or", " né", "."]


def test_tokens_and_texts_are_converted_both_ways(client, lms):
    text = "é <|endoftext|> \ud800"
    found = client.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json
    assert found["tokens"] == lms["plain"].encode(text) and found["count"] == len(found["tokens"])
    assert client.post("/detokenize", {"tokens": found["tokens"]}).json == {"prompt": "é <|endoftext|> \ufffd"}
    info = client.get("/tokenizer_info").json
    assert info["eos_token"] == info["bos_token"] == "<|endoftext|>" and info["chat_template"] is None
    assert client.post("/tokenize", {"prompt": info["eos_token"]}).json["tokens"] == [lms["plain"].tokenizer.end_id]
    assert "<|im_start|>" in client.get("/tokenizer_info?model=chat").json["chat_template"]
    assert client.post("/detokenize", {"tokens": [10**6]}).status == 400
