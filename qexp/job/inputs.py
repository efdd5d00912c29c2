"""What a job file names: opened and compared with each other before a private value is read."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qexp.curvature import Curvature, DenseCurvature, IdentityCurvature
from qexp.job.settings import JobSettings
from qexp.layered import LayeredCurvature
from qexp.models import MultilayerPerceptron
from qexp.planning import Rehearsal
from qexp.projections import SRHT, Identity, Projection
from qexp.shards import Shards, _opened, _taken, open_shards
from qexp.surrogates import record_surrogates

__all__ = ["Inputs", "open_inputs"]

Maker = Callable[[Any, float], Curvature]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The opened inputs of a job.

    Attributes
    ----------
    model
        Pretrained.
    X_public, y_public, public_groups : ndarray or None
        Public, in memory.
    rehearsals : list of Rehearsal
        What a plan is made on, the job's own model first unless only others are wanted; empty
        without a plan.
    shards : qexp.shards.Shards
        This rank's share of the private records; nothing of them is in memory.
    projection : Projection or None
        But for a subspace, which is learnt once there is a plan: see :mod:`qexp.job.subspace`.
    make_curvature : callable
        Of a model and a damping; of public data alone.
    """

    model: Any
    X_public: NDArray[Any] | None
    y_public: NDArray[Any] | None
    public_groups: NDArray[Any] | None
    rehearsals: list[Rehearsal]
    shards: Shards
    projection: Projection | None
    make_curvature: Maker

    @property
    def bare_model(self) -> Any:
        """The model without the block size of its private records."""
        return _bare(self.model)


def open_inputs(job: JobSettings, *, rank: int = 0, size: int = 1) -> Inputs:
    """Open all that a job file names; of private files, read no more than shapes and dtypes.

    Parameters
    ----------
    job : JobSettings
    rank, size : int
        Which share of the private records.

    Returns
    -------
    Inputs

    Raises
    ------
    OSError
        If a file cannot be opened.
    ValueError, TypeError
        If a file is damaged, or of another shape or dtype than it needs to be.
    """
    model = _perceptron(job) if job.model.kind == "perceptron" else _torch_model(job)
    if job.run.block_size is not None:
        model = _Blocked(model, job.run.block_size)
    private = job.private
    shards = open_shards(
        private.features, private.labels, groups=private.groups, rank=rank, size=size
    )
    public = job.public
    X = _in_memory(public.features, "features", _taken(public.labels, public.groups))
    y = _in_memory(public.labels, "labels")
    groups = _in_memory(public.groups, "groups")
    _require_width(model, shards.X.shape, "private.features")
    if X is not None:
        _require_width(model, X.shape, "public.features")
        for name, other in (("labels", y), ("groups", groups)):
            if other is not None:
                _require_as_many(X, other, "public.features", f"public.{name}")
    p = len(model.weights)
    projection: Projection | None = None
    k = job.projection.n_components
    if k is not None and k > p:
        raise ValueError(
            f"projection.n_components is {k}, the model has {p} weights; it needs no more"
        )
    if job.projection.kind == "srht":
        assert k is not None
        projection = SRHT(p, k, seed=job.projection.seed)
    return Inputs(
        model=model,
        X_public=X,
        y_public=y,
        public_groups=groups,
        rehearsals=_rehearsals(job, model, X, y) if job.schedule.rounds == "plan" else [],
        shards=shards,
        projection=projection,
        make_curvature=_maker(job, X, Identity(p) if projection is None else projection),
    )


def _maker(job: JobSettings, X: NDArray[Any] | None, projection: Projection) -> Maker:
    kind, seed = job.public.curvature, job.run.public_seed
    if kind == "identity":
        return lambda model, damping: IdentityCurvature(projection.n_components)
    assert X is not None
    if kind == "dense":
        return lambda model, damping: DenseCurvature.from_model(
            model, X, projection=projection, damping=damping, seed=seed
        )
    return lambda model, damping: LayeredCurvature.from_model(
        model, X, damping=damping, kinds=kind, seed=seed
    )


def _perceptron(job: JobSettings) -> MultilayerPerceptron:
    path, sizes = job.model.weights, job.model.layer_sizes
    assert path is not None
    assert sizes is not None
    weights = _weights(path, "model.weights")
    if job.model.dtype is not None:
        weights = weights.astype(job.model.dtype)
    try:
        return MultilayerPerceptron(sizes, weights, activation=job.model.activation)
    except (ValueError, TypeError) as error:
        raise type(error)(f"the weights in {path!r} do not fit model.layer_sizes: {error}") from (
            error
        )


def _weights(path: str, key: str) -> NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                loaded = loaded["weights"]
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path!r}; {key} names it") from None
    except PermissionError as error:
        raise PermissionError(f"{key}: {path!r} cannot be read ({error.strerror})") from (error)
    # A damaged archive sets off almost anything in zipfile and NumPy.
    except Exception as error:
        raise ValueError(
            f"{key}: {path!r} cannot be used ({error}); it needs a .npy file, or .npz "
            "with an array `weights`"
        ) from error
    if loaded.dtype not in (np.float32, np.float64):
        raise TypeError(f"{key}: {path!r} holds {loaded.dtype}; it needs float32 or float64")
    weights: NDArray[Any] = loaded.reshape(-1)
    return weights


def _torch_model(job: JobSettings) -> Any:
    assert job.model.entry_point is not None
    module_name, _, function = job.model.entry_point.partition(":")
    folder = os.path.dirname(job.path)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        make = getattr(importlib.import_module(module_name), function)
    except ImportError as error:
        raise ImportError(
            f"model.entry_point: {module_name!r} cannot be imported ({error}); put it beside the "
            'job file or install it, and PyTorch with pip install "qexp[torch]"'
        ) from error
    except AttributeError:
        raise ValueError(f"model.entry_point: {module_name!r} has no {function!r}") from None
    model = make()
    lacking = [
        name for name in ("weights", "with_weights", "gradient_blocks") if not hasattr(model, name)
    ]
    if lacking:
        raise TypeError(
            f"model.entry_point gave a {type(model).__name__} without {', '.join(lacking)}; it "
            "needs to return a qexp.models.torch.TorchModel"
        )
    if job.model.weights is not None:
        model = model.with_weights(_weights(job.model.weights, "model.weights"))
    return model


class _Blocked:
    """A model whose private records are read in blocks of a given size."""

    def __init__(self, model: Any, block_size: int) -> None:
        self._model, self._block_size = model, block_size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while it is unpickled
            raise AttributeError(name)
        return getattr(self._model, name)

    def with_weights(self, weights: Any) -> _Blocked:
        return _Blocked(self._model.with_weights(weights), self._block_size)

    def gradient_blocks(self, X: Any, y: Any) -> Any:
        return self._model.gradient_blocks(X, y, block_size=self._block_size)


def _bare(model: Any) -> Any:
    return model._model if isinstance(model, _Blocked) else model


def _in_memory(
    paths: tuple[str, ...] | None, what: str, taken: dict[str, list[str]] | None = None
) -> NDArray[Any] | None:
    return None if paths is None else np.asarray(_opened(paths, what, taken))


def _rehearsals(
    job: JobSettings, model: Any, X: NDArray[Any] | None, y: NDArray[Any] | None
) -> list[Rehearsal]:
    made, public, bare = [], job.public, _bare(model)

    def curvature(X: NDArray[Any]) -> Literal["kronecker"] | Maker:
        # Of this one the planner knows a fast way.
        if public.curvature == "kronecker":
            return "kronecker"
        # Plans are made without a projection.
        return _maker(job, X, Identity(len(model.weights)))

    if public.surrogate != "rehearsals":
        shifts: Any = public.surrogate
        if shifts == "records":
            shifts = record_surrogates(*_labelled(model, public, "public.surrogate_"))
        assert X is not None
        assert y is not None
        made.append(Rehearsal(bare, X, y, shifts, curvature(X)))
    for i, rehearsal in enumerate(job.rehearsal):
        name = f"rehearsal[{i}]"
        weights = _weights(rehearsal.weights, f"{name}.weights")
        if weights.shape != model.weights.shape:
            raise ValueError(
                f"{name}.weights are {len(weights)} numbers; the model needs {len(model.weights)}"
            )
        others = record_surrogates(*_labelled(model, rehearsal, f"{name}.surrogate_"))
        other = bare.with_weights(weights.astype(bare.weights.dtype))
        X, y = _labelled(model, rehearsal, f"{name}.")
        made.append(Rehearsal(other, X, y, others, curvature(X)))
    return made


def _labelled(model: Any, section: Any, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the records and labels whose keys begin with `name`, their section and a dot."""
    prefix = name.rpartition(".")[2]
    features, labels = (getattr(section, f"{prefix}{what}") for what in ("features", "labels"))
    X = np.asarray(_opened(features, "features", _taken(labels)))
    y = np.asarray(_opened(labels, "labels", None))
    _require_width(model, X.shape, f"{name}features")
    _require_as_many(X, y, f"{name}features", f"{name}labels")
    return X, y


def _require_as_many(X: NDArray[Any], other: NDArray[Any], name: str, others_name: str) -> None:
    if len(other) != len(X):
        raise ValueError(
            f"{name} have {len(X)} rows and {others_name} {len(other)}; they need the same"
        )


def _require_width(model: Any, shape: tuple[int, ...], name: str) -> None:
    width = getattr(model, "n_features", None)
    if width is not None and shape[1:] != (width,):
        raise ValueError(f"{name} have shape {shape}; the model needs (rows, {width})")


def summary(inputs: Inputs) -> Mapping[str, Any]:
    """Give the public sizes of a job."""
    by_user = inputs.shards.groups is not None
    return {
        # Where a user is protected, how many records they all have is not public.
        "n_records": None if by_user else inputs.shards.n_records_total,
        "n_parameters": len(inputs.model.weights),
        "n_components": len(inputs.model.weights)
        if inputs.projection is None
        else inputs.projection.n_components,
        "n_public": None if inputs.X_public is None else len(inputs.X_public),
    }
