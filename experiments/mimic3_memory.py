"""Read made-up MIMIC-III tables of any size; report time and peak memory.

    python -m experiments.mimic3_memory /tmp/mimic --rows 30000000 --stays 40000

writes tables in the published schema with random contents into the folder (unless they are there),
reads them with `qexp.datasets.load_mimic3` in a process of its own and prints one JSON line. No
row tells of any patient: who dies is known by higher values, so that a model has something to
learn. `python -m experiments all` keeps such lines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from experiments.measurement import Line, Measurement, markdown_table
from qexp.datasets.mimic3 import CARE_UNITS

_CHART_ITEMS = (211, 220045, 51, 220050, 8368, 220051, 618, 220210, 223761, 678, 646, 220277)
_OTHER_ITEMS = tuple(range(2000, 2036))  # three in four rows are of no interest, as in the release
_DIED = "i % 9 // 8"


def write_tables(folder: Path, rows: int, stays: int) -> None:
    """Write tables with `rows` rows of CHARTEVENTS, spread at random over `stays` stays."""
    import duckdb

    folder.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(config={"memory_limit": "4GB", "threads": 2})
    connection.execute("SET preserve_insertion_order = false")

    def write(name: str, query: str) -> None:
        path = folder / f"{name}.csv.gz"
        if not path.exists():
            connection.execute(f"COPY ({query}) TO '{path}' (HEADER, QUOTE '\"', COMPRESSION gzip)")

    intime = "TIMESTAMP '2130-01-01' + INTERVAL (i % 10000) HOUR"
    write(
        "PATIENTS",
        "SELECT i AS ROW_ID, i AS SUBJECT_ID, CASE i % 2 WHEN 0 THEN 'F' ELSE 'M' END AS GENDER, "
        f"TIMESTAMP '2050-01-01' AS DOB FROM range(1, {stays + 1}) t(i)",
    )
    write(
        "ADMISSIONS",
        f"SELECT i AS ROW_ID, i AS SUBJECT_ID, 100000 + i AS HADM_ID, {intime} AS ADMITTIME, "
        f"{intime} + INTERVAL 9 DAY AS DISCHTIME, NULL AS DEATHTIME, "
        f"'EMERGENCY' AS ADMISSION_TYPE, {_DIED} AS HOSPITAL_EXPIRE_FLAG "
        f"FROM range(1, {stays + 1}) t(i)",
    )
    write(
        "ICUSTAYS",
        "SELECT i AS ROW_ID, i AS SUBJECT_ID, 100000 + i AS HADM_ID, 200000 + i AS ICUSTAY_ID, "
        f"{list(CARE_UNITS)}[1 + i % {len(CARE_UNITS)}] AS FIRST_CAREUNIT, {intime} AS INTIME, "
        f"{intime} + INTERVAL 4 DAY AS OUTTIME, "
        f"4.0 AS LOS FROM range(1, {stays + 1}) t(i)",
    )
    events = (
        f"WITH e AS (SELECT r, 1 + CAST(hash(r) % {stays} AS INTEGER) AS i, "
        "{items}[1 + CAST(hash(r, 1) % {n} AS INTEGER)] AS item, "
        "CAST(hash(r, 2) % 5760 AS INTEGER) AS m, "
        f"40 + hash(r, 3) % 800 / 10 + 10 * ({_DIED}) AS v "
        "FROM range(1, {rows} + 1) t(r)) "
    )

    def items(ids: tuple[int, ...], count: int) -> str:
        return events.format(items=list(ids), n=len(ids), rows=count)

    write(
        "CHARTEVENTS",
        items(_CHART_ITEMS + _OTHER_ITEMS, rows)
        + "SELECT r AS ROW_ID, i AS SUBJECT_ID, 100000 + i AS HADM_ID, 200000 + i AS ICUSTAY_ID, "
        f"item AS ITEMID, {intime} + INTERVAL (m) MINUTE AS CHARTTIME, CHARTTIME AS STORETIME, "
        "14000 + hash(r, 4) % 5000 AS CGID, v AS VALUE, v AS VALUENUM, 'bpm' AS VALUEUOM, "
        "0 AS WARNING, 0 AS ERROR, NULL AS RESULTSTATUS, NULL AS STOPPED FROM e",
    )
    write(
        "LABEVENTS",
        items((50912, 51006, 50983, 50971, 51301), rows // 12)
        + "SELECT r AS ROW_ID, i AS SUBJECT_ID, 100000 + i AS HADM_ID, item AS ITEMID, "
        f"{intime} + INTERVAL (m) MINUTE AS CHARTTIME, v AS VALUE, v AS VALUENUM, "
        "'mEq/L' AS VALUEUOM, NULL AS FLAG FROM e",
    )
    write(
        "OUTPUTEVENTS",
        items((40055, 226559), rows // 75)
        + "SELECT r AS ROW_ID, i AS SUBJECT_ID, 100000 + i AS HADM_ID, 200000 + i AS ICUSTAY_ID, "
        f"{intime} + INTERVAL (m) MINUTE AS CHARTTIME, item AS ITEMID, v AS VALUE, "
        "'ml' AS VALUEUOM, NULL AS STORETIME, NULL AS CGID, NULL AS STOPPED, NULL AS NEWBOTTLE, "
        "NULL AS ISERROR FROM e",
    )


def measured(folder: Path, rows: int, stays: int, memory_limit: str = "1GB") -> Line:
    """Write tables and read them in a process of its own: one that writes has a peak of its own."""
    write_tables(folder, rows, stays)
    command = [sys.executable, "-m", "experiments.mimic3_reading", str(folder), memory_limit]
    line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"chartevents_mib": (folder / "CHARTEVENTS.csv.gz").stat().st_size // 2**20, **line}


def _run(rows: int, stays: int) -> Line:
    with tempfile.TemporaryDirectory() as folder:
        return measured(Path(folder, "mimic3"), rows, stays)


def _tables(lines: list[Line]) -> dict[str, str]:
    rows = [
        [
            f"{line['rows']:,}",
            f"{line['stays']:,}",
            f"{line['chartevents_mib']:,} MiB",
            f"{line['reading_seconds']:.1f}",
            f"{line['reading_cpu_seconds']:.1f}",
            f"{line['peak_mib']:,} MiB",
        ]
        for line in lines
    ]
    heads = ["rows of CHARTEVENTS", "stays", "compressed", "seconds", "of processor time"]
    return {"reading MIMIC-III": markdown_table([*heads, "peak of memory"], rows)}


MEASUREMENT: Final = Measurement(
    name="mimic3_memory",
    cells=[{"rows": 200_000, "stays": 500}, {"rows": 30_000_000, "stays": 40_000}],
    run=_run,
    page="mimic.md",
    tables=_tables,
    needs=("duckdb",),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=30_000_000)
    parser.add_argument("--stays", type=int, default=40_000)
    parser.add_argument("--memory-limit", default="1GB")
    arguments = parser.parse_args()
    cell = {"rows": arguments.rows, "stays": arguments.stays}
    found = measured(arguments.folder, **cell, memory_limit=arguments.memory_limit)
    print(json.dumps({**cell, **found}))


if __name__ == "__main__":
    main()
