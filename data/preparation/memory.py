"""Memory: what was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """glibc's malloc keeps freed blocks that lie below used ones; does nothing under another C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
