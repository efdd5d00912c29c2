"""Audit the whole pipeline with canaries, in one run.

    python -m experiments.attacks.one_run_audit kronecker --epsilon 1

Canaries are records, in the data or null by fair coins; the data are otherwise a few honest records
that the auditor knows. The auditor sees the released weights (of every round, where all are
released), and guesses every coin. The last line printed is JSON; `holds` says that no lower bound
exceeds the claim. The pipelines:

    kronecker   one round, all weights, Kronecker curvature
    srht        one round, SRHT to 2,000 dimensions, dense curvature
    rounds      fine_tune in 8 rounds, every round's weights seen
    momentum    fine_tune in 8 rounds with momentum and averaging, only the released weights seen
    estimator   PrivateFineTuner in 4 rounds, only the released weights seen
    orthogonal  one round on orthogonal gradients of full norm, no model: the clean worst case
    noiseless   kronecker, but for the noise: the audit must catch it
    fit         model.fit until canaries are known by heart: the audit must catch it

Needs the data sets (environment variable QEXP_DATA). Noise is the reproducible test generator's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.attacks.bounds import judge
from experiments.attacks.pipelines import PIPELINES, Trial, orthogonal
from experiments.attacks.scenes import digits_scene, mislabelled_scene

__all__ = ["audit", "main"]

DELTA = 1e-5


def audit(
    pipeline: str,
    *,
    epsilon: float,
    delta: float = DELTA,
    n_canaries: int,
    n_honest: int,
    seed: int,
    canaries: str = "noise",
) -> dict[str, Any]:
    """Audit a pipeline once."""
    included = np.random.default_rng([seed, 1]).random(n_canaries) < 0.5
    trial = Trial(included=included, epsilon=epsilon, delta=delta, seed=seed)
    if pipeline == "orthogonal":
        attacked = orthogonal(trial)
    else:
        make = mislabelled_scene if canaries == "mislabelled" else digits_scene
        attacked = PIPELINES[pipeline](make(n_canaries, n_honest, seed), trial)
    found = judge(attacked.scores, included, delta=delta)
    claim = attacked.mu
    return {
        "study": "one_run_audit",
        "pipeline": pipeline,
        "kind_of_canaries": "gradients" if pipeline == "orthogonal" else canaries,
        "epsilon_claimed": None if claim is None else epsilon,
        "delta": delta,
        "mu_claimed": claim,
        "seed": seed,
        "clipped_share": attacked.clipped_share,
        **found,
        "holds": None
        if claim is None
        else max(found["mu_lo"], found["mu_lo_independent"]) <= claim
        and max(found["epsilon_lo"], found["epsilon_lo_gdp"]) <= epsilon,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", choices=[*PIPELINES, "orthogonal"])
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--canaries", type=int, default=4000, help="their number (default 4000)")
    parser.add_argument("--honest", type=int, default=100, help="honest records (default 100)")
    parser.add_argument(
        "--kind",
        choices=["noise", "mislabelled"],
        default="noise",
        help="what canaries are made of: images of noise, or real digits with wrong labels",
    )
    parser.add_argument("--delta", type=float, default=DELTA)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    found = audit(
        given.pipeline,
        epsilon=given.epsilon,
        delta=given.delta,
        n_canaries=given.canaries,
        n_honest=given.honest,
        seed=given.seed,
        canaries=given.kind,
    )
    print(json.dumps({**found, "seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
