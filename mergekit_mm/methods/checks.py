"""Refusing a method's parameter values: one sentence that names the method, the parameter, the rule and the value."""

from __future__ import annotations

import math

from mergekit_mm.errors import MergeError
from mergekit_mm.numerics.descent import Descent


def require(holds: bool, method: str, name: str, rule: str, value: object) -> None:
    """MergeError `<method>: <name> must be <rule>; got <value>` unless it holds."""
    if not holds:
        raise MergeError(f"{method}: {name} must be {rule}; got {value}")


def require_tolerance(method: str, rank_tolerance: float) -> None:
    """Rank tolerances are shares of the largest singular value."""
    require(0 < rank_tolerance < 1, method, "rank_tolerance", "in (0, 1)", rank_tolerance)


def require_time(method: str, exp_time: float, tikhonov_alpha: float) -> None:
    """The constants of the spectral filters, only one of which is used at a time."""
    require(0 < exp_time < math.inf, method, "exp_time", "positive", exp_time)
    require(0 < tikhonov_alpha < math.inf, method, "tikhonov_alpha", "positive", tikhonov_alpha)


def require_descent(method: str, settings: Descent) -> None:
    """The constants of an iterative method."""

    def check(holds: bool, name: str, rule: str) -> None:
        require(holds, method, name, rule, getattr(settings, name))

    check(settings.rank_fraction is None or 0 < settings.rank_fraction <= 1, "rank_fraction", "in (0, 1]")
    check(settings.iterations >= 0, "iterations", "0 or more")
    check(0 < settings.learning_rate < math.inf, "learning_rate", "positive")
    check(0 <= settings.momentum < 1, "momentum", "in [0, 1)")
    check(0 <= settings.adam_beta2 < 1, "adam_beta2", "in [0, 1)")
    check(0 < settings.adam_epsilon < math.inf, "adam_epsilon", "positive")
    check(settings.optimizer == "sgd" or settings.time == "absolute", "time", "absolute with the adam optimizer")
