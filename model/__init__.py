"""The network and everything that needs torch: model, cache, sampling, optimizers, checkpoints."""


class InputError(ValueError):
    """A mistake of the user's: shown as one line that names the value, the place and the fix; exit status 2."""

    user_mistake = True  # conf/cli recognises it by this attribute
