"""``qexp ledger``."""

from __future__ import annotations

import argparse

from qexp._digits import rounded_down, rounded_up
from qexp._json import strict_json
from qexp.cli import _values
from qexp.cli._commands import Commands

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the command."""
    ledgers = commands.group(
        "ledger",
        "action",
        scripted=True,
        help="make and look after a privacy ledger that jobs share",
        description="A shared ledger is a file of chained lines that says what may be spent on "
        "some private records, and what was. See docs/batch-jobs.md.",
        examples=[
            "qexp ledger create ledger.jsonl --epsilon 1 --delta 1e-5",
            "qexp ledger show ledger.jsonl",
        ],
    )

    create = ledgers.add(
        "create",
        _create,
        scripted=True,
        help="start a ledger in a new file",
        description="Start a ledger with a budget for all jobs on the same private records.",
        examples=[
            "qexp ledger create ledger.jsonl --epsilon 1 --delta 1e-5",
            "qexp ledger create ledger.jsonl --mu 0.5 --relation replace_one",
            "qexp ledger create users.jsonl --epsilon 1 --delta 1e-5 --unit user",
        ],
    )
    create.add_argument("path", metavar="PATH", help="a file that does not exist yet")
    budget = create.add_mutually_exclusive_group(required=True)
    budget.add_argument("--epsilon", type=_values.positive, help="the budget, with --delta")
    budget.add_argument(
        "--mu", type=_values.positive, help="the budget, as Gaussian differential privacy"
    )
    create.add_argument("--delta", type=_values.delta, help="goes with --epsilon")
    create.add_argument(
        "--relation",
        choices=("replace_special", "replace_one"),
        default="replace_special",
        help="neighbouring data sets: one record is replaced by a null record (default), or by "
        "any other",
    )
    create.add_argument(
        "--unit",
        choices=("record", "user"),
        default="record",
        help="whom the budget protects: single records (default), or users, who may have many; "
        "jobs must then protect users, too (private.groups)",
    )

    show = ledgers.add(
        "show",
        _show,
        scripted=True,
        help="print what was spent, what is left, and open reservations",
        description="Check a ledger and print it. Needs no right but to read it.",
        examples=["qexp ledger show ledger.jsonl", "qexp ledger show ledger.jsonl --json"],
    )
    show.add_argument("path", metavar="PATH")
    show.add_argument("--json", action="store_true", help="print JSON")

    verify = ledgers.add(
        "verify",
        _verify,
        scripted=True,
        help="check every line and its checksum",
        description="Check that a ledger is as it was written: exit code 0 if it is, 6 if not.",
        examples=["qexp ledger verify ledger.jsonl"],
    )
    verify.add_argument("path", metavar="PATH")

    release = ledgers.add(
        "release",
        _release,
        scripted=True,
        help="give back what a dead job had reserved",
        description="Give back an open reservation of a process that is gone for good. Allowed "
        "only if nothing of that draw was published and nothing will be: nobody saw the job's "
        "outputs or its checkpoint. If its output folder is still there, rather resume the job: "
        "it takes its reservation up again.",
        examples=['qexp ledger release ledger.jsonl 12 --note "node lost, folder removed"'],
    )
    release.add_argument("path", metavar="PATH")
    release.add_argument(
        "id", metavar="ID", type=_values.seed, help="its number in `qexp ledger show`"
    )
    release.add_argument("--note", default="", help="why; kept in the ledger")


def _create(options: argparse.Namespace) -> None:
    from qexp.ledger_file import SharedLedger

    if (options.epsilon is None) != (options.delta is None):
        raise ValueError("--epsilon and --delta go together; --mu needs neither")
    ledger = SharedLedger.create(
        options.path,
        mu_budget=options.mu,
        target_epsilon=options.epsilon,
        target_delta=options.delta,
        neighboring_relation=options.relation,
        unit_of_privacy=options.unit,
    )
    print(
        f"{ledger.path}: mu_budget = {ledger.mu_budget!r}, {ledger.neighboring_relation}, "
        f"for each {ledger.unit_of_privacy}"
    )


def _show(options: argparse.Namespace) -> None:
    import dataclasses

    from qexp.ledger_file import read_ledger
    from qexp.privacy import epsilon

    found = read_ledger(options.path)
    if options.json:
        print(strict_json(dataclasses.asdict(found), indent=2))
        return
    target = found.target
    delta = target[1] if target else 1e-6
    budget = f"mu = {rounded_down(found.mu_budget, 8)}"
    if target:
        budget += (
            f", that is epsilon = {rounded_up(target[0], 6)} at delta = {rounded_up(target[1], 6)}"
        )
    rows = [
        ("budget", f"{budget} ({found.neighboring_relation}, for each {found.unit_of_privacy})"),
        (
            "spent",
            f"mu = {rounded_up(found.mu_spent, 8)} in {len(found.entries)} charge(s), epsilon = "
            f"{rounded_up(epsilon(delta, found.mu_spent), 6)} at delta = {rounded_up(delta, 6)}",
        ),
        (
            "reserved",
            f"mu = {rounded_up(found.mu_reserved, 8)} in {len(found.open_reservations)} draw(s)",
        ),
        ("file", f"{found.lines} lines, head {found.head}"),
    ]
    for name, text in rows:
        print(f"{name:<9} {text}")
    for entry in found.entries:
        print(f"  {entry.time}  mu = {rounded_up(entry.mu, 8)}  {entry.label}")
    if found.open_reservations:
        print("open reservations (resume their jobs, or see `qexp ledger release --help`):")
    for held in found.open_reservations:
        mu = rounded_up(held.mu, 8)
        print(f"  ID {held.number}  {held.time}  mu = {mu}  {held.label}  [{held.holder}]")


def _verify(options: argparse.Namespace) -> None:
    from qexp.ledger_file import read_ledger

    found = read_ledger(options.path)
    torn = (
        f"; {found.torn_bytes} bytes of a line that was never acknowledged follow, and will be "
        "mended by the next job"
        if found.torn_bytes
        else ""
    )
    print(f"{found.path} is whole: {found.lines} lines, head {found.head}{torn}")


def _release(options: argparse.Namespace) -> None:
    from qexp.ledger_file import SharedLedger

    held = SharedLedger(options.path).release(options.id, options.note)
    print(f"gave back mu = {held.mu!r} of {held.label!r}, which {held.holder} had reserved")
