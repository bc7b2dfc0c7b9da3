"""The audit of labelled examples before the first step: what will be learned, what is lost, what looks wrong."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..curation.duplicates import shingle_hashes
from ..tokenizers.build import Tokenizer
from .examples import Example
from .rows import Rows, draws
from .templates import ChatTemplate, unknown_special_tokens

NEAR = 0.8  # Jaccard similarity of the sets of three-word runs
COMMON_SHINGLE = 50  # a run of three words in more examples than this says little
PER_LABEL = 2  # fewer training examples per label on average: not a label set, but free text


@dataclass(frozen=True)
class SplitCounts:
    """One side of the split. Examples whose completion does not fit the context count as dropped only."""

    examples: int
    tokens: int
    learned_tokens: int
    truncated: int  # prompts truncated on the left
    dropped: int
    empty_prompts: int
    duplicates: int  # examples with the prompt and the completion of an earlier one
    contradictions: int  # examples with the prompt of an earlier one and another completion
    near_duplicates: int  # examples that are similar to an earlier one, copies excluded

    @staticmethod
    def of(rows: Rows) -> SplitCounts:
        pairs, prompts = Counter(map(pair, rows.examples)), Counter(e.prompt for e in rows.examples if e.prompt)
        copies = sum(pairs.values()) - len(pairs)
        return SplitCounts(
            examples=len(rows),
            tokens=int((rows.lengths + 1).sum()),
            learned_tokens=int(rows.n_targets.sum()),
            truncated=len(rows.truncated),
            dropped=len(rows.dropped),
            empty_prompts=sum(not example.prompt.strip() for example in rows.examples),
            duplicates=copies,
            contradictions=sum(prompts.values())
            - len(prompts)
            - copies
            + sum(n - 1 for (p, _), n in pairs.items() if not p),
            near_duplicates=len({later for _, later in near_pairs([example.prompt for example in rows.examples])}),
        )


@dataclass(frozen=True)
class Audit:
    train: SplitCounts
    held_out: SplitCounts
    copied: int  # held-out examples that are training examples too
    same_prompt: int  # held-out examples that have the prompt of a training example and another completion
    near_copies: int  # held-out examples that are similar to a training example, copies excluded
    labels: dict[str, tuple[int, int]]  # label -> training and held-out examples, the most frequent first
    problems: list[str]  # reasons not to train
    notes: list[str]  # what deserves a look

    @staticmethod
    def of(train: Rows, held_out: Rows, *, chat: ChatTemplate | None = None) -> Audit:
        """Raises nothing: a set that should be refused has `problems`."""
        both, prompts = set(map(pair, train.examples)), {e.prompt for e in train.examples if e.prompt}
        copied = sum(pair(example) in both for example in held_out.examples)
        same_prompt = sum(e.prompt in prompts and pair(e) not in both for e in held_out.examples)
        texts = [example.prompt for example in (*train.examples, *held_out.examples)]
        near = {b for a, b in near_pairs(texts) if a < len(train) <= b and texts[b] not in prompts}
        counts = [Counter(e.label for e in rows.examples if e.label is not None) for rows in (train, held_out)]
        names = [name for name, _ in (counts[0] + counts[1]).most_common()]
        labels = {name: (counts[0][name], counts[1][name]) for name in names}
        return Audit(
            SplitCounts.of(train),
            SplitCounts.of(held_out),
            copied,
            same_prompt,
            len(near),
            labels,
            [*problems(train, held_out, copied, labels), *chat_problems(train.examples, train.tokenizer, chat)],
            notes(train, held_out, labels),
        )


def pair(example: Example) -> tuple[str, str]:
    return example.prompt, example.completion


def near_pairs(texts: Sequence[str]) -> set[tuple[int, int]]:
    """Returns the pairs (earlier, later) of similar but not equal texts that share an unusual shingle.

    The rarest shingle that two similar texts share is among the rarest fifth of each, so only these are looked up
    (prefix filtering: Chaudhuri, Ganti and Kaushik 2006).
    """
    shingles = [np.unique(shingle_hashes(text)) for text in texts]
    values, counts = np.unique(np.concatenate(shingles), return_counts=True)
    owners: defaultdict[int, list[int]] = defaultdict(list)
    for number, hashes in enumerate(shingles):
        rarest = hashes[np.argsort(counts[np.searchsorted(values, hashes)], kind="stable")]
        for value in rarest[: len(hashes) - int(NEAR * len(hashes)) + 1].tolist():
            owners[value].append(number)
    groups = [numbers for numbers in owners.values() if len(numbers) <= COMMON_SHINGLE]
    found = set()
    for a, b in {(a, b) for numbers in groups for i, b in enumerate(numbers) for a in numbers[:i]}:
        common = len(np.intersect1d(shingles[a], shingles[b], assume_unique=True))
        if common >= NEAR * (len(shingles[a]) + len(shingles[b]) - common) and texts[a] != texts[b]:
            found.add((a, b))
    return found


def problems(train: Rows, held_out: Rows, copied: int, labels: dict[str, tuple[int, int]]) -> list[str]:
    """Returns the reasons to refuse the examples."""
    found = []
    if len(train) < 2:
        found.append("there is only one training example; give at least two, preferably hundreds")
    if copied == len(held_out):
        found.append("every held-out example is also a training example; hold out different ones")
    echoes = sum(e.prompt.strip() == e.completion.strip() for e in train.examples)
    if echoes > len(train) / 2:
        found.append(f"{echoes:,} of {len(train):,} completions only repeat their prompt; check the fields of the file")
    learned = [label for label, (count, _) in labels.items() if count]
    if len(learned) == 1:
        found.append(f"all training examples have the label {learned[0]!r}; give at least two labels")
    if len(learned) > 1 and len(learned) * PER_LABEL > len(train):
        found.append(
            f"{len(learned):,} labels for {len(train):,} training examples are too few; merge labels, or use the "
            "fields prompt and completion for free text"
        )
    completions = sorted({e.completion for e in train.examples if e.label is not None})
    if len({tuple(ids.tolist()) for ids in train.tokenizer.encode_batch(completions)}) < len(completions):
        found.append("two labels have the same tokens; make them different in characters that the tokenizer knows")
    if labels and not any(count and held for count, held in labels.values()):
        found.append("no label of the held-out examples occurs in training; check both files")
    return found


def chat_problems(examples: Sequence[Example], tokenizer: Tokenizer, chat: ChatTemplate | None) -> list[str]:
    """Returns why the chat template cannot end an answer: its special tokens are not in the vocabulary."""
    if chat is None or not any(example.chat for example in examples):
        return []
    if missing := unknown_special_tokens(chat, tokenizer.special_tokens):
        return [
            f"the chat template uses {', '.join(missing)}, which the tokenizer does not have as special tokens; use "
            "chat_template=plain, or pretrain with tokenizer.special_tokens"
        ]
    if not any(name in chat.roles["assistant"][1] for name in tokenizer.special_tokens):
        return ["the assistant's suffix in the chat template holds no special token, so an answer would not end"]
    return []


def notes(train: Rows, held_out: Rows, labels: dict[str, tuple[int, int]]) -> list[str]:
    """Returns what deserves a look, one sentence each."""
    found, examples = [], [*train.examples, *held_out.examples]
    if trailing := sum(
        example.label is None and not example.chat and example.prompt.endswith(" ") for example in examples
    ):
        found.append(
            f"prompts that end in a space: {trailing:,}; tokens include the space before them, so move it to the "
            "completion"
        )
    names = train.tokenizer.special_names
    if typed := sum(bool(names("".join(s.text for s in e.segments if not s.special))) for e in examples):
        if any(example.chat for example in examples) or not train.tokenizer.allow_special:
            found.append(f"examples that contain the name of a special token: {typed:,}; it is read as ordinary text")
    counts = draws([example.weight for example in train.examples])
    if never := sum(not n and e.weight > 0 for n, e in zip(counts, train.examples, strict=True)):
        found.append(f"training examples that are never drawn, because the others have a much larger weight: {never:,}")
    if unseen := [label for label, (count, held) in labels.items() if held and not count]:
        found.append(f"labels that occur only in the held-out examples: {len(unseen):,}, such as {unseen[0]!r}")
    folded: defaultdict[str, list[str]] = defaultdict(list)
    for label in labels:
        folded[" ".join(unicodedata.normalize("NFC", label.lower()).split())].append(label)
    if same := [group for group in folded.values() if len(group) > 1]:
        found.append(f"these labels differ only in case, spaces or composed accents: {', '.join(map(repr, same[0]))}")
    if first := shared_first_token(list(labels), train):
        found.append(
            f"{len(first):,} labels begin with the same token, such as {first[0]!r} and {first[1]!r}; whole labels are "
            "scored, so this is harmless"
        )
    return found


def shared_first_token(labels: Sequence[str], rows: Rows) -> list[str]:
    """Returns the labels whose first token is that of another label."""
    first: defaultdict[int, list[str]] = defaultdict(list)
    completion = {e.label: e.completion for e in rows.examples}
    for label in labels:
        if label in completion:
            first[rows.tokenizer.encode(completion[label])[0]].append(label)
    return [label for group in first.values() if len(group) > 1 for label in group]
