"""Settings: Hydra yaml, the command line, and what a person sees on the screen."""

import signal


def end_on_interrupt() -> None:
    """Until cli.run(), lets Ctrl-C end the process without a traceback. A program calls it before it imports torch."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
