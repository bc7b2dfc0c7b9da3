"""The next-word distribution: words over token paths, with certified bounds."""
