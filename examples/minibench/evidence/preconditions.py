"""What must be true of base, experts and mixture before any merge is worth looking at."""

from __future__ import annotations

from dataclasses import dataclass

from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.statistics import Interval
from examples.minibench.evidence.verdicts import FAILS, HOLDS, all_hold, points, verdict


@dataclass(frozen=True)
class Precondition:
    """A statement about models of one way of training. found: differences by column, or the sum of them in words."""

    way: str
    statement: str
    found: str
    verdict: str


def preconditions(board: Board) -> list[Precondition]:
    """The preconditions that the board's models allow to check, each with its verdict."""
    rows = []
    base, blind, mixture = (board.one(kind) for kind in ("base", "blind", "mixture"))
    if base and blind:
        rows.append(_everywhere(board, base, blind, "the base is above not looking, in every column"))
    for expert in board.of("expert") if base else ():
        own = board.own(expert)
        if own and base:
            gain = board.difference(expert, base, own)
            statement = f"the expert for {expert.name} is above the base in its own column"
            rows.append(Precondition(board.way, statement, points(gain), verdict(gain)))
            if len(board.columns) > 1:
                rows.append(_no_better_elsewhere(board, expert, base, own))
    if base and mixture:
        rows.append(_everywhere(board, mixture, base, "mixture training is above the base, in every column"))
    return rows


def _everywhere(board: Board, model: Model, other: Model, statement: str) -> Precondition:
    gaps = {column: board.difference(model, other, column) for column in board.columns}
    worst = min(gaps, key=lambda column: gaps[column].value)
    found = f"least in {worst}: {points(gaps[worst])}"
    return Precondition(board.way, statement, found, all_hold([verdict(each) for each in gaps.values()]))


def _no_better_elsewhere(board: Board, expert: Model, base: Model, own: str) -> Precondition:
    """It holds unless an interval of some other column lies above zero; that is a check, and no proof of equality."""
    gaps: dict[str, Interval] = {c: board.difference(expert, base, c) for c in board.columns if c != own}
    best = max(gaps, key=lambda column: gaps[column].value)
    better = any(each.low > 0 for each in gaps.values())
    statement = f"the expert for {expert.name} is not clearly above the base in another column"
    found = f"most in {best}: {points(gaps[best])}"
    return Precondition(board.way, statement, found, FAILS if better else HOLDS)
