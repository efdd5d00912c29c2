"""Choosing a schedule on public records, before any budget is spent.

A plan costs no privacy because it reads no private record. Public records that pretraining has
not seen are shifted until the model errs on them (:mod:`qexp.surrogates`), split into simulated
private records and simulated test records, and candidate schedules are fine-tuned on them with
the very privacy of the job to come; the best one on average is the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from numpy.typing import ArrayLike

from qexp import _checks
from qexp._privacy_checks import sensitivity_factor
from qexp.finetune import Schedule
from qexp.planning._domains import Rehearsal, Shifts, Source, public_domains
from qexp.planning._grid import (
    MOST_ROUNDS,
    candidate_schedules,
    lengthened,
    neighbours,
    subspace_schedules,
)
from qexp.planning._halving import Effort, Halving, Outcome
from qexp.planning._plan import Plan
from qexp.planning._scorer import Score
from qexp.planning._simulation import Candidate, Simulation, figures
from qexp.planning._trials import Maker
from qexp.privacy import calibrate_mu
from qexp.subspace import image_moves
from qexp.surrogates import SURROGATE_KEEPS, Surrogate

__all__ = ["plan"]

_LENGTHENED: Final = 4
_MOST_ROUNDS_OF_ALL: Final = 4 * MOST_ROUNDS


def plan(
    model: Any,
    X_public: ArrayLike,
    y_public: ArrayLike,
    *,
    n_records: int,
    target_epsilon: float,
    target_delta: float,
    neighboring_relation: str = "replace_special",
    surrogate: Shifts = "images",
    surrogate_keeps: tuple[float, float] = SURROGATE_KEEPS,
    rehearsals: Sequence[Rehearsal] = (),
    image_shape: tuple[int, int] | None = None,
    public_group: ArrayLike | None = None,
    curvature: Literal["kronecker", "dense"] | Maker = "kronecker",
    curvature_shares: Sequence[float] = (0.0,),
    n_components: Sequence[int] = (1000, 3000),
    subspaces: Sequence[int] = (),
    moves: Sequence[Surrogate] | None = None,
    candidates: Iterable[Schedule] | None = None,
    rounds: int | None = None,
    score: Score = "accuracy",
    effort: Literal["quick", "full"] = "quick",
    seed: int = 0,
    progress: bool = False,
) -> Plan:
    """Choose damping, clipping norm, step size, rounds and momentum on public records alone.

    Parameters
    ----------
    model : qexp.models.MultilayerPerceptron or alike
        Pretrained. Where the one to fine-tune has seen all public records, plan with one of as
        many weights that was pretrained on a part of them.
    X_public : array, shape (m, d)
        Public records that pretraining has **not** seen, a few thousand or more.
    y_public : array, shape (m,)
        Their labels.
    n_records : int
        n, how many private records there will be; public.
    target_epsilon, target_delta, neighboring_relation
        The privacy of the job to come, as :func:`qexp.fine_tune` takes it.
    surrogate : {"images", "tabular"}, callable, or sequence of callables
        How the private domain is simulated: shifts drawn by :mod:`qexp.surrogates`, or your own
        functions ``shift(X, y, rng) -> (X, y)``, such as :class:`qexp.surrogates.OtherRecords`,
        which puts public records of another domain in their place.
    surrogate_keeps : (float, float)
        The least and the most that a drawn shift leaves of the model's score above chance. A plan
        is as bold as its shifts are strong: of a model that was trained on shifted records of its
        own, and errs less on a new domain, they need to leave more.
    rehearsals : sequence of Rehearsal
        Further moves between public domains, each a pretrained model with public records and
        surrogates of its own. Schedules are ranked by the mean over all of them; give each as
        many surrogates, where they are to count alike.
    image_shape : (int, int), optional
        Height and width, for "images". Default: square.
    public_group : array, shape (m,), optional
        A public column whose values the shifts re-weight, for "tabular".
    curvature : {"kronecker", "dense"} or callable
        Kronecker curvature over the full weight space; dense curvature behind an
        :class:`qexp.SRHT` with public seed 0; or a function ``make(model, damping)`` of public
        data that returns a :class:`qexp.Curvature`. The first, of a
        :class:`qexp.models.MultilayerPerceptron`, is fast; all else is simulated by
        :func:`qexp.fine_tune` itself. With a function, every rehearsal needs one of its own.
    curvature_shares : sequence of float
        Shares of the budget for private curvature to choose from, see :class:`qexp.Schedule`.
        Above 0 they need Kronecker curvature.
    n_components : sequence of int
        Values of k to choose from, for "dense".
    subspaces : sequence of int
        Sizes of public subspaces (:mod:`qexp.subspace`) to choose from beside the whole space, with
        schedules of their own; for Kronecker curvature. :meth:`Plan.projection` makes what was
        chosen.
    moves : sequence of callables, optional
        What the subspaces are learnt from. Default: 200 drawn image shifts, for "images". A
        schedule is tried on kinds of shifts, or moves, that its subspace has not all seen.
    candidates : iterable of Schedule, optional
        For the whole space. Default: :func:`candidate_schedules`, whose best are refined at the
        end, and lengthened before if they are long and little noise is in them; candidates of your
        own are not.
    rounds : int, optional
        Plan for exactly so many rounds.
    score : {"accuracy", "auroc", "loss"} or callable
        What schedules are ranked by on the simulated test records: the share of right answers;
        the area under the ROC curve of two classes, for those of which one is rare (surrogates of
        tables are then made as hard in terms of it, too); minus the mean loss; or
        ``score(model, X, y)``, larger for better. Losses that are not finite, and runs that
        diverge, rank last.
    effort : {"quick", "full"}
        Three drawn surrogates, or five and more trials on each. Of your own, all are used.
    seed : int
        Of shifts, splits and noise.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, or there are too few public records.

    Notes
    -----
    Everything here is public, so the noise of the simulation comes from a reproducible generator.
    Planning costs no privacy as long as `model`, `X_public` and the surrogates have nothing to do
    with the private records; do not pass those, and do not plan again because of how a release
    turned out on private test data.

    First, closed forms discard hopeless candidates: with q = 1 - ηρ/(1-m), the noise of T rounds
    leaves an expected loss of ½ Σ_ρ ρ (η c √T / ((1-m) n μ))² (1-q^2T)/(1-q²) in the quadratic
    model, ρ the eigenvalues of H A⁻¹; and a path T η/(1-m) along which even the slope of the loss
    at the start saves too little of ½ gᵀA⁻¹g, g the mean gradient, leads nowhere. Where that leaves
    few, as it does beside little budget, the least noisy of the others make up for it. Then the
    rest is simulated, by successive halving (Jamieson and Talwalkar, AISTATS 2016): on one
    surrogate and few records first, the best ones on all surrogates and more records. What is near
    the best is tried then, and at the end the best several times more: of many that are alike, a
    single noisy trial picks the luckiest.

    Where public images are few for n, several views of each are drawn, those of the test apart: on
    a few records long steps overfit that do not on many.

    A draw moves the weights by -η A⁻¹ (mean clipped gradient + noise of c/(nμ)). Where m < n
    simulated private records are at hand, the mean is over those m, and the noise is that of n:
    what their sum would be scaled up to, n/m times. That is noisier a mean than the job's, so the
    prediction errs on the careful side.

    Of perceptrons with Kronecker curvature as many candidates are tried at once as qexp's kernels
    have threads (`OMP_NUM_THREADS`), BLAS kept to one where threadpoolctl is installed. The plan is
    the same for any number. A `score` of your own is asked by one thread.

    Examples
    --------
    >>> from qexp.planning import plan
    >>> made = plan(model, X_held_out, y_held_out, n_records=7291,
    ...             target_epsilon=1.0, target_delta=1e-5)  # doctest: +SKIP
    >>> made.schedule  # doctest: +SKIP
    """
    n = _checks.count(n_records, "n_records")
    factor = sensitivity_factor(neighboring_relation)
    calibrate_mu(target_epsilon, target_delta)  # checks both

    def noise(epsilon: float) -> float:
        return factor / (n * calibrate_mu(epsilon, target_delta))

    if callable(curvature) and any(move.curvature is None for move in rehearsals):
        raise ValueError(
            "curvature is a function, which is of the planned model's public records; give every "
            "rehearsal a `curvature` of its own records"
        )
    if subspaces:
        _require_learnable(moves, surrogate, curvature)
    public = public_domains(
        model,
        X_public,
        y_public,
        surrogate=surrogate,
        surrogate_keeps=surrogate_keeps,
        rehearsals=rehearsals,
        image_shape=image_shape,
        public_group=public_group,
        score=score,
        effort=effort,
        seed=seed,
    )
    if subspaces:
        subspaces, moves = _sizes_and_moves(subspaces, moves, public.sources[0], image_shape)
    simulation = Simulation(
        public,
        n,
        noise,
        target_epsilon,
        target_delta,
        curvature,
        n_components,
        seed,
        subspaces=subspaces,
        moves=moves or (),
    )
    grid = candidate_schedules(rounds) if candidates is None else list(candidates)
    if candidates is None:
        grid = [replace(s, curvature_share=share) for share in curvature_shares for s in grid]
    if rounds is not None:
        grid = [schedule for schedule in grid if schedule.rounds == rounds]
    if not grid:
        raise ValueError(
            f"rounds is {rounds!r}, and there is no candidate schedule of so many; it needs to be "
            "None, a number of rounds, or that of a candidate"
        )
    whole = [k for k in simulation.domains if k not in subspaces]
    pool = [(schedule, k) for schedule in grid for k in whole]
    pool += [(schedule, k) for schedule in subspace_schedules(rounds) for k in subspaces]
    halving = Halving(
        simulation.tries,
        public.effort,
        n_surrogates=len(public.domains),
        n_records=n,
        seed=seed,
        work=lambda candidate: candidate[0].rounds,
        what="rounds",
        progress=progress,
        threads=public.threads if curvature == "kronecker" else 1,
    )
    halving.run(_hopeful(pool, simulation, public.effort))
    if candidates is None:
        if rounds is None:
            _lengthen(halving, simulation.noise_to_signal, whole)
        halving.refine(
            lambda best: [
                (s, best[1]) for s in neighbours(best[0], rounds, in_subspace=best[1] in subspaces)
            ]
        )
    halving.settle()
    tried = halving.ranked()
    discarded = [candidate for candidate in pool if candidate not in halving.outcomes]
    discarded.sort(key=simulation.noise_loss)
    table = tuple(_row(c, halving.outcomes.get(c), simulation) for c in (*tried, *discarded))
    best = tried[0]
    return Plan(
        schedule=best[0],
        n_components=best[1],
        in_subspace=best[1] in subspaces,
        moves=tuple(moves or ()),
        predicted_accuracy=table[0]["accuracy_mean"],
        predicted_deviation=table[0]["accuracy_std"],
        accuracy_before=simulation.before,
        score=public.scorer.name,
        predicted_score=table[0]["score_mean"],
        score_before=simulation.score_before,
        target_epsilon=float(target_epsilon),
        target_delta=float(target_delta),
        n_records=n,
        surrogates=tuple(str(shift) for _, shift in public.domains),
        table=table,
        curve=simulation.curve(best, halving.outcomes[best].pairs),
    )


def _require_learnable(
    moves: Sequence[Surrogate] | None, surrogate: Shifts, curvature: object
) -> None:
    if curvature != "kronecker":
        raise ValueError("subspaces go with curvature='kronecker', by which they are whitened")
    if moves is None and surrogate != "images":
        raise ValueError(
            "subspaces need moves to be learnt from: they are drawn for surrogate='images', and "
            "else to be given as functions move(X, y, rng) -> (X, y)"
        )


def _sizes_and_moves(
    subspaces: Sequence[int],
    moves: Sequence[Surrogate] | None,
    source: Source,
    image_shape: tuple[int, int] | None,
) -> tuple[Sequence[int], Sequence[Surrogate]]:
    """Give the sizes in order, and the moves that were given or are drawn."""
    p = len(source.model.weights)
    sizes = sorted({min(_checks.count(k, "a size of subspaces"), p) for k in subspaces})
    if moves is None:
        moves = image_moves(source.model, source.X, source.y, image_shape=image_shape)
    return sizes, list(moves)


def _hopeful(
    pool: Sequence[Candidate], simulation: Simulation, effort: Effort
) -> Sequence[Candidate]:
    """Give the candidates worth a trial; where they are few, the least noisy ones of two kinds.

    Beside little budget all that leads anywhere is noisy, and what is not hardly moves.
    """
    hopeful = simulation.hopeful(pool)
    few = effort.stages[1][0]
    if few is None or len(hopeful) >= few:
        return hopeful
    by_noise = sorted(pool, key=simulation.noise_loss)
    kept = {*by_noise[:few], *simulation.moving(by_noise)[:few]}
    return [c for c in by_noise if c in kept]


def _lengthen(
    halving: Halving[Candidate],
    noise_to_signal: Callable[[Candidate], float],
    whole: Sequence[int | None],
) -> None:
    """Double the rounds of the best schedules while the very best is among the longest.

    Those of the whole space, that is: a subspace is left behind after a few rounds.

    Where there are many private records, noise leaves room for more rounds than a grid for all
    jobs can afford to try, and for more than are best on the few records of the first stages: so
    half of the grid's most is long already. A round of more noise than signal is not worth making
    more of.
    """
    long = MOST_ROUNDS // 2
    while long < _MOST_ROUNDS_OF_ALL:
        best = halving.ranked()[:_LENGTHENED]
        if best[0][1] not in whole or best[0][0].rounds < long or noise_to_signal(best[0]) > 1:
            return
        halving.add(
            [
                (s, k)
                for at, k in best
                if k in whole and long <= at.rounds < _MOST_ROUNDS_OF_ALL
                for s in lengthened(at)
            ]
        )
        long *= 2


def _row(candidate: Candidate, outcome: Outcome | None, simulation: Simulation) -> dict[str, Any]:
    """Tell what is known of a candidate."""
    schedule, k = candidate
    pairs = outcome.pairs if outcome else ()
    return {
        "schedule": schedule,
        "n_components": k,
        **figures(pairs),
        "surrogates": len(pairs),
        "records": outcome.records if outcome else 0,
        "noise_to_signal": simulation.noise_to_signal(candidate),
        "noise_loss": simulation.noise_loss(candidate),
    }
