"""From text to batches of token ids: corpora, tokenizers, shards, examples. Imports no torch."""


class InputError(ValueError):
    """A user's mistake: printed as one line that names the value, the place and the fix; exit status 2."""

    user_mistake = True  # conf/cli recognizes it by this attribute
