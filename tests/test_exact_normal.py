"""The exact normal sampler against a slow reference that reads the same words.

The reference works in rational numbers on top of mpmath's exponential and shares nothing with the
kernel but the words' layout. Random words would never meet the rare cases, so most words here are
made to tie.
"""

from fractions import Fraction
from functools import cache
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp import _core

UNIT = Fraction(1, 2**64)
TOP = 2**64 - 1
DIGITS = 2**42 - 1


class OutOfWords(Exception):
    pass


@cache
def weight(j):
    """199 exp(-j²/512), to 2000 bits."""
    with mpmath.workprec(3000):
        return Fraction(
            int(mpmath.floor(mpmath.ldexp(199 * mpmath.exp(-mpmath.mpf(j * j) / 512), 2000))),
            2**2000,
        )


def fraction(x):
    return x - x.numerator // x.denominator


OWNED = sum(weight(j).numerator // weight(j).denominator for j in range(192))


@cache
def units(j):
    """Whole units of a cell's fraction."""
    return int(fraction(weight(j)) / UNIT)


@cache
def edge(j):
    """Units of all cells before j among the slots left over."""
    return sum(units(i) + 1 for i in range(j))


class Real:
    """A uniform number: its digits so far as (value, resolution)."""

    def __init__(self, word, words):
        self.value, self.step, self.words = Fraction(word >> 22, 2**42), Fraction(1, 2**42), words

    def refine(self):
        self.step *= UNIT
        self.value += self.words.take() * self.step

    def below(self, bound):
        """x < bound, for a number that is no digit string's end."""
        while self.value <= bound < self.value + self.step:
            self.refine()
        return self.value < bound

    @staticmethod
    def less(x, y):
        """x < y. What one of them knows already, the other one learns first."""
        while x.value <= y.value < x.value + x.step or y.value <= x.value < y.value + y.step:
            if x.step >= y.step:
                # The kernel asks x before y for the same digit.
                both = x.step == y.step
                x.refine()
                if both:
                    y.refine()
            else:
                y.refine()
        return x.value < y.value


class Reference:
    def __init__(self, words):
        self.words, self.used = [int(word) for word in words], 0

    def take(self):
        if self.used == len(self.words):
            raise OutOfWords
        self.used += 1
        return self.words[self.used - 1]

    def draw(self, lattice_bits):
        while True:
            word = self.take()
            j = self.cell(word % 4096)
            if j is None:
                continue
            v = Real(word, self)
            factors = j // 256 + 1
            coins = iter([word >> 12])
            if not all(self.run(j, factors, coins, v) for _ in range(factors)):
                continue
            while (Fraction(2) ** lattice_bits / 16 * v.step) > 1:
                v.refine()
            x = Fraction(2) ** lattice_bits * (j + v.value) / 16
            floor = x.numerator // x.denominator
            return -floor - 1 if word >> 21 & 1 else floor

    def cell(self, slot):
        if slot < OWNED:
            j = 0
            while slot >= int(weight(j)):
                slot -= int(weight(j))
                j += 1
            return j
        position = (slot - OWNED) * 2**64 + self.take()
        for j in range(192):
            if position < edge(j + 1) - 1:
                return j
            if position == edge(j + 1) - 1:
                return j if self.uniform_below(fraction(weight(j) / UNIT)) else None
        if position > edge(192):
            return None
        g = 0
        while not self.take() & 1:
            g += 1
        return 192 + g if self.uniform_below(weight(192 + g) / UNIT * 2 ** (g + 1)) else None

    def uniform_below(self, bound):
        step = UNIT
        value = self.take() * step
        while value <= bound < value + step:
            step *= UNIT
            value += self.take() * step
        return value < bound

    def run(self, j, factors, coins, v):
        length, last = 0, v
        while True:
            coin = next(coins, None)
            coin = self.take() >> 12 if coin is None else coin
            if not self.prolong(j, factors, coin % 512, v):
                return length % 2 == 0
            word = self.take()
            z = Real(word, self)
            if not Real.less(z, last):
                return length % 2 == 0
            coins = iter([word >> 12])
            last, length = z, length + 1

    def prolong(self, j, factors, coin, v):
        which = coin
        if factors > 1:
            size = 1
            while size < factors:
                size *= 2
            while (value := self.take() % size) >= factors:
                pass
            which += 512 * value
        if which == 2 * j:
            return Real.less(Real(self.take(), self), v)
        return which < 2 * j


def reference(words, lattice_bits, count):
    source, draws, used = Reference(words), [], 0
    try:
        while len(draws) < count:
            draws.append(source.draw(lattice_bits))
            used = source.used
    except OutOfWords:
        pass
    return draws, used


def kernel(words, lattice_bits, count):
    out = np.zeros(count, np.int64)
    drawn, used = _core.draw_lattice_normals(np.array(words, np.uint64), lattice_bits, out)
    return out[:drawn].tolist(), used


def word(*, slot=0, coin=511, sign=0, head=0):
    return slot | coin << 12 | sign << 21 | head << 22


def slot_of(j):
    """The first slot that cell j owns."""
    return sum(int(weight(i)) for i in range(j))


def check(words, lattice_bits=32, count=4):
    given = kernel(words, lattice_bits, count)
    assert given == reference(words, lattice_bits, count)
    return given


@pytest.mark.parametrize("lattice_bits", [0, 3, 4, 32, 46, 47, 58])
def test_random_words(lattice_bits):
    words = np.random.default_rng(lattice_bits).integers(0, 2**64, 4000, dtype=np.uint64)
    draws, used = check(words, lattice_bits, 4000)
    assert len(draws) > 1500
    assert used > 3900


def test_every_slot_belongs_to_its_cell():
    # A coin of 511 ends every run of an owned slot's cell before it begins.
    draws, used = kernel([word(slot=slot) for slot in range(OWNED)], 4, OWNED)
    assert used == OWNED
    assert np.array_equal(
        np.bincount(draws, minlength=192),
        [int(weight(j)) for j in range(192)][: max(draws) + 1] + [0] * (192 - max(draws) - 1),
    )


def test_the_weights_fit_the_slots():
    assert sum(weight(j) for j in range(400)) + 193 * UNIT < 4096
    # What the far cells need: their shares are at most 1.
    shares = [weight(192 + g) / UNIT * 2 ** (g + 1) for g in range(300)]
    assert shares[0] < 1
    assert all(later < earlier for earlier, later in pairwise(shares))


def at(position, *more):
    """Words of a draw at some unit of the slots left over."""
    return [word(slot=OWNED + (position >> 64)), position % 2**64, *more]


@pytest.mark.parametrize("j", range(192))
def test_the_edges_of_every_cells_fraction(j):
    last = edge(j + 1) - 1
    if units(j) > 0:
        draws, used = check(at(edge(j)), 4, 1)
        assert (draws, used) == ([j], 2)
        draws, used = check(at(last - 1), 4, 1)
        assert (draws, used) == ([j], 2)
    # In the unit that the cell owns in part, its further digits decide, however many tie.
    digits, rest = [], fraction(weight(j) / UNIT)
    for _ in range(3):
        rest *= 2**64
        digits.append(int(rest))
        rest = fraction(rest)
    for ties in range(3):
        known, digit = digits[:ties], digits[ties]
        if digit > 0:
            draws, used = check(at(last, *known, digit - 1), 4, 1)
            assert (draws, used) == ([j], 3 + ties)
        # Refused, so the next draw's word counts.
        draws, used = check(at(last, *known, digit + 1, word(slot=7, head=5)), 4, 1)
        assert (draws, used) == ([0], 4 + ties)


@pytest.mark.parametrize("g", [0, 1, 63, 64, 70, 130, 400])
def test_far_cells(g):
    share = weight(192 + g) / UNIT * 2 ** (g + 1)
    digits, rest = [], share
    while not digits or digits[-1] == 0:
        rest *= 2**64
        digits.append(int(rest))
        rest = fraction(rest)
    digits.append(int(rest * 2**64))
    proposed = at(edge(192), *[2] * g, 1)
    # Beyond x = 16 there are several runs, which ask for one of several ranges of coins first.
    several = [1, *[word()] * 5] if g >= 64 else []
    for drawn, more in ((digits[-1] - 1, several), (digits[-1] + 1, [])):
        words = [*proposed, *digits[:-1], drawn, *more, *[word(slot=30, head=9)] * 12]
        check(words, 4, 2)
    # The largest range and the largest coin end every run before it begins.
    end = [word(slot=(192 + g) // 256)] * 10
    draws, _ = kernel([*proposed, *digits[:-1], digits[-1] - 1, *end], 4, 1)
    assert draws == [192 + g]


def test_beyond_all_cells_the_draw_starts_again():
    for position in (edge(192) + 1, (4096 - OWNED) * 2**64 - 1):
        draws, used = check(at(position, word(slot=slot_of(3))), 4, 1)
        assert (draws, used) == ([3], 3)


@pytest.mark.parametrize(
    ("digits_of_v", "digits_of_z", "kept"),
    [
        # z below v and no further step: the run has odd length.
        ([100], [99], False),
        ([100], [101], True),
        # Equal heads; then one digit each in turn, z's before v's.
        ([100, 8], [100, 7], False),
        ([100, 8], [100, 9], True),
        ([100, 8, 8, 0], [100, 8, 8, 1], True),
        ([100, TOP, 1], [100, TOP, 0], False),
    ],
)
def test_ties_in_a_run(digits_of_v, digits_of_z, kept):
    tails = [d for pair in zip(digits_of_z[1:], digits_of_v[1:], strict=True) for d in pair]
    first = word(slot=slot_of(20), coin=0, head=digits_of_v[0])
    step = word(coin=511, head=digits_of_z[0])
    fresh = word(slot=0)
    draws, used = check([first, step, *tails, fresh], 4, 1)
    assert (draws, used) == (([20], 2 + len(tails)) if kept else ([0], 3 + len(tails)))


@pytest.mark.parametrize("sign", [0, 1])
def test_the_coin_that_asks_v(sign):
    j, head = 20, 1234
    for digits, true in ([head - 1], True), ([head + 1], False), ([head, 3, 4], True):
        first = word(slot=slot_of(j), coin=2 * j, sign=sign, head=head)
        u = [word(head=digits[0]), *digits[1:]]
        # True leads to a step, here with z above v, which ends the run at once.
        step = [word(head=DIGITS)] if true else []
        draws, used = check([first, *u, *step], 4, 1)
        assert (draws, used) == ([-j - 1 if sign else j], 1 + len(u) + len(step))


def test_digits_beyond_the_first_reach_the_draw():
    first = word(slot=slot_of(9), head=0b1011, sign=1)
    draws, used = check([first, 0b110 << 61], 49, 1)
    assert used == 2
    assert draws == [-((9 << 42 | 0b1011) << 3 | 0b110) - 1]


few = st.sampled_from
words_that_tie = st.lists(
    st.one_of(
        few([0, 1, 2, TOP, TOP - 1]),
        st.builds(
            word,
            slot=few([0, slot_of(1), slot_of(20), slot_of(40), OWNED - 1, OWNED, OWNED + 9, 4095]),
            coin=few([0, 1, 2, 3, 39, 40, 41, 80, 511]),
            sign=few([0, 1]),
            head=few([0, 1, 77, DIGITS]),
        ),
        few([(edge(j) - back) % 2**64 for j in (1, 2, 3, 50, 192) for back in (0, 1, 2)]),
    ),
    max_size=60,
)


@settings(max_examples=400)
@given(words=words_that_tie, lattice_bits=few([0, 4, 5, 32, 46, 47, 60]))
def test_words_that_tie(words, lattice_bits):
    draws, used = reference(words, lattice_bits, 40)
    wrapped = [(d + 2**63) % 2**64 - 2**63 for d in draws]
    assert kernel(words, lattice_bits, 40) == (wrapped, used)
