"""Several trials, moves and shifts at once: the same as one after the other."""

import threading
import time

import numpy as np
import pytest

from qexp._parallel import several_at_once
from qexp.models import mlp
from qexp.planning import plan
from qexp.rivals import METHODS, GradientDescentSettings, plan_rival
from qexp.subspace import image_moves, learn_directions

RNG = np.random.default_rng(0)
X = RNG.random(size=(400, 16)).astype(np.float32)
Y = (X[:, :8].sum(axis=1) > X[:, 8:].sum(axis=1)).astype(int)
MODEL = mlp((16, 6, 2), seed=1).fit(X[:200], Y[:200], epochs=20)


def test_results_come_in_the_order_of_the_arguments():
    first_may_go = threading.Event()

    def late_or_early(i):
        if i == 0:
            assert first_may_go.wait(30)
        if i == 2:
            first_may_go.set()
        return i

    with several_at_once(3) as each:
        assert list(each(late_or_early, range(3))) == [0, 1, 2]


def test_one_thread_computes_what_is_asked_for():
    seen = []
    with several_at_once(1) as each:
        results = each(seen.append, range(5))
        next(results)
    assert seen == [0]


def test_what_was_not_begun_is_left_when_one_fails():
    begun = []

    def fails(i):
        begun.append(i)
        if i == 0:
            raise ValueError("no")
        time.sleep(0.1)  # all of them would take 10 seconds

    with pytest.raises(ValueError, match="no"), several_at_once(2) as each:
        list(each(fails, range(200)))
    assert len(begun) < 200


def test_blas_is_kept_to_one_thread():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads(_=None):
        info = threadpoolctl.threadpool_info()
        return {x["num_threads"] for x in info if x["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with several_at_once(2) as each:
            assert next(each(threads, [None])) == {1}
        assert threads() == {2}


def plans():
    arguments = {"n_records": 300, "target_epsilon": 2.0, "target_delta": 1e-5}
    ours = plan(MODEL, X[200:], Y[200:], subspaces=(4,), rounds=2, **arguments)
    few = [GradientDescentSettings(steps=s, learning_rate=0.1 * s) for s in (1, 2, 3)]
    theirs = plan_rival(METHODS["dp_gd"], MODEL, X[200:], Y[200:], candidates=few, **arguments)
    return ours.describe(), theirs.describe()


def learnt():
    moves = image_moves(MODEL, X, Y, count=7)
    return [str(move) for move in moves], learn_directions(MODEL, X, Y, moves=moves).gradients


def test_plans_are_the_same_by_any_number_of_threads(set_threads):
    set_threads(1)
    alone = plans()
    set_threads(3)
    assert plans() == alone


def test_subspaces_are_the_same_by_any_number_of_threads(set_threads):
    set_threads(1)
    moves, gradients = learnt()
    set_threads(3)
    again, others = learnt()
    assert again == moves
    for one, other in zip(gradients, others, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_of_ones_own_is_asked_by_one_thread_at_a_time(set_threads):
    set_threads(3)
    callers = set()

    class Own:
        def predict(self, records):
            callers.add(threading.get_ident())
            return MODEL.predict(records)

    image_moves(Own(), X, Y, count=3)
    assert callers == {threading.get_ident()}
