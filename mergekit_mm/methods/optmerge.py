"""OptMerge (Wei et al., ICLR 2026, arXiv 2505.19892): merge by making the experts' interference small.

Per matrix, with tau_i the task vectors, q = min(out, in) and k = int(q / N), OptMerge descends (its Eq. 3)

    L(x) = sum_i || (x - T_i) L_i^T ||^2 / || tau_i ||^2

from a start x_0 for a fixed number of steps; where it stops is part of the method, as the minimum of L is not unique.
T_i is the target (tau_i reduced to rank k), L_i = S V^T the proxy for the inputs that expert i has seen. The released
code has three variants of it, and they are the presets here. Deviations from that code, all deliberate:
  - SGD on a quadratic is linear, so its steps are applied at once as a filter on the spectrum of L: the same
    result without a loop. Adam is not linear and stays a loop, with a gradient of two products instead of 2 N.
  - everything is computed in float32 or wider. The released `lora` loop runs in the checkpoint's half precision, where
    it is several per cent off (float16) or does not move at all (bfloat16).
  - an expert that left a matrix untouched has weight 0 instead of dividing 0 by 0.
  - where k = 0 (fewer rows than experts) there is nothing to optimise and the mean is returned, as for vectors.

`optmerge` in `reference.py` restates the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.descent import Descent, Optimizer, Proxy, Target, descend
from mergekit_mm.numerics.filters import Time
from mergekit_mm.numerics.interference import Init
from mergekit_mm.numerics.task_vector import TaskVector

PRESETS = {
    "lora": Descent(),
    "full": Descent(init="sum", learning_rate=1e-5, optimizer="adam", target="centered"),
    "modality": Descent(rank_fraction=1 / 5, learning_rate=5e-2, proxy="full"),
}


def _settings(preset: str, **chosen: Any) -> Descent:
    """The preset's constants, but for those that are chosen. ValueError for one that is out of its range."""
    return replace(PRESETS[preset], **{name: value for name, value in chosen.items() if value is not None})


@task_vector_method(
    name="optmerge",
    pretty_name="OptMerge",
    reference_url="https://arxiv.org/abs/2505.19892",
    keeps_factors=lambda **parameters: _settings(**parameters).optimizer == "sgd",
    validate=_settings,
)
def optmerge(
    task_vectors: Sequence[TaskVector],
    preset: Literal["lora", "full", "modality"] = "lora",
    init: Init | None = None,
    rank_fraction: float | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    optimizer: Optimizer | None = None,
    proxy: Proxy | None = None,
    target: Target | None = None,
    time: Time | None = None,
    adam_beta2: float | None = None,
    adam_epsilon: float | None = None,
) -> TaskVector:
    """The OptMerge of one matrix's task vectors. Every parameter left out has the preset's value.

    preset: `lora` (experts trained as adapters), `full` (full fine-tunes) or `modality` (experts of different media).
    proxy: L_i from tau_i cut to rank k (`truncated`), from the whole tau_i (`full`), or from tau_i - mean cut to rank k
    (`centered`, as in the paper's Eq. 3). target: T_i is tau_i cut to rank k (`truncated`), or tau_i - mean cut to rank
    k plus the mean (`centered`).
    time: the learning rate as it is (`absolute`, as released), or in units of one over the largest eigenvalue of
    sum_i L_i^T L_i / ||tau_i||^2 (`relative`), so that matrices whose deltas differ in effective rank progress alike;
    for the sgd optimizer only.
    """
    parameters = {name: value for name, value in locals().items() if name != "task_vectors"}
    return descend(task_vectors, _settings(**parameters))
