"""Label scores equal the sum of log-probabilities of one plain forward per label, and labels are disjoint events."""

from __future__ import annotations

import pytest
import torch

from model import InputError
from model.device import Compute
from model.inference import classify
from model.inference.classify import label_log_probabilities
from tests.families import FAMILIES, make

CPU = Compute(torch.device("cpu"), torch.float32, compile=False)
END = 0
LABELS = [[3, END], [3, 4, END], [3, 4, 5, END], [7, END], [8, 9, 3, END]]  # some are the beginning of others


def some_ids(seed: int, length: int) -> list[int]:
    return torch.randint(1, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_sum_over_all_tokens_of_the_label(family, monkeypatch):
    monkeypatch.setattr(classify, "TOKENS_PER_BATCH", 100)  # several batches
    model = make(family)
    context = model.config.context
    prompts = [some_ids(seed, length) for seed, length in enumerate((1, 5, 9, 9, 20, context, context + 30))]
    prompts.append(prompts[1])
    found = label_log_probabilities(model, prompts, LABELS, compute=CPU)
    for row, prompt in enumerate(prompts):
        kept = prompt[-(context - 3) :]  # room for the longest label's three tokens
        for column, label in enumerate(LABELS):
            with torch.no_grad():
                log_p = model(torch.tensor([[*kept, *label[:-1]]]))[0].double().log_softmax(-1)
            expected = sum(float(log_p[len(kept) - 1 + i, token]) for i, token in enumerate(label))
            assert float(found[row, column]) == pytest.approx(expected, abs=1e-5)


def test_short_prompts_are_few_enough_for_their_logits(monkeypatch):
    rows, prefill = [], classify.Decoder.prefill
    monkeypatch.setattr(classify.Decoder, "prefill", lambda self, some: rows.append(len(some)) or prefill(self, some))
    monkeypatch.setattr(classify, "LOGITS_AT_ONCE", 300)
    model = make("modern")
    prompts = [some_ids(seed, 3) for seed in range(8)]
    found = label_log_probabilities(model, prompts, LABELS, compute=CPU)
    assert rows == [3, 3, 2] and model.config.vocab_size == 96
    monkeypatch.undo()
    assert torch.allclose(found, label_log_probabilities(model, prompts, LABELS, compute=CPU), atol=1e-5)


def test_labels_never_sum_to_more_than_one():
    found = label_log_probabilities(make("modern"), [some_ids(1, 12)], LABELS, compute=CPU)
    every_token = label_log_probabilities(
        make("modern"), [some_ids(1, 12)], [[token, END] for token in range(1, 96)] + [[END]], compute=CPU
    )
    assert 0 < found.exp().sum() < 1 and every_token.exp().sum() < 1


def test_a_label_longer_than_the_context_and_broken_weights_are_refused():
    model = make("modern")
    with pytest.raises(InputError, match="a label has 500 tokens"):
        label_log_probabilities(model, [[1]], [[*[2] * 500, END]], compute=CPU)
    with torch.no_grad():
        model.blocks[0].mlp.up.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="finite"):
        label_log_probabilities(model, [[1]], LABELS, compute=CPU)
