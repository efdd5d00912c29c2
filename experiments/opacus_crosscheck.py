"""DP-SGD against Opacus, an independent implementation, at equal noise.

    python -m experiments.opacus_crosscheck qexp  --output qexp.json     (in qexp's environment)
    python experiments/opacus_crosscheck.py opacus --task qexp.npz --output opacus.json
                                           (in one with torch, opacus and numpy)
    python -m experiments.opacus_crosscheck compare qexp.json opacus.json

The first makes the task, too, and saves it beside its output: a perceptron pretrained on upright
digits of scikit-learn, private digits mirrored. Both run the same q, T, σ, C and learning rate over
several seeds. Then ε of Opacus' PRV accountant and qexp's figure have to agree to 1e-3, and 0 has
to be in the 95 % interval (Welch) of the difference of the mean accuracies. Where one environment
has all of it, `python -m experiments all` does both and keeps the comparison.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

RATE, STEPS, SIGMA, NORM, LEARNING_RATE, DELTA = 0.2, 150, 4.0, 1.0, 0.5, 1e-5
SIZES = (64, 32, 10)


def run_qexp(path: Path, seeds: range) -> dict[str, Any]:
    from qexp.bits import insecure_test_generator
    from qexp.datasets import load_digits
    from qexp.models import mlp
    from qexp.rivals import SGDSettings, dp_sgd
    from qexp.rivals._accounting import Target, poisson_epsilon

    digits = load_digits()
    X = (digits.images.reshape(len(digits.images), -1) / 4).astype(np.float32)
    y = np.asarray(digits.labels).astype(np.int64)
    mirrored = np.ascontiguousarray(X.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64))
    model = mlp(SIZES).fit(X[:500], y[:500], epochs=15)
    np.savez(
        path.with_suffix(".npz"),
        weights=model.weights,
        X=mirrored[500:1400],
        y=y[500:1400],
        X_test=mirrored[1400:],
        y_test=y[1400:],
    )
    settings = SGDSettings(
        steps=STEPS, sampling_rate=RATE, learning_rate=LEARNING_RATE, clipping_norm=NORM
    )
    epsilon = poisson_epsilon(RATE, STEPS, SIGMA, DELTA, "replace_special")
    started = time.perf_counter()
    # The study sets the noise; a job sets the privacy.
    with mock.patch.object(Target, "sampled_noise", return_value=SIGMA):
        accuracies = [
            dp_sgd(
                model,
                mirrored[500:1400],
                y[500:1400],
                target_epsilon=epsilon,
                target_delta=DELTA,
                settings=settings,
                rng=insecure_test_generator(seed),
            ).model.score(mirrored[1400:], y[1400:])
            for seed in seeds
        ]
    seconds = (time.perf_counter() - started) / len(seeds)
    return {
        "epsilon": epsilon,
        "first_seed": seeds.start,
        "accuracies": accuracies,
        "seconds": seconds,
    }


def run_opacus(task: Path, seeds: range) -> dict[str, Any]:
    import torch
    from opacus.accountants import PRVAccountant

    torch.set_num_threads(1)
    arrays = np.load(task)
    X_test, y_test = torch.from_numpy(arrays["X_test"]), torch.from_numpy(arrays["y_test"])
    accuracies = []
    started = time.perf_counter()
    for seed in seeds:
        model = opacus_dp_sgd(
            arrays["weights"],
            SIZES,
            arrays["X"],
            arrays["y"],
            rate=RATE,
            steps=STEPS,
            sigma=SIGMA,
            clipping_norm=NORM,
            learning_rate=LEARNING_RATE,
            seed=seed,
        )
        with torch.no_grad():
            hits = model(X_test).argmax(dim=1) == y_test
        accuracies.append(float(hits.double().mean()))
    seconds = (time.perf_counter() - started) / len(seeds)
    accountant = PRVAccountant()
    accountant.history = [(SIGMA, RATE, STEPS)]
    epsilon = accountant.get_epsilon(DELTA, eps_error=1e-4, delta_error=1e-10)
    return {
        "epsilon": float(epsilon),
        "first_seed": seeds.start,
        "accuracies": accuracies,
        "seconds": seconds,
    }


def torch_and_opacus() -> tuple[Any, Any]:
    """Import both, or say what to install."""
    try:
        import opacus
        import torch
    except ImportError as error:
        raise ImportError(
            "a comparison with Opacus takes torch and Opacus in this environment: "
            "pip install torch==2.13.0 opacus",
            name=error.name,
        ) from error
    return torch, opacus


def opacus_dp_sgd(
    weights: Any,
    sizes: tuple[int, ...],
    X: Any,
    y: Any,
    *,
    rate: float,
    steps: int,
    sigma: float,
    clipping_norm: float,
    learning_rate: float,
    momentum: float = 0.0,
    optimizer: str = "sgd",
    averaging: float = 0.0,
    seed: int,
) -> Any:
    """Fine-tune a perceptron of tanh units by Opacus, and give the torch module.

    `averaging` is that of :class:`qexp.rivals.SGDSettings`, done by torch.

    Raises
    ------
    ImportError
        If torch or Opacus is not installed.
    """
    torch, opacus = torch_and_opacus()
    torch.manual_seed(seed)
    model = torch.nn.Sequential()
    start = 0
    for inp, out in itertools.pairwise(sizes):
        layer = torch.nn.Linear(inp, out)
        matrix = weights[start : start + out * (inp + 1)].reshape(out, inp + 1)
        start += out * (inp + 1)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(matrix[:, :-1].copy()))
            layer.bias.copy_(torch.from_numpy(matrix[:, -1].copy()))
        if len(model):
            model.append(torch.nn.Tanh())
        model.append(layer)
    # Copied before Opacus hooks onto the model.
    average = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda mean, new, t: mean + (new - mean) * (1 - _decay(averaging, int(t)))
    )
    average.update_parameters(model)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(y).long()),
        batch_size=round(rate * len(y)),
    )
    # Opacus divides by the expected batch size too; its clipping norm is not divided out, which
    # to Adam makes no difference.
    inner = (
        torch.optim.Adam(model.parameters(), lr=learning_rate)
        if optimizer == "adam"
        else torch.optim.SGD(
            model.parameters(), lr=learning_rate / clipping_norm, momentum=momentum
        )
    )
    private, outer, loader = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=inner,
        data_loader=loader,
        noise_multiplier=sigma,
        max_grad_norm=clipping_norm,
    )
    done = 0
    while done < steps:
        for features, labels in loader:
            outer.zero_grad()
            torch.nn.functional.cross_entropy(private(features), labels).backward()
            outer.step()
            done += 1
            if averaging:
                average.update_parameters(model)
            if done == steps:
                break
    return average.module if averaging else model


def _decay(most: float, step: int) -> float:
    """Give the decay of an average that has seen so many steps, shorter at first."""
    return min(most, (1 + step) / (10 + step))


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    from scipy import stats

    values = [np.asarray(side["accuracies"]) for side in (ours, theirs)]
    test = stats.ttest_ind(*values, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return {
        "rate": RATE,
        "steps": STEPS,
        "sigma": SIGMA,
        "epsilon_qexp": round(ours["epsilon"], 5),
        "epsilon_opacus": round(theirs["epsilon"], 5),
        "epsilons_agree": abs(ours["epsilon"] - theirs["epsilon"]) <= 1e-3,
        "first_seeds": [side["first_seed"] for side in (ours, theirs)],
        "runs": [len(side) for side in values],
        "accuracy_qexp": round(float(values[0].mean()), 4),
        "accuracy_opacus": round(float(values[1].mean()), 4),
        "standard_deviations": [round(float(side.std(ddof=1)), 4) for side in values],
        "difference": round(float(values[0].mean() - values[1].mean()), 4),
        "interval_of_difference": [round(float(low), 4), round(float(high), 4)],
        "p_value": round(float(test.pvalue), 3),
        "accuracies_agree": bool(low <= 0 <= high),
        "seconds_qexp": round(ours["seconds"], 2),
        "seconds_opacus": round(theirs["seconds"], 2),
    }


def measured(first_seed: int, seeds: int) -> dict[str, Any]:
    """Run both sides over so many seeds, and compare them. Takes torch and Opacus."""
    every = range(first_seed, first_seed + seeds)
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.json"
        ours = run_qexp(task, every)
        theirs = run_opacus(task.with_suffix(".npz"), every)
    return compare(ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("qexp", "opacus"):
        command = commands.add_parser(name)
        command.add_argument("--output", type=Path, required=True)
        command.add_argument("--seeds", type=int, default=100)
        command.add_argument("--first-seed", type=int, default=0)
        if name == "opacus":
            command.add_argument("--task", type=Path, required=True, help="the .npz that qexp left")
    command = commands.add_parser("compare")
    command.add_argument("files", type=Path, nargs=2)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        ours, theirs = (json.loads(path.read_text()) for path in arguments.files)
        print(json.dumps(compare(ours, theirs), indent=1))
        return
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    result = (
        run_qexp(arguments.output, seeds)
        if arguments.command == "qexp"
        else run_opacus(arguments.task, seeds)
    )
    arguments.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
