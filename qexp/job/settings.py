"""The job file: what may stand in it, read and checked wholly before any data are opened.

A job file is TOML. Every key is described here once, with what it allows; the same description
checks a file, suggests the right name for a wrong one, and is what ``qexp run --explain`` prints.
Paths are relative to the job file; ``${NAME}`` stands for an environment variable.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any, Final, Literal

from qexp.finetune import Schedule
from qexp.surrogates import SURROGATE_KEEPS

__all__ = [
    "JobSettings",
    "SettingsError",
    "explain",
    "load_settings",
]


class SettingsError(ValueError):
    """A job file has mistakes; the message lists all of them."""


# --- What a value may be ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """A kind of value: words for it, and a function that gives it or raises ValueError."""

    allowed: str
    convert: Callable[[Any, str], Any]  # of the value and the folder of the job file


def _number(allowed: str, fits: Callable[[float], bool]) -> _Check:
    def convert(value: Any, folder: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if not (math.isfinite(value) and fits(value)):
            raise ValueError
        return float(value)

    return _Check(allowed, convert)


def _integer(least: int) -> _Check:
    def convert(value: Any, folder: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError
        return value

    return _Check(f"an integer of at least {least}", convert)


def _choice(*names: str) -> _Check:
    def convert(value: Any, folder: str) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return _Check("one of " + ", ".join(f'"{name}"' for name in names), convert)


def _either(name: str, other: _Check) -> _Check:
    def convert(value: Any, folder: str) -> Any:
        return name if value == name else other.convert(value, folder)

    return _Check(f'"{name}" or {other.allowed}', convert)


def _list_of(check: _Check, least: int, allowed: str) -> _Check:
    def convert(value: Any, folder: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < least:
            raise ValueError
        return tuple(check.convert(item, folder) for item in value)

    return _Check(allowed, convert)


def _to_bool(value: Any, folder: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _to_path(value: Any, folder: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError

    def variable(match: re.Match[str]) -> str:
        try:
            return os.environ[match[1]]
        except KeyError:
            raise ValueError(f"the environment variable {match[1]} is not set") from None

    expanded = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", variable, value)
    return os.path.normpath(os.path.join(folder, os.path.expanduser(expanded)))


def _to_paths(value: Any, folder: str) -> tuple[str, ...]:
    if isinstance(value, list) and value:
        return tuple(_to_path(item, folder) for item in value)
    return (_to_path(value, folder),)


def _to_entry_point(value: Any, folder: str) -> str:
    parts = value.split(":") if isinstance(value, str) else []
    if len(parts) != 2 or not all(p.isidentifier() for p in (*parts[0].split("."), parts[1])):
        raise ValueError
    return str(value)


def _to_seconds(value: Any, folder: str) -> float:
    if isinstance(value, str):
        match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", value)
        if match is None:
            raise ValueError
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        value = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError
    return float(value)


def _to_keeps(value: Any, folder: str) -> tuple[float, float]:
    share = _number("", lambda x: 0 < x < 1)
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError
    least, most = (float(share.convert(item, folder)) for item in value)
    if least > most:
        raise ValueError
    return least, most


_POSITIVE = _number("a finite number above 0", lambda x: x > 0)
_FLAG = _Check("true or false", _to_bool)
_PATH = _Check("a path", _to_path)
_PATHS = _Check("a path or pattern, or a list of them", _to_paths)
_ENTRY_POINT = _Check('"module:function"', _to_entry_point)
_DURATION = _Check('seconds, "hh:mm:ss" or "d-hh:mm:ss"', _to_seconds)
_SIZES = _list_of(
    _integer(1), 2, "a list of integers: features, sizes of hidden layers, classes (at least 2)"
)
_KEEPS = _Check("a list of two numbers above 0 and below 1, the smaller first", _to_keeps)
_COUNTS = _list_of(_integer(1), 0, "a list of integers of at least 1")
_IMAGE = _list_of(_integer(1), 2, "a list of two integers: height, width")


def _key(check: _Check, text: str, default: Any = MISSING) -> Any:
    metadata = {"check": check, "text": text}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


# --- The sections -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """[model]: the pretrained model, public."""

    kind: Literal["perceptron", "torch"] = _key(
        _choice("perceptron", "torch"), "what the model is", "perceptron"
    )
    layer_sizes: tuple[int, ...] | None = _key(
        _SIZES, "of a perceptron; needed there. Without hidden layers: softmax regression", None
    )
    activation: Literal["tanh", "relu"] = _key(
        _choice("tanh", "relu"), "of a perceptron's hidden layers", "tanh"
    )
    dtype: str | None = _key(
        _choice("float32", "float64"), "of the weights; default: that of their file", None
    )
    weights: str | None = _key(
        _PATH,
        ".npy, or .npz with an array `weights` (as a release has); needed for a perceptron. Layer "
        "after layer (out, in + 1), bias last, flattened",
        None,
    )
    entry_point: str | None = _key(
        _ENTRY_POINT,
        "a function without arguments that returns a qexp.models.torch.TorchModel; needed for "
        "torch. Its module is looked up beside the job file, too; it runs with your rights",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class PublicSettings:
    """[public]: records for curvature and planning that pretraining has not seen."""

    features: tuple[str, ...] | None = _key(
        _PATHS, "files of rows (m, d); needed unless curvature is identity", None
    )
    labels: tuple[str, ...] | None = _key(
        _PATHS, "files of classes (m,); needed for a plan but by rehearsals alone", None
    )
    curvature: str = _key(
        _choice("kronecker", "dense", "diagonal", "identity"),
        "kronecker or diagonal: a block a layer; dense: over all (projected) weights; identity: "
        "none",
        "kronecker",
    )
    surrogate: Literal["images", "tabular", "records", "rehearsals"] = _key(
        _choice("images", "tabular", "records", "rehearsals"),
        "how a plan simulates the private records: drawn shifts of images or tables; public "
        "records of another domain, which the model has not seen; or by the rehearsals alone",
        "images",
    )
    surrogate_features: tuple[str, ...] | None = _key(
        _PATHS, "files of rows (k, d), those of the other domain; needed for records", None
    )
    surrogate_labels: tuple[str, ...] | None = _key(
        _PATHS, "files of classes (k,); needed for records", None
    )
    surrogate_keeps: tuple[float, float] = _key(
        _KEEPS,
        "the least and the most of its accuracy above chance that drawn shifts leave the model: "
        "the stronger they are, the bolder the plan",
        SURROGATE_KEEPS,
    )
    image_shape: tuple[int, int] | None = _key(_IMAGE, "for images; default: square", None)
    groups: tuple[str, ...] | None = _key(
        _PATHS, "files of a column (m,) whose shares a tabular plan shifts", None
    )


@dataclass(frozen=True, kw_only=True)
class RehearsalSettings:
    """[[rehearsal]]: a further move between public domains to plan on, as often as there are."""

    weights: str = _key(
        _PATH, "of a perceptron of the same layer_sizes, pretrained on other public records"
    )
    features: tuple[str, ...] = _key(
        _PATHS, "files of rows (m, d), public, for the curvature that belongs to it"
    )
    labels: tuple[str, ...] = _key(_PATHS, "files of classes (m,)")
    surrogate_features: tuple[str, ...] = _key(
        _PATHS, "files of rows (k, d), public, of the domain that it moves to"
    )
    surrogate_labels: tuple[str, ...] = _key(_PATHS, "files of classes (k,)")


@dataclass(frozen=True, kw_only=True)
class PrivateSettings:
    """[private]: the records to protect. Their number is public."""

    features: tuple[str, ...] = _key(
        _PATHS,
        "shards of rows (n, d), in order, or patterns: .npy, file.h5:dataset, .parquet, .zarr",
    )
    labels: tuple[str, ...] = _key(
        _PATHS, "shards of classes 0 to K - 1 (n,), in the same order; any other counts as null"
    )
    groups: tuple[str, ...] | None = _key(
        _PATHS, "shards of user ids (n,), sorted: then a user is protected, not a record", None
    )
    max_records_per_user: int | None = _key(
        _integer(1), "with groups: further records of a user are left out", None
    )


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """[privacy]: what all rounds together may cost."""

    epsilon: float = _key(_POSITIVE, "the target")
    delta: float = _key(
        _number("a number strictly between 0 and 1", lambda x: 0 < x < 1),
        "the target; well below 1/n",
    )
    neighboring_relation: str = _key(
        _choice("replace_special", "replace_one"),
        "replace_special: one record is replaced by a null record; replace_one: by any other",
        "replace_special",
    )
    ledger: str | None = _key(
        _PATH, "a shared ledger, made by `qexp ledger create`; asked before every round", None
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """[schedule]: planned on the public records, or given."""

    rounds: Literal["plan"] | int = _key(
        _either("plan", _integer(1)), "plan: all settings are chosen on public records", "plan"
    )
    effort: Literal["quick", "full"] = _key(
        _choice("quick", "full"), "how long a plan searches", "quick"
    )
    score: Literal["accuracy", "auroc", "loss"] = _key(
        _choice("accuracy", "auroc", "loss"),
        "what a plan ranks schedules by; auroc is for two classes of which one is rare",
        "accuracy",
    )
    subspaces: tuple[int, ...] = _key(
        _COUNTS,
        "sizes of public subspaces that a plan may choose beside the whole space, such as [50, "
        "200, 1000]; of images, and with kronecker curvature",
        (),
    )
    clipping_norm: float | None = _key(_POSITIVE, "in whitened units; needed without a plan", None)
    step_size: float | None = _key(_POSITIVE, "needed without a plan", None)
    damping: float | None = _key(_POSITIVE, "of the curvature; needed without a plan", None)
    momentum: float = _key(
        _number("a number of at least 0 and below 1", lambda x: 0 <= x < 1), "", 0.0
    )
    averaging: float = _key(
        _number("a number from 0 to 1", lambda x: 0 <= x <= 1),
        "share of the last rounds whose weights are averaged",
        0.0,
    )
    refresh_curvature: bool = _key(_FLAG, "make the curvature anew at every round's weights", False)
    curvature_share: float = _key(
        _number("a number of at least 0 and below 1", lambda x: 0 <= x < 1),
        "share of the budget that buys private curvature before the first round",
        0.0,
    )
    shrinkage: Literal["none", "last", "last_whole"] = _key(
        _choice("none", "last", "last_whole"), "of the last round's sum", "none"
    )

    def fixed(self) -> Schedule:
        """Give the schedule of a job without a plan."""
        assert self.rounds != "plan"
        assert self.clipping_norm is not None
        assert self.step_size is not None
        assert self.damping is not None
        return Schedule(
            rounds=self.rounds,
            clipping_norm=self.clipping_norm,
            step_size=self.step_size,
            damping=self.damping,
            momentum=self.momentum,
            averaging=self.averaging,
            refresh_curvature=self.refresh_curvature,
            curvature_share=self.curvature_share,
        )


@dataclass(frozen=True, kw_only=True)
class ProjectionSettings:
    """[projection]: fewer dimensions for the private sum."""

    kind: Literal["none", "srht", "subspace"] = _key(
        _choice("none", "srht", "subspace"),
        "srht: subsampled randomized Hadamard transform; subspace: the directions that moves of "
        "public images call for, whitened by their kronecker curvature",
        "none",
    )
    n_components: int | None = _key(_integer(1), "k; needed for srht and subspace", None)
    seed: int = _key(_integer(0), "of an srht, public", 0)


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """[output]: where the release goes."""

    folder: str = _key(_PATH, "made if need be; `--output` overrides it")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """[run]: how the job runs. Nothing here changes the guarantee but insecure_test_seed."""

    threads: int | None = _key(
        _integer(1), "of qexp's kernels, and of BLAS where threadpoolctl is installed", None
    )
    block_size: int | None = _key(
        _integer(1), "most private records in memory at once; without influence on any bit", None
    )
    records_in_memory: bool = _key(
        _FLAG,
        "read the private records once and not in every round; without influence on any bit",
        False,
    )
    public_seed: int = _key(_integer(0), "of labels drawn for the curvature, and of the plan", 0)
    wall_time: float | None = _key(
        _DURATION, "stop before a round that would not end within it, resumable", None
    )
    grace: float = _key(
        _DURATION,
        "after a signal, how long the round under way may go on before it is dropped",
        60.0,
    )
    insecure_test_seed: int | None = _key(
        _integer(0), "reproducible noise, for tests: the result is NOT PRIVATE", None
    )


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """A whole job file, checked."""

    model: ModelSettings
    public: PublicSettings
    private: PrivateSettings
    privacy: PrivacySettings
    schedule: ScheduleSettings
    projection: ProjectionSettings
    output: OutputSettings
    run: RunSettings
    rehearsal: tuple[RehearsalSettings, ...]
    path: str

    def describe(self) -> dict[str, Any]:
        """Give the settings that a certificate holds: nothing of private files, no folders."""
        result: dict[str, Any] = {
            name: _without_folders(getattr(self, name))
            for name in ("model", "public", "privacy", "schedule", "projection", "run")
        }
        result["rehearsal"] = [_without_folders(rehearsal) for rehearsal in self.rehearsal]
        result["private"] = {"max_records_per_user": self.private.max_records_per_user}
        return result


def _without_folders(section: Any) -> dict[str, Any]:
    described = {}
    for key in dataclasses.fields(section):
        value = getattr(section, key.name)
        if key.metadata["check"] is _PATH and value is not None:
            value = os.path.basename(value)
        elif key.metadata["check"] is _PATHS and value is not None:
            value = [os.path.basename(path) for path in value]
        described[key.name] = list(value) if isinstance(value, tuple) else value
    return described


_SECTIONS: Final[dict[str, type]] = {
    "model": ModelSettings,
    "public": PublicSettings,
    "private": PrivateSettings,
    "privacy": PrivacySettings,
    "schedule": ScheduleSettings,
    "projection": ProjectionSettings,
    "output": OutputSettings,
    "run": RunSettings,
}
_REPEATED: Final[dict[str, type]] = {"rehearsal": RehearsalSettings}


# --- Reading ------------------------------------------------------------------------------------


def load_settings(path: str | os.PathLike[str], *, output: str | None = None) -> JobSettings:
    """Read a job file and check all of it.

    Parameters
    ----------
    path : path-like
        A TOML file.
    output : str, optional
        Replaces ``output.folder``; relative to the current folder.

    Returns
    -------
    JobSettings

    Raises
    ------
    SettingsError
        With every mistake, one a line.
    OSError
        If the file cannot be read.
    """
    name = os.path.abspath(path)
    with open(name, "rb") as file:
        try:
            document = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{os.fspath(path)} is no TOML file: {error}") from error
    if output is not None:
        section = document.setdefault("output", {})
        if isinstance(section, dict):
            section["folder"] = os.path.abspath(output)
    mistakes: list[str] = []
    folder = os.path.dirname(name)
    _refuse_unknown(document, {**_SECTIONS, **_REPEATED}, "", "section", mistakes)
    found = {
        section: _section(kind, section, document.get(section, {}), folder, mistakes)
        for section, kind in _SECTIONS.items()
    }
    for section, kind in _REPEATED.items():
        found[section] = _sections(kind, section, document.get(section, []), folder, mistakes)
    if not mistakes:
        settings = JobSettings(**found, path=name)
        mistakes += _contradictions(settings)
        if not mistakes:
            return settings
    listed = "".join(f"\n  {mistake}" for mistake in mistakes)
    raise SettingsError(f"{os.fspath(path)} has {len(mistakes)} mistake(s):{listed}")


def _refuse_unknown(
    given: dict[str, Any], known: Any, prefix: str, what: str, mistakes: list[str]
) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else "known: " + ", ".join(known)
            mistakes.append(f"{prefix}{name}: there is no such {what}; {hint}")


def _section(kind: Any, section: str, given: Any, folder: str, mistakes: list[str]) -> Any:
    if not isinstance(given, dict):
        mistakes.append(f"{section}: is {given!r}; it needs to be a section [{section}]")
        return None
    keys = {key.name: key for key in dataclasses.fields(kind)}
    _refuse_unknown(given, keys, f"{section}.", "key", mistakes)
    values = {}
    for name, key in keys.items():
        check: _Check = key.metadata["check"]
        if name not in given:
            if key.default is MISSING:
                mistakes.append(f"{section}.{name}: is missing; it needs {check.allowed}")
            continue
        try:
            values[name] = check.convert(given[name], folder)
        except ValueError as error:
            why = f"{error}; it" if str(error) else "it"
            mistakes.append(f"{section}.{name}: is {given[name]!r}; {why} needs {check.allowed}")
    try:
        return kind(**values)
    except TypeError:  # A key is missing, and told of above.
        return None


def _sections(
    kind: Any, section: str, given: Any, folder: str, mistakes: list[str]
) -> tuple[Any, ...]:
    """Read sections that may stand there several times."""
    if not isinstance(given, list):
        mistakes.append(f"{section}: needs double brackets, [[{section}]]; it may be repeated")
        return ()
    return tuple(
        _section(kind, f"{section}[{i}]", one, folder, mistakes) for i, one in enumerate(given)
    )


def _contradictions(job: JobSettings) -> list[str]:
    """Find what each key allows and the others do not."""
    found: list[str] = []

    def need(condition: bool, message: str) -> None:
        if not condition:
            found.append(message)

    model, public, schedule = job.model, job.public, job.schedule
    if model.kind == "perceptron":
        need(model.layer_sizes is not None, "model.layer_sizes: is missing; a perceptron needs it")
        need(model.weights is not None, "model.weights: is missing; a perceptron needs it")
        need(model.entry_point is None, 'model.entry_point: needs model.kind = "torch", or to go')
        if model.layer_sizes is not None:
            need(model.layer_sizes[-1] > 1, "model.layer_sizes: needs at least 2 classes, the last")
    else:
        need(model.entry_point is not None, "model.entry_point: is missing; torch needs it")
        need(
            model.layer_sizes is None, "model.layer_sizes: torch models bring their own; leave out"
        )
        need(model.dtype is None, "model.dtype: torch models bring their own; leave it out")
        need(
            job.run.block_size is None,
            "run.block_size: a torch model has its own block_size; give it there",
        )
    if schedule.rounds == "plan":
        given = [
            name
            for name in ("clipping_norm", "step_size", "damping")
            if getattr(schedule, name) is not None
        ]
        given += [
            name for name in ("momentum", "averaging", "curvature_share") if getattr(schedule, name)
        ]
        given += ["refresh_curvature"] * schedule.refresh_curvature
        need(
            not given,
            f"schedule.{', schedule.'.join(given)}: chosen by the plan; leave out, or give "
            "schedule.rounds as a number",
        )
        need(
            public.labels is not None or public.surrogate == "rehearsals",
            "public.labels: is missing; a plan needs it",
        )
        need(
            public.surrogate != "rehearsals" or bool(job.rehearsal),
            'public.surrogate: "rehearsals" needs at least one section [[rehearsal]]',
        )
        need(public.curvature != "identity", "public.curvature: a plan needs one; not identity")
        need(
            model.kind == "perceptron",
            "schedule.rounds: plans are made for perceptrons; give a torch model its rounds",
        )
        need(
            job.private.groups is None,
            "schedule.rounds: plans are made for records, not users; with private.groups give "
            "rounds as a number",
        )
        need(
            job.projection.kind == "none",
            "schedule.rounds: plans are made without a projection; give rounds as a number, or "
            'projection.kind = "none", with schedule.subspaces for a plan to choose from',
        )
    else:
        for name in ("clipping_norm", "step_size", "damping"):
            need(
                getattr(schedule, name) is not None,
                f"schedule.{name}: is missing; without a plan it needs a finite number above 0",
            )
        need(not job.rehearsal, 'rehearsal: is for a plan, schedule.rounds = "plan"')
        need(
            not schedule.subspaces,
            "schedule.subspaces: are for a plan to choose from; with rounds as a number give "
            'projection.kind = "subspace"',
        )
    need(
        not (schedule.refresh_curvature and schedule.curvature_share),
        "schedule.curvature_share: private curvature is paid for once and kept for all rounds; it "
        "needs schedule.refresh_curvature = false",
    )
    if public.curvature != "identity":
        need(
            public.features is not None,
            f"public.features: is missing; a {public.curvature} curvature needs public records",
        )
    need(
        public.labels is None or public.features is not None,
        "public.features: is missing, while public.labels is there",
    )
    need(
        (public.surrogate == "records")
        == (public.surrogate_features is not None)
        == (public.surrogate_labels is not None),
        "public.surrogate_features, public.surrogate_labels: both belong to public.surrogate = "
        '"records", and to nothing else',
    )
    need(
        public.surrogate in ("images", "tabular") or public.surrogate_keeps == SURROGATE_KEEPS,
        "public.surrogate_keeps: is of drawn shifts; other records are as they are",
    )
    need(
        public.image_shape is None
        or (public.surrogate == "images" and len(public.image_shape) == 2),
        'public.image_shape: needs two integers, and public.surrogate = "images"',
    )
    need(
        public.groups is None or public.surrogate == "tabular",
        'public.groups: needs public.surrogate = "tabular"',
    )
    projection = job.projection
    need(
        (projection.kind == "none") == (projection.n_components is None),
        f"projection.n_components: is {'missing' if projection.n_components is None else 'there'} "
        f'beside projection.kind = "{projection.kind}"; srht and subspace need it, none does not',
    )
    if projection.kind == "srht":
        need(
            public.curvature in ("dense", "identity"),
            f"public.curvature: is {public.curvature!r}, which needs layers; behind an srht it "
            "needs dense or identity",
        )
    if projection.kind == "subspace" or schedule.subspaces:
        key = "schedule.subspaces" if schedule.subspaces else "projection.kind"
        need(
            public.curvature == "kronecker",
            f"{key}: a subspace is whitened by kronecker curvature; public.curvature is "
            f"{public.curvature!r}",
        )
        need(
            public.surrogate == "images",
            f"{key}: a subspace is learnt from moves of images, which no others are drawn for; "
            f"public.surrogate is {public.surrogate!r}",
        )
        need(
            model.kind == "perceptron",
            f"{key}: subspaces are learnt for perceptrons; in Python for any layered model",
        )
        need(
            public.features is not None and public.labels is not None,
            f"{key}: a subspace is learnt from public.features and public.labels; both are needed",
        )
        need(
            not schedule.curvature_share,
            "schedule.curvature_share: a subspace is whitened by public curvature; leave it out",
        )
    need(
        job.private.max_records_per_user is None or job.private.groups is not None,
        "private.max_records_per_user: needs private.groups",
    )
    return found


# --- Explaining ---------------------------------------------------------------------------------


def explain() -> str:
    """Describe every section and key of a job file, as text.

    Returns
    -------
    str
    """
    lines = [
        "A job file is TOML. Paths are relative to it; ${NAME} stands for an environment variable.",
    ]
    for kind in (*_SECTIONS.values(), *_REPEATED.values()):
        section, _, summary = (kind.__doc__ or "").partition(": ")
        lines += ["", f"{section}  {summary.strip()}"]
        for key in dataclasses.fields(kind):
            check: _Check = key.metadata["check"]
            default = "required" if key.default is MISSING else _default(key.default)
            text = f"{check.allowed} ({default})"
            if key.metadata["text"]:
                text += f": {key.metadata['text']}"
            lines += textwrap.wrap(
                text,
                96,
                initial_indent=f"  {key.name:<21} ",
                subsequent_indent=" " * 24,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    return "optional" if value is None else f"default {json.dumps(value)}"
