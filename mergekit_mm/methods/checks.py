"""Refusing a method's parameter values: one sentence that names the method, the parameter, the rule and the value."""

from __future__ import annotations

import math


def require(holds: bool, method: str, name: str, rule: str, value: object) -> None:
    """ValueError `<method>: <name> must be <rule>; got <value>` unless it holds."""
    if not holds:
        raise ValueError(f"{method}: {name} must be {rule}; got {value}")


def require_tolerance(method: str, rank_tolerance: float) -> None:
    """Rank tolerances are shares of the largest singular value."""
    require(0 < rank_tolerance < 1, method, "rank_tolerance", "in (0, 1)", rank_tolerance)


def require_time(method: str, exp_time: float, tikhonov_alpha: float) -> None:
    """The constants of the spectral filters, only one of which is used at a time."""
    require(0 < exp_time < math.inf, method, "exp_time", "positive", exp_time)
    require(0 < tikhonov_alpha < math.inf, method, "tikhonov_alpha", "positive", tikhonov_alpha)
