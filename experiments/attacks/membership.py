"""Infer who was in the data, from the released weights: LiRA on a few private digits.

    python -m experiments.attacks.membership --epsilon 1 [--planned]
    python -m experiments.attacks.membership --non-private

Likelihood ratios of Carlini, Chien, Nasr, Song, Terzis and Tramèr 2022, "Membership inference
attacks from first principles", online: shadow models are fine-tuned on random halves of the same
records; for each record, a statistic of the models that had it and of those that had not is
fitted by a normal each, and a target model's statistic is judged by their ratio. Two statistics:

    confidence  log p/(1 - p) of the record's label
    gradient    -<θ - θ₀, g>, g the record's gradient at θ₀: what canaries are scored by

qexp fine-tunes in four rounds in the whole space, or as the study planned for as many digits.
Every record is in a target's data by a fair coin, or null; target and shadow models are drawn
alike. Thresholds come from the first half of the targets, rates from the second; intervals are
Clopper and Pearson's, as if all (target, record) pairs were independent. The last line printed is
JSON. Needs the data sets (environment variable QEXP_DATA). Noise is the reproducible test
generator's. `python -m experiments all` keeps the attacks that docs/attacks.md tells of.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.attacks.bounds import clopper_pearson
from experiments.attacks.logits import label_logits
from experiments.fine_tuning import directions, schedule_of
from experiments.measurement import Line, Measurement, markdown_table
from experiments.study.results import Store
from experiments.tasks import TASKS
from qexp import IdentityCurvature, KroneckerCurvature, Schedule, calibrate_mu, fine_tune
from qexp.bits import insecure_test_generator
from qexp.curvature import Curvature
from qexp.measures import area_under_roc
from qexp.models import MultilayerPerceptron
from qexp.projections import Projection

DELTA = 1e-5
STATISTICS = ("confidence", "gradient")
FALSE_POSITIVE_RATES = (0.001, 0.01)
ROUNDS = 4
CLIPPING_NORM = 3.0
DAMPING = 1e-2
# η over μ: the less budget, the shorter the steps. It scales noise and signal alike.
STEP_PER_MU = 0.3

Train = Callable[[NDArray[np.bool_], int], MultilayerPerceptron]


@dataclass(frozen=True, eq=False, kw_only=True)
class Models:
    """Who was in which model's data (models, records), and each statistic, of the same shape."""

    members: NDArray[np.bool_]
    statistics: dict[str, NDArray[np.float64]]

    def part(self, which: slice) -> Models:
        return Models(
            members=self.members[which],
            statistics={name: values[which] for name, values in self.statistics.items()},
        )


def train_models(
    pretrained: MultilayerPerceptron,
    X: NDArray[Any],
    y: NDArray[Any],
    train: Train,
    *,
    n_models: int,
    seed: int,
) -> Models:
    """Train models on random halves, and keep their statistics of all records."""
    rng = np.random.default_rng(seed)
    members = rng.random((n_models, len(y))) < 0.5
    gradients = np.concatenate([b.copy() for b in pretrained.gradient_blocks(X, y).blocks()])
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in STATISTICS}
    for number, inside in enumerate(members):
        model = train(inside, seed + number)
        values["confidence"].append(label_logits(model, X, y))
        step = model.weights - pretrained.weights
        values["gradient"].append(-(gradients @ step).astype(np.float64))
    return Models(
        members=members, statistics={name: np.array(rows) for name, rows in values.items()}
    )


def likelihood_ratios(shadow: Models, target: Models, name: str) -> NDArray[np.float64]:
    """Return log N(φ; in) - log N(φ; out) of all targets' records, normals fitted to shadows."""

    def log_density(members: NDArray[np.bool_]) -> NDArray[np.float64]:
        values = np.where(members, shadow.statistics[name], np.nan)
        mean, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0, ddof=1)
        density: NDArray[np.float64] = stats.norm.logpdf(
            target.statistics[name], mean, np.maximum(spread, 1e-12)
        )
        return density

    return log_density(shadow.members) - log_density(~shadow.members)


def rates(
    scores: NDArray[np.float64], members: NDArray[np.bool_], mu: float | None
) -> dict[str, Any]:
    """Return AUC and, at thresholds chosen on the first half of the targets, rates on the second.

    A μ-GDP mechanism has TPR ≤ Φ(Φ⁻¹(FPR) + μ) (Dong, Roth and Su 2022), also on average over
    records, since that is concave.
    """
    half = len(scores) // 2
    first, first_in = scores[:half].ravel(), members[:half].ravel()
    second, second_in = scores[half:].ravel(), members[half:].ravel()
    found: dict[str, Any] = {"auc": round(area_under_roc(members.ravel(), scores.ravel()), 4)}
    if mu is not None:
        found["auc_most"] = round(float(stats.norm.cdf(mu / math.sqrt(2))), 4)
    for level in FALSE_POSITIVE_RATES:
        threshold = np.quantile(first[~first_in], 1 - level)
        above = second > threshold
        hits, n_in = int(np.sum(above & second_in)), int(np.sum(second_in))
        alarms, n_out = int(np.sum(above & ~second_in)), int(np.sum(~second_in))
        at: dict[str, Any] = {
            "fpr": round(alarms / n_out, 5),
            "fpr_interval": [round(float(end), 5) for end in clopper_pearson(alarms, n_out)],
            "tpr": round(hits / n_in, 5),
            "tpr_interval": [round(float(end), 5) for end in clopper_pearson(hits, n_in)],
        }
        if mu is not None:
            at["tpr_most"] = round(gdp_true_positives(level, mu), 5)
            at["tpr_most_at_fpr"] = round(gdp_true_positives(alarms / n_out, mu), 5)
            at["holds"] = at["tpr_interval"][0] <= gdp_true_positives(at["fpr_interval"][1], mu)
        found[f"fpr_{level:g}"] = at
    return found


def gdp_true_positives(false_positives: float, mu: float) -> float:
    """Return the largest TPR at a FPR against μ-GDP."""
    return float(stats.norm.cdf(stats.norm.ppf(false_positives) + mu))


def private_training(
    pretrained: MultilayerPerceptron,
    X: NDArray[Any],
    y: NDArray[Any],
    X_public: NDArray[Any],
    *,
    epsilon: float,
) -> Train:
    curvature = KroneckerCurvature.from_model(pretrained, X_public, damping=DAMPING)
    schedule = Schedule(
        rounds=ROUNDS,
        clipping_norm=CLIPPING_NORM,
        step_size=STEP_PER_MU * calibrate_mu(epsilon, DELTA),
        damping=DAMPING,
    )
    return _tuning(pretrained, X, y, schedule, curvature, None, epsilon)


def planned_training(X: NDArray[Any], y: NDArray[Any], *, epsilon: float) -> Train:
    """Train as the study planned for so many digits, in a learnt subspace where it chose one.

    Raises
    ------
    ValueError
        If the study has no plan for so many digits at this ε.
    """
    name = f"mnist_few_{len(X)}"
    schedule, subspace = schedule_of(Store().planned(name, "qexp", epsilon, DELTA))
    task = TASKS[name](0)
    if subspace is None:
        X_public = task.public_records()[0]
        whole = KroneckerCurvature.from_model(task.model, X_public, damping=schedule.damping)
        return _tuning(task.model, X, y, schedule, whole, None, epsilon)
    within = directions(task).subspace(subspace)
    return _tuning(task.model, X, y, schedule, IdentityCurvature(subspace), within, epsilon)


def _tuning(
    pretrained: MultilayerPerceptron,
    X: NDArray[Any],
    y: NDArray[Any],
    schedule: Schedule,
    curvature: Curvature,
    projection: Projection | None,
    epsilon: float,
) -> Train:
    def train(inside: NDArray[np.bool_], seed: int) -> MultilayerPerceptron:
        result = fine_tune(
            pretrained,
            np.where(inside[:, None], X, np.nan).astype(X.dtype),
            y,
            schedule=schedule,
            curvature=curvature,
            projection=projection,
            target_epsilon=epsilon,
            target_delta=DELTA,
            rng=insecure_test_generator(seed),
        )
        model: MultilayerPerceptron = result.model
        return model

    return train


def overfitting(pretrained: MultilayerPerceptron, X: NDArray[Any], y: NDArray[Any]) -> Train:
    """Train without privacy until the records are known by heart."""

    def train(inside: NDArray[np.bool_], seed: int) -> MultilayerPerceptron:
        return pretrained.fit(
            X[inside],
            y[inside],
            epochs=100,
            batch_size=32,
            learning_rate=5e-3,
            weight_decay=0.0,
            seed=seed,
        )

    return train


def attack(
    *,
    epsilon: float | None,
    planned: bool = False,
    mislabelled: float = 0.0,
    records: int = 500,
    shadows: int = 400,
    targets: int = 400,
    seed: int = 0,
) -> Line:
    """Attack fine-tunes of some private digits, without privacy where ε is None."""
    task = TASKS["mnist_to_usps"](0)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(task.X_private))[:records]
    X, y = task.X_private[chosen], task.y_private[chosen].astype(np.int64)
    n_wrong = round(mislabelled * records)
    y[:n_wrong] = (y[:n_wrong] + rng.integers(1, 10, n_wrong)) % 10
    if epsilon is None:
        mu, train = None, overfitting(task.model, X, y)
    else:
        mu = calibrate_mu(epsilon, DELTA)
        train = (
            planned_training(X, y, epsilon=epsilon)
            if planned
            else private_training(
                task.model, X, y, task.public_records()[0][:4000], epsilon=epsilon
            )
        )
    models = train_models(task.model, X, y, train, n_models=shadows + targets, seed=1000 * seed)
    shadow, target = models.part(slice(shadows)), models.part(slice(shadows, None))
    one = train(target.members[0], 0)
    before = task.model.score(task.X_test, task.y_test)
    return {
        "delta": DELTA,
        "mu": mu,
        "test_accuracy_before": round(before, 4),
        "test_accuracy": round(one.score(task.X_test, task.y_test), 4),
        **{
            name: rates(likelihood_ratios(shadow, target, name), target.members, mu)
            for name in STATISTICS
        },
    }


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = []
    for line in lines:
        found = line["confidence"]
        name = "not private" if line["epsilon"] is None else f"ε = {line['epsilon']:g}"
        if line["planned"]:
            name += ", as planned"
        if line["mislabelled"]:
            name += f", {100 * line['mislabelled']:g} % wrong labels"
        most = f" ({found['auc_most']:.3f})" if "auc_most" in found else ""
        row = [name, f"{found['auc']:.3f}{most}"]
        for level in FALSE_POSITIVE_RATES:
            at = found[f"fpr_{level:g}"]
            low, high = at["tpr_interval"]
            row.append(f"{100 * at['tpr']:.2f} ({100 * low:.2f}–{100 * high:.2f})")
            row.append(f"{100 * at['tpr_most']:.2f}" if "tpr_most" in at else "–")
            row.append(f"{100 * at['fpr']:.2f}")
        rows.append([*row, f"{100 * line['test_accuracy']:.1f}"])
    heads = ["", "AUC (at most)"]
    for level in FALSE_POSITIVE_RATES:
        heads += [f"TPR at FPR {100 * level:g} %, in %", "at most", "counted FPR, in %"]
    return {"membership": markdown_table([*heads, "test accuracy"], rows)}


MEASUREMENT: Final = Measurement(
    name="membership",
    cells=[
        {
            "epsilon": epsilon,
            "planned": planned,
            "mislabelled": wrong,
            "records": 500,
            "shadows": 400,
            "targets": 400,
            "seed": 0,
        }
        for epsilon, planned, wrong in (
            *((epsilon, False, 0.0) for epsilon in (1.0, 4.0, 8.0)),
            *((epsilon, True, 0.0) for epsilon in (1.0, 4.0)),
            (None, False, 0.0),
            *((epsilon, False, 0.1) for epsilon in (1.0, 4.0, 8.0, None)),
        )
    ],
    run=attack,
    page="attacks.md",
    tables=_tables,
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--non-private", action="store_true", help="attack model.fit instead")
    parser.add_argument(
        "--planned", action="store_true", help="by the study's plan for as many digits"
    )
    parser.add_argument("--records", type=int, default=500, help="private records (default 500)")
    parser.add_argument(
        "--mislabelled", type=float, default=0.0, help="share of them that get a wrong label"
    )
    parser.add_argument("--shadows", type=int, default=400, help="shadow models (default 400)")
    parser.add_argument("--targets", type=int, default=400, help="models attacked (default 400)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.planned and given.non_private:
        parser.error("--planned is for private fine-tuning; leave out one of the two")
    start = time.perf_counter()
    cell = {
        "epsilon": None if given.non_private else given.epsilon,
        "planned": given.planned,
        "mislabelled": given.mislabelled,
        "records": given.records,
        "shadows": given.shadows,
        "targets": given.targets,
        "seed": given.seed,
    }
    result = {"study": "membership", **cell, **attack(**cell)}
    print(json.dumps({**result, "seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
