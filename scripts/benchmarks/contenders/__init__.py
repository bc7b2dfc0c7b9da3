"""Other programs that benchmarks run, from a checkout of each."""
