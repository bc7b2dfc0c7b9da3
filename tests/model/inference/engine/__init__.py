"""Tests of model/inference/engine."""
