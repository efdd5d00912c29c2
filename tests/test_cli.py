import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import qexp
from qexp import cli
from qexp.bits import insecure_test_generator

COMMANDS = ["demo", "calibrate", "config", "certificate", "run", "ledger"]
LEDGER_ACTIONS = ["create", "show", "verify", "release"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qexp", *arguments], capture_output=True, text=True, timeout=120
    )


def test_the_top_help_names_every_command_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in [*COMMANDS, "exit codes", "130"]:
        assert word in text


@pytest.mark.parametrize("command", [*COMMANDS, *(f"ledger {name}" for name in LEDGER_ACTIONS)])
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"qexp {command}" in text.split("examples:")[1]
    assert "exit codes:" in text


def test_version_in_a_subprocess():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"qexp {qexp.__version__}\n")


def test_help_imports_neither_models_nor_plots():
    code = (
        "import sys, qexp.cli\n"
        "try:\n    qexp.cli.main(['demo', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(bool({'qexp.models', 'qexp.demo', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_calibrate_gives_the_exact_noise(capsys):
    assert cli.main(["calibrate", "--epsilon", "1", "--delta", "1e-5", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    # 40-digit reference: 1/mu = 3.730631634815942...
    assert figures["noise_multiplier"] == pytest.approx(3.730631634815942, rel=1e-14)
    mu = figures["mu"]
    assert mu == qexp.calibrate_mu(1.0, 1e-5)
    assert figures["mu_replace_one"] == 2 * mu
    assert figures["zcdp_rho"] == mu**2 / 2
    assert figures["epsilon_at_delta"]["1e-06"] == qexp.epsilon(1e-6, mu)
    assert figures["epsilon_at_delta"]["1e-05"] <= 1.0
    assert figures["rounds"] == 1
    assert figures["mu_per_round"] == mu


def test_calibrate_from_mu(capsys):
    assert cli.main(["calibrate", "--mu", "1", "--delta", "1e-5", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["noise_multiplier"] == 1.0
    assert figures["epsilon"] == qexp.epsilon(1e-5, 1.0) == pytest.approx(4.377178, abs=1e-6)


@pytest.mark.parametrize("rounds", [2, 3, 8, 64, 1000])
def test_rounds_together_never_cost_more_than_the_budget(rounds, capsys):
    arguments = ["calibrate", "--epsilon", "1", "--delta", "1e-5", "--rounds", str(rounds)]
    assert cli.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    together = qexp.compose_mu([figures["mu_per_round"]] * rounds)
    assert figures["mu"] * (1 - 1e-14) < together <= figures["mu"]
    # Who adds the noise that is told does not claim too much, by no more than rounding.
    for noise, mu in (("noise_multiplier", "mu"), ("noise_multiplier_per_round", "mu_per_round")):
        product = Fraction(figures[noise]) * Fraction(figures[mu])
        assert 1 <= product < 1 + Fraction(1, 2**51)
    assert cli.main(arguments) == 0
    assert f"mu of each of {rounds} rounds" in capsys.readouterr().out


@pytest.mark.parametrize("rounds", [10**6, 10**9 + 7, 10**20, 10**300])
def test_any_number_of_rounds_is_split_at_once(rounds, capsys):
    arguments = ["calibrate", "--mu", "0.7", "--delta", "1e-5", "--rounds", str(rounds)]
    assert cli.main([*arguments, "--json"]) == 0
    mu = json.loads(capsys.readouterr().out)["mu_per_round"]
    assert rounds * Fraction(mu) ** 2 <= Fraction(0.7) ** 2
    assert rounds * Fraction(math.nextafter(mu, 1.0)) ** 2 > Fraction(0.7) ** 2


def test_more_rounds_than_noise_can_serve_are_refused(capsys):
    arguments = ["calibrate", "--mu", "0.7", "--delta", "1e-5", "--rounds", str(10**640)]
    assert cli.main(arguments) == 1
    assert "which no noise gives: ask for fewer rounds" in capsys.readouterr().err


@pytest.mark.parametrize("target", [["--mu", "0.1"], ["--epsilon", "3"], ["--mu", "0.7"]])
def test_calibrate_prints_what_is_private(target, capsys):
    """Of figures written with a few digits: enough noise, and no privacy that is not there."""
    arguments = ["calibrate", *target, "--delta", "1e-5", "--rounds", "3"]
    assert cli.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert cli.main(arguments) == 0
    rows = [line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()]
    told = {name.strip(): value for name, value in rows}
    for name, figure in (
        ("noise multiplier (sigma / c)", "noise_multiplier"),
        ("noise multiplier of each", "noise_multiplier_per_round"),
        ("epsilon under replace_one", "epsilon_replace_one"),
        ("zCDP rho", "zcdp_rho"),
    ):
        assert figures[figure] <= float(told[name]) <= figures[figure] * (1 + 1e-5)
    for name, figure in (("mu", "mu"), ("mu of each of 3 rounds", "mu_per_round")):
        assert figures[figure] * (1 - 1e-9) <= float(told[name]) <= figures[figure]
    assert float(told["privacy"][1:].partition(",")[0]) >= figures["epsilon"]


def test_calibrate_prints_a_table(capsys):
    assert cli.main(["calibrate", "--epsilon", "1", "--delta", "1e-5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 8
    assert any("3.7306316" in line and "noise multiplier" in line for line in lines)
    column = lines[0].index("(1,")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["calibrate", "--delta", "1e-5"], "one of the arguments --epsilon --mu is required"),
        (["calibrate", "--epsilon", "1"], "--delta"),
        (["calibrate", "--epsilon", "0", "--delta", "1e-5"], "finite number above 0"),
        (["calibrate", "--epsilon", "inf", "--delta", "1e-5"], "finite number above 0"),
        (["calibrate", "--epsilon", "nan", "--delta", "1e-5"], "finite number above 0"),
        (["calibrate", "--epsilon", "one", "--delta", "1e-5"], "'one' is no number"),
        (["calibrate", "--epsilon", "1", "--delta", "1"], "strictly between 0 and 1"),
        (["calibrate", "--epsilon", "1", "--delta", "0"], "strictly between 0 and 1"),
        (["calibrate", "--mu", "-1", "--delta", "1e-5"], "finite number above 0"),
        (["calibrate", "--mu", "1", "--epsilon", "1", "--delta", "1e-5"], "not allowed with"),
        (["calibrate", "--mu", "1", "--delta", "1e-5", "--rounds", "0"], "integer of at least 1"),
        (["calibrate", "--mu", "1", "--delta", "1e-5", "--rounds", "1.5"], "integer of at least 1"),
        (["demo", "--data", "cifar"], "invalid choice: 'cifar'"),
        (["demo", "--eps", "1"], "unrecognized arguments: --eps"),
        (["demo", "--epsilon", "-1"], "finite number above 0"),
        (["demo", "--delta", "2"], "strictly between 0 and 1"),
        (["demo", "--seed", "-1"], "integer of at least 0"),
        (["certificate"], "FILE"),
        (["run", "job.toml", "--resume", "--dry-run"], "not allowed with"),
        (["run", "job.toml", "--ouput", "x"], "unrecognized arguments"),
        (["ledger"], "required: action"),
        (["ledger", "create", "x"], "one of the arguments --epsilon --mu is required"),
        (["ledger", "create", "x", "--mu", "1", "--relation", "add"], "invalid choice: 'add'"),
        (["ledger", "release", "x"], "ID"),
        (["ledger", "release", "x", "first"], "integer of at least 0"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_what_is_allowed(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_config_prints_versions(capsys):
    assert cli.main(["config"]) == 0
    out = capsys.readouterr().out
    assert f"qexp: {qexp.__version__}" in out
    assert "numpy:" in out


def test_certificate_of_a_saved_release(tmp_path: Path, capsys):
    release = qexp.sample_private_weights(
        np.zeros(3),
        np.random.default_rng(0).uniform(-1, 1, (50, 3)),
        curvature=qexp.IdentityCurvature(3),
        target_epsilon=1.0,
        target_delta=1e-5,
        clipping_norm=1.0,
        rng=insecure_test_generator(0),
    )
    release.save(tmp_path / "release.npz")
    assert cli.main(["certificate", str(tmp_path / "release.npz")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"statement": release.statement, "certificate": release.certificate()}
    assert "NOT PRIVATE" in document["statement"]


@pytest.mark.parametrize("content", [None, b"", b"not a release", b"PK\x03\x04 damaged"])
def test_certificate_of_a_bad_file_is_one_message_and_code_1(content, tmp_path: Path):
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    done = run("certificate", str(path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("qexp: ")
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path):
    done = run("certificate", str(tmp_path / "none.npz"), "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_epsilon_that_no_noise_is_small_enough_for(tmp_path: Path, capsys):
    pytest.importorskip("sklearn")
    arguments = ["demo", "--epsilon", "1e300", "--no-plot", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert "ask for a smaller target_epsilon" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_closed_pipe_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "qexp", "calibrate", "--mu", "1", "--delta", "1e-5"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


# Standard output is a pipe that nobody reads, and standard error says when the work is under way.
_SLOW_DEMO = """
import sys, time
import qexp.demo._run as run
from qexp import cli

work = run.{stage}
def slow(*arguments, **options):
    print("under way", file=sys.stderr, flush=True)
    time.sleep(60)
    return work(*arguments, **options)
run.{stage} = slow
raise SystemExit(cli.main(["demo", "--out", {out!r}]))
"""


@pytest.mark.parametrize(
    ("stage", "left"),
    [("_task", None), ("_curve", {"release.npz", "certificate.json"})],
)
def test_ctrl_c_exits_with_130_and_leaves_whole_files_only(stage, left, tmp_path: Path):
    out = tmp_path / "new" / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_DEMO.format(stage=stage, out=str(out))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "under way\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    if left is None:
        assert not (tmp_path / "new").exists()
    else:
        assert {path.name for path in out.iterdir()} == left
        assert qexp.PrivateRelease.load(out / "release.npz").generator_is_secure
        json.loads((out / "certificate.json").read_text())


_SLOW_IMPORT = """
import sys, time
from qexp import cli

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "qexp.job.run":
            print("under way", file=sys.stderr, flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
raise SystemExit(cli.main(["run", "job.toml"]))
"""

_SLOW_SETTINGS = """
import sys, time
import qexp.job.settings
from qexp import cli

def slow(*arguments, **options):
    print("under way", file=sys.stderr, flush=True)
    time.sleep(60)

qexp.job.settings.load_settings = slow
raise SystemExit(cli.main(["run", "job.toml"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (_SLOW_IMPORT, "qexp: interrupted by {} before the job began\n"),
        (_SLOW_SETTINGS, "\nqexp: interrupted; no file was left half-written\n"),
    ],
    ids=["import", "settings"],
)
def test_a_signal_before_the_job_is_an_interruption(number, program, words):
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "under way\n"
    time.sleep(0.2)
    process.send_signal(number)
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 4
    assert error == words.format(number.name)


def test_a_job_gives_its_signals_back(tmp_path: Path, capsys):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    assert cli.main(["run", str(tmp_path / "none.toml")]) == 2
    assert [signal.getsignal(number) for number in numbers] == before
    assert "none.toml" in capsys.readouterr().err


def test_a_ledger_from_creation_to_release(tmp_path: Path, capsys):
    path = str(tmp_path / "ledger.jsonl")
    create = ["ledger", "create", path, "--epsilon", "1", "--delta", "1e-5"]
    assert cli.main(create) == 0
    assert repr(qexp.calibrate_mu(1.0, 1e-5)) in capsys.readouterr().out
    ledger = qexp.SharedLedger(path)
    ledger.charge(0.1, "first release")
    ledger.reserve(0.05, "lost").__enter__()
    assert cli.main(["ledger", "show", path]) == 0
    text = capsys.readouterr().out
    for words in ("epsilon = 1 at delta", "in 1 charge(s)", "first release", "ID 3", "lost"):
        assert words in text
    assert cli.main(["ledger", "show", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["mu_spent"], found["mu_reserved"]) == (0.1, 0.05)
    assert found["open_reservations"][0]["number"] == 3
    assert cli.main(["ledger", "release", path, "3", "--note", "node lost"]) == 0
    assert "gave back mu = 0.05 of 'lost'" in capsys.readouterr().out
    assert ledger.open_reservations == ()
    assert cli.main(["ledger", "verify", path]) == 0
    assert f"whole: 5 lines, head {ledger.head[1]}" in capsys.readouterr().out
    Path(path).write_bytes(Path(path).read_bytes() + b'{"torn')
    assert cli.main(["ledger", "verify", path]) == 0
    assert "6 bytes of a line that was never acknowledged" in capsys.readouterr().out


@pytest.mark.parametrize("mu", [0.1, 0.3333333333, 0.12345678901234])
def test_what_was_spent_is_not_rounded_down(tmp_path, capsys, mu):
    path = str(tmp_path / "ledger.jsonl")
    qexp.SharedLedger.create(path, mu_budget=1.0).charge(mu)
    assert cli.main(["ledger", "show", path]) == 0
    said = re.search(r"spent +mu = (\S+) .* epsilon = (\S+) at delta", capsys.readouterr().out)
    assert mu <= float(said[1]) < mu * (1 + 1e-6)
    assert qexp.epsilon(1e-6, mu) <= float(said[2]) < qexp.epsilon(1e-6, mu) * (1 + 1e-4)


def test_a_ledger_for_users(tmp_path: Path, capsys):
    path = str(tmp_path / "ledger.jsonl")
    assert cli.main(["ledger", "create", path, "--mu", "1", "--unit", "user"]) == 0
    assert capsys.readouterr().out.endswith("replace_special, for each user\n")
    ledger = qexp.SharedLedger(path)
    with pytest.raises(ValueError, match="protects single records"):
        ledger.charge(0.1)
    ledger.charge(0.1, unit_of_privacy="user")
    assert qexp.SharedLedger(path).unit_of_privacy == "user"
    assert cli.main(["ledger", "show", path]) == 0
    assert "(replace_special, for each user)" in capsys.readouterr().out
    assert cli.main(["ledger", "show", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unit_of_privacy"] == "user"


def test_ledger_commands_tell_failures_apart(tmp_path: Path, capsys):
    path = str(tmp_path / "ledger.jsonl")
    assert cli.main(["ledger", "show", path]) == 2
    assert "no shared privacy ledger" in capsys.readouterr().err
    assert cli.main(["ledger", "create", path, "--epsilon", "1"]) == 2
    assert "go together" in capsys.readouterr().err
    assert cli.main(["ledger", "create", path, "--mu", "1"]) == 0
    assert cli.main(["ledger", "create", path, "--mu", "1"]) == 2
    assert "already" in capsys.readouterr().err
    assert cli.main(["ledger", "release", path, "7"]) == 2
    assert "open are: none" in capsys.readouterr().err
    for action in ("show", "verify"):
        assert cli.main(["ledger", action, "/dev/full"]) == 2
        assert "a device, a pipe or a socket" in capsys.readouterr().err
    Path(path).write_text("{}\n")
    for action in ("show", "verify"):
        assert cli.main(["ledger", action, path]) == 6
        assert "damaged" in capsys.readouterr().err


def test_run_explains_itself_and_names_a_bad_file(tmp_path: Path, capsys):
    assert cli.main(["run", "--explain"]) == 0
    assert "[privacy]" in capsys.readouterr().out
    assert cli.main(["run"]) == 2
    assert "give a job file" in capsys.readouterr().err
    assert cli.main(["run", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        cli.main(["run", str(tmp_path / "none.toml"), "--debug"])
