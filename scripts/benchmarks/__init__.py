"""The benchmarks of `python -m scripts.bench`, one per file."""
