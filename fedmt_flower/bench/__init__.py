"""Benchmarks: a driver for each claim, and what they share."""
