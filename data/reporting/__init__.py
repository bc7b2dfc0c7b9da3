"""Reporting: statistics of a corpus and the findings that need a decision."""
