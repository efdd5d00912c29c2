"""Jobs of several rounds, and planning them."""

import statistics

import numpy as np

import qexp

from . import common

_HIDDEN, _CLASSES = 64, 10
_ROUNDS = 16


def classifier(n, features):
    """Give a perceptron and random records for it."""
    try:
        from qexp.models import mlp
    except ImportError as error:
        raise NotImplementedError("this version of qexp has no models") from error
    common.need("KroneckerCurvature", module=qexp)
    rng = np.random.default_rng(0)
    X = rng.random((n, features), dtype=np.float32)
    return mlp((features, _HIDDEN, _CLASSES), seed=0), X, rng.integers(_CLASSES, size=n)


class Rounds(common.FlopsSuite):
    """Sixteen rounds of a job with Kronecker curvature: all of it but the curvature's making."""

    params = (
        common.profile([2_000], [2_000, 60_000]),
        common.profile([256, 784], [256, 784, 3072]),
        common.thread_counts(),
    )
    param_names = ("records", "features", "threads")

    def prepare(self, n, features):
        common.need("fine_tune", module=qexp)
        self.n, self.features = n, features
        self.records = classifier(n, features)
        model, X, _ = self.records
        self.curvature = qexp.KroneckerCurvature.from_model(model, X[:1000], damping=0.01)
        self.schedule = qexp.Schedule(
            rounds=_ROUNDS, clipping_norm=1.0, step_size=0.1, damping=0.01
        )

    def run(self):
        qexp.fine_tune(
            *self.records,
            schedule=self.schedule,
            curvature=self.curvature,
            target_epsilon=1.0,
            target_delta=1e-6,
        )

    def flops(self):
        first, second = self.features + 1, _HIDDEN + 1
        weights = _HIDDEN * first + _CLASSES * second
        network = 2 * weights + 2 * _HIDDEN * _CLASSES
        whitening = 2 * (second**2 + _HIDDEN**2 + _CLASSES**2)
        outer = 6 * weights  # as the lattice sum counts them
        # What enters the first layer is the same in all rounds.
        return float(self.n) * (_ROUNDS * (network + whitening + outer) + 2 * first**2)


class Plan(common.Suite):
    """Choosing between schedules of a few rounds on shifted public records."""

    params = (common.profile([2_000], [2_000, 20_000]), common.thread_counts())
    param_names = ("records", "threads")

    def prepare(self, n):
        try:
            from qexp.planning import plan
        except ImportError as error:
            raise NotImplementedError("this version of qexp has no planning") from error
        records = classifier(n, 256)
        candidates = [
            qexp.Schedule(rounds=8, clipping_norm=c, step_size=eta, damping=0.1)
            for c in (0.3, 1.0, 3.0)
            for eta in (0.3, 1.0)
        ]

        def darker(X, y, rng):
            return 0.7 * X, y

        self.plan = lambda: plan(
            *records,
            n_records=n,
            target_epsilon=1.0,
            target_delta=1e-6,
            surrogate=[darker, darker],
            candidates=candidates,
        )

    def run(self):
        self.plan()

    def track_plans_a_minute(self, n, threads):
        seconds = common.interleaved({"plan": self.run}, threads=threads, rounds=3)["plan"]
        return 60 / statistics.median(seconds)

    track_plans_a_minute.unit = "plans/min"
