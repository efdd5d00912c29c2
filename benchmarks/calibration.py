"""How tight the noise is: σ used over the exact σ, 1 or a little more."""

import math

from scipy import optimize, special


class Tightness:
    """Over ε and δ, with the lattice's rounding included."""

    params = ([0.1, 1.0, 8.0], [1e-5, 1e-9])
    param_names = ("epsilon", "delta")

    def setup(self, epsilon, delta):
        try:
            from qexp.privacy import calibrate_mu
            from qexp.private_sum import lattice_for
        except ImportError as error:
            raise NotImplementedError("this version of qexp has no calibration") from error
        self.calibrate_mu, self.lattice_for = calibrate_mu, lattice_for

    def track_sigma_over_exact(self, epsilon, delta):
        used = self.lattice_for(self.calibrate_mu(epsilon, delta), 1.0, 60_000).mu
        return exact_mu(epsilon, delta) / used

    track_sigma_over_exact.unit = "σ/σ exact"

    def time_calibrate(self, epsilon, delta):
        self.calibrate_mu(epsilon, delta)

    time_calibrate.repeat = (3, 9, 0.4)
    time_calibrate.rounds = 1
    time_calibrate.sample_time = 0.02


def exact_mu(epsilon, delta):
    """Solve δ(ε; μ) = δ in double precision, by a way of its own (Balle and Wang 2018)."""

    def excess(mu):
        log_first = special.log_ndtr(-epsilon / mu + mu / 2)
        log_second = epsilon + special.log_ndtr(-epsilon / mu - mu / 2)
        return log_first + math.log(-math.expm1(log_second - log_first)) - math.log(delta)

    return optimize.brentq(excess, 1e-3, 50.0, xtol=1e-300, rtol=1e-14)
