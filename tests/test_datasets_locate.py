import re

import pytest

from qexp.datasets import load_adult, load_mnist, load_physionet2012, load_usps

LOADERS = [
    (load_mnist, "mnist", "train-images-idx3-ubyte.gz", "LeCun"),
    (load_usps, "usps", "usps.npz or usps.h5", "Elements of Statistical Learning"),
    (lambda root=None: load_physionet2012("a", root), "physionet2012", "set-a.tar.gz", "PhysioNet"),
    (load_adult, "adult", "adult.data.gz or adult.data", "UCI Machine Learning Repository"),
]
loaders = pytest.mark.parametrize(("load", "folder", "file", "publisher"), LOADERS)


@loaders
@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_the_error_says_what_to_set(
    monkeypatch, load, folder, file, publisher, value
):
    if value is None:
        monkeypatch.delenv("QEXP_DATA", raising=False)
    else:
        monkeypatch.setenv("QEXP_DATA", value)
    with pytest.raises(FileNotFoundError, match="QEXP_DATA is not set") as caught:
        load()
    for part in (folder, file, publisher):
        assert part in str(caught.value)


@loaders
def test_missing_root_folder_and_file_are_told_apart(
    monkeypatch, tmp_path, load, folder, file, publisher
):
    root = tmp_path / "data"
    monkeypatch.setenv("QEXP_DATA", str(root))
    for message in (
        f"there is no folder {root}.",
        f"there is no folder {root / folder}.",
        f"{root / folder} holds no file",
    ):
        with pytest.raises(FileNotFoundError, match=re.escape(message)) as caught:
            load()
        for part in (str(root / folder), file, publisher):
            assert part in str(caught.value)
        (root / folder if root.exists() else root).mkdir(exist_ok=True)


@loaders
def test_root_given_wins_over_the_variable(monkeypatch, tmp_path, load, folder, file, publisher):
    monkeypatch.setenv("QEXP_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "here"))):
        load(root=tmp_path / "here")
