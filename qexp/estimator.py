"""A scikit-learn classifier whose fit is a private fine-tuning of a pretrained one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from qexp import _checks
from qexp.bits import insecure_test_generator
from qexp.curvature import Curvature, IdentityCurvature
from qexp.finetune import Schedule, fine_tune
from qexp.layered import LayeredCurvature
from qexp.ledger import PrivacyLedger
from qexp.models import MultilayerPerceptron
from qexp.models._records import alone, declared_dtypes, has_dtype, is_list, with_dtype
from qexp.projections import Projection

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.utils.validation import (
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ImportError as error:
    raise ImportError(
        'PrivateFineTuner needs scikit-learn of version 1.6 or later: pip install "qexp[sklearn]"'
    ) from error

__all__ = ["PrivateFineTuner", "from_sklearn"]

_KINDS: Final = ("kronecker", "dense", "diagonal", "identity")
_UNKNOWN: Final = -1
_PLANNED_SHARES: Final = (0.0, 0.05, 0.2)


class PrivateFineTuner(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fine-tune a pretrained classifier on private records, as a scikit-learn estimator.

    Parameters
    ----------
    pretrained : LogisticRegression, MLPClassifier, or a model of :mod:`qexp.models`
        Fitted, on public data. Never altered; `clone` keeps it as it is.
    target_epsilon, target_delta : float
        The privacy of one `fit`, all its rounds together.
    public_data : (X_public, y_public), optional
        Public records, which the curvature and the plan are made of; the plan wants records that
        pretraining has not seen. Only a ready-made `curvature` with a given `schedule` or number
        of `rounds` can do without. Labels may be None where nothing is planned.
    curvature : {"kronecker", "dense", "diagonal", "identity"}, Curvature, or callable
        A kind of block for every layer (see :class:`qexp.LayeredCurvature`), or a curvature ready
        made, or a function of a model that makes one of public data.
    rounds : "plan" or int
        "plan": :func:`qexp.planning.plan` chooses the schedule on the public data. A number: so
        many rounds with clipping norm 3, step size 1 and damping 0.01, which served well on
        images of digits; planning does better.
    curvature_share : float or "plan"
        Share of the budget that buys private curvature before the first round
        (:mod:`qexp.private_curvature`): for public records that say little of the private ones'
        inputs. "plan", with ``rounds="plan"``: none, 5 % or 20 %, whichever the plan finds best.
    subspaces : sequence of int
        With ``rounds="plan"`` and ``surrogate="images"``: sizes of public subspaces
        (:mod:`qexp.subspace`) that the plan chooses from, beside the whole space.
    schedule : Schedule, optional
        The settings themselves, instead of `rounds`, `curvature_share` and `subspaces`.
    surrogate : str or callable
        How the plan shifts public records to resemble the private ones: "tabular", "images" or a
        function.
    neighboring_relation : {"replace_special", "replace_one"}
    public_seed : int
        Of what is random and public: labels drawn for the curvature, the plan.
    insecure_test_seed : int, optional
        Makes the noise reproducible, for tests and studies. What is then fitted is **not
        private**, and `release_` says so.
    progress : bool

    Attributes
    ----------
    release_ : PrivateRelease
        Weights, (ε, δ) and certificate.
    result_ : FineTuneResult
        Rounds done, why it stopped, and each round's numbers.
    model_ : MultilayerPerceptron
        The fine-tuned model.
    schedule_ : Schedule
        What was used.
    plan_ : Plan or None
    classes_ : ndarray, shape (n_classes,)
        Those of `pretrained`, which are public; never those of the private labels.
    n_features_in_ : int

    Raises
    ------
    ImportError
        Without scikit-learn; it comes with ``qexp[sklearn]``.

    Notes
    -----
    Every `fit` is a release of its own, and pays for itself: hand the same `ledger` to all fits on
    the same records. A cross-validation or grid search on private records is many releases, and
    its scores are functions of the records that no noise protects. Choose settings on public data,
    as the plan does.

    scikit-learn's conventions hold but where they would tell of a single record. Of
    ``sklearn.utils.estimator_checks`` these are refused, and the reasons are the only ones:

    - ``check_estimators_nan_inf``, ``check_supervised_y_no_nan``,
      ``check_classifiers_regression_target``: a private record with a NaN, an infinity or a label
      that `pretrained` does not know counts as null, silently. An error would tell that it is
      there. (`predict` raises as usual.)
    - ``check_dtype_object``: an array of objects is converted value by value, and the message of
      what fails would quote a record. It is refused on account of its dtype.
    - ``check_fit_idempotent``, ``check_supervised_y_2d``: a second fit on the same records draws
      new noise. (With `insecure_test_seed` these two pass.)

    The checks need an estimator that can be fitted to any data, so the tests let it pretrain on
    what each check brings.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(2000, 3)); y = np.where(X[:, 0] > 0, "yes", "no")
    >>> public, private = slice(0, 500), slice(500, None)
    >>> tuner = PrivateFineTuner(
    ...     LogisticRegression().fit(X[public], y[public]), target_epsilon=1.0, target_delta=1e-5,
    ...     public_data=(X[public], y[public]), rounds=2)
    >>> tuner.fit(X[private], y[private]).classes_.tolist()
    ['no', 'yes']
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        target_epsilon: float,
        target_delta: float,
        public_data: tuple[ArrayLike, ArrayLike | None] | None = None,
        curvature: str | Curvature | Callable[[Any], Curvature] = "kronecker",
        rounds: str | int = "plan",
        curvature_share: str | float = 0.0,
        subspaces: Sequence[int] = (),
        schedule: Schedule | None = None,
        surrogate: Any = "tabular",
        neighboring_relation: str = "replace_special",
        public_seed: int = 0,
        insecure_test_seed: int | None = None,
        progress: bool = False,
    ) -> None:
        self.pretrained = pretrained
        self.target_epsilon = target_epsilon
        self.target_delta = target_delta
        self.public_data = public_data
        self.curvature = curvature
        self.rounds = rounds
        self.curvature_share = curvature_share
        self.subspaces = subspaces
        self.schedule = schedule
        self.surrogate = surrogate
        self.neighboring_relation = neighboring_relation
        self.public_seed = public_seed
        self.insecure_test_seed = insecure_test_seed
        self.progress = progress

    def __sklearn_clone__(self) -> Self:
        # The pretrained model and the public data are inputs: a clone that lost the fit of the
        # former, as scikit-learn's own would, could not be fitted.
        return type(self)(**self.get_params(deep=False))

    def fit(self, X: ArrayLike, y: ArrayLike, *, ledger: PrivacyLedger | None = None) -> Self:
        """Fine-tune on private records.

        Parameters
        ----------
        X : array_like of numbers, shape (n, n_features)
            Private. A record with a NaN or an infinity counts as null, silently; in lists, so does
            one with what is no number, or with too few or too many numbers.
        y : array_like, shape (n,)
            Private labels, of the kind of `pretrained`'s. One that it does not know makes its
            record null, silently.
        ledger : PrivacyLedger, optional
            Asked before and charged after each round.

        Returns
        -------
        PrivateFineTuner
            Itself.

        Raises
        ------
        ValueError, TypeError
            If a public argument, a shape or a dtype is wrong. Never because of a record's values.
        BudgetExceededError
            If `ledger` has not enough left for the first round.
        """
        if y is None:
            raise ValueError(
                "PrivateFineTuner requires y to be passed, but the target y is None: give the "
                "label of every record"
            )
        if not has_dtype(X):
            X = with_dtype(X, self._pretrained()[0].n_features)
        _require_records(X)
        with np.errstate(all="ignore"):  # A warning on overflow would tell of one record.
            features = validate_data(
                self, X, dtype=(np.float64, np.float32), ensure_all_finite=False, reset=True
            )
        labels = _as_labels(y)
        check_consistent_length(features, labels)

        model, classes = self._pretrained()
        _require_width(features, model, "X")
        public = self._public_records(model, classes)
        self.plan_: Any = None
        self.schedule_ = self._schedule(model, public, len(features))
        projection, curvature = self._shape(model, public)
        self.result_ = fine_tune(
            model,
            features,
            class_numbers(labels, classes),
            schedule=self.schedule_,
            curvature=curvature,
            projection=projection,
            target_epsilon=self.target_epsilon,
            target_delta=self.target_delta,
            neighboring_relation=self.neighboring_relation,
            ledger=ledger,
            rng=None
            if self.insecure_test_seed is None
            else insecure_test_generator(self.insecure_test_seed),
            progress=self.progress,
        )
        self.model_, self.release_ = self.result_.model, self.result_.release
        self.classes_ = classes
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class probabilities.

        Parameters
        ----------
        X : array_like of numbers, shape (m, n_features)

        Returns
        -------
        ndarray, shape (m, n_classes)
            Columns as in `classes_`.

        Raises
        ------
        ValueError, TypeError
            If a shape or a dtype is wrong, or a record is not finite. No message quotes a record.
        """
        check_is_fitted(self)
        if not has_dtype(X):
            X = _of_lists(X, self.n_features_in_)
        _require_records(X)
        features = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        probabilities: NDArray[Any] = self.model_.predict_proba(features)
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the likeliest classes.

        Parameters
        ----------
        X : array_like of numbers, shape (m, n_features)

        Returns
        -------
        ndarray, shape (m,)
            Labels out of `classes_`.
        """
        chosen = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[chosen]
        return labels

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the share of records whose likeliest class is their label.

        Parameters
        ----------
        X : array_like of numbers, shape (m, n_features)
        y : array_like, shape (m,)
            A label that is none of `classes_` counts as wrong.
        sample_weight : array_like, shape (m,), optional

        Returns
        -------
        float
        """
        predicted = self.predict_proba(X).argmax(axis=1)
        # Numbers of classes, as messages about labels would quote them.
        labels = class_numbers(_as_labels(y), self.classes_)
        return float(accuracy_score(labels, predicted, sample_weight=sample_weight))

    # ---------------------------------------------------------------------- the public side

    def _pretrained(self) -> tuple[Any, NDArray[Any]]:
        model = self.pretrained
        if hasattr(model, "gradient_blocks") and hasattr(model, "with_weights"):
            return model, np.arange(model.n_classes)
        return from_sklearn(model)

    def _public_records(
        self, model: Any, classes: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.int64] | None] | None:
        if self.public_data is None:
            return None
        try:
            X, y = self.public_data
        except (TypeError, ValueError):
            raise ValueError(
                "public_data needs a pair (X_public, y_public); y_public may be None where "
                "nothing is planned"
            ) from None
        features = np.asarray(X)
        if features.ndim != 2 or features.dtype.kind not in "buif":
            raise ValueError(
                f"X_public has the shape {features.shape} and dtype {features.dtype}; it needs "
                "two dimensions of numbers"
            )
        _require_width(features, model, "X_public")
        if y is None:
            return features, None
        labels = class_numbers(np.asarray(y), classes)
        check_consistent_length(features, labels)
        if np.any(labels == _UNKNOWN):
            unknown = np.asarray(y)[labels == _UNKNOWN][0]
            raise ValueError(
                f"y_public holds {unknown!r}, which pretrained does not know; it needs labels out "
                f"of {classes.tolist()}"
            )
        return features, labels

    def _schedule(
        self, model: Any, public: tuple[NDArray[Any], Any] | None, n_records: int
    ) -> Schedule:
        if len(self.subspaces) > 0 and (self.schedule is not None or self.rounds != "plan"):
            raise ValueError(
                f"subspaces is {self.subspaces!r} without a plan; it needs rounds='plan' and no "
                "schedule"
            )
        if self.schedule is not None:
            if not isinstance(self.schedule, Schedule):
                raise TypeError(
                    f"schedule is a {type(self.schedule).__name__}; it needs a qexp Schedule, or "
                    'None, with rounds="plan" or a number of rounds'
                )
            if self.curvature_share != 0.0:
                raise ValueError(
                    f"curvature_share is {self.curvature_share!r} beside a schedule; give it as "
                    "the schedule's own curvature_share"
                )
            return self.schedule
        shares: tuple[float, ...] = _PLANNED_SHARES
        if not isinstance(self.curvature_share, str):
            shares = (self.curvature_share,)
        elif self.curvature_share != "plan" or self.rounds != "plan":
            raise ValueError(
                f"curvature_share is {self.curvature_share!r} with rounds={self.rounds!r}; it "
                "needs a number in [0, 1), or 'plan' together with rounds='plan'"
            )
        if isinstance(self.rounds, str):
            if self.rounds != "plan":
                raise ValueError(
                    f"rounds is {self.rounds!r}; it needs 'plan' or a number of rounds"
                )
            if public is None or public[1] is None:
                raise ValueError(
                    "rounds='plan' needs public_data=(X_public, y_public), with labels; give "
                    "them, or a schedule, or a number of rounds"
                )
            from qexp.planning import plan

            kronecker = isinstance(self.curvature, str) and self.curvature == "kronecker"
            made: Any = plan(
                model,
                *public,
                n_records=n_records,
                target_epsilon=self.target_epsilon,
                target_delta=self.target_delta,
                neighboring_relation=self.neighboring_relation,
                surrogate=self.surrogate,
                curvature_shares=shares,
                subspaces=self.subspaces,
                curvature="kronecker"
                if kronecker
                else lambda at, damping: self._curvature_at(at, public, damping),
                seed=self.public_seed,
            )
            self.plan_ = made
            planned: Schedule = made.schedule
            return planned
        rounds = _checks.count(self.rounds, "rounds")
        return Schedule(
            rounds=rounds,
            clipping_norm=3.0,
            step_size=1.0,
            damping=1e-2,
            curvature_share=shares[0],
        )

    def _shape(
        self, model: Any, public: tuple[NDArray[Any], Any] | None
    ) -> tuple[Projection | None, Curvature | Callable[[Any], Curvature]]:
        """Give the projection, if one was planned, and the curvature."""
        if self.plan_ is not None and self.plan_.in_subspace:
            assert public is not None
            projection = self.plan_.projection(model, *public)
            return projection, IdentityCurvature(self.plan_.n_components)
        return None, self._curvature(public, self.schedule_.damping)

    def _curvature(
        self, public: tuple[NDArray[Any], Any] | None, damping: float
    ) -> Curvature | Callable[[Any], Curvature]:
        if not isinstance(self.curvature, str):
            return self.curvature
        if self.curvature not in _KINDS:
            raise ValueError(
                f"curvature is {self.curvature!r}; it needs one of {_KINDS}, a Curvature, or a "
                "function of a model"
            )
        if public is None:
            raise ValueError(
                f"curvature={self.curvature!r} is made of public records: give "
                "public_data=(X_public, y_public), or a curvature that is ready made"
            )
        return lambda model: self._curvature_at(model, public, damping)

    def _curvature_at(
        self, model: Any, public: tuple[NDArray[Any], Any] | None, damping: float
    ) -> Curvature:
        if isinstance(self.curvature, str):
            assert public is not None
            return LayeredCurvature.from_model(
                model, public[0], damping=damping, kinds=self.curvature, seed=self.public_seed
            )
        ready: Any = self.curvature
        curvature: Curvature = ready if hasattr(ready, "whiten") else ready(model)
        return curvature


def from_sklearn(estimator: Any) -> tuple[MultilayerPerceptron, NDArray[Any]]:
    """Give a fitted scikit-learn classifier as a model of :mod:`qexp.models`.

    Parameters
    ----------
    estimator : LogisticRegression or MLPClassifier
        Fitted; multinomial or binary logistic output, hidden layers of tanh or relu.

    Returns
    -------
    model : MultilayerPerceptron
        With the same probabilities. A single logistic output z becomes two softmax outputs
        (-z/2, z/2).
    classes : ndarray
        Labels of its outputs.

    Raises
    ------
    TypeError
        If it is another kind of estimator.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If its outputs are no softmax over classes, or its activation is not known here.
    """
    if isinstance(estimator, LogisticRegression):
        check_is_fitted(estimator)
        layers = [np.column_stack([estimator.coef_, estimator.intercept_])]
        activation: Any = "tanh"
        one_against_rest = getattr(estimator, "multi_class", "auto") == "ovr"
        if len(estimator.classes_) > 2 and (one_against_rest or estimator.solver == "liblinear"):
            raise ValueError(
                "the pretrained LogisticRegression has one-against-rest outputs, which are no "
                "softmax; pretrain with solver='lbfgs'"
            )
        if len(estimator.classes_) == 2 and getattr(estimator, "multi_class", "") == "multinomial":
            layers[0] = 2 * layers[0]  # Its probabilities are the softmax of (-z, z).
    elif isinstance(estimator, MLPClassifier):
        check_is_fitted(estimator)
        layers = [
            np.column_stack([coefficients.T, intercepts])
            for coefficients, intercepts in zip(
                estimator.coefs_, estimator.intercepts_, strict=True
            )
        ]
        activation = estimator.activation
        if activation not in ("tanh", "relu"):
            raise ValueError(
                f"the pretrained MLPClassifier has activation={activation!r}; it needs 'tanh' or "
                "'relu'"
            )
        if estimator.out_activation_ != "softmax" and estimator.n_outputs_ != 1:
            raise ValueError(
                "the pretrained MLPClassifier gives several labels at once; it needs one class a "
                "record"
            )
    else:
        raise TypeError(
            f"pretrained is a {type(estimator).__name__}; it needs a fitted LogisticRegression or "
            "MLPClassifier, or a model of qexp.models (of a pipeline, give the last step, and "
            "transform the data by the others first)"
        )
    if len(layers[-1]) == 1:
        layers[-1] = np.concatenate([-layers[-1] / 2, layers[-1] / 2])
    sizes = [layers[0].shape[1] - 1, *(len(layer) for layer in layers)]
    weights = np.concatenate([layer.ravel() for layer in layers])
    model = MultilayerPerceptron(sizes, weights, activation=activation)
    return model, np.asarray(estimator.classes_)


def class_numbers(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    """Give every label's place among the classes; -1 for one that is none of them.

    Parameters
    ----------
    labels : ndarray, shape (n,)
        Of any kind.
    classes : ndarray, shape (n_classes,)
        Of the same kind.

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    TypeError
        If one array holds numbers and the other one text. No value of a label raises anything.
    """
    numbers = np.full(len(labels), _UNKNOWN, dtype=np.int64)
    kinds = labels.dtype.kind, classes.dtype.kind
    if "O" in kinds:
        places = {label: place for place, label in enumerate(classes.tolist())}
        for i, label in enumerate(labels.tolist()):
            with contextlib.suppress(Exception):  # A value that cannot be looked up is no class.
                numbers[i] = places.get(label, _UNKNOWN)
        return numbers
    if (kinds[0] in "US") != (kinds[1] in "US") or (
        kinds[0] != kinds[1] and {"S", "U"} == set(kinds)
    ):
        raise TypeError(
            f"y holds {labels.dtype} and pretrained was fitted to {classes.dtype}; they need the "
            "same kind of labels"
        )
    for place, label in enumerate(classes):
        numbers[labels == label] = place
    return numbers


def _require_records(X: Any) -> None:
    """Refuse by kind, dtype and shape what scikit-learn would refuse with a quotation."""
    _require_not_sparse(X, "X")
    dtypes, shape = _dtypes_and_shape(X)
    for dtype in dtypes:
        if dtype.kind == "c":
            raise ValueError(
                f"Complex data not supported: X is an array of {dtype}; it needs real numbers"
            )
        if dtype.kind not in "buif":
            raise TypeError(
                f"X is an array of {dtype}; it needs numbers: convert it first, as a message "
                "about a value that is no number would tell of its record"
            )
    if len(shape) != 2:
        raise ValueError(
            f"X has the shape {shape}; it needs two dimensions, (n, n_features). Reshape your "
            "data: X.reshape(-1, 1) if there is one feature, X.reshape(1, -1) if there is one "
            "record"
        )


def _dtypes_and_shape(X: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Give the dtypes that a data frame declares, or else an array's own one."""
    declared = declared_dtypes(X)
    if declared is not None:
        return declared, X.shape
    array = np.asarray(X)
    return [array.dtype], array.shape


def _of_lists(X: Any, n_features: int) -> Any:
    """Give lists as rows to predict, of which each must be one."""
    rows = with_dtype(X, n_features)
    if rows.ndim == 2 and np.isnan(rows).all(axis=1).any():
        raise ValueError(
            f"X has an entry that is no row of {n_features} numbers; it needs one row a record. "
            "Reshape your data: [[x] for x in X] if there is one feature, [X] if there is one "
            "record"
        )
    return rows


def _as_labels(y: Any) -> NDArray[Any]:
    """Give labels as an array (n,) of a dtype that no single label decides."""
    _require_not_sparse(y, "y")
    if is_list(y):
        labels = np.empty(len(y), dtype=object)
        for i, label in enumerate(y):
            labels[i] = alone(label)
    elif has_dtype(y) and all(isinstance(d, np.dtype) for d in declared_dtypes(y) or []):
        labels = np.asarray(y)
    else:
        labels = np.array(y, dtype=object)
    if labels.dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported: y is an array of {labels.dtype}; it needs labels of the "
            "kind that pretrained was fitted to"
        )
    column: NDArray[Any] = column_or_1d(labels, warn=True)
    return column


def _require_not_sparse(values: Any, name: str) -> None:
    if sparse.issparse(values):
        raise TypeError(
            f"{name} is a sparse {type(values).__name__}; it needs to be dense: give "
            f"{name}.toarray()"
        )


def _require_width(features: NDArray[Any], model: Any, name: str) -> None:
    if features.shape[1] != model.n_features:
        raise ValueError(
            f"{name} has {features.shape[1]} features, pretrained has {model.n_features}; they "
            "need the same number"
        )
