"""What all bindings of the kernels have in common."""

import numpy as np
import pytest

from qexp import ArrayRecords, _blas, _checks, _core

SCALE = {"units_per_norm": 2.0**21, "clipping_norm": 1.0, "bound": 2**21}
NETWORK = _core.Network([2, 3, 2], "tanh", np.zeros(17))


def misaligned(array):
    moved = np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:].view(array.dtype)
    moved = moved.reshape(array.shape)
    assert not moved.flags.aligned
    return moved


def words(*values):
    return np.array(values, np.uint64)


def zeros(*shape):
    return np.zeros(shape)


def counts(*shape):
    return np.zeros(shape, np.int64)


def layers(call):
    """Let a call that takes factors by lists take them one after another."""
    return lambda *arrays: call(*arrays[:-4], list(arrays[-4:-2]), list(arrays[-2:]))


CALLS = {
    "draw_lattice_normals": (
        lambda w, out: _core.draw_lattice_normals(w, 8, out),
        [words(1, 2), counts(2)],
    ),
    "lattice_sum": (
        lambda rows, total: _core.lattice_sum(rows, total, **SCALE),
        [zeros(2, 3), counts(3)],
    ),
    "lattice_sum_outer": (
        lambda left, right, total: _core.lattice_sum_outer([(left, right)], total, **SCALE),
        [zeros(2, 3), zeros(2, 4), counts(12)],
    ),
    "gram_accumulate": (
        lambda h, rows, weights: _core.gram_accumulate(h, rows, 1.0, row_weights=weights),
        [zeros(3, 3), zeros(2, 3), zeros(2)],
    ),
    "cholesky_inplace": (_core.cholesky_inplace, [np.eye(3)]),
    "triangular_solve": (
        lambda factor, b: _core.triangular_solve(factor, b, side="left", transpose=False),
        [np.eye(3), zeros(3, 2)],
    ),
    "triangular_inverse_inplace": (_core.triangular_inverse_inplace, [np.eye(3)]),
    "fwht": (_core.fwht, [zeros(2, 4)]),
    "srht_forward": (
        lambda rows, signs, indices, out: _core.srht_forward(rows, signs, indices, 1.0, out),
        [zeros(2, 4), words(3), counts(1), zeros(2, 1)],
    ),
    "srht_adjoint": (
        lambda u, signs, indices, out: _core.srht_adjoint(u, signs, indices, 1.0, out),
        [zeros(2, 1), words(3), counts(1), zeros(2, 4)],
    ),
    "kron_sketch": (
        lambda *arrays: _core.kron_sketch(*arrays[:-1], 1.0, arrays[-1]),
        [zeros(2, 1, 3), words(3), counts(5), zeros(2, 1, 4), words(3), counts(5), zeros(2, 5)],
    ),
    "Network": (lambda weights: _core.Network([2, 2], "tanh", weights), [zeros(6)]),
    "Network.log_probabilities": (NETWORK.log_probabilities, [zeros(4, 2), zeros(4, 2)]),
    "Network.gradient_rows": (NETWORK.gradient_rows, [zeros(4, 2), counts(4), zeros(4, 17)]),
    "Network.curvature_rows": (NETWORK.curvature_rows, [zeros(4, 2), zeros(8, 17)]),
    "Network.gradient_factors": (
        layers(NETWORK.gradient_factors),
        [zeros(4, 2), counts(4), zeros(4, 3), zeros(4, 4), zeros(4, 3), zeros(4, 2)],
    ),
    "Network.curvature_factors": (
        layers(NETWORK.curvature_factors),
        [zeros(4, 2), zeros(4, 3), zeros(4, 4), zeros(8, 3), zeros(8, 2)],
    ),
    "PackedMatrix": (_core.PackedMatrix, [zeros(3, 2)]),
    "PackedMatrix.multiply": (
        _core.PackedMatrix(zeros(3, 2)).multiply,
        [zeros(4, 3), zeros(4, 2)],
    ),
}


def test_the_table_has_every_kernel_that_takes_arrays():
    without = {"bind_blas", "blas_config", "get_num_threads", "isa", "set_num_threads"}
    found = {name for name in dir(_core) if callable(getattr(_core, name))} - without
    for kind in (_core.Network, _core.PackedMatrix):
        methods = (name for name in vars(kind) if callable(getattr(kind, name)))
        found |= {f"{kind.__name__}.{name}" for name in methods if not name.startswith("_")}
    assert set(CALLS) == found - {"__loader__"}


@pytest.mark.parametrize("name", CALLS)
def test_misaligned_arrays_are_refused(name):
    _blas.ensure_bound()
    call, arrays = CALLS[name]
    call(*(array.copy() for array in arrays))
    for at, array in enumerate(arrays):
        given = [a.copy() for a in arrays]
        given[at] = misaligned(array)
        with pytest.raises(ValueError, match=r"^\w+( \w+)? is misaligned; .*: copy it first$"):
            call(*given)


def test_what_users_give_may_be_misaligned():
    rows = np.random.default_rng(0).standard_normal((5, 3))
    (block,) = ArrayRecords(misaligned(rows)).blocks()
    assert block.flags.aligned
    np.testing.assert_array_equal(block, rows)
    assert _checks.for_kernels(rows) is rows
