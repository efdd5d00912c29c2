"""Every misuse gets one message: what was given, what is allowed, what to do."""

import math
import re

import numpy as np
import pytest

import qexp
from qexp.bits import insecure_test_generator
from qexp.models import mlp, softmax_regression

P, N = 6, 10
GRADIENTS = np.linspace(-1, 1, N * P).reshape(N, P)
MODEL = mlp((4, 3, 2))
X, Y = np.zeros((5, 4)), np.zeros(5, int)


def draw(pretrained=None, records=GRADIENTS, **changes):
    arguments = {
        "curvature": qexp.IdentityCurvature(P),
        "target_epsilon": 1.0,
        "target_delta": 1e-5,
        "clipping_norm": 1.0,
        "rng": insecure_test_generator(0),
    }
    pretrained = np.zeros(P) if pretrained is None else pretrained
    return qexp.sample_private_weights(pretrained, records, **(arguments | changes))


def with_nan(shape):
    array = np.zeros(shape)
    array.flat[1] = math.nan
    return array


def overspend():
    ledger = qexp.PrivacyLedger(mu_budget=0.1)
    draw(ledger=ledger)


def short_source():
    source = qexp.ArrayRecords(GRADIENTS)
    blocks = source.blocks

    class Short:
        n_records, n_parameters = N, P

        def blocks(self):
            for block in blocks():
                yield block[:-1]

    draw(records=Short())


def narrow_source():
    class Narrow:
        n_records, n_parameters = N, P

        def blocks(self):
            yield GRADIENTS[:, :-1]

    draw(records=Narrow())


class Many:
    n_records, n_parameters = 2**45, P

    def blocks(self):
        raise AssertionError("read")


def from_matrix(matrix, damping=0.1):
    return qexp.DenseCurvature.from_matrix(matrix, damping=damping)


def from_rows(blocks, n_records=5, damping=0.1):
    return qexp.DenseCurvature.from_rows(blocks, n_records=n_records, damping=damping)


def from_model(X, **arguments):
    return qexp.DenseCurvature.from_model(MODEL, X, damping=0.1, **arguments)


def commit_twice():
    with qexp.PrivacyLedger(mu_budget=1.0).reserve(0.5) as reservation:
        reservation.commit()
        reservation.commit()


# What is done, the type of the exception, and what its message says.
MISUSES = {
    # ------------------------------------------------------------------------ the draw
    "pretrained of integers": (
        lambda: draw(np.zeros(P, int)),
        TypeError,
        "pretrained has dtype int64; it needs float32 or float64",
    ),
    "pretrained of half precision": (
        lambda: draw(np.zeros(P, np.float16)),
        TypeError,
        "pretrained has dtype float16; it needs float32 or float64",
    ),
    "pretrained a matrix": (
        lambda: draw(np.zeros((2, P))),
        ValueError,
        r"pretrained has shape \(2, 6\); it needs 1 dimension",
    ),
    "a step out of range": (
        lambda: draw(np.zeros(P, np.float32), step_size=1e200),
        OverflowError,
        "left the range of float32, and the draw is paid for; use a smaller step_size",
    ),
    "pretrained with NaN": (
        lambda: draw(with_nan(P)),
        ValueError,
        r"pretrained holds 1 value\(s\) that are NaN or infinite; it needs finite",
    ),
    "records of integers": (
        lambda: draw(records=np.zeros((N, P), int)),
        TypeError,
        "records has dtype int64; it needs float32 or float64",
    ),
    "records in one dimension": (
        lambda: draw(records=np.zeros(P)),
        ValueError,
        r"records has shape \(6,\); it needs 2 dimension",
    ),
    "no records": (
        lambda: draw(records=np.zeros((0, P))),
        ValueError,
        r"records have shape \(0, 6\); they need at least one row",
    ),
    "records in a list": (
        lambda: draw(records=[[0.0] * P]),
        TypeError,
        r"records are a list; they need to be an \(n, p\) array .* or a source",
    ),
    "records of another length": (
        lambda: draw(records=np.zeros((N, P + 1))),
        ValueError,
        "records have gradients of 7 entries, pretrained has 6 weights; they need the same",
    ),
    "fewer records than announced": (
        short_source,
        ValueError,
        "gave 9 records and announced 10; the number of records is public and must be right",
    ),
    "a block of another length": (
        narrow_source,
        ValueError,
        "block of records has rows of 5 entries; it needs 6",
    ),
    "epsilon zero": (
        lambda: draw(target_epsilon=0),
        ValueError,
        "target_epsilon must be finite and > 0, got 0: choose",
    ),
    "epsilon negative": (
        lambda: draw(target_epsilon=-1.0),
        ValueError,
        r"target_epsilon must be finite and > 0, got -1\.0",
    ),
    "epsilon NaN": (
        lambda: draw(target_epsilon=math.nan),
        ValueError,
        "target_epsilon must be finite and > 0, got nan",
    ),
    "epsilon infinite": (
        lambda: draw(target_epsilon=math.inf),
        ValueError,
        "target_epsilon must be finite and > 0, got inf",
    ),
    "epsilon as text": (
        lambda: draw(target_epsilon="1"),
        TypeError,
        "target_epsilon must be a real number .* got '1' of type str",
    ),
    "delta zero": (
        lambda: draw(target_delta=0.0),
        ValueError,
        r"target_delta must be strictly between 0 and 1, got 0\.0: choose .* well below",
    ),
    "delta one": (
        lambda: draw(target_delta=1.0),
        ValueError,
        r"target_delta must be strictly between 0 and 1, got 1\.0",
    ),
    "no delta": (
        lambda: qexp.sample_private_weights(
            np.zeros(P),
            GRADIENTS,
            curvature=qexp.IdentityCurvature(P),
            target_epsilon=1.0,
            clipping_norm=1.0,
        ),
        TypeError,
        "missing 1 required keyword-only argument: 'target_delta'",
    ),
    "clipping norm zero": (
        lambda: draw(clipping_norm=0),
        ValueError,
        "clipping_norm is 0; it needs a finite number above 0",
    ),
    "clipping norm without a usable square": (
        lambda: draw(clipping_norm=1e-320),
        ValueError,
        r"clipping_norm is .*; it needs 1e-100 to 1e\+100: rescale the gradients",
    ),
    "clipping norm complex": (
        lambda: draw(clipping_norm=1 + 0j),
        TypeError,
        r"clipping_norm is \(1\+0j\); it needs a finite number above 0",
    ),
    "clipping norm an array": (
        lambda: draw(clipping_norm=np.ones(1)),
        TypeError,
        r"clipping_norm is array\(\[1\.\]\); it needs a finite number above 0",
    ),
    "step size zero": (
        lambda: draw(step_size=0.0),
        ValueError,
        r"step_size is 0\.0; it needs a finite number above 0",
    ),
    "step size negative": (
        lambda: draw(step_size=-1),
        ValueError,
        "step_size is -1; it needs a finite number above 0",
    ),
    "step size NaN": (
        lambda: draw(step_size=math.nan),
        ValueError,
        "step_size is nan; it needs a finite number above 0",
    ),
    "step size beyond floats": (
        lambda: draw(step_size=10**400),
        ValueError,
        "step_size is 10+; it needs a finite number above 0",
    ),
    "step size a truth value": (
        lambda: draw(step_size=True),
        TypeError,
        "step_size is True; it needs a finite number",
    ),
    "unknown relation": (
        lambda: draw(neighboring_relation="substitute"),
        ValueError,
        "neighboring_relation must be 'replace_special' .* or 'replace_one' .*, got 'substitute'",
    ),
    "add or remove one": (
        lambda: draw(neighboring_relation="add_or_remove_one"),
        ValueError,
        "'add_or_remove_one' is not supported: the number of records is public.* 'replace_one'",
    ),
    "relation in a list": (
        lambda: draw(neighboring_relation=["replace_one"]),
        ValueError,
        r"neighboring_relation must be .*, got \['replace_one'\]",
    ),
    "NumPy's generator": (
        lambda: draw(rng=np.random.default_rng(0)),
        TypeError,
        r"rng is a Generator; it needs None .*insecure_test_generator\(seed\)",
    ),
    "rng a number": (lambda: draw(rng=7), TypeError, "rng is a int; it needs None"),
    "curvature of another size": (
        lambda: draw(curvature=qexp.IdentityCurvature(P - 1)),
        ValueError,
        "curvature has dimension 5, the projected gradients 6; they need the same",
    ),
    "curvature a matrix": (
        lambda: draw(curvature=np.eye(P)),
        TypeError,
        "curvature is a ndarray; it needs to be a curvature such as qexp.DenseCurvature",
    ),
    "no curvature": (
        lambda: draw(curvature=None),
        TypeError,
        "curvature is a NoneType; it needs .* qexp.IdentityCurvature",
    ),
    "projection of another size": (
        lambda: draw(projection=qexp.SRHT(P + 1, 3, seed=0)),
        ValueError,
        "projection maps 7 weights, pretrained has 6; they need the same number",
    ),
    "projection a matrix": (
        lambda: draw(projection=np.eye(P)),
        TypeError,
        "projection is a ndarray; it needs to be None or a projection",
    ),
    "projection that the curvature does not know": (
        lambda: draw(projection=qexp.SRHT(P, 3, seed=0)),
        ValueError,
        "curvature has dimension 6, the projected gradients 3",
    ),
    "ledger a number": (
        lambda: draw(ledger=1.0),
        TypeError,
        "ledger is a float; it needs to be None or a qexp.PrivacyLedger",
    ),
    "ledger overspent": (
        overspend,
        qexp.BudgetExceededError,
        r"does not fit: mu = 0\.1 remains of mu_budget = 0\.1.*Ask for less, or stop",
    ),
    "lattice without room": (
        lambda: draw(records=Many(), target_epsilon=8.0),
        ValueError,
        r"lattice overflows: mu = .* with 35184372088832 records .*larger target_epsilon",
    ),
    "unknown argument": (
        lambda: draw(learning_rate=0.1),
        TypeError,
        "unexpected keyword argument 'learning_rate'",
    ),
    "positional curvature": (
        lambda: qexp.sample_private_weights(np.zeros(P), GRADIENTS, qexp.IdentityCurvature(P)),
        TypeError,
        "takes 2 positional arguments",
    ),
    # ---------------------------------------------------------------------- curvature
    "damping negative": (
        lambda: from_matrix(np.eye(3), damping=-0.5),
        ValueError,
        r"damping is -0\.5; it needs a finite number of at least 0",
    ),
    "damping NaN": (
        lambda: from_rows([np.eye(3)], damping=math.nan),
        ValueError,
        "damping is nan; it needs a finite number of at least 0",
    ),
    "not positive definite": (
        lambda: from_matrix(-np.eye(3)),
        qexp.NotPositiveDefiniteError,
        r"damping 0\.1 is not positive definite \(pivot 1 of 3\); use a larger damping",
    ),
    "matrix not square": (
        lambda: from_matrix(np.zeros((3, 2))),
        ValueError,
        r"matrix has shape \(3, 2\); it needs to be square",
    ),
    "matrix not symmetric": (
        lambda: from_matrix(np.triu(np.ones((3, 3)))),
        ValueError,
        "matrix differs from its transpose by up to 1; it needs to be symmetric",
    ),
    "matrix with NaN": (
        lambda: from_matrix(with_nan((3, 3))),
        ValueError,
        r"matrix holds 1 value\(s\) that are NaN",
    ),
    "matrix of integers": (
        lambda: from_matrix(np.eye(3, dtype=int)),
        TypeError,
        "matrix has dtype int64; it needs float32 or float64",
    ),
    "no curvature rows": (lambda: from_rows([]), ValueError, "blocks are empty; .* at least one"),
    "curvature rows of two lengths": (
        lambda: from_rows([np.eye(3), np.eye(4)]),
        ValueError,
        "has 4 columns, the first one had 3; all need the same",
    ),
    "curvature rows with NaN": (
        lambda: from_rows([with_nan((2, 3))]),
        ValueError,
        "curvature holds NaN or infinite values",
    ),
    "one matrix for blocks of rows": (
        lambda: from_rows(np.eye(3)),
        ValueError,
        r"block of curvature rows has shape \(3,\); it needs 2 dimension",
    ),
    "curvature of no records": (
        lambda: from_rows([np.eye(3)], n_records=0),
        ValueError,
        "n_records is 0; it needs an integer of at least 1",
    ),
    "identity of dimension zero": (
        lambda: qexp.IdentityCurvature(0),
        ValueError,
        "k is 0; it needs an integer of at least 1",
    ),
    "identity of half a dimension": (
        lambda: qexp.IdentityCurvature(2.5),
        TypeError,
        r"k is 2\.5; it needs an integer of at least 1",
    ),
    "public records with NaN": (
        lambda: from_model(with_nan((5, 4))),
        ValueError,
        "record 0 of X holds a NaN or an infinity; public records must be finite",
    ),
    "public records of another width": (
        lambda: from_model(np.zeros((5, 3))),
        ValueError,
        r"X has the shape \(5, 3\); it must be \(n, 4\)",
    ),
    "unknown labels": (
        lambda: from_model(X, labels="true"),
        ValueError,
        "labels is 'true'; it must be 'sampled', 'expected'",
    ),
    # -------------------------------------------------------------------- projections
    "SRHT wider than its transform": (
        lambda: qexp.SRHT(P, 9, seed=0),
        ValueError,
        "k is 9; it can be at most p' = 8, .*choose a smaller k",
    ),
    "SRHT to nothing": (lambda: qexp.SRHT(P, 0, seed=0), ValueError, "at least 1 .* got 0"),
    "SRHT without a seed": (lambda: qexp.SRHT(P, 3), TypeError, "missing .* argument: 'seed'"),
    "a model with a negative seed": (
        lambda: mlp((4, 3, 2), seed=-1),
        ValueError,
        r"seed is -1; it needs to be from 0 to 2\*\*128 - 1",
    ),
    "a curvature without a seed": (
        lambda: from_model(np.zeros((5, 4), np.float32), seed=None),
        TypeError,
        "seed is a NoneType; it needs an integer from 0 .* can be drawn again",
    ),
    "SRHT with a negative seed": (
        lambda: qexp.SRHT(P, 3, seed=-1),
        ValueError,
        r"seed is -1; it needs to be from 0 to 2\*\*128 - 1",
    ),
    "mask out of range": (
        lambda: qexp.CoordinateMask(P, [0, P]),
        ValueError,
        "indices run from 0 to 6; they can run from 0 to 5",
    ),
    "mask with a negative index": (
        lambda: qexp.CoordinateMask(P, [-1, 2]),
        ValueError,
        "indices run from -1 to 2; they can run from 0 to 5",
    ),
    "mask with repeats": (
        lambda: qexp.CoordinateMask(P, [1, 1]),
        ValueError,
        "indices repeat themselves; name each weight once",
    ),
    "mask of truth values": (
        lambda: qexp.CoordinateMask(P, np.ones(P, bool)),
        TypeError,
        "indices has dtype bool; it needs integers .*flatnonzero",
    ),
    "empty mask": (lambda: qexp.CoordinateMask(P, []), ValueError, "at least 1 .* got 0"),
    "basis with NaN": (
        lambda: qexp.Basis(with_nan((P, 2))),
        ValueError,
        "matrix holds NaN or infinite entries; it needs finite ones",
    ),
    "basis in one dimension": (
        lambda: qexp.Basis(np.zeros(P)),
        ValueError,
        r"matrix has shape \(6,\); it needs two dimensions",
    ),
    # ------------------------------------------------------------------------- models
    "one layer size": (
        lambda: mlp((4,)),
        ValueError,
        r"layer_sizes is \(4,\); it needs the number of features and that of classes",
    ),
    "an empty layer": (
        lambda: mlp((4, 0, 2)),
        ValueError,
        "a layer size is 0; it needs an integer of at least 1",
    ),
    "half a unit": (lambda: mlp((4, 2.5, 2)), TypeError, r"a layer size is 2\.5; it needs"),
    "one class": (lambda: softmax_regression(4, 1), ValueError, "1 class; .* at least 2"),
    "unknown activation": (
        lambda: mlp((4, 2), activation="gelu"),
        ValueError,
        "activation is 'gelu'; it must be 'tanh' or 'relu'",
    ),
    "model of half precision": (
        lambda: mlp((4, 2), dtype=np.float16),
        TypeError,
        "dtype is float16; it must be float32 or float64",
    ),
    "labels of another length": (
        lambda: MODEL.gradient_blocks(X, Y[:-1]),
        ValueError,
        r"y has the shape \(4,\); it must be \(5,\)",
    ),
    "labels in a column": (
        lambda: MODEL.gradient_blocks(X, Y[:, None]),
        ValueError,
        r"y has the shape \(5, 1\); it must be \(5,\)",
    ),
    "labels of text": (
        lambda: MODEL.gradient_blocks(X, np.full(5, "a")),
        TypeError,
        r"y is <U1; it must hold the classes 0\.\.1",
    ),
    "features of text": (
        lambda: MODEL.gradient_blocks(np.full((5, 4), "a"), Y),
        TypeError,
        "X is <U1; it must hold real numbers",
    ),
    "blocks of no records": (
        lambda: MODEL.gradient_blocks(X, Y, block_size=0),
        ValueError,
        "block_size is 0; it needs an integer of at least 1",
    ),
    "weights with NaN": (
        lambda: MODEL.with_weights(with_nan(MODEL.n_parameters)),
        ValueError,
        "weights holds a NaN, an infinity",
    ),
    "weights of another model": (
        lambda: MODEL.with_weights(np.zeros(3)),
        ValueError,
        r"weights has the shape \(3,\); \(4, 3, 2\) needs \(23,\)",
    ),
    # ------------------------------------------------------------------------ privacy
    "ledger without a budget": (
        lambda: qexp.PrivacyLedger(),
        ValueError,
        "give either mu_budget, or both target_epsilon and target_delta",
    ),
    "ledger with half a target": (
        lambda: qexp.PrivacyLedger(target_epsilon=1.0),
        ValueError,
        "both target_epsilon and target_delta; got .*target_delta=None",
    ),
    "ledger for adding a record": (
        lambda: qexp.PrivacyLedger(mu_budget=1.0, neighboring_relation="add_or_remove_one"),
        ValueError,
        "not supported: the number of records is public",
    ),
    "reservation committed twice": (
        commit_twice,
        RuntimeError,
        "only a reservation that is held can be committed, once",
    ),
    "composition of a negative mu": (
        lambda: qexp.compose_mu([1.0, -1.0]),
        ValueError,
        r"each mu must be finite and >= 0, got -1\.0",
    ),
    "seed of text": (
        lambda: insecure_test_generator("7"),
        TypeError,
        "seed is '7'; it needs an integer of at least 0",
    ),
    "negative seed": (
        lambda: insecure_test_generator(-7),
        ValueError,
        "seed is -7; it needs an integer of at least 0",
    ),
    # -------------------------------------------------------------------------- files
    "no such release": (
        lambda: qexp.PrivateRelease.load("/nowhere/release.npz"),
        FileNotFoundError,
        "/nowhere/release.npz",
    ),
    "a text for a release": (
        lambda: qexp.PrivateRelease.load(__file__),
        ValueError,
        r"test_misuse\.py is not a readable release.*PrivateRelease\.save wrote",
    ),
    "no such ledger": (
        lambda: qexp.PrivacyLedger.load("/nowhere/ledger.json"),
        FileNotFoundError,
        "no privacy ledger at '/nowhere/ledger.json': correct the path",
    ),
    "a text for a ledger": (
        lambda: qexp.PrivacyLedger.load(__file__),
        ValueError,
        r"test_misuse\.py' is not a privacy ledger, or is damaged",
    ),
    "release to no folder": (
        lambda: draw().save("/nowhere/release.npz"),
        FileNotFoundError,
        "could not write '/nowhere/release.npz': .*create the folder first",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(name):
    call, kind, message = MISUSES[name]
    with pytest.raises(kind) as caught:
        call()
    # The very type: an AttributeError or KeyError from inside would be no message to a user.
    assert caught.type is kind
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert len(str(caught.value)) < 800
