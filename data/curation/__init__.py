"""Curation: which documents and lines are left out, and why."""
