"""Surrogates of a private domain: public records, disturbed until a pretrained model errs on them.

What a fine-tuning schedule will be worth on private records can be tried out beforehand on public
records that look about as foreign to the pretrained model. No surrogate needs to resemble the
private domain: several different ones are averaged over, see :func:`qexp.planning.plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from qexp import _checks
from qexp._parallel import several_at_once, threads_for
from qexp.datasets import images
from qexp.measures import area_under_roc

__all__ = [
    "IMAGE_KINDS",
    "SURROGATE_KEEPS",
    "ImageShift",
    "OtherRecords",
    "Surrogate",
    "TableShift",
    "image_surrogates",
    "record_surrogates",
    "table_surrogates",
]

Surrogate = Callable[
    [NDArray[Any], NDArray[Any], np.random.Generator], tuple[NDArray[Any], NDArray[Any]]
]
"""A shift: records (n, d), their labels (n,) and a generator in; shifted records, labels out.

One that keeps all records in order, and differs from call to call, may have a number of `views`: as
many of each record are then drawn at most, where public records are few for the private ones.
"""

SURROGATE_KEEPS: Final = (0.4, 0.75)
"""What a shift leaves of accuracy above chance: 45-75 % right where a model knew nearly all."""

IMAGE_KINDS: Final = (
    ("rotation", "stretch", "blur"),
    ("shift", "shear", "contrast", "spread"),
)
"""What image shifts are made of, in two parts: one to learn from, the other to be tried on."""

_ALL_KINDS: Final = frozenset(kind for kinds in IMAGE_KINDS for kind in kinds)
_VARIANTS: Final = 8
_BISECTIONS: Final = 10
_CALIBRATION_RECORDS: Final = 1500


@dataclass(frozen=True, kw_only=True)
class ImageShift:
    """Turn, move, stretch, shear, blur images and change their contrast.

    Images differ among each other a little in how they are shifted, as a new domain's do.

    Attributes
    ----------
    image_shape : (int, int)
        Height and width.
    rotation : float
        Degrees, counterclockwise.
    shift : (float, float)
        Down and right, in parts of height and width.
    stretch : (float, float)
        Logarithms of the vertical and horizontal magnification.
    shear : float
    blur : float
        Standard deviation, in parts of the smaller side.
    contrast : float
        Logarithm of the factor about mid-grey.
    spread : float
        How much images differ in their turn, stretch and shear; 1 is much.
    seed : int
        Of these differences.
    low, high : float
        Values of an empty pixel and of a full one.
    """

    image_shape: tuple[int, int]
    rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    stretch: tuple[float, float] = (0.0, 0.0)
    shear: float = 0.0
    blur: float = 0.0
    contrast: float = 0.0
    spread: float = 0.0
    seed: int = 0
    low: float = 0.0
    high: float = 1.0

    def only(self, kinds: Iterable[str]) -> ImageShift:
        """Give the part of the shift that is of some kinds, out of `IMAGE_KINDS`."""
        kept = set(kinds)
        at_rest: dict[str, Any] = {
            f.name: f.default for f in fields(self) if f.name in _ALL_KINDS - kept
        }
        return replace(self, **at_rest)

    @property
    def views(self) -> int:
        """How many views of an image are worth drawing: they differ in how it is shifted."""
        return _VARIANTS // 2 if self.spread else 1

    def __call__(
        self, X: NDArray[Any], y: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Shift flat images (n, height · width)."""
        h, w = self.image_shape
        scaled = (X.astype(np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        moved = np.empty_like(scaled)
        variant = rng.integers(_VARIANTS, size=len(X))
        own = self.spread * np.random.default_rng(self.seed).standard_normal((_VARIANTS, 4))
        for v in range(_VARIANTS):
            rows = variant == v
            moved[rows] = scaled[rows] @ self._resampling(own[v])
        stack = moved.reshape(len(X), h, w)
        if self.blur > 0:
            stack = images.blur(stack, self.blur * min(h, w))
        if self.contrast:
            stack = images.contrast(stack, math.exp(self.contrast))
        shifted = stack.reshape(len(X), -1) * np.float32(self.high - self.low)
        return (shifted + np.float32(self.low)).astype(X.dtype, copy=False), y

    def _resampling(self, own: NDArray[np.float64]) -> Any:
        """Give the bilinear resampling as a sparse matrix from old pixels to new ones."""
        h, w = self.image_shape
        angle = math.radians(self.rotation + 10 * own[0])
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        shear = np.array([[1.0, 0.0], [self.shear + 0.15 * own[1], 1.0]])
        stretch = np.exp(-np.array(self.stretch) - 0.1 * own[2:])
        matrix = turn @ shear @ np.diag(stretch)
        centre = np.array([(h - 1) / 2, (w - 1) / 2])
        place = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
        moved = place.reshape(-1, 2) - centre - np.array(self.shift) * (h, w)
        source = moved @ matrix.T + centre
        first = np.floor(source).astype(np.int64)
        part = source - first
        rows, columns, values = [], [], []
        for down in (0, 1):
            for right in (0, 1):
                r, c = first[:, 0] + down, first[:, 1] + right
                weight = np.abs(1 - down - part[:, 0]) * np.abs(1 - right - part[:, 1])
                inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
                rows.append((r * w + c)[inside])
                columns.append(np.flatnonzero(inside))
                values.append(weight[inside])
        entries = np.concatenate(values).astype(np.float32)
        places = np.concatenate(rows), np.concatenate(columns)
        return sparse.csr_array((entries, places), shape=(h * w, h * w))


@dataclass(frozen=True, kw_only=True, eq=False)
class TableShift:
    """Scale features, move them, add noise, and thin out groups of records.

    Attributes
    ----------
    scale : ndarray of shape (d,)
        Factor about each feature's mean.
    offset, noise : ndarray of shape (d,)
        Added to each feature; standard deviation of noise added to it.
    centre : ndarray of shape (d,)
        Means.
    group : ndarray of shape (n,), optional
        A public column; records of its values are kept at the rates in `keep`.
    keep : dict, optional
    """

    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    noise: NDArray[np.float64]
    centre: NDArray[np.float64]
    group: NDArray[Any] | None = None
    keep: dict[Any, float] | None = None

    def __call__(
        self, X: NDArray[Any], y: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Shift records (n, d); records of thinned groups are left out."""
        shifted = self.centre + self.scale * (X - self.centre) + self.offset
        shifted += self.noise * rng.standard_normal(X.shape)
        shifted = shifted.astype(X.dtype, copy=False)
        if self.group is None or self.keep is None:
            return shifted, y
        if len(self.group) != len(X):
            raise ValueError(
                f"the group column has {len(self.group)} entries for {len(X)} records; it needs "
                "one a record"
            )
        rates = np.vectorize(self.keep.__getitem__, otypes=[float])(self.group)
        kept = rng.random(len(X)) < rates
        return shifted[kept], y[kept]


@dataclass(frozen=True, eq=False)
class OtherRecords:
    """Put public records of another domain in the place of those given.

    Such as one hospital unit's for a model of the others. That is a real shift, and closer to the
    task to come than a drawn one: curvature is of the records that the planner was given, gradients
    are of these.

    Attributes
    ----------
    X, y : array
        Public records that the model was not pretrained on, shape (m, d), and their labels.
    keep : dict, optional
        The share of a class's records that is kept, 0 to 1; those of other classes all are. How
        common a class is in private is seldom known: several of these may differ in it.
    """

    X: NDArray[Any]
    y: NDArray[Any]
    keep: dict[int, float] | None = None

    def __str__(self) -> str:
        """Name the shift without its records."""
        return f"OtherRecords({len(self.X)} records, keep={self.keep})"

    def __call__(
        self, X: NDArray[Any], y: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give these records, each kept at random by its class."""
        if self.X.shape[1:] != X.shape[1:]:
            raise ValueError(
                f"the other records have {self.X.shape[1:]} features and the public ones "
                f"{X.shape[1:]}; they need the same"
            )
        rates = np.ones(len(self.y))
        for label, rate in (self.keep or {}).items():
            rates[self.y == label] = rate
        kept = rng.random(len(self.y)) < rates
        return self.X[kept].astype(X.dtype, copy=False), self.y[kept]


def image_surrogates(
    model: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    image_shape: tuple[int, int] | None = None,
    count: int = 4,
    keeps: tuple[float, float] = SURROGATE_KEEPS,
    seed: int = 0,
) -> list[ImageShift]:
    """Draw image shifts, each as strong as leaves the model 45-75 % of the images, or so.

    A model that was trained on shifted images of its own errs less on a new domain; plan for it on
    shifts that leave it more, or on those that break the model that it was before.

    Parameters
    ----------
    model : qexp.models.MultilayerPerceptron or alike
        Pretrained; ``predict`` is asked.
    X : array, shape (n, height · width)
        Public images. The emptiest pixel's value is taken for the background.
    y : array, shape (n,)
        Their labels.
    image_shape : (int, int), optional
        Default: square.
    count : int
        How many.
    keeps : (float, float)
        The least and the most that a shift leaves of the model's accuracy above chance, shares in
        (0, 1); several shifts are spread between them.
    seed : int

    Returns
    -------
    list of ImageShift

    Raises
    ------
    ValueError
        If the images do not have the shape given, or are all of one value; if `keeps` is no range
        of shares.
    """
    features, labels = np.asarray(X), np.asarray(y)
    side = math.isqrt(features.shape[1])
    h, w = (side, side) if image_shape is None else image_shape
    if h * w != features.shape[1]:
        raise ValueError(
            f"records have {features.shape[1]} features, image_shape is {image_shape}; give "
            "image_shape=(height, width) with that many pixels, or, if they are no images, "
            'surrogate="tabular"'
        )
    low, high = float(features.min()), float(features.max())
    if not low < high:
        raise ValueError(f"all pixels of the public images are {low:g}; they need to differ")
    rng = np.random.default_rng(_checks.seed(seed))

    def draw() -> Callable[[float], ImageShift]:
        d = rng.standard_normal(8).tolist()
        own = int(rng.integers(2**31))

        def at(strength: float) -> ImageShift:
            s = strength
            return ImageShift(
                image_shape=(h, w),
                rotation=12 * s * d[0],
                shift=(0.04 * s * d[1], 0.04 * s * d[2]),
                stretch=(0.12 * s * d[3], 0.12 * s * d[4]),
                shear=0.15 * s * d[5],
                blur=0.03 * s * abs(d[6]),
                contrast=0.3 * s * d[7],
                spread=min(s, 1.0),
                seed=own,
                low=low,
                high=high,
            )

        return at

    shares = _kept_shares(_checks.count(count, "count"), keeps)
    drawn = [(draw(), share) for share in shares]
    with several_at_once(threads_for(model)) as each:
        return list(
            each(lambda one: _calibrated(one[0], model, features, labels, one[1], seed), drawn)
        )


def table_surrogates(
    model: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    group: ArrayLike | None = None,
    count: int = 4,
    keeps: tuple[float, float] = SURROGATE_KEEPS,
    seed: int = 0,
    score: Literal["accuracy", "auroc"] = "accuracy",
) -> list[TableShift]:
    """Draw shifts of tables: features scaled, moved and noised, groups of records thinned out.

    Parameters
    ----------
    model : qexp.models.MultilayerPerceptron or alike
        Pretrained; ``predict`` is asked.
    X : array, shape (n, d)
        Public records.
    y : array, shape (n,)
        Their labels.
    group : array, shape (n,), optional
        A public column, such as a region: each shift re-weights its values.
    count : int
        How many.
    keeps : (float, float)
        The least and the most that a shift leaves of the model's score above chance, shares in
        (0, 1); several shifts are spread between them.
    seed : int
    score : {"accuracy", "auroc"}
        What the shifts cost the model: accuracy above the commonest class's share, or, of two
        classes, area under the ROC curve above one half, which fits where one class is rare.

    Returns
    -------
    list of TableShift
    """
    features, labels = np.asarray(X), np.asarray(y)
    column = None if group is None else np.asarray(group)
    if column is not None and column.shape != (len(features),):
        raise ValueError(
            f"group has shape {column.shape}; it needs one entry for each of the {len(features)} "
            "public records"
        )
    centre = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    rng = np.random.default_rng(_checks.seed(seed))

    def draw() -> Callable[[float], TableShift]:
        d = rng.standard_normal((3, features.shape[1]))
        values = [] if column is None else np.unique(column).tolist()
        rates = rng.uniform(0.2, 1.0, len(values)).tolist()

        def at(strength: float) -> TableShift:
            s = strength
            return TableShift(
                scale=np.exp(0.3 * s * d[0]),
                offset=0.4 * s * d[1] * deviation,
                noise=0.3 * s * np.abs(d[2]) * deviation,
                centre=centre,
                group=column,
                keep=dict(zip(values, rates, strict=True)) if values else None,
            )

        return at

    return [
        _calibrated(
            draw(), model, features, labels, share, seed, whole=column is not None, score=score
        )
        for share in _kept_shares(_checks.count(count, "count"), keeps)
    ]


def record_surrogates(X: ArrayLike, y: ArrayLike) -> list[OtherRecords]:
    """Put public records of another domain in the place of those given.

    Of two classes, once each with the first and the second half as common as it is, and once with
    both as they are: how common the rare one is in private, such as deaths, is seldom known.

    Parameters
    ----------
    X : array, shape (m, d)
        Public records that the model was not pretrained on.
    y : array, shape (m,)
        Their labels.

    Returns
    -------
    list of OtherRecords

    Raises
    ------
    ValueError
        If there are not as many labels as records.
    """
    features, labels = _checks.labelled(X, y, ("X", "y"))
    classes = np.unique(labels).tolist()
    keeps: list[dict[int, float] | None] = [None]
    if len(classes) == 2:
        keeps = [{classes[1]: 0.5}, None, {classes[0]: 0.5}]
    return [OtherRecords(features, labels, keep) for keep in keeps]


def _kept_shares(count: int, keeps: tuple[float, float]) -> list[float]:
    least, most = keeps
    if not 0 < least <= most < 1:
        raise ValueError(f"keeps is {keeps}; it needs two shares in (0, 1), the smaller one first")
    if count == 1:
        return [(least + most) / 2]
    shares: list[float] = np.linspace(most, least, count).tolist()
    return shares


def _calibrated(
    at: Callable[[float], Any],
    model: Any,
    X: NDArray[Any],
    y: NDArray[Any],
    kept: float,
    seed: int,
    *,
    whole: bool = False,
    score: Literal["accuracy", "auroc"] = "accuracy",
) -> Any:
    """Find by bisection the strength that leaves the model that share of its score above chance."""
    if not whole:
        chosen = np.random.default_rng(seed).permutation(len(X))[:_CALIBRATION_RECORDS]
        X, y = X[chosen], y[chosen]

    def measured(X: NDArray[Any], y: NDArray[Any]) -> float:
        if score == "auroc":
            return area_under_roc(y, np.asarray(model.predict_proba(X))[:, 1])
        return float(np.mean(model.predict(X) == y))

    most = float(np.max(np.unique(y, return_counts=True)[1])) / len(y)
    chance, before = 0.5 if score == "auroc" else most, measured(X, y)
    target = chance + kept * max(before - chance, 0.0)
    weak, strong = 0.0, 8.0
    for _ in range(_BISECTIONS):
        middle = (weak + strong) / 2
        shifted, labels = at(middle)(X, y, np.random.default_rng(seed))
        if measured(shifted, labels) > target:
            weak = middle
        else:
            strong = middle
    return at(weak)
