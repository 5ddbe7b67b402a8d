"""What is claimed of merges that learned from unlabelled samples, with what was found here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from examples.minibench.evidence.aligned import BASELINES, Draws, rows_of, start_of, usual
from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.claims import MARGIN, NO_FIGURE, Claim, above_best, on_difference
from examples.minibench.evidence.verdicts import FAILS, HOLDS, UNDECIDED

TOPIC = "aligned"
_COMPARED = {"expert_merging": "Expert Merging", "adapter_on_base": "the same adapter on the base instead of the merge"}


def aligned_claims(board: Board, draws: Mapping[Model, Draws]) -> list[Claim]:
    """All that the board's models allow to check."""
    found: list[Claim] = []
    start = start_of(board)
    for row in (each for each in rows_of(board) if each not in BASELINES and start):
        assert start
        cases = usual(board, row)
        if cases:
            found += _with_most(board, row, *list(cases.items())[-1])
        for samples, model in cases.items():
            found += _against_start(board, row, samples, {model: 1.0, start: -1.0}, samples < max(cases))
            if drawn := draws.get(model):
                named = f"`{row}` with {samples} samples"
                found.append(_no_draw_below(board.way, f"{named} is clearly below its start in no draw", drawn))
    return found


def _with_most(board: Board, row: str, samples: int, model: Model) -> Iterator[Claim]:
    """A row with the most samples against methods without data, and against other ways to use as many."""
    named = f"`{row}` with {samples} samples"
    if others := board.main():
        above = above_best(board, TOPIC, f"{named} is above every method without data", TOPIC, model, others)
        yield above
        low, high = board.mean(model).low, max(board.mean(each).high for each in others)
        apart = HOLDS if low > high else FAILS if above.verdict == FAILS else UNDECIDED
        told = f"{named} has an interval above those of all methods without data"
        yield replace(above, statement=told, verdict=apart)
    for other, name in _COMPARED.items():
        against = usual(board, other).get(samples)
        if against and (other != "adapter_on_base" or row == "adapter"):
            told = f"{named} is above {name} with as many"
            yield on_difference(board, TOPIC, told, TOPIC, {model: 1.0, against: -1.0})


def _against_start(board: Board, row: str, samples: int, pair: Mapping[Model, float], few: bool) -> Iterator[Claim]:
    """few: whether other models of the row have more samples, so that it is a question whether these do harm."""
    named = f"`{row}` with {samples} samples"
    yield on_difference(board, TOPIC, f"{named} is above its start", TOPIC, pair)
    if few:
        told = f"{named} is at most {100 * MARGIN:.0f} point below its start"
        yield on_difference(board, TOPIC, told, TOPIC, pair, MARGIN)


def _no_draw_below(way: str, statement: str, drawn: Draws) -> Claim:
    """It holds unless an interval of some draw lies below zero; that is a check, and no proof of equality."""
    count = len(drawn.gaps)
    verdict = FAILS if drawn.below else HOLDS
    return Claim(TOPIC, statement, way, NO_FIGURE, drawn.worst, verdict, (count - drawn.below, count))
