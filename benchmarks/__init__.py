"""Benchmarks: numbers of speed on this machine. They assert nothing."""
