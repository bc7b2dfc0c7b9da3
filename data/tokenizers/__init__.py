"""Tokenizers: kinds, own BPE training, encoding, formats."""
