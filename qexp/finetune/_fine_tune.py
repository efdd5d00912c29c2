"""A fine-tuning from its arguments to its result, on one process or on many."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from qexp._communicator import Communicator, SingleProcess
from qexp.bits import BitGenerator
from qexp.curvature import Curvature
from qexp.finetune._checkpoint import locked
from qexp.finetune._job import Job, Shrinkage, TunableModel
from qexp.finetune._result import FineTuneInterrupted, FineTuneResult, RoundReport
from qexp.finetune._schedule import Schedule
from qexp.ledger import PrivacyLedger
from qexp.projections import Projection

__all__ = ["fine_tune"]


def fine_tune(
    model: TunableModel,
    X: Any,
    y: Any,
    *,
    schedule: Schedule,
    curvature: Curvature | Callable[[Any], Curvature],
    target_epsilon: float,
    target_delta: float,
    projection: Projection | None = None,
    neighboring_relation: str = "replace_special",
    ledger: PrivacyLedger | None = None,
    rng: BitGenerator | None = None,
    shrinkage: Shrinkage = "none",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    on_round: Callable[[RoundReport], object] | None = None,
    groups: Any = None,
    max_records_per_user: int | None = None,
    communicator: Communicator | None = None,
) -> FineTuneResult:
    """Fine-tune a pretrained model on private records in rounds of exact private draws.

    Parameters
    ----------
    model
        Pretrained, public: a model of :mod:`qexp.models`, or any object with ``weights``,
        ``with_weights(weights)`` and ``gradient_blocks(X, y)``.
    X, y
        The private records, as the model takes them. Their number n is public.
    schedule : Schedule
    curvature : Curvature, or function of a model that returns one
        Public. A function is called with the pretrained model, or with every round's model where
        the schedule refreshes the curvature; it must use public data only.
    target_epsilon, target_delta : float
        The privacy of all rounds together, to reach and not to exceed.
    projection : Projection, optional
        P, public: steps are P u.
    neighboring_relation : {"replace_special", "replace_one"}
        As in :func:`qexp.sample_private_weights`.
    ledger : PrivacyLedger, optional
        Asked before and charged after each round. When it has not enough left for the next round,
        the job stops there and releases what was paid for.
    rng : BitGenerator, optional
        Default: fresh cryptographic generators. Round t uses ``rng.spawn(t)``, so that a run with
        a test generator has the same bits whether or not it was resumed.
    shrinkage : {"none", "last", "last_whole"}
        "last": the last round's noisy sum is shrunk layer by layer before it becomes a step (see
        :func:`qexp.shrinkage.james_stein`); "last_whole": with one factor for all layers, which
        scales the step by the share of y that is not noise. It costs no privacy, but may cost
        accuracy: a smaller squared error of the sum is of no use where clipping has already made
        the steps too short.
    checkpoint : path-like, optional
        File that keeps the state after each round. Called again with the same path and arguments,
        a job that was stopped or killed goes on where it was; one that was finished gives its
        result again. No round is paid for twice and none is free: see
        :mod:`qexp.finetune._checkpoint`. Rounds done before are not reported to `on_round` again.
    progress : bool
        Show a progress bar on a terminal.
    on_round : callable, optional
        Called after every round with its :class:`RoundReport`, when the round is paid for and
        saved. The place to save a ledger that is kept on disk.
    groups : integer array (number of rows,) or rows of :mod:`qexp.shards`, optional
        Whose each record is: sorted user ids. The unit of privacy is then the user and n the
        number of users; see :func:`qexp.records.per_user`. With several ranks each has its own
        range of ids, so that no user has records on two.
    max_records_per_user : int, optional
        Public. Further records of a user are left out, silently. Needed where gradients come as
        factors (Kronecker curvature); without it whole rows are formed.
    communicator : Communicator, optional
        ``qexp.distributed.world()``, where all ranks of an MPI job make this call: each with its
        own share of the records (n is their sum; a share may be empty) and all with the same
        public arguments. `ledger`, `rng`, `checkpoint`, `progress` and `on_round` are the root's;
        a curvature is the root's, too, and sent to the others, but for a function that
        :func:`qexp.distributed.curvature` made, which all ranks call. All get the same result,
        with the same bits for any number of ranks. Default: this process alone.

    Returns
    -------
    FineTuneResult

    Raises
    ------
    ValueError, TypeError
        If a public argument is out of its range, or `checkpoint` is damaged, of another job, or
        older than `ledger`.
    BudgetExceededError
        If `ledger` has not enough left for the first round, or for rounds in `checkpoint` that it
        was not charged for yet.
    BlockingIOError, OSError
        If another job works on `checkpoint`, or it cannot be written. A round that could not be
        saved is dropped unpublished and costs nothing.
    FineTuneInterrupted
        On Ctrl-C, if at least one round was paid for; a round that was not is dropped unpublished
        and costs nothing.
    Exception
        What `on_round` raises, with what was paid for as its attribute `result`. So have all
        exceptions after the first round.

    Notes
    -----
    One round gives the weights that :func:`qexp.sample_private_weights` gives. The claimed μ of
    the rounds are multiples of their lattices' units; their exact squares sum to at most the
    square of the calibrated μ. An early stop averages those of the schedule's last rounds that
    were done, or else releases the last weights.

    Where curvature stays the same, of a :class:`qexp.models.MultilayerPerceptron` with Kronecker
    curvature and records in memory, the records' whitened inputs to the first layer are computed
    once and kept, in 8 n (d + 1) bytes and at most half a gigabyte: the weights have the same bits
    in a half to a third of the time.
    """
    if on_round is not None and not callable(on_round):
        raise TypeError(
            f"on_round is a {type(on_round).__name__}; it needs None or a function of a RoundReport"
        )
    ranks = SingleProcess() if communicator is None else communicator
    with ranks.shared_fate():
        job = Job(
            model,
            X,
            y,
            schedule=schedule,
            curvature=curvature,
            target_epsilon=target_epsilon,
            target_delta=target_delta,
            projection=projection,
            neighboring_relation=neighboring_relation,
            ledger=ledger,
            rng=rng,
            shrinkage=shrinkage,
            checkpoint=checkpoint,
            groups=groups,
            max_records_per_user=max_records_per_user,
            ranks=ranks,
        )
    if ranks.rank != 0:
        with ranks.shared_fate():
            job.follow()
            return job.followed_result()
    try:
        with (
            ranks.shared_fate(),
            nullcontext() if checkpoint is None else locked(checkpoint),
        ):
            job.resume()
            stopped_because = job.run(progress=progress, on_round=on_round)
            result = job.result(job.state, stopped_because)
            job.dismiss(result)
    except KeyboardInterrupt:
        state = job.paid_state()
        if state.rounds_done == 0:
            raise
        raise FineTuneInterrupted(job.result(state, "interrupted")) from None
    except Exception as error:
        state = job.paid_state()
        if state.rounds_done > 0:
            error.result = job.result(state, "interrupted")  # type: ignore[attr-defined]
            error.add_note(
                f"{state.rounds_done} round(s) of the fine-tuning are paid for: they are in "
                "`.result` of this exception"
            )
        raise
    return result
