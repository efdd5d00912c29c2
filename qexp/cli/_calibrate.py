"""``qexp calibrate``."""

from __future__ import annotations

import argparse
import math
import sys
from fractions import Fraction
from typing import Any, Final

from qexp._digits import rounded_down, rounded_up
from qexp._json import strict_json
from qexp.cli import _values
from qexp.cli._commands import Commands

__all__ = ["add_to"]

# The ε at a few customary δ, beside the one that was asked for.
_DELTAS: Final = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8)


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "calibrate",
        _calibrate,
        help="translate between epsilon, mu and the noise multiplier",
        description="Give the exact noise that a privacy target takes, or what a given mu is "
        "worth. One record is replaced by a null record, unless it says replace_one.",
        examples=[
            "qexp calibrate --epsilon 1 --delta 1e-5",
            "qexp calibrate --epsilon 1 --delta 1e-5 --rounds 8",
            "qexp calibrate --mu 1 --delta 1e-5 --json",
        ],
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--epsilon", type=_values.positive, help="find the noise for this epsilon")
    target.add_argument("--mu", type=_values.positive, help="say what this mu is worth")
    parser.add_argument(
        "--delta", type=_values.delta, required=True, help="well below 1 / (number of records)"
    )
    parser.add_argument(
        "--rounds", type=_values.rounds, default=1, help="split the budget evenly (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _calibrate(options: argparse.Namespace) -> None:
    figures = _figures(options.epsilon, options.mu, options.delta, options.rounds)
    if options.json:
        print(strict_json(figures, indent=2))
        return
    rows = [
        (
            "privacy",
            f"({rounded_up(figures['epsilon'], 6)}, {options.delta:g})-DP, replace_special",
        ),
        ("mu", rounded_down(figures["mu"], 10)),
        ("mu under replace_one", rounded_down(figures["mu_replace_one"], 10)),
        ("epsilon under replace_one", rounded_up(figures["epsilon_replace_one"], 6)),
        ("noise multiplier (sigma / c)", rounded_up(figures["noise_multiplier"], 10)),
        ("zCDP rho", rounded_up(figures["zcdp_rho"], 6)),
    ]
    if options.rounds > 1:
        rows += [
            (f"mu of each of {options.rounds} rounds", rounded_down(figures["mu_per_round"], 10)),
            ("noise multiplier of each", rounded_up(figures["noise_multiplier_per_round"], 10)),
        ]
    rows += [
        (f"epsilon at delta = {float(delta):g}", rounded_up(value, 6))
        for delta, value in figures["epsilon_at_delta"].items()
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _figures(epsilon: float | None, mu: float | None, delta: float, rounds: int) -> dict[str, Any]:
    from qexp import privacy

    if mu is None:
        assert epsilon is not None
        mu = privacy.calibrate_mu(epsilon, delta)
    else:
        epsilon = privacy.epsilon(delta, mu)
    # Rounds of the same μ compose to √T μ: the largest μ_t of which T are worth no more than μ.
    per_round, _ = privacy.sqrt_bounds(privacy.square(mu) / rounds)
    if per_round < sys.float_info.min:
        raise ValueError(
            f"each round would have a mu below {sys.float_info.min:.3g}, which no noise gives: ask "
            "for fewer rounds, or for a larger epsilon or mu"
        )
    return {
        "epsilon": epsilon,
        "delta": delta,
        "mu": mu,
        "mu_replace_one": 2 * mu,
        "epsilon_replace_one": privacy.epsilon(delta, 2 * mu),
        "noise_multiplier": _noise_to_add(mu),
        "zcdp_rho": mu**2 / 2,
        "rounds": rounds,
        "mu_per_round": per_round,
        "noise_multiplier_per_round": _noise_to_add(per_round),
        "epsilon_at_delta": {
            repr(other): privacy.epsilon(other, mu) for other in sorted({*_DELTAS, delta})[::-1]
        },
    }


def _noise_to_add(mu: float) -> float:
    """Give 1/μ rounded up: who adds so much noise has the privacy that is told."""
    from qexp import privacy

    below = privacy.noise_multiplier(mu)
    return below if Fraction(below) * Fraction(mu) == 1 else math.nextafter(below, math.inf)
