"""The network equals independent implementations, is causal, exact with a cache, and starts at the loss of a guess."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from model.cache import KVCache
from model.config import ModelConfig
from model.gpt import GPT
from model.optimization.optimizer import Optimizer
from model.optimization.schedule import OptimizerConfig
from model.rotary import apply_rotary, rotary_frequencies
from tests.families import FAMILIES, SHAPE, make, reference

IDS = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers(family):
    model = make(family)
    theirs = reference(family, model)(IDS).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(model(IDS), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cached_logits_equal_transformers(family):
    model = make(family)
    cache = KVCache(model.config, 3, capacity=48, device=IDS.device)
    pieces = [model(IDS[:, :17], cache)] + [model(IDS[:, t : t + 1], cache) for t in range(17, 40)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), reference(family, model)(IDS).logits, atol=1e-4, rtol=0)


def test_a_cache_and_document_starts_exclude_each_other():
    model = make("modern")
    with pytest.raises(AssertionError, match="one document per row"):
        model(IDS, KVCache(model.config, 3, capacity=48, device=IDS.device), documents=torch.zeros_like(IDS))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cache_equals_one_full_forward_over_random_splits(family):
    model, generator = make(family), torch.Generator().manual_seed(2)
    full = model(IDS)
    for _ in range(5):
        cuts = [0, *torch.randint(1, 40, (4,), generator=generator).sort().values.unique().tolist(), 40]
        cache = KVCache(model.config, 3, capacity=44, device=IDS.device)
        parts = [model(IDS[:, a:b], cache) for a, b in pairwise(cuts)]
        torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=0)
        assert cache.length.tolist() == [40, 40, 40]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_ragged_rows_equal_each_row_by_itself(family):
    model, lengths = make(family), [5, 23, 1]
    cache = KVCache(model.config, 3, capacity=40, device=IDS.device)
    padded = IDS[:, :23].clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 7  # padding that must stay invisible
    first = model(padded, cache)
    cache.length.copy_(torch.tensor(lengths))
    following = torch.stack([IDS[row, length : length + 6] for row, length in enumerate(lengths)])
    decoded = torch.cat([model(following[:, t : t + 1], cache) for t in range(6)], dim=1)
    for row, length in enumerate(lengths):
        alone = model(IDS[row : row + 1, : length + 6])[0]
        torch.testing.assert_close(first[row, :length], alone[:length], atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded[row], alone[length:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_dropped_tokens_leave_no_trace_in_the_cache():
    model = make("modern")
    cache = KVCache(model.config, 3, capacity=40, device=IDS.device)
    model(IDS[:, :10], cache)
    expected = model(IDS[:, 10:14], cache)
    cache.length -= 4
    model(IDS[:, 20:29], cache)
    cache.length -= 9
    torch.testing.assert_close(model(IDS[:, 10:14], cache), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_token_changes_nothing_before_it(family):
    model = make(family)
    before = model(IDS)
    changed = IDS.clone()
    changed[:, 25] = (changed[:, 25] + 1) % 96
    after = model(changed)
    assert torch.equal(after[:, :25], before[:, :25])
    assert not torch.allclose(after[:, 25:], before[:, 25:])


def test_rotary_depends_on_distances_only():
    model = make("modern")
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 2, 1, 16, generator=generator) for _ in range(2))

    def score(i: int, j: int) -> torch.Tensor:
        angles = [model.rotary_at(torch.tensor([position])) for position in (i, j)]
        return (apply_rotary(q, angles[0]) * apply_rotary(k, angles[1])).sum(-1)

    torch.testing.assert_close(score(9, 4), score(30, 25), atol=1e-5, rtol=0)
    assert not torch.allclose(score(9, 4), score(9, 5), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_initial_loss_is_that_of_a_uniform_guess(family):
    torch.manual_seed(0)
    model = GPT(ModelConfig(**(SHAPE | FAMILIES[family])))
    loss = model(IDS[:, :-1], targets=IDS[:, 1:]) / IDS[:, 1:].numel()
    assert abs(loss.item() - math.log(96)) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_one_batch_can_be_overfitted(family, kind):
    torch.manual_seed(0)
    model = GPT(ModelConfig(**(SHAPE | FAMILIES[family] | {"n_layer": 1})))
    config = OptimizerConfig(name=kind, learning_rate=0.01 if kind == "adamw" else 0.05, adamw_learning_rate=0.01)
    optimizer = Optimizer(model, config)
    for _ in range(80):
        loss = model(IDS[:, :-1], targets=IDS[:, 1:]) / IDS[:, 1:].numel()
        loss.backward()
        optimizer.step(1.0, divisor=torch.tensor(1.0), skip=torch.tensor(False))
        optimizer.zero_grad()
    assert loss.item() < 0.5


def test_vocabulary_padding_never_leaves_the_model():
    model = make("modern", vocab_size=65)
    assert model.embed.weight.shape[0] == 128
    assert model(IDS % 65).shape == (3, 40, 65)
    fresh = GPT(model.config)
    assert fresh.embed.weight[65:].abs().sum() == 0


def test_all_errors_in_a_config_are_reported():
    errors = ModelConfig(n_head=5, d_model=64, dropout=1.5, activation="tanh").validate()
    assert len(errors) == 3
    assert "64" in errors[0] and "5" in errors[0]
    assert ModelConfig().validate() == []


def test_a_tied_head_is_not_a_parameter_of_its_own():
    assert "lm_head.weight" not in make("gpt2").state_dict()
    assert "lm_head.weight" in make("modern").state_dict()


@pytest.mark.parametrize(
    "scaling, theirs",
    [
        ([4.0], {"rope_type": "linear", "factor": 4.0}),
        (
            [8.0, 1.0, 4.0, 16.0],
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 16},
        ),
    ],
)  # fmt: skip
def test_scaled_rotary_frequencies_equal_those_of_transformers(scaling, theirs):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shape = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 48}
    config = LlamaConfig(**shape, rope_parameters={"rope_theta": 10_000.0, **theirs})
    assert theirs["rope_type"] in ROPE_INIT_FUNCTIONS
    ours = rotary_frequencies(ModelConfig(**SHAPE, rotary_scaling=scaling))
    torch.testing.assert_close(ours, LlamaRotaryEmbedding(config).inv_freq, rtol=1e-6, atol=0)
    assert not torch.allclose(ours, rotary_frequencies(ModelConfig(**SHAPE)))
