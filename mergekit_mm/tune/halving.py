"""Successive halving (Karnin et al., ICML 2013; Jamieson and Talwalkar, AISTATS 2016): many candidates are asked a few
questions, the better half goes on to twice as many, and so on until two are left or all questions have been asked.

The questions of a round begin with those of the round before, whose answers count. So a round costs half of what it
would alone, and the candidates that are compared have been asked the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """candidates: that take part. questions: of each set that they will have been asked, where it has so many."""

    candidates: int
    questions: int


def rounds(candidates: int, limit: int | None, available: int) -> list[Round]:
    """The rounds of a race.

    limit: questions of each set in the first round; None for all. available: questions of the largest set.
    """
    made = [Round(candidates, min(limit or available, available))]
    while made[-1].candidates > 2 and made[-1].questions < available:
        made.append(Round(-(-made[-1].candidates // 2), min(2 * made[-1].questions, available)))
    return made


def new_answers(race: Sequence[Round], sizes: Mapping[str, int]) -> int:
    """How many answers all rounds need. sizes: the number of questions of each set."""
    total, before = 0, 0
    for each in race:
        asked = sum(min(size, each.questions) - min(size, before) for size in sizes.values())
        total, before = total + each.candidates * asked, each.questions
    return total
