"""Examples as rows of ids, and batches of them in which only what is to be learned has loss."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from .. import InputError
from ..batching.batches import IGNORE, Batch
from ..batching.order import epoch_order
from ..tokenizers.base import any_of
from ..tokenizers.build import Tokenizer
from ..tokenizers.unknown import unknown_in
from .examples import Example
from .templates import ChatTemplate, Segment

WIDTH = 32  # rows are padded to a multiple of this: few different shapes, little padding
PACKINGS = ("none", "packed")


def encode_segments(examples: Sequence[Sequence[Segment]], tokenizer: Tokenizer) -> list[list[np.ndarray]]:
    """Returns the ids of each segment of each example, int64.

    In an example with special segments, the names of special tokens are tokens there and ordinary text elsewhere.
    """
    names = any_of(tokenizer.special_tokens)
    sizes = []  # pieces in each segment
    firsts = set()  # the pieces that begin an example
    pieces: list[tuple[str, bool, bool]] = []  # text, whether it is the name of a special token, whether it is ordinary
    for segments in examples:
        templated = any(segment.special for segment in segments)
        firsts.add(len(pieces))
        for segment in segments:
            parts = names.split(segment.text) if segment.special else [segment.text]
            pieces += [(part, odd % 2 == 1, templated) for odd, part in enumerate(parts)]
            sizes.append(len(parts))
    prefixed = [
        (tokenizer.prefix + text if text and index in firsts else text, named, templated)
        for index, (text, named, templated) in enumerate(pieces)
    ]
    ordinary = iter(tokenizer.encode_ordinary([text for text, named, templated in prefixed if templated and not named]))
    texts = [text for text, named, templated in prefixed if not templated and not named]
    plain = iter(tokenizer.encode_batch(texts, continued=True))
    ids = []
    for text, named, templated in pieces:
        ids.append(np.array([tokenizer.special_tokens[text]]) if named else next(ordinary if templated else plain))
    found = iter(ids)
    whole = iter([np.concatenate([next(found) for _ in range(size)]).astype(np.int64) for size in sizes])
    return [[next(whole) for _ in segments] for segments in examples]


class Rows:
    """Examples as rows: ids, and a mask of the ids that are learned, with loss. An empty prompt is an end token.

    If the tokenizer has a start token, it stands before every prompt instead. A completion is followed by an end token,
    which is learned too; a chat has the suffixes of its template.
    truncated: places of examples whose beginning was cut because they are longer than the context. dropped: places of
    examples whose completion does not fit the context.
    """

    def __init__(self, examples: Sequence[Example], tokenizer: Tokenizer, *, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        self.examples: list[Example] = []
        self.ids: list[np.ndarray] = []
        self.learned: list[np.ndarray] = []
        self.truncated: list[str] = []
        self.dropped: list[str] = []
        end, start = np.array([tokenizer.end_id]), np.array([tokenizer.stream_start])
        encoded = encode_segments([example.segments for example in examples], tokenizer)
        for example, parts in zip(examples, encoded, strict=True):
            masks = [np.full(len(ids), part.learned) for ids, part in zip(parts, example.segments, strict=True)]
            if not example.chat:
                parts, masks = [*parts, end], [*masks, np.array([True])]
            opens = tokenizer.start_id is not None and not example.chat  # a chat's template has what the model learned
            if opens or masks[0].all() or not len(parts[0]):  # or nothing comes before what is learned
                parts, masks = [start, *parts], [np.array([False]), *masks]
            ids, learned = np.concatenate(parts), np.concatenate(masks)
            excess = len(ids) - context - 1  # a row of context + 1 ids has context inputs
            if excess > 0:
                if excess >= learned.argmax():
                    self.dropped.append(example.place)
                    continue
                self.truncated.append(example.place)
                ids, learned = ids[excess:], learned[excess:]
            self.examples.append(example)
            self.ids.append(ids)
            self.learned.append(learned)
        if not self.ids:
            raise InputError(
                f"none of the {len(examples)} examples has a completion that fits model.context={context}, such as "
                f"{self.dropped[0] if self.dropped else 'none'}; shorten the completions or use a larger context"
            )
        self.lengths = np.array([len(ids) - 1 for ids in self.ids])  # inputs
        self.n_targets = np.array([int(learned.sum()) for learned in self.learned])  # targets with loss

    def __len__(self) -> int:
        return len(self.ids)

    def prompt_ids(self, index: int) -> np.ndarray:
        """Returns the ids before the last part that is learned."""
        not_learned = np.flatnonzero(~self.learned[index])
        return self.ids[index][: not_learned[-1] + 1]

    def batch(self, rows: Sequence[Sequence[int]], *, width: int, document_mask: bool = False) -> Batch:
        """Returns a batch (len(rows), width) whose rows hold the given examples one after another.

        Padding is end tokens as inputs and IGNORE as targets. document_mask: attention stays within each example.
        """
        inputs = np.full((len(rows), width), self.tokenizer.end_id, np.int64)
        targets = np.full_like(inputs, IGNORE)
        doc_starts = np.zeros_like(inputs)
        for row, indices in enumerate(rows):
            at = 0
            for index in indices:
                ids, stop = self.ids[index], at + self.lengths[index]
                inputs[row, at:stop] = ids[:-1]
                targets[row, at:stop] = np.where(self.learned[index][1:], ids[1:], IGNORE)
                doc_starts[row, at:stop] = at
                at = stop
            doc_starts[row, at:] = at
        return Batch(inputs, targets, doc_starts if document_mask else None)

    def width(self, rows: Sequence[Sequence[int]]) -> int:
        """Returns the inputs of the longest row, rounded up to a multiple of WIDTH."""
        longest = max((int(self.lengths[list(indices)].sum()) for indices in rows), default=1)
        return min(self.context, -(-longest // WIDTH) * WIDTH)

    def tokens(self, index: int) -> list[tuple[str, bool]]:
        """Returns the tokens of an example in whole characters, each with whether it is learned."""
        special = {number: name for name, number in self.tokenizer.special_tokens.items()}
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        found = []
        for number, learned in zip(self.ids[index].tolist(), self.learned[index].tolist(), strict=True):
            # A token that ends inside a character is shown with the one that completes it.
            if piece := special.get(number) or decoder.decode(self.tokenizer.token_bytes(number)):
                found.append((piece, learned))
        return found


def chat_prompt(template: ChatTemplate, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of a chat up to where the assistant answers, encoded as in training."""
    example = Example("", "", chat=template.prompt(messages))
    return Rows([example], tokenizer, context=sys.maxsize).ids[0].tolist()


def chat_end(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[str, tuple[int, ...]]:
    """Returns what ends an answer: text, mostly none, and then the first special token of the assistant's suffix."""
    text, *rest = any_of(tokenizer.special_tokens).split(template.roles["assistant"][1])
    return text, tuple(tokenizer.special_tokens[name] for name in rest[:1])


def draws(weights: Sequence[float]) -> np.ndarray:
    """Returns the number of times an epoch draws each example, in proportion to its weight; all 1 if weights are equal.

    The counts add up to the number of examples. Each is its share rounded up or down.
    """
    share = np.asarray(weights, float)
    if not share.sum():
        raise InputError("all weights are 0; give some example a weight above 0")
    ends = np.floor(np.cumsum(share) * len(share) / share.sum() + 0.5).astype(int)
    return np.diff(ends, prepend=0)


def pack(lengths: np.ndarray, indices: Sequence[int], context: int) -> list[list[int]]:
    """Puts whole examples into rows of at most `context` inputs: the longest first, into the fullest row with room."""
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(context + 1)]  # rows by the room that is left
    for index in sorted(indices, key=lambda index: (-lengths[index], index)):
        length = int(lengths[index])
        room = next((room for room in range(length, context + 1) if with_room[room]), None)
        if room is None:
            row, room = len(rows), context
            rows.append([])
        else:
            row = with_room[room].pop()
        rows[row].append(index)
        with_room[room - length].append(row)
    return rows


class ExampleBatches:
    """Training batches of examples, each once per epoch (or as its weight says). Has the interface of WindowBatches.

    packing: "none" gives each example a row of its own; "packed" puts several whole ones in a row, with a document
    mask. one_width: all batches have the width of the longest row, so that a compiled model sees one shape.
    """

    def __init__(
        self, rows: Rows, *, batch_size: int, seed: int, packing: str = "none", one_width: bool = False
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.document_mask = packing == "packed"
        counts = draws([example.weight for example in rows.examples])
        drawn = np.repeat(np.arange(len(rows)), counts).tolist()
        self.bins = pack(rows.lengths, drawn, rows.context) if self.document_mask else [[index] for index in drawn]
        self.context = rows.width(self.bins)  # tokens of the longest row
        self.fixed_width = self.context if one_width else None

    def __len__(self) -> int:
        """The number of rows of an epoch."""
        return len(self.bins)

    def epochs(self, step: int) -> dict[str, float]:
        """Returns the epochs completed after `step` steps."""
        return {"the examples": step * self.batch_size / len(self)}

    def _bins(self, step: int) -> list[list[int]]:
        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return [self.bins[index] for index in epoch_order(rows, size=len(self), seed=self.seed)[1].tolist()]

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Returns these rows of the global batch of a step. All ranks pad to the longest row of the global batch."""
        bins = self._bins(step)
        width = self.fixed_width or self.rows.width(bins)
        return self.rows.batch(bins[rows], width=width, document_mask=self.document_mask)

    def supervised_tokens(self, step: int) -> int:
        """Returns the number of targets with loss in the global batch; never 0."""
        return int(sum(self.rows.n_targets[indices].sum() for indices in self._bins(step)))

    def describe(self, step: int) -> str:
        """Returns where the batch comes from, for error messages."""
        places = [self.rows.examples[index].place for indices in self._bins(step) for index in indices]
        return f"examples {', '.join(places[:8])}{', ...' if len(places) > 8 else ''}"


class ExampleEvaluation:
    """Every example once. Has the interface of WindowEvaluation."""

    def __init__(self, rows: Rows, *, one_width: bool = False) -> None:
        self.rows, self.context = rows, rows.context
        everything = [[index] for index in range(len(rows))]
        self.fixed_width = rows.width(everything) if one_width else None
        texts = [s.text for example in rows.examples for s in example.segments if s.learned and not s.special]
        # None if the tokenizer cannot give the learned texts back.
        self.n_bytes = None if unknown_in(texts, rows.tokenizer) else sum(len(text.encode()) for text in texts)
        self.n_targets = int(rows.n_targets.sum())

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, start: int, stop: int) -> Batch:
        """Returns examples [start, stop). Rows past the last example have no targets."""
        indices: list[list[int]] = [[index] for index in range(start, min(stop, len(self)))]
        empty: list[list[int]] = [[] for _ in range(stop - start - len(indices))]
        return self.rows.batch(indices + empty, width=self.fixed_width or self.rows.width(indices))
