"""What reading another program's tokenizer gives: a tokenizer of ours, its chat template and what was said."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import InputError
from ..labelled.templates import ChatTemplate
from ..tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Imported:
    """A tokenizer that gives the ids of the one that was read."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None = None  # None: there was none, or it is of no known form; the notes say which
    notes: list[str] = field(default_factory=list)  # one line each, for the person who imports

    def check_size(self, vocab_size: int) -> None:
        """Raises InputError if the tokenizer has an id that a model with vocab_size embeddings does not know."""
        if self.tokenizer.vocab_size > vocab_size:
            last = self.tokenizer.vocab_size - 1
            raise InputError(
                f"the tokenizer has the token id {last}, but the model's vocab_size is {vocab_size}: "
                "they are not of the same model"
            )

    def filled(self, vocab_size: int) -> Imported:
        """The tokenizer for a model whose embedding has more rows: ids without a token get names as special tokens."""
        self.check_size(vocab_size)
        tokenizer, first = self.tokenizer, self.tokenizer.vocab_size
        if first == vocab_size:
            return self
        about = tokenizer.fields()
        about["special_tokens"] = {f"<|unused_{i}|>": i for i in range(first, vocab_size)} | about["special_tokens"]
        filled = type(tokenizer).restore(about, tokenizer.model)
        for name in ("allow_special", "start_id", "end_name"):
            setattr(filled, name, getattr(tokenizer, name))
        note = f"the model has {vocab_size - first} embeddings beyond the tokenizer's {first} tokens: unused ids"
        return Imported(filled, self.chat, [*self.notes, note])
