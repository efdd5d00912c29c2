"""Readers of real data sets in the formats that their publishers offer, checked as they are read.

Files are found through the environment variable ``QEXP_DATA``, a folder with one folder a data
set (``mnist``, ``usps``, ``physionet2012``, ``adult``, ``mimic3``). Nothing is downloaded and
nothing is written.
"""

from qexp.datasets._standardise import Standardiser, standardise
from qexp.datasets.adult import Adult, AdultRows, OneHot, load_adult, one_hot
from qexp.datasets.digits import Digits, load_digits
from qexp.datasets.mimic3 import MimicStays, load_mimic3
from qexp.datasets.mnist import Mnist, load_mnist, read_idx
from qexp.datasets.physionet2012 import IcuStays, load_physionet2012
from qexp.datasets.usps import Usps, load_usps

__all__ = [
    "Adult",
    "AdultRows",
    "Digits",
    "IcuStays",
    "MimicStays",
    "Mnist",
    "OneHot",
    "Standardiser",
    "Usps",
    "load_adult",
    "load_digits",
    "load_mimic3",
    "load_mnist",
    "load_physionet2012",
    "load_usps",
    "one_hot",
    "read_idx",
    "standardise",
]
