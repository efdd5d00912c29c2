"""The draw against a NumPy reference, what it charges, and the bits that must not move."""

import logging
import math
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import all_rows
from scipy.linalg import solve_triangular

import qexp
from qexp import mechanism
from qexp.bits import insecure_test_generator, secure_generator
from qexp.models import mlp, softmax_regression
from qexp.records import ArrayRecords, per_user

P, N = 40, 120
CLIP = 2.0
TARGET = {"target_epsilon": 1.0, "target_delta": 1e-5}
MU = qexp.calibrate_mu(1.0, 1e-5)
MARGIN = 1 - 2.0**-20


class Source:
    """Gradients in blocks of one buffer; remembers being read, and may fail half way."""

    def __init__(self, gradients, block_size=17, fail_with=None):
        self.gradients = gradients
        self.n_records, self.n_parameters = gradients.shape
        self.block_size = block_size
        self.fail_with = fail_with
        self.touched = False

    def blocks(self):
        self.touched = True
        buffer = np.empty((self.block_size, self.n_parameters), self.gradients.dtype)
        for start in range(0, self.n_records, self.block_size):
            if self.fail_with is not None and start > self.n_records // 2:
                raise self.fail_with
            rows = self.gradients[start : start + self.block_size]
            block = buffer[: len(rows)]
            block[...] = rows
            yield block


def gradients_of(dtype=np.float64, n=N, p=P, seed=0):
    rng = np.random.default_rng(seed)
    # Norms on both sides of the clipping norm.
    rows = rng.normal(size=(n, p)) * rng.uniform(0.02, 1.5, size=(n, 1))
    return rows.astype(dtype)


def matrix_of(k, seed=3):
    rows = np.random.default_rng(seed).normal(size=(2 * k, k)) * np.linspace(0.2, 2, k)
    return rows.T @ rows / len(rows)


def draw(records, *, seed=5, k=P, **changes):
    arguments = {
        "curvature": qexp.IdentityCurvature(k),
        "clipping_norm": CLIP,
        **TARGET,
        "rng": insecure_test_generator(seed),
    }
    pretrained = changes.pop("pretrained", np.linspace(-1, 1, P))
    return qexp.sample_private_weights(pretrained, records, **(arguments | changes))


def noise_of(k, n, *, seed=5, clipping_norm=CLIP, **changes):
    """(c/μ) ξ for a seed: with nothing but null records, A = I, P = I and η = n, θ - θ₀ = -y."""
    release = draw(
        np.zeros((n, k)),
        seed=seed,
        k=k,
        pretrained=np.zeros(k),
        clipping_norm=clipping_norm,
        step_size=float(n),
        **changes,
    )
    return -release.weights


def assert_same(a, b):
    """The same release, bit for bit, with the same certificate."""
    assert a.weights.tobytes() == b.weights.tobytes()
    assert a.certificate() == b.certificate()


# -------------------------------------------------------------------------------- reference

PROJECTIONS = {
    "identity": lambda: qexp.Identity(P),
    "srht": lambda: qexp.SRHT(P, 24, seed=7),
    "mask": lambda: qexp.CoordinateMask(P, np.arange(1, P, 3)),
    "basis": lambda: qexp.Basis(np.linalg.qr(np.random.default_rng(8).normal(size=(P, 11)))[0]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("projection_kind", PROJECTIONS)
@pytest.mark.parametrize("curvature_kind", ["dense", "identity"])
def test_weights_are_the_formula(curvature_kind, projection_kind, dtype):
    projection = PROJECTIONS[projection_kind]()
    k = projection.n_components
    if curvature_kind == "dense":
        h, damping = matrix_of(k), 0.05
        curvature = qexp.DenseCurvature.from_matrix(h, damping=damping)
        factor = np.linalg.cholesky(h + damping * np.eye(k))
    else:
        curvature, factor = qexp.IdentityCurvature(k), np.eye(k)
    records = gradients_of(dtype)
    theta_0, eta = np.linspace(-1, 1, P), 0.7
    release = draw(
        records,
        pretrained=theta_0,
        projection=projection,
        curvature=curvature,
        step_size=eta,
    )

    p_matrix = projection.adjoint(np.eye(k)).T
    whitened = solve_triangular(factor, p_matrix.T @ records.T.astype(float), lower=True).T
    norms = np.linalg.norm(whitened, axis=1, keepdims=True)
    assert np.any(norms > CLIP)
    assert np.any(norms < CLIP)
    clipped = whitened * np.minimum(1, CLIP * MARGIN / norms)
    q = release.certificate()["lattice"]["units_per_norm"]
    y = noise_of(k, N) + np.trunc(clipped * q).sum(axis=0) / q
    u = -eta / N * solve_triangular(factor, y, lower=True, trans="T")
    expected = theta_0 + p_matrix @ u
    # SRHT and Basis work in the dtype of the records; float32 leaves them 1e-7 of a gradient.
    exact = dtype == np.float64 or projection_kind in ("identity", "mask")
    assert np.max(np.abs(release.weights - expected)) < (1e-9 if exact else 2e-7)


def test_weights_have_the_dtype_of_the_pretrained_ones():
    records = gradients_of()
    double = draw(records, pretrained=np.zeros(P))
    single = draw(records, pretrained=np.zeros(P, np.float32))
    assert double.weights.dtype == np.float64
    assert single.weights.dtype == np.float32
    assert np.array_equal(single.weights, double.weights.astype(np.float32))


def test_step_size_scales_step_and_noise_alike():
    records = gradients_of()
    one = draw(records, pretrained=np.zeros(P), step_size=1.0).weights
    three = draw(records, pretrained=np.zeros(P), step_size=3.0).weights
    assert np.allclose(three, 3 * one, rtol=1e-14, atol=0)


def test_the_pretrained_weights_and_the_records_stay_as_they_were():
    theta_0, records = np.linspace(-1, 1, P), gradients_of()
    before = theta_0.copy(), records.copy()
    draw(records, pretrained=theta_0)
    assert np.array_equal(theta_0, before[0])
    assert np.array_equal(records, before[1])


def test_without_rng_every_draw_has_fresh_secure_noise():
    records = gradients_of()
    a, b = draw(records, rng=None), draw(records, rng=None)
    assert a.generator_is_secure
    assert b.generator_is_secure
    assert np.count_nonzero(a.weights == b.weights) == 0


# ---------------------------------------------------------------------------------- fields


def test_the_fields_of_a_release():
    h, damping, eta = matrix_of(P), 0.3, 0.7
    curvature = qexp.DenseCurvature.from_matrix(h, damping=damping)
    release = draw(gradients_of(), curvature=curvature, step_size=eta, pretrained=np.zeros(P))
    assert release.mu <= MU
    assert release.mu >= MU * (1 - 2.0**-24)
    assert qexp.delta(1.0, release.mu) <= 1e-5
    assert (release.epsilon, release.delta) == (1.0, 1e-5)
    assert release.neighboring_relation == "replace_special"
    assert release.n_records == N
    assert release.generator_is_secure is False
    close = {"rel": 2e-7}  # the lattice rounds μ down by less than 2⁻²⁴
    assert release.noise_multiplier == pytest.approx(1 / release.mu, **close)
    tau = eta * CLIP**2 / (N * release.mu**2)
    assert release.expected_utility_loss == pytest.approx(tau * P / 2, **close)
    s = eta * CLIP / (N * release.mu)
    trace = np.trace(h @ np.linalg.inv(h + damping * np.eye(P)))
    assert release.expected_mean_loss == pytest.approx(s**2 * trace / 2, **close)
    # y back from the weights: u = -(η/n) L⁻ᵀ y.
    factor = np.linalg.cholesky(h + damping * np.eye(P))
    y = -N / eta * factor.T @ release.weights
    ratio = CLIP / release.mu * math.sqrt(P) / np.linalg.norm(y)
    assert release.noise_to_signal == pytest.approx(ratio, **close)


def test_noise_to_signal_tells_noise_from_data():
    quiet = draw(np.zeros((N, P)), clipping_norm=1.0)
    loud = draw(np.ones((N, P)), clipping_norm=1.0, target_epsilon=8.0)
    assert quiet.noise_to_signal == pytest.approx(1, abs=0.4)
    assert loud.noise_to_signal < 0.2


def test_the_certificate_names_every_public_input():
    curvature = qexp.DenseCurvature.from_matrix(matrix_of(24), damping=0.5)
    projection = qexp.SRHT(P, 24, seed=9)
    release = draw(gradients_of(), curvature=curvature, projection=projection)
    certificate = release.certificate()
    inputs = certificate["public_inputs"]
    assert inputs["projection"] == projection.describe()
    assert inputs["curvature"] == curvature.describe()
    assert inputs["clipping_norm"] == CLIP
    assert inputs["step_size"] == 1.0
    lattice = certificate["lattice"]
    assert lattice["bound"] * 2.0 ** -lattice["bits"] == release.mu
    assert certificate["event"] == {
        "type": "GaussianDpEvent",
        "noise_multiplier": qexp.privacy.noise_multiplier(release.mu),
    }
    other = draw(gradients_of(), curvature=curvature, projection=projection, pretrained=np.ones(P))
    assert other.certificate()["public_inputs"]["pretrained"] != inputs["pretrained"]
    assert "libraries" not in certificate["software"]


def test_replace_one_makes_twice_the_noise_and_reports_both():
    null = np.zeros((N, P))
    zero = np.zeros(P)
    special = draw(null, pretrained=zero)
    one = draw(null, pretrained=zero, neighboring_relation="replace_one")
    for release, factor in ((special, 1), (one, 2)):
        certificate = release.certificate()
        boundary = certificate["lattice"]["bound"] * 2.0 ** -certificate["lattice"]["bits"]
        assert certificate["mu_replace_special"] == boundary
        assert certificate["mu_replace_one"] == 2 * boundary
        assert release.mu == factor * boundary
        assert MU * (1 - 2.0**-23) <= release.mu <= MU
        assert release.noise_multiplier == pytest.approx(factor / MU, rel=2e-7)
    assert np.allclose(one.weights, 2 * special.weights, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------------------------- ledger


def test_an_overspent_ledger_refuses_before_a_record_is_read():
    ledger = qexp.PrivacyLedger(mu_budget=MU * 0.9)
    source = Source(gradients_of())
    with pytest.raises(qexp.BudgetExceededError, match="does not fit"):
        draw(source, ledger=ledger)
    assert not source.touched
    assert ledger.entries == ()
    assert ledger.mu_remaining == MU * 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"clipping_norm": 0.0},
        {"step_size": math.nan},
        {"target_delta": 0.0},
        {"neighboring_relation": "add_or_remove_one"},
        {"rng": 3},
        {"curvature": qexp.IdentityCurvature(P + 1)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_argument_reads_no_record_and_costs_nothing(wrong):
    ledger = qexp.PrivacyLedger(mu_budget=1.0)
    source = Source(gradients_of())
    with pytest.raises((TypeError, ValueError)):
        draw(source, ledger=ledger, **wrong)
    assert not source.touched
    assert ledger.entries == ()


@pytest.mark.parametrize("relation", ["replace_special", "replace_one"])
@pytest.mark.parametrize("ledger_relation", ["replace_special", "replace_one"])
def test_a_draw_is_charged_once_in_the_ledgers_own_relation(relation, ledger_relation):
    ledger = qexp.PrivacyLedger(mu_budget=3.0, neighboring_relation=ledger_relation)
    release = draw(gradients_of(), ledger=ledger, neighboring_relation=relation)
    (entry,) = ledger.entries
    assert entry.mu == release.certificate()[f"mu_{ledger_relation}"]
    assert entry.label == f"sample_private_weights, {N} records"
    draw(gradients_of(), ledger=ledger, neighboring_relation=relation)
    assert ledger.mu_spent == pytest.approx(math.sqrt(2) * entry.mu, rel=1e-15)


def test_a_budget_for_one_draw_is_used_up_to_the_last_bit():
    ledger = qexp.PrivacyLedger(**TARGET)
    release = draw(gradients_of(), ledger=ledger)
    assert ledger.mu_spent == release.mu
    with pytest.raises(qexp.BudgetExceededError):
        draw(gradients_of(), ledger=ledger)
    assert len(ledger.entries) == 1


@pytest.mark.parametrize(
    "failure", [RuntimeError("disk gone"), KeyboardInterrupt(), SystemExit(3), MemoryError()]
)
def test_a_source_that_fails_half_way_costs_nothing(failure):
    ledger = qexp.PrivacyLedger(**TARGET)
    before = ledger.mu_remaining
    source = Source(gradients_of(), fail_with=failure)
    with pytest.raises(type(failure)):
        draw(source, ledger=ledger)
    assert source.touched
    assert ledger.entries == ()
    assert ledger.mu_remaining == before
    draw(gradients_of(), ledger=ledger)
    assert len(ledger.entries) == 1


@pytest.mark.parametrize("n_announced", [N - 1, N + 1])
def test_a_wrong_number_of_records_costs_nothing(n_announced):
    ledger = qexp.PrivacyLedger(**TARGET)
    source = Source(gradients_of())
    source.n_records = n_announced
    source.blocks = Source(gradients_of()).blocks
    with pytest.raises(ValueError, match=f"gave {N} records and announced {n_announced}"):
        draw(source, ledger=ledger)
    assert ledger.entries == ()
    assert ledger.mu_remaining == ledger.mu_budget


def test_the_charge_stands_once_the_noisy_sum_has_left_the_boundary():
    """Code beyond the boundary may have shown the sum to somebody before it failed."""

    class Failing(qexp.IdentityCurvature):
        def unwhiten(self, y):
            raise RuntimeError("after the boundary")

    ledger = qexp.PrivacyLedger(**TARGET)
    with pytest.raises(RuntimeError, match="after the boundary"):
        draw(gradients_of(), curvature=Failing(P), ledger=ledger)
    assert len(ledger.entries) == 1


def test_threads_that_race_on_a_ledger_never_overspend():
    cost = draw(gradients_of()).mu
    ledger = qexp.PrivacyLedger(mu_budget=math.nextafter(math.sqrt(3) * cost, math.inf))
    start = threading.Barrier(8)
    outcomes = []

    def attempt(seed):
        start.wait()
        try:
            draw(gradients_of(), seed=seed, ledger=ledger)
            outcomes.append("drawn")
        except qexp.BudgetExceededError:
            outcomes.append("refused")

    threads = [threading.Thread(target=attempt, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["drawn"] * 3 + ["refused"] * 5
    assert len(ledger.entries) == 3
    assert ledger.mu_spent <= ledger.mu_budget


# ----------------------------------------------------------------------------- the same bits


@pytest.fixture(params=["dense", "srht", "basis"])
def public(request):
    """A curvature with a projection, or without."""
    if request.param == "dense":
        return {"curvature": qexp.DenseCurvature.from_matrix(matrix_of(P), damping=0.1)}
    projection = PROJECTIONS[request.param]()
    k = projection.n_components
    return {
        "projection": projection,
        "curvature": qexp.DenseCurvature.from_matrix(matrix_of(k), damping=0.1),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_threads_and_order_change_no_bit(public, dtype, set_threads):
    records = gradients_of(dtype, n=1000)
    expected = draw(records, **public).weights
    shuffled = records[np.random.default_rng(1).permutation(len(records))]
    for threads in (1, 2, 5):
        set_threads(threads)
        for block_size in (1, 7, 64, 999, 1000, 5000):
            source = qexp.ArrayRecords(records, block_size=block_size)
            assert np.array_equal(draw(source, **public).weights, expected)
        assert np.array_equal(draw(shuffled, **public).weights, expected)


def test_arrays_memory_maps_and_sources_give_the_same_bits(public, tmp_path):
    records = gradients_of(np.float32)
    np.save(tmp_path / "g.npy", records)
    expected = draw(records, **public)
    for other in (
        np.load(tmp_path / "g.npy", mmap_mode="r"),
        np.asfortranarray(records),
        np.repeat(records, 2, axis=0)[::2],
        np.repeat(records, 2, axis=1)[:, ::2],
        Source(records),
        qexp.ArrayRecords(records, block_size=3),
    ):
        assert_same(draw(other, **public), expected)


def test_a_model_source_gives_the_bits_of_its_gradients_in_an_array():
    rng = np.random.default_rng(2)
    model = mlp((6, 5, 3), dtype=np.float32, seed=1)
    X, y = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
    gradients = all_rows(model.gradient_blocks(X, y))
    arguments = {"pretrained": model.weights, "k": model.n_parameters}
    expected = draw(gradients, **arguments)
    for block_size in (None, 1, 33):
        source = model.gradient_blocks(X, y, block_size=block_size)
        assert_same(draw(source, **arguments), expected)


def test_python_threads_that_draw_at_once_give_the_bits_of_separate_runs(public):
    records = gradients_of(n=2000)
    expected = [draw(records, seed=seed, **public) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: draw(records, seed=seed, **public), range(4)))
    for a, b in zip(together, expected, strict=True):
        assert_same(a, b)


# -------------------------------------------------------------------------- records are silent

# Quiet and signalling NaNs, infinities, and numbers whose squares overflow: norms are float64.
BAD_VALUES = {
    np.float32: [np.nan, np.inf, -np.inf, "signalling"],
    np.float64: [np.nan, np.inf, -np.inf, "signalling", 1e200, -1e308],
}


def spoil(records, i, j, value):
    spoilt = records.copy()
    if value == "signalling":
        bits, pattern = {
            np.dtype(np.float32): (np.uint32, 0x7FA00000),
            np.dtype(np.float64): (np.uint64, 0x7FF4000000000000),
        }[records.dtype]
        spoilt.view(bits)[i, j] = pattern
    else:
        spoilt[i, j] = value
    return spoilt


def nulled(records, i):
    copy = records.copy()
    copy[i] = 0
    return copy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("curvature_kind", ["dense", "identity"])
@pytest.mark.parametrize("projection_kind", PROJECTIONS)
@pytest.mark.filterwarnings("error")
def test_a_record_that_is_not_finite_counts_as_null_and_shows_nowhere(
    projection_kind, curvature_kind, dtype, capfd, caplog
):
    caplog.set_level(logging.DEBUG)
    projection = PROJECTIONS[projection_kind]()
    k = projection.n_components
    curvature = (
        qexp.IdentityCurvature(k)
        if curvature_kind == "identity"
        else qexp.DenseCurvature.from_matrix(matrix_of(k), damping=0.1)
    )
    public = {"projection": projection, "curvature": curvature}
    records = gradients_of(dtype)
    # A coordinate that the mask keeps: what it drops is not part of the record's contribution.
    i, j = 50, 4
    clean = draw(records, **public).certificate()
    expected = draw(nulled(records, i), **public)
    for value in BAD_VALUES[dtype]:
        release = draw(spoil(records, i, j, value), **public)
        assert_same(release, expected)
        certificate = release.certificate()
        assert {key for key in clean if clean[key] != certificate[key]} == {
            "weights",
            "noise_to_signal",
        }
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("projection_kind", PROJECTIONS)
@pytest.mark.filterwarnings("error")
def test_a_record_that_overflows_on_the_way_is_silent_and_bounded(projection_kind, dtype, capfd):
    projection = PROJECTIONS[projection_kind]()
    k = projection.n_components
    curvature = qexp.DenseCurvature.from_matrix(matrix_of(k), damping=1e-3)
    public = {"projection": projection, "curvature": curvature, "pretrained": np.zeros(P)}
    records = gradients_of(dtype)
    huge = records.copy()
    huge[50] = np.finfo(dtype).max
    difference = draw(huge, **public).weights - draw(nulled(records, 50), **public).weights
    # What one record moves, in whitened units: n Lᵀ P⁺ Δθ.
    p_matrix = projection.adjoint(np.eye(k)).T
    u = np.linalg.lstsq(p_matrix, difference, rcond=None)[0]
    factor = np.linalg.cholesky(matrix_of(k) + 1e-3 * np.eye(k))
    assert np.linalg.norm(N * factor.T @ u) <= CLIP * (1 + 1e-9)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", [mlp((6, 5, 3), seed=1), softmax_regression(6, 3)])
@pytest.mark.parametrize("flaw", ["feature", "label"])
@pytest.mark.filterwarnings("error")
def test_nulling_a_record_of_a_model_moves_that_record_alone(model, flaw, capfd):
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
    gradients = all_rows(model.gradient_blocks(X, y))
    k = model.n_parameters
    arguments = {
        "pretrained": model.weights,
        "curvature": qexp.DenseCurvature.from_model(
            model, rng.normal(size=(300, 6)), damping=0.1, labels="expected"
        ),
        "k": k,
    }
    for i in (0, 77, 199):
        bad_X, bad_y = X.copy(), y.copy()
        if flaw == "feature":
            bad_X[i, 2] = np.nan
        else:
            bad_y[i] = 3
        expected = draw(nulled(gradients, i), **arguments)
        for block_size in (None, 16):
            source = model.gradient_blocks(bad_X, bad_y, block_size=block_size)
            assert_same(draw(source, **arguments), expected)
    assert capfd.readouterr() == ("", "")


def test_a_record_moves_the_sum_by_at_most_the_clipping_norm():
    """One record replaced by any other leaves the noise and all other records as they were."""
    records = gradients_of()
    zero = np.zeros(P)
    base = draw(nulled(records, 9), pretrained=zero, step_size=float(N)).weights
    for scale in (1e-3, 1.0, 1e6, 1e100):
        changed = records.copy()
        changed[9] = scale
        moved = draw(changed, pretrained=zero, step_size=float(N)).weights - base
        norm = min(scale * math.sqrt(P), CLIP)
        assert np.linalg.norm(moved) <= CLIP
        assert np.linalg.norm(moved) == pytest.approx(norm, rel=1e-5)


# ------------------------------------------------------------------ who shares what with whom


def test_two_releases_of_one_secure_generator_have_keys_of_their_own(monkeypatch):
    given, used = secure_generator(), []
    monkeypatch.setattr(
        mechanism, "private_sum", lambda *args, bits, **rest: used.append(bits) or 1 / 0
    )
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            draw(gradients_of(), rng=given)
    assert len({id(bits) for bits in (given, *used)}) == 3
    assert all(bits.secure for bits in used)


class Ranks:
    """Other ranks' words, made up."""

    size = 2

    def __init__(self, others):
        self.others = others

    def gather(self, value):
        return [value, *self.others]

    def sum(self, number):
        return number


@pytest.mark.parametrize(
    ("others", "fits"),
    [
        ([(6, 9)], True),
        ([(-4, 1)], True),
        ([None], True),
        ([(5, 9)], False),
        ([(-4, 2)], False),
        ([(3, 3)], False),
        ([(6, 9), (9, 12)], False),
    ],
)
def test_a_user_with_records_on_two_ranks_is_refused(others, fits):
    source = per_user(ArrayRecords(gradients_of(n=6)), np.array([2, 2, 3, 4, 5, 5]))
    if fits:
        assert mechanism.sharded_source(source, P, Ranks(others))[1] == 4
        return
    with pytest.raises(ValueError, match="the user ids of two ranks overlap") as error:
        mechanism.sharded_source(source, P, Ranks(others))
    assert not re.search(r"\d", str(error.value))


def test_a_ledger_for_users_refuses_what_protects_records():
    ledger = qexp.PrivacyLedger(**TARGET, unit_of_privacy="user")
    records = gradients_of(n=40)
    with pytest.raises(ValueError, match="protects single records and its ledger protects users"):
        draw(records, ledger=ledger)
    assert ledger.mu_spent == 0
    by_user = per_user(ArrayRecords(records), np.arange(40) // 2)
    release = draw(by_user, ledger=ledger)
    assert release.unit_of_privacy == "user"
    assert ledger.mu_spent == release.mu
