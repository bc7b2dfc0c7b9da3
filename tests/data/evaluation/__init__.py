"""Tests of data/evaluation."""
