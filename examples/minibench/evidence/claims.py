"""The claims of the OptMerge paper (arXiv 2505.19892v3), each with the paper's figure and with what was found here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.statistics import Interval
from examples.minibench.evidence.verdicts import verdict

MARGIN = 0.01  # "equals": at most so far below
# The differences that the paper reports, in points, with its tables; T2 is full fine-tuning, T3 is LoRA, T5 modalities.
PAPER: Mapping[tuple[str, str], str] = {
    ("expert", "full"): "+9.3 (T2: 57.44, grounding 48.10)",
    ("expert", "lora"): "+15.4 (T3: 63.30, VQA 47.88)",
    ("expert", "modality"): "+2.9 (T5: 67.00, video 64.11)",
    ("mixture", "full"): "−0.2 (T2: 57.44, mixture 57.66)",
    ("mixture", "lora"): "no mixture; Qwen2-VL-Instruct +1.1 (T3: 62.23)",
    ("optmerge over wudi", "full"): "+0.4 (T2: 57.44, 57.00)",
    ("optmerge over wudi", "lora"): "+4.7 (T3: 63.30, 58.65)",
    ("optmerge over wudi", "modality"): "+2.4 (T5: 67.00, 64.65)",
    ("optmerge over rest", "full"): "+0.7 (T2: TIES with DARE 56.76)",
    ("optmerge over rest", "lora"): "+1.4 (T3: TIES with DARE 61.88)",
    ("optmerge over rest", "modality"): "−0.3 (T5: TSV 67.34)",
    ("wudi over rest", "full"): "+0.2 (T2: 57.00, TIES with DARE 56.76)",
    ("wudi over rest", "lora"): "−3.2 (T3: 58.65, TIES with DARE 61.88)",
    ("wudi over rest", "modality"): "−2.7 (T5: 64.65, TSV 67.34)",
    ("optimizer", "lora"): "−9.8 (T4, with a start from the sum: 58.65, 48.88)",
    ("optimizer", "modality"): "+2.3 (T4, with a start from the sum: 64.65, 66.91)",
    ("start", "lora"): "+14.2 (T4: 48.88, 63.08)",
    ("start", "modality"): "+0.2 (T4: 66.91, 67.07)",
    ("low rank", "full"): "+4.5 (T8, a rank of 20 % above one of 50 %: 57.43, 52.98)",
    ("low rank", "lora"): "+0.2 (T4: 63.08, 63.30)",
    ("low rank", "modality"): "−0.1 (T4: 67.07, 67.00)",
}
NO_FIGURE = "no figure"
# What the paper compares OptMerge and WUDI with; NaiveMC is `linear`. It has no SWUDI, ASWUDI and Iso-CTS.
COMPARED = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "tsv", "iso_c", "damc")
# What the paper says of each part of OptMerge, by part and way of training.
_PARTS = {
    ("optimizer", "full"): "Adam is above SGD",
    ("optimizer", "lora"): "SGD is above Adam",
    ("optimizer", "modality"): "SGD is above Adam",
    ("start", "lora"): "a start from the mean is above one from the sum",
    ("start", "modality"): "a start from the mean is above one from the sum",
    ("low rank", "full"): "low rank is above full rank",
    ("low rank", "lora"): "low rank is above full rank",
    ("low rank", "modality"): "low rank is above full rank",
}
# Table 4, each row against the one before: SGD, the start from the mean, low rank.
PAPER_STEPS = {"lora": ("−9.77", "+14.20", "+0.22"), "modality": ("+2.26", "+0.16", "−0.07")}


@dataclass(frozen=True)
class Claim:
    """A claim about a difference that shall be above zero, or above -MARGIN.

    topic: what it is about: `expert`, `mixture`, `method`, `part` of OptMerge, `modality`, `aligned`. runs:
    in how many runs of how many the difference is on the claim's side.
    """

    topic: str
    statement: str
    way: str
    paper: str
    here: Interval
    verdict: str
    runs: tuple[int, int]


def claims(board: Board, validation: Board | None) -> list[Claim]:
    """All claims that the board's models allow to check."""
    found: list[Claim] = []
    ours = board.method("optmerge")
    picked = best_on_validation(board, validation)
    candidates = list(dict.fromkeys(each for each in (ours, picked) if each))
    for merge in candidates:
        how = merge.name if merge is ours else f"{merge.name}, which is best on validation"
        found += _against_experts(board, merge, how)
        found += _against_mixture(board, merge, how)
    found += _against_methods(board)
    found += _of_parts(board)
    if board.way == "modality" and ours:
        found += _complementarity(board, ours)
    return found


def best_on_validation(board: Board, validation: Board | None) -> Model | None:
    """The method with the highest mean on validation questions, at its best strength; it is chosen without a test.

    A method without a strength has nothing to choose, is not asked validation questions and so never is the best.
    """
    if validation is None:
        return None
    means = {each: validation.mean(each).value for each in validation.of("merge")}
    merges = {each.name: each for each in board.main()}
    ranked = sorted(means, key=lambda each: means[each], reverse=True)
    return next((merges[each.name] for each in ranked if each.name in merges), None)


def on_difference(
    board: Board, topic: str, statement: str, paper: str, weights: Mapping[Model, float], margin: float = 0.0
) -> Claim:
    """A claim that a weighted sum of models' accuracies is above zero, or above -margin. paper: a key of `PAPER`."""
    here = board.contrast(weights)
    runs = board.by_run(weights)
    agreeing = (int((runs > -margin).sum()), len(runs))
    figure = PAPER.get((paper, board.way), NO_FIGURE)
    return Claim(topic, statement, board.way, figure, here, verdict(here, margin), agreeing)


def above_best(board: Board, topic: str, statement: str, paper: str, model: Model, others: Sequence[Model]) -> Claim:
    """A claim that a model is above each of others. paper: a key of `PAPER`."""
    here = board.above_all(model, others)
    nothing = dict.fromkeys(others, 0.0)  # only the runs that all others have are compared
    by_run = np.array([board.by_run({**nothing, model: 1.0, other: -1.0}) for other in others])
    runs = (int((by_run > 0).all(axis=0).sum()), by_run.shape[1])
    figure = PAPER.get((paper, board.way), NO_FIGURE)
    return Claim(topic, statement, board.way, figure, here, verdict(here), runs)


def _against_experts(board: Board, merge: Model, how: str) -> Iterator[Claim]:
    if experts := board.of("expert"):
        yield above_best(board, "expert", f"merging ({how}) is above the best single expert", "expert", merge, experts)


def _against_mixture(board: Board, merge: Model, how: str) -> Iterator[Claim]:
    if mixture := board.one("mixture"):
        pair = {merge: 1.0, mixture: -1.0}
        yield on_difference(board, "mixture", f"merging ({how}) is above mixture training", "mixture", pair)
        statement = f"merging ({how}) is at most {100 * MARGIN:.0f} point below mixture training"
        yield on_difference(board, "mixture", statement, "mixture", pair, MARGIN)


def _against_methods(board: Board) -> Iterator[Claim]:
    ours, wudi = board.method("optmerge"), board.method("wudi")
    rest = [each for each in board.main() if each.name in COMPARED]
    if ours and wudi:
        yield on_difference(board, "method", "OptMerge is above WUDI", "optmerge over wudi", {ours: 1.0, wudi: -1.0})
    if ours and rest:
        statement = "OptMerge is above all other methods of the paper but WUDI"
        yield above_best(board, "method", statement, "optmerge over rest", ours, rest)
    if wudi and rest:
        statement = "WUDI is above all other methods of the paper but OptMerge"
        yield above_best(board, "method", statement, "wudi over rest", wudi, rest)


def _of_parts(board: Board) -> Iterator[Claim]:
    """OptMerge against itself with one part changed back."""
    ours = board.method("optmerge")
    for part, name in board.ablation.alone.items():
        changed = board.method(name)
        if ours and changed and (told := _PARTS.get((part, board.way))):
            yield on_difference(board, "part", f"in OptMerge, {told}", part, {ours: 1.0, changed: -1.0})


def _complementarity(board: Board, merge: Model) -> Iterator[Claim]:
    """On questions about two media, which no donor has seen both of."""
    two = [column for column in board.columns if "+" in column]
    if not two:
        return
    part = board.only(two)
    if donors := part.of("expert"):
        statement = "on two modalities, OptMerge is above each donor"
        yield above_best(part, "modality", statement, "expert", merge, donors)
    if unmerged := part.one("unmerged"):
        pair = {merge: 1.0, unmerged: -1.0}
        yield on_difference(
            part, "modality", "on two modalities, OptMerge is above the unmerged towers", "unmerged", pair
        )
