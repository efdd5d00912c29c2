"""Other ways of private fine-tuning, on one interface and on qexp's own boundary."""

from qexp.rivals.adamix import adamix
from qexp.rivals.baselines import non_private, public_only
from qexp.rivals.gradient_descent import dp_gd, dp_sgd
from qexp.rivals.planning import plan_rival
from qexp.rivals.sparta import sparta
METHODS = {m.name: m for m in (public_only, non_private, dp_gd, dp_sgd,adamix,sparta)}
