"""From text to batches of token ids: corpora, tokenizers, shards, examples. No torch in here."""


class InputError(ValueError):
    """A mistake of the user's: shown as one line that names the value, the place and the fix; exit status 2."""
