import pickle
import warnings

import numpy as np
import pytest
from helpers import all_rows, outer_rows, random_factors

from qexp import IdentityCurvature, KroneckerCurvature, Schedule, fine_tune, sample_private_weights
from qexp._files import DamagedFileError
from qexp.bits import insecure_test_generator
from qexp.datasets import load_digits
from qexp.models import mlp
from qexp.projections import Projection
from qexp.subspace import (
    DAMPING,
    PublicSubspace,
    SubspaceLayer,
    _projection,
    image_moves,
    learn_directions,
)
from qexp.surrogates import IMAGE_KINDS, ImageShift

SHAPES = ((5, 9), (3, 6))
P = 5 * 9 + 3 * 6


def made(k=None, seed=0):
    """A subspace of some entries of both layers, combined into k, or as they are."""
    rng = np.random.default_rng(seed)
    layers = []
    for (out, inp), entries in zip(SHAPES, (12, 7), strict=True):
        a, b = out - 1, inp - 2
        flat = np.sort(rng.permutation(a * b)[:entries])
        layers.append(
            SubspaceLayer(rng.normal(size=(out, a)), rng.normal(size=(inp, b)), *np.divmod(flat, b))
        )
    core = None if k is None else np.linalg.qr(rng.normal(size=(19, k)))[0]
    return PublicSubspace(layers, core, scale=rng.uniform(size=19 if k is None else k))


def explicit(subspace):
    """P as a matrix (p, k): entry (i, j) of Lᵀ G R is l_iᵀ G r_j."""
    blocks = [
        np.kron(layer.left, layer.right)[:, layer.rows * layer.right.shape[1] + layer.columns]
        for layer in subspace.layers
    ]
    matrix = np.zeros((P, sum(block.shape[1] for block in blocks)))
    i = j = 0
    for block in blocks:
        matrix[i : i + block.shape[0], j : j + block.shape[1]] = block
        i, j = i + block.shape[0], j + block.shape[1]
    return (matrix if subspace.core is None else matrix @ subspace.core) * subspace.scale


def factors(m, positions=None, dtype=np.float64, seed=1):
    return random_factors(SHAPES, m, positions, dtype, seed)


# ------------------------------------------------------------------------------------ the map


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [None, 4])
def test_forward_and_adjoint_are_the_explicit_matrix(k, dtype):
    subspace = made(k)
    matrix = explicit(subspace)
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(4, P)).astype(dtype)
    u = rng.normal(size=(2, subspace.n_components)).astype(dtype)
    tolerance = 1e-12 if dtype == np.float64 else 1e-4
    assert np.allclose(subspace.forward(rows), rows @ matrix, atol=tolerance, rtol=tolerance)
    assert np.allclose(subspace.adjoint(u), u @ matrix.T, atol=tolerance, rtol=tolerance)
    assert subspace.forward(rows).dtype == subspace.adjoint(u).dtype == dtype
    assert isinstance(subspace, Projection)


@pytest.mark.parametrize("positions", [None, 1, 3])
@pytest.mark.parametrize("k", [None, 4])
def test_factors_give_what_their_outer_products_give(k, positions):
    subspace, pairs = made(k), factors(300, positions)
    dense = outer_rows(pairs) @ explicit(subspace)
    assert np.allclose(subspace.forward_factors(pairs), dense, atol=1e-11)


def test_a_record_has_the_same_bits_whatever_its_block():
    subspace, pairs = made(4), factors(600, dtype=np.float32)
    whole = subspace.forward_factors(pairs)
    for start, stop in ((0, 1), (127, 130), (100, 600)):
        part = [(a[start:stop], d[start:stop]) for a, d in pairs]
        assert np.array_equal(subspace.forward_factors(part), whole[start:stop])


@pytest.mark.parametrize("positions", [None, 2])
def test_no_value_of_a_record_raises_warns_or_reaches_another(positions):
    subspace, pairs = made(4), factors(5, positions, np.float32)
    clean = subspace.forward_factors(pairs)
    for bad in (np.nan, np.inf, 1e38):
        inputs, deltas = (array.copy() for array in pairs[0])
        inputs[2], deltas[2] = bad, -bad
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = subspace.forward_factors([(inputs, deltas), pairs[1]])
            subspace.forward(np.full((1, P), bad, np.float32))
        assert np.array_equal(np.delete(found, 2, axis=0), np.delete(clean, 2, axis=0))
        assert not np.all(np.isfinite(found[2]))


def test_pickled_it_is_the_same_map():
    subspace = made(4)
    other = pickle.loads(pickle.dumps(subspace))
    assert other.describe() == subspace.describe()
    pairs = factors(3)
    assert np.array_equal(other.forward_factors(pairs), subspace.forward_factors(pairs))
    assert made(4, seed=1).describe()["digest"] != subspace.describe()["digest"]


@pytest.mark.parametrize("k", [None, 4])
def test_a_file_gives_the_same_map(k, tmp_path):
    subspace, path = made(k), tmp_path / "subspace.npz"
    subspace.save(path, learnt_from="these")
    for other in (PublicSubspace.load(path), PublicSubspace.load(path, learnt_from="these")):
        assert other.describe() == subspace.describe()
        assert np.array_equal(other.kept, subspace.kept)
        pairs = factors(3)
        assert np.array_equal(other.forward_factors(pairs), subspace.forward_factors(pairs))
    with pytest.raises(ValueError, match="learnt from another model"):
        PublicSubspace.load(path, learnt_from="those")


def test_a_file_that_is_not_as_it_was_written_is_refused(tmp_path, monkeypatch):
    subspace, path = made(4), tmp_path / "subspace.npz"
    subspace.save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match="is not a readable subspace"):
            PublicSubspace.load(path)
    np.savez(path, weights=np.ones(3))
    with pytest.raises(DamagedFileError, match="subspace"):
        PublicSubspace.load(path)
    path.write_bytes(whole)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(path, **{**arrays, "scale": arrays["scale"] * 2})
    with pytest.raises(DamagedFileError, match="does not match its digest"):
        PublicSubspace.load(path)
    with pytest.raises(FileNotFoundError):
        PublicSubspace.load(tmp_path / "none.npz")
    for name, value, kind, message in (
        ("_VERSION", 2, ValueError, "has subspace format 1; this version of qexp reads format 2"),
        ("_FORMAT", "other", DamagedFileError, "is no subspace"),
    ):
        path.write_bytes(whole)
        with monkeypatch.context() as later:
            later.setattr(_projection, name, value)
            with pytest.raises(kind, match=message):
                PublicSubspace.load(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 4], "rows of a layer go from 0 to 4; there are 4 to keep"),
        ([-1, 0], "rows of a layer go from -1 to 0"),
        ([0.0, 1.0], "rows of a layer are float64"),
        ([0], "columns of a layer are int64 of shape"),
    ],
)
def test_entries_that_are_not_there_are_refused(rows, message):
    layer = SubspaceLayer(np.ones((5, 4)), np.ones((9, 7)), np.array(rows), np.array([0, 1]))
    with pytest.raises(ValueError, match=message):
        PublicSubspace([layer])


def test_shapes_that_do_not_fit_are_refused():
    layers = made().layers
    with pytest.raises(ValueError, match=r"core has shape \(4, 2\); the layers have 19 entries"):
        PublicSubspace(layers, np.ones((4, 2)))
    with pytest.raises(ValueError, match="core"):
        PublicSubspace(layers, np.full((19, 2), np.nan))
    with pytest.raises(ValueError, match=r"kept has shape \(3,\); it needs \(19,\)"):
        PublicSubspace(layers, kept=np.ones(3))
    with pytest.raises(ValueError, match=r"scale has shape \(3,\); it needs \(4,\)"):
        PublicSubspace(layers, np.ones((19, 4)), scale=np.ones(3))
    with pytest.raises(ValueError, match="factors are for 1 layers"):
        made().forward_factors(factors(3)[:1])


def test_a_layer_may_have_no_part_in_it():
    first, second = made().layers
    none = np.zeros(0, np.intp)
    idle = SubspaceLayer(second.left[:, :1], second.right[:, :1], none, none)
    for core in (None, np.linalg.qr(np.random.default_rng(0).normal(size=(12, 4)))[0]):
        subspace = PublicSubspace([first, idle], core)
        pairs = factors(5)
        found = subspace.forward_factors(pairs)
        assert np.allclose(found, outer_rows(pairs) @ explicit(subspace), atol=1e-12)
        assert np.allclose(subspace.forward(outer_rows(pairs)), found, atol=1e-12)
        assert not subspace.adjoint(np.ones(subspace.n_components))[5 * 9 :].any()


# ------------------------------------------------------------------------------ what is learnt


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    y = rng.integers(3, size=900)
    X = (centres[y] + rng.normal(size=(900, 8))).astype(np.float32)
    return mlp((8, 5, 3)).fit(X[:500], y[:500], epochs=20), X[500:], y[500:]


def turned(angle):
    """A move of records: two features turned by an angle."""

    def move(X, y, rng):
        moved = X.copy()
        c, s = np.cos(angle), np.sin(angle)
        moved[:, :2] = X[:, :2] @ np.array([[c, -s], [s, c]], X.dtype)
        return moved, y

    return move


MOVES = [turned(angle) for angle in (0.5, 1.0, 1.5, 2.0, 2.5)]


@pytest.fixture(scope="module")
def learnt(task):
    return learn_directions(*task, moves=MOVES)


def whitened(task, subspace):
    """Lᵀ P as a matrix, with L Lᵀ the curvature that the subspace is whitened by."""
    model, X, _ = task
    curvature = KroneckerCurvature.from_model(model, X, damping=DAMPING)
    lifted = subspace.adjoint(np.eye(subspace.n_components))
    root = np.linalg.inv(np.stack([curvature.unwhiten(e) for e in np.eye(63)], axis=1))
    return root @ lifted.T


@pytest.mark.parametrize("k", [1, 6, 20, 40, 63])
def test_its_coordinates_are_whitened(task, learnt, k):
    columns = whitened(task, learnt.subspace(k))
    assert columns.shape == (63, k)
    of_whitened = learnt.whitened(learnt.subspace(k))
    assert np.allclose(columns.T, of_whitened.adjoint(np.eye(k)), atol=1e-8)
    scale = learnt.subspace(k).scale
    assert np.allclose(columns.T @ columns, np.diag(scale**2), atol=1e-8)
    assert scale.max() == 1


def test_up_to_the_number_of_gradients_it_is_their_principal_directions(task, learnt):
    gradients = np.concatenate([g.reshape(len(g), -1) for g in learnt.gradients], axis=1)
    assert gradients.shape == (20, 63)
    singular = np.linalg.svd(gradients, compute_uv=False)
    for k in (1, 3, 8):
        subspace = learnt.subspace(k)
        found = gradients @ (whitened(task, subspace) / subspace.scale)
        assert np.allclose(subspace.scale, (singular[:k] / singular[0]) ** 0.2, rtol=1e-3)
        assert np.isclose(np.square(found).sum(), np.square(singular[:k]).sum(), rtol=1e-4)


def test_the_damping_leaves_a_part_of_each_curvature(learnt):
    for k in (6, 40):
        kept = learnt.subspace(k).kept
        assert kept.shape == (k,)
        assert np.all((kept >= 0) & (kept <= 1))
        assert kept.max() > 0.5


def test_the_first_gradient_is_that_of_the_moved_records(task, learnt):
    model, X, y = task
    curvature = KroneckerCurvature.from_model(model, X, damping=DAMPING)
    moved, _ = MOVES[0](X, y, None)
    rows = curvature.whiten(all_rows(model.gradient_blocks(moved, y)))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    mean = (rows * np.minimum(1, 3.0 / norms)).mean(axis=0)
    found = np.concatenate([g[0].ravel() for g in learnt.gradients])
    assert np.allclose(found, mean, atol=1e-5)


def test_it_is_a_function_of_public_values(task, learnt):
    again = learn_directions(*task, moves=MOVES).subspace(6)
    assert again.describe() == learnt.subspace(6).describe()


def test_what_cannot_be_learnt_from_is_refused(task, learnt):
    model, X, y = task
    with pytest.raises(TypeError, match="moves needs functions"):
        learn_directions(model, X, y, moves=[])
    with pytest.raises(ValueError, match=r"X_public has shape \(400, 8\) and y_public \(3,\)"):
        learn_directions(model, X, y[:3], moves=MOVES)
    with pytest.raises(
        ValueError, match="n_components is 64; it can be at most the model's 63 weights"
    ):
        learnt.subspace(64)
    with pytest.raises(ValueError, match="n_components"):
        learnt.subspace(0)
    unknown, none = (lambda X, y, rng: (X, y + 7)), (lambda X, y, rng: (X[:0], y[:0]))
    for move in (unknown, none):
        with pytest.raises(ValueError, match="a gradient of moved public records is not finite"):
            learn_directions(model, X, y, moves=[MOVES[0], move])


def test_drawn_moves_are_image_shifts_of_different_strength():
    digits = load_digits()
    X, y = digits.images.reshape(-1, 64).astype(np.float32), digits.labels
    model = mlp((64, 16, 10)).fit(X[:1000], y[:1000], epochs=15)
    moves = image_moves(model, X[1000:], y[1000:], count=3)
    assert all(isinstance(move, ImageShift) for move in moves)
    rng = np.random.default_rng(0)
    accuracies = [model.score(*move(X[1000:], y[1000:], rng)) for move in moves]
    assert accuracies[0] > accuracies[1] > accuracies[2]


def test_the_kinds_of_a_shift_make_up_the_shift():
    shift = ImageShift(
        image_shape=(4, 4), rotation=3.0, shift=(0.1, 0.2), blur=0.1, contrast=0.3, spread=0.5
    )
    first, second = (shift.only(kinds) for kinds in IMAGE_KINDS)
    assert (first.rotation, first.blur, first.shift, first.spread) == (3.0, 0.1, (0.0, 0.0), 0.0)
    assert (second.rotation, second.shift, second.contrast) == (0.0, (0.1, 0.2), 0.3)
    assert shift.only([*IMAGE_KINDS[0], *IMAGE_KINDS[1]]) == shift


# ------------------------------------------------------------------------------- in a release


def test_a_draw_in_it_has_the_same_bits_however_records_come(task, learnt):
    model, X, y = task
    subspace = learnt.subspace(6)

    def draw(block_size):
        return sample_private_weights(
            model.weights,
            model.gradient_blocks(X, y, block_size=block_size),
            projection=subspace,
            curvature=IdentityCurvature(6),
            target_epsilon=1.0,
            target_delta=1e-5,
            clipping_norm=1.0,
            rng=insecure_test_generator(3),
        )

    first, second = draw(7), draw(300)
    assert np.array_equal(first.weights, second.weights)
    assert first.certificate()["public_inputs"]["projection"] == subspace.describe()
    columns = whitened(task, subspace)
    step = whitened(task, _Lifted(first.weights.astype(float) - model.weights))[:, 0]
    columns /= subspace.scale
    assert np.allclose(columns @ (columns.T @ step), step, atol=1e-5 * np.linalg.norm(step))


@pytest.mark.parametrize(("k", "tolerance"), [(6, 0.1), (40, 1e-6)])
def test_the_loss_that_noise_costs_is_that_of_the_undamped_curvature(task, learnt, k, tolerance):
    model, X, y = task
    subspace = learnt.subspace(k)
    release = fine_tune(
        model,
        X,
        y,
        schedule=Schedule(rounds=1, clipping_norm=0.7, step_size=1.3, damping=DAMPING),
        curvature=IdentityCurvature(k),
        projection=subspace,
        target_epsilon=1.0,
        target_delta=1e-5,
        rng=insecure_test_generator(3),
    ).release
    layers = KroneckerCurvature.from_model(model, X, damping=DAMPING).layers
    shares = [np.kron(x.expected_output_moments(), x.expected_moments()) for x in layers]
    columns = np.split(whitened(task, subspace), [len(shares[0])])
    trace = sum(np.trace(c.T @ share @ c) for c, share in zip(columns, shares, strict=True))
    spread = 1.3 * 0.7 / (len(X) * release.mu)
    assert release.expected_mean_loss == pytest.approx(spread**2 * trace / 2, rel=tolerance)


class _Lifted:
    """One step, as a map from one component."""

    n_components = 1

    def __init__(self, step):
        self._step = step

    def adjoint(self, u):
        return u * self._step


def test_a_record_that_cannot_be_used_counts_as_null(task, learnt):
    model, X, y = task
    bad_X, bad_y = X.copy(), y.copy()
    bad_X[5], bad_y[9] = np.nan, 77

    def tuned(X, y):
        return fine_tune(
            model,
            X,
            y,
            schedule=Schedule(rounds=2, clipping_norm=1.0, step_size=1.0, damping=DAMPING),
            curvature=IdentityCurvature(6),
            projection=learnt.subspace(6),
            target_epsilon=1.0,
            target_delta=1e-5,
            rng=insecure_test_generator(3),
        ).model.weights

    worse = bad_X.copy()
    worse[5, 0], worse[5, 1:] = np.inf, 3.0
    assert np.array_equal(tuned(bad_X, bad_y), tuned(worse, bad_y))


def test_it_learns_what_the_moves_were_like(task, learnt):
    model, X, y = task
    moved, _ = turned(1.2)(X, y, None)

    def score(projection, curvature):
        scores = [
            fine_tune(
                model,
                moved[:200],
                y[:200],
                schedule=Schedule(rounds=4, clipping_norm=1.0, step_size=1.5, damping=DAMPING),
                curvature=curvature,
                projection=projection,
                target_epsilon=0.5,
                target_delta=1e-5,
                rng=insecure_test_generator(seed),
            ).model.score(moved[200:], y[200:])
            for seed in range(5)
        ]
        return np.mean(scores)

    within = score(learnt.subspace(4), IdentityCurvature(4))
    full = score(None, KroneckerCurvature.from_model(model, X, damping=DAMPING))
    assert within > full + 0.03
