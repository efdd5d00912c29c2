"""A module with a loss at some weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from qexp import _checks
from qexp.layered import LayeredCurvature
from qexp.models._records import as_labels, require_classes
from qexp.models.torch._determinism import THREADS, deterministic
from qexp.models.torch._layers import (
    Plan,
    chosen_parameters,
    common_dtype,
    lay_out,
    refuse_coupled,
    rows_of,
)
from qexp.models.torch._records import Records, as_array, as_tensor
from qexp.models.torch._sources import TorchCurvatureSource, TorchGradientSource

__all__ = ["TorchModel"]

Loss = Literal["cross_entropy"] | Callable[[Any, Any], Any]

_PROBE_TOLERANCE: Final = 1e-3


class TorchModel:
    """A PyTorch module with a loss, whose chosen parameters are one flat weight vector.

    It never changes, nor does the module given, which is copied. The copy runs in evaluation
    mode: dropout is off. Gradients are computed in blocks of one fixed shape, the last one padded
    with zeros, by deterministic algorithms on one thread; so a record's gradient depends on that
    record, its place in its block and public values alone, bit for bit.

    Parameters
    ----------
    module : torch.nn.Module
        On the CPU. It is called on one record at a time, with a leading batch dimension of 1.
    loss : "cross_entropy" or callable(outputs, target)
        "cross_entropy" wants outputs (1, K) and classes 0..K-1 as targets. A callable gets the
        module's outputs and the target for one record, both with a leading dimension of 1, and
        returns a single number.
    parameters : sequence of str, optional
        Names of the parameters to tune, or of the modules whose parameters to tune; all others
        stay as they are. Default: every parameter with ``requires_grad``.
    block_size : int
        Records that are computed together.
    frozen_batch_norm : bool
        Accept layers of batch normalisation, with their running statistics as fixed, public
        numbers. Those must come from public data.

    Raises
    ------
    ImportError
        On import of :mod:`qexp.models.torch`, if PyTorch is missing.
    TypeError, ValueError
        If an argument is wrong; if the module holds layers that couple the records of a batch.

    Examples
    --------
    >>> import torch, qexp
    >>> from qexp.models.torch import TorchModel
    >>> model = TorchModel(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(),
    ...                                        torch.nn.Linear(8, 3)))
    >>> model.layer_shapes
    ((8, 5), (3, 9))
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss = "cross_entropy",
        *,
        parameters: Sequence[str] | None = None,
        block_size: int = 64,
        frozen_batch_norm: bool = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module is a {type(module).__name__}; it needs a torch.nn.Module")
        if loss != "cross_entropy" and not callable(loss):
            raise ValueError(f"loss is {loss!r}; it needs 'cross_entropy' or a function")
        self._block_size = _checks.count(block_size, "block_size")
        refuse_coupled(module, frozen_batch_norm=frozen_batch_norm)
        chosen = chosen_parameters(module, parameters)
        self._frozen_batch_norm = frozen_batch_norm
        self._dtype = common_dtype(chosen)
        self._loss = loss
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._layers = lay_out(self._module, set(chosen))
        self._plans: dict[Any, Plan] = {}
        named = dict(self._module.named_parameters())
        self._set_tensors({name: named[name].detach().clone() for name in chosen})

    def _set_tensors(self, tensors: dict[str, Any]) -> None:
        self._tensors = tensors
        weights: NDArray[Any] = torch.cat([layer.pack(tensors) for layer in self._layers]).numpy()
        if not np.isfinite(weights).all():
            raise ValueError("the module's weights hold a NaN or an infinity; they must be finite")
        weights.flags.writeable = False
        self._weights = weights

    def __repr__(self) -> str:
        return (
            f"TorchModel({type(self._module).__name__}, n_parameters={self.n_parameters}, "
            f"layers={len(self._layers)}, dtype={self.dtype})"
        )

    @property
    def weights(self) -> NDArray[Any]:
        """The flat weight vector (p,), read-only."""
        return self._weights

    @property
    def dtype(self) -> np.dtype[Any]:
        """The weights' dtype."""
        return self._weights.dtype

    @property
    def n_parameters(self) -> int:
        """Length p of the weight vector."""
        return len(self._weights)

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """Shape of each layer's matrix in the weight vector."""
        return tuple(layer.shape for layer in self._layers)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Name of each layer's module, or parameter where it stands alone."""
        return tuple(layer.name for layer in self._layers)

    def describe(self) -> dict[str, Any]:
        """Return the architecture and the way of computing as a dictionary that JSON can hold."""
        return {
            "model": "TorchModel",
            "module": type(self._module).__name__,
            "loss": self._loss
            if isinstance(self._loss, str)
            else getattr(self._loss, "__name__", type(self._loss).__name__),
            "layers": [{"name": layer.name, "shape": list(layer.shape)} for layer in self._layers],
            "dtype": self.dtype.name,
            "n_parameters": self.n_parameters,
            "frozen_batch_norm": self._frozen_batch_norm,
            "block_size": self._block_size,
            "threads": THREADS,
            "torch": str(torch.__version__),
        }

    def with_weights(self, weights: ArrayLike) -> Self:
        """Return the model at other weights (p,), finite; they are rounded to the model's dtype.

        Raises
        ------
        ValueError
            If the shape is wrong or a weight is not finite.
        """
        other = copy.copy(self)
        other._set_tensors(self._unpacked(weights))
        return other

    def state_dict(self, theta: ArrayLike | None = None) -> dict[str, Any]:
        """Return a new state of the whole module, for its ``load_state_dict``.

        Parameters
        ----------
        theta : array_like of shape (p,), optional
            Weights, such as those of a release. Default: the model's own.
        """
        tensors = self._tensors if theta is None else self._unpacked(theta)
        named = self._module.named_parameters(remove_duplicate=False)
        # Tied parameters have several names, and one value.
        first = {id(p): name for name, p in self._module.named_parameters()}
        alias = {name: first[id(p)] for name, p in named}
        return {
            name: tensors.get(alias.get(name, name), value).detach().clone()
            if isinstance(value, torch.Tensor)
            else copy.deepcopy(value)
            for name, value in self._module.state_dict().items()
        }

    def _unpacked(self, weights: ArrayLike) -> dict[str, Any]:
        given = np.asarray(weights)
        if given.dtype.kind not in "iuf":
            raise TypeError(f"weights is {given.dtype}; it must hold real numbers")
        if given.shape != (self.n_parameters,):
            raise ValueError(
                f"weights has the shape {given.shape}; this model needs ({self.n_parameters},)"
            )
        with np.errstate(over="ignore"):
            flat = torch.from_numpy(np.array(given, dtype=self.dtype))
        tensors: dict[str, Any] = {}
        start = 0
        for layer in self._layers:
            tensors |= layer.unpack(flat[start : start + math.prod(layer.shape)])
            start += math.prod(layer.shape)
        return tensors

    # ------------------------------------------------------------------------------ prediction

    def outputs(self, X: Any) -> NDArray[Any]:
        """Return the module's outputs (n, ...), record by record.

        A record that is not finite has outputs of NaN.
        """
        records = Records(X, self._dtype, self._block_size)
        parts = []
        for block in records.blocks():
            with deterministic(), torch.no_grad():
                parts.append(self._block_outputs(block.inputs).numpy()[: block.n_records])
            parts[-1][~block.valid[: block.n_records]] = np.nan
        return np.concatenate(parts)

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the class probabilities (n, K); needs the loss "cross_entropy"."""
        self._require_classes_loss("predict_proba")
        scores = self.outputs(X)
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the likeliest classes (n,); -1 for a record that is not finite."""
        self._require_classes_loss("predict")
        scores = self.outputs(X)
        return np.where(np.isnan(scores[:, 0]), -1, scores.argmax(axis=1)).astype(np.int64)

    def score(self, X: Any, y: ArrayLike) -> float:
        """Return the share of records whose likeliest class is their label."""
        predicted, labels = self.predict(X), np.asarray(y)
        if labels.shape != predicted.shape:
            raise ValueError(f"y has the shape {labels.shape}; it must be {predicted.shape}")
        return float(np.mean((predicted == labels) & (predicted >= 0)))

    def _require_classes_loss(self, what: str) -> None:
        if self._loss != "cross_entropy":
            raise TypeError(
                f"{what} needs a model with the loss 'cross_entropy'; read .outputs(X) instead"
            )

    # --------------------------------------------------------------------------------- sources

    def gradient_blocks(self, X: Any, y: Any) -> TorchGradientSource:
        """Return the source of per-record gradients of the loss at the weights.

        This is the way of private records: nothing is raised, warned or logged on account of one
        record's values. A record with a NaN or an infinity, a label that is no class, or values
        that the module or the loss cannot take, has a gradient row of NaN, which the private sum
        replaces by zero.

        Parameters
        ----------
        X : array or torch.Tensor of shape (n, ...), or tuple of such
            The module's argument, or arguments. Floating-point numbers are rounded to the weights'
            dtype, integers become int64 (indices of an embedding), truth values stay. A memory map
            is read block by block.
        y : array or torch.Tensor of shape (n, ...)
            Classes 0..K-1, or targets as the loss takes them.

        Raises
        ------
        TypeError, ValueError
            If the dtype or the shape of a whole array is wrong, or the module or the loss cannot
            take zeros, whether or not the records call for any.
        """
        records = Records(X, self._dtype, self._block_size)
        return TorchGradientSource(self, records, self._targets(y, records), self._plan(records, y))

    def curvature_blocks(
        self,
        X: Any,
        *,
        labels: Literal["sampled", "expected", "given"] = "sampled",
        y: Any = None,
        seed: int = 0,
        first_record: int = 0,
    ) -> TorchCurvatureSource:
        """Return a source of rows r with Σ r rᵀ / n the curvature of the mean loss on public X.

        Parameters
        ----------
        X : array or torch.Tensor of shape (n, ...), or tuple of such
            Public records, finite.
        labels : {"sampled", "expected", "given"}
            "sampled": labels drawn from the model's own probabilities, the Monte-Carlo Fisher
            matrix. "expected": every class in turn, K rows a record, row c scaled by the root of
            c's probability: the Fisher matrix itself at K times the cost. Both need the loss
            "cross_entropy". "given": those in `y`, the empirical Fisher.
        y : array, optional
            Targets for "given".
        seed : int
            Of the drawn labels; public.
        first_record : int
            Number of the first record where X is a part of the public records: a record has the
            same "sampled" label in a part as in the whole.
        """
        first_record = _checks.count(first_record, "first_record", least=0)
        if labels not in ("sampled", "expected", "given"):
            raise ValueError(f"labels is {labels!r}; it must be 'sampled', 'expected' or 'given'")
        if (y is not None) != (labels == "given"):
            raise ValueError("y goes with labels='given', and only with it")
        if labels != "given" and self._loss != "cross_entropy":
            raise ValueError(
                "labels can be sampled or expected with the loss 'cross_entropy' only; pass "
                "labels='given' and public targets y"
            )
        records = Records(X, self._dtype, self._block_size)
        if y is None:
            plan = self._plan(records, np.zeros(records.n_records, np.int64))
            classes = self._n_classes(records) if labels == "expected" else None
            return TorchCurvatureSource(
                self,
                records,
                None,
                plan,
                seed=seed,
                first_record=first_record,
                classes=classes,
            )
        targets = self._targets(y, records)
        if self._loss == "cross_entropy":
            require_classes(targets, self._n_classes(records))
        return TorchCurvatureSource(self, records, targets, self._plan(records, y), seed=seed)

    def curvature(
        self,
        X: Any,
        *,
        damping: float,
        kinds: str | Sequence[str] | None = None,
        labels: Literal["sampled", "expected", "given"] = "sampled",
        y: Any = None,
        seed: int = 0,
    ) -> LayeredCurvature:
        """Return the curvature of the loss over public records, one block a layer.

        Parameters
        ----------
        X, labels, y, seed
            As in :meth:`curvature_blocks`.
        damping : float
            λ > 0.
        kinds : str or sequence of str, optional
            As in :meth:`qexp.LayeredCurvature.from_model`, for all layers or one each in the order
            of `layer_names`. Default: "kronecker" for linear and convolution layers, "diagonal"
            for all other parameters.

        Raises
        ------
        ValueError
            If a layer's public curvature cannot be factored, as where the public records do not
            reach it: the first factor of a low-rank adapter whose second one is zero, for example.
            Freeze such a layer, or start it elsewhere.
        """
        source = self.curvature_blocks(X, labels=labels, y=y, seed=seed)
        if kinds is None:
            kinds = source.default_kinds
        return LayeredCurvature.from_factors(
            source.factor_blocks(),
            layer_shapes=self.layer_shapes,
            n_records=source.n_records,
            damping=damping,
            kinds=kinds,
        )

    # ----------------------------------------------------------------------------- computation

    def _targets(self, y: Any, records: Records) -> NDArray[Any]:
        if self._loss == "cross_entropy":
            return as_labels(as_array(y, "y"), records.n_records, self._n_classes(records))
        targets: NDArray[Any] = as_array(y, "y")
        if targets.ndim == 0 or len(targets) != records.n_records:
            raise ValueError(
                f"y has the shape {targets.shape}; it must be ({records.n_records}, ...), as X has "
                "records"
            )
        return targets

    def _n_classes(self, records: Records) -> int:
        with deterministic(), torch.no_grad(), _taking(records):
            outputs, _ = self._forward(self._tensors, records.zeros(1), {})
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
            raise ValueError(
                "the loss 'cross_entropy' needs outputs of shape (1, K) for one record, K at least "
                f"2; the module gives {type(outputs).__name__ if shape is None else tuple(shape)}; "
                "pass a function of (outputs, target) as the loss"
            )
        return int(shape[1])

    def _forward(
        self, tensors: dict[str, Any], inputs: Sequence[Any], taps: dict[int, list[Any]]
    ) -> tuple[Any, dict[int, list[Any]]]:
        """Call the module; add the taps to their layers' outputs and keep those layers' inputs."""
        seen: dict[int, list[Any]] = {index: [] for index in taps}

        def tap(index: int) -> Callable[..., Any]:
            def hook(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
                given = args[0] if args else kwargs["input"]
                # A later layer may work in place.
                seen[index].append(given.clone())
                return output + taps[index][len(seen[index]) - 1]

            return hook

        handles = [
            self._module.get_submodule(self._layers[index].name).register_forward_hook(
                tap(index), with_kwargs=True
            )
            for index in taps
        ]
        try:
            state = {**dict(self._module.named_buffers()), **tensors}
            return functional_call(self._module, state, tuple(inputs)), seen
        finally:
            for handle in handles:
                handle.remove()

    def _block_outputs(self, inputs: Sequence[Any]) -> Any:
        def outputs_of_one(*record: Any) -> Any:
            outputs, _ = self._forward(self._tensors, [x.unsqueeze(0) for x in record], {})
            if not isinstance(outputs, torch.Tensor):
                raise TypeError(
                    f"the module gives a {type(outputs).__name__}; outputs are read from a module "
                    "that gives one tensor"
                )
            return outputs.squeeze(0) if outputs.ndim and outputs.shape[0] == 1 else outputs

        return vmap(outputs_of_one)(*inputs)

    def _block_gradients(self, inputs: Sequence[Any], target: Any, plan: Plan) -> list[Any]:
        """Give each layer (a, δ), (B, T, in + 1) and (B, T, out), or its rows (B, p_l) alone."""

        def loss_of_one(
            taps: dict[int, list[Any]], direct: dict[str, Any], target: Any, *record: Any
        ) -> tuple[Any, dict[int, list[Any]]]:
            outputs, seen = self._forward(
                {**self._tensors, **direct}, [x.unsqueeze(0) for x in record], taps
            )
            if self._loss == "cross_entropy":
                value = functional.cross_entropy(outputs, target.unsqueeze(0))
            else:
                assert callable(self._loss)
                value = self._loss(outputs, target.unsqueeze(0))
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                raise TypeError("the loss of one record needs to be a tensor with one element")
            return value.reshape(()), seen

        direct = {
            name: self._tensors[name]
            for index, layer in enumerate(self._layers)
            if index not in plan.taps
            for name in layer.parameters
        }
        differentiated = vmap(
            grad(loss_of_one, argnums=(0, 1), has_aux=True),
            in_dims=(None, None, 0, *[0] * len(inputs)),
        )
        (deltas, gradients), seen = differentiated(plan.taps, direct, target, *inputs)
        return [
            layer.factors(self._module.get_submodule(layer.name), seen[index], deltas[index])
            if index in plan.taps
            else layer.pack(gradients, len(target))
            for index, layer in enumerate(self._layers)
        ]

    def _plan(self, records: Records, y: Any) -> Plan:
        """Find which layers can be tapped for records of this shape: once, on public numbers."""
        classes = self._loss == "cross_entropy"
        dtype = np.dtype(np.int64) if classes else as_array(y, "y").dtype
        targets = np.zeros((1, *np.shape(y)[1:]), dtype)
        key = (records.signature, targets.shape, targets.dtype.str)
        if key not in self._plans:
            with deterministic():
                self._plans[key] = self._probed(records, as_tensor(targets, self._dtype))
        return self._plans[key]

    def _probed(self, records: Records, target: Any) -> Plan:
        calls: dict[int, list[Any]] = {}
        handles = [
            self._module.get_submodule(layer.name).register_forward_hook(
                lambda _, __, output, index=index: calls.setdefault(index, []).append(
                    torch.zeros_like(output)
                )
            )
            for index, layer in enumerate(self._layers)
            if layer.is_tapped
        ]
        probe = records.probe()
        before = dict(self._module.named_buffers())
        buffers = {name: buffer.clone() for name, buffer in before.items()}
        try:
            with torch.no_grad(), _taking(records):
                functional_call(self._module, {**buffers, **self._tensors}, tuple(probe))
        finally:
            for handle in handles:
                handle.remove()
        changed = [name for name in before if not torch.equal(before[name], buffers[name])]
        if changed:
            raise ValueError(
                f"the module changes its buffers {changed} when it is called in evaluation mode, "
                "so that records would reach each other through them; make them constant"
            )
        tapped = Plan(dict(sorted(calls.items())))
        if tapped.taps:
            # A weight that is also used outside its layer's own call has a gradient that the tap
            # does not see.
            by_taps = self._block_gradients(probe, target, tapped)
            directly = self._block_gradients(probe, target, Plan({}))
            for index in list(tapped.taps):
                rows, expected = rows_of(by_taps[index]), directly[index]
                scale = float(expected.abs().max())
                agree = float((rows - expected).abs().max()) <= _PROBE_TOLERANCE * scale
                if not agree:
                    del tapped.taps[index]
        return tapped


@contextmanager
def _taking(records: Records) -> Iterator[None]:
    """Tell of a module that cannot take records like these, by one that is made up."""
    try:
        yield
    except Exception as error:
        shapes = " and ".join(f"{shape} (dtype kind {kind!r})" for shape, kind in records.signature)
        raise ValueError(
            f"X has records of shape {shapes}, which the module cannot take: {error}"
        ) from error
