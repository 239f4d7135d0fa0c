"""Measurements that anyone can repeat; what they print is kept in docs/benchmarks.md."""
