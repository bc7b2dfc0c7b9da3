"""The decoder: exact with a cache, in ragged rows, from shared beginnings, and as one compiled graph."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from model.device import Compute
from model.inference.decode import Decoder
from model.inference.quantize import prepare_for_decoding
from tests.families import FAMILIES, make

EXACT = Compute.for_decoding("cpu")
IDS = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(1))
TEXTS = [[5, 6, 7, 8, 9], [5, 6, 7], [5, 6, 7, 8, 9], [5, 6, 7, 1, 2, 3, 4]]  # a beginning in common, two are equal


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
    logits = [decoder.read([IDS[0, :9].tolist()]), *(decoder.step(IDS[0, t : t + 1]) for t in range(9, 40))]
    torch.testing.assert_close(torch.cat(logits), model(IDS[:1])[0, 8:], atol=2e-5, rtol=0)
    assert decoder.length.tolist() == [40]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "texts", [TEXTS, [[3, 4]] * 4, [[1], [2, 3], [4], [5]], [[1, 2], [1, 2, 3], [1], [1]]], ids=repr
)
def test_texts_are_read_as_if_each_were_alone(family, texts):
    model = make(family)
    decoder = Decoder(model, rows=4, capacity=20, compute=EXACT)
    decoder.read([[9] * 15] * 4)  # what a row held before leaves no trace
    logits = decoder.read(texts)
    for following in [None, *IDS[0, :3].tolist()]:
        if following is not None:
            ids = torch.tensor([following, following + 1, following + 2, following + 3]) % 96
            texts = [[*text, token] for text, token in zip(texts, ids.tolist(), strict=True)]
            logits = decoder.step(ids)
        assert decoder.length.tolist() == [len(text) for text in texts]
        wanted = torch.stack([last_logits(model, text) for text in texts])
        torch.testing.assert_close(logits, wanted, atol=2e-5, rtol=0)


def test_equal_texts_and_shared_beginnings_are_computed_once(monkeypatch):
    model = make("modern")
    seen = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, cache: seen.append(ids.numel()) or hidden(ids, cache))
    decoder = Decoder(model, rows=8, capacity=40, compute=EXACT)
    decoder.read([[1] * 30] * 8)
    assert seen == [30]
    decoder.read([[1] * 30 + [row] for row in range(8)])
    assert seen[1:] == [30, 8]


def test_extend_equals_steps_and_length_may_be_set_back():
    model = make("llama")
    decoder = Decoder(model, rows=2, capacity=30, compute=EXACT)
    decoder.read([[1, 2, 3], [4, 5]])
    together = decoder.extend(IDS[:2, :6])
    decoder.length.sub_(6)
    alone = torch.stack([decoder.step(IDS[:2, t]) for t in range(6)], dim=1)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


def test_a_full_row_loses_its_last_token_first():
    model = make("gpt2")
    decoder = Decoder(model, rows=1, capacity=4, compute=EXACT)
    decoder.read([[1, 2, 3, 4]])
    torch.testing.assert_close(decoder.step(torch.tensor([7]))[0], last_logits(model, [1, 2, 3, 7]))
    assert decoder.length.tolist() == [4]


def test_a_beginning_read_in_a_narrow_dtype_goes_on_in_it():
    for dtype in ("bfloat16", "int8"):
        compute = Compute.for_decoding("cpu", dtype=dtype)
        model = prepare_for_decoding(make("modern"), compute)
        decoder = Decoder(model, rows=2, capacity=48, compute=compute)
        decoder.read([IDS[row, :20].tolist() for row in (0, 1)])
        stepped = torch.stack([decoder.step(IDS[:2, t]) for t in range(20, 40)], dim=1)
        difference = (stepped.float() - model(IDS[:2])[:, 20:].float()).abs()
        assert difference.max() < 0.5 and difference.mean() < 0.05


def assert_compiled_equals_eager(model, compute, atol):
    model = prepare_for_decoding(copy.deepcopy(model), compute)
    eager = Decoder(model, rows=1, capacity=300, compute=dataclasses.replace(compute, compile=False))
    compiled = Decoder(model, rows=1, capacity=300, compute=compute)
    text = torch.randint(0, 96, (200,), generator=torch.Generator().manual_seed(2))
    for decoder in (compiled, eager):
        decoder.read([text[:10].tolist()])
    for position, token in enumerate(text[10:]):  # past two borders of what a compiled step looks at
        a, b = compiled.step(token[None]), eager.step(token[None])
        assert (a - b).abs().max() < atol, position
    compiled.length.fill_(30)
    eager.length.fill_(30)
    torch.testing.assert_close(compiled.extend(text[None, :5]), eager.extend(text[None, :5]), atol=atol, rtol=0)
    torch.testing.assert_close(compiled.step(text[:1]), eager.step(text[:1]), atol=atol, rtol=0)
    assert compiled.length.tolist() == eager.length.tolist() == [36]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, atol", [("float32", 1e-4), ("bfloat16", 0.5), ("int8", 0.5)])
def test_a_compiled_step_equals_an_eager_one(family, dtype, atol):
    model = make(family, context=320, n_layer=2)
    assert_compiled_equals_eager(model, Compute.for_decoding("cpu", dtype=dtype, compile=True), atol)


@pytest.mark.slow
def test_each_model_and_each_size_has_a_compiled_step_of_its_own():
    compute = Compute.for_decoding("cpu", compile=True)
    for model in (make("gpt2"), make("llama"), make("gpt2", seed=1, n_layer=1)):
        for capacity in (48, 20):
            decoder = Decoder(model, rows=1, capacity=capacity, compute=compute)
            decoder.read([[1, 2, 3]])
            torch.testing.assert_close(
                decoder.step(torch.tensor([4]))[0], last_logits(model, [1, 2, 3, 4]), atol=1e-4, rtol=0
            )
