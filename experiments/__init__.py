"""Utility studies on real data: one module a figure or table."""
