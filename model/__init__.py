"""The network and everything that needs torch: training, sampling, the next word, checkpoints."""


class InputError(ValueError):
    """A mistake of the user's. Programs print it as one line with the value, the place and the fix, and exit with 2."""

    user_mistake = True  # programs look for this attribute, so that no package needs to import another's class
