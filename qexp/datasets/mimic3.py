"""MIMIC-III v1.4: adults' first intensive-care stays, summarised from the published CSV tables.

The large tables (CHARTEVENTS: 330 million rows, 33 GB of text) are streamed: each is read once, in
blocks, from its compressed file, joined with the stays, filtered and aggregated as it passes, and
nothing is written to disk. DuckDB does that. Polars streams compressed files, too, as fast and in
as little memory; DuckDB was preferred because it enforces a limit (``memory_limit``) where Polars
merely tends to need little, and because it can be told never to spill private rows to disk.
Figures: ``docs/mimic.md``.

Privacy. A stay's row depends on the rows of that patient and on constants of this module: nothing
is imputed, centred or scaled here, ties and order are settled within the stay, and sums are taken
over whole numbers, so that neither threads nor neighbours move a bit. Impute and scale by public
stays alone (`qexp.datasets.standardise`). A patient has one row, so that "one record more or less"
means one patient. No message tells of a value: where DuckDB's would quote a line of a damaged
file, only the file's name and the line's number are passed on. That said, how many stays there are
and how long reading takes are not hidden from whoever runs this.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qexp.datasets._locate import Source

__all__ = ["MimicStays", "load_mimic3"]

_TITLE: Final = "MIMIC-III v1.4"
_PUBLISHER: Final = (
    "PhysioNet (physionet.org/content/mimiciii/1.4, for credentialed users; an open sample of 100 "
    "patients: physionet.org/content/mimiciii-demo/1.4)"
)

_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "PATIENTS": ("SUBJECT_ID", "GENDER", "DOB"),
    "ADMISSIONS": ("HADM_ID", "DEATHTIME", "ADMISSION_TYPE", "HOSPITAL_EXPIRE_FLAG"),
    "ICUSTAYS": ("SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "FIRST_CAREUNIT", "INTIME", "OUTTIME"),
    "CHARTEVENTS": ("ROW_ID", "HADM_ID", "ITEMID", "CHARTTIME", "VALUENUM", "ERROR"),
    "LABEVENTS": ("ROW_ID", "HADM_ID", "ITEMID", "CHARTTIME", "VALUENUM"),
    "OUTPUTEVENTS": ("ROW_ID", "HADM_ID", "ITEMID", "CHARTTIME", "VALUE", "ISERROR"),
}
_EVENTS: Final = ("CHARTEVENTS", "LABEVENTS", "OUTPUTEVENTS")

_ADULT_YEARS: Final = 18
# Dates of birth of those over 89 are shifted to 300 years before; their median age is 91.4.
_OLDEST_YEARS: Final = 89
_YEARS_OF_THE_OLDEST: Final = 91.4
# A stay's first laboratory values are those that led to it.
_LABORATORY_LEAD_HOURS: Final = 6
_LONG_STAY_DAYS: Final = 3
_MOST_HOURS: Final = 240
# Sums are over whole multiples of this part of a unit: the order of their terms does not matter.
_PARTS: Final = 10_000

ADMISSION_TYPES: Final = ("ELECTIVE", "EMERGENCY", "URGENT")
CARE_UNITS: Final = ("CCU", "CSRU", "MICU", "SICU", "TSICU")

_SUMMARY: Final = ("min", "max", "mean", "last")


@dataclass(frozen=True)
class _Item:
    """An item of a table; its values times `factor` plus `offset` are in the variable's unit."""

    table: str
    ids: tuple[int, ...]
    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class _Variable:
    """What is measured: values out of [low, high] are slips of the pen or the machine."""

    name: str
    unit: str
    low: float
    high: float
    items: tuple[_Item, ...]
    statistics: tuple[str, ...] = _SUMMARY


def _chart(*ids: int, factor: float = 1.0, offset: float = 0.0) -> _Item:
    return _Item("CHARTEVENTS", ids, factor, offset)


def _lab(*ids: int) -> _Item:
    return _Item("LABEVENTS", ids)


def _output(*ids: int, factor: float = 1.0) -> _Item:
    return _Item("OUTPUTEVENTS", ids, factor)


# Items below 220000 of CHARTEVENTS, and 40000 to 49999 of OUTPUTEVENTS, are of CareVue, the others
# of MetaVision. Where an item has several conversions, ranges let one of them pass at most.
# fmt: off
_VARIABLES: Final = (
    _Variable("Heart rate", "1/min", 1, 350, (_chart(211, 220045),)),
    _Variable("Systolic pressure", "mmHg", 1, 375,
              (_chart(51, 442, 455, 6701, 220050, 220179, 225309),)),
    _Variable("Diastolic pressure", "mmHg", 1, 375,
              (_chart(8368, 8440, 8441, 8555, 220051, 220180, 225310),)),
    _Variable("Mean pressure", "mmHg", 14, 330,
              (_chart(52, 443, 456, 6702, 220052, 220181, 225312),)),
    _Variable("Respiratory rate", "1/min", 1, 70, (_chart(615, 618, 220210, 224690),)),
    _Variable("Temperature", "°C", 26, 45,
              (_chart(676, 223762), _chart(678, 223761, factor=5 / 9, offset=-160 / 9))),
    _Variable("Oxygen saturation", "%", 1, 100, (_chart(646, 220277),)),
    # FiO2 Set and Inspired O2 Fraction come as fractions; the latter as percentages, too.
    _Variable("Inspired oxygen", "%", 21, 100,
              (_chart(190, 223835, factor=100.0), _chart(3420, 3422, 223835))),
    _Variable("GCS eyes", "points", 1, 4, (_chart(184, 220739),)),
    _Variable("GCS motor", "points", 1, 6, (_chart(454, 223901),)),
    _Variable("GCS verbal", "points", 1, 5, (_chart(723, 223900),)),
    _Variable("Weight", "kg", 20, 300,
              (_chart(762, 763, 224639, 226512), _chart(226531, factor=0.45359237))),
    _Variable("Height", "cm", 100, 240,
              (_chart(226730), _chart(920, 1394, 226707, factor=2.54)), ("last",)),
    _Variable("Glucose", "mg/dL", 10, 2000,
              (_chart(807, 811, 1529, 3744, 3745, 220621, 225664, 226537), _lab(50809, 50931))),
    _Variable("Albumin", "g/dL", 0.6, 6, (_lab(50862),)),
    _Variable("Alkaline phosphatase", "IU/L", 1, 4000, (_lab(50863),)),
    _Variable("ALT", "IU/L", 1, 11000, (_lab(50861),)),
    _Variable("AST", "IU/L", 1, 22000, (_lab(50878),)),
    _Variable("Anion gap", "mEq/L", 1, 55, (_lab(50868),)),
    _Variable("Bicarbonate", "mEq/L", 1, 66, (_lab(50882),)),
    _Variable("Bilirubin", "mg/dL", 0.1, 66, (_lab(50885),)),
    _Variable("Chloride", "mEq/L", 50, 175, (_lab(50806, 50902),)),
    _Variable("Creatinine", "mg/dL", 0.1, 60, (_lab(50912),)),
    _Variable("Hematocrit", "%", 1, 75, (_lab(50810, 51221),)),
    _Variable("Hemoglobin", "g/dL", 1, 25, (_lab(50811, 51222),)),
    _Variable("INR", "ratio", 0.5, 50, (_lab(51237),)),
    _Variable("Lactate", "mmol/L", 0.1, 33, (_lab(50813),)),
    _Variable("Magnesium", "mg/dL", 0.1, 20, (_lab(50960),)),
    _Variable("PaCO2", "mmHg", 1, 200, (_lab(50818),)),
    _Variable("PaO2", "mmHg", 1, 770, (_lab(50821),)),
    _Variable("Partial thromboplastin time", "s", 10, 150, (_lab(51275),)),
    _Variable("pH", "pH", 6.3, 8.4, (_lab(50820),)),
    _Variable("Phosphate", "mg/dL", 0.1, 20, (_lab(50970),)),
    _Variable("Platelets", "K/uL", 1, 2200, (_lab(51265),)),
    _Variable("Potassium", "mEq/L", 0.5, 15, (_lab(50822, 50971),)),
    _Variable("Prothrombin time", "s", 5, 150, (_lab(51274),)),
    _Variable("Sodium", "mEq/L", 50, 225, (_lab(50824, 50983),)),
    _Variable("Urea nitrogen", "mg/dL", 1, 275, (_lab(51006),)),
    _Variable("White cells", "K/uL", 0.1, 1000, (_lab(51300, 51301),)),
    # What was poured in to rinse comes out again: it counts as negative.
    _Variable("Urine", "mL", 0, 2500,
              (_output(40055, 40056, 40057, 40069, 40085, 40094, 40096, 40405, 40428, 40473, 40651,
                       40715, 43175, 226557, 226558, 226559, 226560, 226561, 226563, 226564,
                       226565, 226567, 226584, 227489),
               _output(227488, factor=-1.0)),
              ("total", *_SUMMARY)),
)
# fmt: on


@dataclass(frozen=True, eq=False)
class MimicStays:
    """First intensive-care stays, one a patient and row, in the order of their numbers.

    Attributes
    ----------
    X
        Shape (n, d), float32, NaN for missing. Of each variable the least, greatest, mean and last
        value in the window (of urine also the total, of height the last alone) and whether it was
        measured (0 or 1); then age in years (91.4 for all over 89), gender (0 female, 1 male) and
        0/1 columns for the admission's type and the first care unit.
    feature_names
        The d names, such as ``"Heart rate last"``, ``"Age"``, ``"Care unit=MICU"``.
    units
        The d units, such as ``"1/min"``; ``"0/1"`` for indicators.
    stay_ids, subject_ids
        ICUSTAY_ID and SUBJECT_ID, shape (n,), int64.
    care_unit
        FIRST_CAREUNIT, shape (n,), str: CCU (coronary), CSRU (cardiac surgery), MICU (medical),
        SICU (surgical), TSICU (trauma and surgical). The group to move between.
    mort_hosp
        Shape (n,), uint8: 1 died during the hospital admission (HOSPITAL_EXPIRE_FLAG).
    mort_icu
        Shape (n,), uint8: 1 died (DEATHTIME) between INTIME and OUTTIME of this very stay. Not to
        be compared with figures for `mort_hosp`.
    los_over_3_days
        Shape (n,), uint8: 1 if OUTTIME is more than three days after INTIME.
    hours
        The length of the window.
    """

    X: NDArray[np.float32]
    feature_names: tuple[str, ...]
    units: tuple[str, ...]
    stay_ids: NDArray[np.int64]
    subject_ids: NDArray[np.int64]
    care_unit: NDArray[np.str_]
    mort_hosp: NDArray[np.uint8]
    mort_icu: NDArray[np.uint8]
    los_over_3_days: NDArray[np.uint8]
    hours: float

    def __len__(self) -> int:
        return len(self.X)


def load_mimic3(
    root: str | os.PathLike[str] | None = None,
    *,
    folder: str = "mimic3",
    hours: float = 24,
    minimum_hours: float | None = None,
    memory_limit: str = "1GB",
    threads: int | None = None,
) -> MimicStays:
    """Summarise the first `hours` of each adult's first intensive-care stay.

    Reads PATIENTS, ADMISSIONS, ICUSTAYS, CHARTEVENTS, LABEVENTS and OUTPUTEVENTS, each as
    ``.csv.gz`` or ``.csv``, with the name in upper or lower case. What the data leave open is
    settled so:

    * a patient's first stay is that of the earliest INTIME; who was under 18 then is left out, as
      are stays without INTIME or OUTTIME and those shorter than `minimum_hours`;
    * rows belong to a stay by HADM_ID and time: CHARTTIME from INTIME to `hours` later, and to
      OUTTIME at most; laboratory values also from the six hours before INTIME;
    * rows that are marked as errors (ERROR or ISERROR 1) are left out, as are values that are no
      numbers or out of their variable's range;
    * items of CareVue and MetaVision that mean the same make one variable; temperatures are in °C,
      weights in kg, heights in cm, inspired oxygen in percent;
    * of rows at one time, the one of the largest ROW_ID is "last";
    * laboratory values are those of LABEVENTS, not their copies in CHARTEVENTS, but for glucose,
      which is measured at the bedside as well.

    Parameters
    ----------
    root
        The folder that holds `folder`; by default that in the environment variable ``QEXP_DATA``.
    folder
        The folder with the tables: ``"mimic3"``, or wherever the open sample is.
    hours
        Length of the window, usually 24 or 48; more than 0, at most 240.
    minimum_hours
        Shorter stays are left out; by default `hours`. What is predicted must not have happened
        within the window: keep it at `hours` at least.
    memory_limit
        What DuckDB may take, such as ``"1GB"``. Nothing is spilled to disk.
    threads
        Of DuckDB; by default its own choice. The result is the same for any number.

    Raises
    ------
    ImportError
        If DuckDB (the extra ``qexp[mimic]``) is not installed.
    FileNotFoundError
        If a table is not there.
    MemoryError
        If `memory_limit` does not suffice.
    ValueError
        If an argument is not allowed, a table lacks a column or is damaged. Messages name files,
        columns and lines, never a value.

    References
    ----------
    A. E. W. Johnson, T. J. Pollard, L. Shen et al., "MIMIC-III, a freely accessible critical care
    database", Scientific Data 3, 160035, 2016. Items and ranges are close to those of A. E. W.
    Johnson, D. J. Stone, L. A. Celi, T. J. Pollard, "The MIMIC Code Repository", JAMIA 25, 2018,
    and S. Wang et al., "MIMIC-Extract", ACM CHIL, 2020, from which the names ``mort_hosp`` and
    ``mort_icu`` are, too.
    """
    if not 0 < hours <= _MOST_HOURS:
        raise ValueError(f"hours must be more than 0 and at most {_MOST_HOURS}, got {hours!r}")
    least = hours if minimum_hours is None else minimum_hours
    if not 0 <= least < np.inf:
        raise ValueError(f"minimum_hours must be 0 or more and finite, got {minimum_hours!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads!r}")
    source = Source(title=_TITLE, folder=folder, publisher=_PUBLISHER)
    tables = {}
    for name in _COLUMNS:
        stems = (name, name.lower())
        tables[name] = source.find(root, *(f"{s}{e}" for s in stems for e in (".csv.gz", ".csv")))
    with _Engine(memory_limit, threads) as engine:
        engine.choose_stays(tables, least)
        stays = engine.fetch("SELECT * FROM stays ORDER BY stay", None)
        for name in _EVENTS:
            engine.summarise(name, tables[name], hours)
        summary = engine.fetch(_MERGE, None)
    return _assemble(stays, summary, float(hours))


_CHOOSE = f"""
CREATE TEMP TABLE stays AS
WITH numbered AS (
    SELECT *, row_number() OVER (PARTITION BY subject_id ORDER BY intime, icustay_id) AS number
    FROM (
        SELECT TRY_CAST(subject_id AS BIGINT) AS subject_id, TRY_CAST(hadm_id AS BIGINT) AS hadm_id,
            TRY_CAST(icustay_id AS BIGINT) AS icustay_id, first_careunit AS care_unit,
            TRY_CAST(intime AS TIMESTAMP) AS intime, TRY_CAST(outtime AS TIMESTAMP) AS outtime
        FROM icustays
    )
    WHERE subject_id IS NOT NULL AND hadm_id IS NOT NULL AND icustay_id IS NOT NULL
        AND intime IS NOT NULL
), known AS (
    SELECT n.*, p.gender, a.admission_type, date_diff('day', p.dob, n.intime) / 365.2425 AS age,
        date_diff('second', n.intime, n.outtime) AS seconds,
        coalesce(a.died, FALSE) AS mort_hosp,
        coalesce(a.deathtime BETWEEN n.intime AND n.outtime, FALSE) AS mort_icu
    FROM numbered AS n
    JOIN (
        SELECT TRY_CAST(subject_id AS BIGINT) AS subject_id, any_value(gender) AS gender,
            min(TRY_CAST(dob AS TIMESTAMP)) AS dob
        FROM patients GROUP BY ALL
    ) AS p USING (subject_id)
    JOIN (
        SELECT TRY_CAST(hadm_id AS BIGINT) AS hadm_id, max(admission_type) AS admission_type,
            bool_or(TRY_CAST(hospital_expire_flag AS INTEGER) = 1) AS died,
            min(TRY_CAST(deathtime AS TIMESTAMP)) AS deathtime
        FROM admissions GROUP BY ALL
    ) AS a USING (hadm_id)
    WHERE n.number = 1
)
SELECT row_number() OVER (ORDER BY icustay_id) - 1 AS stay, subject_id, hadm_id, icustay_id,
    coalesce(care_unit, '') AS care_unit, coalesce(gender, '') AS gender,
    coalesce(admission_type, '') AS admission_type, intime, outtime, mort_hosp, mort_icu,
    CASE WHEN age > {_OLDEST_YEARS} THEN {_YEARS_OF_THE_OLDEST} ELSE age END AS age,
    seconds > {86_400 * _LONG_STAY_DAYS} AS long_stay
FROM known
WHERE age >= {_ADULT_YEARS} AND seconds >= ?
"""

# The filter on items comes first, on text: most rows are of no interest, and end there.
_SUMMARISE = """
INSERT INTO summary
SELECT stay, variable, min(value), max(value), count(*),
    sum(CAST(round(value * {parts}) AS BIGINT)), max(moment), arg_max(value, moment)
FROM (
    SELECT s.stay, i.variable, i.low, i.high,
        TRY_CAST(e.{value} AS DOUBLE) * i.factor + i."offset" AS value,
        (date_diff('second', s.intime, TRY_CAST(e.charttime AS TIMESTAMP)) + {origin}) * {step}
            + {place} + coalesce(TRY_CAST(e.row_id AS BIGINT), 0) % {rows} AS moment
    FROM {scan} AS e
    JOIN items AS i ON i.itemid = e.itemid
    JOIN stays AS s ON s.hadm_id = TRY_CAST(e.hadm_id AS BIGINT)
    WHERE i."table" = '{table}' AND {right}
        AND TRY_CAST(e.charttime AS TIMESTAMP) <= s.outtime
        AND date_diff('second', s.intime, TRY_CAST(e.charttime AS TIMESTAMP))
            BETWEEN -{lead} AND {last}
)
WHERE value BETWEEN low AND high
GROUP BY stay, variable
"""

_MERGE = """
SELECT stay, variable, min(low) AS low, max(high) AS high, sum(number)::BIGINT AS number,
    sum(total)::BIGINT AS total, arg_max("last", moment) AS "last"
FROM summary GROUP BY stay, variable
"""

_SUMMARY_TABLE = """
CREATE TEMP TABLE summary (stay BIGINT, variable INTEGER, low DOUBLE, high DOUBLE, number BIGINT,
    total BIGINT, moment BIGINT, "last" DOUBLE)
"""
_ITEM_TABLE = """
CREATE TEMP TABLE items ("table" VARCHAR, itemid VARCHAR, variable INTEGER, factor DOUBLE,
    "offset" DOUBLE, low DOUBLE, high DOUBLE)
"""

_ROWS: Final = 2**32


class _Engine:
    """A DuckDB of its own, in memory, that neither writes to disk nor speaks of values."""

    def __init__(self, memory_limit: str, threads: int | None) -> None:
        try:
            import duckdb
        except ImportError as error:
            raise ImportError(
                "load_mimic3 takes DuckDB: pip install 'qexp[mimic]'", name="duckdb"
            ) from error
        self._errors: tuple[type[Exception], type[Exception]] = (
            duckdb.Error,
            duckdb.OutOfMemoryException,
        )
        self._memory_limit = memory_limit
        settings: dict[str, Any] = {
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": False,
        }
        if threads is not None:
            settings["threads"] = threads
        self._connection = duckdb.connect(":memory:", config=settings)
        self._connection.execute("SET enable_progress_bar = false")
        # Joins as written: the events pass by tables of stays and items. By its guess of a
        # compressed file's length, the optimiser would hold the events in memory instead.
        self._connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        try:
            self._connection.execute("SET memory_limit = ?", [memory_limit])
        except duckdb.Error as error:
            self._connection.close()
            raise ValueError(
                f"memory_limit must be a size such as '1GB', got {memory_limit!r}"
            ) from error

    def __enter__(self) -> _Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def choose_stays(self, tables: Mapping[str, Path], minimum_hours: float) -> None:
        """Make the table of stays, and those of items and summaries."""
        for name in ("PATIENTS", "ADMISSIONS", "ICUSTAYS"):
            scan = _scan(name, tables[name])
            self._run(f"CREATE TEMP TABLE {name} AS SELECT * FROM {scan}", tables[name])
        self._run(_CHOOSE, None, [3600 * minimum_hours])
        self._run(_ITEM_TABLE, None)
        for rule in _rules():
            self._run("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)", None, list(rule))
        self._run(_SUMMARY_TABLE, None)

    def summarise(self, name: str, path: Path, hours: float) -> None:
        """Stream a table of events into the summaries."""
        columns = _COLUMNS[name]
        mark = columns[-1] if columns[-1] in ("ERROR", "ISERROR") else None
        lead = 3600 * _LABORATORY_LEAD_HOURS if name == "LABEVENTS" else 0
        query = _SUMMARISE.format(
            parts=_PARTS,
            value="VALUE" if "VALUE" in columns else "VALUENUM",
            table=name,
            right=f"coalesce(e.{mark}, '') <> '1'" if mark else "TRUE",
            scan=_scan(name, path),
            lead=lead,
            origin=3600 * _LABORATORY_LEAD_HOURS,  # of all tables, so that moments compare
            last=3600 * hours,
            step=len(_EVENTS) * _ROWS,
            place=_EVENTS.index(name) * _ROWS,
            rows=_ROWS,
        )
        self._run(query, path)

    def fetch(self, query: str, path: Path | None) -> dict[str, NDArray[Any]]:
        """Run a query; its columns as arrays."""
        columns: dict[str, NDArray[Any]] = self._run(query, path).fetchnumpy()
        return columns

    def _run(self, query: str, path: Path | None, values: list[Any] | None = None) -> Any:
        try:
            return self._connection.execute(query, values or [])
        except self._errors[0] as error:
            full = isinstance(error, self._errors[1])
            line = re.search(r"\bLine: (\d+)", str(error)) if path is not None else None
        # Out of the handler: the engine's own message may quote a patient's row, and must not
        # travel along as this one's context.
        if full:
            raise MemoryError(
                f"reading {path or 'the tables'} takes more than {self._memory_limit}; give "
                "load_mimic3 a larger memory_limit"
            )
        where = f" (line {line[1]})" if line else ""
        raise ValueError(
            f"{path or 'the tables'}: not a complete table of {_TITLE} as published, "
            f"comma-separated and of one number of fields a line{where}"
        )


def _rules() -> list[tuple[str, str, int, float, float, float, float]]:
    """Give table, item, variable, conversion and range of every item."""
    rules = []
    for number, variable in enumerate(_VARIABLES):
        for item in variable.items:
            ends = variable.low, variable.high
            low, high = ends if item.factor > 0 else (-ends[1], -ends[0])
            rules += [
                (item.table, str(i), number, item.factor, item.offset, low, high) for i in item.ids
            ]
    return rules


def _scan(name: str, path: Path) -> str:
    """Give the table function that streams a table: all columns as text, its dialect stated.

    Detecting the dialect from a sample fails where the first quoted comma comes later.
    """
    columns = _header(name, path)
    described = ", ".join(f"'{column}': 'VARCHAR'" for column in columns)
    quoted = str(path).replace("'", "''")
    return (
        f"read_csv('{quoted}', auto_detect = false, header = true, delim = ',', quote = '\"', "
        f"escape = '\"', columns = {{{described}}})"
    )


def _header(name: str, path: Path) -> list[str]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", errors="replace", newline="") as file:
            columns = [column.strip().upper() for column in next(csv.reader(file), [])]
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from error
    missing = [column for column in _COLUMNS[name] if column not in columns]
    if missing:
        raise ValueError(
            f"{path}: the first line must name the columns of {name} in {_TITLE}; it lacks "
            f"{', '.join(missing)}"
        )
    if len(set(columns)) != len(columns) or not all(re.fullmatch(r"\w+", c) for c in columns):
        raise ValueError(f"{path}: the first line must name each column once")
    return columns


def _assemble(
    stays: Mapping[str, NDArray[Any]], summary: Mapping[str, NDArray[Any]], hours: float
) -> MimicStays:
    """Put the summaries, a row a stay and variable, where they belong."""
    n = len(stays["stay"])
    cells = np.full((n, len(_VARIABLES), 5), np.nan)
    number = np.zeros((n, len(_VARIABLES)))
    row, column = summary["stay"].astype(np.intp), summary["variable"].astype(np.intp)
    total = summary["total"].astype(np.float64) / _PARTS
    order = ("min", "max", "mean", "last", "total")
    values = (summary["low"], summary["high"], total / summary["number"], summary["last"], total)
    for place, value in enumerate(values):
        cells[row, column, place] = value
    number[row, column] = summary["number"]

    names: list[str] = []
    units: list[str] = []
    parts: list[NDArray[Any]] = []

    def add(name: str, unit: str, part: NDArray[Any]) -> None:
        names.append(name)
        units.append(unit)
        parts.append(part.astype(np.float32))

    for place, variable in enumerate(_VARIABLES):
        for statistic in variable.statistics:
            part = cells[:, place, order.index(statistic)]
            add(f"{variable.name} {statistic}", variable.unit, part)
        add(f"{variable.name} measured", "0/1", number[:, place] > 0)
    gender = stays["gender"].astype(np.str_)
    care_unit = stays["care_unit"].astype(np.str_)
    admission = stays["admission_type"].astype(np.str_)
    add("Age", "years", stays["age"])
    add("Gender", "0/1", np.select([gender == "F", gender == "M"], [0.0, 1.0], np.nan))
    for kind in ADMISSION_TYPES:
        add(f"Admission={kind}", "0/1", admission == kind)
    for kind in CARE_UNITS:
        add(f"Care unit={kind}", "0/1", care_unit == kind)
    return MimicStays(
        X=np.column_stack(parts),
        feature_names=tuple(names),
        units=tuple(units),
        stay_ids=stays["icustay_id"].astype(np.int64),
        subject_ids=stays["subject_id"].astype(np.int64),
        care_unit=care_unit,
        mort_hosp=stays["mort_hosp"].astype(np.uint8),
        mort_icu=stays["mort_icu"].astype(np.uint8),
        los_over_3_days=stays["long_stay"].astype(np.uint8),
        hours=hours,
    )
