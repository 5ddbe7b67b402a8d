"""The results as a page: the table, dots, curves of strengths, gains and losses, and the answers side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mergekit_mm.evaluation.report import answers
from mergekit_mm.evaluation.report.media import Sources, find_media
from mergekit_mm.evaluation.report.render import NORMAL_95, legend, text_columns
from mergekit_mm.evaluation.report.results import Score
from mergekit_mm.evaluation.report.roles import Role
from mergekit_mm.evaluation.report.samples import collect_questions
from mergekit_mm.evaluation.report.strengths import Series, series
from mergekit_mm.evaluation.report.table import Row, Table
from mergekit_mm.pages import (
    Cell,
    Column,
    Dot,
    DotPanel,
    DotRow,
    Line,
    LinePanel,
    Page,
    Point,
    Section,
    dots,
    heat_map,
    lines,
    table,
    tag,
    write_page,
)

_KINDS = {Role.BASE: 0, Role.EXPERT: 1, Role.MERGE: 2, Role.REFERENCE: 4, Role.UNKNOWN: 1}  # the mark of each role
_MEAN = "mean"


def write_report(path: Path, found: Table, notes: Sequence[str], sources: Sources) -> int:
    """Write the page to `path`, whole or not at all. Returns its size in bytes.

    ReportError: a file of samples or of thumbnails is damaged. MergeError: the file cannot be written.
    """
    questions, missing = collect_questions(found)
    media, about_media = find_media(questions, sources)
    data, about_texts = answers.data(found, questions, media)
    sections = [
        Section("overview", "Overview", [_overview(found), _as_list(legend(found))]),
        Section("scores", "Scores with intervals", [_scores(found)]),
    ]
    if strengths := series(found):
        sections.append(Section("strengths", "Strengths", [_strengths(found, strengths)]))
    if gains := _gains(found):
        sections.append(Section("gains", "Gains and losses", gains))
    told = [*missing, *about_media, *about_texts]
    sections.append(
        Section(
            "answers",
            "Answers",
            [*([_as_list(told)] if told else []), *(answers.elements(questions) if questions else [])],
        )
    )
    sections.append(Section("notes", "Notes", [_as_list(notes)]))
    page = Page(
        title=f"{_counted(found.rows, 'model')} on {_counted(found.columns, 'task')}",
        lead=[_lead(found)],
        sections=sections,
        data=[data] if questions else [],
        script=answers.script() if questions else "",
        style=answers.style() if questions else "",
    )
    return write_page(path, page)


def _counted(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _lead(found: Table) -> str:
    roles = [row.participant.role for row in found.rows]
    counted = [
        f"{roles.count(role)} {role.value}{'s' * (roles.count(role) > 1)}" for role in Role if role.value in roles
    ]
    of = f": {', '.join(counted)}" if any(role.value for role in roles) else ""
    evaluators = {task.settings["evaluator"] for row in found.rows for task in row.participant.model.tasks.values()}
    by = " and ".join(sorted(evaluators))
    return f"Results of {by}{of}. How they were measured, and what was not measured alike, is in the notes."


def _as_list(texts: Sequence[str]) -> Markup:
    return tag("ul", [tag("li", text) for text in texts])


def _column_key(at: int) -> str:
    return f"task-{at}"


def _row_key(at: int) -> str:
    return f"model-{at}"


def _overview(found: Table) -> Markup:
    """The table of the command line, with the model first, since that names a row."""
    columns = sorted(text_columns(found), key=lambda each: each.heading != "model" or not each.is_name)
    keys = [_column_key(at) for at in range(len(found.columns))] + ([_MEAN] if found.has_mean else [])
    scored = [at for at, each in enumerate(columns) if not each.is_name]
    named = dict(zip(scored, keys, strict=False))
    rows = [
        [
            each.cells[at] if each.is_name else Cell(_minus(each.cells[at]), _order(each.numbers[at]), at in each.best)
            for each in columns
        ]
        for at in range(len(found.rows))
    ]
    headings = [Column(each.heading, not each.is_name, key=named.get(at, "")) for at, each in enumerate(columns)]
    caption = "All models and tasks. Bold: the best merge of the column."
    return table("models", caption, headings, rows, [_row_key(at) for at in range(len(found.rows))])


def _order(number: float | None) -> float | str:
    return "" if number is None else number


def _minus(text: str) -> str:
    return "–" if text == "-" else text.replace("-", "−")


@dataclass(frozen=True)
class _Scored:
    """A column of scores, or the mean: a cell for each row."""

    heading: str
    key: str
    cells: Sequence[Score | None]
    higher_is_better: bool = True


def _scored(found: Table) -> list[_Scored]:
    """The columns of the table, then its mean."""
    columns = [
        _Scored(each.header, _column_key(at), [row.cells[at] for row in found.rows], each.higher_is_better)
        for at, each in enumerate(found.columns)
    ]
    return columns + ([_Scored(_MEAN, _MEAN, [row.mean for row in found.rows])] if found.has_mean else [])


def _scores(found: Table) -> Markup:
    roles = [row.participant.role for row in found.rows]
    rows = [
        DotRow(row.participant.label, _KINDS[role], _row_key(at))
        for at, (row, role) in enumerate(zip(found.rows, roles, strict=True))
    ]
    marks = [(_KINDS[role], role.value) for role in Role if role.value and role in roles]
    parts = {
        "A panel for each column of the table, each on its own scale.": True,
        "Bars: 95 % intervals.": True,
        "Dotted: the base.": found.base is not None,
        "Filled diamonds: the best merge.": roles.count(Role.MERGE) > 1,
    }
    caption = " ".join(part for part, holds in parts.items() if holds)
    return dots("score-dots", caption, rows, [_dot_panel(found, each) for each in _scored(found)], marks)


def _dot_panel(found: Table, scored: _Scored) -> DotPanel:
    best = found.best_merges(scored.cells, scored.higher_is_better)
    dotted = [
        None if cell is None else Dot(cell.value, *_interval(cell), hollow=_is_lesser(found, at, best))
        for at, cell in enumerate(scored.cells)
    ]
    base = next(iter(_values(found, scored, Role.BASE)), None)
    heading = scored.heading if scored.higher_is_better else f"{scored.heading} (lower is better)"
    return DotPanel(heading, dotted, base, scored.key)


def _values(found: Table, scored: _Scored, role: Role) -> list[float]:
    """The scores of the models of a role."""
    rows = zip(found.rows, scored.cells, strict=True)
    return [cell.value for row, cell in rows if row.participant.role is role and cell]


def _is_lesser(found: Table, at: int, best: set[int]) -> bool:
    return bool(best) and found.rows[at].participant.role is Role.MERGE and at not in best


def _interval(score: Score) -> tuple[float | None, float | None]:
    if score.stderr is None:
        return None, None
    return score.value - NORMAL_95 * score.stderr, score.value + NORMAL_95 * score.stderr


def _strengths(found: Table, several: Sequence[Series]) -> Markup:
    """A panel for each column and the mean, with a line for each merge of which there are several strengths."""
    panels = []
    for scored in _scored(found):
        of_row = dict(zip(found.rows, scored.cells, strict=True))
        drawn = []
        for number, each in enumerate(several):
            points = [Point(at, cell.value, *_interval(cell)) for at, row in each.points if (cell := of_row[row])]
            drawn += [Line(each.name, points, 1 + number % 5)] if points else []
        best = max if scored.higher_is_better else min
        references = [
            (name, best(values))
            for name, role in (("base", Role.BASE), ("best expert", Role.EXPERT))
            if (values := _values(found, scored, role))
        ]
        if drawn:
            panels.append(LinePanel(scored.heading, drawn, references, scored.key))
    caption = "Merges of which several strengths were evaluated (models called scaling_NUMBER). Bands: 95 % intervals."
    return lines("strength-lines", caption, "strength", panels)


def _gains(found: Table) -> list[str]:
    """Heat maps of the differences from the base and from the best expert of each column, for merges and references."""
    compared = [row for row in found.rows if row.participant.role in (Role.MERGE, Role.REFERENCE)]
    columns = [at for at, each in enumerate(found.columns) if each.percent]
    experts = [row for row in found.rows if row.participant.role is Role.EXPERT]
    base = next((row for row in found.rows if row.participant is found.base), None)
    if not compared or not columns:
        return []
    maps: list[str] = []
    if base is not None:
        against = {at: base.cells[at] for at in columns}
        maps.append(_differences(found, "gains-base", "Points above or below the base.", compared, against))
    if experts:
        best = {
            at: max((row.cells[at] for row in experts), key=lambda cell: cell.value if cell else -math.inf)
            for at in columns
        }
        told = "Points above or below the expert that is best at the task."
        maps.append(_differences(found, "gains-expert", told, compared, best))
    if maps:
        maps.append(
            "A pointer on a cell, or the arrow keys, show its interval: 1.96 standard errors, with both scores taken "
            "as independent. On the same questions they are not, and the true interval is mostly smaller."
        )
    return maps


def _differences(
    found: Table, identity: str, caption: str, compared: Sequence[Row], against: dict[int, Score | None]
) -> Markup:
    values: list[list[float | None]] = []
    notes: list[list[str]] = []
    for row in compared:
        pairs = [(row.cells[at], other) for at, other in against.items()]
        values.append([one.value - other.value if one and other else None for one, other in pairs])
        notes.append([_uncertainty(one, other) for one, other in pairs])
    headers = [found.columns[at].header for at in against]
    names = [row.participant.label for row in compared]
    keys = [_row_key(found.rows.index(row)) for row in compared]
    return heat_map(identity, caption, names, headers, values, centre=0.0, form="+.1f", notes=notes, keys=keys)


def _uncertainty(one: Score | None, other: Score | None) -> str:
    if not one or not other or one.stderr is None or other.stderr is None:
        return ""
    return f"± {NORMAL_95 * math.hypot(one.stderr, other.stderr):.1f}"
