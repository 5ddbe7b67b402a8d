"""ASWUDI: SWUDI with the number of kept directions read off each matrix's own spectrum.

The update is that of `swudi` (see there for the equation),

    merged = x_0 - x_0 V f V^T + B V (f / Lambda) V^T,   f = 1 on the K leading eigenvalues, 0 beyond,

with K from a rule such as `participation_sqrt`, ceil((sum sqrt Lambda)^2 / sum Lambda).

Source: `aswudi_merge` in LLaMA-Factory/swudi_aswudi.py of https://github.com/WalkerWorldPeace/MLLMerging, with its
defaults: start `sum` (which calls for a `scaling` of about 1 / N), rule `participation_sqrt`, no further filter, and a
time of 1e6 where the exponential one is chosen. Deviations, all deliberate:
  - float64 inside and a rank tolerance relative to the largest singular value. The released floor of 1e-8 lies below
    the rounding of its float32 eigenvalues: with the rules `gavish_donoho` and `none` it returns noise on adapters.
    The rules see the numerical range only; the null directions, which they need not see, count in a median as zeros;
  - `time: relative` and `tikhonov` as in `swudi`.

`spectral_filter` and `adaptive_rank` in `reference.py` restate the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.checks import require, require_tolerance
from mergekit_mm.numerics.closed_form import filtered
from mergekit_mm.numerics.filters import Filter, SpectralFilter, Time
from mergekit_mm.numerics.interference import Init
from mergekit_mm.numerics.polar import ROUNDING
from mergekit_mm.numerics.rank_rules import adaptive_rank, is_rank_rule
from mergekit_mm.numerics.task_vector import TaskVector

_RULES = "participation_sqrt, participation, entropy, stable_rank, gavish_donoho, cumvar_<x> with 0 < x <= 1, or none"


def _validate(
    rank_rule: str,
    rank_tolerance: float,
    filter: Filter,
    time: Time,
    exp_time: float,
    tikhonov_alpha: float,
    **_: object,
) -> None:
    require(is_rank_rule(rank_rule), "rank_rule", _RULES, repr(rank_rule))
    SpectralFilter(filter, time, exp_time, tikhonov_alpha)
    require_tolerance(rank_tolerance)


@task_vector_method(
    name="aswudi",
    pretty_name="ASWUDI-Merging",
    reference_url="https://github.com/WalkerWorldPeace/MLLMerging",
    keeps_factors=True,
    validate=_validate,
)
def aswudi(
    task_vectors: Sequence[TaskVector],
    rank_rule: str = "participation_sqrt",
    filter: Filter = "none",
    init: Init = "sum",
    exp_time: float = 1e6,
    time: Time = "absolute",
    tikhonov_alpha: float = 0.01,
    rank_tolerance: float = ROUNDING,
) -> TaskVector:
    """The ASWUDI merge of one matrix's task vectors.

    rank_rule: participation_sqrt, participation, entropy, stable_rank, gavish_donoho, cumvar_<x> (the fewest directions
    that hold the share x of the sum of eigenvalues), or none (all). The other parameters are those of `swudi`.
    """
    spectral = SpectralFilter(filter, time, exp_time, tikhonov_alpha)

    def quotient(eigenvalues: Tensor) -> Tensor:
        kept = adaptive_rank(rank_rule, eigenvalues, task_vectors[0].shape)
        return spectral.quotient(eigenvalues)[:kept]

    return filtered(task_vectors, init, quotient, rank_tolerance)
