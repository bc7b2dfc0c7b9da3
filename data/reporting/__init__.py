"""Reporting: statistics of a corpus and findings with suggestions."""
