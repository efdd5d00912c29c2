"""What part of the gap to fine-tuning without privacy is noise."""

from dataclasses import asdict

import pytest

pytest.importorskip("dp_accounting")

from small_task import small_task

from experiments import noise_share
from experiments.fine_tuning import fine_tuned
from experiments.study.results import Store
from qexp import Schedule

SCHEDULE = Schedule(rounds=3, clipping_norm=1.0, step_size=1.0, damping=1e-2)


@pytest.fixture
def store(tmp_path, monkeypatch):
    made = Store(tmp_path)
    monkeypatch.setattr(noise_share, "TASKS", {"small": small_task})
    monkeypatch.setattr(noise_share, "Store", lambda: made)
    return made


def lines(method, epsilon, values, settings):
    return [
        {"task": "small", "method": method, "epsilon": epsilon, "delta": 1e-5, "seed": seed}
        | {"value": value, "hyperparameters": settings}
        for seed, value in enumerate(values)
    ]


def test_the_study_s_plan_runs_once_more_with_next_to_no_noise(store):
    settings = {**asdict(SCHEDULE), "budget": None}
    store.add(lines("qexp", 1.0, [0.5] * 6, settings) + lines("non_private", None, [0.9] * 6, {}))
    found = noise_share.measured("small")
    assert found["with_noise"] == [0.5] * 5
    assert found["without_privacy"] == [0.9] * 5
    task = small_task(0)
    for seed in (0, 1):  # whatever the noise, it is too small to matter
        again = fine_tuned(task, SCHEDULE, epsilon=1e9, delta=1e-5, seed=seed).model
        assert task.value(again) == pytest.approx(found["without_noise"][0], abs=0.005)
    row = noise_share._tables([{"task": "small", **found}])["what noise takes"].splitlines()[-1]
    noise, rest = (float(cell.split("±")[0]) for cell in row.split("|")[-3:-1])
    assert noise + rest == pytest.approx(40.0, abs=0.02)


def test_without_the_study_there_is_nothing_to_run(store):
    with pytest.raises(ValueError, match="the study has no qexp for small at epsilon = 1"):
        noise_share.measured("small")
