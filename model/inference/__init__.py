"""Inference: decoding, sampling, constraints, scoring, quantization."""
