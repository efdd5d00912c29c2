"""Running a job: open, plan, fine-tune in rounds that are saved and paid for, write the outputs.

The output folder holds, beside the outputs, all that a later ``--resume`` needs: the checkpoint,
which pays for no round twice (see :mod:`qexp.finetune._checkpoint`), the plan, so that the
schedule stays the same, and the subspace, if there is one. Every file is the old one or the new
one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np

from qexp import _checks, _core
from qexp._communicator import Communicator, SingleProcess
from qexp._digits import rounded_up
from qexp._files import DamagedFileError, atomic_write_bytes
from qexp._json import strict_json
from qexp._memory import peak_mebibytes
from qexp._privacy_checks import sensitivity_factor
from qexp.bits import insecure_test_generator
from qexp.finetune import FineTuneInterrupted, FineTuneResult, RoundReport, Schedule, fine_tune
from qexp.job._prediction import predicted
from qexp.job.exit_codes import ExitCode
from qexp.job.inputs import Inputs, open_inputs, summary
from qexp.job.log import Log
from qexp.job.report import write_report
from qexp.job.settings import JobSettings
from qexp.job.signals import Stopper
from qexp.job.subspace import in_subspace, kept_subspace, learnt_subspace, subspace_size
from qexp.ledger_file import SharedLedger, read_ledger
from qexp.privacy import calibrate_mu
from qexp.shards import row_bytes
from qexp.subspace import PublicSubspace

__all__ = ["communicator", "dry_run", "run_job"]

_CHECKPOINT, _PLAN = "checkpoint.npz", "plan.json"
_WEIGHTS, _CERTIFICATE, _REPORT = "weights.npz", "certificate.json", "report.html"
_OUTPUTS: Final = (_WEIGHTS, _CERTIFICATE, _REPORT)
_PLAN_FORMAT: Final = "qexp job plan"
_TRIAL_RECORDS: Final = (256, 1024)
# Numbers of ranks, set by launchers in the processes that they start: by Open MPI; by MPICH, Intel
# MPI and Slurm with PMI-2; of one node.
_SIZES: Final = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")
# Slurm with PMIx sets no size but its own, which it sets without MPI as well.
_PMIX, _PMIX_SIZE = "PMIX_RANK", "SLURM_STEP_NUM_TASKS"


def communicator() -> Communicator:
    """Give the ranks of this job: those of MPI under a launcher, else this process.

    Returns
    -------
    qexp.distributed.Communicator

    Raises
    ------
    ImportError
        Under a launcher without mpi4py.
    """
    if _is_launched(os.environ):
        from qexp.distributed import world

        return world()
    return SingleProcess()


def _is_launched(environment: Mapping[str, str]) -> bool:
    """Tell whether there are other ranks, as all of them must tell alike."""
    sizes = [environment[name] for name in _SIZES if name in environment]
    if not sizes and _PMIX in environment:
        sizes = [environment.get(_PMIX_SIZE, "unknown")]
    return any(size != "1" for size in sizes)


def run_job(
    job: JobSettings, *, resume: bool = False, ranks: Communicator | None = None
) -> ExitCode:
    """Run a job to its end, or to where it has to stop.

    Parameters
    ----------
    job : JobSettings
    resume : bool
        Go on with what is in the output folder; begin, where there is nothing.
    ranks : Communicator, optional
        All of them make this call. Default: those of :func:`communicator`.

    Returns
    -------
    ExitCode

    Raises
    ------
    Exception
        What went wrong, for :func:`qexp.job.exit_codes.exit_code`; on all ranks.
    """
    ranks = communicator() if ranks is None else ranks
    log = Log(silent=ranks.rank != 0, timed=_has_public_times(job))
    stopper = Stopper(grace=job.run.grace, wall_time=job.run.wall_time, follower=ranks.rank != 0)
    with stopper:
        try:
            with ranks.shared_fate():
                return _Run(job, ranks, log, stopper).go(resume=resume)
        except KeyboardInterrupt as stop:
            result = stop.result if isinstance(stop, FineTuneInterrupted) else None
            rounds = 0 if result is None else result.rounds_done
            log.event(
                "stopped",
                f"stopped by {stopper.reason or 'an interrupt'} after {rounds} round(s) that are "
                "paid for and saved; `--resume` goes on",
                reason=stopper.reason,
                rounds_done=rounds,
            )
            return ExitCode.INTERRUPTED


def _has_public_times(job: JobSettings) -> bool:
    """Tell whether a round's time depends on nothing private.

    Where users are protected it tells how many records all of them have; a PyTorch module that
    raises on a record has that record's block computed twice.
    """
    return job.private.groups is None and job.model.kind == "perceptron"


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of a job on one rank."""

    job: JobSettings
    ranks: Communicator
    log: Log
    stopper: Stopper

    def go(self, *, resume: bool) -> ExitCode:
        job, ranks, log = self.job, self.ranks, self.log
        folder = job.output.folder
        is_root = ranks.rank == 0
        with _threads(job.run.threads):
            if is_root:
                _require_unused(folder, resume=resume)
            inputs = open_inputs(job, rank=ranks.rank, size=ranks.size)
            sizes = summary(inputs)
            if is_root:
                os.makedirs(folder, exist_ok=True)
                log.event(
                    "start",
                    f"{_records(sizes)}, {sizes['n_parameters']} weights, {ranks.size} rank(s)",
                    **sizes,
                    ranks=ranks.size,
                    job=os.path.basename(job.path),
                )
            ledger = self._ledger() if is_root else None
            digest = cache(lambda: _digest_of_public(job, inputs))
            plan: Mapping[str, Any] | None = self._plan(inputs, digest) if is_root else None
            schedule: Schedule = ranks.broadcast_object(
                None if not is_root else _schedule(job, plan)
            )
            subspace = self._subspace(inputs, plan, digest) if is_root else None
            subspace = ranks.broadcast_object(subspace)
            if subspace is not None:
                inputs = in_subspace(inputs, subspace)
                sizes = summary(inputs)
            if job.run.records_in_memory:
                inputs = replace(inputs, shards=inputs.shards.in_memory())
            self.stopper.begin_rounds()
            result = self._fine_tune(inputs, schedule, ledger)
            self.stopper.end_rounds()
            if is_root:
                self._write(result, schedule, plan, ledger, sizes)
        return _code(result)

    def _ledger(self) -> SharedLedger | None:
        privacy = self.job.privacy
        if privacy.ledger is None:
            return None
        return SharedLedger(privacy.ledger)

    def _plan(self, inputs: Inputs, public_digest: Callable[[], str]) -> Mapping[str, Any] | None:
        """Plan, or take up the plan that the folder holds."""
        job = self.job
        if job.schedule.rounds != "plan":
            return None
        public = public_digest()
        path = os.path.join(job.output.folder, _PLAN)
        found = _read_plan(path)
        if found is not None:
            if found["settings"] != public:
                raise ValueError(
                    f"{path!r} was made for another job file or number of records; go on with the "
                    "settings it was begun with, or give another output folder, which costs anew"
                )
            return dict(found["plan"])
        began = time.monotonic()
        self.log.event("planning", "planning on public records")
        made = _planned(job, inputs, progress=self.log.is_terminal)
        document = {"format": _PLAN_FORMAT, "version": 1, "settings": public, "plan": made}
        document = json.loads(strict_json(document))  # as it will be read
        _write_json(path, {**document, "sha256": _digest(document)})
        expected = predicted(made)
        gains = made["predicted_score"] > made["score_before"]
        advice = "" if gains else "; it promises no gain, so think again before you spend on it"
        self.log.event(
            "planned",
            f"planned {made['schedule']['rounds']} round(s){_space_words(job, made)} in "
            f"{time.monotonic() - began:.0f} s; predicted {expected.name}: "
            f"{expected.sentence()}{advice}",
            schedule=made["schedule"],
            subspace=subspace_size(job, made),
            score=made["score"],
            predicted_score=made["predicted_score"],
            score_before=made["score_before"],
            predicted_accuracy=made["predicted_accuracy"],
            accuracy_before=made["accuracy_before"],
            seconds=round(time.monotonic() - began, 1),
        )
        return made

    def _subspace(
        self, inputs: Inputs, plan: Mapping[str, Any] | None, public_digest: Callable[[], str]
    ) -> PublicSubspace | None:
        size = subspace_size(self.job, plan)
        if size is None:
            return None
        learnt_from = _digest([public_digest(), size])
        return kept_subspace(self.job, inputs, size, self.log, learnt_from=learnt_from)

    def _fine_tune(
        self, inputs: Inputs, schedule: Schedule, ledger: SharedLedger | None
    ) -> FineTuneResult:
        job, is_root = self.job, self.ranks.rank == 0
        timed = _has_public_times(job)
        began = time.monotonic()

        def on_round(report: RoundReport) -> None:
            nonlocal began
            now = time.monotonic()
            # On a terminal there is the progress bar.
            if not self.log.is_terminal:
                self.log.event(
                    "round",
                    f"round {report.round} of {report.rounds}",
                    round=report.round,
                    rounds=report.rounds,
                    mu=report.mu,
                    mu_so_far=report.mu_so_far,
                    noise_to_signal=report.noise_to_signal,
                    step_norm=report.step_norm,
                    **({"seconds": round(now - began, 1)} if timed else {}),
                )
            began = now
            self.stopper.between_rounds(is_last=report.round == report.rounds)

        seed = job.run.insecure_test_seed
        return fine_tune(
            inputs.model,
            inputs.shards.X,
            inputs.shards.y,
            schedule=schedule,
            curvature=lambda model: inputs.make_curvature(model, schedule.damping),
            target_epsilon=job.privacy.epsilon,
            target_delta=job.privacy.delta,
            projection=inputs.projection,
            neighboring_relation=job.privacy.neighboring_relation,
            ledger=ledger,
            rng=None if seed is None else insecure_test_generator(seed),
            shrinkage=job.schedule.shrinkage,
            checkpoint=os.path.join(job.output.folder, _CHECKPOINT) if is_root else None,
            progress=self.log.is_terminal,
            on_round=on_round if is_root else None,
            groups=inputs.shards.groups,
            max_records_per_user=job.private.max_records_per_user,
            communicator=self.ranks,
        )

    def _write(
        self,
        result: FineTuneResult,
        schedule: Schedule,
        plan: Mapping[str, Any] | None,
        ledger: SharedLedger | None,
        sizes: Mapping[str, Any],
    ) -> None:
        folder, release = self.job.output.folder, result.release
        document = {
            "statement": release.statement,
            "certificate": release.certificate(),
            "job": self.job.describe(),
            "schedule": schedule.describe(),
            "sizes": dict(sizes),
            "ledger": None if ledger is None else _ledger_facts(ledger),
        }
        write_report(os.path.join(folder, _REPORT), result, schedule, plan, document)
        _write_json(os.path.join(folder, _CERTIFICATE), document)
        release.save(os.path.join(folder, _WEIGHTS))
        self.log.event(
            "finished",
            f"{result.stopped_because} after {result.rounds_done} of {schedule.rounds} round(s): "
            f"epsilon = {rounded_up(release.epsilon, 6)} at delta = "
            f"{rounded_up(release.delta, 6)}; {folder} holds " + ", ".join(_OUTPUTS),
            stopped_because=result.stopped_because,
            rounds_done=result.rounds_done,
            epsilon=release.epsilon,
            delta=release.delta,
            mu=release.mu,
            folder=folder,
        )


def _space_words(job: JobSettings, plan: Mapping[str, Any] | None) -> str:
    size = subspace_size(job, plan)
    return "" if size is None else f" in a public subspace of {size} directions"


def _records(sizes: Mapping[str, Any]) -> str:
    n = sizes["n_records"]
    return "private records by user" if n is None else f"{n} private records"


def _code(result: FineTuneResult) -> ExitCode:
    return {
        "ledger empty": ExitCode.BUDGET_EXCEEDED,
        "diverged": ExitCode.DIVERGED,
    }.get(result.stopped_because, ExitCode.DONE)


def _ledger_facts(ledger: SharedLedger) -> dict[str, Any]:
    lines, head = ledger.head
    return {
        "file": os.path.basename(ledger.path),
        "mu_budget": ledger.mu_budget,
        "mu_spent": ledger.mu_spent,
        "neighboring_relation": ledger.neighboring_relation,
        "unit_of_privacy": ledger.unit_of_privacy,
        "lines": lines,
        "head": head,
    }


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Limit qexp's threads, and those of BLAS where threadpoolctl is installed."""
    if count is None:
        yield
        return
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        limits: AbstractContextManager[Any] = nullcontext()
    else:
        limits = threadpool_limits(count)
    before = _core.get_num_threads()
    _core.set_num_threads(count)
    try:
        with limits:
            yield
    finally:
        _core.set_num_threads(before)


# --- The output folder --------------------------------------------------------------------------


def _require_unused(folder: str, *, resume: bool) -> None:
    """Refuse a folder in use unless the job is to resume."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise NotADirectoryError(f"output.folder is {folder!r}, which is a file; give a folder")
    there = [n for n in (_CHECKPOINT, *_OUTPUTS) if os.path.exists(os.path.join(folder, n))]
    if there and not resume:
        raise FileExistsError(
            f"the output folder {folder!r} holds {', '.join(there)}: add --resume to go on with "
            "that job, or give another folder, which costs anew"
        )
    if there and _CHECKPOINT not in there:
        raise FileExistsError(
            f"the output folder {folder!r} holds {', '.join(there)} but no checkpoint to resume "
            "from; give another folder, which costs anew"
        )


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _write_json(path: str, document: Any) -> None:
    atomic_write_bytes(path, strict_json(document, indent=1).encode() + b"\n")


def _read_plan(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            document = json.load(file)
        checksum = document.pop("sha256")
        whole = document["format"] == _PLAN_FORMAT and checksum == _digest(document)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedFileError(
            f"the plan {path!r} is damaged; restore it, or remove it to plan anew, which gives the "
            "same plan on the same machine"
        )
    found: dict[str, Any] = document
    return found


# --- The schedule -------------------------------------------------------------------------------


def _schedule(job: JobSettings, plan: Mapping[str, Any] | None) -> Schedule:
    if plan is None:
        return job.schedule.fixed()
    planned = dict(plan["schedule"])
    planned["budget"] = None if planned["budget"] is None else tuple(planned["budget"])
    return Schedule(**planned)


def _digest_of_public(job: JobSettings, inputs: Inputs) -> str:
    """Digest all that shapes a plan and a subspace."""
    described = job.describe()
    arrays = [inputs.model.weights, inputs.X_public, inputs.y_public, inputs.public_groups]
    for move in inputs.rehearsals:
        arrays += [move.model.weights, np.asarray(move.X_public), np.asarray(move.y_public)]
        for shift in move.surrogate if isinstance(move.surrogate, list) else ():
            arrays += [shift.X, shift.y]
    return _digest(
        [
            {
                name: described[name]
                for name in ("model", "public", "schedule", "projection", "rehearsal")
            },
            [
                job.privacy.epsilon,
                job.privacy.delta,
                job.privacy.neighboring_relation,
                job.run.public_seed,
            ],
            summary(inputs)["n_records"],
            [None if array is None else _checks.array_digest(array) for array in arrays],
        ]
    )


def _planned(job: JobSettings, inputs: Inputs, *, progress: bool) -> dict[str, Any]:
    from qexp.planning import plan

    public = job.public
    first, *others = inputs.rehearsals
    assert first.curvature is not None
    made = plan(
        first.model,
        first.X_public,
        first.y_public,
        n_records=inputs.shards.n_records_total,
        target_epsilon=job.privacy.epsilon,
        target_delta=job.privacy.delta,
        neighboring_relation=job.privacy.neighboring_relation,
        surrogate=first.surrogate,
        surrogate_keeps=public.surrogate_keeps,
        rehearsals=others,
        image_shape=public.image_shape,
        public_group=inputs.public_groups,
        curvature=first.curvature,
        subspaces=job.schedule.subspaces,
        score=job.schedule.score,
        effort=job.schedule.effort,
        seed=job.run.public_seed,
        progress=progress,
    )
    return made.describe()


# --- Looking before leaping ---------------------------------------------------------------------


def dry_run(job: JobSettings) -> tuple[str, bool]:
    """Say what a job would do: plan, time, memory and privacy. No private value is read.

    Parameters
    ----------
    job : JobSettings

    Returns
    -------
    text : str
    affordable : bool
        Whether the ledger, if there is one, has enough left for all rounds.

    Raises
    ------
    Exception
        As :func:`run_job` before its first round.
    """
    with _threads(job.run.threads):
        inputs = open_inputs(job)
        planned = _planned(job, inputs, progress=True) if job.schedule.rounds == "plan" else None
        schedule = _schedule(job, planned)
        size = subspace_size(job, planned)
        if size is not None:
            inputs = in_subspace(inputs, learnt_subspace(job, inputs, size, progress=True))
        sizes = summary(inputs)
        seconds, memory = _trial(job, inputs, schedule, sizes["n_records"])
    mu = calibrate_mu(job.privacy.epsilon, job.privacy.delta)
    ledger_words, affordable = _in_ledger(job, mu)
    rows = [
        ("private", f"{_records(sizes)} (public; no value was read)"),
        ("weights", f"{sizes['n_parameters']}, drawn in {sizes['n_components']} dimensions"),
        ("curvature", f"{job.public.curvature}{_space_words(job, planned)}"),
        (
            "schedule",
            f"{schedule.rounds} round(s), clipping norm {schedule.clipping_norm:g}, step size "
            f"{schedule.step_size:g}, momentum {schedule.momentum:g}, damping "
            f"{schedule.damping:g}, averaging {schedule.averaging:g}",
        ),
    ]
    if planned is not None:
        made = predicted(planned)
        rows.append((f"predicted {made.name}", made.sentence()))
    rows += [
        (
            "privacy",
            f"({job.privacy.epsilon:g}, {job.privacy.delta:g})-DP, "
            f"{job.privacy.neighboring_relation}: mu = {mu:.6g} for all rounds together",
        ),
        ("ledger", ledger_words),
        (
            "time",
            f"{_time_words(seconds, schedule.rounds, sizes['n_records'])}, on one process with "
            f"{_core.get_num_threads()} thread(s); measured on blank records",
        ),
        ("memory", f"about {memory:.0f} MiB a process, measured; {_growth_words(job, inputs)}"),
    ]
    if job.run.insecure_test_seed is not None:
        rows.append(("WARNING", "run.insecure_test_seed is set: the result is NOT PRIVATE"))
    n = sizes["n_records"]
    if n is not None and job.privacy.delta * n >= 1:
        rows.append(
            (
                "WARNING",
                f"privacy.delta is {job.privacy.delta:g}, not below 1/n = {1 / n:.2g}: so large a "
                "delta would allow to publish somebody's record as it is; choose one well below",
            )
        )
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {text}\n" for name, text in rows), affordable


def _time_words(seconds: float, rounds: int, n_records: int | None) -> str:
    if n_records is None:
        return f"about {seconds:.3g} s a round and 1,000 records, times {rounds} rounds"
    return f"about {seconds:.3g} s a round, {seconds * rounds:.3g} s in all"


def _growth_words(job: JobSettings, inputs: Inputs) -> str:
    if not job.run.records_in_memory:
        return "it does not grow with the data"
    shards = inputs.shards
    if shards.groups is not None:
        size = "the records"
    else:
        mebibytes = sum(row_bytes(rows) for rows in (shards.X, shards.y))
        size = f"{mebibytes * shards.n_records_total / 2**20:.0f} MiB of records"
    return f"beside {size} in all processes together, and up to 512 MiB in each to whiten them once"


def _in_ledger(job: JobSettings, mu: float) -> tuple[str, bool]:
    """Say what the ledger has left, and whether that is enough."""
    if job.privacy.ledger is None:
        return "none: nothing stops another job on the same records from spending again", True
    found = read_ledger(job.privacy.ledger)
    needed = mu / sensitivity_factor(job.privacy.neighboring_relation)
    needed *= sensitivity_factor(found.neighboring_relation)
    left = max(0.0, found.mu_budget**2 - found.mu_spent**2 - found.mu_reserved**2) ** 0.5
    enough = needed <= left * (1 + 1e-12)
    return (
        f"{'enough' if enough else 'NOT ENOUGH'}: this job needs mu = {needed:.6g}, {left:.6g} is "
        f"left of {found.mu_budget:.6g}"
        + ("" if enough else "; it would draw the rounds that fit, and stop"),
        enough,
    )


def _trial(
    job: JobSettings, inputs: Inputs, schedule: Schedule, n_records: int | None
) -> tuple[float, float]:
    """Time a round on blank records of the private ones' shape; seconds, and MiB at the peak.

    Where their number is not public, the seconds are for every thousand of them.
    """
    columns = inputs.shards.X.shape[1:]
    curvature = inputs.make_curvature(inputs.model, schedule.damping)
    one = replace(schedule, rounds=1, refresh_curvature=False, budget=None)
    times = []
    for m in _TRIAL_RECORDS:
        X = np.zeros((m, *columns), inputs.shards.X.dtype)
        y = np.zeros(m, inputs.shards.y.dtype)
        began = time.perf_counter()
        fine_tune(
            inputs.model,
            X,
            y,
            schedule=one,
            curvature=curvature,
            target_epsilon=job.privacy.epsilon,
            target_delta=job.privacy.delta,
            projection=inputs.projection,
            rng=insecure_test_generator(0),
        )
        times.append(time.perf_counter() - began)
    few, many = _TRIAL_RECORDS
    slope = max(0.0, times[1] - times[0]) / (many - few)
    if n_records is None:
        return 1000 * slope, peak_mebibytes()
    return times[0] + slope * max(0, n_records - few), peak_mebibytes()
