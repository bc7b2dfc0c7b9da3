"""trainable= freezes everything but the parameters that its patterns name."""

from __future__ import annotations

import pytest

from model import InputError
from model.training.trainable import train_only
from tests.families import make


def trained(family: str, *patterns: str) -> list[str]:
    model = make(family)
    train_only(model, patterns)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def every(family: str) -> list[str]:
    return [name for name, _ in make(family).named_parameters()]


@pytest.mark.parametrize(
    "pattern, starts",
    [("blocks.0", "blocks.0."), ("blocks.-1", "blocks.2."), ("blocks.-1:", "blocks.2."), ("blocks.:1", "blocks.0.")],
)
def test_blocks_are_counted_as_in_python(pattern, starts):
    assert trained("modern", pattern) == [name for name in every("modern") if name.startswith(starts)]
    assert trained("modern", "blocks.-3:") == [name for name in every("modern") if name.startswith("blocks.")]


def test_groups_and_wildcards_add_up():
    names = every("gpt2")
    assert trained("gpt2", "all") == names
    assert trained("gpt2", "biases") == [name for name in names if name.endswith(".bias")]
    both = trained("gpt2", "norms", "*.mlp.up.weight")
    assert both == [name for name in names if "norm" in name or name.endswith(".mlp.up.weight")] and len(both) > 3
    assert trained("modern", "head") == ["lm_head.weight"]


@pytest.mark.parametrize(
    "family, pattern",
    [
        *(("modern", "norms"), ("modern", "blokcs.0"), ("modern", "blocks.")),
        *(("modern", "blocks.7"), ("modern", "blocks.-7"), ("modern", "blocks.0-1")),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(family, pattern):
    with pytest.raises(InputError, match=f"trainable={pattern} names no parameter"):
        trained(family, pattern)


def test_a_tied_head_is_trained_as_the_embedding():
    with pytest.raises(InputError, match="tied to the embedding"):
        trained("gpt2", "head")
