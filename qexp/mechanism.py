"""The mechanism: from pretrained weights and private records to one exact private draw.

The exponential mechanism on the quadratic utility

    U(u) = -n [ ḡᵀu + uᵀA u / (2η) ],   ḡ the mean of the clipped gradients,

draws u from N(-η A⁻¹ ḡ, s² A⁻¹) with s = ηc/(nμ). That takes one noisy sum y of the whitened,
clipped gradients, which is where the privacy is; the rest is public arithmetic before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp import _checks
from qexp._arguments import (
    bit_generator,
    check_agreement,
    check_curvature,
    check_dimensions,
    check_ledger,
    check_projection,
    protected,
    sharded_source,
    unit_of_privacy,
)
from qexp._communicator import Communicator, SingleProcess
from qexp._privacy_checks import sensitivity_factor
from qexp._progress import progress_bar
from qexp.bits import BitGenerator
from qexp.curvature import Curvature, IdentityCurvature
from qexp.ledger import PrivacyLedger
from qexp.privacy import calibrate_mu, noise_multiplier
from qexp.private_sum import Lattice, NoisySum, WhitenedBlock, lattice_for, private_sum
from qexp.projections import FactorProjection, Identity, Projection
from qexp.records import RecordSource
from qexp.release import PrivateRelease, make_release

__all__ = ["WhitenBlocks", "draw_figures", "norm", "private_step", "sample_private_weights"]

WhitenBlocks = Callable[[Iterable[Any]], Iterable[WhitenedBlock]]


def sample_private_weights(
    pretrained: ArrayLike,
    records: NDArray[Any] | RecordSource,
    *,
    curvature: Curvature,
    target_epsilon: float,
    target_delta: float,
    clipping_norm: float,
    projection: Projection | None = None,
    step_size: float = 1.0,
    neighboring_relation: str = "replace_special",
    ledger: PrivacyLedger | None = None,
    rng: BitGenerator | None = None,
    progress: bool = False,
    communicator: Communicator | None = None,
) -> PrivateRelease:
    """Fine-tune pretrained weights on private records by one exact private draw.

    Parameters
    ----------
    pretrained : array of float32 or float64, shape (p,)
        θ₀, public.
    records : array or memmap of float32 or float64, shape (n, p), or RecordSource
        Per-record gradients of the loss at θ₀, private; or a source that yields them in blocks,
        such as ``model.gradient_blocks(X, y)``. A row that holds a NaN or an infinity counts as a
        null record, silently: an error would tell that it is there. n is public.
    curvature : Curvature
        Public, of dimension k. It whitens the gradients and shapes the noise.
    target_epsilon, target_delta : float
        The privacy to reach and not to exceed. ε > 0; 0 < δ < 1, well below 1/n.
    clipping_norm : float
        c, the largest norm of a record's gradient **in whitened units**, ‖L⁻¹ Pᵀ g‖.
    projection : Projection, optional
        P, public: the fine-tuned weights are θ₀ + P u with u of dimension k. Default: none.
    step_size : float
        η. It scales the noise and the step alike and costs no privacy.
    neighboring_relation : {"replace_special", "replace_one"}
        What the privacy target is about: one record replaced by a null record (the default), or
        by any other record (the same noise then has twice the μ; a target takes twice the noise).
    ledger : PrivacyLedger, optional
        Asked before, charged after. A draw that would overspend is refused before a record is
        read.
    rng : BitGenerator, optional
        Default: a fresh cryptographic generator keyed by the operating system.
    progress : bool
        Show a progress bar on a terminal.
    communicator : Communicator, optional
        ``qexp.distributed.world()``, where all ranks of an MPI job make this call: each with its
        own share of the records (n is their sum; a share may be empty) and all with the same
        public arguments. `ledger`, `rng` and `curvature` are the root's; other ranks may leave
        out the first two and pass None for the last. All get the same release, whose weights have
        the same bits for any number of ranks. Default: this process alone.

    Returns
    -------
    PrivateRelease

    Raises
    ------
    ValueError, TypeError
        If a public argument is out of its range; the message says what is allowed.
    BudgetExceededError
        If `ledger` has not enough left.
    OverflowError
        If the step leaves the range of the weights' dtype. The draw is paid for.

    Notes
    -----
    The noisy sum is exactly μ-GDP (Dong, Roth and Su 2022), with μ calibrated exactly to (ε, δ)
    (Balle and Wang 2018); see :mod:`qexp.private_sum` for why this holds for the program and not
    only for real numbers. Public are: the weights, the curvature, the projection, c, η and n.
    They must not have been chosen by looking at the private records.

    Examples
    --------
    >>> import numpy as np, qexp
    >>> gradients = np.random.default_rng(0).uniform(-1, 1, (1000, 5))
    >>> release = qexp.sample_private_weights(
    ...     np.zeros(5), gradients, curvature=qexp.IdentityCurvature(5),
    ...     target_epsilon=1.0, target_delta=1e-5, clipping_norm=1.0)
    >>> release.weights.shape
    (5,)
    """
    ranks = SingleProcess() if communicator is None else communicator
    with ranks.shared_fate():
        # Public arguments: all checks come before the first record.
        theta_0 = _checks.finite_array(pretrained, "pretrained", 1)
        source, n = sharded_source(records, len(theta_0), ranks)
        unit = unit_of_privacy(source)
        projection = Identity(len(theta_0)) if projection is None else projection
        curvature = ranks.broadcast_object(curvature)
        check_projection(projection)
        check_curvature(curvature)
        check_ledger(ledger)
        check_dimensions(len(theta_0), projection, curvature)
        c = _checks.positive(clipping_norm, "clipping_norm")
        eta = _checks.positive(step_size, "step_size")
        factor = sensitivity_factor(neighboring_relation)
        bits = bit_generator(rng)
        mu_target = calibrate_mu(target_epsilon, target_delta)
        lattice = lattice_for(mu_target / factor, c, n)
        public_inputs: dict[str, Any] = {
            "pretrained": _checks.array_digest(theta_0),
            "projection": dict(projection.describe()),
            "curvature": dict(curvature.describe()),
            "clipping_norm": c,
            "step_size": eta,
            **unit,
        }
        check_agreement(
            {
                **public_inputs,
                "target_epsilon": float(target_epsilon),
                "target_delta": float(target_delta),
                "neighboring_relation": neighboring_relation,
            },
            ranks,
        )
        drawn = private_step(
            source,
            n_records=n,
            projection=projection,
            curvature=curvature,
            lattice=lattice,
            step_size=eta,
            bits=bits,
            ledger=ledger,
            label=f"sample_private_weights, {n} {protected(unit)}s",
            progress=progress,
            communicator=ranks,
        )
        if drawn is None:
            return _shared_release(None, ranks)
        step, noisy = drawn
        with np.errstate(over="ignore"):
            theta = (theta_0 + step).astype(theta_0.dtype, copy=False)
        if not np.isfinite(theta).all():
            raise OverflowError(
                f"the step left the range of {theta_0.dtype}, and the draw is paid for; use a "
                f"smaller step_size than {eta:g}, or more damping, which costs anew"
            )

        public: dict[str, Any] = {
            "epsilon": float(target_epsilon),
            "delta": float(target_delta),
            "mu": factor * noisy.mu,
            "neighboring_relation": neighboring_relation,
            "noise_multiplier": noise_multiplier(noisy.mu),
            **draw_figures(noisy, projection, curvature, eta),
            "n_records": n,
            "generator_is_secure": noisy.generator_is_secure,
            "unit_of_privacy": protected(unit),
        }
        certificate = {
            "event": {"type": "GaussianDpEvent", "noise_multiplier": noise_multiplier(noisy.mu)},
            "mu_replace_special": noisy.mu,
            "mu_replace_one": 2 * noisy.mu,
            "public_inputs": public_inputs,
            "lattice": lattice.describe(),
            "generator": noisy.generator,
        }
        return _shared_release(make_release(theta, public, certificate), ranks)


def private_step(
    source: RecordSource,
    *,
    projection: Projection,
    curvature: Curvature,
    lattice: Lattice,
    step_size: float,
    bits: BitGenerator,
    ledger: PrivacyLedger | None,
    label: str,
    progress: bool = False,
    n_records: int | None = None,
    communicator: Communicator | None = None,
    whiten: WhitenBlocks | None = None,
) -> tuple[NDArray[Any], NoisySum] | None:
    """Make one draw: the step P u with u = -(η/n) L⁻ᵀ y, and the noisy sum y it comes from.

    The ledger is asked before the first record is read and charged before the draw is handed out.
    Arguments are as checked by :func:`sample_private_weights`; `n_records` is that of all ranks,
    by default the source's. `whiten` takes the source's factors block by block in the curvature's
    place. Ranks other than the root give their records and get None.
    """
    ranks = SingleProcess() if communicator is None else communicator
    n = source.n_records if n_records is None else n_records

    def draw() -> NoisySum | None:
        shown = progress and ranks.rank == 0
        whitened = _whitened_blocks(source, projection, curvature, whiten, progress=shown)
        # Closed here, also by an interrupt inside the sum, so that no progress bar is left behind.
        with closing(whitened):
            return private_sum(
                whitened,
                n_components=curvature.n_components,
                n_records=n,
                lattice=lattice,
                bits=bits,
                communicator=ranks,
            )

    if ledger is None or ranks.rank != 0:
        noisy = draw()
    else:
        unit = protected(unit_of_privacy(source))
        with ledger.reserve(lattice.mu, label, unit_of_privacy=unit) as reservation:
            noisy = draw()
            reservation.commit()
    if noisy is None:
        return None
    u = curvature.unwhiten(noisy.values) * (-step_size / n)
    return projection.adjoint(u), noisy


def _shared_release(release: PrivateRelease | None, ranks: Communicator) -> PrivateRelease:
    # Made anew where it arrived, so that its weights are read-only there, too.
    shared: PrivateRelease = ranks.broadcast_object(release)
    return shared if ranks.rank == 0 else replace(shared)


def draw_figures(
    noisy: NoisySum, projection: Projection, curvature: Curvature, step_size: float
) -> dict[str, float]:
    """Give what a draw's release says of its noise; :class:`PrivateRelease` explains the names."""
    k, n, sigma = curvature.n_components, noisy.n_records, noisy.lattice.noise_std
    # s. Products below, since ** raises where they give infinity, and the draw is paid for.
    spread = step_size * sigma / n
    dimension = curvature.effective_dimension
    if isinstance(curvature, IdentityCurvature):
        # Coordinates that come whitened have their damping and scales in the projection.
        dimension = getattr(projection, "effective_dimension", dimension)
    return {
        "noise_to_signal": sigma * math.sqrt(k) / norm(noisy.values),
        "expected_utility_loss": step_size * sigma * sigma * k / (2 * n),
        "expected_mean_loss": spread * spread * dimension / 2,
    }


def norm(x: NDArray[Any]) -> float:
    """Give ‖x‖. Not by numpy.linalg: it wakes the threads of BLAS for longer than the sum takes."""
    with np.errstate(over="ignore"):
        return math.sqrt(float(np.square(x).sum()))


def _whitened_blocks(
    source: RecordSource,
    projection: Projection,
    curvature: Curvature,
    whiten: WhitenBlocks | None,
    *,
    progress: bool,
) -> Generator[WhitenedBlock, None, None]:
    """Project and whiten block by block; records stay independent of each other."""
    if whiten is None:
        whiten = _on_factors(projection, curvature)
    with progress_bar(source.n_records, "records", show=progress) as advance:
        if whiten is not None and hasattr(source, "factor_blocks"):
            for block in whiten(source.factor_blocks()):
                yield block
                advance(len(block if isinstance(block, np.ndarray) else block[0][0]))
            return
        for block in source.blocks():
            rows = _checks.real_array(block, "a block of records", 2)
            if rows.shape[1] != source.n_parameters:
                raise ValueError(
                    f"a block of records has rows of {rows.shape[1]} entries; it needs "
                    f"{source.n_parameters}"
                )
            yield curvature.whiten(projection.forward(rows))
            advance(len(rows))


def _on_factors(projection: Projection, curvature: Curvature) -> WhitenBlocks | None:
    """Give the way of gradients that come as factors, where one of the two maps knows it."""
    if isinstance(projection, Identity):
        whiten_factors = getattr(curvature, "whiten_factors", None)
        return None if whiten_factors is None else partial(map, whiten_factors)
    if isinstance(projection, FactorProjection):
        return partial(map, lambda factors: curvature.whiten(projection.forward_factors(factors)))
    return None
