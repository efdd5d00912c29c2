import gzip
import io
import itertools
import math
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp.datasets import load_physionet2012, standardise

HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
STATISTICS = ("last", "min", "max", "mean", "count")
STAY = [
    ("00:00", "Age", "54"),
    ("00:00", "Gender", "0"),
    ("00:00", "Height", "-1"),
    ("00:00", "ICUType", "4"),
    ("00:00", "Weight", "80.5"),
    ("00:07", "HR", "73"),
    ("01:37", "HR", "77"),
    ("48:00", "HR", "60"),
    ("47:00", "", "5"),
]


def record(record_id, rows):
    lines = ["Time,Parameter,Value", f"00:00,RecordID,{record_id}", *(",".join(r) for r in rows)]
    return "\n".join(lines) + "\n"


def archive_bytes(records):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        folder = tarfile.TarInfo("set-a/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, text in records:
            info = tarfile.TarInfo(f"set-a/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def write_set(root, records, outcomes=None):
    """Write a set: `records` maps record numbers to rows; deaths are the odd record numbers."""
    folder = root / "physionet2012"
    folder.mkdir(exist_ok=True)
    texts = [(f"{i}.txt", record(i, rows)) for i, rows in records.items()]
    (folder / "set-a.tar.gz").write_bytes(archive_bytes(texts))
    if outcomes is None:
        outcomes = HEADER + "".join(f"{i},6,-1,5,{i + 1},{i % 2}\n" for i in sorted(records))
    (folder / "Outcomes-a.txt").write_text(outcomes)
    return folder


def features(stays, row=0):
    return dict(zip(stays.feature_names, stays.features[row].tolist(), strict=True))


def test_small_set(tmp_path):
    write_set(tmp_path, {12: STAY, 11: []})
    stays = load_physionet2012("a", tmp_path)
    assert stays.record_ids.tolist() == [11, 12]
    assert stays.in_hospital_death.tolist() == [1, 0]
    assert stays.icu_type.tolist() == [0, 4]
    assert (stays.saps_i.tolist(), stays.sofa.tolist()) == ([6, 6], [-1, -1])
    assert (stays.length_of_stay.tolist(), stays.survival.tolist()) == ([5, 5], [12, 13])
    assert stays.features.shape == (2, len(stays.feature_names)) == (2, 193)
    assert len(set(stays.feature_names)) == 193
    seen = {k: v for k, v in features(stays, 1).items() if not (math.isnan(v) or v == 0)}
    assert seen == {
        **{"HR last": 60, "HR min": 60, "HR max": 77, "HR mean": 70, "HR count": 3},
        **{"Age": 54, "Weight": 80.5, "ICUType=4": 1},
    }
    assert features(stays, 1)["Gender"] == 0
    empty = features(stays, 0)
    assert all(v == 0 if k.endswith("count") else math.isnan(v) for k, v in empty.items())


def test_hours_are_inclusive(tmp_path):
    write_set(tmp_path, {1: STAY})
    counts = [
        features(load_physionet2012("a", tmp_path, hours=hours))["HR count"]
        for hours in (0, 7 / 60 + 1e-9, 1.6, 97 / 60 + 1e-9, 47.99, 48)
    ]
    assert counts == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # -1, and a blank Fahrenheit field, are missing
        (["00:00,HR,-1", "01:00,Temp,-17.8"], {"HR count": 0, "Temp count": 0}),
        # what is not finite is missing
        (["00:00,HR,nan", "00:10,HR,inf", "00:20,HR,50"], {"HR count": 1, "HR last": 50}),
        # implausible values are kept
        (["01:00,pH,735"], {"pH max": 735}),
        # unknown and empty names are left out
        (["01:00,Mood,3", "01:00,,3", "02:00,HR,9"], {"HR count": 1}),
        # the first weight at 00:00 is the descriptor, all others the series
        (
            ["00:00,Weight,80", "00:00,Weight,81", "09:00,Weight,79"],
            {"Weight": 80, "Weight count": 2, "Weight max": 81},
        ),
        # an unrecorded weight at admission stays missing
        (["00:00,Weight,-1", "00:00,Weight,81"], {"Weight": math.nan, "Weight count": 1}),
        # a first weight after admission is no descriptor
        (["00:01,Weight,81"], {"Weight": math.nan, "Weight count": 1}),
        # rows at one time: all count, the last in the file is last
        (["05:00,HR,90", "05:00,HR,70"], {"HR last": 70, "HR count": 2, "HR mean": 80}),
        # times out of order: the latest is last
        (["05:00,HR,90", "04:00,HR,70"], {"HR last": 90}),
        (["00:00,ICUType,5"], {"ICUType=1": math.nan, "ICUType=4": math.nan}),
        (["00:00,ICUType,1"], {"ICUType=1": 1, "ICUType=4": 0}),
    ],
)
def test_what_the_data_leave_open(tmp_path, rows, expected):
    write_set(tmp_path, {1: [tuple(row.split(",")) for row in rows]})
    got = features(load_physionet2012("a", tmp_path))
    np.testing.assert_equal({name: got[name] for name in expected}, expected)


def reference(rows):
    """The statistics of one stay, one variable after the other."""
    series = {}
    for _, name, text in sorted(rows, key=lambda row: row[0]):
        if float(text) >= 0:
            series.setdefault(name, []).append(float(text))
    return {
        f"{name} {statistic}": value
        for name, v in series.items()
        for statistic, value in zip(
            STATISTICS, (v[-1], min(v), max(v), math.fsum(v) / len(v), len(v)), strict=True
        )
    }


ROWS = st.lists(
    st.tuples(
        st.builds("{:02d}:{:02d}".format, st.integers(0, 47), st.integers(0, 59)),
        st.sampled_from(["HR", "Urine", "pH", "GCS"]),
        st.integers(-200, 5000).map(lambda cents: f"{cents / 100:g}"),
    ),
    max_size=30,
)


@settings(max_examples=50)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_statistics_match_a_plain_reference_and_no_stay_sees_another(tmp_path_factory, stays):
    root = tmp_path_factory.mktemp("physionet")
    write_set(root, dict(enumerate(stays)))
    together = load_physionet2012("a", root)
    for i, rows in enumerate(stays):
        got = features(together, i)
        expected = reference(rows)
        for name in ("HR", "Urine", "pH", "GCS"):
            for statistic in STATISTICS:
                default = 0.0 if statistic == "count" else math.nan
                np.testing.assert_allclose(
                    got[f"{name} {statistic}"],
                    expected.get(f"{name} {statistic}", default),
                    rtol=1e-14,
                )
        write_set(root, {i: rows})
        alone = load_physionet2012("a", root)
        assert alone.features.tobytes() == together.features[i].tobytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with Time,Parameter,Value"),
        ("Time;Parameter;Value\n", "must begin with"),
        ("Time,Parameter,Value\n00:00,RecordID,8\n", "must begin with .* its RecordID"),
        (record(7, STAY)[:-1], "ends within a line"),
        (record(7, [*STAY, ("01:00", "HR")]), "does not have three fields"),
        (record(7, [*STAY, ("01:00", "HR", "7", "8")]), "does not have three fields"),
        (record(7, [("01:00", "HR", "71", "02:00", "HR", "3\n")]), "does not have three fields"),
        (record(7, [("48:01", "HR", "71")]), "a time is not between 00:00 and 48:00"),
        (record(7, [("1:00", "HR", "71")]), "a time is not between"),
        (record(7, [("01:00", "HR", "seventy")]), "a value is not a number"),
        (record(7, [("01:00", "HR", "")]), "a value is not a number"),
    ],
)
def test_damaged_records_are_refused_without_their_values(tmp_path, text, message):
    folder = write_set(tmp_path, {7: STAY})
    (folder / "set-a.tar.gz").write_bytes(archive_bytes([("7.txt", text)]))
    with pytest.raises(ValueError, match=rf"set-a\.tar\.gz: set-a/7\.txt: .*{message}") as caught:
        load_physionet2012("a", tmp_path)
    assert "seventy" not in str(caught.value)


def test_damaged_archives_are_refused(tmp_path):
    folder = write_set(tmp_path, dict.fromkeys(range(20), STAY))
    path = folder / "set-a.tar.gz"
    raw = path.read_bytes()
    wrong_checksum = bytearray(raw)
    wrong_checksum[-6] ^= 1
    cuts = [raw[: len(raw) * part // 7] for part in range(7)]
    for damaged in (*cuts, raw[:-1], bytes(wrong_checksum), b"x" * 100, gzip.compress(b"x" * 700)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"set-a\.tar\.gz: "):
            load_physionet2012("a", tmp_path)
    # An archive cut short before it was compressed: gzip is content, its records are not.
    path.write_bytes(gzip.compress(gzip.decompress(raw)[: 512 * 9]))
    with pytest.raises(ValueError, match=r"set-a\.tar\.gz: its .* match one for one"):
        load_physionet2012("a", tmp_path)


def test_archive_members(tmp_path):
    folder = write_set(tmp_path, {7: STAY})
    path = folder / "set-a.tar.gz"
    good = ("7.txt", record(7, STAY))
    path.write_bytes(archive_bytes([("index.html", "other files are left alone"), good]))
    assert load_physionet2012("a", tmp_path).record_ids.tolist() == [7]
    path.write_bytes(archive_bytes([good, good]))
    with pytest.raises(ValueError, match="record 7 appears twice"):
        load_physionet2012("a", tmp_path)
    for name in ("notes", "9" * 20, "\u0661"):
        path.write_bytes(archive_bytes([good, (f"{name}.txt", "")]))
        with pytest.raises(ValueError, match=rf"{name}\.txt is not named after a record number"):
            load_physionet2012("a", tmp_path)


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ("", "Outcomes-a.txt: the first line must be RecordID"),
        ("RecordID,Death\n7,1\n", "the first line must be"),
        (HEADER + "7,6,1,5,-1\n", "line 2 must be six whole numbers"),
        (HEADER + "7,6,1,5,-1,\n", "line 2 must be six whole numbers"),
        (HEADER + "7,6,1,5,-1,2\n", "line 2 .* the last of them 0 or 1"),
        (HEADER + "7,6,1,5,99999999999999999999,0\n", "line 2 must be six whole numbers"),
        (HEADER + "7,6,1,5,-1,0\n" * 2, "a record number appears twice"),
        (HEADER + "8,6,1,5,-1,0\n", "its 1 records and the 1 rows of .* 2 record numbers are in"),
        (HEADER, "its 1 records and the 0 rows of"),
    ],
)
def test_wrong_outcomes_are_refused(tmp_path, outcomes, message):
    write_set(tmp_path, {7: STAY}, outcomes)
    with pytest.raises(ValueError, match=message):
        load_physionet2012("a", tmp_path)


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="set_name must be 'a' or 'b', got 'c'"):
        load_physionet2012("c", tmp_path)
    for hours in (-1, 49, math.nan):
        with pytest.raises(ValueError, match="hours must lie in"):
            load_physionet2012("a", tmp_path, hours=hours)


def test_empty_set(tmp_path):
    write_set(tmp_path, {})
    stays = load_physionet2012("a", tmp_path)
    assert stays.features.shape == (0, 193)
    assert stays.icu_type.shape == stays.record_ids.shape == (0,)


def test_standardiser_is_fitted_on_its_argument_alone():
    nan = np.nan
    public = np.array([[1.0, nan, 5.0, nan], [3.0, 2.0, 5.0, nan], [5.0, 4.0, 5.0, nan]])
    fitted = standardise(public)
    assert fitted.mean.tolist() == [3, 3, 5, 0]
    np.testing.assert_allclose(fitted.scale, [math.sqrt(8 / 3), 1, 1, 1])
    assert fitted.indicated.tolist() == [1, 3]
    private = np.array([[nan, 5.0, 6.0, 2.0], [np.inf, nan, -np.inf, nan]])
    expected = [[0, 2, 1, 2, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert fitted.transform(private).tolist() == expected
    for row, wanted in itertools.zip_longest(private, expected):
        assert fitted.transform(row[None]).tolist() == [wanted]
    with pytest.raises(ValueError, match=r"shape \(n, 4\).*got shape \(2, 3\)"):
        fitted.transform(private[:, :3])
    for bad in (public[:0], public[0]):
        with pytest.raises(ValueError, match="at least one row"):
            standardise(bad)


@pytest.mark.data
def test_real_sets_and_a_logistic_regression_from_a_to_b():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    public, private = load_physionet2012("a"), load_physionet2012("b")
    assert (len(public.features), int(public.in_hospital_death.sum())) == (4000, 554)
    assert (len(private.features), int(private.in_hospital_death.sum())) == (4000, 568)
    counts = [i for i, name in enumerate(public.feature_names) if name.endswith("count")]
    without_series = public.features[:, counts].sum(axis=1) == 0
    assert public.record_ids[without_series].tolist() == [140501, 140936, 141264]
    # All rows of the series but -1 and the 24 blank temperatures, less the 4,000 descriptors.
    weights = public.feature_names.index("Weight count")
    others = [i for i in counts if i != weights]
    assert public.features[:, others].sum() == 1_608_815 - 24

    fitted = standardise(public.features)
    model = LogisticRegression(C=0.1, max_iter=2000)
    model.fit(fitted.transform(public.features), public.in_hospital_death)
    scores = model.decision_function(fitted.transform(private.features))
    assert roc_auc_score(private.in_hospital_death, scores) >= 0.83
