"""SWUDI: WUDI-Merging's descent as a spectral filter, cut to the leading directions.

With tau_i (out, in) the task vectors, w_i = 1 / || tau_i ||^2, A = sum_i w_i tau_i^T tau_i = V Lambda V^T,
B = sum_i w_i tau_i tau_i^T tau_i and a start x_0,

    merged = x_0 - x_0 V f V^T + B V (f / Lambda) V^T,   f = 1 - exp(-t Lambda), 0 beyond the K leading eigenvalues.

Source: `swudi_merge` in LLaMA-Factory/swudi_aswudi.py of https://github.com/WalkerWorldPeace/MLLMerging, with its
defaults: start `sum` (which calls for a `scaling` of about 1 / N), t = 300, K = ceil(0.65 in). Deviations, all
deliberate:
  - float64 inside, where the released float32 decomposition is off by 1e-4 to 1e-3 on decaying spectra;
  - directions that are rounding are told apart by a share of the largest, not by an absolute 1e-8, and keep the start;
  - A's null directions are never decomposed when the rows of all task vectors together are fewer than `in`. They do
    count in K, as released; `rank_of: numerical` makes K a share of the directions that exist, which is what adapters
    need;
  - `time: relative` measures the filter against the largest eigenvalue, so that experts of different effective rank
    are moved alike; `tikhonov` is the filter Lambda / (Lambda + alpha).

`spectral_filter` in `reference.py` restates the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.checks import require, require_tolerance
from mergekit_mm.numerics.closed_form import filtered
from mergekit_mm.numerics.filters import Filter, SpectralFilter, Time
from mergekit_mm.numerics.interference import Init
from mergekit_mm.numerics.polar import ROUNDING
from mergekit_mm.numerics.rank_rules import ratio_rank
from mergekit_mm.numerics.task_vector import TaskVector


def _validate(
    rank_ratio: float,
    rank_tolerance: float,
    filter: Filter,
    time: Time,
    exp_time: float,
    tikhonov_alpha: float,
    **_: object,
) -> None:
    require(0 < rank_ratio <= 1, "rank_ratio", "in (0, 1]", rank_ratio)
    SpectralFilter(filter, time, exp_time, tikhonov_alpha)
    require_tolerance(rank_tolerance)


@task_vector_method(
    name="swudi",
    pretty_name="SWUDI-Merging",
    reference_url="https://github.com/WalkerWorldPeace/MLLMerging",
    keeps_factors=True,
    validate=_validate,
)
def swudi(
    task_vectors: Sequence[TaskVector],
    exp_time: float = 300.0,
    rank_ratio: float = 0.65,
    filter: Filter = "exponential",
    init: Init = "sum",
    time: Time = "absolute",
    tikhonov_alpha: float = 0.01,
    rank_of: Literal["columns", "numerical"] = "columns",
    rank_tolerance: float = ROUNDING,
) -> TaskVector:
    """The SWUDI merge of one matrix's task vectors.

    filter: f as in the module's equation with t = exp_time, Lambda / (Lambda + tikhonov_alpha), or 1. time: exp_time
    and tikhonov_alpha as they are, or in units of the largest eigenvalue. rank_ratio: K as a share of the columns or of
    A's numerical rank. rank_tolerance: singular values of the stacked task vectors below this share of the largest are
    rounding.
    """
    spectral = SpectralFilter(filter, time, exp_time, tikhonov_alpha)

    def quotient(eigenvalues: Tensor) -> Tensor:
        kept = ratio_rank(rank_ratio, task_vectors[0].shape[1] if rank_of == "columns" else len(eigenvalues))
        return spectral.quotient(eigenvalues)[:kept]

    return filtered(task_vectors, init, quotient, rank_tolerance)
