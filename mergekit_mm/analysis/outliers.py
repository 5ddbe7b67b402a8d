"""Tensors that an expert moved much more, or much less, than others of their role.

Matrices are compared with those of their role. Vectors (norms, biases) are compared with those of the same part in the
other layers alone, as their own sizes differ by orders of magnitude. Drifts are compared by their logarithms. A tensor
stands out if its modified z-score, 0.6745 (x - median) / MAD, is beyond 3.5, the mark that Iglewicz and Hoaglin propose
(How to Detect and Handle Outliers, 1993), and its drift is at least twice the median, or at most half of it: where all
others nearly agree, a small difference has a large score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_mm.analysis.groups import Figures
from mergekit_mm.checkpoints.roles import Role

_SCORE, _CONSISTENT, _FACTOR = 3.5, 0.6745, 2.0
_PEERS = 8  # fewer tensors do not make a median to rely on


@dataclass(frozen=True)
class Outlier:
    """One tensor of one expert; median: the drift of the tensors that it is compared with."""

    tensor: Figures
    expert: int
    drift: float
    median: float

    @property
    def factor(self) -> float:
        """How many times the median it is."""
        return self.drift / self.median


def outliers(tensors: Sequence[Figures], experts: int) -> list[Outlier]:
    """The outliers of all experts, those farthest from their median first. Tensors that did not move are left out."""
    peers: dict[tuple[Role, str, int], list[tuple[Figures, float]]] = {}
    for tensor in tensors:
        for expert in range(experts):
            if drift := tensor.drift(expert):
                part = tensor.place.part if len(tensor.shape) < 2 else ""
                peers.setdefault((tensor.role, part, expert), []).append((tensor, drift))
    found: list[Outlier] = []
    for (_role, _part, expert), moved in peers.items():
        if len(moved) < _PEERS:
            continue
        logarithms = np.log([drift for _tensor, drift in moved])
        median = float(np.median(logarithms))
        spread = float(np.median(np.abs(logarithms - median)))
        for (tensor, drift), own in zip(moved, logarithms.tolist(), strict=True):
            distance = abs(own - median)
            if distance >= math.log(_FACTOR) and _CONSISTENT * distance > _SCORE * spread:
                found.append(Outlier(tensor, expert, drift, math.exp(median)))
    return sorted(found, key=lambda each: -abs(math.log(each.factor)))
