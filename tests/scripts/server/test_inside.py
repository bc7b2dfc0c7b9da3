"""/v1/attention and /v1/lens: the figures are those of the model, bounded, and the same as scripts.inspect's."""

from __future__ import annotations

import pytest
import torch

from model.inspection.attention import attention_weights
from scripts.server.inside import MOST_TOKENS, is_finite

TEXT = "To be é"


def test_attention_is_that_of_the_model_and_rows_sum_to_1(client, lms):
    ids = lms["plain"].encode(TEXT)
    answer = client.post("/v1/attention", {"prompt": TEXT}).json
    assert [token["id"] for token in answer["tokens"]] == ids and answer["omitted"] == 0
    assert answer["tokens"][-1]["text"] == "bytes:\\xa9"
    found = torch.tensor(answer["attention"])  # (L, H, T, T)
    expected = attention_weights(lms["plain"].model, torch.tensor([ids]))[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-3, rtol=0)


def test_the_last_layer_of_the_lens_is_the_models_own_table(client, lms):
    answer = client.post("/v1/lens", {"prompt": TEXT, "top": 3}).json
    layers = answer["lens"]["layers"]
    assert answer["lens"]["names"] == ["embedding", "block 0"] and len(layers[0]) == len(answer["tokens"])
    own = lms["plain"].next_tokens(TEXT, top=3)
    last = layers[-1][-1]
    assert [token["id"] for token in last["tokens"]] == [token.id for token in own] and last["divergence"] == 0
    assert [token["probability"] for token in last["tokens"]] == pytest.approx([token.probability for token in own])


@pytest.mark.parametrize("path", ["/v1/attention", "/v1/lens"])
def test_a_long_prompt_is_refused_unless_only_its_end_is_asked_for(client, path):
    refused = client.post(path, {"prompt": "x" * 140})
    assert refused.status == 400 and f"last={MOST_TOKENS}" in refused.json["error"]["message"]
    answer = client.post(path, {"prompt": "x" * 138 + "yz", "last": 2}).json
    assert [token["text"] for token in answer["tokens"]] == ["y", "z"] and answer["omitted"] == 138
    assert client.post(path, {"prompt": "x", "last": 0}).status == 400
    assert client.post(path, {"prompt": "", "last": 5}).json["tokens"][0]["text"] == "<|endoftext|>"
    assert client.post(path, {"prompt": "x" * 10**5}).status == 400


def test_numbers_that_json_cannot_write_are_found():
    assert is_finite({"a": [[1.0, 2], {"b": "inf"}]})
    assert not is_finite([{"a": [float("nan")]}]) and not is_finite([[-float("inf")]])
