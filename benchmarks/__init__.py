"""Benchmarks of qexp for airspeed velocity; docs/benchmarks.md tells how to run and read them."""
