"""Benchmarks: each measures one claim against peers and a floor, within one run."""
