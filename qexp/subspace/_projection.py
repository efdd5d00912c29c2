"""The projection onto a public subspace of layered weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks, _core
from qexp._files import DamagedFileError, atomic_write, read_archive
from qexp.projections import FactorProjection, Real, _digest, _frozen

__all__ = ["PublicSubspace", "SubspaceLayer"]

# What is turned of so many records stays close to the processor.
_ROWS_AT_ONCE: Final = 128
_FORMAT: Final = "qexp public subspace"
_VERSION: Final = 1
_OF_A_LAYER: Final = ("left", "right", "rows", "columns")


@dataclass(frozen=True, eq=False)
class SubspaceLayer:
    """Which combinations of one layer's weights take part.

    A gradient G of shape (out, in + 1) is turned to Lᵀ G R, of which some entries are kept.

    Attributes
    ----------
    left : ndarray of float64, shape (out, a)
        L.
    right : ndarray of float64, shape (in + 1, b)
        R.
    rows, columns : ndarray of int, shape (r,)
        The entries: row below a, column below b.
    """

    left: NDArray[np.float64]
    right: NDArray[np.float64]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Give the arrays that define it, for a digest."""
        return tuple(getattr(self, name) for name in _OF_A_LAYER)


class PublicSubspace(FactorProjection):
    """A subspace of layered weights, whitened: combinations of entries of turned gradients.

    Made by :meth:`Directions.subspace`. Its coordinates are whitened by public curvature already,
    so it goes with :class:`qexp.IdentityCurvature` of k. A record with inputs a and derivatives δ
    has the entries (Lᵀδ)_i (Rᵀa)_j of its layers, r in all, and their k combinations: its gradient
    is not formed.

    Parameters
    ----------
    layers : sequence of SubspaceLayer
        In the order of the weights.
    core : array of float, shape (r, k), optional
        The combinations. Default: the entries themselves, k = r.
    scale : array of float, shape (k,), optional
        What the coordinates are multiplied by: one that is scaled down has less of a clipped
        record, and its part of the step, noise and all, is so much shorter. Default: 1.
    kept : array of float, shape (k,), optional
        What the damping leaves of the curvature of 1 that each coordinate has before it is scaled,
        in [0, 1]. Default: all.

    Raises
    ------
    ValueError
        If shapes do not fit or a number is not finite.
    """

    kind = "public_subspace"

    def __init__(
        self,
        layers: Sequence[SubspaceLayer],
        core: ArrayLike | None = None,
        *,
        scale: ArrayLike | None = None,
        kept: ArrayLike | None = None,
    ) -> None:
        self.layers = tuple(layers)
        n_entries = sum(len(layer.rows) for layer in self.layers)
        self.core = None
        if core is not None:
            given = _checks.finite_array(core, "core", 2)
            if len(given) != n_entries:
                raise ValueError(
                    f"core has shape {given.shape}; the layers have {n_entries} entries, one a row"
                )
            self.core = _frozen(np.array(given, np.float64, order="C"))
        k = n_entries if self.core is None else self.core.shape[1]
        super().__init__([(len(x.left), len(x.right)) for x in self.layers], k)
        for layer in self.layers:
            _checks.finite_array(layer.left, "left", 2)
            _checks.finite_array(layer.right, "right", 2)
            _require_entries(layer)
        self.scale, self.kept = _vector(scale, k, "scale"), _vector(kept, k, "kept")
        self._packed: dict[np.dtype[Any], list[_PackedLayer]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.layers, self.core, self.scale, self.kept)

    @property
    def effective_dimension(self) -> float:
        """tr(Pᵀ H P), or nearly: the public curvature H of all coordinates, undamped."""
        return float(self.kept @ np.square(self.scale))

    def describe(self) -> dict[str, Any]:
        """Kind, sizes and the digest of all arrays, ready for JSON."""
        arrays = [self.scale, *(array for layer in self.layers for array in layer.arrays())]
        if self.core is not None:
            arrays.append(self.core)
        return {**super().describe(), "digest": _digest(*arrays)}

    def save(self, path: str | os.PathLike[str], *, learnt_from: str = "") -> None:
        """Write it to one file, atomically: an NPZ archive with JSON inside, no pickle.

        What is learnt differs in its last bits from machine to machine, so a job that is to be
        resumed keeps what it began with.

        Parameters
        ----------
        path : path-like
            An existing file is replaced in one step or not at all.
        learnt_from : str
            Says what it was learnt from, such as a digest of it; :meth:`load` can ask for that.

        Raises
        ------
        OSError
            If it cannot be written. An old file stays whole.
        """
        arrays: dict[str, Any] = dict(self._named_arrays())
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "layers": len(self.layers),
            "learnt_from": learnt_from,
            "digest": _digest_of(arrays),
        }
        text = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)

        def write(file: BinaryIO) -> None:
            np.savez(file, subspace=text, **arrays)

        atomic_write(path, write)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, learnt_from: str | None = None
    ) -> PublicSubspace:
        """Read a subspace that :meth:`save` wrote: the same map, bit for bit.

        Parameters
        ----------
        path : path-like
        learnt_from : str, optional
            What it has to be learnt from.

        Returns
        -------
        PublicSubspace

        Raises
        ------
        OSError
            If the file cannot be opened.
        ValueError
            If the file is damaged, of another format, or of a subspace learnt from something else.
        """
        name = os.fspath(path)
        with open(path, "rb") as file:
            try:
                document, arrays = read_archive(file, "subspace")
                whole = document["format"] == _FORMAT
            # A damaged archive sets off almost anything in zipfile, NumPy and json.
            except Exception as error:
                raise DamagedFileError(
                    f"{name!r} is not a readable subspace ({error}); it needs a file that "
                    "PublicSubspace.save wrote"
                ) from error
        if not whole:
            raise DamagedFileError(
                f"{name!r} is no subspace; it needs a file that PublicSubspace.save wrote"
            )
        if document.get("version") != _VERSION:
            raise ValueError(
                f"{name!r} has subspace format {document.get('version')!r}; this version of qexp "
                f"reads format {_VERSION}"
            )
        if document.get("digest") != _digest_of(arrays):
            raise DamagedFileError(
                f"the subspace in {name!r} does not match its digest: restore it"
            )
        if learnt_from is not None and document["learnt_from"] != learnt_from:
            raise ValueError(
                f"the subspace in {name!r} was learnt from another model, other public records or "
                "for other settings; learn it anew, or give what it was learnt from"
            )
        layers = [
            SubspaceLayer(*(arrays[f"{part}_{i}"] for part in _OF_A_LAYER))
            for i in range(document["layers"])
        ]
        return cls(layers, arrays.get("core"), scale=arrays["scale"], kept=arrays["kept"])

    def _named_arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for i, layer in enumerate(self.layers):
            yield from ((f"{part}_{i}", getattr(layer, part)) for part in _OF_A_LAYER)
        if self.core is not None:
            yield "core", self.core
        yield "scale", self.scale
        yield "kept", self.kept

    def _forward_factors(
        self, factors: Sequence[tuple[NDArray[Real], NDArray[Real]]], sketch: NDArray[Real]
    ) -> None:
        packed = self._packed_for(sketch.dtype)
        for start in range(0, len(sketch), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            parts = (
                _turned(inputs[rows], deltas[rows], of_layer.left, of_layer.right)
                for (inputs, deltas), of_layer in zip(factors, packed, strict=True)
            )
            self._combine(parts, packed, sketch[rows])

    def _forward(self, rows: NDArray[Real], out: NDArray[Real]) -> None:
        packed = self._packed_for(rows.dtype)
        ends = np.cumsum([np.prod(shape) for shape in self.layer_shapes])
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block = rows[start : start + _ROWS_AT_ONCE]
            parts = (
                _turned_rows(some.reshape(len(some), *shape), of_layer.left, of_layer.right)
                for some, shape, of_layer in zip(
                    np.split(block, ends[:-1], axis=1), self.layer_shapes, packed, strict=True
                )
            )
            self._combine(parts, packed, out[start : start + _ROWS_AT_ONCE])

    def _combine(
        self, parts: Iterable[NDArray[Any]], packed: Sequence[_PackedLayer], out: NDArray[Any]
    ) -> None:
        """Write what the layers' turned gradients (m, a, b) make up."""
        combined = np.zeros(out.shape, out.dtype)
        place = 0
        for whole, of_layer in zip(parts, packed, strict=True):
            if len(of_layer.entries) == 0:
                continue
            entries = np.empty((len(whole), len(of_layer.entries)), whole.dtype)
            # They are in range; any mode but "raise" writes to `out` without a buffer.
            np.take(
                whole.reshape(len(whole), -1), of_layer.entries, axis=1, out=entries, mode="clip"
            )
            if of_layer.core is None:
                combined[:, place : place + entries.shape[1]] = entries
                place += entries.shape[1]
            else:
                # Not a library's product: its rounding of a row may depend on those beside it.
                of_layer.core.multiply(entries, combined, accumulate=True)
        with np.errstate(all="ignore"):
            np.multiply(combined, self.scale.astype(out.dtype), out=out)

    def _adjoint(self, u: NDArray[Real], out: NDArray[Real]) -> None:
        scaled = u * self.scale
        entries = scaled if self.core is None else scaled @ self.core.T
        start = place = 0
        for layer in self.layers:
            some = entries[:, start : start + len(layer.rows)]
            turned = np.zeros((len(u), layer.left.shape[1], layer.right.shape[1]))
            turned[:, layer.rows, layer.columns] = some
            size = len(layer.left) * len(layer.right)
            whole = layer.left @ turned @ layer.right.T
            out[:, place : place + size] = whole.reshape(len(u), size)
            start, place = start + len(layer.rows), place + size

    def _packed_for(self, dtype: np.dtype[Any]) -> list[_PackedLayer]:
        if dtype not in self._packed:
            starts = np.cumsum([0, *(len(layer.rows) for layer in self.layers)])
            self._packed[dtype] = [
                _PackedLayer(
                    _product(layer.left, dtype),
                    _product(layer.right, dtype),
                    layer.rows * layer.right.shape[1] + layer.columns,
                    None
                    if self.core is None or start == end
                    else _product(self.core[start:end], dtype),
                )
                for layer, start, end in zip(self.layers, starts[:-1], starts[1:], strict=True)
            ]
        return self._packed[dtype]


@dataclass(frozen=True, eq=False)
class _PackedLayer:
    """A layer's matrices, packed for products whose rows are independent of each other.

    Attributes
    ----------
    left, right : PackedMatrix
    entries : ndarray of int, shape (r,)
        Numbers of the kept entries of a turned gradient, row by row.
    core : PackedMatrix or None
        The layer's rows of the core.
    """

    left: _core.PackedMatrix
    right: _core.PackedMatrix
    entries: NDArray[np.intp]
    core: _core.PackedMatrix | None


def _made(
    layers: Sequence[SubspaceLayer],
    core: NDArray[Any] | None,
    scale: NDArray[Any],
    kept: NDArray[Any],
) -> PublicSubspace:
    return PublicSubspace(layers, core, scale=scale, kept=kept)


def _digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    each = {name: _checks.array_digest(array) for name, array in arrays.items()}
    return hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()


def _require_entries(layer: SubspaceLayer) -> None:
    """Refuse entries outside of the turned matrix, which a kernel would not look for."""
    shape = layer.left.shape[1], layer.right.shape[1]
    for name, at, size in zip(("rows", "columns"), (layer.rows, layer.columns), shape, strict=True):
        if at.shape != layer.rows.shape or not np.issubdtype(at.dtype, np.integer):
            raise ValueError(
                f"{name} of a layer are {at.dtype} of shape {at.shape}; rows and columns need "
                "integers, as many of one as of the other"
            )
        if at.size and not 0 <= at.min() <= at.max() < size:
            raise ValueError(
                f"{name} of a layer go from {at.min()} to {at.max()}; there are {size} to keep"
            )


def _vector(values: ArrayLike | None, k: int, name: str) -> NDArray[np.float64]:
    given = np.ones(k) if values is None else _checks.finite_array(values, name, 1)
    if given.shape != (k,):
        raise ValueError(f"{name} has shape {given.shape}; it needs ({k},)")
    return _frozen(np.array(given, np.float64))


def _product(matrix: NDArray[np.float64], dtype: np.dtype[Any]) -> _core.PackedMatrix:
    return _core.PackedMatrix(np.ascontiguousarray(matrix, dtype))


def _multiplied(rows: NDArray[Real], matrix: _core.PackedMatrix) -> NDArray[Real]:
    out = np.empty((len(rows), matrix.shape[1]), rows.dtype)
    matrix.multiply(_checks.for_kernels(rows), out)
    return out


def _turned(
    inputs: NDArray[Real],
    deltas: NDArray[Real],
    left: _core.PackedMatrix,
    right: _core.PackedMatrix,
) -> NDArray[Real]:
    """Give Lᵀ G R (m, a, b) of each record, G the sum of its outer products."""
    m, positions = len(inputs), inputs.shape[1:-1]
    a = _multiplied(deltas.reshape(-1, deltas.shape[-1]), left).reshape(m, *positions, -1, 1)
    b = _multiplied(inputs.reshape(-1, inputs.shape[-1]), right).reshape(m, *positions, 1, -1)
    # A warning on one record's overflow would tell of it.
    with np.errstate(all="ignore"):
        if not positions:
            return a * b
        # One position after another, so that a record's sum has the same bits in any block.
        whole: NDArray[Real] = a[:, 0] * b[:, 0]
        for t in range(1, positions[0]):
            whole += a[:, t] * b[:, t]
    return whole


def _turned_rows(
    gradients: NDArray[Real], left: _core.PackedMatrix, right: _core.PackedMatrix
) -> NDArray[Real]:
    """Give the same of gradients (m, out, in + 1)."""
    m, out, inp = gradients.shape
    half = _multiplied(gradients.reshape(m * out, inp), right).reshape(m, out, -1)
    across = half.transpose(0, 2, 1).reshape(-1, out)
    whole = _multiplied(across, left).reshape(m, half.shape[2], -1)
    return np.ascontiguousarray(whole.transpose(0, 2, 1))
