"""Attacks on released weights: lower bounds on the privacy loss, to hold against the claim."""
