"""Demonstrations on real data, from pretraining to a private release and what it gained."""

from qexp.demo._run import Curve, DemoResult, run_demo

__all__ = ["Curve", "DemoResult", "run_demo"]
