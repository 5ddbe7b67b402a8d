"""Refusing values of parameters: one sentence that names the parameter, the rule and the value."""

from __future__ import annotations


def require(holds: bool, name: str, rule: str, value: object) -> None:
    """ValueError `<name> must be <rule>; got <value>` unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} must be {rule}; got {value}")


def require_tolerance(rank_tolerance: float) -> None:
    """ValueError unless it is a share: tolerances of ranks are shares of the largest singular value."""
    require(0 < rank_tolerance < 1, "rank_tolerance", "in (0, 1)", rank_tolerance)
