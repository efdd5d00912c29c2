"""Audit with one canary and many runs, in two worlds: one has its record, the other a null one.

    python -m experiments.attacks.many_run_audit sgd --runs 220000
    python -m experiments.attacks.many_run_audit qexp --epsilon 8 --rounds 4 --runs 20000

Every run fine-tunes the last layer of a pretrained perceptron anew, with fresh randomness, on the
same few private records and the canary: a real digit with a wrong label. The auditor knows all
but which world it is, and guesses it from the released weights. With any threshold, an (ε, δ)
mechanism has TPR ≤ e^ε FPR + δ, so that exact binomial bounds of both rates give a lower bound of ε
for any mechanism whatever:

    ε_lo = ln((TPR_lo - δ)/FPR_hi)          μ_lo = Φ⁻¹(TPR_lo) - Φ⁻¹(FPR_hi)

(μ_lo, where it is μ-GDP for some μ.) Runs are independent of each other. Statistic and threshold
are chosen on one half of them, and the bounds, each with 95 % confidence, are of the other half.

    sgd     minibatch gradient descent in random order, without clipping or noise: to be caught
    qexp    fine_tune as it is, noise from the reproducible test generator: to stay below its claim

Results go to experiments/results/many_run_audit.jsonl, and what is there already is not run again;
`python -m experiments all` runs those that docs/attacks.md tells of.
Needs the data sets (environment variable QEXP_DATA).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from experiments.attacks.bounds import bound_text, clopper_pearson
from experiments.lines import Lines, key_of
from experiments.measurement import Line, Measurement, markdown_table
from experiments.study.results import FOLDER
from qexp import KroneckerCurvature, Schedule, epsilon, fine_tune
from qexp._progress import progress_bar
from qexp.bits import insecure_test_generator
from qexp.models import MultilayerPerceptron, mlp

DELTA = 1e-5
CONFIDENCE = 0.95
STATISTICS = ("projection", "label_logit")
N_RECORDS = 100
CLIPPING_NORM = 1.0
DAMPING = 1e-2
STEP_SIZE = 0.3
EPOCHS = 5
BATCH_SIZE = 10
LEARNING_RATE = 1.0
RUNS_AT_ONCE = 500
# What tells one audit from another.
_NAMES = ("mechanism", "epsilon_claimed", "rounds", "runs", "seed")
RESULTS = FOLDER / "many_run_audit.jsonl"


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """A public softmax regression, private records whose last is the canary, public features."""

    head: MultilayerPerceptron
    X: NDArray[np.float32]
    y: NDArray[np.int64]
    X_public: NDArray[np.float32]
    X_test: NDArray[np.float32]
    y_test: NDArray[np.int64]

    def records(self, included: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        X = self.X.copy()
        if not included:
            X[-1] = np.nan
        return X, self.y

    def statistics(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """Give both statistics of every run's weights (runs, p), larger with the canary in.

        How far the weights went down the canary's gradient, and log p/(1 - p) of its label.
        """
        head, x = self.head, np.append(self.X[-1], 1).astype(np.float64)
        [gradient] = [b.copy() for b in head.gradient_blocks(self.X[-1:], self.y[-1:]).blocks()]
        steps = weights.astype(np.float64) - head.weights
        logits = weights.reshape(len(weights), head.n_classes, -1) @ x
        others = np.delete(logits, self.y[-1], axis=1)
        label_logits = logits[:, self.y[-1]] - special.logsumexp(others, axis=1)
        return np.column_stack([-steps @ gradient[0].astype(np.float64), label_logits])

    def accuracy(self, weights: NDArray[np.floating]) -> float:
        """Give the mean accuracy of some runs' weights on the test records."""
        scores = [self.head.with_weights(row).score(self.X_test, self.y_test) for row in weights]
        return float(np.mean(scores))


# The scene, whether the canary is in, the number of runs and a seed in; weights (runs, p) out.
Mechanism = Callable[[Scene, bool, int, Sequence[int]], NDArray[np.float32]]


def sgd(scene: Scene, included: bool, n_runs: int, seed: Sequence[int]) -> NDArray[np.float32]:
    """Descend without privacy, all runs side by side, each through its own random minibatches."""
    rng = np.random.default_rng(seed)
    n, classes = len(scene.y), scene.head.n_classes
    X = np.concatenate([scene.X, np.ones((n, 1), np.float32)], axis=1)
    targets = np.eye(classes, dtype=np.float32)[scene.y]
    weighs = np.ones((n, 1), np.float32)
    # A null record has no gradient, and counts.
    weighs[-1] = included
    weights = np.tile(scene.head.weights.reshape(1, classes, -1), (n_runs, 1, 1))
    for _ in range(EPOCHS):
        order = rng.permuted(np.tile(np.arange(n), (n_runs, 1)), axis=1)
        for start in range(0, n, BATCH_SIZE):
            batch = order[:, start : start + BATCH_SIZE]
            x = X[batch]
            logits = x @ weights.transpose(0, 2, 1)
            logits -= logits.max(axis=2, keepdims=True)
            p = np.exp(logits)
            p /= p.sum(axis=2, keepdims=True)
            residuals = weighs[batch] * (p - targets[batch])
            scale = np.float32(LEARNING_RATE / batch.shape[1])
            weights -= scale * (residuals.transpose(0, 2, 1) @ x)
    return weights.reshape(n_runs, -1)


def private(scene: Scene, target_epsilon: float, rounds: int) -> tuple[Mechanism, float]:
    """Give qexp's fine-tuning as a mechanism, and the μ that it claims."""
    curvature = KroneckerCurvature.from_model(scene.head, scene.X_public, damping=DAMPING)
    schedule = Schedule(
        rounds=rounds, clipping_norm=CLIPPING_NORM, step_size=STEP_SIZE, damping=DAMPING
    )

    def tuned(included: bool, seed: int) -> Any:
        return fine_tune(
            scene.head,
            *scene.records(included),
            schedule=schedule,
            curvature=curvature,
            target_epsilon=target_epsilon,
            target_delta=DELTA,
            rng=insecure_test_generator(seed),
        ).release

    def mechanism(
        scene: Scene, included: bool, n_runs: int, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        seeds = np.random.default_rng(seed).integers(0, 2**63, n_runs)
        return np.array([tuned(included, int(one)).weights for one in seeds])

    return mechanism, tuned(True, 0).mu


def lower_bounds(
    hits: Any, alarms: Any, n_in: int, n_out: int, *, delta: float, confidence: float = CONFIDENCE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ε_lo and μ_lo of so many true and false alarms, element by element.

    Clopper and Pearson's one-sided bounds of both rates share the level.
    """
    tpr, _ = clopper_pearson(hits, n_in, confidence)
    _, fpr = clopper_pearson(alarms, n_out, confidence)
    # A rate above δ over a rate above 0; with none, nothing is shown.
    eps = np.log(np.maximum((tpr - delta) / fpr, 1.0))
    mu = np.where(tpr > 0, stats.norm.ppf(np.maximum(tpr, 1e-300)) - stats.norm.ppf(fpr), 0.0)
    return eps, np.maximum(mu, 0.0)


def judge(
    inside: NDArray[np.float64], outside: NDArray[np.float64], *, delta: float
) -> dict[str, Any]:
    """Bound the privacy loss by the statistics (runs, statistics) of either world's runs.

    The first half of the runs chooses statistic and threshold, for ε and for μ by itself; `…_most`
    are what the second half would give if all its guesses were right.
    """
    half_in, half_out = len(inside) // 2, len(outside) // 2
    best: list[tuple[float, int, float]] = [(-1.0, 0, 0.0)] * 2
    for k in range(inside.shape[1]):
        first_in, first_out = np.sort(inside[:half_in, k]), np.sort(outside[:half_out, k])
        thresholds = _between(first_in, first_out)
        found = lower_bounds(
            half_in - np.searchsorted(first_in, thresholds, side="right"),
            half_out - np.searchsorted(first_out, thresholds, side="right"),
            half_in,
            half_out,
            delta=delta,
        )
        for which, values in enumerate(found):
            i = int(np.argmax(values))
            if values[i] > best[which][0]:
                best[which] = (float(values[i]), k, float(thresholds[i]))
    n_in, n_out = len(inside) - half_in, len(outside) - half_out
    result: dict[str, Any] = {"judged_runs": [n_in, n_out]}
    for which, name in enumerate(("epsilon_lo", "mu_lo")):
        _, k, threshold = best[which]
        hits = int(np.count_nonzero(inside[half_in:, k] > threshold))
        alarms = int(np.count_nonzero(outside[half_out:, k] > threshold))
        bound = float(lower_bounds(hits, alarms, n_in, n_out, delta=delta)[which])
        most = float(lower_bounds(n_in, 0, n_in, n_out, delta=delta)[which])
        result |= {
            # Rounded down, to stay bounds.
            name: np.floor(bound * 1e4) / 1e4,
            f"{name}_most": np.floor(most * 1e4) / 1e4,
            f"{name}_by": {"statistic": k, "hits": hits, "false_alarms": alarms},
        }
    mu = result["mu_lo"]
    result["epsilon_lo_gdp"] = round(epsilon(delta, mu), 3) if mu > 0 else 0.0
    return result


def _between(a: NDArray[np.float64], b: NDArray[np.float64], most: int = 4000) -> NDArray[Any]:
    """Give thresholds between neighbouring scores: all in the tails, quantiles in the middle.

    Where the worlds are apart, the midpoint of what lies between them is among them.
    """
    scores = np.sort(np.concatenate([a, b]))
    middle = np.linspace(0, len(scores) - 2, most).astype(int)
    near = np.searchsorted(scores, [a[0], b[-1]])
    tails = [np.arange(i - most, i + most) for i in (most, len(scores) - most, *near)]
    left = np.unique(np.clip(np.concatenate([middle, *tails]), 0, len(scores) - 2))
    return np.asarray((scores[left] + scores[left + 1]) / 2)


def gather(
    mechanism: Mechanism, scene: Scene, included: bool, n_runs: int, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Run a mechanism in one world: its runs' statistics, and the accuracy of the first ones."""
    rows = []
    accuracy = float("nan")
    with progress_bar(n_runs, "runs", show=True) as advance:
        for start in range(0, n_runs, RUNS_AT_ONCE):
            count = min(RUNS_AT_ONCE, n_runs - start)
            weights = mechanism(scene, included, count, (seed, int(included), start))
            if start == 0:
                accuracy = scene.accuracy(weights[:20])
            rows.append(scene.statistics(weights))
            advance(count)
    return np.concatenate(rows), accuracy


def audit(
    mechanism: str, scene: Scene, *, runs: int, seed: int, target_epsilon: float, rounds: int
) -> dict[str, Any]:
    """Audit a mechanism with so many runs in each world."""
    claim = None
    run: Mechanism = sgd
    if mechanism == "qexp":
        run, claim = private(scene, target_epsilon, rounds)
    inside, accuracy = gather(run, scene, True, runs, seed)
    outside, _ = gather(run, scene, False, runs, seed)
    found = judge(inside, outside, delta=DELTA)
    for name in ("epsilon_lo_by", "mu_lo_by"):
        found[name]["statistic"] = STATISTICS[found[name]["statistic"]]
    holds = None
    if claim is not None:
        holds = (
            found["mu_lo"] <= claim
            and max(found["epsilon_lo"], found["epsilon_lo_gdp"]) <= target_epsilon
        )
    return {
        "study": "many_run_audit",
        **_key(mechanism, runs, seed, target_epsilon, rounds),
        "delta": DELTA,
        "mu_claimed": claim,
        "records": len(scene.y),
        "accuracy_before": round(scene.accuracy(scene.head.weights[None]), 4),
        "accuracy": round(accuracy, 4),
        "clipped": _clipping(scene),
        **found,
        "holds": holds,
    }


def _key(
    mechanism: str, runs: int, seed: int, target_epsilon: float, rounds: int
) -> dict[str, Any]:
    private = mechanism == "qexp"
    claimed = (target_epsilon, rounds) if private else (None, None)
    return dict(zip(_NAMES, (mechanism, *claimed, runs, seed), strict=True))


def _clipping(scene: Scene) -> float:
    """Give the norm of the canary's whitened gradient over the clipping norm."""
    curvature = KroneckerCurvature.from_model(scene.head, scene.X_public, damping=DAMPING)
    [block] = [b.copy() for b in scene.head.gradient_blocks(scene.X[-1:], scene.y[-1:]).blocks()]
    return round(float(np.linalg.norm(curvature.whiten(block))) / CLIPPING_NORM, 2)


def digits_scene() -> Scene:
    """USPS digits by the hidden features of a perceptron pretrained on MNIST."""
    from experiments.tasks import TASKS

    task = TASKS["mnist_few_500"](0)
    model = task.model
    n_features, n_hidden, n_classes = model.layer_sizes
    cut = n_hidden * (n_features + 1)
    first = model.weights[:cut].reshape(n_hidden, n_features + 1)

    def hidden(X: NDArray[Any]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = np.tanh(X @ first[:, :-1].T + first[:, -1])
        return features.astype(np.float32, copy=False)

    y = task.y_private[:N_RECORDS].astype(np.int64)
    y[-1] = (y[-1] + 1 + np.random.default_rng(0).integers(n_classes - 1)) % n_classes
    return Scene(
        head=mlp((n_hidden, n_classes)).with_weights(model.weights[cut:]),
        X=hidden(task.X_private[:N_RECORDS]),
        y=y,
        X_public=hidden(task.public_records()[0][:4000]),
        X_test=hidden(task.X_test),
        y_test=task.y_test.astype(np.int64),
    )


def lines_at(path: Path) -> Lines:
    """Give the file of the audits' lines."""
    return Lines(path, key_of(_NAMES))


def _run(
    mechanism: str, epsilon_claimed: float | None, rounds: int | None, runs: int, seed: int
) -> Line:
    return audit(
        mechanism,
        digits_scene(),
        runs=runs,
        seed=seed,
        target_epsilon=epsilon_claimed or 0.0,
        rounds=rounds or 0,
    )


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = []
    for line in lines:
        private = line["mechanism"] == "qexp"
        judged, by = line["judged_runs"], line["epsilon_lo_by"]
        claim = f"{line['mu_claimed']:.3f}, {line['epsilon_claimed']:g}" if private else "–"
        rows.append(
            [
                f"`{line['mechanism']}`" + (f", T = {line['rounds']}" if private else ""),
                f"{line['runs']:,}",
                f"{by['hits']:,} and {by['false_alarms']:,} of {judged[0]:,}",
                bound_text(line["epsilon_lo"], 2),
                bound_text(line["epsilon_lo_most"], 2),
                bound_text(line["mu_lo"], 3),
                bound_text(line["epsilon_lo_gdp"], 2),
                claim,
                f"{100 * line['accuracy']:.1f}",
            ]
        )
    heads = ["attacked", "N", "guessed in, where it was and was not", "`epsilon_lo`", "most"]
    heads += ["`mu_lo`", "`epsilon_lo_gdp`", "claimed μ, ε", "test accuracy"]
    return {"audits of many runs": markdown_table(heads, rows)}


MEASUREMENT: Final = Measurement(
    name="many_run_audit",
    cells=[
        dict(zip(_NAMES, cell, strict=True))
        for cell in (
            ("sgd", None, None, 220_000, 0),
            ("qexp", 1.0, 4, 20_000, 0),
            ("qexp", 4.0, 4, 20_000, 0),
            ("qexp", 8.0, 1, 20_000, 0),
            ("qexp", 8.0, 4, 20_000, 0),
        )
    ],
    run=_run,
    page="attacks.md",
    tables=_tables,
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mechanism", choices=["sgd", "qexp"])
    parser.add_argument("--runs", type=int, default=20000, help="in each world (default 20000)")
    parser.add_argument("--epsilon", type=float, default=8.0, help="qexp's claim (default 8)")
    parser.add_argument("--rounds", type=int, default=4, help="of qexp (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines to add to")
    given = parser.parse_args(arguments)
    if given.runs < 4:
        parser.error(f"--runs is {given.runs}; it needs at least 4, two in each half")
    key = _key(given.mechanism, given.runs, given.seed, given.epsilon, given.rounds)
    lines = lines_at(given.results)
    for result in lines.read():
        if key.items() <= result.items():
            print(json.dumps(result))
            return
    start = time.perf_counter()
    result = audit(
        given.mechanism,
        digits_scene(),
        runs=given.runs,
        seed=given.seed,
        target_epsilon=given.epsilon,
        rounds=given.rounds,
    )
    result["seconds"] = round(time.perf_counter() - start, 1)
    lines.add(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
