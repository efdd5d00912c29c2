"""What test_distributed.py runs under mpiexec, and on one process to compare with."""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

import qexp
from qexp import _communicator, distributed
from qexp._checks import array_digest
from qexp.models import mlp
from qexp.records import ArrayRecords, per_user
from qexp.shards import open_shards

GENERATOR = np.random.default_rng(0)
N, FEATURES, CLASSES = 203, 8, 3
X = GENERATOR.standard_normal((N, FEATURES))
Y = GENERATOR.integers(0, CLASSES, N)
X[3, 1], X[150], Y[5] = np.inf, np.nan, 99
USERS = np.sort(GENERATOR.integers(0, 60, N))
PUBLIC = GENERATOR.standard_normal((300, FEATURES))
MODEL = mlp((FEATURES, 6, CLASSES))
P = len(MODEL.weights)
TARGET = {"target_epsilon": 2.0, "target_delta": 1e-5}
SEED = 1


def share(ranks, rows):
    n = len(rows)
    return rows[n * ranks.rank // ranks.size : n * (ranks.rank + 1) // ranks.size]


def plan(rounds=3, **changes):
    settings = {"clipping_norm": 3.0, "step_size": 0.5, "damping": 1e-2, "momentum": 0.3}
    return qexp.Schedule(rounds=rounds, **{**settings, **changes})


def tune(ranks, X=X, Y=Y, *, schedule=None, curvature=None, split=share, **others):
    on_root = ranks.rank == 0
    return qexp.fine_tune(
        MODEL,
        split(ranks, X),
        split(ranks, Y),
        schedule=plan() if schedule is None else schedule,
        curvature=qexp.IdentityCurvature(P) if curvature is None else curvature,
        rng=qexp.bits.insecure_test_generator(SEED) if on_root else None,
        communicator=ranks,
        **{**TARGET, **others},
    )


def comparable(release):
    """Give the certificate without what may differ: the job's name and the number of threads."""
    return {**release.certificate(), "job_id": None, "software": None}


def tuned(ranks, **settings):
    before = ranks.bytes_reduced
    result = tune(ranks, **settings)
    assert result.release.weights.flags.writeable is False
    assert np.array_equal(result.model.weights, result.release.weights)
    return {
        "weights": array_digest(result.release.weights),
        "certificate": comparable(result.release),
        "bytes": ranks.bytes_reduced - before,
    }


def drawn(ranks, gradients, **settings):
    before = ranks.bytes_reduced
    release = qexp.sample_private_weights(
        MODEL.weights,
        gradients,
        clipping_norm=1.0,
        rng=qexp.bits.insecure_test_generator(SEED),
        communicator=ranks,
        **{"curvature": qexp.IdentityCurvature(P), **TARGET, **settings},
    )
    return {
        "weights": array_digest(release.weights),
        "certificate": comparable(release),
        "bytes": ranks.bytes_reduced - before,
    }


def user_share(ranks, rows):
    """Deal as open_shards does: no user to two ranks."""
    n = len(rows)
    cuts = [n * r // ranks.size for r in (ranks.rank, ranks.rank + 1)]
    cuts = [np.searchsorted(USERS, USERS[c - 1], side="right") if 0 < c < n else c for c in cuts]
    return rows[cuts[0] : cuts[1]]


def same(ranks):
    """All ways through the code; every number must be that of one process."""
    sketch, kron = qexp.SRHT(P, 16, seed=0), qexp.KroneckerSRHT(MODEL.layer_shapes, 16, seed=0)
    public = share(ranks, PUBLIC)
    made = {
        kind: distributed.curvature(public, communicator=ranks, damping=1e-2, **settings)
        for kind, settings in {
            "kronecker": {},
            "expected": {"labels": "expected"},
            "mixed": {"kinds": ["kronecker", "identity"]},
            "dense": {"kind": "dense"},
            "sketched": {"kind": "dense", "projection": sketch},
            "kron": {"kind": "dense", "projection": kron},
        }.items()
    }

    def at_root(model):
        assert ranks.rank == 0
        return qexp.KroneckerCurvature.from_model(model, PUBLIC, damping=1e-2)

    fresh = plan(refresh_curvature=True)
    gradients = np.concatenate(
        [block.copy() for block in MODEL.gradient_blocks(X[:5], Y[:5]).blocks()]
    )
    user_gradients = [block.copy() for block in MODEL.gradient_blocks(X, Y).blocks()]
    by_user = {"groups": user_share(ranks, USERS), "split": user_share}
    return {
        "kronecker": tuned(ranks, curvature=made["kronecker"], schedule=fresh),
        "expected": tuned(ranks, curvature=made["expected"]),
        "mixed": tuned(ranks, curvature=made["mixed"]),
        "dense": tuned(ranks, curvature=made["dense"], schedule=fresh),
        "sketched": tuned(ranks, curvature=made["sketched"], projection=sketch),
        "kronecker sketch": tuned(ranks, curvature=made["kron"], projection=kron),
        "root's own": tuned(ranks, curvature=at_root, schedule=fresh, shrinkage="last"),
        "private curvature": tuned(ranks, curvature=at_root, schedule=plan(curvature_share=0.3)),
        "few records": tuned(ranks, X=X[:5], Y=Y[:5]),
        "users": tuned(ranks, **by_user),
        "users' factors": tuned(
            ranks, curvature=made["kronecker"], max_records_per_user=3, **by_user
        ),
        "gradients": drawn(ranks, share(ranks, gradients)),
        "users' gradients": drawn(
            ranks,
            per_user(
                ArrayRecords(user_share(ranks, np.concatenate(user_gradients))),
                user_share(ranks, USERS),
            )
            if len(user_share(ranks, USERS))
            else np.empty((0, P)),
        )
        if ranks.size < 4
        else None,
        "nothing of rank 1": tuned(
            ranks, split=lambda ranks, rows: rows if ranks.rank == 0 else rows[:0]
        ),
    }


class Failing:
    """A model whose gradients end with an error on one rank, in one round."""

    def __init__(self, rank, fails_at, model=MODEL, round=1):
        self.rank, self.fails_at, self.model, self.round = rank, fails_at, model, round
        self.weights = model.weights

    def with_weights(self, weights):
        return Failing(self.rank, self.fails_at, self.model.with_weights(weights), self.round + 1)

    def gradient_blocks(self, X, y):
        source = self.model.gradient_blocks(X, y, block_size=16)
        if (self.rank, self.round) != self.fails_at:
            return source

        class Source:
            n_records, n_parameters = source.n_records, source.n_parameters

            def blocks(self):
                yield next(source.blocks())
                raise OSError(5, "the disk is on fire")

        return Source()


def outcome(ranks, call):
    """Say how a call ended on every rank."""
    start = time.monotonic()
    try:
        call()
        said = "no error"
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        said = " | ".join([type(error).__name__, str(error), *notes])
    assert time.monotonic() - start < 30
    return ranks.gather(said)


def errors(ranks, folder):
    """Errors on one rank, caught on all; none may cost anything."""
    on_root = ranks.rank == 0
    ledger = qexp.PrivacyLedger(mu_budget=100.0) if on_root else None
    small = qexp.PrivacyLedger(mu_budget=1e-3) if on_root else None
    said = {}

    def failing(at, **settings):
        return lambda: qexp.fine_tune(
            Failing(ranks.rank, at),
            share(ranks, X),
            share(ranks, Y),
            schedule=plan(),
            curvature=qexp.IdentityCurvature(P),
            communicator=ranks,
            ledger=ledger,
            **TARGET,
            **settings,
        )

    said["records of rank 1"] = outcome(ranks, failing((1, 1)))
    said["records of the root"] = outcome(ranks, failing((0, 1)))
    charged = len(ledger.entries) if on_root else 0
    said["second round"] = outcome(ranks, failing((1, 2), checkpoint=folder / "job.npz"))
    said["charged"] = [charged, len(ledger.entries) if on_root else 0]
    said["budget"] = outcome(ranks, lambda: tune(ranks, ledger=small))
    said["arguments"] = outcome(
        ranks, lambda: tune(ranks, schedule=plan(step_size=1.0 + ranks.rank))
    )
    said["split user"] = outcome(
        ranks,
        lambda: tune(ranks, groups=share(ranks, np.arange(len(X)) // 3), ledger=ledger),
    )
    said["dtype"] = outcome(
        ranks, lambda: tune(ranks, X=X if on_root else X.astype("U9"), ledger=ledger)
    )
    said["curvature"] = outcome(
        ranks,
        lambda: tune(
            ranks,
            curvature=distributed.curvature(
                np.full((3, FEATURES), 0.0 if on_root else np.nan), communicator=ranks, damping=1.0
            ),
        ),
    )
    for name in ("cut", "text"):
        said[name] = outcome(ranks, lambda name=name: shards_and_tune(ranks, folder, name))

    def full_disk():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with ranks.shared_fate():
            if on_root:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
            try:
                tune(ranks, checkpoint=folder / "full.npz", ledger=ledger)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    said["full disk"] = outcome(ranks, full_disk)
    said["left"] = sorted(os.listdir(folder))
    said["charged at last"] = len(ledger.entries) if on_root else 0
    # After all that, the ranks still work together.
    said["weights"] = tuned(ranks)["weights"]
    return said


def shards_and_tune(ranks, folder, name):
    with ranks.shared_fate():
        shards = open_shards(
            folder / f"{name}-*.npy", folder / "y.npy", rank=ranks.rank, size=ranks.size
        )
        return tune(ranks, X=shards.X, Y=shards.y, split=lambda ranks, rows: rows)


def sharded(ranks, folder):
    """A shard that is all NaN is a shard of null records."""
    result = shards_and_tune(ranks, folder, "nan")
    return array_digest(result.release.weights)


def sums(ranks):
    """Sums wrap, and chunks cover the array."""
    _communicator._ELEMENTS_AT_ONCE, _communicator._BYTES_AT_ONCE = 7, 64
    array = np.arange(20, dtype=np.int64) + 2**62
    for _ in range(2):
        array += 2**62
    mine = array + ranks.rank
    ranks.sum_int64(mine)
    expected = sum(
        ((array + rank).astype(object) for rank in range(ranks.size)), np.zeros(20, object)
    )
    wrapped = [(int(x) + 2**63) % 2**64 - 2**63 for x in expected]
    letters = np.arange(40.0) * (ranks.rank == 0)
    ranks.broadcast(letters)
    assert np.array_equal(letters, np.arange(40.0))
    assert ranks.sum(ranks.rank + 1) == ranks.size * (ranks.size + 1) // 2
    return mine.tolist() == wrapped if ranks.rank == 0 else True


def killed(ranks, folder, rounds):
    """Slow rounds with everything on disk, for a parent that kills."""
    (folder / f"rank-{ranks.rank}").write_text(str(os.getpid()))
    path, ledger = folder / "ledger.json", None
    if ranks.rank == 0:
        ledger = (
            qexp.PrivacyLedger.load(path) if path.exists() else qexp.PrivacyLedger(mu_budget=100.0)
        )

    def on_round(_):
        time.sleep(0.02)
        ledger.save(path)

    result = tune(
        ranks,
        schedule=plan(rounds),
        checkpoint=folder / "job.npz",
        ledger=ledger,
        on_round=on_round,
    )
    if ranks.rank == 0:
        ledger.save(path)
        result.release.save(folder / "release.npz")


def main():
    case, folder = sys.argv[1], Path(sys.argv[2])
    ranks = distributed.world()
    if case == "same":
        said = same(ranks)
    elif case == "errors":
        said = errors(ranks, folder)
    elif case == "sharded":
        said = sharded(ranks, folder)
    elif case == "sums":
        said = sums(ranks)
    elif case == "killed":
        said = killed(ranks, folder, int(sys.argv[3]))
    elif case == "uncaught":
        if ranks.rank == ranks.size - 1:
            raise ValueError("something of rank one's own")
        said = tune(ranks).release.mu
    elif case == "uncaught, shared":
        with ranks.shared_fate():
            if ranks.rank == ranks.size - 1:
                raise ValueError("something of rank one's own")
            said = tune(ranks).release.mu
    elif case == "others are busy":
        _communicator._SECONDS_TO_HEAR = 1.0
        with ranks.shared_fate():
            if ranks.rank == ranks.size - 1:
                raise ValueError("something of rank one's own")
            time.sleep(60)
        said = None
    else:
        raise AssertionError(case)
    all_said = ranks.gather(json.dumps(said))
    if ranks.rank == 0:
        (folder / "said.json").write_text(json.dumps([json.loads(said) for said in all_said]))


if __name__ == "__main__":
    main()
