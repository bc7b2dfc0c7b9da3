"""/v1/completions: the texts and log-probabilities of the model itself, in OpenAI's shape, whole and streamed."""

from __future__ import annotations

import pytest
import torch

from model.inference.sampling import SamplingConfig

PATH = "/v1/completions"


def log_p(lm, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([ids]))[0].double().log_softmax(-1)


def test_the_shape_of_an_answer(client):
    answer = client.post(PATH, {"prompt": "Dear", "model": "plain"}).json
    assert answer["object"] == "text_completion" and answer["model"] == "plain" and answer["id"].startswith("cmpl-")
    [choice] = answer["choices"]
    assert choice.keys() == {"text", "index", "logprobs", "finish_reason"} and choice["logprobs"] is None
    assert answer["usage"]["prompt_tokens"] == 4 and answer["usage"]["completion_tokens"] <= 16  # the default


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "frequency_penalty": 1.0}])
def test_texts_are_those_of_the_model_with_the_same_seed(client, lms, settings):
    answer = client.post(PATH, {"prompt": "Dear", "seed": 7, "n": 3, "max_tokens": 12} | settings).json
    sampling = SamplingConfig(**settings)
    expected = lms["plain"].generate(["Dear"] * 3, max_new_tokens=12, seed=7, sampling=sampling)
    assert [choice["text"] for choice in answer["choices"]] == [one.text for one in expected]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]


def test_prompts_may_be_texts_or_ids_and_do_not_depend_on_each_other(client, lms):
    common = {"seed": 5, "max_tokens": 6}
    ids = [lms["plain"].encode(text) for text in ("Dear", "To be")]
    prompts = (["Dear", "To be"], ids, "Dear", ids[0])
    found = [[c["text"] for c in client.post(PATH, common | {"prompt": p}).json["choices"]] for p in prompts]
    assert found[0] == found[1] and found[2] == found[3] == found[0][:1]
    starts = [client.post(PATH, common | start).json["choices"] for start in ({}, {"prompt": ""}, {"prompt": [[]]})]
    assert starts[0] == starts[1] == starts[2]


def test_a_text_ends_before_a_stop_string(client):
    whole = client.post(PATH, {"prompt": "Dear", "temperature": 0, "max_tokens": 20}).json["choices"][0]["text"]
    stop = [character for character in whole if character.isascii()][1]  # others are parts of characters
    body = {"prompt": "Dear", "temperature": 0, "max_tokens": 20, "stop": ["\x00\x01", stop]}
    [choice] = client.post(PATH, body).json["choices"]
    assert choice["text"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"


@pytest.mark.parametrize("text", ["Listen to your heart", "é – ü", "x"])
def test_echoed_log_probabilities_are_the_models_and_tell_whether_a_token_is_greedy(client, lms, text):
    """As lm-eval reads them: prompts of ids, one more token, the first without a figure."""
    ids = lms["plain"].encode(text)
    body = {"prompt": [ids, ids], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    answer = client.post(PATH, body).json
    rows = log_p(lms["plain"], ids)
    for choice in answer["choices"]:
        figures, best = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        assert len(figures) == len(best) == len(choice["logprobs"]["tokens"]) == len(ids) + 1
        assert figures[0] is None and best[0] is None
        for place in range(1, len(ids)):
            row = rows[place - 1]
            assert figures[place] == pytest.approx(row[ids[place]].item(), abs=1e-4)
            assert (figures[place] == max(best[place].values())) == (int(row.argmax()) == ids[place])
        assert figures[-1] == max(best[-1].values()) == pytest.approx(rows[-1].max().item(), abs=1e-4)
        assert choice["text"].startswith(text)


def test_partial_characters_have_names_of_their_own_and_offsets_count_characters(client):
    body = {"prompt": "é–x", "max_tokens": 0, "logprobs": 5, "echo": True}
    [choice] = client.post(PATH, body).json["choices"]
    found = choice["logprobs"]
    assert choice["text"] == "é–x" and choice["finish_reason"] == "length"
    assert found["tokens"] == [*(f"bytes:\\x{byte:02x}" for byte in "é–".encode()), "x"]
    assert found["text_offset"] == [0, 0, 1, 1, 1, 2]
    assert all(len(top) in (5, 6) for top in found["top_logprobs"][1:])  # no two tokens share a name


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_is_the_answer_in_pieces(client, echo):
    body = {"prompt": ["Dear", "é"], "n": 2, "seed": 3, "max_tokens": 9, "logprobs": 2, "echo": echo}
    whole = client.post(PATH, body).json
    events = client.post(PATH, body | {"stream": True, "stream_options": {"include_usage": True}}).events
    *chunks, counts = events
    assert counts["choices"] == [] and counts["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        for name, values in choice["logprobs"].items():
            joined = [value for part in parts for value in part["logprobs"][name]]
            assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(joined, values, strict=True)), name
    assert len({chunk["id"] for chunk in events}) == 1


def test_the_end_token_is_counted_and_ends_the_text(client, lms, monkeypatch):
    lm, head = lms["plain"], lms["plain"].model.head

    def ending(hidden):
        logits = head(hidden).clone()
        logits[..., lm.tokenizer.end_id] = 99.0
        return logits

    monkeypatch.setattr(lm.model, "head", ending)
    answer = client.post(PATH, {"prompt": "Dear", "echo": True, "logprobs": 1}).json
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Dear", "stop")
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}
    assert choice["logprobs"]["tokens"] == ["D", "e", "a", "r", "<|endoftext|>"]
