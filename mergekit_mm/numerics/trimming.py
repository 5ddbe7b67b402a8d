"""Keeping the largest entries of a tensor, for methods that think of the others as noise."""

from __future__ import annotations

from torch import Tensor

from mergekit_mm.numerics.polar import ROUNDING
from mergekit_mm.numerics.rank_rules import fraction_rank


def trimmed_(entries: Tensor, density: float) -> Tensor:
    """The share `density` of the entries, at least one, that are the largest; zeros elsewhere, in place.

    Entries as large as the smallest one that is kept, to rounding, are kept too. Entries below rounding of the largest
    never are.
    """
    if entries.numel() == 0:
        return entries
    sizes = entries.abs()
    count = max(1, fraction_rank(density, sizes.numel()))
    smallest = float(sizes.flatten().kthvalue(sizes.numel() - count + 1).values)
    return entries.mul_(sizes >= max(smallest * (1.0 - ROUNDING), float(sizes.max()) * ROUNDING))
