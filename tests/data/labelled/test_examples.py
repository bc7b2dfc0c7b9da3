"""Examples: loss is on completions and end tokens only, omissions are counted, and every batch has a target."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from data import InputError
from data.batching.batches import IGNORE
from data.labelled.examples import Example, fingerprint, split_examples
from data.labelled.formats import read_examples
from data.labelled.rows import ExampleBatches, ExampleEvaluation, Rows
from data.tokenizers.build import TokenizerConfig, build


@pytest.fixture(scope="module")
def tokenizer():
    return build(TokenizerConfig(kind="byte"), [])


def batches(examples, tokenizer, *, context=64, batch_size=4, seed=0):
    return ExampleBatches(Rows(examples, tokenizer, context=context), batch_size=batch_size, seed=seed)


def with_loss(batch, tokenizer) -> list[str]:
    """Returns the text of each row's targets, after checking that they are the tokens after the inputs."""
    found = []
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        real = np.flatnonzero(targets != IGNORE)
        if real.size:
            assert np.array_equal(real, np.arange(real[0], real[-1] + 1)) and targets[real[-1]] == tokenizer.end_id
            assert np.array_equal(inputs[real[1:]], targets[real[:-1]])
        found.append(tokenizer.decode(targets[real[:-1]].tolist()))
    return found


def read(batch, tokenizer) -> list[str]:
    """Returns the prompt of each row: the text of the inputs up to the first target."""
    firsts = [np.flatnonzero(targets != IGNORE)[0] for targets in batch.targets]
    return [tokenizer.decode(inputs[: first + 1].tolist()) for inputs, first in zip(batch.inputs, firsts, strict=True)]


EXAMPLES = [
    Example(f"question {i} " + "ü" * i, f"answer {i}" * (i % 3 + 1), place=f"x.jsonl:{i + 1}") for i in range(11)
]


def test_loss_is_on_the_completion_and_the_end_token_only(tokenizer):
    data = batches(EXAMPLES, tokenizer, batch_size=11)
    batch = data.batch(0)
    pairs = set(zip(read(batch, tokenizer), with_loss(batch, tokenizer), strict=True))
    assert pairs == {(example.prompt, example.completion) for example in EXAMPLES}
    assert (
        data.supervised_tokens(0)
        == int((batch.targets != IGNORE).sum())
        == sum(len(example.completion) + 1 for example in EXAMPLES)
    )


def test_an_empty_prompt_is_the_end_token(tokenizer):
    batch = batches([Example("", "yes")], tokenizer, batch_size=1).batch(0)
    assert batch.inputs[0, 0] == tokenizer.end_id and with_loss(batch, tokenizer) == ["yes"]


def test_each_example_comes_once_per_epoch_in_a_new_order(tokenizer):
    data = batches(EXAMPLES, tokenizer)
    assert len(data) == 11 and data.epochs(11) == {"the examples": 4}
    rows = [text for step in range(11) for text in read(data.batch(step), tokenizer)]
    epochs = [rows[i : i + 11] for i in range(0, 44, 11)]
    assert all(Counter(epoch) == Counter(example.prompt for example in EXAMPLES) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_rows_of_all_ranks_make_up_the_global_batch(tokenizer, ranks):
    data = batches(EXAMPLES, tokenizer)
    for step in range(6):
        whole, per_rank = data.batch(step), 4 // ranks
        parts = [data.batch(step, slice(rank * per_rank, (rank + 1) * per_rank)) for rank in range(ranks)]
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
        assert np.array_equal(np.concatenate([part.targets for part in parts]), whole.targets)
        assert whole.inputs.shape[1] in (32, 64)


def test_a_long_prompt_is_truncated_on_the_left_and_counted(tokenizer):
    examples = [Example("0123456789", "abc", place="f:1"), Example("01234", "abc", place="f:2")]
    data = batches(examples, tokenizer, context=8, batch_size=2)
    batch = data.batch(0)
    assert sorted(read(batch, tokenizer)) == ["01234", "56789"] and with_loss(batch, tokenizer) == ["abc", "abc"]
    assert batch.inputs.shape == (2, 8) and data.rows.truncated == ["f:1"] and data.rows.dropped == []


def test_a_completion_that_does_not_fit_is_dropped_and_named(tokenizer):
    fits, exceeds = Example("p", "a" * 7, place="f:1"), Example("p", "a" * 8, place="f:2")
    data = batches([fits, exceeds], tokenizer, context=8)
    assert data.rows.dropped == ["f:2"] and len(data) == 1 and with_loss(data.batch(0), tokenizer) == ["a" * 7] * 4
    with pytest.raises(InputError, match=r"none of the 1 examples.*context=8.*f:2"):
        batches([exceeds], tokenizer, context=8)


def test_every_row_has_a_target(tokenizer):
    generator = np.random.default_rng(0)
    examples = [Example("p" * int(p), "c" * int(c)) for p, c in generator.integers([0, 1], [40, 20], (50, 2))]
    data = batches(examples, tokenizer, context=16, batch_size=3)
    for step in range(60):
        batch = data.batch(step)
        assert (batch.targets != IGNORE).any(axis=1).all()
        assert data.supervised_tokens(step) == int((batch.targets != IGNORE).sum())


@pytest.mark.parametrize("rows", [1, 4])
def test_evaluation_covers_each_example_once(tokenizer, rows):
    evaluation = ExampleEvaluation(Rows(EXAMPLES, tokenizer, context=64))
    found: Counter[str] = Counter()
    targets = 0
    for start in range(0, len(evaluation) + rows, rows):
        batch = evaluation.batch(start, start + rows)
        assert batch.inputs.shape == batch.targets.shape and len(batch.inputs) == rows
        found.update(text for text in with_loss(batch, tokenizer) if text)
        targets += int((batch.targets != IGNORE).sum())
    assert found == Counter(example.completion for example in EXAMPLES)
    assert targets == evaluation.n_targets
    assert evaluation.n_bytes == sum(len(example.completion.encode()) for example in EXAMPLES)


def test_a_batch_is_described_by_file_and_line(tokenizer):
    data = batches(EXAMPLES, tokenizer, batch_size=2)
    first = read(data.batch(1), tokenizer)[0]
    assert next(example.place for example in EXAMPLES if example.prompt == first) in data.describe(1)


def test_reading(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text(
        '{"prompt": "", "completion": " ö", "group": null}\n\n'
        '{"completion": "b", "prompt": "a", "group": "g", "extra": 1}\n'
    )
    assert read_examples(path) == [Example("", " ö", None, f"{path}:1"), Example("a", "b", "g", f"{path}:3")]


@pytest.mark.parametrize(
    "record, message",
    [
        ("{not json", "not JSON"),
        ("[1]", "a JSON list"),
        (json.dumps({"prompt": "a", "completoin": "b"}), "fields 'prompt', 'completoin'; an example is"),
        (json.dumps({"completion": "b"}), "fields 'completion'; an example is"),
        (json.dumps({"prompt": "a", "completion": ""}), "'completion' is empty"),
        (json.dumps({"prompt": 1, "completion": "b"}), "'prompt' is 1"),
        (json.dumps({"prompt": "a", "completion": None}), "'completion' is null"),
        (json.dumps({"prompt": "a", "completion": "b", "group": 7}), "'group' is 7"),
    ],
)
def test_a_bad_line_is_named(tmp_path, record, message):
    path = tmp_path / "e.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + record + "\n")
    with pytest.raises(InputError, match=rf"e\.jsonl:2: .*{message}"):
        read_examples(path)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: No such file"):
        read_examples(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.jsonl: no examples"):
        read_examples(tmp_path / "empty.jsonl")


def test_groups_and_equal_prompts_stay_in_one_split():
    examples = [Example(f"p{i}", "c", group=f"g{i % 10}") for i in range(40)]
    examples += [Example(f"q{i % 10}", f"c{i}") for i in range(40)]
    train, val = split_examples(examples, val_fraction=0.2)
    assert len(val) == 16 and Counter(train) + Counter(val) == Counter(examples)
    for key in (lambda example: example.group, lambda example: example.group or example.prompt):
        assert not {key(e) for e in train if key(e)} & {key(e) for e in val if key(e)}
    with pytest.raises(InputError, match="1 groups"):
        split_examples([Example("same", "a"), Example("same", "b")], val_fraction=0.5)


def test_examples_without_a_prompt_are_split_by_their_completion():
    train, val = split_examples([Example("", text) for text in "abcdefghij"], val_fraction=0.2)
    assert len(train) == 8 and len(val) == 2
    with pytest.raises(InputError, match="val_examples="):
        split_examples([Example("", "a"), Example("", "a")], val_fraction=0.5)


def test_the_fingerprint_holds_what_is_learned_and_how_often():
    examples = [Example("p", "a"), Example("p", "b", place="elsewhere:7")]
    found = {fingerprint(some) for some in (
        examples, examples[::-1], [Example("p", "a", weight=2.0), examples[1]], [examples[0], Example("p", "b")]
    )}  # fmt: skip
    assert len(found) == 3
