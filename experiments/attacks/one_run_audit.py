"""Audit the whole pipeline with canaries, in one run.

    python -m experiments.attacks.one_run_audit kronecker --epsilon 1

Canaries are records, in the data or null by fair coins; the data are otherwise a few honest records
that the auditor knows. The auditor sees the released weights (of every round, where all are
released), and guesses every coin. The last line printed is JSON; `holds` says that no lower bound
exceeds the claim: of (ε, δ), and of μ, which for Poisson samples is what holds without the gain of
sampling. The pipelines:

    kronecker   one round, all weights, Kronecker curvature
    srht        one round, SRHT to 2,000 dimensions, dense curvature
    subspace    one round in 200 directions learnt from moves of public records
    subspace_by_turns
                the same with 50 canaries at once, of nearly orthogonal gradients, time and again
    rounds      fine_tune in 8 rounds, every round's weights seen
    momentum    fine_tune in 8 rounds with momentum and averaging, only the released weights seen
    estimator   PrivateFineTuner in 4 rounds, only the released weights seen
    dp_sgd      the rival: 32 steps on Poisson samples of a quarter, only the released weights seen
    orthogonal  one round on orthogonal gradients of full norm, no model: the clean worst case
    noiseless   kronecker, but for the noise: the audit must catch it
    fit         model.fit until canaries are known by heart: the audit must catch it

Needs the data sets (environment variable QEXP_DATA). Noise is the reproducible test generator's.
`python -m experiments all` keeps the audits that docs/attacks.md tells of.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from experiments.attacks.bounds import bound_text, judge
from experiments.attacks.pipelines import PIPELINES, Trial, orthogonal
from experiments.attacks.scenes import digits_scene, mislabelled_scene
from experiments.measurement import Line, Measurement, markdown_table

__all__ = ["MEASUREMENT", "audit", "main"]

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
    found: dict[str, Any] = {**judge(attacked.scores, included, delta=delta)}
    claim = attacked.mu
    if not attacked.is_gaussian:
        # No μ has the claimed ε.
        found |= {"epsilon_lo_gdp": None, "epsilon_lo_gdp_most": None}
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
        and max(found["epsilon_lo"], found["epsilon_lo_gdp"] or 0.0) <= epsilon,
    }


_SEEDS: Final = (0, 1)
_EPSILONS: Final = (1.0, 4.0, 8.0)
_DESCRIBED: Final = {
    "kronecker": "one round, Kronecker curvature",
    "srht": "one round, SRHT to 2,000 dimensions, dense curvature",
    "subspace": "one round, a public subspace of 200 directions",
    "subspace_by_turns": "the same, 50 canaries at once",
    "rounds": "`fine_tune`, 8 rounds, all rounds seen",
    "momentum": "`fine_tune`, 8 rounds with momentum and averaging, the end seen",
    "estimator": "`PrivateFineTuner`, 4 rounds, the end seen",
    "dp_sgd": "DP-SGD, 32 steps on Poisson samples of a quarter, the end seen",
    "orthogonal": "orthogonal gradients, no model",
    "noiseless": "the clipped mean step of `kronecker`, without noise",
    "fit": "an MLP 256-512-10 that learns its records by heart",
}


def _cell(pipeline: str, epsilon: float, seed: int, **changes: Any) -> dict[str, Any]:
    number = 10_000 if pipeline == "orthogonal" else 4000
    plain = {"n_canaries": number, "n_honest": 100, "kind": "noise", "delta": DELTA}
    return {"pipeline": pipeline, "epsilon": epsilon, "seed": seed, **plain, **changes}


def _cells() -> list[dict[str, Any]]:
    private = [
        _cell(pipeline, epsilon, seed)
        for pipeline in (
            "kronecker",
            "srht",
            "subspace",
            "subspace_by_turns",
            "rounds",
            "momentum",
            "estimator",
            "dp_sgd",
            "orthogonal",
        )
        for epsilon in _EPSILONS
        for seed in _SEEDS
    ]
    # What digits that look like others give, and what canaries of any number show at most.
    private += [_cell("kronecker", 8.0, seed, kind="mislabelled") for seed in _SEEDS]
    private += [_cell("orthogonal", 1000.0, 0, n_canaries=120_000, delta=1e-7)]
    plain = [_cell(name, 1.0, 0) for name in ("noiseless", "fit")]
    return [*private, *plain, _cell("fit", 1.0, 0, kind="mislabelled")]


def _run(*, kind: str, **cell: Any) -> Line:
    found = audit(canaries=kind, **cell)
    # What tells cells apart stands in the line already.
    return {name: value for name, value in found.items() if name not in ("study", "seed", "delta")}


def _tables(lines: list[Line]) -> dict[str, str]:
    by_audit: dict[tuple[Any, ...], list[Line]] = defaultdict(list)
    for line in lines:
        names = ("pipeline", "kind", "n_canaries", "delta", "epsilon")
        by_audit[tuple(line[name] for name in names)].append(line)
    bounds = ("epsilon_lo", "mu_lo", "epsilon_lo_gdp", "mu_lo_independent")
    private, caught = [], []
    for (pipeline, kind, number, delta, epsilon), some in by_audit.items():
        name = f"`{pipeline}`" + (" `--kind mislabelled`" if kind == "mislabelled" else "")
        name += f" `--canaries {number}`" if pipeline == "orthogonal" else ""
        name += f" `--delta {delta:g}`" if delta != DELTA else ""
        first = some[0]
        if first["mu_claimed"] is None:
            caught.append(
                [
                    f"{name}: {_DESCRIBED[pipeline]}",
                    f"{100 * first['accuracy']:.1f} %",
                    *(
                        f"{bound_text(first[b], 2)} ({bound_text(first[f'{b}_most'], 2)})"
                        for b in bounds[:3]
                    ),
                ]
            )
            continue
        largest = [_largest([line[bound] for line in some]) for bound in bounds]
        private.append(
            [
                f"{name}: {_DESCRIBED[pipeline]}",
                f"{epsilon:g}",
                *("–" if value is None else bound_text(value, 3) for value in largest),
                f"{first['mu_claimed']:.3f}",
                len(some),
            ]
        )
    heads = ["pipeline", "ε claimed", *(f"`{bound}`" for bound in bounds), "μ claimed", "seeds"]
    tables = {}
    if private:
        tables["audits in one run"] = markdown_table(heads, private)
    if caught:
        heads = ["attacked", "right guesses", *(f"`{bound}` (most)" for bound in bounds[:3])]
        tables["what is caught in one run"] = markdown_table(heads, caught)
    return tables


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known, default=None)


MEASUREMENT: Final = Measurement(
    name="one_run_audit", cells=_cells(), run=_run, page="attacks.md", tables=_tables
)


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
