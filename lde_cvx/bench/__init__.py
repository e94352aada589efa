"""Benchmarks: every figure beside its rivals' in one run, as a table, a CSV and a picture."""
