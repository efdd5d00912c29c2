import gzip

import numpy as np
import pytest

from qexp.datasets import AdultRows, load_adult, one_hot

TRAIN = """\
39, Local-gov, 77516, Masters, 13, Divorced, Sales, Wife, White, Female, 2174, 0, 40, Cuba, <=50K
50, ?, 83311, HS-grad, 9, Divorced, ?, Husband, Black, Male, 0, 0, 13, ?, >50K

"""
TEST = """\
|1x3 Cross validator
25, Private, ?, 11th, 7, Never-married, Sales, Husband, Black, Male, 0, 0, 40, United-States, >50K.

"""


def write_adult(root, train=TRAIN, test=TEST, packed=True):
    folder = root / "adult"
    folder.mkdir(exist_ok=True)
    for name, text in (("adult.data", train), ("adult.test", test)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_small_adult(tmp_path, packed):
    write_adult(tmp_path, packed=packed)
    adult = load_adult(tmp_path)
    assert len(adult.train) == 2
    assert adult.train.numeric[0].tolist() == [39, 77516, 13, 2174, 0, 40]
    assert adult.train.categorical[1].tolist() == [
        *("", "HS-grad", "Divorced", "", "Husband", "Black", "Male", "")
    ]
    assert adult.train.over_50k.tolist() == [0, 1]
    assert np.isnan(adult.test.numeric[0, 1])
    assert adult.test.over_50k.tolist() == [1]


def test_one_hot_knows_public_rows_only(tmp_path):
    write_adult(tmp_path)
    adult = load_adult(tmp_path)
    encoder = one_hot(adult.train)
    public = encoder.transform(adult.train)
    assert public.shape == (2, len(encoder.feature_names))
    column = {name: public[:, i].tolist() for i, name in enumerate(encoder.feature_names)}
    assert column["age"] == [-1, 1]
    assert column["sex=Male"] == [0, 1]
    assert column["native-country=Cuba"] == [1, 0]
    assert "native-country=" not in column
    private = encoder.transform(adult.test)
    column = {name: private[0, i] for i, name in enumerate(encoder.feature_names)}
    assert column["fnlwgt"] == 0
    assert column["native-country=Cuba"] == 0
    assert column["race=Black"] == 1
    assert sum(column[name] for name in column if name.startswith("education=")) == 0


def test_one_hot_names_indicators_and_refuses_nothing_at_all(tmp_path):
    write_adult(tmp_path)
    rows = load_adult(tmp_path).test
    encoder = one_hot(rows)
    assert "fnlwgt missing" in encoder.feature_names
    assert encoder.transform(rows).shape == (1, len(encoder.feature_names))
    with pytest.raises(ValueError, match="at least one row"):
        one_hot(rows[:0])


def test_rows_can_be_chosen(tmp_path):
    write_adult(tmp_path)
    rows = load_adult(tmp_path).train
    chosen = rows[np.array([False, True])]
    assert isinstance(chosen, AdultRows)
    assert chosen.numeric[:, 0].tolist() == [50]
    assert chosen.categorical[:, 6].tolist() == ["Male"]
    assert chosen.over_50k.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("Wife, ", ""), "line 1 has 14 fields, not 15"),
        (lambda t: t.replace(">50K", ">50K."), "line 2 does not end in <=50K or >50K"),
        (lambda t: t.replace("50, ?", "fifty, ?"), "line 2 has no number where one of age"),
        (lambda t: t[:-10], "line 2 "),
        (lambda t: "\n", "holds no rows"),
    ],
)
def test_damaged_rows_are_refused_without_their_values(tmp_path, change, message):
    write_adult(tmp_path, train=change(TRAIN))
    with pytest.raises(ValueError, match=message) as caught:
        load_adult(tmp_path)
    assert str(tmp_path / "adult" / "adult.data.gz") in str(caught.value)
    assert "fifty" not in str(caught.value)


def test_test_file_counts_its_comment_and_wants_full_stops(tmp_path):
    write_adult(tmp_path, test=TEST.replace("K.", "K"))
    with pytest.raises(ValueError, match=r"adult\.test\.gz: line 2 does not end in <=50K\. or"):
        load_adult(tmp_path)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"39, plain text"])
def test_damaged_gzip_is_refused(tmp_path, damage):
    path = write_adult(tmp_path) / "adult.test.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"adult\.test\.gz: not a complete gzip file"):
        load_adult(tmp_path)


@pytest.mark.data
def test_real_adult():
    adult = load_adult()
    assert (len(adult.train), int(adult.train.over_50k.sum())) == (32561, 7841)
    assert (len(adult.test), int(adult.test.over_50k.sum())) == (16281, 3846)
    assert np.isfinite(adult.train.numeric).all()
    encoder = one_hot(adult.train)
    assert encoder.transform(adult.test).shape == (16281, len(encoder.feature_names))
    assert [len(levels) for levels in encoder.levels] == [8, 16, 7, 14, 6, 5, 2, 41]
