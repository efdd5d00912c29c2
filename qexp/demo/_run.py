"""Run a demonstration: fine-tune privately, say what it cost and gained, write the release."""

from __future__ import annotations

import contextlib
import io
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from qexp import privacy
from qexp._files import atomic_write_bytes
from qexp._json import strict_json
from qexp._progress import progress_bar
from qexp.demo._task import Task, draw
from qexp.ledger import PrivacyLedger
from qexp.release import PrivateRelease

__all__ = ["Curve", "DemoResult", "run_demo"]

DataName = Literal["digits", "mnist-usps", "icu"]

_EPSILONS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# A draw from MNIST to USPS takes seconds, the others a fraction of one.
_DRAWS: Final[dict[DataName, int]] = {"digits": 5, "mnist-usps": 1, "icu": 5}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What releases at several ε reached, each of them a release of its own.

    Attributes
    ----------
    epsilons : tuple of float
    values : tuple of tuple of float
        The measure of each draw, by ε.
    delta : float
    epsilon_together : float
        What all releases of the demonstration cost together, at `delta`.
    n_releases : int
        How many these are, the main one with them.
    """

    epsilons: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    delta: float
    epsilon_together: float
    n_releases: int

    @property
    def warning(self) -> str:
        """Why nobody should publish such a curve of real private data."""
        return (
            f"Every point is a release of its own: the {self.n_releases} releases of this "
            f"demonstration together cost epsilon = {self.epsilon_together:.3g} at delta = "
            f"{self.delta:g}. With sensitive data, choose one epsilon and publish one point."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoResult:
    """What a demonstration found.

    Attributes
    ----------
    release : PrivateRelease
    before, private, ordinary : float
        The measure on the test records: of the pretrained model, of the release, and of ordinary
        fine-tuning, which is not private.
    curve : Curve or None
    folder : Path
        Where the files are.
    """

    release: PrivateRelease
    before: float
    private: float
    ordinary: float
    curve: Curve | None
    folder: Path


def run_demo(
    data: DataName = "digits",
    *,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    folder: str | os.PathLike[str] = "qexp-demo",
    seed: int = 0,
    plot: bool = True,
    report: Callable[[str], object] = print,
) -> DemoResult:
    """Pretrain on public records, fine-tune privately on others, report and write the result.

    Parameters
    ----------
    data : {"digits", "mnist-usps", "icu"}
        "digits" takes scikit-learn; the others take files found through ``QEXP_DATA``.
    epsilon, delta : float
        Privacy of the release.
    folder : path-like
        Made if need be. Gets ``release.npz``, ``certificate.json`` and, with `plot`,
        ``accuracy-epsilon.png``; each is written in one step.
    seed : int
        Of the split and of pretraining, public. The noise is always cryptographic.
    plot : bool
        Also draw the measure over several ε, which takes matplotlib.
    report : callable
        Called with each paragraph of the report.

    Returns
    -------
    DemoResult

    Raises
    ------
    ImportError
        If scikit-learn or matplotlib is needed and not installed.
    FileNotFoundError
        If a data set is not there.
    OSError
        If the folder cannot be written; this is noticed before the work starts.
    ValueError
        If an argument is not allowed.
    """
    if data not in get_args(DataName):
        raise ValueError(f"data is {data!r}; it needs to be one of {get_args(DataName)}")
    ledger = PrivacyLedger(target_epsilon=epsilon, target_delta=delta)
    _require_extras(data, plot=plot)
    with _output_folder(Path(folder)) as target:
        task = _task(data, seed)
        release = draw(task, epsilon, delta, ledger=ledger, progress=True)
        # From here on the budget is spent: the release is stored before anything can go wrong.
        release.save(target / "release.npz")
        certificate = strict_json(release.certificate(), indent=2) + "\n"
        atomic_write_bytes(target / "certificate.json", certificate.encode())

        before = task.value(task.model)
        private = task.value(task.model.with_weights(release.weights))
        ordinary = task.value(task.ordinary(task.model, task.private))
        for paragraph in _report(task, release, before, private, ordinary):
            report(paragraph)

        curve = None
        names = ["release.npz", "certificate.json"]
        if plot:
            curve = _curve(task, release, _DRAWS[data])
            report(_wrap(curve.warning))
            _plot(target / "accuracy-epsilon.png", task, curve, release, before, private, ordinary)
            names.append("accuracy-epsilon.png")
        report(f"Written to {target}: {', '.join(names)}.")
    return DemoResult(
        release=release,
        before=before,
        private=private,
        ordinary=ordinary,
        curve=curve,
        folder=target,
    )


def _task(data: DataName, seed: int) -> Task:
    if data == "digits":
        from qexp.demo.digits import digits_task

        return digits_task(seed)
    if data == "mnist-usps":
        from qexp.demo.mnist_usps import mnist_usps_task

        return mnist_usps_task(seed)
    from qexp.demo.icu import icu_task

    return icu_task(seed)


def _require_extras(data: DataName, *, plot: bool) -> None:
    needed = (["sklearn"] if data == "digits" else []) + (["matplotlib"] if plot else [])
    titles = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
    for module in needed:
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(
                f"this demonstration needs {titles[module]}, which is not installed: "
                'pip install "qexp[demo]"'
                + (" (or leave out the plot)" if module == "matplotlib" else ""),
                name=module,
            ) from error


@contextlib.contextmanager
def _output_folder(folder: Path) -> Iterator[Path]:
    """Make the folder and prove that it can be written to; take an empty one away on failure."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(f"{folder} is a file; give a folder") from None
        except OSError as error:
            raise type(error)(
                f"cannot make the folder {folder}: {error.strerror}; choose another folder"
            ) from error
        probe = folder / f".qexp-{os.getpid()}.probe"
        atomic_write_bytes(probe, b"qexp")
        probe.unlink()
        yield folder
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


# --- The report ------------------------------------------------------------------------------


def _wrap(text: str) -> str:
    return textwrap.fill(text, 88)


def _report(
    task: Task, release: PrivateRelease, before: float, private: float, ordinary: float
) -> Iterator[str]:
    yield _wrap(task.title[0].upper() + task.title[1:] + ".")
    n, n_test = release.n_records, len(task.private.y_test)
    rows = [
        ("pretrained, before", before, ""),
        (f"private, epsilon = {release.epsilon:g}", private, ""),
        ("ordinary fine-tuning", ordinary, "  not private, for comparison"),
    ]
    width = max(len(name) for name, _, _ in rows)
    yield "\n".join(
        [f"{task.measure_name[0].upper()}{task.measure_name[1:]} ({n_test} records):"]
        + [f"  {name:<{width}}  {_shown(task, value)}{note}" for name, value, note in rows]
    )
    if private <= before:
        yield _wrap(
            "This release does no better on the test records than the pretrained model: settings "
            "that are chosen on public records need not suit the private ones."
        )
    yield _wrap(release.statement)
    settings = task.settings
    yield _wrap(
        f"Public: {task.public}. Private: {n} records, of which only their number is public. "
        f"Damping {settings.damping:g}, clipping norm {settings.clipping_norm:g} and step size "
        f"{settings.step_size:g} were chosen {task.chosen}."
    )
    yield _wrap(
        f"Expected before the draw: {release.expected_utility_loss:.3g} lost in utility over "
        f"{n} records by drawing instead of maximising. Noise-to-signal ratio of the release: "
        f"{release.noise_to_signal:.2f} (0 is all data, 1 is all noise). Parameters: "
        f"{len(release.weights)}, drawn in {task.projection.n_components} dimensions."
    )


def _shown(task: Task, value: float) -> str:
    return f"{100 * value:.1f} %" if "accuracy" in task.measure_name else f"{value:.3f}"


# --- The curve -------------------------------------------------------------------------------


def _curve(task: Task, release: PrivateRelease, draws: int) -> Curve:
    values, mus = [], [release.mu]
    with progress_bar(len(_EPSILONS) * draws, "releases for the curve") as advance:
        for epsilon in _EPSILONS:
            found = []
            for _ in range(draws):
                point = draw(task, epsilon, release.delta)
                mus.append(point.mu)
                found.append(task.value(task.model.with_weights(point.weights)))
                advance(1)
            values.append(tuple(found))
    return Curve(
        epsilons=_EPSILONS,
        values=tuple(values),
        delta=release.delta,
        epsilon_together=privacy.epsilon(release.delta, privacy.compose_mu(mus)),
        n_releases=len(mus),
    )


def _plot(
    path: Path,
    task: Task,
    curve: Curve,
    release: PrivateRelease,
    before: float,
    private: float,
    ordinary: float,
) -> None:
    from qexp.demo._plot import accuracy_figure

    percent = "accuracy" in task.measure_name
    scale = 100.0 if percent else 1.0
    figure = accuracy_figure(
        curve.epsilons,
        [[scale * value for value in found] for found in curve.values],
        release=(release.epsilon, scale * private),
        before=scale * before,
        ordinary=scale * ordinary,
        delta=curve.delta,
        measure=f"{task.measure_name} (%)" if percent else task.measure_name,
        title=task.title,
        caption=curve.warning,
    )
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    atomic_write_bytes(path, image.getvalue())
