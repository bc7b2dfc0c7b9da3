"""Labelled examples: prompts with completions, as batches in which only the completion and the end token have loss."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import InputError
from ..batching.batches import IGNORE, Batch
from ..batching.order import epoch_order
from ..corpus.jsonl import json_lines
from ..tokenizers.build import Tokenizer
from ..tokenizers.unknown import NEW_MODEL, CharacterSet, unknown_in, unknown_note
from .fields import check_fields

WIDTH = 32  # rows are padded to a multiple of this: few different shapes, little padding


@dataclass(frozen=True)
class Example:
    prompt: str
    completion: str
    group: str | None = None  # examples of one group stay in one split
    place: str = "example"  # file:line, for messages


def read_examples(path: str | Path) -> list[Example]:
    """Reads lines like {"prompt": "2+2=", "completion": "4"}, with an optional "group"; ignores other fields.

    Raises InputError with file and line.
    """
    examples = []
    for number, record in json_lines(Path(path).expanduser()):
        place = f"{path}:{number}"
        required = ("prompt", "completion")
        check_fields(record, place, required=required, strings=(*required, "group"))
        if not record["completion"]:
            raise InputError(f"{place}: the completion is empty; write one, or remove the line")
        examples.append(Example(record["prompt"], record["completion"], record.get("group"), place))
    if not examples:
        form = '{"prompt": "...", "completion": "..."}'
        raise InputError(f"{path}: no examples; write one JSON object per line: {form}")
    return examples


def write_examples(examples: Sequence[Example], path: Path) -> None:
    """Writes a file that read_examples() can read."""
    rows = [{"prompt": e.prompt, "completion": e.completion, "group": e.group} for e in examples]
    lines = [json.dumps({key: value for key, value in row.items() if value is not None}) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def fingerprint(examples: Sequence[Example]) -> str:
    """Returns the sha256 of all prompts and completions in their order, whichever file they come from."""
    content = [(example.prompt, example.completion) for example in examples]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def split_examples(examples: Sequence[Example], *, val_fraction: float) -> tuple[list[Example], list[Example]]:
    """Returns (training, validation). Holds out whole groups; without one, examples with the same prompt are a group.

    Examples without a prompt are grouped by their completion. Groups are chosen by a hash, so the order of the file
    does not matter. Raises InputError for fewer than two groups.
    """

    def group(example: Example) -> bytes:
        text = ("prompt", example.prompt) if example.prompt else ("completion", example.completion)
        key = text if example.group is None else ("group", example.group)
        return hashlib.sha256(repr(key).encode()).digest()

    groups = sorted({group(example) for example in examples})
    if not 0 < val_fraction < 1 or len(groups) < 2:
        raise InputError(
            f"cannot hold out val_fraction={val_fraction} of {len(groups)} groups of examples; "
            "at least 2 groups (different prompts or group fields) and a fraction between 0 and 1 are needed; "
            "or name held-out examples with val_examples="
        )
    held_out = set(groups[: min(len(groups) - 1, max(1, round(val_fraction * len(groups))))])
    return (
        [example for example in examples if group(example) not in held_out],
        [example for example in examples if group(example) in held_out],
    )


def note_overlap(train: Sequence[Example], val: Sequence[Example]) -> list[str]:
    """Returns a message if held-out examples are also training examples, or share their prompts."""
    both, prompts = {(e.prompt, e.completion) for e in train}, {e.prompt for e in train if e.prompt}
    same = sum((e.prompt, e.completion) in both for e in val)
    shared = sum(e.prompt in prompts for e in val)
    if not same and not shared:
        return []
    return [
        f"warning: {same:,} of {len(val):,} held-out examples are training examples too, {shared:,} have a prompt that "
        "training has; the validation loss is too low for new prompts"
    ]


def note_unknown(examples: Sequence[Example], tokenizer: CharacterSet, place: str) -> list[str]:
    """Returns a message if the tokenizer does not know all characters of the examples, which `place` names."""
    unknown = unknown_in((text for e in examples for text in (e.prompt, e.completion)), tokenizer)
    learned = unknown_in((example.completion for example in examples), tokenizer)
    if not unknown:
        return []
    fix = f"{learned.total():,} of them are in completions, which the model cannot learn to write; {NEW_MODEL}"
    return [unknown_note(unknown, place, fix=fix if learned else NEW_MODEL)]


class _Rows:
    """Examples as rows of ids: prompt, completion, end token. An empty prompt is an end token.

    truncated: places of examples whose prompt was truncated on the left. dropped: places of examples whose completion
    does not fit the context.
    """

    def __init__(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int, one_width: bool) -> None:
        self.tokenizer, self.context, self.one_width = tokenizer, context, one_width
        self.examples: list[Example] = []
        self.rows: list[np.ndarray] = []
        self.prompt_lengths: list[int] = []
        self.truncated: list[str] = []
        self.dropped: list[str] = []
        end = np.array([tokenizer.end_id])
        prompts = tokenizer.encode_batch([example.prompt for example in examples])
        completions = tokenizer.encode_batch([example.completion for example in examples])
        for example, prompt, completion in zip(examples, prompts, completions, strict=True):
            prompt = prompt if len(prompt) else end
            room = context - len(completion)  # for the prompt: a row of context + 1 ids has context inputs
            if room < 1:
                self.dropped.append(example.place)
                continue
            if len(prompt) > room:
                self.truncated.append(example.place)
                prompt = prompt[-room:]
            self.examples.append(example)
            self.rows.append(np.concatenate([prompt, completion, end]).astype(np.int64))
            self.prompt_lengths.append(len(prompt))
        if not self.rows:
            raise InputError(
                f"none of the {len(examples)} examples has a completion that fits model.context={context}, such as "
                f"{self.dropped[0] if self.dropped else 'none'}; shorten the completions or use a larger context"
            )
        self.n_targets = np.array([len(row) for row in self.rows]) - self.prompt_lengths  # targets with loss, per row

    def batch(self, indices: Sequence[int], *, width: int, rows: int) -> Batch:
        """Returns these examples, padded with end tokens as inputs and IGNORE as targets to shape (rows, width)."""
        inputs = np.full((rows, width), self.tokenizer.end_id, np.int64)
        targets = np.full_like(inputs, IGNORE)
        for i, index in enumerate(indices):
            ids, prompt_length = self.rows[index], self.prompt_lengths[index]
            inputs[i, : len(ids) - 1] = ids[:-1]
            targets[i, prompt_length - 1 : len(ids) - 1] = ids[prompt_length:]
        return Batch(inputs, targets)

    def width(self, indices: Sequence[int]) -> int:
        rows = self.rows if self.one_width else [self.rows[index] for index in indices]
        longest = max((len(row) - 1 for row in rows), default=1)
        return min(self.context, -(-longest // WIDTH) * WIDTH)


class ExampleBatches:
    """Training batches of examples, each exactly once per epoch. Has the interface of WindowBatches.

    one_width: pad all batches to the longest example, so that a compiled model sees one shape.
    """

    document_mask = False  # a row holds one example

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        *,
        context: int,
        batch_size: int,
        seed: int,
        one_width: bool = False,
    ) -> None:
        self._rows = _Rows(examples, tokenizer, context, one_width)
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.truncated, self.dropped = self._rows.truncated, self._rows.dropped

    def __len__(self) -> int:
        return len(self._rows.rows)

    def epochs(self, step: int) -> dict[str, float]:
        """Returns the epochs completed after `step` steps."""
        return {"the examples": step * self.batch_size / len(self)}

    def _indices(self, step: int) -> list[int]:
        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return epoch_order(rows, size=len(self), seed=self.seed)[1].tolist()

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Returns these rows of the global batch of a step. All ranks pad to the longest row of the global batch."""
        indices = self._indices(step)
        return self._rows.batch(indices[rows], width=self._rows.width(indices), rows=len(indices[rows]))

    def supervised_tokens(self, step: int) -> int:
        """Returns the number of targets with loss in the global batch; never 0."""
        return int(self._rows.n_targets[self._indices(step)].sum())

    def describe(self, step: int) -> str:
        """Returns where the batch comes from, for error messages."""
        places = [self._rows.examples[index].place for index in self._indices(step)]
        return f"examples {', '.join(places[:8])}{', ...' if len(places) > 8 else ''}"

    def preview(self, k: int = 3) -> str:
        """Returns the first k examples token by token, in whole characters: the prompt, and the part with loss."""
        tokenizer = self._rows.tokenizer
        special = {number: name for name, number in tokenizer.special_tokens.items()}

        def show(ids: np.ndarray) -> str:
            pieces, decoder = [], codecs.getincrementaldecoder("utf-8")("replace")
            for number in ids.tolist():
                # A token that ends inside a character is shown with the one that completes it.
                if piece := special.get(number) or decoder.decode(tokenizer.token_bytes(number)):
                    pieces.append(piece if number in special else repr(piece)[1:-1])
            return "|".join(pieces)

        lines = []
        for index, example in enumerate(self._rows.examples[:k]):
            ids, prompt_length = self._rows.rows[index], self._rows.prompt_lengths[index]
            lines.append(f"{example.place}: {len(ids)} tokens, {len(ids) - prompt_length} of them with loss")
            lines += [f"  prompt:    {show(ids[:prompt_length])}", f"  with loss: {show(ids[prompt_length:])}"]
        return "\n".join(lines)


class ExampleEvaluation:
    """Every example once. Has the interface of WindowEvaluation."""

    def __init__(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, context: int, one_width: bool = False
    ) -> None:
        self._rows = _Rows(examples, tokenizer, context, one_width)
        self.context = context
        self.truncated, self.dropped = self._rows.truncated, self._rows.dropped
        self.n_bytes: int | None = None  # if the tokenizer cannot give the completions back
        if not unknown_in((example.completion for example in self._rows.examples), tokenizer):
            self.n_bytes = sum(len(example.completion.encode()) for example in self._rows.examples)
        self.n_targets = int(self._rows.n_targets.sum())

    def __len__(self) -> int:
        return len(self._rows.rows)

    def batch(self, start: int, stop: int) -> Batch:
        """Returns examples [start, stop). Rows past the last example have no targets."""
        indices = range(start, min(stop, len(self)))
        return self._rows.batch(indices, width=self._rows.width(indices), rows=stop - start)
