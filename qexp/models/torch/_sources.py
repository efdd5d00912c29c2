"""Rows of weight space, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from qexp import _checks
from qexp.models._records import public_uniforms
from qexp.models.torch._determinism import deterministic
from qexp.models.torch._layers import Plan, rows_of
from qexp.models.torch._records import Block, Records, as_tensor, finite_records

if TYPE_CHECKING:
    from qexp.models.torch._model import TorchModel

__all__ = ["LayerFactors", "TorchCurvatureSource", "TorchGradientSource"]

LayerFactors = list[tuple[NDArray[Any], NDArray[Any]]]


class _TorchSource:
    """Blocks of rows of weight space, computed as they are asked for.

    Attributes
    ----------
    n_records, n_parameters : int
    layer_shapes : tuple of (int, int)
    dtype : numpy.dtype
    """

    def __init__(
        self, model: TorchModel, records: Records, targets: NDArray[Any] | None, plan: Plan
    ) -> None:
        self._model = model
        self._records = records
        self._targets = targets
        self._plan = plan
        self.n_records = records.n_records
        self.n_parameters = model.n_parameters
        self.layer_shapes = model.layer_shapes
        self.dtype = model.dtype

    def _target_block(self, block: Block) -> Any:
        assert self._targets is not None
        some = self._targets[block.start : block.start + block.n_records]
        padded = np.zeros((self._records.block_size, *some.shape[1:]), some.dtype)
        padded[: len(some)] = some
        finite = finite_records(padded)
        if self._model._loss == "cross_entropy":
            finite = padded >= 0
        padded[~finite] = 0
        block.valid &= finite
        return as_tensor(padded, self._model._dtype)


class TorchGradientSource(_TorchSource):
    """Per-record gradients of the loss at a model's weights. Made by ``gradient_blocks``.

    A row depends on its record, on the record's place in its block (its number modulo
    ``block_size``), and on public values alone, bit for bit.
    """

    def __init__(
        self, model: TorchModel, records: Records, targets: NDArray[Any], plan: Plan
    ) -> None:
        super().__init__(model, records, targets, plan)
        self._of_zeros = self._computed_of_zeros(targets)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield C-contiguous blocks (m, p) of rows, in the order of the records."""
        for block, layers in self._computed():
            with deterministic():
                rows: NDArray[Any] = torch.cat([rows_of(f) for f in layers], dim=1).numpy()
            rows[~block.valid] = np.nan
            yield rows[: block.n_records]

    def factor_blocks(self) -> Iterator[LayerFactors]:
        """Yield blocks of per-layer pairs (inputs, deltas), as in :mod:`qexp.layered`.

        Layers with several positions give their rows, as (m, out·(in + 1)) and (m, 1).
        """
        for block, layers in self._computed():
            pairs: LayerFactors = []
            for factors in layers:
                with deterministic():
                    inputs, deltas = _at_one_position(factors)
                deltas[~block.valid] = np.nan
                pairs.append((inputs[: block.n_records], deltas[: block.n_records]))
            yield pairs

    def _computed(self) -> Iterator[tuple[Block, list[Any]]]:
        for block in self._records.blocks():
            target = self._target_block(block)
            layers = self._attempt(block.inputs, target)
            if layers is None:
                layers = self._one_by_one(block, target)
            yield block, layers

    def _computed_of_zeros(self, targets: NDArray[Any]) -> list[Any]:
        """Compute a block of zeros, whatever the records are.

        Padding is zeros, and so is what stands for a record that is not finite: were a module that
        cannot take them refused when the first one comes, that would tell of a record.
        """
        size = self._records.block_size
        target = np.zeros((size, *targets.shape[1:]), targets.dtype)
        try:
            return self._compute(self._records.zeros(size), as_tensor(target, self._model._dtype))
        except Exception as error:
            raise ValueError(
                f"the module or its loss raises {type(error).__name__} on a record of zeros with a "
                "target of zeros, which pad the last block and stand for records that are not "
                "finite; let both take zeros"
            ) from error

    def _attempt(self, inputs: Sequence[Any], target: Any) -> list[Any] | None:
        """Compute a block; None where it raises, whose message might tell of a record."""
        with contextlib.suppress(Exception):
            return self._compute(inputs, target)
        return None

    def _compute(self, inputs: Sequence[Any], target: Any) -> list[Any]:
        with deterministic():
            return self._model._block_gradients(inputs, target, self._plan)

    def _one_by_one(self, block: Block, target: Any) -> list[Any]:
        """Void the records that the module or the loss cannot take, and no others.

        Each record is computed in its own place among zeros, which gives it the same bits.
        """
        layers = [
            of_zeros.clone()
            if isinstance(of_zeros, torch.Tensor)
            else tuple(factor.clone() for factor in of_zeros)
            for of_zeros in self._of_zeros
        ]
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
        records: Records,
        targets: NDArray[Any] | None,
        plan: Plan,
        *,
        seed: int,
        first_record: int = 0,
        classes: int | None = None,
    ) -> None:
        super().__init__(model, records, targets, plan)
        self._seed = np.random.SeedSequence(_checks.seed(seed))
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
            with deterministic():
                rows = [torch.cat([rows_of(f) for f in layers], dim=1) for layers in of_classes]
                together: NDArray[Any] = torch.stack(rows, dim=1)[: block.n_records].numpy()
            yield together.reshape(-1, self.n_parameters)

    def factor_blocks(self) -> Iterator[LayerFactors]:
        """Yield blocks of per-layer pairs (inputs, deltas), as in :mod:`qexp.layered`."""
        for block, of_classes in self._computed():
            pairs: LayerFactors = []
            for of_layer in zip(*of_classes, strict=True):
                with deterministic():
                    inputs, deltas = _with_rows_of_classes(of_layer)
                m = block.n_records
                pairs.append(
                    (
                        inputs[: m * len(inputs) // len(block.valid)],
                        deltas[: m * len(deltas) // len(block.valid)],
                    )
                )
            yield pairs

    def _computed(self) -> Iterator[tuple[Block, list[list[Any]]]]:
        """Compute the layers' factors block by block, once for every row that a record has."""
        generator = public_uniforms(self._seed, self._first_record)
        for block in self._records.blocks():
            if not block.valid.all():
                record = block.start + int(np.argmin(block.valid))
                raise ValueError(
                    f"record {record} of X holds a NaN or an infinity; public records must be "
                    "finite"
                )
            with deterministic():
                of_classes = [
                    [_scaled(factors, roots) for factors in self._layers(block, target)]
                    for target, roots in self._weighted_targets(block, generator)
                ]
            yield block, of_classes

    def _layers(self, block: Block, target: Any) -> list[Any]:
        return self._model._block_gradients(block.inputs, target, self._plan)

    def _weighted_targets(
        self, block: Block, generator: np.random.Generator
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

    def _sampled(self, block: Block, uniform: NDArray[np.float64]) -> Any:
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
        rows: NDArray[Any] = torch.stack([rows_of(f) for f in of_layer], dim=1).numpy()
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
    rows: NDArray[Any] = rows_of(factors).contiguous().numpy()
    return rows, np.ones((len(rows), 1), rows.dtype)
