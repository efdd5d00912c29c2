"""PyTorch modules as models: any module, any loss, one gradient a record.

Every record is a batch of its own: :func:`torch.func.vmap` carries the module over a block of
records, so that no layer ever sees two records at once. Linear and convolution layers are tapped:
a zero is added to their outputs, its gradient is δ, and with the layer's input a the gradient in
the weights is Σ_t δ_t ⊗ a_t, without a backward pass into the weights and in the form that
Kronecker curvature needs. Other parameters are differentiated directly.

Layout of the weights: layer after layer in the order of ``module.named_modules()``. A tapped layer
is a matrix (out, in + 1), its last column the bias (a convolution's in is channels times kernel);
any other parameter is a matrix (first dimension, rest), or (1, n) for a vector.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks
from qexp.layered import LayeredCurvature
from qexp.models._records import as_labels, public_uniforms, require_classes
from qexp.records import LazyRows

try:
    import torch
    from torch import nn
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    raise ImportError(
        'qexp.models.torch needs PyTorch 2.4 or newer; install it with `pip install "qexp[torch]"`'
    ) from error

__all__ = ["TorchCurvatureSource", "TorchGradientSource", "TorchModel"]

Loss = Literal["cross_entropy"] | Callable[[Any, Any], Any]
LayerFactors = list[tuple[NDArray[Any], NDArray[Any]]]

# How a library shares work among threads may change a sum's order: one thread leaves no choice.
_THREADS: Final = 1
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
        _refuse_coupled(module, frozen_batch_norm=frozen_batch_norm)
        chosen = _chosen(module, parameters)
        self._frozen_batch_norm = frozen_batch_norm
        self._dtype = _common_dtype(chosen)
        self._loss = loss
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._layers = _layers(self._module, set(chosen))
        self._plans: dict[Any, _Plan] = {}
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
            "threads": _THREADS,
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
        records = _Records(X, self._dtype, self._block_size)
        parts = []
        for block in records.blocks():
            with _deterministic(), torch.no_grad():
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
            If the dtype or the shape of a whole array is wrong.
        """
        records = _Records(X, self._dtype, self._block_size)
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
        records = _Records(X, self._dtype, self._block_size)
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

    def _targets(self, y: Any, records: _Records) -> NDArray[Any]:
        if self._loss == "cross_entropy":
            return as_labels(_as_array(y, "y"), records.n_records, self._n_classes(records))
        targets: NDArray[Any] = _as_array(y, "y")
        if targets.ndim == 0 or len(targets) != records.n_records:
            raise ValueError(
                f"y has the shape {targets.shape}; it must be ({records.n_records}, ...), as X has "
                "records"
            )
        return targets

    def _n_classes(self, records: _Records) -> int:
        with _deterministic(), torch.no_grad():
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

    def _block_gradients(self, inputs: Sequence[Any], target: Any, plan: _Plan) -> list[Any]:
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

    def _plan(self, records: _Records, y: Any) -> _Plan:
        """Find which layers can be tapped for records of this shape: once, on public numbers."""
        classes = self._loss == "cross_entropy"
        dtype = np.dtype(np.int64) if classes else _as_array(y, "y").dtype
        targets = np.zeros((1, *np.shape(y)[1:]), dtype)
        key = (records.signature, targets.shape, targets.dtype.str)
        if key not in self._plans:
            with _deterministic():
                self._plans[key] = self._probed(records, _as_tensor(targets, self._dtype))
        return self._plans[key]

    def _probed(self, records: _Records, target: Any) -> _Plan:
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
            with torch.no_grad():
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
        tapped = _Plan(dict(sorted(calls.items())))
        if tapped.taps:
            # A weight that is also used outside its layer's own call has a gradient that the tap
            # does not see.
            by_taps = self._block_gradients(probe, target, tapped)
            directly = self._block_gradients(probe, target, _Plan({}))
            for index in list(tapped.taps):
                rows, expected = _rows_of(by_taps[index]), directly[index]
                scale = float(expected.abs().max())
                agree = float((rows - expected).abs().max()) <= _PROBE_TOLERANCE * scale
                if not agree:
                    del tapped.taps[index]
        return tapped


@dataclass(frozen=True)
class _Plan:
    """Zeros of the shape of every output of each tapped layer, by the layer's index."""

    taps: dict[int, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layer:
    """One matrix of the weight vector: a tapped module, or one parameter by itself."""

    name: str
    shape: tuple[int, int]
    weight: str
    weight_shape: tuple[int, ...]
    bias: str | None
    is_tapped: bool

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def pack(self, tensors: dict[str, Any], *batch: int) -> Any:
        """Lay out tensors, or batches of them, as flat rows."""
        matrix = tensors[self.weight].reshape(*batch, self.shape[0], -1)
        if self.bias is not None:
            column = tensors[self.bias].reshape(*batch, self.shape[0], 1)
            matrix = torch.cat([matrix, column], dim=-1)
        return matrix.reshape(*batch, -1)

    def unpack(self, flat: Any) -> dict[str, Any]:
        matrix = flat.reshape(self.shape)
        if self.bias is None:
            return {self.weight: matrix.reshape(self.weight_shape).clone()}
        return {
            self.weight: matrix[:, :-1].reshape(self.weight_shape).clone(),
            self.bias: matrix[:, -1].clone(),
        }

    def factors(self, module: nn.Module, seen: list[Any], deltas: list[Any]) -> tuple[Any, Any]:
        """Give inputs (B, T, in + 1) and deltas (B, T, out) over all positions of all calls."""
        arrange = _linear_positions if isinstance(module, nn.Linear) else _conv_positions
        pairs = [arrange(module, a, d) for a, d in zip(seen, deltas, strict=True)]
        inputs = torch.cat([a for a, _ in pairs], dim=1) if len(pairs) > 1 else pairs[0][0]
        outputs = torch.cat([d for _, d in pairs], dim=1) if len(pairs) > 1 else pairs[0][1]
        if self.bias is not None:
            inputs = functional.pad(inputs, (0, 1), value=1.0)
        return inputs, outputs


def _linear_positions(module: Any, inputs: Any, deltas: Any) -> tuple[Any, Any]:
    records = len(inputs)
    return (
        inputs.reshape(records, -1, module.in_features),
        deltas.reshape(records, -1, module.out_features),
    )


def _conv_positions(module: Any, inputs: Any, deltas: Any) -> tuple[Any, Any]:
    """Cut a convolution's inputs (B, ..., channels, height, width) into patches."""
    records, spatial = len(inputs), len(module.kernel_size)
    images = inputs.reshape(-1, *inputs.shape[-spatial - 1 :])
    sides = _padding(module)
    # A line of pixels is an image one pixel high.
    one = (1,) * (2 - spatial)
    if spatial == 1:
        images = images.unsqueeze(-2)
    patches = functional.unfold(
        functional.pad(images, sides),
        (*one, *module.kernel_size),
        dilation=(*one, *module.dilation),
        stride=(*one, *module.stride),
    )
    size, positions = patches.shape[1:]
    patches = patches.reshape(records, -1, size, positions).transpose(2, 3)
    deltas = deltas.reshape(records, -1, module.out_channels, positions).transpose(2, 3)
    return (
        patches.reshape(records, -1, size),
        deltas.reshape(records, -1, module.out_channels),
    )


def _padding(module: Any) -> list[int]:
    """Give the zeros before and after each dimension, the last one first."""
    sides: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        elif module.padding == "valid":
            sides += [0, 0]
        else:
            sides += [module.padding[axis]] * 2
    return sides


def _rows_of(factors: Any) -> Any:
    """Form gradient rows (B, p_l) from a pair (a, δ), or pass rows on."""
    if isinstance(factors, torch.Tensor):
        return factors
    inputs, deltas = factors
    return torch.bmm(deltas.transpose(1, 2), inputs).reshape(len(inputs), -1)


# ------------------------------------------------------------------------------------- sources


class _TorchSource:
    """Blocks of rows of weight space, computed as they are asked for.

    Attributes
    ----------
    n_records, n_parameters : int
    layer_shapes : tuple of (int, int)
    dtype : numpy.dtype
    """

    def __init__(
        self, model: TorchModel, records: _Records, targets: NDArray[Any] | None, plan: _Plan
    ) -> None:
        self._model = model
        self._records = records
        self._targets = targets
        self._plan = plan
        self.n_records = records.n_records
        self.n_parameters = model.n_parameters
        self.layer_shapes = model.layer_shapes
        self.dtype = model.dtype

    def _target_block(self, block: _Block) -> Any:
        assert self._targets is not None
        some = self._targets[block.start : block.start + block.n_records]
        padded = np.zeros((self._records.block_size, *some.shape[1:]), some.dtype)
        padded[: len(some)] = some
        finite = _finite_records(padded)
        if self._model._loss == "cross_entropy":
            finite = padded >= 0
        padded[~finite] = 0
        block.valid &= finite
        return _as_tensor(padded, self._model._dtype)


class TorchGradientSource(_TorchSource):
    """Per-record gradients of the loss at a model's weights. Made by ``gradient_blocks``.

    A row depends on its record, on the record's place in its block (its number modulo
    ``block_size``), and on public values alone, bit for bit.
    """

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield C-contiguous blocks (m, p) of rows, in the order of the records."""
        for block, layers in self._computed():
            with _deterministic():
                rows: NDArray[Any] = torch.cat([_rows_of(f) for f in layers], dim=1).numpy()
            rows[~block.valid] = np.nan
            yield rows[: block.n_records]

    def factor_blocks(self) -> Iterator[LayerFactors]:
        """Yield blocks of per-layer pairs (inputs, deltas), as in :mod:`qexp.layered`.

        Layers with several positions give their rows, as (m, out·(in + 1)) and (m, 1).
        """
        for block, layers in self._computed():
            pairs: LayerFactors = []
            for factors in layers:
                with _deterministic():
                    inputs, deltas = _at_one_position(factors)
                deltas[~block.valid] = np.nan
                pairs.append((inputs[: block.n_records], deltas[: block.n_records]))
            yield pairs

    def _computed(self) -> Iterator[tuple[_Block, list[Any]]]:
        for block in self._records.blocks():
            target = self._target_block(block)
            layers = self._attempt(block.inputs, target)
            if layers is None:
                layers = self._one_by_one(block, target)
            yield block, layers

    def _attempt(self, inputs: Sequence[Any], target: Any) -> list[Any] | None:
        """Compute a block; None where it raises, whose message might tell of a record."""
        with contextlib.suppress(Exception):
            return self._compute(inputs, target)
        return None

    def _compute(self, inputs: Sequence[Any], target: Any) -> list[Any]:
        with _deterministic():
            return self._model._block_gradients(inputs, target, self._plan)

    def _one_by_one(self, block: _Block, target: Any) -> list[Any]:
        """Void the records that the module or the loss cannot take, and no others.

        Each record is computed in its own place among zeros, which gives it the same bits.
        """
        # A fault of the model, and not of a record, shows here and is raised.
        zeros = [torch.zeros_like(x) for x in block.inputs]
        layers = self._compute(zeros, torch.zeros_like(target))
        for slot in range(block.n_records):
            alone = [torch.zeros_like(x) for x in block.inputs]
            target_alone = torch.zeros_like(target)
            target_alone[slot] = target[slot]
            for x, of_all in zip(alone, block.inputs, strict=True):
                x[slot] = of_all[slot]
            computed = self._attempt(alone, target_alone)
            if computed is None:
                block.valid[slot] = False
                continue
            for of_all, of_one in zip(layers, computed, strict=True):
                if isinstance(of_all, torch.Tensor):
                    of_all[slot] = of_one[slot]
                else:
                    of_all[0][slot], of_all[1][slot] = of_one[0][slot], of_one[1][slot]
        return layers


class TorchCurvatureSource(_TorchSource):
    """Factors of *public* records' gradients. Made by ``curvature_blocks``.

    Reading raises ValueError where a record is not finite. Every reading gives the same factors.
    """

    def __init__(
        self,
        model: TorchModel,
        records: _Records,
        targets: NDArray[Any] | None,
        plan: _Plan,
        *,
        seed: int,
        first_record: int = 0,
        classes: int | None = None,
    ) -> None:
        super().__init__(model, records, targets, plan)
        self._seed = np.random.SeedSequence(seed)
        self._first_record = first_record
        self._classes = classes
        self.rows_per_record = 1 if classes is None else classes
        self.n_rows = self.n_records * self.rows_per_record

    @property
    def default_kinds(self) -> list[str]:
        """Give "kronecker" for each layer that has factors, "diagonal" for each that has none."""
        return [
            "kronecker" if index in self._plan.taps else "diagonal"
            for index in range(len(self.layer_shapes))
        ]

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield blocks (m·r, p) of rows, in the order of the records."""
        for block, of_classes in self._computed():
            with _deterministic():
                rows = [torch.cat([_rows_of(f) for f in layers], dim=1) for layers in of_classes]
                together: NDArray[Any] = torch.stack(rows, dim=1)[: block.n_records].numpy()
            yield together.reshape(-1, self.n_parameters)

    def factor_blocks(self) -> Iterator[LayerFactors]:
        """Yield blocks of per-layer pairs (inputs, deltas), as in :mod:`qexp.layered`."""
        for block, of_classes in self._computed():
            pairs: LayerFactors = []
            for of_layer in zip(*of_classes, strict=True):
                with _deterministic():
                    inputs, deltas = _with_rows_of_classes(of_layer)
                m = block.n_records
                pairs.append(
                    (
                        inputs[: m * len(inputs) // len(block.valid)],
                        deltas[: m * len(deltas) // len(block.valid)],
                    )
                )
            yield pairs

    def _computed(self) -> Iterator[tuple[_Block, list[list[Any]]]]:
        """Compute the layers' factors block by block, once for every row that a record has."""
        generator = public_uniforms(self._seed, self._first_record)
        for block in self._records.blocks():
            if not block.valid.all():
                record = block.start + int(np.argmin(block.valid))
                raise ValueError(
                    f"record {record} of X holds a NaN or an infinity; public records must be "
                    "finite"
                )
            with _deterministic():
                of_classes = [
                    [_scaled(factors, roots) for factors in self._layers(block, target)]
                    for target, roots in self._weighted_targets(block, generator)
                ]
            yield block, of_classes

    def _layers(self, block: _Block, target: Any) -> list[Any]:
        return self._model._block_gradients(block.inputs, target, self._plan)

    def _weighted_targets(
        self, block: _Block, generator: np.random.Generator
    ) -> Iterator[tuple[Any, Any]]:
        """Yield targets, and the roots of their probabilities where they are not drawn."""
        if self._targets is not None:
            yield self._target_block(block), None
        elif self._classes is None:
            yield self._sampled(block, generator.random(block.n_records)), None
        else:
            with torch.no_grad():
                roots = torch.softmax(self._model._block_outputs(block.inputs), dim=1).sqrt()
            for number in range(self._classes):
                yield torch.full((len(roots),), number, dtype=torch.int64), roots[:, number]

    def _sampled(self, block: _Block, uniform: NDArray[np.float64]) -> Any:
        with torch.no_grad():
            scores = self._model._block_outputs(block.inputs).double()
            cumulative = torch.softmax(scores, dim=1).cumsum(dim=1).numpy()[: block.n_records]
        # Scaled by the last sum, which rounding may keep from one; so no class is beyond the last.
        beyond = uniform[:, None] * cumulative[:, -1:] >= cumulative[:, :-1]
        classes = torch.zeros(self._records.block_size, dtype=torch.int64)
        classes[: block.n_records] = torch.from_numpy(beyond.sum(axis=1, dtype=np.int64))
        return classes


def _scaled(factors: Any, roots: Any) -> Any:
    """Scale the records' rows, given whole or as factors, by one number each."""
    if roots is None:
        return factors
    if isinstance(factors, torch.Tensor):
        return factors * roots.view(-1, *[1] * (factors.ndim - 1))
    inputs, deltas = factors
    return inputs, deltas * roots.view(-1, *[1] * (deltas.ndim - 1))


def _with_rows_of_classes(of_layer: Sequence[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give one layer's inputs and deltas, with a row a class one after another."""
    first = of_layer[0]
    if isinstance(first, torch.Tensor):
        rows: NDArray[Any] = torch.stack([_rows_of(f) for f in of_layer], dim=1).numpy()
        rows = rows.reshape(-1, rows.shape[-1])
        return rows, np.ones((len(rows), 1), rows.dtype)
    deltas = torch.stack([deltas for _, deltas in of_layer], dim=1)
    deltas = deltas.reshape(-1, *deltas.shape[2:])
    inputs = first[0]
    if inputs.shape[1] == 1:
        inputs, deltas = inputs[:, 0], deltas[:, 0]
    return inputs.contiguous().numpy(), deltas.contiguous().numpy()


def _at_one_position(factors: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give (a, δ) where there is one position, else the rows and ones."""
    if not isinstance(factors, torch.Tensor) and factors[0].shape[1] == 1:
        inputs, deltas = factors
        return inputs[:, 0].contiguous().numpy(), deltas[:, 0].clone().numpy()
    rows: NDArray[Any] = _rows_of(factors).contiguous().numpy()
    return rows, np.ones((len(rows), 1), rows.dtype)


# ------------------------------------------------------------------------------------- records


@dataclass
class _Block:
    """Tensors (block_size, ...) of which the first n_records are records and the rest zeros."""

    start: int
    n_records: int
    inputs: list[Any]
    valid: NDArray[np.bool_]


class _Records:
    """The module's arguments, cut into blocks of one fixed shape."""

    def __init__(self, X: Any, dtype: Any, block_size: int) -> None:
        self._arrays = [_as_array(x, "X") for x in (X if isinstance(X, tuple) else (X,))]
        lengths = {len(x) if x.ndim else 0 for x in self._arrays}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"X has the shape(s) {[x.shape for x in self._arrays]}; it needs (n, ...) with n "
                "at least 1, the same for all arguments of the module"
            )
        self._dtype = dtype
        self.block_size = block_size
        self.n_records = lengths.pop()

    @property
    def signature(self) -> tuple[Any, ...]:
        """Shape and kind of a record, which the module's layers' shapes follow from."""
        return tuple((x.shape[1:], x.dtype.kind) for x in self._arrays)

    def zeros(self, count: int) -> list[Any]:
        """Give `count` records of zeros."""
        return [
            _as_tensor(np.zeros((count, *x.shape[1:]), x.dtype), self._dtype) for x in self._arrays
        ]

    def probe(self) -> list[Any]:
        """Give one public record: normal numbers, or zeros where the numbers are no floats."""
        generator = np.random.default_rng(0)
        return [
            torch.from_numpy(generator.standard_normal(x.shape)).to(x.dtype)
            if x.dtype.is_floating_point
            else x
            for x in self.zeros(1)
        ]

    def blocks(self) -> Iterator[_Block]:
        for start in range(0, self.n_records, self.block_size):
            m = min(self.block_size, self.n_records - start)
            valid = np.ones(self.block_size, np.bool_)
            inputs = []
            for x in self._arrays:
                padded = np.zeros((self.block_size, *x.shape[1:]), x.dtype)
                padded[:m] = x[start : start + m]
                tensor = _as_tensor(padded, self._dtype)
                finite = _finite_records(tensor.numpy())
                tensor[torch.from_numpy(~finite)] = 0
                valid &= finite
                inputs.append(tensor)
            yield _Block(start, m, inputs, valid)


def _as_array(value: Any, name: str) -> Any:
    """Give an array, or lazy rows as they are."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
    array = value if isinstance(value, LazyRows) else np.asarray(value)
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} is {array.dtype}; it must hold real numbers")
    return array


def _as_tensor(array: NDArray[Any], dtype: Any) -> Any:
    kind = array.dtype.kind
    if kind == "f":
        # A warning on overflow would tell of one record.
        with np.errstate(all="ignore"):
            target = np.float32 if dtype == torch.float32 else np.float64
            return torch.from_numpy(array.astype(target, copy=False))
    return torch.from_numpy(array if kind == "b" else array.astype(np.int64, copy=False))


def _finite_records(array: NDArray[Any]) -> NDArray[np.bool_]:
    if array.dtype.kind != "f":
        return np.ones(len(array), np.bool_)
    finite: NDArray[np.bool_] = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return finite


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Fix everything in torch's global state that a gradient's bits may depend on."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(_THREADS)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)


# --------------------------------------------------------------------------------- the module


def _refuse_coupled(module: nn.Module, *, frozen_batch_norm: bool) -> None:
    """Refuse layers whose output for one record depends on the records beside it."""
    coupled = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
        and (isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.track_running_stats)
    ]
    without_statistics = [(name, layer) for name, layer in coupled if layer.running_mean is None]
    refused = without_statistics if frozen_batch_norm else coupled
    if not refused:
        return
    names = ", ".join(f"{name or 'the module'} ({type(layer).__name__})" for name, layer in refused)
    channels = refused[0][1].num_features
    groups = math.gcd(channels, 8)
    remedy = (
        "they keep no running statistics that could be frozen"
        if frozen_batch_norm
        else "if their running statistics come from public data, frozen_batch_norm=True keeps "
        "those as fixed numbers"
    )
    raise ValueError(
        f"the module has layers that couple the records of a batch: {names}; a record would change "
        "the gradients of others. Replace each before pretraining, for example by "
        f"torch.nn.GroupNorm({groups}, {channels}); {remedy}"
    )


def _chosen(module: nn.Module, parameters: Sequence[str] | None) -> dict[str, Any]:
    """Give the parameters to tune, by name."""
    named = dict(module.named_parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in named.values()):
        raise ValueError("the module has lazy layers without weights; call it once on an example")
    if parameters is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError(
                "no parameter of the module has requires_grad; name those to tune in parameters"
            )
    else:
        if isinstance(parameters, str):
            raise TypeError(f"parameters is {parameters!r}; it needs a sequence of names")
        unknown = [
            given
            for given in parameters
            if not any(name == given or name.startswith(given + ".") for name in named)
        ]
        if unknown or not parameters:
            raise ValueError(
                f"parameters holds {unknown}; it needs names of parameters, or of modules that "
                f"have some, out of {list(named)}"
            )
        chosen = {
            name: p
            for name, p in named.items()
            if any(name == given or name.startswith(given + ".") for given in parameters)
        }
    elsewhere = sorted({str(p.device) for p in named.values() if p.device.type != "cpu"})
    if elsewhere:
        raise ValueError(
            f"the module is on {elsewhere}; bits are kept apart on the CPU only: use module.cpu()"
        )
    return chosen


def _common_dtype(chosen: dict[str, Any]) -> Any:
    dtypes = {p.dtype for p in chosen.values()}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise TypeError(
            f"the parameters to tune are {sorted(map(str, dtypes))}; they must be all float32 or "
            "all float64: use module.float()"
        )
    return dtypes.pop()


def _layers(module: nn.Module, chosen: set[str]) -> list[_Layer]:
    """Lay the chosen parameters out, module by module."""
    owners: dict[int, int] = {}
    for owner in module.modules():
        for parameter in owner._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers = []
    for path, owner in module.named_modules():
        own = {
            name: parameter
            for name, parameter in owner._parameters.items()
            if parameter is not None and _joined(path, name) in chosen
        }
        weight = own.get("weight")
        if weight is not None and _has_factors(owner) and owners[id(weight)] == 1:
            bias = own.get("bias")
            has_bias = bias is not None and owners[id(bias)] == 1
            out = weight.shape[0]
            layers.append(
                _Layer(
                    name=path,
                    shape=(out, weight[0].numel() + has_bias),
                    weight=_joined(path, "weight"),
                    weight_shape=tuple(weight.shape),
                    bias=_joined(path, "bias") if has_bias else None,
                    is_tapped=True,
                )
            )
            del own["weight"]
            if has_bias:
                del own["bias"]
        for name, parameter in own.items():
            rows = parameter.shape[0] if parameter.ndim > 1 else 1
            layers.append(
                _Layer(
                    name=_joined(path, name),
                    shape=(rows, parameter.numel() // rows),
                    weight=_joined(path, name),
                    weight_shape=tuple(parameter.shape),
                    bias=None,
                    is_tapped=False,
                )
            )
    return layers


def _has_factors(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d)
        and module.groups == 1
        and module.padding_mode == "zeros"
    )


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
