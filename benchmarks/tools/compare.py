"""Compare two builds of qexp by turns: A B A B, and print bands of their ratios.

    python benchmarks/tools/compare.py OLD/bin/python NEW/bin/python
    python benchmarks/tools/compare.py OLD/bin/python NEW/bin/python --bench 'fwht|srht' --rounds 15
    python benchmarks/tools/compare.py OLD/bin/python NEW/bin/python --fail-above 1.10

OLD and NEW are the interpreters of two virtual environments, each with its own build of qexp (and
scipy and threadpoolctl). The suites are this checkout's for both. One process an environment stays
alive; a benchmark's calls take turns between them, a few milliseconds each, and a round's ratio is
NEW's time over OLD's: above 1 is slower. Foreign load hits both alike, so the ratios hold still
where absolute times do not. Give the same interpreter twice to see the noise.

With --fail-above the exit code is 1 if some benchmark's lower quartile exceeds the limit, which
guards a pull request.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="interpreter of the environment that counts as 1")
    parser.add_argument("new", help="interpreter of the environment to judge")
    parser.add_argument("--bench", default="", help="regular expression that names must contain")
    parser.add_argument("--rounds", type=int, default=11, help="ratios a benchmark (default 11)")
    parser.add_argument("--profile", choices=["small", "cluster"], default="small")
    parser.add_argument("--threads", type=int, default=1, help="number of threads (default 1)")
    parser.add_argument("--fail-above", type=float, metavar="RATIO")
    parser.add_argument("--json", type=Path, help="write all ratios to this file")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds is {given.rounds}; it needs at least 1")

    workers = [_Worker(python, given.profile) for python in (given.old, given.new)]
    try:
        lists = [worker.ask({"do": "list"})["benchmarks"] for worker in workers]
        names = [
            (name, params)
            for name, params in lists[0]
            if re.search(given.bench, f"{name}{params}")
            and (name, params) in [tuple(item) for item in lists[1]]
            and _threads_of(name, params) in (None, given.threads)
        ]
        if not names:
            print("no benchmark matches", file=sys.stderr)
            return 2
        print(f"{'benchmark':<68} {'median':>7} {'quartiles':>15}")
        results, slower = {}, []
        for name, params in names:
            ratios = _ratios(workers, name, params, given.rounds)
            title = f"{name}({', '.join(map(str, params))})"
            if isinstance(ratios, str):
                print(f"{title:<68} {ratios}")
                continue
            results[title] = ratios
            low, middle, high = quartiles(ratios)
            mark = ""
            if given.fail_above is not None and low > given.fail_above:
                slower.append(title)
                mark = "  slower"
            print(f"{title:<68} {middle:7.3f}   {low:.3f} – {high:.3f}{mark}", flush=True)
    finally:
        for worker in workers:
            worker.close()
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if slower:
        print(f"{len(slower)} slower than {given.fail_above} in three rounds out of four")
    return 1 if slower else 0


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Give the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _threads_of(name: str, params: list[Any]) -> int | None:
    """Give the last parameter, which is a suite's threads; calibration has none."""
    return params[-1] if not name.startswith("calibration.") else None


def _ratios(workers: list[_Worker], name: str, params: list[Any], rounds: int) -> list[float] | str:
    replies = [worker.ask({"do": "begin", "name": name, "params": params}) for worker in workers]
    if skipped := next((reply["skip"] for reply in replies if "skip" in reply), None):
        for worker in workers:
            worker.ask({"do": "end"})
        return f"skipped: {skipped}"
    # As many calls a sample in both, so that fixed costs are alike.
    number = max(reply["number"] for reply in replies)
    ratios = []
    for i in range(rounds):
        seconds = [0.0, 0.0]
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            seconds[side] = workers[side].ask({"do": "sample", "number": number})["seconds"]
        ratios.append(seconds[1] / seconds[0])
    for worker in workers:
        worker.ask({"do": "end"})
    return ratios


class _Worker:
    """A process of one environment that runs what it is asked to, one line of JSON each way."""

    def __init__(self, python: str, profile: str) -> None:
        # Not from a checkout's root, where `import qexp` would find the sources.
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [os.path.abspath(python), __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder.name,
            env=os.environ | {"QEXP_BENCH_PROFILE": profile},
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args[0]} ended; its message stands above")  # type: ignore[index]
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


def _work(requests: IO[str], replies: IO[str]) -> None:
    # The path leads to qexp's sources, too: what is installed is imported before.
    import qexp  # noqa: F401

    sys.path.insert(0, str(ROOT))
    from benchmarks import common

    known = {
        name: (cls, method) for name, cls, method, _ in common.benchmarks("time") if cls is not None
    }
    call: Any = None
    instance: Any = None
    params: list[Any] = []
    for line in requests:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        if request["do"] == "list":
            reply["benchmarks"] = [
                (name, list(combination))
                for name, _, _, combinations in common.benchmarks("time")
                for combination in combinations
            ]
        elif request["do"] == "begin":
            cls, method = known[request["name"]]
            instance, params = cls(), request["params"]
            try:
                instance.setup(*params)
                bound = getattr(instance, method)
                call = lambda bound=bound, params=params: bound(*params)  # noqa: E731
                reply["number"] = common.repeats(call)
            except NotImplementedError as skip:
                reply["skip"] = str(skip)
        elif request["do"] == "sample":
            threads = params[-1] if isinstance(params[-1], int) else 1
            seconds = common.sample(call, request["number"], common.clock(threads))
            reply["seconds"] = seconds
        elif request["do"] == "end":
            getattr(instance, "teardown", lambda *_: None)(*params)
            instance = call = None
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        _work(sys.stdin, sys.stdout)
    else:
        sys.exit(main())
