"""Read MIMIC-III tables in a process that does nothing else, so that its peak of memory is theirs.

    python -m experiments.mimic3_reading FOLDER 1GB

prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from qexp._memory import peak_mebibytes
from qexp.datasets import load_mimic3


def read(folder: Path, memory_limit: str) -> dict[str, float]:
    """Read the tables, and tell what it took this process."""
    before = int(peak_mebibytes())
    started, started_cpu = time.perf_counter(), time.process_time()
    stays = load_mimic3(folder.parent, folder=folder.name, memory_limit=memory_limit)
    return {
        "n_stays": len(stays.X),
        "features": stays.X.shape[1],
        "reading_seconds": round(time.perf_counter() - started, 1),
        "reading_cpu_seconds": round(time.process_time() - started_cpu, 1),
        "peak_mib": int(peak_mebibytes()),
        "peak_mib_before": before,
    }


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1]), sys.argv[2])))
