"""PhysioNet Challenge 2012: two days of intensive care, and whether the patient lived."""

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qexp.datasets._locate import Source

__all__ = ["IcuStays", "load_physionet2012"]

_SOURCE = Source(
    title="PhysioNet Challenge 2012",
    folder="physionet2012",
    publisher="PhysioNet (physionet.org/content/challenge-2012/1.0.0)",
)

# fmt: off
_SERIES = (
    "ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "DiasABP",
    "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent", "Mg",
    "NIDiasABP", "NIMAP", "NISysABP", "Na", "PaCO2", "PaO2", "Platelets", "RespRate", "SaO2",
    "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC", "Weight", "pH",
)
# fmt: on
_STATISTICS = ("last", "min", "max", "mean", "count")
_DESCRIPTORS = ("Age", "Gender", "Height", "ICUType")
_ICU_TYPES = (1, 2, 3, 4)

# Every variable has a code; the weight at admission, which shares its name with the series, has
# the last one.
_CODES = {name.encode(): code for code, name in enumerate(_SERIES + _DESCRIPTORS)}
_WEIGHT = _CODES[b"Weight"]
_ADMISSION_WEIGHT = len(_CODES)
_VARIABLES = len(_CODES) + 1
_IGNORED = -1

_MINUTES = {b"%02d:%02d" % divmod(minute, 60): minute for minute in range(48 * 60 + 1)}
_LARGEST = 999_999_999  # of any whole number in the outcomes, record numbers included
_OUTCOME_HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"


@dataclass(frozen=True, eq=False)
class IcuStays:
    """Intensive-care stays, one a row, in the order of their record numbers.

    Attributes
    ----------
    features
        Shape (n, 193), float64, NaN for missing: of each of the 37 time series the last, least,
        greatest and mean value and the number of values (0 if none), then Age (years), Gender
        (0 female, 1 male), Height (cm), Weight (kg, at admission) and four 0/1 columns for the
        type of the unit.
    feature_names
        The 193 names, such as ``"HR last"``, ``"Age"``, ``"ICUType=2"``.
    record_ids
        Shape (n,), int64.
    in_hospital_death
        Shape (n,), uint8: 1 died in hospital, 0 left it alive.
    icu_type
        Shape (n,), uint8: 1 coronary care, 2 cardiac surgery recovery, 3 medical, 4 surgical
        (0 not recorded).
    saps_i, sofa
        Severity scores, shape (n,), int64, -1 for not recorded.
    length_of_stay
        Days in hospital, shape (n,), int64, -1 for not recorded.
    survival
        Days from admission to the unit until death, shape (n,), int64, -1 if no death is recorded.
    """

    features: NDArray[np.float64]
    feature_names: tuple[str, ...]
    record_ids: NDArray[np.int64]
    in_hospital_death: NDArray[np.uint8]
    icu_type: NDArray[np.uint8]
    saps_i: NDArray[np.int64]
    sofa: NDArray[np.int64]
    length_of_stay: NDArray[np.int64]
    survival: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Rows:
    """One stay's rows in file order: variable codes, minutes since admission, values."""

    record_id: int
    code: NDArray[np.int64]
    minute: NDArray[np.int64]
    value: NDArray[np.float64]


def load_physionet2012(
    set_name: Literal["a", "b"],
    root: str | os.PathLike[str] | None = None,
    hours: float = 48,
) -> IcuStays:
    """Read a set of the challenge from ``set-X.tar.gz`` and ``Outcomes-X.txt``.

    The archive is read as a stream, and nothing is written to disk. What the data leave open is
    settled so:

    * a negative or non-finite value is missing: -1 means "not recorded", and no variable can be
      negative (the temperatures below zero are empty Fahrenheit fields, converted). All other
      values are kept as they are, implausible ones too;
    * rows with an empty or unknown variable name are left out;
    * the first Weight row at 00:00 is the weight at admission, every other one belongs to the
      series;
    * rows repeated at one time all count, and the last one in the file is the "last";
    * a stay without time series has missing values and counts of 0;
    * a unit type other than 1 to 4 is missing.

    Parameters
    ----------
    set_name
        ``"a"`` or ``"b"``, 4,000 stays each.
    root
        The folder that holds ``physionet2012/``; by default that in the environment variable
        ``QEXP_DATA``.
    hours
        Rows up to and with this time since admission count, 0 to 48.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If an argument is not allowed, a file is damaged, or records and outcomes do not match.
        The messages name records and lines, never a value.

    References
    ----------
    I. Silva, G. Moody, D. J. Scott, L. A. Celi, R. G. Mark, "Predicting in-hospital mortality of
    ICU patients: the PhysioNet/Computing in Cardiology Challenge 2012", Computing in Cardiology
    39, 2012.
    """
    if set_name not in ("a", "b"):
        raise ValueError(f"set_name must be 'a' or 'b', got {set_name!r}")
    if not 0 <= hours <= 48:
        raise ValueError(f"hours must lie in [0, 48], got {hours!r}")
    archive = _SOURCE.find(root, f"set-{set_name}.tar.gz")
    outcome_path = _SOURCE.find(root, f"Outcomes-{set_name}.txt")
    outcomes = _read_outcomes(outcome_path)
    stays = sorted(_read_archive(archive), key=lambda stay: stay.record_id)
    record_ids = np.array([stay.record_id for stay in stays], dtype=np.int64)
    if not np.array_equal(record_ids, outcomes[:, 0]):
        unmatched = len(np.setxor1d(record_ids, outcomes[:, 0]))
        raise ValueError(
            f"{archive}: its {len(record_ids)} records and the {len(outcomes)} rows of "
            f"{outcome_path.name} must match one for one; {unmatched} record numbers are in one "
            "of the two only"
        )
    features, icu_type = _summarise(stays, 60 * hours)
    return IcuStays(
        features=features,
        feature_names=_feature_names(),
        record_ids=record_ids,
        in_hospital_death=outcomes[:, 5].astype(np.uint8),
        icu_type=icu_type,
        saps_i=outcomes[:, 1].copy(),
        sofa=outcomes[:, 2].copy(),
        length_of_stay=outcomes[:, 3].copy(),
        survival=outcomes[:, 4].copy(),
    )


def _feature_names() -> tuple[str, ...]:
    series = [f"{name} {statistic}" for name in _SERIES for statistic in _STATISTICS]
    units = [f"ICUType={kind}" for kind in _ICU_TYPES]
    return (*series, "Age", "Gender", "Height", "Weight", *units)


def _read_outcomes(path: Path) -> NDArray[np.int64]:
    """Return the six outcome columns in the order of the record numbers."""
    header, *lines = path.read_text(encoding="ascii", errors="replace").splitlines() or [""]
    if header != _OUTCOME_HEADER:
        raise ValueError(f"{path}: the first line must be {_OUTCOME_HEADER}")
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            row = [int(field) for field in line.split(",")]
        except ValueError:
            row = []
        if len(row) != 6 or row[5] not in (0, 1) or max(map(abs, row)) > _LARGEST:
            raise ValueError(
                f"{path}: line {number} must be six whole numbers, the last of them 0 or 1"
            )
        rows.append(row)
    outcomes = np.array(rows, dtype=np.int64).reshape(-1, 6)
    outcomes = outcomes[np.argsort(outcomes[:, 0], kind="stable")]
    if np.any(outcomes[1:, 0] == outcomes[:-1, 0]):
        raise ValueError(f"{path}: a record number appears twice")
    return outcomes


def _read_archive(path: Path) -> Iterator[_Rows]:
    seen: set[int] = set()
    try:
        with gzip.open(path) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                file = archive.extractfile(member) if name.suffix == ".txt" else None
                if file is None:
                    continue
                if not re.fullmatch("[0-9]{1,9}", name.stem):
                    raise ValueError(f"{path}: {name} is not named after a record number")
                record_id = int(name.stem)
                if record_id in seen:
                    raise ValueError(f"{path}: record {record_id} appears twice")
                seen.add(record_id)
                try:
                    yield _parse(record_id, file.read())
                except ValueError as error:
                    raise ValueError(f"{path}: {name}: {error}") from None
            plain.read()  # gzip compares its checksum at the very end only
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path}: not a complete .tar.gz archive ({error})") from error


def _parse(record_id: int, raw: bytes) -> _Rows:
    head = b"Time,Parameter,Value\n00:00,RecordID,%d\n" % record_id
    if not raw.startswith(head):
        raise ValueError("must begin with Time,Parameter,Value and a row with its RecordID")
    if not raw.endswith(b"\n"):
        raise ValueError("ends within a line")
    body = raw[len(head) :]
    fields = body.replace(b"\n", b",").split(b",")[:-1]
    if len(fields) != 3 * body.count(b"\n"):
        raise ValueError("a row does not have three fields")
    try:
        minute = np.array([_MINUTES[time] for time in fields[0::3]], dtype=np.int64)
    except KeyError:
        raise ValueError("a time is not between 00:00 and 48:00") from None
    code = np.array([_CODES.get(name, _IGNORED) for name in fields[1::3]], dtype=np.int64)
    try:
        value = np.array([float(text) for text in fields[2::3]], dtype=np.float64)
    except ValueError:
        raise ValueError("a value is not a number") from None
    admission = np.flatnonzero((code == _WEIGHT) & (minute == 0))[:1]
    code[admission] = _ADMISSION_WEIGHT
    return _Rows(record_id, code, minute, value)


def _summarise(
    stays: list[_Rows], last_minute: float
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return the features and the unit types of all stays."""
    cell, minute, value = (
        np.concatenate(parts) if stays else np.empty(0)
        for parts in (
            [np.where(s.code < 0, -1, i * _VARIABLES + s.code) for i, s in enumerate(stays)],
            [s.minute for s in stays],
            [s.value for s in stays],
        )
    )
    kept = (cell >= 0) & np.isfinite(value) & (value >= 0) & (minute <= last_minute)
    cell, minute, value = cell[kept], minute[kept], value[kept]
    order = np.lexsort((minute, cell))  # stable: rows at one time stay in file order
    cell, value = cell[order], value[order]
    start = np.flatnonzero(np.diff(cell, prepend=-1))
    count = np.diff(start, append=len(cell))

    table = np.full((len(stays) * _VARIABLES, len(_STATISTICS)), np.nan)
    table[:, _STATISTICS.index("count")] = 0
    if len(start):
        table[cell[start]] = np.column_stack(
            [
                value[start + count - 1],
                np.minimum.reduceat(value, start),
                np.maximum.reduceat(value, start),
                np.add.reduceat(value, start) / count,
                count,
            ]
        )
    by_stay = table.reshape(len(stays), _VARIABLES, len(_STATISTICS))

    series = by_stay[:, : len(_SERIES)].reshape(len(stays), len(_SERIES) * len(_STATISTICS))
    age, gender, height, unit, weight = by_stay[:, len(_SERIES) :, _STATISTICS.index("last")].T
    is_unit = unit[:, None] == np.array(_ICU_TYPES)
    indicators = np.where(is_unit.any(axis=1, keepdims=True), is_unit, np.nan)
    features = np.column_stack([series, age, gender, height, weight, indicators])
    return features, (is_unit @ np.array(_ICU_TYPES)).astype(np.uint8)
