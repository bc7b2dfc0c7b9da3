"""The tree: a batch of paths in one forward pass gives the logits of full forward passes."""

from __future__ import annotations

import random

import pytest
import torch

from model.device import Compute
from model.next_word.tree import TreePredictor
from tests.families import FAMILIES, make


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tree_gives_the_logits_of_one_full_forward(family):
    model = make(family)
    generator = random.Random(0)
    prompt = [generator.randrange(96) for _ in range(9)]
    predictor = TreePredictor(model, prompt, compute=Compute(torch.device("cpu"), torch.float32, compile=False))
    paths: list[list[int]] = [[]]
    with torch.no_grad():
        torch.testing.assert_close(predictor.root(), model(torch.tensor([prompt]))[0, -1], atol=1e-4, rtol=1e-4)
        for count in (1, 5, 17, 300):  # more than the cache begins with
            parents = [generator.randrange(len(paths)) for _ in range(count)]
            parents = [parent if len(paths[parent]) < 30 else 0 for parent in parents]
            tokens = [generator.randrange(96) for _ in range(count)]
            logits = predictor.expand(parents, tokens)
            new = [[*paths[parent], token] for parent, token in zip(parents, tokens, strict=True)]
            paths += new
            for row in generator.sample(range(count), min(count, 12)):
                full = model(torch.tensor([prompt + new[row]]))[0, -1]
                torch.testing.assert_close(logits[row], full, atol=1e-4, rtol=1e-4)
