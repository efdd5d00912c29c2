"""The command line ``qexp``.

Exit codes: 0 done; 1 it failed, with one message on standard error; 2 the arguments are wrong;
130 interrupted by Ctrl-C. ``run`` and ``ledger``, which scripts call, tell failures apart: see
:mod:`qexp.job.exit_codes`. Output files are whole or not there.
"""

from qexp.cli._main import main

__all__ = ["main"]
