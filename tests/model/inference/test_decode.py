"""The decoder: exact with a cache, in ragged rows and with shared prefixes."""

from __future__ import annotations

import pytest
import torch

from model.device import Compute
from model.inference.decode import Decoder
from model.inference.quantize import prepare_for_decoding
from tests.families import FAMILIES, make

EXACT = Compute.for_decoding("cpu")
IDS = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(1))
TEXTS = [[5, 6, 7, 8, 9], [5, 6, 7], [5, 6, 7, 8, 9], [5, 6, 7, 1, 2, 3, 4]]  # a shared prefix, two are equal


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def last_logits(model, text):
    return model(torch.tensor([text]))[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_one_full_forward(family):
    model = make(family)
    decoder = Decoder(model, rows=1, capacity=48, compute=EXACT)
    logits = [decoder.prefill([IDS[0, :9].tolist()]), *(decoder.step(IDS[0, t : t + 1]) for t in range(9, 40))]
    torch.testing.assert_close(torch.cat(logits), model(IDS[:1])[0, 8:], atol=2e-5, rtol=0)
    assert decoder.cache.length.tolist() == [40]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "texts", [TEXTS, [[3, 4]] * 4, [[1], [2, 3], [4], [5]], [[1, 2], [1, 2, 3], [1], [1]]], ids=repr
)
def test_prompts_are_read_as_if_each_were_alone(family, texts):
    model = make(family)
    decoder = Decoder(model, rows=4, capacity=20, compute=EXACT)
    decoder.prefill([[9] * 15] * 4)  # must leave no trace
    logits = decoder.prefill(texts)
    for following in [None, *IDS[0, :3].tolist()]:
        if following is not None:
            ids = torch.tensor([following, following + 1, following + 2, following + 3]) % 96
            texts = [[*text, token] for text, token in zip(texts, ids.tolist(), strict=True)]
            logits = decoder.step(ids)
        assert decoder.cache.length.tolist() == [len(text) for text in texts]
        wanted = torch.stack([last_logits(model, text) for text in texts])
        torch.testing.assert_close(logits, wanted, atol=2e-5, rtol=0)


def test_equal_prompts_and_shared_prefixes_are_computed_once(monkeypatch):
    model = make("modern")
    seen = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, cache: seen.append(ids.numel()) or hidden(ids, cache))
    decoder = Decoder(model, rows=8, capacity=40, compute=EXACT)
    decoder.prefill([[1] * 30] * 8)
    assert seen == [30]
    decoder.prefill([[1] * 30 + [row] for row in range(8)])
    assert seen[1:] == [30, 8]


def test_extend_equals_steps_and_length_may_be_lowered():
    model = make("llama")
    decoder = Decoder(model, rows=2, capacity=30, compute=EXACT)
    decoder.prefill([[1, 2, 3], [4, 5]])
    together = decoder.extend(IDS[:2, :6])
    decoder.cache.length.sub_(6)
    alone = torch.stack([decoder.step(IDS[:2, t]) for t in range(6)], dim=1)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


def test_a_full_row_replaces_its_newest_token():
    model = make("gpt2")
    decoder = Decoder(model, rows=1, capacity=4, compute=EXACT)
    decoder.prefill([[1, 2, 3, 4]])
    torch.testing.assert_close(decoder.step(torch.tensor([7]))[0], last_logits(model, [1, 2, 3, 7]))
    assert decoder.cache.length.tolist() == [4]


def test_prefill_and_steps_agree_in_low_precision():
    for dtype in ("bfloat16", "int8"):
        compute = Compute.for_decoding("cpu", dtype=dtype)
        model = prepare_for_decoding(make("modern"), compute)
        decoder = Decoder(model, rows=2, capacity=48, compute=compute)
        decoder.prefill([IDS[row, :20].tolist() for row in (0, 1)])
        stepped = torch.stack([decoder.step(IDS[:2, t]) for t in range(20, 40)], dim=1)
        difference = (stepped.float() - model(IDS[:2])[:, 20:].float()).abs()
        assert difference.max() < 0.5 and difference.mean() < 0.05
