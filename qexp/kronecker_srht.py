"""Kronecker SRHT: a random projection of layered gradients that never forms them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from qexp import _checks, _core
from qexp.projections import (
    FactorProjection,
    Real,
    _digest,
    _frozen,
    _random_signs,
    _sample_without_replacement,
)

__all__ = ["KroneckerSRHT"]


class KroneckerSRHT(FactorProjection):
    """SRHT of every layer's matrix with Kronecker signs, the layers' sketches side by side.

    A layer's gradient is an outer product δ ⊗ a, and H_(2^i 2^j) = H_(2^i) ⊗ H_(2^j): with signs
    that are an outer product as well, the transform of the gradient is the outer product of two
    small transforms, of which k_l entries are kept. A record costs O(h log h + w log w + k)
    instead of O(hw log hw). E‖Pᵀx‖² = ‖x‖² over seeds.

    Parameters
    ----------
    layer_shapes : sequence of (out, in + 1)
        As ``model.layer_shapes``.
    k : int
        Number of coordinates in all.
    seed : int
        Public seed, from 0 to 2**128 - 1.
    split : sequence of int, optional
        Coordinates of each layer, adding up to k. Default: in proportion to the layers' weights,
        at least one each.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    R. Jin, T. G. Kolda and R. Ward, "Faster Johnson-Lindenstrauss transforms via Kronecker
    products", Information and Inference 10(4), 2021.
    """

    kind = "kronecker_srht"

    def __init__(
        self,
        layer_shapes: Sequence[tuple[int, int]],
        k: SupportsIndex,
        *,
        seed: SupportsIndex,
        split: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layer_shapes, k)
        self.seed = _checks.seed(seed)
        self.split = _checked_split(self.layer_shapes, self.n_components, split)
        bits = np.random.Philox(key=self.seed)
        self._layers = [
            _Layer(shape, size, bits)
            for shape, size in zip(self.layer_shapes, self.split, strict=True)
        ]

    def _forward_factors(
        self, factors: Sequence[tuple[NDArray[Real], NDArray[Real]]], sketch: NDArray[Real]
    ) -> None:
        place = 0
        for layer, (inputs, deltas) in zip(self._layers, factors, strict=True):
            layer.sketch(inputs, deltas, sketch[:, place : place + len(layer.kept)])
            place += len(layer.kept)

    def describe(self) -> dict[str, Any]:
        """Kind, sizes, seed and the digest of signs and kept entries, ready for JSON."""
        arrays = [array for layer in self._layers for array in layer.arrays()]
        return {
            **super().describe(),
            "layer_shapes": [list(shape) for shape in self.layer_shapes],
            "split": list(self.split),
            "seed": self.seed,
            "digest": _digest(*arrays),
        }

    def _forward(self, rows: NDArray[Real], out: NDArray[Real]) -> None:
        start = place = 0
        for layer in self._layers:
            p, k = layer.n_parameters, len(layer.kept)
            out[:, place : place + k] = layer.forward(rows[:, start : start + p])
            start, place = start + p, place + k

    def _adjoint(self, u: NDArray[Real], out: NDArray[Real]) -> None:
        start = place = 0
        for layer in self._layers:
            p, k = layer.n_parameters, len(layer.kept)
            out[:, start : start + p] = layer.adjoint(u[:, place : place + k])
            start, place = start + p, place + k


class _Layer:
    """Signs and kept entries of one layer's matrix (out, in + 1)."""

    def __init__(self, shape: tuple[int, int], k: int, bits: np.random.Philox) -> None:
        self.shape = shape
        self.padded = (_power_of_two(shape[0]), _power_of_two(shape[1]))
        self.left_signs = _random_signs(bits, shape[0])
        self.right_signs = _random_signs(bits, shape[1])
        self.kept = _sample_without_replacement(bits, self.padded[0] * self.padded[1], k)
        self._left, self._right = (_frozen(i) for i in np.divmod(self.kept, self.padded[1]))
        self._scale = 1.0 / np.sqrt(k)

    @property
    def n_parameters(self) -> int:
        return self.shape[0] * self.shape[1]

    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self.left_signs, self.right_signs, self.kept

    def sketch(self, inputs: NDArray[Real], deltas: NDArray[Real], sketch: NDArray[Real]) -> None:
        m, (out, inp) = len(sketch), self.shape
        positions = 1 if inputs.ndim == 2 else inputs.shape[1]
        _core.kron_sketch(
            _checks.for_kernels(deltas).reshape(m, positions, out),
            self.left_signs,
            self._left,
            _checks.for_kernels(inputs).reshape(m, positions, inp),
            self.right_signs,
            self._right,
            float(self._scale),
            sketch,
        )

    def forward(self, rows: NDArray[Real]) -> NDArray[Real]:
        out = np.empty((len(rows), len(self.kept)), rows.dtype)
        padded = np.zeros((1, *self.padded), rows.dtype)
        signs = self._outer_signs(rows.dtype)
        # A warning on a signalling NaN would tell of one record.
        with np.errstate(all="ignore"):
            for i, row in enumerate(rows):
                padded[...] = 0
                padded[0, : self.shape[0], : self.shape[1]] = row.reshape(self.shape) * signs
                _core.fwht(padded.reshape(1, -1))
                out[i] = padded.ravel()[self.kept]
            out *= rows.dtype.type(self._scale)
        return out

    def adjoint(self, u: NDArray[Real]) -> NDArray[Real]:
        out = np.empty((len(u), self.n_parameters), u.dtype)
        signs = self._outer_signs(u.dtype)
        padded = np.empty((1, *self.padded), u.dtype)
        for i, row in enumerate(u):
            padded[...] = 0
            padded.reshape(-1)[self.kept] = row * u.dtype.type(self._scale)
            _core.fwht(padded.reshape(1, -1))
            out[i] = (padded[0, : self.shape[0], : self.shape[1]] * signs).ravel()
        return out

    def _outer_signs(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        left = 1 - 2 * _unpacked(self.left_signs, self.shape[0])
        right = 1 - 2 * _unpacked(self.right_signs, self.shape[1])
        return np.outer(left, right).astype(dtype)


def _unpacked(words: NDArray[np.uint64], count: int) -> NDArray[np.int8]:
    little = words.astype("<u8").view(np.uint8)
    return np.unpackbits(little, bitorder="little", count=count).astype(np.int8)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _checked_split(
    shapes: Sequence[tuple[int, int]], k: int, split: Sequence[int] | None
) -> tuple[int, ...]:
    room = [_power_of_two(out) * _power_of_two(inp) for out, inp in shapes]
    if split is None:
        if not len(shapes) <= k <= sum(room):
            raise ValueError(
                f"k is {k}; {len(shapes)} layers need at least one coordinate each and have at "
                f"most {sum(room)}"
            )
        total = sum(out * inp for out, inp in shapes)
        parts = [max(1, k * out * inp // total) for out, inp in shapes]
        # What rounding left over goes where there is most room.
        while sum(parts) != k:
            step = 1 if sum(parts) < k else -1
            best = max(
                range(len(parts)),
                key=lambda i: room[i] - parts[i] if step > 0 else parts[i],
            )
            parts[best] += step
        split = parts
    sizes = tuple(_checks.count(size, "a part of split") for size in split)
    if len(sizes) != len(shapes) or sum(sizes) != k:
        raise ValueError(
            f"split is {list(sizes)}; it needs {len(shapes)} numbers that add up to k = {k}"
        )
    for size, most, shape in zip(sizes, room, shapes, strict=True):
        if size > most:
            raise ValueError(
                f"split gives {size} coordinates to a layer of shape {shape}; its padded matrix "
                f"has {most}"
            )
    return sizes
