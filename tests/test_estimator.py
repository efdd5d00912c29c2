"""The scikit-learn estimator: its conventions, its conversions, and its privacy."""

import copy
import pickle
import subprocess
import sys
import traceback
import types
import warnings

import bad_records
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

import qexp
from qexp.estimator import PrivateFineTuner, class_numbers, from_sklearn
from qexp.finetune import Schedule

TARGET = {"target_epsilon": 4.0, "target_delta": 1e-5}
SCHEDULE = Schedule(rounds=2, clipping_norm=3.0, step_size=0.5, damping=1e-2)


def blobs(n, classes, seed=0, shift=0.0):
    generator = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(9).normal(size=(len(classes), 5))
    numbers = generator.integers(0, len(classes), n)
    X = centres[numbers] + generator.normal(size=(n, 5)) + shift * (centres[0] - centres[1])
    return X, np.asarray(classes)[numbers]


def tuner(classes=("ant", "bee", "cat"), **changes):
    public = blobs(400, classes)
    pretrained = LogisticRegression().fit(*public)
    arguments = {
        "public_data": public,
        "schedule": SCHEDULE,
        "insecure_test_seed": 0,
        **TARGET,
        **changes,
    }
    return PrivateFineTuner(arguments.pop("pretrained", pretrained), **arguments)


# --------------------------------------------------------------------- scikit-learn's checks


class OnAnyData(PrivateFineTuner):
    """Pretrains on whatever a check brings, cleaned, as if it were public."""

    def fit(self, X, y, *, ledger=None):
        self._brought = X, y
        try:
            return super().fit(X, y, ledger=ledger)
        finally:
            del self._brought

    def _pretrained(self):
        X, y = self._brought
        X, y = np.asarray(X, dtype=float), np.asarray(y).ravel()
        if y.dtype.kind == "f":
            y = np.nan_to_num(y, posinf=0).astype(int)
        if len(set(y.tolist())) == 1:  # A second class, which nobody has.
            other = y[0] + (1 if y.dtype.kind in "iu" else "?")
            model = qexp.models.softmax_regression(X.shape[1], 2, dtype=np.float64)
            return model, np.array([y[0], other])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return from_sklearn(LogisticRegression().fit(np.nan_to_num(X, posinf=0), y))

    def _public_records(self, model, classes):
        return np.nan_to_num(np.asarray(self._brought[0], dtype=float), posinf=0), None


# Check: why privacy, or the need for public input, forbids it.
REFUSED = {
    "check_estimators_nan_inf": "an error would tell that a private record is not finite",
    "check_supervised_y_no_nan": "an error would tell that a private label is not finite",
    "check_classifiers_regression_target": "an error would tell of labels that are no classes",
    "check_dtype_object": "a message about a value that cannot be converted would quote a record",
}
# With a secure generator: a second fit draws new noise.
NEW_NOISE = {"check_fit_idempotent", "check_supervised_y_2d"}


def checked(**changes):
    arguments = {
        "target_epsilon": 20.0,
        "target_delta": 1e-6,
        "schedule": Schedule(rounds=2, clipping_norm=1.0, step_size=0.1, damping=0.1),
        "insecure_test_seed": 1,
        **changes,
    }
    return OnAnyData(None, **arguments)


def name_of(check):
    return getattr(check, "func", check).__name__


# Strict: a check that is refused and passes all the same is an error, see xfail_strict.
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([checked()], expected_failed_checks=lambda _: REFUSED)
def test_scikit_learns_check(estimator, check):
    check(estimator)


def test_every_check_that_is_refused_is_one_and_stands_in_the_docstring():
    names = {name_of(check) for _, check in estimator_checks_generator(checked())}
    assert names >= {*REFUSED, *NEW_NOISE}
    for name in {*REFUSED, *NEW_NOISE}:
        assert name in PrivateFineTuner.__doc__


def test_two_fits_draw_different_noise():
    X, y = blobs(200, ["ant", "bee", "cat"])
    first = tuner(insecure_test_seed=None).fit(X, y)
    second = tuner(insecure_test_seed=None).fit(X, y)
    assert not np.array_equal(first.release_.weights, second.release_.weights)
    assert first.release_.generator_is_secure


# ------------------------------------------------------------------------------ conversions


@pytest.mark.parametrize("classes", [("no", "yes"), (3, 1, 2), (-1.0, 1.0)])
@pytest.mark.parametrize(
    "pretrained",
    [
        LogisticRegression(),
        MLPClassifier((7,), max_iter=30, random_state=0),
        MLPClassifier((6, 5), activation="tanh", max_iter=30, random_state=0),
        MLPClassifier((), max_iter=30, random_state=0),
    ],
    ids=["logistic", "relu", "tanh-2", "no hidden layer"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_converted_model_has_the_same_probabilities(classes, pretrained):
    X, y = blobs(200, classes)
    fitted = clone(pretrained).fit(X, y)
    model, found = from_sklearn(fitted)
    assert np.array_equal(found, fitted.classes_)
    assert model.weights.dtype == np.float64
    expected = fitted.predict_proba(X)
    assert expected.shape == (200, len(classes))
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-9, atol=1e-14)


def test_a_logistic_regression_without_intercept_is_converted():
    X, y = blobs(200, (0, 1, 2))
    fitted = LogisticRegression(fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(
        from_sklearn(fitted)[0].predict_proba(X), fitted.predict_proba(X), rtol=1e-9
    )


def test_what_cannot_be_converted_is_refused():
    X, y = blobs(50, (0, 1))
    with pytest.raises(TypeError, match=r"pretrained is a Ridge; it needs a fitted Logistic"):
        from_sklearn(Ridge().fit(X, y))
    with pytest.raises(NotFittedError):
        from_sklearn(LogisticRegression())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        identity = MLPClassifier((3,), activation="identity", max_iter=2).fit(X, y)
        several = MLPClassifier((3,), max_iter=2).fit(X, np.stack([y, 1 - y], axis=1))
    with pytest.raises(ValueError, match="activation='identity'; it needs 'tanh' or 'relu'"):
        from_sklearn(identity)
    with pytest.raises(ValueError, match="several labels at once"):
        from_sklearn(several)
    one_against_rest = LogisticRegression().fit(*blobs(50, (0, 1, 2)))
    one_against_rest.solver = "liblinear"
    with pytest.raises(ValueError, match="one-against-rest"):
        from_sklearn(one_against_rest)


def test_class_numbers_are_places_among_the_classes():
    classes = np.array(["a", "b", "c"])
    assert class_numbers(np.array(["c", "a", "zebra"]), classes).tolist() == [2, 0, -1]
    strange = np.array(["b", None, [1], 2.5], dtype=object)
    assert class_numbers(strange, classes).tolist() == [1, -1, -1, -1]
    numbers = np.array([5.0, np.nan, np.inf, 7.0, 5.5])
    assert class_numbers(numbers, np.array([5, 7])).tolist() == [0, -1, -1, 1, -1]
    assert class_numbers(np.array([True, False]), np.array([False, True])).tolist() == [1, 0]
    with pytest.raises(TypeError, match="they need the same kind of labels"):
        class_numbers(np.array([1, 2]), classes)


# ---------------------------------------------------------------------------------- fitting


@pytest.mark.parametrize("classes", [("ant", "bee", "cat"), ("no", "yes"), (7, 3, 5)])
def test_fine_tuning_helps_where_the_private_data_are_shifted(classes):
    X, y = blobs(3000, classes, seed=1, shift=0.6)
    fitted = tuner(classes).fit(X[:2500], y[:2500])
    before = fitted.pretrained.score(X[2500:], y[2500:])
    assert fitted.score(X[2500:], y[2500:]) > before + 0.05
    assert set(fitted.predict(X)) <= set(classes)
    np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1, rtol=1e-9)
    assert fitted.release_.epsilon == TARGET["target_epsilon"]
    assert fitted.result_.rounds_done == 2
    assert fitted.schedule_ is SCHEDULE
    assert fitted.plan_ is None
    assert fitted.n_features_in_ == 5
    assert np.array_equal(fitted.classes_, sorted(classes))


def test_the_release_is_that_of_fine_tune():
    X, y = blobs(500, (0, 1, 2), seed=1)
    fitted = tuner((0, 1, 2)).fit(X, y)
    model, _ = from_sklearn(fitted.pretrained)
    expected = qexp.finetune.fine_tune(
        model,
        X,
        y,
        schedule=SCHEDULE,
        curvature=qexp.KroneckerCurvature.from_model(model, fitted.public_data[0], damping=1e-2),
        rng=qexp.bits.insecure_test_generator(0),
        **TARGET,
    )
    assert np.array_equal(fitted.release_.weights, expected.release.weights)


def test_a_model_of_this_package_can_be_pretrained():
    digits = load_digits()
    X, y = (digits.data / 16).astype(np.float32), digits.target
    model = qexp.models.mlp((64, 16, 10)).fit(X[:600], y[:600], epochs=10)
    fitted = PrivateFineTuner(
        model, public_data=(X[:600], None), rounds=2, insecure_test_seed=0, **TARGET
    ).fit(X[600:1400], y[600:1400])
    assert fitted.schedule_ == Schedule(rounds=2, clipping_norm=3.0, step_size=1.0, damping=1e-2)
    assert fitted.score(X[1400:], y[1400:]) > 0.6
    assert fitted.model_.dtype == np.float32


@pytest.mark.parametrize("curvature", ["dense", "diagonal", "identity"])
def test_other_curvatures_can_be_named(curvature):
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    certificate = tuner(curvature=curvature).fit(X, y).release_.certificate()
    layers = certificate["public_inputs"]["curvature"]["layers"]
    assert [layer["kind"] for layer in layers] == [curvature]


def test_a_curvature_can_be_ready_made_or_a_function_without_public_data():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    ready = tuner(curvature=qexp.IdentityCurvature(18), public_data=None).fit(X, y)
    made = tuner(
        curvature=lambda model: qexp.IdentityCurvature(model.n_parameters), public_data=None
    ).fit(X, y)
    assert np.array_equal(ready.release_.weights, made.release_.weights)


def test_a_plan_is_made_on_public_data_alone(monkeypatch):
    asked = {}

    def plan(model, X_public, y_public, **settings):
        asked.update(settings, model=model, X=X_public, y=y_public)
        return types.SimpleNamespace(schedule=SCHEDULE, in_subspace=False)

    monkeypatch.setitem(sys.modules, "qexp.planning", types.SimpleNamespace(plan=plan))
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    fitted = tuner(schedule=None, surrogate="images", public_seed=4).fit(X, y)
    assert fitted.schedule_ is fitted.plan_.schedule is SCHEDULE
    assert np.array_equal(asked["X"], fitted.public_data[0])
    assert asked["y"].max() == 2
    assert {k: asked[k] for k in ("n_records", "surrogate", "curvature", "seed")} == {
        "n_records": 300,
        "surrogate": "images",
        "curvature": "kronecker",
        "seed": 4,
    }
    assert asked["target_epsilon"] == 4.0
    tuner(schedule=None, curvature="diagonal").fit(X, y)
    described = asked["curvature"](asked["model"], 0.5).describe()
    assert described["layers"][0]["kind"] == "diagonal"
    assert described["layers"][0]["damping"] == 0.5


def test_a_planned_subspace_is_where_weights_move(monkeypatch):
    asked = {}

    class Planned:
        schedule, in_subspace, n_components = SCHEDULE, True, 2

        def projection(self, model, X_public, y_public):
            asked.update(X=X_public, y=y_public)
            return qexp.CoordinateMask(len(model.weights), [0, 7])

    def plan(*_, **settings):
        asked.update(settings)
        return Planned()

    monkeypatch.setitem(sys.modules, "qexp.planning", types.SimpleNamespace(plan=plan))
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    fitted = tuner(schedule=None, surrogate="images", subspaces=(2, 5)).fit(X, y)
    assert asked["subspaces"] == (2, 5)
    assert np.array_equal(asked["X"], fitted.public_data[0])
    start = from_sklearn(fitted.pretrained)[0].weights
    assert np.flatnonzero(fitted.release_.weights != start).tolist() == [0, 7]


def test_a_ledger_pays_for_every_fit():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    ledger = qexp.PrivacyLedger(**TARGET)
    fitted = tuner().fit(X, y, ledger=ledger)
    assert ledger.mu_spent == fitted.release_.mu
    with pytest.raises(qexp.BudgetExceededError):
        tuner().fit(X, y, ledger=ledger)


# ---------------------------------------------------------------------------------- privacy


def test_records_that_cannot_be_used_are_null_and_raise_nothing():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    spoiled = []
    for value, label in ((np.nan, "ant"), (-np.inf, "bee"), (0.0, "unicorn"), (0.0, "")):
        bad_X, bad_y = X.copy(), y.astype("U10")
        bad_X[11, 2] += value
        bad_y[11] = label
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spoiled.append(tuner().fit(bad_X, bad_y).release_.weights)
    for other in spoiled[1:]:
        assert np.array_equal(other, spoiled[0])
    assert not np.array_equal(tuner().fit(X, y).release_.weights, spoiled[0])
    for label in (None, 3.5, ["ant"], {}):
        strange = y.astype(object)
        strange[11] = label
        assert np.array_equal(tuner().fit(X, strange).release_.weights, spoiled[0])


@pytest.fixture(scope="module")
def nulled():
    """Give the weights of a fit without record 11."""
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    X[11] = np.nan
    return tuner().fit(X, y).release_.weights


@pytest.mark.parametrize("kind", bad_records.ROWS)
def test_a_bad_row_of_a_list_is_a_null_record(nulled, kind):
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    rows = X.tolist()
    rows[11] = bad_records.ROWS[kind](rows[11])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bad = tuner().fit(rows, y.tolist()).release_.weights
        assert np.array_equal(bad, nulled)
        rows = list(X)
        rows[11] = bad_records.ROWS[kind](X[11].tolist())
        assert np.array_equal(tuner().fit(rows, y).release_.weights, nulled)


@pytest.mark.parametrize("kind", bad_records.LABELS)
def test_a_bad_label_of_a_list_is_a_null_record(nulled, kind):
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    for labels in (y.tolist(), [[label] for label in y.tolist()]):
        labels[11] = bad_records.LABELS[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(tuner().fit(X, labels).release_.weights, nulled)


def test_the_classes_are_those_of_the_pretrained_model_whatever_the_labels():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    for labels in (y, np.full(300, "ant"), np.full(300, "dog")):
        assert tuner().fit(X, labels).classes_.tolist() == ["ant", "bee", "cat"]


def test_messages_tell_of_dtypes_and_never_of_values():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    text = X.astype(str)
    text[5, 0] = "secret"
    for bad in (text, text.astype(object)):
        with pytest.raises(TypeError, match="it needs numbers") as caught:
            tuner().fit(bad, y)
        assert "secret" not in str(caught.value)
    with pytest.raises(TypeError, match="same kind of labels"):
        tuner().fit(X, np.zeros(300))


SECRET = 123.456789
LABELS = np.repeat(["ant", "bee", "cat"], 20)


def with_secret(dtype=float, shape=(60, 5)):
    X = np.random.default_rng(3).normal(size=shape).astype(dtype)
    X[(0,) * X.ndim] = SECRET
    return X


class Frame:
    """As much of a data frame as is read of one; a missing value makes its array one of objects."""

    def __init__(self, values, dtype):
        self.values, self.shape = values, values.shape
        self.columns = list("abcde")
        self.dtypes = [np.dtype(dtype)] * len(self.columns)

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


STRANGE_X = {
    "a scalar": SECRET,
    "a scalar of NumPy's": np.float64(SECRET),
    "text": str(SECRET),
    "one dimension": with_secret(shape=60),
    "three dimensions": with_secret(shape=(60, 5, 2)),
    "complex": with_secret(complex),
    "objects": with_secret().astype(object),
    "strings": with_secret().astype(str),
    "bytes": with_secret().astype(bytes),
    "dates": with_secret().astype("datetime64[s]"),
    "sparse": sparse.csr_matrix(with_secret()),
    "a list of numbers": with_secret(shape=60).tolist(),
    "lists of text": with_secret().astype(str).tolist(),
    "complex lists": with_secret(complex).tolist(),
    "deep lists": with_secret(shape=(60, 5, 2)).tolist(),
    "ragged lists": [[SECRET], *with_secret().tolist()[1:]],
    "a dictionary": {SECRET: SECRET},
    "a set": {SECRET},
    "a frame of text": Frame(with_secret().astype(str).astype(object), object),
    "too few features": with_secret(shape=(60, 4)),
    "not finite": np.where(with_secret() == SECRET, SECRET, np.nan),
    "None": None,
}
STRANGE_Y = {
    "a scalar": SECRET,
    "text": str(SECRET),
    "numbers": with_secret(shape=60),
    "two dimensions": with_secret(),
    "three dimensions": with_secret(shape=(60, 5, 2)),
    "complex": with_secret(complex, shape=60),
    "objects": with_secret(shape=60).astype(object),
    "strings": with_secret(shape=60).astype(str),
    "bytes": with_secret(shape=60).astype(bytes),
    "dates": with_secret(shape=60).astype("datetime64[s]"),
    "sparse": sparse.csr_matrix(with_secret(shape=(60, 1))),
    "lists": with_secret().tolist(),
    "a list of numbers": with_secret(shape=60).tolist(),
    "a complex list": with_secret(complex, shape=60).tolist(),
    "ragged lists": [[SECRET, SECRET], *LABELS.tolist()[1:]],
    "a list of arrays": [with_secret(shape=2), *LABELS.tolist()[1:]],
    "a dictionary": {SECRET: SECRET},
    "too few": with_secret(shape=59).tolist(),
}


def said(call, *arguments):
    """Give all that a call says: messages of its errors and of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call(*arguments)
        except Exception as error:
            trace = "".join(traceback.format_exception_only(error))
            while error is not None:
                trace += str(error)
                error = error.__cause__ or error.__context__
        else:
            trace = ""
    return trace + " ".join(str(warning.message) for warning in caught)


@pytest.fixture(scope="module")
def fitted():
    return tuner().fit(*blobs(300, ("ant", "bee", "cat"), seed=1))


@pytest.mark.parametrize("kind", STRANGE_X)
def test_no_message_about_records_holds_a_value(fitted, kind):
    strange = STRANGE_X[kind]
    for call, arguments in (
        (tuner().fit, (strange, LABELS)),
        (fitted.predict, (strange,)),
        (fitted.predict_proba, (strange,)),
        (fitted.score, (strange, LABELS)),
    ):
        message = said(call, *arguments)
        assert "123" not in message
        assert "1.23" not in message


@pytest.mark.parametrize("kind", STRANGE_Y)
def test_no_message_about_labels_holds_a_value(fitted, kind):
    for call in (tuner().fit, fitted.score):
        message = said(call, with_secret(), STRANGE_Y[kind])
        assert "123" not in message
        assert "1.23" not in message


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            "a scalar of NumPy's",
            ValueError,
            r"X has the shape \(\); it needs two .* Reshape your data",
        ),
        ("one dimension", ValueError, r"X has the shape \(60,\); it needs two dimensions"),
        ("three dimensions", ValueError, r"X has the shape \(60, 5, 2\)"),
        ("complex", ValueError, "Complex data not supported: X is an array of complex128"),
        ("objects", TypeError, "X is an array of object; it needs numbers"),
        ("sparse", TypeError, r"X is a sparse csr_matrix; .* give X\.toarray\(\)"),
        ("a frame of text", TypeError, "X is an array of object"),
        ("a scalar", ValueError, r"X has the shape \(\)"),
        ("a dictionary", ValueError, r"X has the shape \(\)"),
    ],
)
def test_records_of_a_wrong_kind_are_refused_by_kind_and_shape(fitted, kind, error, message):
    for call in (lambda X: tuner().fit(X, LABELS), fitted.predict, fitted.predict_proba):
        with pytest.raises(error, match=message):
            call(STRANGE_X[kind])


@pytest.mark.parametrize("kind", ["a list of numbers", "ragged lists", "complex lists"])
def test_lists_to_predict_must_hold_rows(fitted, kind):
    for call in (fitted.predict, fitted.predict_proba):
        with pytest.raises(ValueError, match="X has an entry that is no row of 5 numbers; it need"):
            call(STRANGE_X[kind])
    X = with_secret()
    assert np.array_equal(fitted.predict(X.tolist()), fitted.predict(X))


def test_labels_of_a_wrong_kind_are_refused_by_kind_and_shape(fitted):
    for call in (tuner().fit, fitted.score):
        with pytest.raises(ValueError, match="Complex data not supported: y is an array of comp"):
            call(with_secret(), STRANGE_Y["complex"])
        with pytest.raises(TypeError, match=r"y is a sparse csr_matrix; .* y\.toarray\(\)"):
            call(with_secret(), STRANGE_Y["sparse"])


def test_a_missing_value_of_a_frame_nulls_its_record():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    spoiled = X.copy()
    spoiled[11] = np.nan
    expected = tuner().fit(spoiled, y).release_.weights
    missing = X.astype(object)
    missing[11] = None
    assert np.array_equal(tuner().fit(Frame(missing, float), y).release_.weights, expected)


def test_a_missing_value_of_a_pandas_frame_nulls_its_record():
    pandas = pytest.importorskip("pandas")
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    numbers = np.rint(10 * X)
    spoiled = numbers.copy()
    spoiled[11] = np.nan
    expected = tuner().fit(spoiled, y).release_.weights
    for dtype in ("Float64", "Int64"):
        frame = pandas.DataFrame(numbers).astype(dtype)
        frame.iloc[11, 2] = pandas.NA
        assert np.array_equal(tuner().fit(frame, y).release_.weights, expected)
        frame = pandas.DataFrame(numbers).astype(dtype)
        labels = pandas.Series(y, dtype="string")
        labels.iloc[11] = pandas.NA
        assert np.array_equal(tuner().fit(frame, labels).release_.weights, expected)


def test_scores_are_shares_of_labels_that_are_met(fitted):
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    right = fitted.predict(X) == y
    assert fitted.score(X, y) == fitted.score(X, y.tolist()) == np.mean(right)
    weights = np.arange(300)
    assert fitted.score(X, y, weights) == pytest.approx(np.average(right, weights=weights))
    assert fitted.score(X, np.full(300, "dog")) == 0


def test_a_record_that_is_not_finite_has_no_prediction():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    fitted = tuner().fit(X, y)
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fitted.predict(X)


# ------------------------------------------------------------------- scikit-learn's machinery


def test_parameters_can_be_got_and_set_and_clones_keep_the_pretrained_fit():
    original = tuner()
    copied = clone(original)
    assert copied is not original
    for name, value in original.get_params(deep=False).items():
        assert getattr(copied, name) is value
    copied.set_params(target_epsilon=9.0, rounds=3)
    assert copied.target_epsilon == 9.0
    assert original.target_epsilon == 4.0
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    assert copied.fit(X, y).release_.epsilon == 9.0
    assert not hasattr(clone(copied), "release_")


def test_a_search_over_public_data_works():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    search = GridSearchCV(tuner(), {"target_epsilon": [0.1, 4.0]}, cv=2).fit(X, y)
    assert search.best_estimator_.predict(X).shape == (300,)


def test_a_fitted_estimator_can_be_pickled_and_copied():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    fitted = tuner().fit(X, y)
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert np.array_equal(other.predict_proba(X), fitted.predict_proba(X))
        assert other.release_.certificate() == fitted.release_.certificate()


# --------------------------------------------------------------------------------- bad input


def test_a_share_of_the_budget_buys_private_curvature():
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    fitted = tuner(schedule=None, rounds=2, curvature_share=0.1).fit(X, y)
    assert fitted.schedule_.curvature_share == 0.1
    assert fitted.release_.certificate()["private_curvature"]["mu"] ** 2 == pytest.approx(
        0.1 * fitted.release_.mu**2, rel=1e-6
    )


@pytest.mark.parametrize(("share", "shares"), [("plan", (0.0, 0.05, 0.2)), (0.3, (0.3,))])
def test_a_share_can_be_planned(monkeypatch, share, shares):
    asked = {}

    def plan(*_, **settings):
        asked.update(settings)
        return types.SimpleNamespace(schedule=SCHEDULE, in_subspace=False)

    monkeypatch.setitem(sys.modules, "qexp.planning", types.SimpleNamespace(plan=plan))
    X, y = blobs(300, ("ant", "bee", "cat"), seed=1)
    tuner(schedule=None, curvature_share=share, neighboring_relation="replace_one").fit(X, y)
    assert asked["curvature_shares"] == shares
    assert asked["neighboring_relation"] == "replace_one"
    assert {name: asked[name] for name in TARGET} == TARGET


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"public_data": None}, r"curvature='kronecker' is made of public records: give public"),
        ({"public_data": None, "schedule": None}, "rounds='plan' needs public_data"),
        ({"public_data": (np.ones((9, 5)), None), "schedule": None}, "needs public_data.*labels"),
        ({"subspaces": (4,)}, "subspaces is .* without a plan; it needs rounds='plan'"),
        ({"subspaces": (4,), "schedule": None, "rounds": 2}, "without a plan"),
        ({"public_data": 3}, r"public_data needs a pair \(X_public, y_public\)"),
        ({"public_data": (np.ones((9, 4)), None)}, "X_public has 4 features, pretrained has 5"),
        ({"public_data": (np.ones(9), None)}, r"X_public has the shape \(9,\)"),
        (
            {"public_data": (np.ones((2, 5)), ["ant", "dog"])},
            r"y_public holds .*dog.*, which pretrained does not know",
        ),
        ({"rounds": "many", "schedule": None}, "rounds is 'many'; it needs 'plan' or a number"),
        ({"rounds": 0, "schedule": None}, "rounds is 0"),
        ({"curvature": "full"}, "curvature is 'full'; it needs one of"),
        ({"curvature_share": 0.2}, "give it as the schedule's own curvature_share"),
        ({"curvature_share": "plan", "rounds": 2, "schedule": None}, "together with rounds='plan'"),
        ({"curvature_share": 1.5, "rounds": 2, "schedule": None}, "curvature_share is 1.5"),
        ({"target_epsilon": -1.0}, "epsilon"),
    ],
)
def test_public_arguments_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tuner(**changes).fit(*blobs(50, ("ant", "bee", "cat")))


def test_private_data_of_wrong_shapes_are_refused():
    X, y = blobs(50, ("ant", "bee", "cat"))
    with pytest.raises(ValueError, match="X has 4 features, pretrained has 5"):
        tuner().fit(X[:, :4], y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        tuner().fit(X, y[1:])
    with pytest.raises(ValueError, match="target y is None"):
        tuner().fit(X, None)
    with pytest.raises(NotFittedError):
        tuner().predict(X)


def test_without_scikit_learn_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import qexp\n"
        "try:\n"
        "    import qexp.estimator\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert 'pip install "qexp[sklearn]"' in printed
