"""The first page: what a practitioner can act on, in sentences that say no more than the intervals show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.claims import Claim, best_on_validation
from examples.minibench.evidence.preconditions import Precondition
from examples.minibench.evidence.statistics import Interval
from examples.minibench.evidence.verdicts import FAILS, HOLDS, points

WAYS = {"full": "full fine-tunes", "lora": "LoRA experts", "modality": "experts of different modalities"}
PLAIN = "task_arithmetic"  # what methods are compared with
Pair = tuple[Board, Board | None]  # of test questions, and of validation questions


def warning(rows: Sequence[Precondition]) -> str | None:
    """A loud line if preconditions are not known to hold."""
    failed = [f"{row.statement} ({row.way})" for row in rows if row.verdict == FAILS]
    open_ = sum(row.verdict not in (HOLDS, FAILS) for row in rows)
    if not failed and not open_:
        return None
    told = f"**THE PRECONDITIONS DO NOT ALL HOLD: {len(failed)} of {len(rows)} fail, {open_} are undecided.** "
    told += "Whatever is said about merges below is to be doubted to that extent."
    return told + (f" What fails: {'; '.join(failed)}." if failed else "")


def sentences(pairs: Sequence[Pair], claims: Sequence[Claim]) -> list[str]:
    """About ten sentences, from all ways of training."""
    found: list[str] = []
    for board, validation in pairs:
        where = WAYS.get(board.way, board.way)
        best = best_on_validation(board, validation)
        if best:
            found += [_start(board, best, where), *_references(board, best, where), *_cheapest(board, best, where)]
        found += _published(board, where)
        if validation:
            found += _strength_or_method(validation, where)
    found += _ablation(claims)
    found += _two_modalities(claims)
    return [*found, *(_resolution(board) for board, _ in pairs if len(board.merges()) > 1)]


def compared(gap: Interval) -> str:
    """A difference in words: above, below, or not told apart."""
    if gap.sign == 0:
        return f"not told apart from ({points(gap)})"
    return f"{abs(100 * gap.value):.1f} points {'above' if gap.sign > 0 else 'below'} ({points(gap)})"


def named_strength(board: Board, model: Model) -> str:
    """The strength of a merge: one number, or the median with the range over runs."""
    found = board.strengths(model)
    if not found:
        return "its own strength"
    middle, low, high = float(np.median(found)), found[0], found[-1]
    return f"{middle:g}" if low == high else f"{middle:g} ({low:g} to {high:g} over the runs)"


def _start(board: Board, best: Model, where: str) -> str:
    mean = board.mean(best)
    told = f"For {where} start with `{best.name}` at strength {named_strength(board, best)}, the best on validation "
    told += f"questions: {points(mean, sign=False)} % on test questions"
    plain = next((each for each in board.merges() if each.name == PLAIN), None)
    if plain and plain != best:
        told += f", {compared(board.difference(best, plain))} `{PLAIN}` at its best strength"
    rest = [each for each in board.main() if each not in (best, plain)]
    gaps = {each: board.difference(best, each) for each in rest}
    level, above = (_listed(each for each, gap in gaps.items() if gap.sign == sign) for sign in (0, -1))
    told += f"; not told apart from it: {level}" if level else ""
    return told + (f"; above it on test questions: {above}." if above else ".")


def _references(board: Board, best: Model, where: str) -> Iterator[str]:
    experts, mixture, base = board.of("expert"), board.one("mixture"), board.one("base")
    told = []
    if experts:
        top = max(experts, key=lambda each: board.mean(each).value)
        told.append(f"{compared(board.difference(best, top))} the best single expert ({top.name})")
    if mixture:
        told.append(f"{compared(board.difference(best, mixture))} training on the mixture of all data")
    if base:
        told.append(f"{compared(board.difference(best, base))} the base")
    if told:
        yield f"For {where} that merge is, on average over the columns, {'; '.join(told)}."


def _cheapest(board: Board, best: Model, where: str) -> Iterator[str]:
    timed = {each: board.seconds(each) for each in board.main()}
    known = {each: seconds for each, seconds in timed.items() if seconds is not None}
    level = [each for each in known if each == best or board.difference(best, each).sign <= 0]
    if best in known and (cheapest := min(level, key=lambda each: known[each])) != best:
        yield (
            f"For {where} `{cheapest.name}` takes {known[cheapest]:.0f} s where `{best.name}` takes {known[best]:.0f} "
            f"s (start and writing included), and is not shown to be less accurate: `{best.name}` is "
            f"{compared(board.difference(best, cheapest))} it."
        )


def _published(board: Board, where: str) -> Iterator[str]:
    both = [
        (chosen, published)
        for chosen in board.main()
        if chosen.setting == "chosen" and (published := board.one("merge", chosen.name, "published"))
    ]
    if not both:
        return
    weights = {}
    for chosen, published in both:
        weights |= {chosen: 1 / len(both), published: -1 / len(both)}
    gap = board.contrast(weights)
    if gap.sign > 0:
        told = f"the published settings lose {100 * gap.value:.1f} points ({points(gap)}) against strengths chosen on"
    elif gap.sign < 0:
        told = f"the published settings gain {-100 * gap.value:.1f} points ({points(gap)}) over strengths chosen on"
    else:
        told = f"choosing the strength shows no clear gain ({points(gap)}) over the published settings, chosen on"
    yield f"For {where} {told} validation questions, on average over {len(both)} methods."


def _strength_or_method(validation: Board, where: str) -> Iterator[str]:
    """The ends are picked on the same questions, which makes both distances larger than they are."""
    grid: dict[str, list[Model]] = {}
    for each in validation.of("merge", setting="grid"):
        grid.setdefault(each.name, []).append(each)
    grid = {name: models for name, models in grid.items() if len(models) > 1}
    if len(grid) < 2:
        return

    def mean(each: Model) -> float:
        return validation.mean(each).value

    ends = [(max(models, key=mean), min(models, key=mean)) for models in grid.values()]
    bests = [best for best, _ in ends]
    strength: dict[Model, float] = {}
    for best, worst in ends:
        strength |= {best: 1 / len(ends), worst: -1 / len(ends)}
    method = {max(bests, key=mean): 1.0, min(bests, key=mean): -1.0}
    both = {each: strength.get(each, 0.0) - method.get(each, 0.0) for each in {**strength, **method}}
    word = {1: "more than", -1: "less than", 0: "not clearly more or less than"}[validation.contrast(both).sign]
    yield (
        f"For {where} the strength matters {word} the method: on validation questions best and worst strength of a "
        f"method are {100 * validation.contrast(strength).value:.1f} points apart on average, best and worst method at "
        f"their best strengths {100 * validation.contrast(method).value:.1f} points."
    )


def _ablation(claims: Sequence[Claim]) -> Iterator[str]:
    if rows := [each for each in claims if each.topic == "part"]:
        told = (
            f"for {WAYS.get(each.way, each.way)} that {each.statement.removesuffix(', in OptMerge')} {_said(each)}"
            for each in rows
        )
        yield f"Within OptMerge, {'; '.join(told)}."


def _two_modalities(claims: Sequence[Claim]) -> Iterator[str]:
    if rows := [each for each in claims if each.topic == "modality"]:
        told = (f"that {each.statement.removeprefix('on two modalities, ')} {_said(each)}" for each in rows)
        yield f"On questions about two modalities, {'; '.join(told)}."


def _said(claim: Claim) -> str:
    words = {HOLDS: "holds", FAILS: "does not hold"}.get(claim.verdict, "is undecided")
    return f"{words} ({points(claim.here)})"


def _resolution(board: Board) -> str:
    merges = board.merges()
    halves = [board.difference(each, merges[0]).half for each in merges[1:]]
    runs = len(board.runs)
    return (
        f"For {WAYS.get(board.way, board.way)} these {runs} {'run' if runs == 1 else 'runs'} and "
        f"{sum(each.shape[2] for each in board.scores)} questions tell two merges apart from about "
        f"{100 * float(np.median(halves)):.1f} points on; smaller differences are open."
    )


def _listed(models: Iterator[Model]) -> str:
    return ", ".join(f"`{each.name}`" for each in models)
