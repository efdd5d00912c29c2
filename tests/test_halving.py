"""Successive halving, of numbers as candidates: the nearer to a goal, the better."""

import pytest

from qexp.planning._halving import Effort, Halving

GOAL = 70
STAGES = ((None, 1, 10), (8, 2, 40), (3, 3, None))
EFFORT = Effort(3, STAGES, refinements=2, finalists=0, repeats=0)


class Trials:
    """What was prepared and tried; more records tell more of where the goal is."""

    def __init__(self):
        self.stages, self.seeds = [], []

    def prepare(self, surrogates, records):
        self.stages.append((surrogates, records))

        def tried(candidate, surrogate, seed):
            self.seeds.append(seed)
            grain = 1 + 100 // records
            return -float(abs(candidate // grain - GOAL // grain)) + 0.001 * surrogate, 0.5

        return tried


@pytest.fixture
def trials():
    return Trials()


def halving(trials, **changes):
    arguments = {"n_surrogates": 3, "n_records": 100, "seed": 7, **changes}
    return Halving(trials.prepare, EFFORT, **arguments)


def test_each_stage_takes_the_best_of_the_one_before(trials):
    search = halving(trials)
    search.run(range(100))
    assert trials.stages == [(1, 10), (2, 40), (3, 100)]
    stages = [outcome.stage for outcome in search.outcomes.values()]
    assert [stages.count(stage) for stage in range(3)] == [92, 5, 3]
    assert search.ranked()[0] in (70, 71)
    assert [search.outcomes[c].stage for c in search.ranked()] == sorted(stages, reverse=True)


def test_refinement_finds_what_the_grid_has_not(trials):
    search = halving(trials)
    search.run([0, 30, 64, 90])
    assert search.ranked()[0] == 64
    search.refine(lambda best: [best - 3, best + 3, best + 3])
    assert search.ranked()[0] == GOAL
    assert search.outcomes[GOAL].records == 100
    # The second refinement was about 67, below which 64 had been tried in full.
    assert trials.stages[3:] == [(3, 100)] * 2
    assert set(search.outcomes) == {0, 30, 64, 90, 61, 67, GOAL}


@pytest.mark.parametrize(("most", "found", "stages"), [(0, 52, 2), (4, 64, 4), (9, GOAL, 6)])
def test_refinement_goes_on_as_long_as_it_gets_further(trials, most, found, stages):
    search = halving(trials)
    search.run([40])
    search.refine(lambda best: [best - 6, best + 6], most=most)
    assert search.ranked()[0] == found
    assert len(trials.stages) == 3 + stages


def test_an_effort_asks_for_no_more_than_there_is(trials):
    search = halving(trials, n_surrogates=1, n_records=20)
    search.run(range(4))
    assert trials.stages == [(1, 10), (1, 20), (1, 20)]
    assert len(search.outcomes[search.ranked()[0]].pairs) == 1


def test_several_sources_give_as_many_surrogates_each(trials):
    effort = Effort(3, ((None, 1, 10), (8, None, None)), refinements=0, finalists=0, repeats=0)
    search = Halving(trials.prepare, effort.over(2), n_surrogates=7, n_records=100, seed=0)
    search.run([GOAL])
    assert trials.stages == [(2, 10), (7, 100)]


def test_every_stage_and_surrogate_has_a_seed_of_its_own(trials):
    halving(trials).run([GOAL])
    assert trials.seeds == [7, 1007, 1008, 2007, 2008, 2009]


def test_finalists_are_tried_again_with_fresh_noise():
    lucky, good, bad = "lucky", "good", "bad"
    seeds = []

    def tried(candidate, surrogate, seed):
        seeds.append(seed)
        first = seed < 1000
        return {lucky: 3.0 if first else 0.0, good: 2.0, bad: 1.0}[candidate], float(first)

    effort = Effort(2, ((None, 2, None),), refinements=0, finalists=2, repeats=3)
    search = Halving(lambda *_: tried, effort, n_surrogates=2, n_records=9, seed=5)
    search.run([bad, lucky, good])
    assert search.ranked() == [lucky, good, bad]
    seeds.clear()
    search.settle()
    assert search.ranked() == [good, lucky, bad]
    assert seeds == [1005, 1006, 2005, 2006, 3005, 3006] * 2
    assert search.outcomes[lucky].pairs == ((0.75, 0.25),) * 2
    assert search.outcomes[good].mean == 2
    assert search.outcomes[bad].pairs == ((1.0, 1.0),) * 2


def test_without_repeats_nothing_is_settled(trials):
    search = halving(trials)
    search.run(range(4))
    before = dict(search.outcomes)
    search.settle()
    assert search.outcomes == before


def test_ties_keep_their_order(trials):
    search = halving(trials)
    search.run([GOAL + 1, GOAL - 1])
    assert search.ranked() == [GOAL + 1, GOAL - 1]
