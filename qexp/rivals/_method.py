"""One interface for all rivals: a method is settings, an algorithm on a boundary, and a grid."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks
from qexp._arguments import bit_generator
from qexp._privacy_checks import check_delta, check_epsilon
from qexp.bits import BitGenerator
from qexp.models._records import has_dtype, require_labels_of, with_dtype
from qexp.privacy import compose_mu, noise_multiplier
from qexp.release import PrivateRelease, make_release
from qexp.rivals._accounting import Target
from qexp.rivals._boundary import Boundary, PrivateBoundary

__all__ = ["Method", "PublicData", "RivalResult", "Tuned"]

S = TypeVar("S")
StopReason = Literal["finished", "diverged"]


@dataclass(frozen=True, eq=False)
class PublicData:
    """Labelled public records that a method may use as it likes."""

    X: NDArray[Any]
    y: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Tuned:
    """What an algorithm ends with: weights (p,), and whether they stayed within bounds."""

    theta: NDArray[Any]
    diverged: bool = False


Algorithm = Callable[[Any, Boundary, Any, PublicData | None], Tuned]


@dataclass(frozen=True, kw_only=True, eq=False)
class RivalResult:
    """What a rival made of private records.

    Attributes
    ----------
    model
        The model at the released weights.
    release : PrivateRelease or None
        None for a method without privacy. Its certificate names the method, its settings, the
        accountant and the neighbouring relation. `mu` is exact for methods that read all records
        in every sum; for Poisson samples it is what holds without the gain of sampling, and
        `epsilon` is the accountant's. The expected losses, which belong to qexp's own mechanism,
        are NaN.
    stopped_because : {"finished", "diverged"}
        "diverged": a step left all bounds; the weights are those before it, and the whole budget
        counts as spent.
    history : tuple of mappings
        Of each noisy sum: ``sum`` (its number), ``label``, ``n_components``, ``noise_to_signal``.
    """

    model: Any = field(repr=False)
    release: PrivateRelease | None
    stopped_because: StopReason
    history: tuple[Mapping[str, Any], ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Method(Generic[S]):
    """A way of fine-tuning that a user may choose instead of qexp's. Call it to run it.

    Attributes
    ----------
    name : str
    summary : str
        What it does and where it is from.
    settings_type : type
        A frozen dataclass; its defaults are the published ones where there are any.
    needs_public_data : bool
    """

    name: str
    summary: str
    settings_type: type[S]
    algorithm: Algorithm = field(repr=False)
    candidates: Callable[[], list[S]] = field(repr=False)
    neighbours: Callable[[S], list[S]] = field(repr=False)
    needs_public_data: bool = False

    def __post_init__(self) -> None:
        # Of the method itself, for `help(qexp.rivals.dp_sgd)`.
        settings = f"Its settings are :class:`{self.settings_type.__name__}`."
        called = inspect.getdoc(type(self).__call__) or ""
        object.__setattr__(self, "__doc__", f"{self.summary}\n\n{settings}\n\n{called}")

    def __call__(
        self,
        model: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        target_epsilon: float,
        target_delta: float,
        public_data: tuple[ArrayLike, ArrayLike] | None = None,
        settings: S | None = None,
        neighboring_relation: str = "replace_special",
        rng: BitGenerator | None = None,
        progress: bool = False,
    ) -> RivalResult:
        """Fine-tune a pretrained model on private records.

        Parameters
        ----------
        model
            Pretrained, public: a model of :mod:`qexp.models`, or any object with ``weights``,
            ``with_weights(weights)`` and ``gradient_blocks(X, y)``.
        X, y : array of shape (n, …) and (n,)
            The private records. n is public. Lists are for models with ``n_features``; what is no
            number in them counts as NaN, and so does a row of another length.
        target_epsilon, target_delta : float
            The privacy of everything together, to reach and not to exceed.
        public_data : (X, y), optional
            Public records, for methods that learn from them.
        settings : optional
            Of the method's `settings_type`. Default: the published ones. They must not have been
            chosen by looking at the private records: see :func:`plan_rival`.
        neighboring_relation : {"replace_special", "replace_one"}
            One record is replaced by a null record that contributes zero, or by any other record.
        rng : BitGenerator, optional
            Default: fresh cryptographic generators, for noise and samples alike.
        progress : bool
            Show a progress bar on a terminal.

        Returns
        -------
        RivalResult

        Raises
        ------
        ValueError, TypeError
            If a public argument is out of its range.
        ImportError
            If Poisson samples are to be accounted for and dp-accounting is not installed.

        Notes
        -----
        All methods state the relation that qexp states, so that equal (ε, δ) mean the same promise.
        For sums over all records, μ is exact under either relation. For Poisson samples the
        accounting is dp_accounting's by privacy loss distributions. Under "replace_special" a null
        record is sampled like any other and adds zero; the laws of a sum with and without the
        record's gradient are then those of the literature's "add or remove one", whose figures
        compare directly, while n, and with it the expected size of a sample, is public.
        """
        chosen = self._settings(settings)
        target = Target(
            check_epsilon(target_epsilon, "target_epsilon"),
            check_delta(target_delta, "target_delta"),
            neighboring_relation,
        )
        public = self._public(model, public_data)
        features, labels = _with_dtypes(model, X, y)
        if features.ndim == 0 or len(features) == 0 or labels.shape[:1] != features.shape[:1]:
            raise ValueError(
                f"X has shape {features.shape} and y {labels.shape}; they need one entry a record, "
                "and at least one record"
            )
        model.gradient_blocks(features, labels)  # checks dtypes and shapes
        theta_0 = _checks.finite_array(model.weights, "model.weights", 1)
        bits = bit_generator(rng)
        with closing(
            PrivateBoundary(features, labels, target, bits, progress=progress)
        ) as boundary:
            tuned = self.algorithm(model, boundary, chosen, public)
        theta = tuned.theta.astype(theta_0.dtype)
        return RivalResult(
            model=model.with_weights(theta),
            release=None
            if boundary.without_privacy
            else self._release(model, theta, boundary, chosen, public, bits),
            stopped_because="diverged" if tuned.diverged else "finished",
            history=tuple(boundary.history),
        )

    def _settings(self, settings: S | None) -> S:
        if settings is None:
            return self.settings_type()
        if not isinstance(settings, self.settings_type):
            raise TypeError(
                f"settings are a {type(settings).__name__}; {self.name} needs "
                f"{self.settings_type.__name__}"
            )
        return settings

    def _public(
        self, model: Any, public_data: tuple[ArrayLike, ArrayLike] | None
    ) -> PublicData | None:
        if public_data is None:
            if self.needs_public_data:
                raise ValueError(
                    f"{self.name} learns from public records; give public_data=(X_public, y_public)"
                )
            return None
        if not isinstance(public_data, tuple | list) or len(public_data) != 2:
            raise TypeError(
                f"public_data is a {type(public_data).__name__}; it needs to be a pair "
                "(X_public, y_public)"
            )
        X, y = (np.asarray(part) for part in public_data)
        if X.ndim == 0 or len(X) == 0 or y.shape != (len(X),):
            raise ValueError(
                f"public_data has shapes {X.shape} and {y.shape}; they need (m, …) and (m,), "
                "m at least 1"
            )
        X = X.astype(model.weights.dtype, copy=False)
        if not np.all(np.isfinite(X)):
            raise ValueError(
                "public_data holds NaN or infinite features; public records must be finite"
            )
        require_labels_of(model, y)
        return PublicData(X, y)

    def _release(
        self,
        model: Any,
        theta: NDArray[Any],
        boundary: PrivateBoundary,
        settings: S,
        public: PublicData | None,
        bits: BitGenerator,
    ) -> PrivateRelease:
        if not boundary.is_within_target():
            raise RuntimeError("the sums spent more than the target; nothing is released")
        target, claims, promises = boundary.target, boundary.claims, boundary.promises()
        mu = target.factor * compose_mu(mu for _, mu in promises) if promises else 0.0
        sampled = any(rate < 1 for rate, _ in promises)
        event = {
            "type": "ComposedDpEvent",
            "events": [
                {
                    "type": "SelfComposedDpEvent",
                    "count": count,
                    "event": {
                        "type": "PoissonSampledDpEvent",
                        "sampling_probability": rate,
                        "event": gaussian,
                    }
                    if rate < 1
                    else gaussian,
                }
                for (rate, claim), count in _counted(promises)
                for gaussian in [
                    {"type": "GaussianDpEvent", "noise_multiplier": noise_multiplier(claim)}
                ]
            ],
        }
        described: Mapping[str, Any] = model.describe() if hasattr(model, "describe") else {}
        values: dict[str, Any] = {
            "epsilon": target.epsilon if promises else 0.0,
            "delta": target.delta,
            "mu": mu,
            "neighboring_relation": target.neighboring_relation,
            "noise_multiplier": noise_multiplier(mu, target.factor) if mu else math.inf,
            "noise_to_signal": boundary.history[-1]["noise_to_signal"] if claims else 0.0,
            "expected_utility_loss": math.nan,
            "expected_mean_loss": math.nan,
            "n_records": boundary.n_records,
            "generator_is_secure": bits.secure,
        }
        certificate = {
            "method": self.name,
            "settings": _jsonable(asdict(settings)),  # type: ignore[call-overload]
            "accountant": "dp_accounting, privacy loss distributions"
            if sampled
            else "Gaussian differential privacy, exact",
            "mu_is": "without the gain of sampling" if sampled else "exact",
            "event": event,
            "sums": len(claims),
            "public_inputs": {
                "pretrained": _checks.array_digest(np.asarray(model.weights)),
                "model": dict(described),
                "public_data": None
                if public is None
                else [_checks.array_digest(public.X), _checks.array_digest(public.y)],
            },
            "lattices": [
                {**lattice.describe(), "count": count}
                for lattice, count in _counted(boundary.lattices)
            ],
            "generator": bits.name,
        }
        return make_release(theta, values, certificate)


def _with_dtypes(model: Any, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give the records as arrays whose dtypes and shapes no single record decides."""
    width = getattr(model, "n_features", None)
    for name, values in (("X", X), ("y", y)):
        if width is None and not has_dtype(values):
            raise TypeError(
                f"{name} is a {type(values).__name__}; for a model without n_features it must be "
                "an array: the dtype of a list would depend on single records"
            )
    return np.asarray(with_dtype(X, width)), np.asarray(with_dtype(y))


def _counted(items: Sequence[Any]) -> list[tuple[Any, int]]:
    """Count runs of equal items."""
    runs: list[tuple[Any, int]] = []
    for item in items:
        if runs and runs[-1][0] == item:
            runs[-1] = item, runs[-1][1] + 1
        else:
            runs.append((item, 1))
    return runs


def _jsonable(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in settings.items()
    }
