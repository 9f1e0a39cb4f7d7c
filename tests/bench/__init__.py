"""Benchmarks, run by hand; they print ratios against the bare tools."""
