"""The first page: what a practitioner can act on, in sentences that say no more than the intervals show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np

from examples.minibench.evidence.board import WAYS, Board, Model
from examples.minibench.evidence.claims import Claim, best_on_validation
from examples.minibench.evidence.preconditions import Precondition
from examples.minibench.evidence.statistics import Interval
from examples.minibench.evidence.verdicts import FAILS, HOLDS, UNDECIDED, percent, signed, span

PLAIN = "task_arithmetic"  # the method that the recommended one is compared with
# The words for a verdict, and the one before what it is about.
FOUND = {HOLDS: ("shown", "that"), FAILS: ("shown to be wrong", "that"), UNDECIDED: ("open", "whether")}
Pair = tuple[Board, Board | None]  # the board of test questions, and that of validation questions


def warning(rows: Sequence[Precondition]) -> str | None:
    """A loud line if preconditions are not known to hold."""
    if not rows:
        return "**NO PRECONDITION COULD BE CHECKED**, so that nothing is known about what the merges are made of."
    failed, undecided = ([row for row in rows if row.verdict == verdict] for verdict in (FAILS, UNDECIDED))
    if not failed and not undecided:
        return None
    counts = f"of {len(rows)}, {len(failed)} {'fails' if len(failed) == 1 else 'fail'} and "
    counts += f"{len(undecided)} {'is' if len(undecided) == 1 else 'are'} undecided"
    told = f"**THE PRECONDITIONS DO NOT ALL HOLD: {counts}.** "
    told += "What is said about merges below is to be doubted to that extent."
    for word, found in (("What fails", failed), ("What is undecided", undecided)):
        each = (f"{row.statement} ({WAYS.get(row.way, row.way)})" for row in found)
        told += f" {word}: {'; '.join(each)}." if found else ""
    return told


def sentences(pairs: Sequence[Pair], claims: Sequence[Claim]) -> list[str]:
    """What to do with each way of training, and what holds for all: fewer than ten points, most of one sentence."""
    found: list[str] = []
    for board, validation in pairs:
        if best := best_on_validation(board, validation):
            found.append(" ".join([_start(board, best), *_references(board, best), *_cheapest(board, best)]))
        else:
            found.append(f"No method is recommended for {board.title}, as no merges were asked validation questions.")
    found += _published([board for board, _ in pairs])
    found += _strength_or_method([validation for _, validation in pairs if validation])
    return [*found, *_parts(claims), *_two_modalities(claims)]


def resolution(boards: Sequence[Board]) -> str:
    """How far two merges must be apart to be told apart. Empty: there are no two."""
    told = []
    for board in boards:
        halves, runs = [board.difference(*pair).half for pair in combinations(board.main(), 2)], len(board.runs)
        if halves:
            half = np.median(halves)
            count = sum(each.shape[2] for each in board.scores)
            seeds = f"{runs} {'run' if runs == 1 else 'runs'}"
            told.append(f"{100 * half:.1f} points for {board.title} ({seeds}, {count} questions)")
    return f"Two merges are told apart if they differ by about {', '.join(told)}; smaller differences are open." * bool(
        told
    )


def compared(gap: Interval, other: str) -> str:
    """A difference from another one in words: above, below, or not told apart."""
    if gap.sign == 0:
        return f"not told apart from {other} (difference {_told(gap)})"
    ends = gap if gap.sign > 0 else Interval(-gap.value, -gap.high, -gap.low)
    where = "above" if gap.sign > 0 else "below"
    return f"{100 * ends.value:.1f} points ({span(ends, sign=False)}) {where} {other}"


def _start(board: Board, best: Model) -> str:
    told = f"For {board.title} start with `{best.name}` at strength {_strength(board, best)}, the best on validation "
    told += f"questions: {percent(board.mean(best))} on test questions"
    plain = board.method(PLAIN)
    if plain and plain != best:
        told += f", {compared(board.difference(best, plain), f'`{PLAIN}` at its best strength')}"
    gaps = {each: board.difference(best, each) for each in board.main() if each not in (best, plain)}
    level, above = (_listed(each for each, gap in gaps.items() if gap.sign == sign) for sign in (0, -1))
    told += f". Not told apart from it: {level}" if level else ""
    return told + (f". Above it on test questions: {above}." if above else ".")


def _references(board: Board, best: Model) -> Iterator[str]:
    experts, told = board.of("expert"), []
    if experts:
        top = max(experts, key=lambda each: board.mean(each).value)
        told.append(compared(board.above_all(best, experts), f"the best single expert, `{top.name}`"))
    for kind, name in (("mixture", "training on the mixture of all data"), ("unmerged", "the unmerged towers")):
        if other := board.one(kind):
            told.append(compared(board.difference(best, other), name))
    if told:
        yield f"`{best.name}` is, on average over the columns, {', and '.join(told)}."


def _cheapest(board: Board, best: Model) -> Iterator[str]:
    """Only where a method that is not shown to be less accurate takes at most half the time."""
    timed = {each: board.seconds(each) for each in board.main()}
    known = {each: seconds for each, seconds in timed.items() if seconds is not None}
    level = [each for each in known if each == best or board.difference(best, each).sign <= 0]
    if best in known and known[cheapest := min(level, key=lambda each: known[each])] <= known[best] / 2:
        yield (
            f"`{cheapest.name}` takes {known[cheapest]:.1f} s where `{best.name}` takes {known[best]:.1f} s, and "
            f"`{best.name}` is {compared(board.difference(best, cheapest), 'it')}."
        )


def _published(boards: Sequence[Board]) -> Iterator[str]:
    told = []
    for board in boards:
        chosen = [each for each in board.main() if each.setting == "chosen" and board.strengths(each)]
        pairs = [(each, other) for each in chosen if (other := board.one("merge", each.name, "published"))]
        if pairs:
            weights: dict[Model, float] = {}
            for better, other in pairs:
                weights |= {better: 1 / len(pairs), other: -1 / len(pairs)}
            told.append(compared(board.contrast(weights), f"the published ones for {board.title}"))
    if told:
        yield f"On average over methods, strengths chosen on validation questions are {'; '.join(told)}."


def _strength_or_method(validations: Sequence[Board]) -> Iterator[str]:
    """The ends are picked on the same questions, which makes both distances larger than they are."""
    told = []
    for board in validations:
        grid = _by_method(board)
        if len(grid) < 2:
            continue
        strength: dict[Model, float] = {}
        for models in grid:
            strength |= {models[-1]: 1 / len(grid), models[0]: -1 / len(grid)}
        bests = sorted((models[-1] for models in grid), key=lambda each: board.mean(each).value)
        method = {bests[-1]: 1.0, bests[0]: -1.0}
        both = {each: strength.get(each, 0.0) - method.get(each, 0.0) for each in {**strength, **method}}
        word = {1: "strength matters more", -1: "method matters more", 0: "not shown which matters more"}
        apart = [f"{100 * board.contrast(weights).value:.1f}" for weights in (strength, method)]
        told.append(f"{' and '.join(apart)} points for {board.title} ({word[board.contrast(both).sign]})")
    if told:
        yield (
            "Strength or method: on validation questions, best and worst strength of a method on average, and best and "
            f"worst method at their best strengths, are apart by {'; '.join(told)}. Both are rather too large, as the "
            "ends are picked on the same questions."
        )


def _by_method(board: Board) -> list[list[Model]]:
    """For each method with more than one strength its merges of the grid, the most accurate last."""
    grid: dict[str, list[Model]] = {}
    for each in board.of("merge", setting="grid"):
        if each.name not in board.only_ablated:
            grid.setdefault(each.name, []).append(each)
    kept = [models for models in grid.values() if len(models) > 1]
    return [sorted(models, key=lambda each: board.mean(each).value) for models in kept]


def _parts(claims: Sequence[Claim]) -> Iterator[str]:
    told = []
    for verdict, (begins, word) in FOUND.items():
        where: dict[str, list[str]] = {}
        for each in (each for each in claims if each.topic == "part" and each.verdict == verdict):
            where.setdefault(each.statement, []).append(f"{WAYS.get(each.way, each.way)} ({_told(each.here)})")
        if where:
            each_told = (
                f"{word} {statement.removeprefix('in OptMerge, ')} for {' and '.join(found)}"
                for statement, found in where.items()
            )
            told.append(f"it is {begins} {'; '.join(each_told)}")
    if told:
        yield f"Within OptMerge {'; '.join(told)}."


def _two_modalities(claims: Sequence[Claim]) -> Iterator[str]:
    if rows := [each for each in claims if each.topic == "modality"]:
        told = (
            f"it is {' '.join(FOUND[each.verdict])} {each.statement.removeprefix('on two modalities, ')} "
            f"({_told(each.here)})"
            for each in rows
        )
        yield f"On questions about two modalities {'; '.join(told)}."


def _told(gap: Interval) -> str:
    """A difference and its interval, for brackets."""
    return f"{signed(100 * gap.value)}, {span(gap)}"


def _strength(board: Board, model: Model) -> str:
    """One number, or the median with the range over runs."""
    found = board.strengths(model)
    if not found:
        return "as published"
    middle = f"{float(np.median(found)):g}"
    return middle if found[0] == found[-1] else f"{middle} ({found[0]:g} to {found[-1]:g} over the runs)"


def _listed(models: Iterable[Model]) -> str:
    return ", ".join(f"`{each.name}`" for each in models)
