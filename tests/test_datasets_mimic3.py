import csv
import gzip
import math
import os
import sys
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp.datasets import load_mimic3, standardise
from qexp.datasets.mimic3 import _VARIABLES

duckdb = pytest.importorskip("duckdb", reason="DuckDB (the extra qexp[mimic]) is not installed")

HEADERS = {
    "PATIENTS": "ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG",
    "ADMISSIONS": "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE "
    "DIAGNOSIS HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA",
    "ICUSTAYS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID DBSOURCE FIRST_CAREUNIT LAST_CAREUNIT "
    "FIRST_WARDID LAST_WARDID INTIME OUTTIME LOS",
    "CHARTEVENTS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID ITEMID CHARTTIME STORETIME CGID VALUE "
    "VALUENUM VALUEUOM WARNING ERROR RESULTSTATUS STOPPED",
    "LABEVENTS": "ROW_ID SUBJECT_ID HADM_ID ITEMID CHARTTIME VALUE VALUENUM VALUEUOM FLAG",
    "OUTPUTEVENTS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID CHARTTIME ITEMID VALUE VALUEUOM "
    "STORETIME CGID STOPPED NEWBOTTLE ISERROR",
}
IN = datetime(2130, 5, 1, 12)
TABLE_OF = {"chart": "CHARTEVENTS", "lab": "LABEVENTS", "output": "OUTPUTEVENTS"}


def write_table(folder, name, rows, suffix=".csv.gz"):
    """Write a table as published: text quoted, names in capitals."""
    header = HEADERS[name.upper()].split()
    opened = gzip.open if suffix.endswith(".gz") else open
    with opened(folder / f"{name}{suffix}", "wt", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(header)
        for number, row in enumerate(rows, start=1):
            writer.writerow([{"ROW_ID": number, **row}.get(column, "") for column in header])


def patient(subject=1, gender="F", years=60.0, **stay):
    """One patient with one admission and one stay of four days; changes in `stay`."""
    intime = stay.pop("intime", IN)
    hadm = stay.pop("hadm", 100 + subject)
    return {
        "PATIENTS": {
            "SUBJECT_ID": subject,
            "GENDER": gender,
            "DOB": intime - timedelta(days=round(365.2425 * years)),
        },
        "ADMISSIONS": {
            "SUBJECT_ID": subject,
            "HADM_ID": hadm,
            "DEATHTIME": stay.pop("death", ""),
            "ADMISSION_TYPE": stay.pop("admission", "EMERGENCY"),
            "DIAGNOSIS": 'PAIN, "ACUTE"',
            "HOSPITAL_EXPIRE_FLAG": stay.pop("died", 0),
        },
        "ICUSTAYS": {
            "SUBJECT_ID": subject,
            "HADM_ID": hadm,
            "ICUSTAY_ID": stay.pop("icustay", 200 + subject),
            "FIRST_CAREUNIT": stay.pop("unit", "MICU"),
            "INTIME": intime,
            "OUTTIME": stay.pop("outtime", intime + timedelta(days=stay.pop("days", 4))),
            **stay,
        },
    }


def event(kind, item, hours, value, hadm=101, **more):
    """One event, so many hours after the first stay's INTIME."""
    column = "VALUE" if kind == "output" else "VALUENUM"
    time = IN + timedelta(seconds=round(3600 * hours))
    return TABLE_OF[kind], {
        "HADM_ID": hadm,
        "ITEMID": item,
        "CHARTTIME": time,
        column: value,
        **more,
    }


def write(root, patients, events=(), suffix=".csv.gz", lower=False):
    folder = root / "mimic3"
    folder.mkdir(exist_ok=True, parents=True)
    for name in HEADERS:
        if name in ("PATIENTS", "ADMISSIONS", "ICUSTAYS"):
            rows = [p[name] for p in patients]
        else:
            rows = [row for table, row in events if table == name]
        write_table(folder, name.lower() if lower else name, rows, suffix)
    return folder


def load(root, **arguments):
    return load_mimic3(root, **{"threads": 1, **arguments})


def features(stays, row=0):
    return dict(zip(stays.feature_names, stays.X[row].tolist(), strict=True))


def test_one_stay(tmp_path):
    events = [
        event("chart", 211, 1, 80),
        event("chart", 220045, 3, 100),
        event("chart", 211, 2, 90),
        event("lab", 50912, 5, 1.5),
        event("output", 40055, 6, 200),
        event("output", 226559, 7, 100),
    ]
    write(tmp_path, [patient(gender="M", years=60, died=1)], events)
    stays = load(tmp_path)
    assert stays.X.shape == (1, len(stays.feature_names)) == (1, len(stays.units))
    assert stays.X.dtype == np.float32
    assert len(set(stays.feature_names)) == len(stays.feature_names)
    assert (stays.stay_ids.tolist(), stays.subject_ids.tolist()) == ([201], [1])
    assert stays.care_unit.tolist() == ["MICU"]
    assert (stays.mort_hosp.tolist(), stays.mort_icu.tolist()) == ([1], [0])
    assert stays.los_over_3_days.tolist() == [1]
    assert (stays.hours, len(stays)) == (24, 1)
    got = features(stays)
    seen = {k: round(v, 4) for k, v in got.items() if not (math.isnan(v) or v == 0)}
    assert seen == {
        **{"Heart rate min": 80, "Heart rate max": 100, "Heart rate mean": 90},
        **{"Heart rate last": 100, "Heart rate measured": 1},
        **{f"Creatinine {s}": 1.5 for s in ("min", "max", "mean", "last")},
        **{"Creatinine measured": 1, "Urine total": 300, "Urine min": 100, "Urine max": 200},
        **{"Urine mean": 150, "Urine last": 100, "Urine measured": 1},
        **{"Age": pytest.approx(60, abs=0.01), "Gender": 1, "Admission=EMERGENCY": 1},
        "Care unit=MICU": 1,
    }
    assert math.isnan(got["pH mean"])
    assert (got["pH measured"], got["Care unit=CCU"]) == (0, 0)
    units = dict(zip(stays.feature_names, stays.units, strict=True))
    assert (units["Creatinine max"], units["pH measured"]) == ("mg/dL", "0/1")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # from INTIME to the end of the window, both included
        (
            [("chart", 211, h, 60 + i) for i, h in enumerate((-1 / 3600, 0, 24, 24 + 1 / 3600))],
            {"Heart rate min": 61, "Heart rate max": 62},
        ),
        # laboratory values from six hours before
        (
            [("lab", 50912, h, 1 + i) for i, h in enumerate((-6 - 1 / 3600, -6, 24, 24.01))],
            {"Creatinine min": 2, "Creatinine max": 3},
        ),
        # the latest is last, in whatever order; of one time, the larger row number
        ([("chart", 211, 9, 60), ("chart", 211, 4, 70)], {"Heart rate last": 60}),
        ([("chart", 211, 9, 60), ("chart", 211, 9, 70)], {"Heart rate last": 70}),
        # glucose of blood and of the finger; whichever is later is last
        (
            [("chart", 807, 2, 100), ("lab", 50931, 3, 140), ("chart", 225664, 1, 90)],
            {"Glucose min": 90, "Glucose last": 140, "Glucose mean": 110},
        ),
        ([("lab", 50931, -1, 140), ("chart", 807, 1, 100)], {"Glucose last": 100}),
        # Fahrenheit, pounds, inches
        ([("chart", 223761, 1, 98.6), ("chart", 678, 2, 100.4)], {"Temperature mean": 37.5}),
        ([("chart", 676, 1, 36), ("chart", 223762, 2, 38)], {"Temperature mean": 37}),
        ([("chart", 226531, 1, 200)], {"Weight last": 90.718474}),
        ([("chart", 762, 1, 80), ("chart", 226512, 2, 82)], {"Weight mean": 81}),
        ([("chart", 920, 1, 70)], {"Height last": 177.8}),
        ([("chart", 226707, 1, 60), ("chart", 226730, 2, 150)], {"Height last": 150}),
        # a temperature in the wrong scale is out of range
        ([("chart", 676, 1, 98.6)], {"Temperature measured": 0}),
        # inspired oxygen as a fraction or in percent
        ([("chart", 223835, 1, 0.5), ("chart", 223835, 2, 60)], {"Inspired oxygen mean": 55}),
        ([("chart", 190, 1, 0.4), ("chart", 3420, 2, 40)], {"Inspired oxygen max": 40}),
        ([("chart", 223835, 1, 1)], {"Inspired oxygen last": 100}),
        ([("chart", 223835, 1, 5)], {"Inspired oxygen measured": 0}),
        # ranges include their ends; beyond them is missing
        (
            [("chart", 211, i, v) for i, v in enumerate((0, 1, 350, 351))],
            {"Heart rate min": 1, "Heart rate max": 350},
        ),
        # what is no number is missing
        (
            [("chart", 211, i, v) for i, v in enumerate(("", "nan", "inf", "many", 80))],
            {"Heart rate mean": 80},
        ),
        # rinsing fluid comes out again
        (
            [("output", 227488, 1, 300), ("output", 227489, 2, 700)],
            {"Urine total": 400, "Urine min": -300},
        ),
        ([("output", 40055, 1, 9999)], {"Urine measured": 0}),
        # items of no interest, or of another table
        ([("chart", 1, 1, 5), ("lab", 211, 1, 80)], {"Heart rate measured": 0}),
        # rows without a time or an admission
        (
            [("chart", 211, 1, 80, {"CHARTTIME": ""}), ("chart", 211, 1, 80, {"HADM_ID": ""})],
            {"Heart rate measured": 0},
        ),
        # another admission's rows
        ([("chart", 211, 1, 80, {"HADM_ID": 77})], {"Heart rate measured": 0}),
        # rows marked as errors
        (
            [("chart", 211, 1, 80, {"ERROR": 1}), ("chart", 211, 2, 90, {"ERROR": 0})],
            {"Heart rate mean": 90},
        ),
        (
            [("output", 40055, 1, 80, {"ISERROR": 1}), ("output", 40055, 2, 90)],
            {"Urine total": 90},
        ),
    ],
)
def test_what_the_data_leave_open(tmp_path, rows, expected):
    events = [event(*row[:4], **(row[4] if len(row) > 4 else {})) for row in rows]
    write(tmp_path, [patient()], events)
    got = features(load(tmp_path))
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_every_item_reaches_its_variable(tmp_path):
    kinds = {table: kind for kind, table in TABLE_OF.items()}
    patients, events, expected = [], [], []
    for variable in _VARIABLES:
        middle = math.sqrt(max(variable.low, 1) * variable.high)
        for item in variable.items:
            for number in item.ids:
                subject = len(patients) + 1
                patients.append(patient(subject))
                raw = (middle * (1 if item.factor > 0 else -1) - item.offset) / item.factor
                events.append(event(kinds[item.table], number, 1, raw, hadm=100 + subject))
                expected.append((f"{variable.name} last", middle))
    write(tmp_path, patients, events, suffix=".csv")
    stays = load(tmp_path)
    assert len(stays) == len(expected) > 100
    for row, (name, middle) in enumerate(expected):
        got = features(stays, row)
        assert abs(got[name]) == pytest.approx(middle, rel=1e-6)
        assert [k for k, v in got.items() if k.endswith("measured") and v] == [
            name.removesuffix("last") + "measured"
        ]


def test_who_is_chosen(tmp_path):
    later = IN + timedelta(days=300)
    patients = [
        patient(1, years=17.99),
        patient(2, years=18.01, unit="CSRU"),
        patient(3, days=0.99),
        patient(4, outtime=""),
        patient(5, icustay=900),
        {**patient(5, intime=later, hadm=605, icustay=205)},
        patient(6, years=300, gender=""),
        patient(7, hadm=""),
        patient(8, unit="NICU", admission="NEWBORN"),
    ]
    # The second stay of patient 5 has no row of its own among patients.
    patients[5]["PATIENTS"] = {}
    write(tmp_path, patients)
    stays = load(tmp_path)
    assert stays.stay_ids.tolist() == [202, 206, 208, 900]
    assert stays.subject_ids.tolist() == [2, 6, 8, 5]
    rows = [features(stays, i) for i in range(4)]
    assert rows[1]["Age"] == pytest.approx(91.4)
    assert math.isnan(rows[1]["Gender"])
    assert (rows[0]["Care unit=CSRU"], rows[0]["Gender"]) == (1, 0)
    assert stays.care_unit.tolist() == ["CSRU", "MICU", "NICU", "MICU"]
    assert [v for k, v in rows[2].items() if "=" in k] == [0] * 8
    assert load(tmp_path, minimum_hours=0).stay_ids.tolist() == [202, 203, 206, 208, 900]
    assert load(tmp_path, hours=48, minimum_hours=97).stay_ids.tolist() == []
    assert load(tmp_path, minimum_hours=97).X.shape == (0, stays.X.shape[1])


def test_labels(tmp_path):
    write(
        tmp_path,
        [
            patient(1, death=IN + timedelta(days=2), died=1, days=2),
            patient(2, death=IN + timedelta(days=5), died=1, days=3),
            patient(3, days=3.01),
            patient(4, died=""),
        ],
    )
    stays = load(tmp_path)
    assert stays.mort_hosp.tolist() == [1, 1, 0, 0]
    assert stays.mort_icu.tolist() == [1, 0, 0, 0]
    assert stays.los_over_3_days.tolist() == [0, 0, 1, 1]
    assert {stays.mort_hosp.dtype, stays.mort_icu.dtype, stays.los_over_3_days.dtype} == {
        np.dtype(np.uint8)
    }


def test_events_after_the_stay_do_not_count(tmp_path):
    write(
        tmp_path,
        [patient(days=0.5)],
        [event("chart", 211, h, v) for h, v in ((11, 60), (12, 70), (13, 80))],
    )
    assert features(load(tmp_path, minimum_hours=0))["Heart rate max"] == 70


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.parametrize("lower", [False, True])
def test_names_and_compression_of_files(tmp_path, suffix, lower):
    write(tmp_path, [patient()], [event("chart", 211, 1, 80)], suffix, lower)
    assert features(load(tmp_path))["Heart rate last"] == 80


def test_lower_case_columns_quoted_commas_and_line_ends(tmp_path):
    folder = write(tmp_path, [patient()], [event("chart", 211, 1, 80)], ".csv")
    path = folder / "CHARTEVENTS.csv"
    header, *lines = path.read_text().splitlines()
    comma = lines[0].split(",")
    comma[8] = '"Arm, Right ""Lower"""'
    path.write_bytes("\r\n".join([header.lower(), *lines, ",".join(comma), ""]).encode())
    assert features(load(tmp_path))["Heart rate last"] == 80


EVENTS = st.lists(
    st.tuples(
        st.sampled_from([("chart", 211), ("chart", 678), ("lab", 50912), ("output", 40055)]),
        st.integers(-600, 1800),
        st.integers(1, 2_000_000),
    ),
    max_size=25,
)


def reference(rows):
    """The summaries of one stay, one variable after the other."""
    names = {211: "Heart rate", 678: "Temperature", 50912: "Creatinine", 40055: "Urine"}
    ranges = {v.name: (v.low, v.high) for v in _VARIABLES}
    found = {}
    for (kind, item), minutes, value in sorted(rows, key=lambda row: row[1]):
        v = value / 10_000
        v = (v - 32) / 1.8 if item == 678 else v
        low, high = ranges[names[item]]
        if (-360 if kind == "lab" else 0) <= minutes <= 1440 and low <= v <= high:
            found.setdefault(names[item], []).append(v)
    return {
        f"{name} {statistic}": value
        for name, v in found.items()
        for statistic, value in zip(
            ("min", "max", "mean", "last"),
            (min(v), max(v), math.fsum(v) / len(v), v[-1]),
            strict=True,
        )
    }


@settings(max_examples=5)
@given(st.lists(EVENTS, min_size=1, max_size=3))
def test_summaries_match_a_plain_reference_and_no_stay_sees_another(tmp_path_factory, stays):
    root = tmp_path_factory.mktemp("mimic")
    patients = [patient(i + 1) for i in range(len(stays))]
    made = [
        [
            event(kind, item, minutes / 60, value / 10_000, hadm=101 + i)
            for (kind, item), minutes, value in rows
        ]
        for i, rows in enumerate(stays)
    ]
    write(root, patients, [row for rows in made for row in rows], ".csv")
    together = load(root)
    for i, rows in enumerate(stays):
        got, expected = features(together, i), reference(rows)
        for name in ("Heart rate", "Temperature", "Creatinine", "Urine"):
            for statistic in ("min", "max", "mean", "last"):
                key = f"{name} {statistic}"
                np.testing.assert_allclose(
                    got[key], expected.get(key, math.nan), rtol=1e-5, atol=2e-4
                )
        write(root, [patients[i]], made[i], ".csv")
        assert load(root).X[0].tobytes() == together.X[i].tobytes()


def write_many(root, n_rows, n_stays=300):
    """Write a large CHARTEVENTS.csv.gz by the column."""
    folder = write(root, [patient(i + 1) for i in range(n_stays)])
    rng = np.random.default_rng(0)
    items = np.array([211, 220045, 51, 220050, 618, 678, 646, 5000, 5001, 5002])
    with gzip.open(folder / "CHARTEVENTS.csv.gz", "wt", compresslevel=1) as file:
        file.write(",".join(f'"{c}"' for c in HEADERS["CHARTEVENTS"].split()) + "\n")
        for start in range(0, n_rows, 50_000):
            size = min(50_000, n_rows - start)
            stay = rng.integers(1, n_stays + 1, size).tolist()
            item = items[rng.integers(len(items), size=size)].tolist()
            minute = rng.integers(0, 3000, size).tolist()
            value = rng.integers(300, 1500, size).tolist()
            lines = [
                f"{start + j},{s},{100 + s},{200 + s},{i},2130-05-{1 + (720 + m) // 1440:02d} "
                f"{(12 + m // 60) % 24:02d}:{m % 60:02d}:00,2130-05-01 12:00:00,17000,"
                f'"{v / 10}",{v / 10},"bpm",0,0,"",""\n'
                for j, (s, i, m, v) in enumerate(zip(stay, item, minute, value, strict=True))
            ]
            file.write("".join(lines))
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    write_many(root, 800_000)
    return root


def test_threads_move_no_bit(many):
    one = load(many)
    for threads in (2, 3):
        assert load(many, threads=threads).X.tobytes() == one.X.tobytes()
    assert np.isfinite(one.X[:, one.feature_names.index("Heart rate mean")]).all()


def test_a_stream_of_rows_passes_in_little_memory(many):
    # To hold the events of the stays, as a join that starts from them does, takes over 160 MB here,
    # and more the more there are.
    with gzip.open(many / "mimic3" / "CHARTEVENTS.csv.gz") as file:
        assert file.seek(0, os.SEEK_END) > 70e6
    bounded, free = load(many, memory_limit="128MB"), load(many)
    assert bounded.X.tobytes() == free.X.tobytes()


def test_nothing_is_written(many, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load(many)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MemoryError, match="takes more than 1MB; give load_mimic3 a larger"):
        load(many, memory_limit="1MB")
    assert list(tmp_path.iterdir()) == []


def assert_says_nothing(caught, *values):
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    for value in values:
        assert value not in str(error)


def test_damaged_rows_are_refused_without_their_values(tmp_path):
    folder = write(tmp_path, [patient()], [event("chart", 211, 1, 80)], ".csv")
    path = folder / "CHARTEVENTS.csv"
    whole = path.read_text()
    for damage in (
        "7,1,101,201,211,71987,5\n",
        whole.splitlines()[1].replace("80", "71987") + ",more,fields\n",
        '7,1,101,201,211,"71987\n',
        '8,1,"101"71987,201,211,,,,,,,,,,\n',
    ):
        path.write_text(whole + damage)
        with pytest.raises(ValueError, match=r"CHARTEVENTS\.csv: not a complete table") as caught:
            load(tmp_path)
        assert_says_nothing(caught, "71987", "101")
    path.write_text(whole)
    for name in ("PATIENTS", "ICUSTAYS", "LABEVENTS"):
        text = (folder / f"{name}.csv").read_text()
        (folder / f"{name}.csv").write_text(text + "71987,1\n")
        with pytest.raises(ValueError, match=rf"{name}\.csv: not a complete table") as caught:
            load(tmp_path)
        assert_says_nothing(caught, "71987")
        (folder / f"{name}.csv").write_text(text)


def test_cut_archives_are_refused(tmp_path):
    events = [event("chart", 211, i / 60, 60 + i % 50) for i in range(1200)]
    folder = write(tmp_path, [patient()], events)
    path = folder / "CHARTEVENTS.csv.gz"
    raw = path.read_bytes()
    cuts = [raw[: len(raw) * part // 7] for part in range(7)]
    for damaged in (*cuts, raw[:-1], raw[:-5], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"CHARTEVENTS\.csv\.gz: "):
            load(tmp_path)


def test_missing_columns_are_named(tmp_path):
    folder = write(tmp_path, [patient()], suffix=".csv")
    path = folder / "CHARTEVENTS.csv"
    for text, message in (
        ("", "lacks ROW_ID, HADM_ID, ITEMID"),
        (path.read_text().replace("VALUENUM", "NUMBER"), "it lacks VALUENUM"),
        (path.read_text().replace("STOPPED", "VALUENUM"), "name each column once"),
        (path.read_text().replace("STOPPED", "a'b"), "name each column once"),
    ):
        path.write_text(text) if text else path.write_text("\n")
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
        write(tmp_path, [patient()], suffix=".csv")


def test_missing_tables_and_the_folder(tmp_path):
    folder = write(tmp_path, [patient()])
    (folder / "LABEVENTS.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"LABEVENTS\.csv\.gz .*physionet"):
        load(tmp_path)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="elsewhere holds no file"):
        load(tmp_path, folder="elsewhere")


def test_a_folder_with_a_quote_in_its_name(tmp_path):
    write(tmp_path / "o'hara", [patient()], [event("chart", 211, 1, 80)])
    assert features(load(tmp_path / "o'hara"))["Heart rate last"] == 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hours": 0}, "hours must be more than 0"),
        ({"hours": math.nan}, "hours must be more than 0"),
        ({"hours": 241}, "at most 240"),
        ({"minimum_hours": -1}, "minimum_hours must be 0 or more"),
        ({"minimum_hours": math.inf}, "minimum_hours must be 0 or more"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"memory_limit": "much"}, "memory_limit must be a size such as '1GB', got 'much'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    write(tmp_path, [patient()])
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **arguments)


def test_without_duckdb_the_error_names_the_extra(tmp_path, monkeypatch):
    write(tmp_path, [patient()])
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"qexp\[mimic\]"):
        load(tmp_path)


def test_public_figures_fill_the_gaps():
    public = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 4.0]], np.float32)
    fitted = standardise(public, indicators=False)
    assert fitted.indicated.tolist() == []
    assert fitted.transform(np.array([[np.nan, 5.0]])).tolist() == [[0.0, 1.0]]


@pytest.fixture(scope="module")
def sample():
    root = os.environ.get("QEXP_DATA")
    if not root or not os.path.isdir(os.path.join(root, "mimic3_demo")):
        pytest.skip("the open MIMIC-III sample is not in QEXP_DATA/mimic3_demo")
    return os.path.join(root, "mimic3_demo")


def open_table(sample, name):
    with gzip.open(os.path.join(sample, f"{name}.csv.gz"), "rt") as file:
        yield from csv.DictReader(file)


def test_the_open_sample(sample):
    stays = load_mimic3(folder="mimic3_demo")
    assert (len(stays), int(stays.mort_hosp.sum()), int(stays.mort_icu.sum())) == (81, 25, 16)
    assert len(np.unique(stays.subject_ids)) == 81
    assert set(stays.care_unit.tolist()) == {"CCU", "CSRU", "MICU", "SICU", "TSICU"}
    got = {n: stays.X[:, i] for i, n in enumerate(stays.feature_names)}
    assert got["Heart rate measured"].mean() > 0.98
    assert 35 < np.nanmean(got["Temperature mean"]) < 38
    assert 70 < np.nanmean(got["Weight mean"]) < 90
    longer = load_mimic3(folder="mimic3_demo", hours=48)
    assert len(longer) < len(stays)
    both = np.isin(stays.stay_ids, longer.stay_ids)
    same = [stays.feature_names.index(f"{v.name} max") for v in _VARIABLES if "max" in v.statistics]
    assert np.nanmin(longer.X[:, same] - stays.X[both][:, same]) >= 0


def test_the_open_sample_against_a_plain_reading(sample):
    """Heart rates and creatinine of each stay, row by row."""
    stays = load_mimic3(folder="mimic3_demo")

    def time(text):
        return datetime.fromisoformat(text)

    chosen = {
        int(row["hadm_id"]): (int(row["icustay_id"]), time(row["intime"]))
        for row in open_table(sample, "ICUSTAYS")
        if int(row["icustay_id"]) in set(stays.stay_ids.tolist())
    }
    found = {}
    for table, items, lead in (
        ("CHARTEVENTS", ("211", "220045"), 0),
        ("LABEVENTS", ("50912",), 6),
    ):
        for row in open_table(sample, table):
            if row["itemid"] not in items or not row["hadm_id"] or not row["valuenum"]:
                continue
            stay, start = chosen.get(int(row["hadm_id"]), (None, None))
            if stay is None or row.get("error") == "1":
                continue
            after = (time(row["charttime"]) - start).total_seconds()
            value = float(row["valuenum"])
            high = 350 if lead == 0 else 60
            if -3600 * lead <= after <= 86400 and (1 if lead == 0 else 0.1) <= value <= high:
                found.setdefault((stay, lead), []).append(value)
    for lead, name in ((0, "Heart rate"), (6, "Creatinine")):
        for statistic, function in (("min", min), ("max", max), ("mean", np.mean)):
            column = stays.X[:, stays.feature_names.index(f"{name} {statistic}")]
            expected = [
                function(found[stay, lead]) if (stay, lead) in found else np.nan
                for stay in stays.stay_ids.tolist()
            ]
            np.testing.assert_allclose(column, expected, rtol=1e-5)


def test_the_publishers_dictionaries_know_every_item(sample):
    known = {
        row["itemid"]: (row["linksto"].upper(), row["label"], row["dbsource"])
        for row in open_table(sample, "D_ITEMS")
    }
    known |= {
        row["itemid"]: ("LABEVENTS", row["label"], "")
        for row in open_table(sample, "D_LABITEMS")
        if row["fluid"].upper() == "BLOOD"
    }
    words = {
        **{"Systolic pressure": "systolic", "Diastolic pressure": "diastolic"},
        **{"Heart rate": "heart rate", "Mean pressure": "mean", "Temperature": "temp"},
        **{"Respiratory rate": "resp", "Oxygen saturation": "o2", "Inspired oxygen": "o2"},
        **{"GCS eyes": "eye", "GCS motor": "motor", "GCS verbal": "verbal", "Weight": "w"},
        **{"Height": "h", "ALT": "alanine", "AST": "asparate", "Bilirubin": "bilirubin"},
        **{"Partial thromboplastin time": "ptt", "Prothrombin time": "pt", "White cells": "w"},
        **{"Urea nitrogen": "urea", "Hematocrit": "hematocrit", "PaCO2": "pco2"},
        **{"PaO2": "po2", "Urine": "", "INR": "inr", "Platelets": "platelet"},
    }
    for variable in _VARIABLES:
        word = words.get(variable.name, variable.name.lower())
        sources = set()
        for item in variable.items:
            for number in item.ids:
                table, label, source = known[str(number)]
                assert table == item.table
                assert word in label.lower() or "inspired" in label.lower(), (number, label)
                sources.add(source)
        if variable.items[0].table != "LABEVENTS":
            assert sources >= {"carevue", "metavision"}
