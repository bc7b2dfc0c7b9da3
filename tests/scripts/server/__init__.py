"""Tests of scripts/server."""
