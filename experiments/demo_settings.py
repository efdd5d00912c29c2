"""Choose the settings of a demonstration on its public data alone.

    python -m experiments.demo_settings digits
    python -m experiments.demo_settings icu

Scores a grid of damping, clipping norm and step size on surrogate shifts of public records, with
the number of private records and the privacy of the real draw. The best is what stands in
qexp/demo. The last line printed is JSON. icu needs the data set (environment variable QEXP_DATA).
"""

import argparse
import json
from collections import defaultdict

import numpy as np

from qexp.demo import digits, icu
from qexp.demo._task import Settings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=["digits", "icu"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    arguments = parser.parse_args()
    score = {"digits": digits.score_settings, "icu": icu.score_settings}[arguments.data]
    scores: dict[Settings, list[float]] = defaultdict(list)
    for seed in range(arguments.seeds):
        found = score(seed, epsilon=arguments.epsilon, delta=arguments.delta)
        for settings, value in found.items():
            scores[settings].append(value)
    ranked = sorted(scores.items(), key=lambda item: -np.mean(item[1]))
    for settings, values in ranked[:8]:
        print(f"{np.mean(values):.4f}  {settings}")
    result = {
        "study": f"demo_settings {arguments.data}",
        "seeds": arguments.seeds,
        "settings": vars(ranked[0][0]),
        "surrogate_value": float(np.mean(ranked[0][1])),
        "grid_size": len(ranked),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
