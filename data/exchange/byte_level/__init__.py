"""Byte-level vocabularies of other programs, and the proof that ours give the same ids."""
