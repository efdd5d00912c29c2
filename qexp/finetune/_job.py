"""The rounds of one fine-tuning: drawn, paid for, saved, and followed by other ranks."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

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
from qexp._communicator import Communicator
from qexp._files import remove_leftovers
from qexp._privacy_checks import sensitivity_factor
from qexp._progress import progress_bar
from qexp.bits import BitGenerator
from qexp.curvature import Curvature
from qexp.finetune._checkpoint import FineTuneState, load_state, save_state
from qexp.finetune._curvature_share import CurvatureShare
from qexp.finetune._kept_inputs import KeptInputs
from qexp.finetune._result import FineTuneResult, RoundReport, StopReason
from qexp.finetune._schedule import Schedule
from qexp.ledger import BudgetExceededError, PrivacyLedger
from qexp.mechanism import draw_figures, norm, private_step
from qexp.privacy import calibrate_mu, compose_mu, epsilon, noise_multiplier
from qexp.private_sum import Lattice, NoisySum, lattice_for
from qexp.projections import Identity, Projection
from qexp.records import as_record_source, per_user
from qexp.release import make_release
from qexp.shrinkage import james_stein

__all__ = ["Job", "Shrinkage", "TunableModel"]

Shrinkage = Literal["none", "last", "last_whole"]
_SHRINKAGES: Final = ("none", "last", "last_whole")
_SHRINK_BUDGET: Final = 1 - 2.0**-50
_OFFERED: Final = ("weights", "with_weights", "gradient_blocks")


class TunableModel(Protocol):
    """What a model offers to be fine-tuned: flat weights, and gradients record by record."""

    @property
    def weights(self) -> NDArray[Any]:
        """The flat weight vector (p,), float32 or float64."""
        ...

    def with_weights(self, weights: Any) -> Any:
        """Return the model at other weights (p,)."""
        ...

    def gradient_blocks(self, X: Any, y: Any) -> Any:
        """Return a RecordSource of per-record gradients at the weights."""
        ...


class Job:
    """One fine-tuning: its checked public arguments, and the state it has reached."""

    def __init__(
        self,
        model: TunableModel,
        X: Any,
        y: Any,
        *,
        schedule: Schedule,
        curvature: Curvature | Callable[[Any], Curvature],
        target_epsilon: float,
        target_delta: float,
        projection: Projection | None,
        neighboring_relation: str,
        ledger: PrivacyLedger | None,
        rng: BitGenerator | None,
        shrinkage: Shrinkage,
        checkpoint: str | os.PathLike[str] | None,
        groups: Any,
        max_records_per_user: int | None,
        ranks: Communicator,
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule is a {type(schedule).__name__}; it needs a qexp Schedule")
        if shrinkage not in _SHRINKAGES:
            raise ValueError(f"shrinkage is {shrinkage!r}; it needs one of {_SHRINKAGES}")
        lacking = [name for name in _OFFERED if not hasattr(model, name)]
        if lacking:
            raise TypeError(
                f"model is a {type(model).__name__} without {', '.join(lacking)}; it needs to be "
                "one of qexp.models, or to offer what they do"
            )
        if max_records_per_user is not None and groups is None:
            raise ValueError(
                f"max_records_per_user is {max_records_per_user!r} without groups; say whose each "
                "record is, or leave it out, where records are protected one by one"
            )
        theta_0 = _checks.finite_array(model.weights, "model.weights", 1)
        self.pretrained, self.X, self.y, self.schedule = model, X, y, schedule
        self.dtype = theta_0.dtype
        self.n_parameters = len(theta_0)
        self.groups, self.max_records_per_user, self.ranks = groups, max_records_per_user, ranks
        self.n_records_here: int | None = None
        source, self.n_records = sharded_source(self._source(model), len(theta_0), ranks)
        self.n_records_here = source.n_records
        self.unit = unit_of_privacy(source)
        self.projection = Identity(len(theta_0)) if projection is None else projection
        check_projection(self.projection)
        check_ledger(ledger)
        self.factor = sensitivity_factor(neighboring_relation)
        self.neighboring_relation = neighboring_relation
        mu = calibrate_mu(target_epsilon, target_delta) / self.factor
        self.target_epsilon, self.target_delta = float(target_epsilon), float(target_delta)
        self.lattices = _lattices(schedule, mu, self.n_records)
        self._has_refined = False
        self.ledger = ledger
        self.bits = bit_generator(rng)
        if schedule.refresh_curvature and not _is_function(curvature):
            raise ValueError(
                "schedule.refresh_curvature needs a curvature that is a function of the model; "
                f"got a {type(curvature).__name__}"
            )
        self._make_curvature: Any = curvature if _is_function(curvature) else None
        self._collective = getattr(self._make_curvature, "collective", False)
        if len(set(ranks.gather(self._collective))) > 1:
            raise ValueError(
                "some ranks have a curvature from qexp.distributed.curvature, others have not; "
                "all or none need one"
            )
        self.curvature = self._curvature_at(model, default=curvature)
        self._kept: KeptInputs | None = None
        self.curvature_share: CurvatureShare | None = None
        if schedule.curvature_share > 0:
            self.curvature_share = CurvatureShare(
                schedule.curvature_share,
                mu,
                curvature=self.curvature,
                projection=self.projection,
                source=source,
                n_records=self.n_records,
                by_user=groups is not None,
            )
        self.public_inputs = {
            "pretrained": _checks.array_digest(theta_0),
            "model": dict(model.describe()) if hasattr(model, "describe") else None,
            "projection": dict(self.projection.describe()),
            "curvature": dict(self.curvature.describe()),
            "schedule": schedule.describe(),
            **self.unit,
        }
        self.shrinkage, self.checkpoint = shrinkage, checkpoint
        self.state = FineTuneState(job_id=secrets.token_hex(8), weights=theta_0.astype(np.float64))
        self._next_state = self.state
        public = self._configuration()
        del public["rng"]
        check_agreement(public, ranks)

    def follow(self) -> None:
        """Help the root with its rounds, until there are none left. For all other ranks."""
        while (announced := self.ranks.broadcast_object(None)) is not None:
            t, weights = announced
            if t == 0:
                self._private_moments()
                continue
            model = self.pretrained if weights is None else self.pretrained.with_weights(weights)
            self._private_step(model, t)

    def dismiss(self, result: FineTuneResult) -> None:
        """Tell the other ranks that there are no rounds left, and the result."""
        self.ranks.broadcast_object(None)
        self.ranks.broadcast_object(replace(result, model=None))

    def followed_result(self) -> FineTuneResult:
        """Give the result that the root made."""
        result: FineTuneResult = self.ranks.broadcast_object(None)
        # Made anew, so that its weights are read-only here, too.
        release = replace(result.release)
        model = self.pretrained.with_weights(release.weights)
        return replace(result, model=model, release=release)

    def resume(self) -> None:
        """Take up the checkpoint, or begin one, and bring the ledger up to it."""
        if self.checkpoint is None:
            return
        # What a killed process left may be a round that is drawn anew, and was never paid for.
        remove_leftovers(self.checkpoint)
        state = load_state(self.checkpoint, self._configuration())
        if state is None:
            # Before the first draw: a path that cannot be written fails while nothing is at stake.
            save_state(self.checkpoint, self.state, self._configuration())
            return
        # Nothing of the checkpoint may get out before the ledger has all of it.
        self.state = self._next_state = replace(self.state, job_id=state.job_id)
        if self.ledger is not None:
            charged = {entry.label for entry in self.ledger.entries}
            drawn = _last_draw(state)
            for t in range(drawn + 1, self.schedule.rounds + 1):
                if self._label(t) in charged:
                    raise ValueError(
                        f"the checkpoint {os.fspath(self.checkpoint)!r} ends with round "
                        f"{state.rounds_done}, but the ledger was charged for {_name(t)} of this "
                        "job: it is an older copy. Restore the latest one, or give another path "
                        "to start anew, which costs anew"
                    )
            for t in range(self._first_draw, drawn + 1):
                if self._label(t) not in charged:
                    self._charge_saved(t)
        self.state = self._next_state = state

    def run(
        self, *, progress: bool, on_round: Callable[[RoundReport], object] | None
    ) -> StopReason:
        """Do the rounds that are left."""
        rounds = self.schedule.rounds
        with progress_bar(rounds, "rounds", show=progress) as advance:
            advance(self.state.rounds_done)
            while self.state.rounds_done < rounds and not self.state.diverged:
                with ExitStack() as stack:
                    t = max(_last_draw(self.state) + 1, self._first_draw)
                    reservation = None
                    if self.ledger is not None:
                        try:
                            reservation = stack.enter_context(
                                self.ledger.reserve(
                                    self._lattice(t).mu,
                                    self._label(t),
                                    unit_of_privacy=protected(self.unit),
                                    resume=True,
                                )
                            )
                            if t == 0:  # Curvature alone would be paid for in vain.
                                self.ledger.check(
                                    self._lattice(1).mu, unit_of_privacy=protected(self.unit)
                                )
                        except BudgetExceededError:
                            if self.state.rounds_done == 0:
                                raise
                            return "ledger empty"
                    after = self._draw(self._model(self.state), t) if t else self._moments()
                    if self.checkpoint is not None:
                        save_state(self.checkpoint, after, self._configuration())
                    self._next_state = after
                    if reservation is not None:
                        reservation.commit()
                    self.state = self._next_state
                if t == 0:
                    continue
                advance(1)
                if on_round is not None:
                    on_round(RoundReport(model=self._model(self.state), **self.state.history[-1]))
        return "diverged" if self.state.diverged else "finished"

    def paid_state(self) -> FineTuneState:
        """Give the state to release after an interruption at any point of a round."""
        after = self._next_state
        if after is not self.state and self.ledger is not None:
            label = self._label(_last_draw(after))
            if any(entry.label == label for entry in self.ledger.entries):
                return after
        return self.state

    def result(self, state: FineTuneState, stopped_because: StopReason) -> FineTuneResult:
        """Release the state with the privacy of all rounds that led to it."""
        weights = state.weights
        if state.iterate_sum is not None:
            weights = state.iterate_sum / state.iterates_summed
        theta = weights.astype(self.dtype)
        drawn = self._lattices_until(state.rounds_done)
        mu_drawn = compose_mu(lattice.mu for lattice in drawn)
        # What is drawn alone would be claimed of a stop that was fixed in advance. One that looked
        # at the draws, as a diverging step does and a person may, has but the whole job's privacy.
        claimed, claimed_epsilon = self._lattices_until(self.schedule.rounds), self.target_epsilon
        mu = compose_mu(lattice.mu for lattice in claimed)
        if stopped_because == "ledger empty":
            claimed, mu = drawn, mu_drawn
            claimed_epsilon = epsilon(self.target_delta, self.factor * mu)
        last = state.history[-1]
        public: dict[str, Any] = {
            "epsilon": claimed_epsilon,
            "delta": self.target_delta,
            "mu": self.factor * mu,
            "neighboring_relation": self.neighboring_relation,
            "noise_multiplier": noise_multiplier(mu),
            "noise_to_signal": last["noise_to_signal"],
            "expected_utility_loss": last["expected_utility_loss"],
            "expected_mean_loss": last["expected_mean_loss"],
            "n_records": self.n_records,
            "generator_is_secure": self.bits.secure,
            "unit_of_privacy": protected(self.unit),
        }
        certificate = {
            "event": {
                "type": "ComposedDpEvent",
                "events": [
                    {"type": "GaussianDpEvent", "noise_multiplier": noise_multiplier(lattice.mu)}
                    for lattice in claimed
                ],
            },
            "mu_replace_special": mu,
            "mu_replace_one": 2 * mu,
            "mu_drawn": self.factor * mu_drawn,
            "public_inputs": self.public_inputs,
            "shrinkage": self.shrinkage,
            "rounds_done": state.rounds_done,
            "stopped_because": stopped_because,
            "rounds": [dict(numbers) for numbers in state.history],
            "lattices": [lattice.describe() for lattice in drawn],
            "private_curvature": None
            if self.curvature_share is None
            else {
                "mu": self.curvature_share.lattice.mu,
                "curvature": dict(self._curvature_of(state).describe()),
            },
            "job_id": state.job_id,
            "generator": self.bits.name,
        }
        return FineTuneResult(
            model=self.pretrained.with_weights(theta),
            release=make_release(theta, public, certificate),
            rounds_done=state.rounds_done,
            stopped_because=stopped_because,
            history=state.history,
        )

    def _draw(self, model: TunableModel, t: int) -> FineTuneState:
        """Draw round t and give the state after it. Nothing of it is published here."""
        schedule, state = self.schedule, self.state
        self.ranks.broadcast_object((t, None if state.rounds_done == 0 else model.weights))
        drawn = self._private_step(model, t)
        assert drawn is not None
        step, noisy = drawn
        if self.shrinkage != "none" and t == schedule.rounds:
            step = self._shrunk_step(noisy)
        velocity = step
        if schedule.momentum > 0 and state.velocity is not None:
            velocity = schedule.momentum * state.velocity + step
        with np.errstate(over="ignore"):
            theta = state.weights + velocity
            in_range = bool(np.isfinite(theta.astype(self.dtype)).all())
        after = replace(
            state,
            rounds_done=t,
            history=(*state.history, self._numbers(t, noisy, step)),
            diverged=not in_range,
        )
        if not in_range:
            return after
        if t > schedule.rounds - schedule.averaged_rounds:
            before = 0.0 if state.iterate_sum is None else state.iterate_sum
            after = replace(
                after, iterate_sum=before + theta, iterates_summed=state.iterates_summed + 1
            )
        return replace(after, weights=theta, velocity=velocity if schedule.momentum > 0 else None)

    def _private_step(self, model: TunableModel, t: int) -> tuple[NDArray[Any], NoisySum] | None:
        """Make round t's draw on the root; give this rank's records to it on the others."""
        if self.schedule.refresh_curvature and t > 1:
            self.curvature = self._curvature_at(model, default=None)
        if self.curvature_share is not None and not self._has_refined:
            refined = self._curvature_of(self.state) if self.ranks.rank == 0 else None
            self.curvature, self._has_refined = self.ranks.broadcast_object(refined), True
        source = self._source(model)
        kept = self._kept_inputs(source)
        return private_step(
            source,
            n_records=self.n_records,
            projection=self.projection,
            curvature=self.curvature,
            lattice=self.lattices[t - 1],
            step_size=self.schedule.step_size,
            bits=self.bits.spawn(t),
            ledger=None,
            label=self._label(t),
            communicator=self.ranks,
            whiten=None if kept is None else kept.whitened,
        )

    def _kept_inputs(self, source: Any) -> KeptInputs | None:
        """Give what whitens the rounds by one curvature, where there are several."""
        if self.schedule.rounds == 1 or self.schedule.refresh_curvature:
            return None
        if self._kept is None or self._kept.curvature is not self.curvature:
            self._kept = KeptInputs.for_job(self.X, source, self.projection, self.curvature)
        return self._kept

    def _moments(self) -> FineTuneState:
        """Draw what private curvature is made of, around the pretrained weights."""
        self.ranks.broadcast_object((0, None))
        noisy = self._private_moments()
        assert noisy is not None
        return replace(self.state, input_moments=noisy.values)

    def _private_moments(self) -> NoisySum | None:
        """Make that draw on the root; give this rank's records to it on the others."""
        assert self.curvature_share is not None
        source = self._source(self.pretrained)
        return self.curvature_share.draw(source, self.bits.spawn(0), self.ranks)

    def _curvature_of(self, state: FineTuneState) -> Curvature:
        """Give the curvature of the next round."""
        if self.curvature_share is None or state.input_moments is None:
            return self.curvature
        return self.curvature_share.refined(state.input_moments)

    @property
    def _first_draw(self) -> int:
        """0 where private curvature comes before round 1."""
        return 1 if self.curvature_share is None else 0

    def _lattice(self, t: int) -> Lattice:
        if t == 0:
            assert self.curvature_share is not None
            return self.curvature_share.lattice
        return self.lattices[t - 1]

    def _lattices_until(self, t: int) -> list[Lattice]:
        return [self._lattice(draw) for draw in range(self._first_draw, t + 1)]

    def _shrunk_step(self, noisy: NoisySum) -> NDArray[Any]:
        layers = getattr(self.curvature, "layer_slices", None)
        blocks = layers() if self.shrinkage == "last" and layers is not None else None
        values, _ = james_stein(noisy.values, noisy.lattice.noise_std, blocks=blocks)
        u = self.curvature.unwhiten(values) * (-self.schedule.step_size / self.n_records)
        return self.projection.adjoint(u)

    def _configuration(self) -> dict[str, Any]:
        return {
            **self.public_inputs,
            "target_epsilon": self.target_epsilon,
            "target_delta": self.target_delta,
            "neighboring_relation": self.neighboring_relation,
            "n_records": self.n_records,
            "rng": self.bits.name,
            "shrinkage": self.shrinkage,
        }

    def _charge_saved(self, t: int) -> None:
        assert self.ledger is not None
        try:
            self.ledger.charge(
                self._lattice(t).mu,
                self._label(t),
                unit_of_privacy=protected(self.unit),
                resume=True,
            )
        except BudgetExceededError as error:
            raise BudgetExceededError(
                f"the checkpoint holds {_name(t)}, for which the ledger was not charged and has "
                f"not enough left, so that nothing can be released from it: {error}"
            ) from error

    def _numbers(self, t: int, noisy: NoisySum, step: NDArray[Any]) -> dict[str, Any]:
        return {
            "round": t,
            "rounds": self.schedule.rounds,
            "mu": noisy.mu,
            "mu_so_far": compose_mu(lattice.mu for lattice in self._lattices_until(t)),
            **draw_figures(noisy, self.projection, self.curvature, self.schedule.step_size),
            "step_norm": norm(step),
        }

    def _model(self, state: FineTuneState) -> TunableModel:
        if state.rounds_done == 0:
            return self.pretrained
        model: TunableModel = self.pretrained.with_weights(state.weights.astype(self.dtype))
        return model

    def _source(self, model: TunableModel) -> Any:
        source = model.gradient_blocks(self.X, self.y)
        if self.groups is not None:
            source = per_user(source, self.groups, max_records_per_user=self.max_records_per_user)
        source = as_record_source(
            source, n_parameters=self.n_parameters, least=1 if self.ranks.size == 1 else 0
        )
        n = self.n_records_here
        if n is not None and source.n_records != n:
            raise ValueError(
                f"the model gave {source.n_records} records in this round and {n} in the first; "
                "the number of records is public and may not change"
            )
        return source

    def _curvature_at(self, model: TunableModel, *, default: Any) -> Curvature:
        made = default
        if self._make_curvature is not None and (self._collective or self.ranks.rank == 0):
            made = self._make_curvature(model)
        curvature: Curvature = made if self._collective else self.ranks.broadcast_object(made)
        check_curvature(curvature)
        check_dimensions(self.n_parameters, self.projection, curvature)
        return curvature

    def _label(self, t: int) -> str:
        of = f" of {self.schedule.rounds}" if t else ""
        return f"fine_tune job {self.state.job_id}, {_name(t)}{of}"


def _name(t: int) -> str:
    return f"round {t}" if t else "private curvature"


def _last_draw(state: FineTuneState) -> int:
    """Give the last round drawn; 0 for private curvature, -1 for nothing yet."""
    return state.rounds_done - (state.rounds_done == 0 and state.input_moments is None)


def _is_function(curvature: Any) -> bool:
    return callable(curvature) and not hasattr(curvature, "whiten")


def _lattices(schedule: Schedule, mu: float, n_records: int) -> tuple[Lattice, ...]:
    """Choose every round's lattice; their exact claims compose to at most μ."""
    shares = schedule.budget or (1.0,) * schedule.rounds
    total = math.fsum(shares) / (1 - schedule.curvature_share)
    most = Fraction(mu) ** 2 * (1 - Fraction(schedule.curvature_share))
    scale = 1.0
    while True:
        made: dict[float, Lattice] = {}
        for share in shares:
            if share not in made:
                mu_t = scale * mu * math.sqrt(share / total)
                made[share] = lattice_for(mu_t, schedule.clipping_norm, n_records)
        lattices = tuple(made[share] for share in shares)
        if sum(Fraction(lattice.mu) ** 2 for lattice in lattices) <= most:
            return lattices
        # Rounding of the shares' roots went up, and no lattice's own rounding took it back.
        scale *= _SHRINK_BUDGET
