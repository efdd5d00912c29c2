"""The jobs in examples/ and what docs/batch-jobs.md says of job files and exit codes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qexp
from qexp.job.exit_codes import EXIT_CODES, ExitCode
from qexp.job.settings import load_settings
from qexp.ledger_file import SharedLedger, read_ledger

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DOCS = (ROOT / "docs" / "batch-jobs.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_job_with_a_script_beside_it(path):
    settings = load_settings(path)
    assert Path(settings.output.folder).parent == EXAMPLES / path.stem
    assert (EXAMPLES / f"prepare_{path.stem}.py").is_file()
    assert settings.run.insecure_test_seed is None


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "digits"
    script = [sys.executable, EXAMPLES / "prepare_digits.py", folder]
    subprocess.run(script, check=True, capture_output=True)
    return folder


def test_the_digits_run_as_they_are(digits, tmp_path):
    shutil.copy(EXAMPLES / "digits.toml", tmp_path)
    shutil.copytree(digits, tmp_path / "digits")
    done = subprocess.run(
        [sys.executable, "-m", "qexp", "run", tmp_path / "digits.toml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    release = qexp.PrivateRelease.load(tmp_path / "digits" / "out" / "weights.npz")
    assert release.generator_is_secure
    assert (release.epsilon, release.n_records) == (1.0, 897)


def test_the_job_file_in_the_docs_is_valid(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    path = tmp_path / "job.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", DOCS, re.DOTALL)[1])
    settings = load_settings(path)
    assert settings.private.features == ("/scratch/x-*.npy",)
    assert settings.run.wall_time == 3.0 * 3600 + 50 * 60


def test_every_exit_code_is_documented():
    for text in (re.search(r"## Exit codes\n(.*?)\n## ", DOCS, re.DOTALL)[1], EXIT_CODES):
        listed = [int(number) for number in re.findall(r"(?m)^(?:\| |  )(\d)\b", text)]
        assert listed == [code.value for code in ExitCode]


# What srun does for the batch script: it starts the ranks and passes signals on to them.
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do shift; done
exec "$@"
"""


def test_the_batch_script_resumes_a_job_whose_time_is_over(digits, tmp_path):
    """The script of the docs with stand-ins for Slurm: it ends with 4 and asks for a requeue."""
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH --job-name.*?)```", DOCS, re.DOTALL)[1]
    folder = tmp_path / "bin"
    folder.mkdir()
    tools = {
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho $@ > requeued\n",
        "qexp": f'#!/bin/bash\nexec {sys.executable} -m qexp "$@"\n',
    }
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (tmp_path / "batch.sh").write_text(script)
    shutil.copy(EXAMPLES / "digits.toml", tmp_path / "job.toml")
    shutil.copytree(digits, tmp_path / "digits")
    job = (tmp_path / "job.toml").read_text().replace("rounds = 4", "rounds = 300")
    (tmp_path / "job.toml").write_text(
        job.replace("delta = 1e-5", 'delta = 1e-5\nledger = "ledger.jsonl"')
    )
    SharedLedger.create(tmp_path / "ledger.jsonl", target_epsilon=1.0, target_delta=1e-5)
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_ID": "17",
        "PYTHONSAFEPATH": "1",
    }
    process = subprocess.Popen(
        ["bash", "batch.sh"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if json.loads(line)["event"] == "round":
            break
    process.terminate()
    rest = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == ExitCode.INTERRUPTED, rest
    assert json.loads(rest[-1])["reason"] == "SIGTERM"
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert 1 <= len(read_ledger(tmp_path / "ledger.jsonl").entries) < 300
