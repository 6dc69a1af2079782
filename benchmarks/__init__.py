"""Benchmarks. They are not tests: they are slow, and the results depend on the machine."""
