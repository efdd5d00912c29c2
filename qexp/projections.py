"""Public linear maps P between all weights (p numbers) and the coordinates that are tuned (k).

A projection takes gradients down, ``forward(g) = Pᵀ g``, and the released draw back up,
``adjoint(u) = P u``. It is public: it depends on sizes and a seed, never on private data. Each row
of ``forward`` is computed from that row alone, bit for bit, whatever block it arrives in, and no
value in a row raises or warns.
"""

import hashlib
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, SupportsIndex, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks, _core

__all__ = ["SRHT", "Basis", "CoordinateMask", "FactorProjection", "Identity", "Projection"]

Real = TypeVar("Real", np.float32, np.float64)


@runtime_checkable
class Projection(Protocol):
    """A public linear map P of shape (p, k).

    Attributes
    ----------
    n_parameters : int
        p, the number of weights.
    n_components : int
        k, the number of coordinates the draw is made in.
    """

    @property
    def n_parameters(self) -> int:
        """The number of weights, p."""
        ...

    @property
    def n_components(self) -> int:
        """The number of coordinates, k."""
        ...

    def forward(self, rows: NDArray[Real], out: NDArray[Real] | None = None) -> NDArray[Real]:
        """Project gradients: each row g becomes Pᵀ g.

        Parameters
        ----------
        rows : ndarray of float32 or float64, shape (m, p) or (p,)
            One record a row. Rows may stand apart in memory; a block whose rows have gaps inside
            is copied once.
        out : ndarray, shape (m, k) or (k,), optional
            C-contiguous, of the dtype of ``rows`` and apart from them in memory.

        Returns
        -------
        ndarray, shape (m, k) or (k,)
            ``out``, or a new array, of the dtype of ``rows``.

        Raises
        ------
        TypeError
            If a dtype is neither float32 nor float64, or the two differ.
        ValueError
            If a shape or the layout of ``out`` does not fit. Never because of a value in ``rows``.
        """
        ...

    def adjoint(self, u: NDArray[Real]) -> NDArray[Real]:
        """Lift coordinates back to weights: each row u becomes P u.

        Parameters
        ----------
        u : ndarray of float32 or float64, shape (m, k) or (k,)

        Returns
        -------
        ndarray, shape (m, p) or (p,)
            A new array of the dtype of ``u``.

        Raises
        ------
        TypeError
            If the dtype is neither float32 nor float64.
        ValueError
            If the shape does not fit.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, sizes and, where there is one, seed and SHA-256 digest, ready for JSON."""
        ...


class _Projection(ABC):
    """Sizes, argument checks and the 1-D case; a subclass supplies the two maps of blocks."""

    kind: str

    def __init__(self, n_parameters: SupportsIndex, n_components: SupportsIndex) -> None:
        self._n_parameters = operator.index(n_parameters)
        self._n_components = operator.index(n_components)
        for name, size in (("parameters", self._n_parameters), ("components", self._n_components)):
            if size < 1:
                raise ValueError(f"a projection needs at least 1 of its {name}; got {size}")

    @property
    def n_parameters(self) -> int:
        """The number of weights, p."""
        return self._n_parameters

    @property
    def n_components(self) -> int:
        """The number of coordinates, k."""
        return self._n_components

    def forward(self, rows: NDArray[Real], out: NDArray[Real] | None = None) -> NDArray[Real]:
        """Project gradients, (m, p) or (p,) -> (m, k) or (k,); see `Projection.forward`."""
        block = _checked(rows, self._n_parameters, "rows")
        shape = (*np.shape(rows)[:-1], self._n_components)
        if out is None:
            out = np.empty(shape, dtype=block.dtype)
        else:
            _check_out(out, block, shape)
        self._forward(block, out.reshape(len(block), self._n_components))
        return out

    def adjoint(self, u: NDArray[Real]) -> NDArray[Real]:
        """Lift coordinates, (m, k) or (k,) -> (m, p) or (p,); see `Projection.adjoint`."""
        block = _checked(u, self._n_components, "u")
        out = np.empty((len(block), self._n_parameters), dtype=block.dtype)
        self._adjoint(np.ascontiguousarray(block), out)
        return out.reshape(*np.shape(u)[:-1], self._n_parameters)

    def describe(self) -> dict[str, Any]:
        """Kind, sizes and, where there is one, seed and SHA-256 digest, ready for JSON."""
        return {
            "kind": self.kind,
            "n_parameters": self._n_parameters,
            "n_components": self._n_components,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self._n_parameters}, k={self._n_components})"

    @abstractmethod
    def _forward(self, rows: NDArray[Real], out: NDArray[Real]) -> None:
        """Write Pᵀ g for every row g."""

    @abstractmethod
    def _adjoint(self, u: NDArray[Real], out: NDArray[Real]) -> None:
        """Write P u for every row u."""


class FactorProjection(_Projection):
    """A projection of layered gradients that takes them as factors and never forms them.

    Parameters
    ----------
    layer_shapes : sequence of (out, in + 1)
        As ``model.layer_shapes``.
    n_components : int
        k.
    """

    def __init__(
        self, layer_shapes: Sequence[tuple[int, int]], n_components: SupportsIndex
    ) -> None:
        self.layer_shapes = tuple(
            (_checks.count(out, "out of a layer"), _checks.count(inp, "in + 1 of a layer"))
            for out, inp in layer_shapes
        )
        super().__init__(sum(out * inp for out, inp in self.layer_shapes), n_components)

    def forward_factors(
        self,
        factors: Sequence[tuple[NDArray[Real], NDArray[Real]]],
        *,
        out: NDArray[Real] | None = None,
    ) -> NDArray[Real]:
        """Project gradients that are given as factors, one pair (inputs, deltas) a layer.

        Parameters
        ----------
        factors : sequence of pairs of float32 or float64
            inputs (m, in + 1) and deltas (m, out), or (m, T, in + 1) and (m, T, out) for a layer
            whose gradient is a sum of outer products over T positions.
        out : ndarray, shape (at least m, k), optional
            Where to put the result, in the first m rows. Blocks that come one after another and
            share it spare the pages of a new array each. Default: a new array.

        Returns
        -------
        ndarray, shape (m, k)

        Raises
        ------
        ValueError
            If the shapes do not match the layers, or `out` does not match them.
        """
        if len(factors) != len(self.layer_shapes):
            raise ValueError(f"factors are for {len(factors)} layers, not {len(self.layer_shapes)}")
        m, dtype = len(factors[0][0]), factors[0][0].dtype
        if out is None:
            out = np.empty((m, self.n_components), dtype)
        elif out.ndim != 2 or len(out) < m or out.shape[1] != self.n_components:
            raise ValueError(
                f"out has shape {out.shape}; it needs at least {m} rows of {self.n_components}"
            )
        sketch = out[:m]
        for shape, pair in zip(self.layer_shapes, factors, strict=True):
            inputs: NDArray[Any]
            deltas: NDArray[Any]
            inputs, deltas = pair
            if (
                len(inputs) != m
                or inputs.shape[-1] != shape[1]
                or deltas.shape != (*inputs.shape[:-1], shape[0])
                or not inputs.dtype == deltas.dtype == sketch.dtype
            ):
                raise ValueError(
                    f"factors have shapes {inputs.shape} and {deltas.shape} and types "
                    f"{inputs.dtype} and {deltas.dtype}; a layer of shape {shape} needs "
                    f"({m}, {shape[1]}) and ({m}, {shape[0]}), or positions between, and "
                    f"{sketch.dtype}"
                )
        self._forward_factors(factors, sketch)
        return sketch

    @abstractmethod
    def _forward_factors(
        self, factors: Sequence[tuple[NDArray[Real], NDArray[Real]]], sketch: NDArray[Real]
    ) -> None:
        """Write Pᵀ g for every record g."""


class SRHT(_Projection):
    """Subsampled randomised Hadamard transform: k coordinates in O(p log p), with no stored matrix.

    P = √(p'/k) Dᵀ H̃ᵀ Rᵀ restricted to its first p rows, where p' is the next power of two at or
    above p: D flips signs at random, H̃ is the orthonormal Walsh-Hadamard matrix of order p', and R
    keeps k of its rows, drawn without replacement. E‖Pᵀx‖² = ‖x‖² over seeds.

    Signs and rows come from the raw words of the Philox counter-based generator, so a seed means
    the same map on every platform and with every version of NumPy.

    Parameters
    ----------
    p : int
        Number of weights, at least 1.
    k : int
        Number of coordinates, from 1 to p'.
    seed : int
        Public seed, from 0 to 2**128 - 1.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    N. Ailon and B. Chazelle, "The fast Johnson-Lindenstrauss transform and approximate nearest
    neighbors", SIAM J. Comput. 39 (2009); J. A. Tropp, "Improved analysis of the subsampled
    randomized Hadamard transform", Adv. Adapt. Data Anal. 3 (2011). Rows: R. W. Floyd's sampling
    algorithm in J. Bentley, "Programming pearls", Commun. ACM 30 (1987). Generator: J. K. Salmon et
    al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """

    kind = "srht"

    def __init__(self, p: SupportsIndex, k: SupportsIndex, *, seed: SupportsIndex) -> None:
        super().__init__(p, k)
        self.seed = _checks.seed(seed)
        padded = 1 << (self.n_parameters - 1).bit_length()
        if self.n_components > padded:
            raise ValueError(
                f"k is {self.n_components}; it can be at most p' = {padded}, the next power of two "
                f"at or above p = {self.n_parameters}: choose a smaller k, or Identity to keep "
                "every weight"
            )
        bits = np.random.Philox(key=self.seed)
        self.signs = _random_signs(bits, self.n_parameters)
        self.indices = _sample_without_replacement(bits, padded, self.n_components)

    def describe(self) -> dict[str, Any]:
        """Kind, sizes, seed and the digest of signs and rows, ready for JSON."""
        digest = _digest(self.signs, self.indices)
        return {**super().describe(), "seed": self.seed, "digest": digest}

    def _forward(self, rows: NDArray[Real], out: NDArray[Real]) -> None:
        _core.srht_forward(rows, self.signs, self.indices, self._scale, out)

    def _adjoint(self, u: NDArray[Real], out: NDArray[Real]) -> None:
        _core.srht_adjoint(u, self.signs, self.indices, self._scale, out)

    @property
    def _scale(self) -> float:
        # √(p'/k) of the projection times 1/√p' that makes the Hadamard matrix orthonormal.
        return 1.0 / math.sqrt(self.n_components)


class Identity(_Projection):
    """Every weight is a coordinate: P = I, k = p.

    Parameters
    ----------
    p : int
        Number of weights, at least 1.
    """

    kind = "identity"

    def __init__(self, p: SupportsIndex) -> None:
        super().__init__(p, p)

    def _forward(self, rows: NDArray[Real], out: NDArray[Real]) -> None:
        out[...] = rows

    def _adjoint(self, u: NDArray[Real], out: NDArray[Real]) -> None:
        out[...] = u


class CoordinateMask(_Projection):
    """Some of the weights are the coordinates; the others stay as they are.

    Parameters
    ----------
    p : int
        Number of weights, at least 1.
    indices : array_like of int, shape (k,)
        The weights that are tuned, from 0 to p - 1, without repeats. Coordinate j is weight
        ``indices[j]``.

    Raises
    ------
    TypeError
        If ``indices`` are not integers (turn a mask into indices by ``numpy.flatnonzero``).
    ValueError
        If ``indices`` is empty, not one-dimensional, out of range or repeats itself.
    """

    kind = "coordinate_mask"

    def __init__(self, p: SupportsIndex, indices: ArrayLike) -> None:
        given = np.asarray(indices)
        if given.ndim != 1:
            raise ValueError(f"indices has shape {given.shape}; it needs one dimension")
        super().__init__(p, given.size)
        if not np.issubdtype(given.dtype, np.integer):
            raise TypeError(
                f"indices has dtype {given.dtype}; it needs integers (numpy.flatnonzero turns a "
                "mask into indices)"
            )
        least, most = int(given.min()), int(given.max())
        if least < 0 or most >= self.n_parameters:
            raise ValueError(
                f"indices run from {least} to {most}; they can run from 0 to "
                f"{self.n_parameters - 1}"
            )
        if np.unique(given).size != given.size:
            raise ValueError("indices repeat themselves; name each weight once")
        self.indices = _frozen(given.astype(np.int64))

    def describe(self) -> dict[str, Any]:
        """Kind, sizes and the digest of the indices, ready for JSON."""
        return {**super().describe(), "digest": _digest(self.indices)}

    def _forward(self, rows: NDArray[Real], out: NDArray[Real]) -> None:
        # The indices are in range; any mode but "raise" writes to `out` without a buffer.
        np.take(rows, self.indices, axis=1, out=out, mode="clip")

    def _adjoint(self, u: NDArray[Real], out: NDArray[Real]) -> None:
        out[...] = 0
        out[:, self.indices] = u


class Basis(_Projection):
    """A public matrix P, such as leading directions of public gradients.

    Parameters
    ----------
    matrix : array_like of float32 or float64, shape (p, k)
        Copied, and rounded to the dtype of the rows it is applied to.

    Raises
    ------
    TypeError
        If the dtype is neither float32 nor float64.
    ValueError
        If it is not a matrix with at least one row and one column, or holds NaN or an infinity.
    """

    kind = "basis"

    def __init__(self, matrix: ArrayLike) -> None:
        given = np.asarray(matrix)
        _check_dtype(given, "matrix")
        if given.ndim != 2:
            raise ValueError(f"matrix has shape {given.shape}; it needs two dimensions (p, k)")
        super().__init__(*given.shape)
        if not np.isfinite(given).all():
            raise ValueError("matrix holds NaN or infinite entries; it needs finite ones")
        self.matrix = _frozen(np.array(given, order="C"))
        self._packed: dict[np.dtype[Any], _core.PackedMatrix] = {}

    def __reduce__(self) -> tuple[type["Basis"], tuple[NDArray[Any]]]:
        return Basis, (self.matrix,)

    def describe(self) -> dict[str, Any]:
        """Kind, sizes and the digest of the matrix, ready for JSON."""
        return {**super().describe(), "digest": _digest(self.matrix)}

    def _forward(self, rows: NDArray[Real], out: NDArray[Real]) -> None:
        # Not a library's product: its rounding of a row may depend on the rows beside it.
        if rows.dtype not in self._packed:
            self._packed[rows.dtype] = _core.PackedMatrix(self._as(rows))
        self._packed[rows.dtype].multiply(rows, out)

    def _adjoint(self, u: NDArray[Real], out: NDArray[Real]) -> None:
        np.matmul(u, self._as(u).T, out=out)

    def _as(self, rows: NDArray[Real]) -> NDArray[Real]:
        return self.matrix.astype(rows.dtype, copy=False)


def _check_dtype(array: NDArray[Any], name: str) -> None:
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype}; it needs float32 or float64")


def _checked(array: NDArray[Real], columns: int, name: str) -> NDArray[Real]:
    """Return the array as rows whose numbers are adjacent, copied only where they are not."""
    array = np.asarray(array)
    _check_dtype(array, name)
    if array.ndim not in (1, 2) or array.shape[-1] != columns:
        raise ValueError(f"{name} has shape {array.shape}; it needs ({columns},) or (m, {columns})")
    block = array[np.newaxis] if array.ndim == 1 else array
    item = block.itemsize
    adjacent = block.strides[1] == item or columns == 1
    if adjacent and block.strides[0] % item == 0 and block.flags.aligned:
        return block
    return block.copy(order="C")


def _check_out(out: NDArray[Any], rows: NDArray[Any], shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != rows.dtype:
        given = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"out is {given}; it needs to be an array of {rows.dtype}, as rows are")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; it needs {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise ValueError("out needs to be C-contiguous, aligned and writeable")
    if np.may_share_memory(out, rows):
        raise ValueError("out shares memory with rows; give it memory of its own")


def _random_signs(bits: np.random.Philox, count: int) -> NDArray[np.uint64]:
    """Return `count` random bits, 64 to a word, lowest first; those past the last are zero."""
    words = np.asarray(bits.random_raw(-(-count // 64)), dtype=np.uint64)
    if count % 64:
        words[-1] &= np.uint64(2 ** (count % 64) - 1)
    return _frozen(words)


def _sample_without_replacement(
    bits: np.random.Philox, population: int, size: int
) -> NDArray[np.int64]:
    """Return `size` of the numbers below `population`, ascending, every subset equally likely."""
    words = _words(bits)
    chosen: set[int] = set()
    for last in range(population - size, population):
        candidate = _below(words, last + 1)
        chosen.add(last if candidate in chosen else candidate)
    return _frozen(np.array(sorted(chosen), dtype=np.int64))


def _words(bits: np.random.Philox) -> Iterator[int]:
    while True:
        yield from bits.random_raw(1024).tolist()


def _below(words: Iterator[int], bound: int) -> int:
    """Return a uniform integer in [0, bound), by rejection of the incomplete last interval."""
    limit = 2**64 - 2**64 % bound
    return next(word % bound for word in words if word < limit)


def _digest(*arrays: NDArray[Any]) -> str:
    """SHA-256 of the arrays' dtypes, shapes and little-endian values."""
    state = hashlib.sha256()
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        state.update(f"{little.dtype.str}{little.shape}".encode())
        state.update(little.tobytes())
    return state.hexdigest()


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
