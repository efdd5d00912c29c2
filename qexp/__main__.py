"""Run the command line as ``python -m qexp``."""

from qexp.cli import main

raise SystemExit(main())
