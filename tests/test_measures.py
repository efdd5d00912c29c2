import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp.measures import area_under_roc, average_precision, calibration_error

RECORDS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6).map(lambda x: x / 6)), min_size=1, max_size=30
)


@given(RECORDS)
def test_area_is_the_share_of_ordered_pairs(records):
    y, scores = zip(*records, strict=True)
    pairs = [(a > b) + 0.5 * (a == b) for i, a in records if i == 1 for j, b in records if j == 0]
    expected = np.mean(pairs) if pairs else 0.5
    assert area_under_roc(y, scores) == pytest.approx(expected, abs=1e-12)


@given(RECORDS)
def test_precision_and_area_agree_with_scikit_learn(records):
    metrics = pytest.importorskip("sklearn.metrics")
    y, scores = map(np.array, zip(*records, strict=True))
    if y.any():
        assert average_precision(y, scores) == pytest.approx(
            metrics.average_precision_score(y, scores), abs=1e-12
        )
    else:
        assert average_precision(y, scores) == 0
    if 0 < y.sum() < len(y):
        assert area_under_roc(y, scores) == pytest.approx(metrics.roc_auc_score(y, scores))


def test_calibration_error():
    y = np.array([0, 1, 0, 1])
    assert calibration_error(y, [0.0, 1.0, 0.0, 1.0]) == 0
    assert calibration_error(y, [1.0, 0.0, 1.0, 0.0]) == 1
    assert calibration_error(y, [0.5] * 4, bins=1) == 0
    assert calibration_error([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.6], bins=2) == pytest.approx(0.3)
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    assert calibration_error(rng.random(20_000) < p, p) < 0.02


@pytest.mark.parametrize("measure", [area_under_roc, average_precision, calibration_error])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_that_is_no_number_has_no_measure(measure, place):
    scores = np.array([0.2, 0.5, 0.7])
    scores[place] = np.nan
    assert np.isnan(measure([0, 1, 1], scores))


def test_infinite_scores_are_as_good_as_large_ones():
    for y in ([0, 1, 0], [1, 1, 0], [0, 0, 1]):
        for measure in (area_under_roc, average_precision):
            assert measure(y, [-np.inf, np.inf, np.inf]) == measure(y, [-1.0, 1.0, 1.0])


@pytest.mark.parametrize("measure", [area_under_roc, average_precision, calibration_error])
def test_wrong_arguments_are_refused(measure):
    with pytest.raises(ValueError, match="0 or 1"):
        measure([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"both need \(n,\)"):
        measure([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"both need \(n,\)"):
        measure([[0, 1]], [[0.1, 0.2]])


def test_no_bins_and_no_records_are_refused():
    with pytest.raises(ValueError, match="0 records"):
        calibration_error([], [])
    with pytest.raises(ValueError, match="0 bins"):
        calibration_error([0, 1], [0.1, 0.2], bins=0)
