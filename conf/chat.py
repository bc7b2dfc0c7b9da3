"""The interactive prompt: lines in, text out, a few commands."""
