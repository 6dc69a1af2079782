"""Measurements that are no tests: they take time, and their numbers depend on the machine."""
