"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from examples.common.scores import aligned
from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.claims import NO_FIGURE, PAPER_STEPS, Claim
from examples.minibench.evidence.preconditions import Precondition
from examples.minibench.evidence.statistics import Interval
from examples.minibench.evidence.task_vectors import Relation
from examples.minibench.evidence.verdicts import signed, span
from examples.minibench.results import ALIGNED


def main_table(board: Board) -> str:
    """The models of a way on test questions: a column for each capability with ±, and the mean with its interval."""
    rows = [["model", *board.columns, "mean", "95 % interval"]]
    for model in (each for each in _shown(board) if each.name not in board.only_ablated):
        mean = board.mean(model)
        cells = [plus_minus(board.mean(model, column)) for column in board.columns]
        rows.append([row_name(board, model), *cells, f"{100 * mean.value:.1f}", span(mean, sign=False)])
    return aligned(rows, markdown=True)


def run_table(board: Board) -> str:
    """The mean of each model in each run; empty where a model is not of a run."""
    rows = [["model", *(f"base {base}, seed {seed}" for base, seed in board.runs)]]
    for model in _shown(board):
        at = board.models.index(model)
        means = [board.bootstrap.means[at, run, -1] for run in range(len(board.runs))]
        rows.append([row_name(board, model), *("" if mean != mean else f"{100 * mean:.1f}" for mean in means)])
    return aligned(rows, markdown=True)


def ranking_table(board: Board) -> str:
    """The methods by their mean, with the ranks that cannot be ruled out, seconds and strengths tried."""
    rows = [["method", "mean", "rank", "ranks not ruled out", "CPU seconds", "strengths tried"]]
    for model, rank in sorted(board.ranks(board.main()).items(), key=lambda pair: pair[1].value):
        seconds = board.seconds(model)
        tried: set[int] = {result.facts.get("tried") for result in board.results[model]} - {None}
        cells = [f"{100 * board.mean(model).value:.1f}", f"{rank.value:.0f}", f"{rank.low:.0f} to {rank.high:.0f}"]
        told = ["" if seconds is None else f"{seconds:.1f}", ", ".join(map(str, sorted(tried)))]
        rows.append([row_name(board, model), *cells, *told])
    return aligned(rows, markdown=True)


def ablation_table(board: Board) -> str | None:
    """The paper's steps from WUDI to OptMerge, then OptMerge with one part changed back; None if there are none."""
    head = ["merge", "mean", "95 % interval", "compared with", "difference", "95 % interval of it", "paper (T4)"]
    steps = [board.method(name) for name in board.ablation.cumulative]
    ours = board.method("optmerge")
    pairs = list(zip(steps, [None, *steps], ["", *PAPER_STEPS.get(board.way, [""] * len(steps))], strict=False))
    pairs += [(board.method(name), ours, "") for name in board.ablation.alone.values()]
    rows = []
    for model, other, paper in pairs:
        if model:
            mean = board.mean(model)
            gap = board.difference(model, other) if other else None
            told = [other.name, signed(100 * gap.value), span(gap)] if other and gap else ["", "", ""]
            rows.append([row_name(board, model), f"{100 * mean.value:.1f}", span(mean, sign=False), *told, paper])
    return aligned([head, *rows], markdown=True) if rows else None


def precondition_table(rows: Sequence[Precondition]) -> str:
    """Every precondition with what was found, in points."""
    return _table(
        ["precondition", "set", "found", "verdict"],
        [[row.statement, row.way, row.found, row.verdict] for row in rows],
    )


def claim_table(claims: Sequence[Claim]) -> str:
    """Every claim with the paper's figure, if some have one, and what was found, in points."""
    published = ["the paper's figure"] if any(each.paper != NO_FIGURE for each in claims) else []
    body = [
        [each.statement, each.way, *([each.paper] if published else []), signed(100 * each.here.value),
         span(each.here), f"{each.runs[0]} of {each.runs[1]}", each.verdict]
        for each in claims
    ]  # fmt: skip
    return _table(["claim", "set", *published, "here", "interval", "runs", "verdict"], body)


def relation_table(relations: Sequence[Relation]) -> str:
    """Cosine and overlap of each pair of experts, as means over the runs that were looked at."""
    body = [
        [each.way, " and ".join(each.experts), signed(each.cosine, 3), f"{each.overlap:.3f}",
         f"{each.chance:.3f}"]
        for each in relations
    ]  # fmt: skip
    return _table(["set", "experts", "cosine", "overlap", "overlap by chance"], body)


def row_name(board: Board, model: Model) -> str:
    """How the tables call a model: a merge with its setting and strength, an aligned one with its samples."""
    if model.kind == ALIGNED:
        return ", ".join(part for part in (model.name, model.setting) if part)
    if model.kind != "merge":
        return model.label
    found = board.strengths(model)
    span = "" if not found else f" {found[0]:g}" if found[0] == found[-1] else f" {found[0]:g} to {found[-1]:g}"
    return f"{model.name}, {model.setting}{span}"


def _shown(board: Board) -> list[Model]:
    """Models with a section of their own are not in the tables of all."""
    return [each for each in board.models if each.setting != "grid" and each.kind != ALIGNED]


def _table(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table of texts, all flush left."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def plus_minus(interval: Interval) -> str:
    """An accuracy in percent, with half the width of its interval."""
    return f"{100 * interval.value:.1f} ± {100 * interval.half:.1f}"
