"""A model's answers: what it is asked, and which examples stand for all of them."""

from __future__ import annotations

import numpy as np

from data.labelled.answers import EXTRA_TOKENS, answer
from data.labelled.examples import Example
from data.labelled.rows import Rows
from data.labelled.templates import CHAT_TEMPLATES, Task
from data.tokenizers.build import TokenizerConfig, build

TOKENIZER = build(TokenizerConfig(kind="byte"), [])


class Silent:
    """Prefers the first label and writes nothing; keeps what it was asked."""

    def label_scores(self, prompts, labels):
        self.prompts = prompts
        return -np.arange(len(prompts) * len(labels), dtype=float).reshape(len(prompts), -1)

    def greedy(self, prompts, *, max_new_tokens, ends=()):
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        return [("", True)] * len(prompts)


def test_a_limited_number_of_answers_has_all_labels_of_a_sorted_file():
    examples = [Example(f"{i}:", f" {label}", label=label) for label in "abcd" for i in range(25)]
    rows = Rows(examples, TOKENIZER, context=20)
    found = answer(Silent(), rows, Task(labels=tuple("abcd")), limit=20)
    assert len(found.right) == 20 and min(np.bincount(found.truth, minlength=4)) >= 2
    again = answer(Silent(), rows, Task(labels=tuple("abcd")), limit=20)
    assert found.groups == again.groups and np.array_equal(found.truth, again.truth)
    assert answer(Silent(), rows, Task(labels=tuple("abcd"))).truth.tolist() == [i // 25 for i in range(100)]


def test_a_prompt_is_read_as_a_whole_even_if_another_example_has_a_long_completion():
    rows = Rows([Example("p" * 30, "a"), Example("q", "b" * 25)], TOKENIZER, context=40)
    model = Silent()
    answer(model, rows, Task())
    assert model.prompts == [list(b"p" * 30), list(b"q")] and model.max_new_tokens == 25 + 1 + EXTRA_TOKENS


def test_the_answer_to_a_chat_is_as_long_as_its_last_one():
    plain = CHAT_TEMPLATES["plain"]
    turns = [("user", "a"), ("assistant", "a long answer"), ("user", "b"), ("assistant", "yes")]
    messages = [{"role": role, "content": content} for role, content in turns]
    model = Silent()
    answer(model, Rows([Example("", "yes", chat=plain.segments(messages))], TOKENIZER, context=90), Task(chat=plain))
    assert model.max_new_tokens == len("yes") + 1 + EXTRA_TOKENS
