"""Commands: python -m scripts.NAME."""

import sys

from conf import end_on_interrupt

if sys.argv[0] == "-m":  # Python is about to import one of them, to run it
    end_on_interrupt()
