"""How many leading directions to keep: a share of the size, or a number read off the spectrum itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_ALMOST = 1 - 1e-12  # keeps rounding from adding one to a count that is exact, such as that of equal eigenvalues


def ratio_rank(ratio: float, size: int) -> int:
    """ceil(ratio * size), at least 1. As in SWUDI's released code, a thousandth above an integer rounds down."""
    return max(1, int(ratio * size + 0.999))


def fraction_rank(fraction: float, size: int) -> int:
    """fraction * size rounded down, with slack for products such as 0.29 * 100 that fall short of their integer."""
    return min(size, int(fraction * size + 1e-9))


def is_rank_rule(rule: str) -> bool:
    """Whether `adaptive_rank` knows the rule; `cumvar_<x>` needs x in (0, 1]."""
    return rule in _RULES or rule == "gavish_donoho" or _share(rule) is not None


def adaptive_rank(rule: str, eigenvalues: Tensor, shape: Sequence[int]) -> int:
    """How many to keep, at least 1, of A's positive `eigenvalues`, descending, for a matrix of `shape` (out, in).

    participation_sqrt   ceil((sum sqrt l)^2 / sum l)    participation  ceil((sum l)^2 / sum l^2)
    entropy              ceil(exp H(l / sum l))          stable_rank    ceil(sum l^2 / l_1^2)
    cumvar_x             the fewest that hold the share x of the sum
    gavish_donoho        those with sqrt(l) above omega(beta) x the median of sqrt(l), see `_gavish_donoho`
    none                 all
    """
    lam = eigenvalues.to(torch.float64)
    if lam.numel() == 0:
        return 0
    share = _share(rule)
    if share is not None:
        count = int((lam.cumsum(0) / lam.sum() < share * _ALMOST).sum()) + 1
    elif rule == "gavish_donoho":
        count = _gavish_donoho(lam.sqrt(), shape)
    else:
        count = math.ceil(_RULES[rule](lam) * _ALMOST)
    return max(1, min(count, lam.numel()))


def _participation(x: Tensor) -> float:
    return float(x.sum().square() / x.square().sum())


def effective_rank(values: Tensor) -> float:
    """exp H(values / sum), with H the entropy, of positive values (r,): r if all are equal, 1 if one is all.

    Of the singular values of a matrix it is Roy and Vetterli's effective rank (EUSIPCO 2007).
    """
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def stable_rank(values: Tensor) -> float:
    """sum v^2 / v_1^2 of positive values (r,), descending; of singular values it is || x ||_F^2 / || x ||_2^2."""
    return float((values / values[0]).square().sum())


_RULES: dict[str, Callable[[Tensor], float]] = {
    "participation_sqrt": lambda lam: _participation(lam.sqrt()),
    "participation": _participation,
    "entropy": effective_rank,
    "stable_rank": stable_rank,
    "none": lambda lam: float(lam.numel()),
}


def _share(rule: str) -> float | None:
    """The x of the rule `cumvar_<x>`; None for another rule, and for an x outside (0, 1]."""
    if not rule.startswith("cumvar_"):
        return None
    try:
        share = float(rule.removeprefix("cumvar_"))
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def _gavish_donoho(singular: Tensor, shape: Sequence[int]) -> int:
    """Gavish and Donoho's optimal hard threshold (arXiv 1305.5870), lambda*(beta) / mu(beta) x the median.

    singular: the singular values above rounding, descending. beta is the aspect ratio of `shape` (out, in). mu(beta)
    stands for the root of the Marchenko-Pastur median: sqrt((1 - beta)^2 + beta), and sqrt(2 + sqrt 3) for square
    matrices. That is the approximation of ASWUDI's released code, and gives the ranks that it gives.

    The median is taken over all `in` directions. Where most of them are null it is 0, and everything is kept: there is
    no noise that the threshold could stand for.
    """
    beta = min(shape) / max(shape)
    best = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    mu = math.sqrt((1 - beta) ** 2 + beta) if beta < 0.9999 else math.sqrt(2 + math.sqrt(3))
    middle = shape[1] // 2  # counted from the top: the lower of two medians
    return int((singular > best / mu * float(singular[middle])).sum()) if middle < len(singular) else len(singular)
