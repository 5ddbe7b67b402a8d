"""The merge methods of the benchmark, as data: one entry for each.

The published settings are those of the released code of OptMerge (arXiv 2505.19892). On five experts it ran every
method at a strength of 0.3, but for the weight average and OptMerge, which has 0.1 on full fine-tunes and 1.0 on LoRA
experts; on donors of three modalities it ran every method at 1.0 (`do_merging` in ties_merging.py). SWUDI and ASWUDI
have those of their own code. Where a method or a way of training is not the paper's (Iso-CTS; DARE on donors), the
strength is that of the nearest relative there. DAMC gives the text part the average of the donors, as the weight
average (NaiveMC) does.

What came after that paper has strengths of its own: 1 for singular value calibration of the sum, which is there to
spare a strength, for ACTMat, which is a minimiser, and for RobustMerge; for DC-Merge 2 on adapters, as on
MM-MergeBench, and 1 on full fine-tunes, for which none is known to be released. OptMerge with calibration has that of
OptMerge, and TIES in the core of the adapters that of TIES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from examples.common.commands import MERGEKIT_METHODS, strength_parameter


@dataclass(frozen=True)
class Setting:
    """How a method merges experts of one way of training.

    strength: the published one; None for a method without. parameters: those of the recipe, but for the strength.
    """

    strength: float | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row of a table.

    merge_method: its name in mergekit. settings: by way of training; a method is run for the ways that it has one for.
    group: `method` for the main table, `ablation` for that of OptMerge's parts. unit: the value of the strength
    parameter that means a strength of 1.
    """

    name: str
    merge_method: str
    settings: Mapping[str, Setting]
    group: str = "method"
    unit: float = 1.0

    def recipe(self, way: str, strength: float | None) -> dict[str, Any]:
        """The part of a recipe that is the method's own; a strength of None is left out."""
        parameters = dict(self.settings[way].parameters)
        if strength is not None:
            parameters[strength_parameter(self.merge_method)] = strength * self.unit
        # mergekit's methods compute in `dtype`. Files are in float32, so that only the methods differ.
        computed = {"dtype": "float32"} if self.merge_method in MERGEKIT_METHODS else {}
        return {"merge_method": self.merge_method, "parameters": parameters, **computed, "out_dtype": "float32"}


def _both(strength: float | None, **parameters: Any) -> dict[str, Setting]:
    return {way: Setting(strength, parameters) for way in ("full", "lora")}


def _all(strength: float | None, **parameters: Any) -> dict[str, Setting]:
    return {**_both(strength, **parameters), "modality": Setting(None if strength is None else 1.0, parameters)}


# DARE divides what it keeps by the density. mergekit's `rescale` would restore the L1 norm instead, so it is off.
_DENSITY = 0.8
_DARE = {"weight": 1.0, "density": _DENSITY, "rescale": False}
_ADAM = {"optimizer": "adam", "learning_rate": 1e-5}
_SGD = {"optimizer": "sgd", "learning_rate": 1e-4}

METHODS = (
    Method("linear", "linear", _all(None, weight=1.0)),
    Method("task_arithmetic", "task_arithmetic", _all(0.3, weight=1.0, normalize=False)),
    Method("ties", "ties", _all(0.3, weight=1.0, density=0.2, normalize=True)),
    Method("dare_linear", "dare_linear", _all(0.3, **_DARE, normalize=False), unit=1 / _DENSITY),
    # mergekit's: signs are elected, but the deltas are not trimmed to their largest entries as the paper does.
    Method("dare_ties", "dare_ties", _all(0.3, **_DARE, normalize=True), unit=1 / _DENSITY),
    Method("tsv", "tsv", _all(0.3)),
    Method("iso_c", "iso_c", _all(0.3)),
    Method("iso_cts", "iso_cts", _all(0.3)),
    Method("wudi", "wudi", _all(0.3)),
    Method(
        "optmerge",
        "optmerge",
        {
            "full": Setting(0.1, {"preset": "full"}),
            "lora": Setting(1.0, {"preset": "lora"}),
            "modality": Setting(1.0, {"preset": "modality"}),
        },
    ),
    Method(
        "swudi",
        "swudi",
        {
            "full": Setting(0.1, {"exp_time": 300, "rank_ratio": 0.65}),
            # Published as 1 % of 3584 columns: 36 of the 40 directions that five adapters of rank 8 have.
            "lora": Setting(0.2, {"exp_time": 1300, "rank_ratio": 0.9, "rank_of": "numerical"}),
            "modality": Setting(0.2),
        },
    ),
    Method("aswudi", "aswudi", {"full": Setting(0.1), "lora": Setting(0.2), "modality": Setting(0.2)}),
    Method("damc", "task_arithmetic", {"modality": Setting(1 / 3, {"weight": 1.0, "composition": "damc"})}),
    # Task arithmetic with singular value calibration: OptMerge's start at the sum, without a step from there.
    Method("task_arithmetic_svc", "optmerge", _both(1.0, preset="lora", init="sum", iterations=0, svc=True)),
    Method(
        "optmerge_svc",
        "optmerge",
        {"full": Setting(0.1, {"preset": "full", "svc": True}), "lora": Setting(1.0, {"preset": "lora", "svc": True})},
    ),
    Method("actmat", "wudi", _both(1.0, solver="exact", weights="equal")),
    Method(
        "dc_merge",
        "dc_merge",
        {"full": Setting(1.0, {"smoothing": "none"}), "lora": Setting(2.0, {"smoothing": "mean"})},
    ),
    Method("robust_merge", "robust_merge", {"lora": Setting(1.0)}),
    Method(
        "ties_core", "ties", {"lora": Setting(0.3, {"weight": 1.0, "density": 0.2, "normalize": True, "space": "core"})}
    ),
    # The paper's table 4, from WUDI on, each row with the change of the one before. After `wudi_sgd_mean` comes the
    # cut to low rank: for LoRA experts that is OptMerge's own preset. The strengths are WUDI's for a start at the sum,
    # and OptMerge's for one at the mean.
    Method("wudi_sgd", "optmerge", _both(0.3, preset="lora", init="sum", rank_fraction=1.0), "ablation"),
    Method("wudi_sgd_mean", "optmerge", _both(1.0, preset="lora", rank_fraction=1.0), "ablation"),
    Method("wudi_sgd_mean_low_rank", "optmerge", {"full": Setting(1.0, {"preset": "lora"})}, "ablation"),
    # OptMerge's preset with one part changed, at the preset's strength. Without the cut to low rank it is
    # `wudi_sgd_mean` for LoRA experts, and but for the published strength WUDI itself for full fine-tunes. LoRA experts
    # have no more directions than the cut leaves, so that with and without it their merge is the same.
    Method("optmerge_sgd", "optmerge", {"full": Setting(0.1, {"preset": "full", **_SGD})}, "ablation"),
    Method("optmerge_mean", "optmerge", {"full": Setting(0.1, {"preset": "full", "init": "mean"})}, "ablation"),
    Method("optmerge_whole", "optmerge", {"full": Setting(0.1, {"preset": "full", "rank_fraction": 1.0})}, "ablation"),
    Method("optmerge_adam", "optmerge", {"lora": Setting(1.0, {"preset": "lora", **_ADAM})}, "ablation"),
    Method("optmerge_sum", "optmerge", {"lora": Setting(1.0, {"preset": "lora", "init": "sum"})}, "ablation"),
)
BY_NAME = {method.name: method for method in METHODS}
# The rows of the ablation by way: from WUDI to all of OptMerge's parts, and each part changed alone.
CUMULATIVE = {
    "full": ("wudi", "wudi_sgd", "wudi_sgd_mean", "wudi_sgd_mean_low_rank"),
    "lora": ("wudi", "wudi_sgd", "wudi_sgd_mean", "optmerge"),
}
ALONE = {
    "full": {"optimizer": "optmerge_sgd", "start": "optmerge_mean", "low rank": "optmerge_whole"},
    "lora": {"optimizer": "optmerge_adam", "start": "optmerge_sum", "low rank": "wudi_sgd_mean"},
}


def methods(way: str) -> list[Method]:
    """Those that merge experts of a way of training."""
    return [method for method in METHODS if way in method.settings]
