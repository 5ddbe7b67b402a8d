"""What to do, and why: one rule after the other, each with what it goes by.

A rule speaks only where its figures are known. What a rule goes by is a published figure, a measurement of this
repository, or arithmetic; marks that are none of these are called marks. No rule foretells a score: which method is
best for a set of experts, validation questions tell (`mergekit-mm tune`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mergekit_mm.analysis.groups import Figures
from mergekit_mm.analysis.numbers import number, percent
from mergekit_mm.analysis.outliers import outliers
from mergekit_mm.analysis.result import Analysis

_SAME = 1 - 1e-6  # cosine above which two task vectors are one but for rounding, and perhaps for their length
_ROUNDED = 0.01  # drift: twice that of the coarsest rounding to bfloat16
_ALIKE = 0.9  # mark: cosine above which two experts are nearly one
_ORTHOGONAL = 0.1  # mark: cosine up to which task vectors count as nearly orthogonal
_OPPOSED = -0.1  # mark: cosine below which they count as opposed
_LONGER = 2.0  # mark: how many times as long as the others one expert has to be
_HEAVY = 0.2  # drift; between the two sets of experts of which `_heavy_drift` tells
_LOW_RANK = 1 / 8  # mark: share of the smaller side within which nearly all of a delta has to be, to be a LoRA's
_COMMON = 0.5  # mark: share of the leading inputs that is common, where chance has much less
_PAIRS = 3  # pairs that one sentence names


@dataclass(frozen=True)
class Advice:
    """topic: `experts`, `method`, `strength` or `roles`. text: what to do. reason: the figures that it follows from.

    source: what the rule itself goes by.
    """

    topic: str
    text: str
    reason: str
    source: str


def advise(analysis: Analysis) -> list[Advice]:
    """All that the rules have to say, in the order in which it is to be read."""
    return [advice for rule in _RULES for advice in rule(analysis)]


# ---------------------------------------------------------------------------------------------------------- the experts


def _unchanged(analysis: Analysis) -> Iterator[Advice]:
    for expert, norm in zip(analysis.experts, analysis.all.norms, strict=True):
        if norm == 0:
            yield Advice(
                "experts",
                f"Leave {expert.label} out, or look whether it is the model that was meant.",
                f"{expert.label} does not differ from the base in any tensor that was looked at.",
                "arithmetic: a task vector of zero adds nothing, but it counts in every mean",
            )


def _identical(analysis: Analysis) -> Iterator[Advice]:
    for i, j, cosine in _pairs(analysis, analysis.all.cosine):
        if cosine > _SAME:
            first, second = analysis.experts[i].label, analysis.experts[j].label
            ratio = analysis.all.norms[j] / analysis.all.norms[i]
            times = "" if math.isclose(ratio, 1.0, rel_tol=1e-3) else f", {ratio:.3g} times as long"
            yield Advice(
                "experts",
                f"Leave {first} or {second} out.",
                f"The task vector of {second} is that of {first}{times}.",
                "arithmetic: one expert counts twice, in sums as in means",
            )


def _another_base(analysis: Analysis) -> Iterator[Advice]:
    if any(cosine > _SAME for _i, _j, cosine in _pairs(analysis, analysis.all.cosine)):
        return
    common = [tensor for tensor in analysis.tensors if _is_of_all(tensor, len(analysis.experts))]
    if common:
        drift = max(tensor.drift(0) or 0.0 for tensor in common)
        yield Advice(
            "experts",
            "Find the model that these were trained from: the `base_model` of the config seems to be another, and what "
            "that one differs by is merged once for each expert.",
            f"In {len(common)} of {len(analysis.tensors)} tensors all experts have the same values and the base has "
            f"others, with a drift of up to {percent(drift)}.",
            "arithmetic: models that were trained apart do not arrive at the same values",
        )


def _is_of_all(tensor: Figures, experts: int) -> bool:
    """Whether all of at least two experts have the same values in a tensor, which the base has not even rounded."""
    inner, drift = tensor.measures.inner, tensor.drift(0)
    is_common = 1 < experts == len(tensor.experts) and math.isclose(inner.min(), inner.max(), rel_tol=1e-6)
    return is_common and drift is not None and drift > _ROUNDED


def _alike(analysis: Analysis) -> Iterator[Advice]:
    if any(True for _ in _another_base(analysis)):
        return
    found = [pair for pair in _pairs(analysis, analysis.all.cosine) if _ALIKE < pair[2] <= _SAME]
    if found:
        yield Advice(
            "experts",
            "Let experts that are nearly one count as one: share one weight among them, or leave some out.",
            f"Cosines of task vectors near 1: {_listed(analysis, sorted(found, key=lambda pair: -pair[2]))}.",
            f"arithmetic: the sum of two such is nearly twice either; {_ALIKE:g} is a mark",
        )


def _dominating(analysis: Analysis) -> Iterator[Advice]:
    squares = np.square(analysis.merged.norms)
    if len(squares) < 2 or not squares.all():
        return
    largest, total = int(squares.argmax()), float(squares.sum())
    own = float(squares[largest])
    times = math.sqrt(own * (len(squares) - 1) / (total - own))
    if times >= _LONGER:
        label = analysis.experts[largest].label
        yield Advice(
            "experts",
            f"Look at the norm of {label}: give it less weight in sums, or take a method whose objective divides by "
            "the squared norm (optmerge, wudi).",
            f"The task vector of {label} is {number(times)} times as long as the others (RMS), and has "
            f"{percent(own / total)} of the squared norm of all.",
            "arithmetic: in a sum of nearly orthogonal task vectors that is its share of the result; L in "
            f"docs/how-optmerge-is-solved.md weighs each expert by 1 / norm^2. {_LONGER:g} times is a mark",
        )


# ----------------------------------------------------------------------------------------------------------- the method


def _adapters(analysis: Analysis) -> Iterator[Advice]:
    if len(analysis.experts) > 1 and all(expert.form == "adapter" for expert in analysis.experts):
        yield Advice(
            "method",
            "Begin with `optmerge`, `preset: lora`, `scaling: 1.0`: it merges factors, and `mergekit-mm lora` makes "
            "one adapter of them.",
            "All experts are adapters on the base.",
            "published: 63.30 on Qwen2-VL-7B, the best mean of data-free methods (arXiv 2505.19892, table 3)",
        )


def _merged_adapters(analysis: Analysis) -> Iterator[Advice]:
    found = []
    for at, expert in enumerate(analysis.experts):
        shares = [
            spectrum.most / min(tensor.shape[-2:])
            for tensor in analysis.merged.tensors
            if (spectrum := tensor.spectrum(at)) is not None
        ]
        if expert.form == "full" and shares and float(np.median(shares)) <= _LOW_RANK:
            found.append(f"{expert.label}, {100 * float(np.median(shares)):.0f} %")
    if found and len(analysis.experts) > 1:
        every = len(found) == len(analysis.experts)
        yield Advice(
            "method",
            "Treat them as LoRA experts: `optmerge` with `preset: lora`." if every else "Look how these were trained.",
            "Full checkpoints whose task vectors are of low rank, as those of adapters that were merged into their "
            f"model: 99 % of the squared norm lies in few directions, of the smaller side of a matrix in the median: "
            f"{'; '.join(found)}.",
            "published for adapters that were merged into checkpoints: 63.30 (arXiv 2505.19892, table 3); that 1/8 of "
            "the side is low is a mark",
        )


def _modalities(analysis: Analysis) -> Iterator[Advice]:
    if analysis.is_omni:
        yield Advice(
            "method",
            "Begin with `tsv`, or `optmerge` with `preset: modality`, `scaling: 1.0`.",
            "The inputs are donors of different modalities.",
            "published: 67.34 and 67.00, single donors 64.11 at best (arXiv 2505.19892, table 5); on examples/omni "
            "seventeen merges lie within five points",
        )


def _full(analysis: Analysis) -> Iterator[Advice]:
    if any(any(True for _ in rule(analysis)) for rule in (_modalities, _adapters, _merged_adapters)):
        return
    if len(analysis.experts) > 1 and all(expert.form == "full" for expert in analysis.experts):
        yield Advice(
            "method",
            "Begin with `optmerge`, `preset: full`, at a few strengths from 0.1 to 1.5; or `swudi` where its 300 steps "
            "take too long.",
            "The experts are full fine-tunes." + ("" if analysis.has_spectra else " (Their ranks were not looked at.)"),
            "published: 57.44 on InternVL2.5-1B at 0.1, swudi 56.56 (arXiv 2505.19892 and 2606.07289); on the full "
            "fine-tunes of examples/easy_vqa higher strengths are better",
        )


def _one_start(analysis: Analysis) -> Iterator[Advice]:
    """Adapters that share their inputs, as those do that were trained from one initialisation of A."""
    if len(analysis.experts) < 2 or not all(expert.form == "adapter" for expert in analysis.experts):
        return
    inputs, chance = analysis.merged.overlap("inputs")
    upper = np.triu_indices(len(inputs), 1)
    if not np.isfinite(inputs[upper]).all():
        return
    least, expected = float(inputs[upper].min()), float(chance[upper].max())
    if least > _COMMON and least > 3 * expected:
        yield Advice(
            "method",
            "Try `robust_merge` beside it, if all adapters have one rank.",
            f"The adapters read the same inputs: {100 * least:.0f} % or more of their leading input directions are "
            f"common, where chance has {100 * expected:.0f} %. So do adapters that were trained from one A.",
            "robust_merge is made for such adapters; published on eight of them: 57.33, task arithmetic 53.93 (arXiv "
            f"2502.17159). {_COMMON:g} is a mark",
        )


def _directions(analysis: Analysis) -> Iterator[Advice]:
    pairs = list(_pairs(analysis, analysis.merged.cosine))
    opposed = [(i, j, cosine) for i, j, cosine in pairs if cosine < _OPPOSED]
    if opposed:
        yield Advice(
            "method",
            "Expect loss where these meet, and see which layers it is in.",
            f"Task vectors point away from each other: {_listed(analysis, sorted(opposed, key=lambda pair: pair[2]))}.",
            f"arithmetic: in a sum they cancel in part; {_OPPOSED:g} is a mark",
        )
    elif pairs and all(abs(cosine) <= _ORTHOGONAL for _i, _j, cosine in pairs):
        low, high = min(c for *_ij, c in pairs), max(c for *_ij, c in pairs)
        yield Advice(
            "method",
            "Compare with `task_arithmetic`, which costs nothing: as whole vectors, the experts are hardly in each "
            "other's way. What they share are directions within matrices (overlap).",
            f"Nearly orthogonal: cosines from {number(low)} to {number(high)}.",
            "near orthogonality is what task arithmetic's authors offer to explain why sums work (arXiv 2212.04089); "
            f"a cosine says nothing of the answers. {_ORTHOGONAL:g} is a mark",
        )


# --------------------------------------------------------------------------------------------------------- the strength


def _heavy_drift(analysis: Analysis) -> Iterator[Advice]:
    """Measured: examples/easy_vqa/results/methods.md, with the drifts that this command tells of these experts."""
    drift = analysis.merged.drift
    heavy = [f"{e.label} {percent(d)}" for e, d in zip(analysis.experts, drift, strict=True) if d > _HEAVY]
    if heavy:
        yield Advice(
            "strength",
            "Of methods whose delta is near the sum (wudi, swudi, aswudi, tsv, task_arithmetic) try lower strengths "
            "first, 0.1 to 0.5; and a checkpoint of less training if there is one.",
            f"Experts went far from the base: {', '.join(heavy)} of its norm.",
            "the bound of arXiv 2505.19892 (theorem 3.1) grows with the square of learning rate times steps. On "
            "examples/easy_vqa, LoRA experts with drifts of 26 to 36 % had the best strength of wudi, swudi, aswudi "
            "and tsv at 0.1 to 0.5 (that of optmerge at 1.0), full fine-tunes of 10 to 15 % at 1.0 to 1.5; one set of "
            "each, so 20 % is a mark",
        )


# ------------------------------------------------------------------------------------------------------------ the roles


def _changed_but_kept(analysis: Analysis) -> Iterator[Advice]:
    changed: dict[str, float] = {}
    for role, group in analysis.by_role.items():
        kept = analysis.group([tensor for tensor in group.tensors if tensor.action == "keep"])
        if (kept.drift > 0).any():
            changed[role.value] = float(np.nanmax(kept.drift))
    if changed:
        one, *_ = changed
        yield Advice(
            "roles",
            f"Decide what becomes of what experts learnt in {', '.join(changed)}: a policy such as `{one}: average` "
            "under `parameters:` takes it along.",
            "Tensors are kept as in the base that experts changed. The largest drifts: "
            f"{', '.join(f'{role} {percent(drift)}' for role, drift in changed.items())}.",
            "the plan of this merge; `mergekit-mm check --tensor NAME` tells its reason",
        )


def _standing_out(analysis: Analysis) -> Iterator[Advice]:
    found = outliers(analysis.tensors, len(analysis.experts))
    if found:
        worst = found[0]
        yield Advice(
            "roles",
            "Look at what stands out: it may be meant, or a damaged file, or a layer that was trained by mistake.",
            f"{len(found)} {'drifts are' if len(found) > 1 else 'drift is'} far from the median of the role; that of "
            f"{worst.tensor.name} in {analysis.experts[worst.expert].label} is {worst.factor:.2g} times it.",
            "modified z-scores above 3.5 (Iglewicz and Hoaglin 1993), and a factor of two",
        )


_RULES: Sequence[Callable[[Analysis], Iterator[Advice]]] = (
    _unchanged,
    _identical,
    _another_base,
    _alike,
    _modalities,
    _adapters,
    _merged_adapters,
    _full,
    _one_start,
    _directions,
    _heavy_drift,
    _dominating,
    _changed_but_kept,
    _standing_out,
)


def _pairs(analysis: Analysis, matrix: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """The known values of pairs of experts."""
    for i, j in combinations(range(len(analysis.experts)), 2):
        if np.isfinite(matrix[i, j]):
            yield i, j, float(matrix[i, j])


def _listed(analysis: Analysis, pairs: Sequence[tuple[int, int, float]]) -> str:
    named = [
        f"{analysis.experts[i].label} and {analysis.experts[j].label} {number(value)}" for i, j, value in pairs[:_PAIRS]
    ]
    return ", ".join(named) + (f" and {len(pairs) - _PAIRS} more pairs" if len(pairs) > _PAIRS else "")
