"""Decisions, as pure functions from values to values: no torch, Flower, GPU, clock or file."""
