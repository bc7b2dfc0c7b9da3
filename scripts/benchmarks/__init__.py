"""The benchmarks of `python -m scripts.bench`, one a file."""
