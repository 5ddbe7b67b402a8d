"""The section of the report on merges that learned from unlabelled samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from examples.common.scores import aligned as as_table
from examples.minibench.evidence.aligned import (
    BASELINES,
    Draws,
    elsewhere,
    kept_and_left,
    rows_of,
    start_of,
    usual,
)
from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.claims import Claim
from examples.minibench.evidence.figure_aligned import by_samples
from examples.minibench.evidence.sentences import compared
from examples.minibench.evidence.style import save
from examples.minibench.evidence.tables import claim_table, plus_minus, row_name
from examples.minibench.evidence.verdicts import points, span
from examples.minibench.results import START

WithDraws = tuple[Board, Mapping[Model, Draws]]


def aligned_section(folder: Path, boards: Sequence[WithDraws], claims: Sequence[Claim]) -> str | None:
    """Tables, a figure and the claims; None if nothing was aligned."""
    known = [(board, draws) for board, draws in boards if draws]
    if not known:
        return None
    name = save(by_samples([board for board, _ in known]), folder, "aligned")
    lines = ["## Aligned by unlabelled samples", ABOUT, f"![accuracy by samples]({name})", claim_table(claims)]
    for board, draws in known:
        lines += [f"### {board.title[0].upper()}{board.title[1:]}, aligned", aligned_table(board, draws)]
        lines += ["CPU seconds of an alignment, merge and answers included, and tokens in the answers of an expert:"]
        lines += [cost_table(board, draws), *_studies(board)]
    return "\n\n".join(lines)


def aligned_sentences(boards: Sequence[WithDraws]) -> Iterator[str]:
    """For each way of training, by row, what most samples gave, what fewer did, and what became of one without."""
    for board, draws in boards:
        start, rows = start_of(board), []
        for row in (each for each in rows_of(board) if each not in BASELINES):
            cases = usual(board, row)
            if not start or not cases:
                continue
            samples, model = list(cases.items())[-1]
            told = [compared(board.difference(model, start), "its start")]
            if others := board.main():
                best = max(others, key=lambda each: board.mean(each).value)
                above = board.above_all(model, others)
                told.append(compared(above, f"the best method without data on test questions, `{best.name}`"))
            rows.append(
                f"For {board.title}, `{row}` with {samples} unlabelled samples for each expert is "
                f"{', and '.join(told)}{_fewer(board, row, draws)}{_worst_left(board, row)}."
            )
        if rows:
            yield " ".join(rows)


def _fewer(board: Board, row: str, draws: Mapping[Model, Draws]) -> str:
    """What fewer samples than the most do, draw by draw."""
    drawn = [(samples, draws[model]) for samples, model in usual(board, row).items() if model in draws][:-1]
    told = [f"{found.below} of {len(found.gaps)} draws of {samples} samples" for samples, found in drawn]
    return f"; clearly below the start are {' and '.join(told)}" if told else ""


def _worst_left(board: Board, row: str) -> str:
    left = {column: found["left"] for column, found in kept_and_left(board, row)}
    if not left:
        return ""
    worst = min(left, key=lambda column: left[column].value)
    lower = [column for column in left if left[column].sign < 0]
    told = f"; without samples of one capability, that one changes by {points(left[worst])} at worst ({worst})"
    return told + (f", and is clearly lower for {len(lower)} of {len(left)}" if lower else "")


def aligned_table(board: Board, draws: Mapping[Model, Draws]) -> str:
    """The start, the most accurate method without data, all rows by samples, and mixture training."""
    start = start_of(board)
    assert start
    body = [["model", *board.columns, "mean", "95 % interval", "above its start", "draws changed", "worst draw"]]
    others = sorted(board.main(), key=lambda each: board.mean(each).value)[-1:]
    models = [model for row in rows_of(board) for model in usual(board, row).values()]
    for model in (start, *others, *models, *board.of("mixture")):
        value = board.mean(model)
        cells = [_name(board, model), *(plus_minus(board.mean(model, column)) for column in board.columns)]
        cells += [f"{100 * value.value:.1f}", span(value, sign=False)]
        cells.append("" if model == start else points(board.difference(model, start)))
        drawn = draws.get(model)
        cells += [f"{drawn.changed} of {len(drawn.gaps)}", points(drawn.worst)] if drawn else ["", ""]
        body.append(cells)
    return as_table(body, markdown=True)


def _name(board: Board, model: Model) -> str:
    if model != start_of(board):
        return row_name(board, model)
    methods = sorted({str(each.facts["method"]) for each in board.results[model] if "method" in each.facts})
    return f"{START}: {', '.join(methods)}" + (f" {board.strengths(model)[0]:g}" if len(methods) == 1 else "")


def cost_table(board: Board, draws: Mapping[Model, Draws]) -> str:
    """CPU seconds of an alignment by row and samples, and how many tokens the answers of an expert to them are."""
    cases = {row: usual(board, row) for row in rows_of(board)}
    samples = sorted({each for case in cases.values() for each in case})
    body = [["row", *(f"{each} samples" for each in samples)]]
    for row, case in cases.items():
        drawn = {each: draws[model] for each, model in case.items() if model in draws}
        told = {each: f"{found.seconds:.0f} s, {each * found.tokens:.0f} tokens" for each, found in drawn.items()}
        body.append([row, *(told.get(each, "") for each in samples)])
    return as_table(body, markdown=True)


def _studies(board: Board) -> Iterator[str]:
    rows = [(row, list(kept_and_left(board, row))) for row in rows_of(board)]
    body = [
        [row, column, *(points(found[part]) for part in ("left", "with_samples", "others"))]
        for row, each in rows
        for column, found in each
    ]
    if body:
        head = ["row", "capability", "without its samples", "with samples of all", "the others, without its samples"]
        yield "What becomes of a capability whose expert has no samples, in points above the start:"
        yield as_table([head, *body], markdown=True)
    start = start_of(board)
    pairs = [(row, pair) for row in rows_of(board) if (pair := elsewhere(board, row))]
    if pairs and start:
        yield "With samples from elsewhere, in points:"
        head = ["row", "elsewhere, above the start", "usual, above the start", "elsewhere above usual"]
        lines = [
            [row, *(points(board.difference(*each)) for each in ((odd, start), (same, start), (odd, same)))]
            for row, (odd, same) in pairs
        ]
        yield as_table([head, *lines], markdown=True)


ABOUT = (
    "`mergekit-mm align` lets a merge learn to answer as each expert does to some of its inputs, without labels. "
    "The start is a merge without data, at the strength that is best on validation questions, and for LoRA experts "
    "also by the method that is. Samples are of the calibration split; where they were drawn several times, a model "
    "is the mean of the draws, question by question. A quarter of the samples is held back, and a draw in which "
    "they do not come closer to the experts leaves the start unchanged. `adapter_on_base` is a control: the same "
    "with the base in the place of the merge. `expert_merging` begins where its authors do. The intervals of worst "
    "draws are over questions alone, and allow for the number of draws. These methods use data: they are to be "
    "compared with each other, and the methods without data are their starts. The model has no skill without "
    "pictures, so that nothing is said about what becomes of one. Samples from elsewhere are of one kind of "
    "question for each capability, about pictures that look as if photographed from a screen."
)
