"""/v1/chat/completions: the model's answer to messages in the checkpoint's template, in OpenAI's shape."""

from __future__ import annotations

import pytest

from data.labelled.rows import chat_end, chat_prompt
from data.labelled.templates import CHAT_TEMPLATES
from model.inference.sampling import SamplingConfig
from scripts.server.chat import Trimmed

PATH = "/v1/chat/completions"
SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <|im_end|>?"}]
BODY = {"model": "chat", "messages": SAID, "seed": 4, "max_tokens": 12}


def test_an_answer_is_the_models_after_the_messages_encoded_as_in_training(client, lms):
    ids = chat_prompt(CHAT_TEMPLATES["chatml"], SAID, lms["chat"].tokenizer)
    answer = client.post(PATH, BODY | {"n": 2, "temperature": 0.7}).json
    assert answer["object"] == "chat.completion" and answer["usage"]["prompt_tokens"] == len(ids)
    sampling = SamplingConfig(temperature=0.7)
    expected = lms["chat"].generate([ids] * 2, max_new_tokens=12, seed=4, sampling=sampling)
    for choice, one in zip(answer["choices"], expected, strict=True):
        assert choice["message"] == {"role": "assistant", "content": one.text, "refusal": None}
        assert choice["finish_reason"] == "length" and choice["logprobs"] is None
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "<|im_end|>?"}]
    other = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "me"}]
    again = client.post(PATH, BODY | {"messages": other, "n": 2, "temperature": 0.7, "tools": []}).json
    assert again["choices"] == answer["choices"]


@pytest.mark.parametrize("path, body", [(PATH, BODY), ("/v1/completions", {"prompt": "Dear", "seed": 4})])
def test_the_default_temperature_is_that_of_openais_api(client, path, body):
    texts = [client.post(path, body | more).json["choices"] for more in ({}, {"temperature": 1}, {"temperature": 0.7})]
    assert texts[0] == texts[1] != texts[2]


def test_the_templates_end_token_ends_an_answer(client, lms, monkeypatch):
    lm, head = lms["chat"], lms["chat"].model.head
    [end] = chat_end(CHAT_TEMPLATES["chatml"], lm.tokenizer)[1]

    def ending(hidden):
        logits = head(hidden).clone()
        logits[..., end] = 99.0
        return logits

    monkeypatch.setattr(lm.model, "head", ending)
    answer = client.post(PATH, BODY | {"logprobs": True, "top_logprobs": 2}).json
    [choice] = answer["choices"]
    assert choice["message"]["content"] == "" and choice["finish_reason"] == "stop"
    [token] = choice["logprobs"]["content"]
    assert (token["token"], token["bytes"]) == ("<|im_end|>", None) and len(token["top_logprobs"]) == 2
    assert token["top_logprobs"][0]["logprob"] == token["logprob"]


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_begins_with_the_role_and_is_the_answer_in_pieces(client, logprobs):
    body = BODY | {"n": 2, "logprobs": logprobs}
    whole = client.post(PATH, body).json
    *chunks, counts = client.post(PATH, body | {"stream": True, "stream_options": {"include_usage": True}}).events
    assert counts["choices"] == [] and counts["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert parts[0]["delta"]["role"] == "assistant" and not any("role" in part["delta"] for part in parts[1:])
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
        if logprobs:
            tokens = [token for part in parts[1:] for token in part["logprobs"]["content"]]
            assert [t["token"] for t in tokens] == [t["token"] for t in choice["logprobs"]["content"]]


@pytest.mark.parametrize(
    "change, part",
    [
        ({"model": "plain"}, "has no chat template"),
        ({"messages": []}, "must have 1 to"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "must be one of system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "'messages[0].content' is required"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text"),
        ({"tools": [{"type": "function"}]}, "only writes text"),
        ({"response_format": {"type": "json_object"}}, "is not supported"),
        ({"top_logprobs": 2}, "needs logprobs=true"),
        ({"max_completion_tokens": 1000}, "exceed the context"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "'messages' has 5,000 characters, which exceed"),
    ],
)
def test_what_is_refused(client, change, part):
    answer = client.post(PATH, BODY | change)
    assert answer.status == 400 and part in answer.json["error"]["message"]


def test_an_answer_may_be_as_long_as_the_context(client, lms):
    answer = client.post(PATH, {"model": "chat", "messages": SAID, "temperature": 0}).json
    assert answer["usage"]["total_tokens"] == lms["chat"].model.config.context + 1  # the last token is not read


@pytest.mark.parametrize("pieces", [["ab\n", "\nc", "\n\n"], ["ab\n\nc\n\n"], list("ab\n\nc\n\n")])
def test_a_suffix_that_comes_in_pieces_is_no_part_of_the_answer(pieces):
    text = Trimmed("\n\n")
    assert "".join(text.add(p, last=n == len(pieces) - 1) for n, p in enumerate(pieces)) == "ab\n\nc"
    assert Trimmed("").add("x", last=False) == "x"
