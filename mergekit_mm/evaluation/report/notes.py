"""The notes beneath the table: how its numbers were made, and in what the models were measured differently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergekit_mm.evaluation.report.table import Column, Row, Table


def notes(table: Table) -> list[str]:
    """Sentences, the definitions first."""
    return [*_definitions(table), *_missing(table), *_limits(table), *_differences(table), *_files(table)]


def _definitions(table: Table) -> Iterator[str]:
    averaged = [table.columns[at] for at in table.mean_of]
    lacking = [column for column in table.columns if column.percent and column not in averaged]
    if not averaged:
        yield "No mean: there is no column in percent that every model has."
    elif len(table.columns) > 1:
        which = f"{_headers(averaged)}; some models lack {_headers(lacking)}" if lacking else f"{len(averaged)} columns"
        yield f"Mean: plain mean of {which}."
    raw = [column for column in table.columns if not column.percent]
    if raw:
        yield f"{_headers(raw)}: as in the files, not percent, and no part of the mean."
    if table.base and averaged:
        yield f"vs base: mean minus that of {table.base.label}."
    if table.best_expert:
        yield f"vs expert: mean minus that of {table.best_expert.label}, the expert with the best mean."
    if table.column_experts:
        experts = dict.fromkeys(table.column_experts.values())
        of = {e: [table.columns[at] for at, each in table.column_experts.items() if each is e] for e in experts}
        listed = "; ".join(f"{expert.label} ({_headers(columns)})" for expert, columns in of.items())
        yield f"Normalised: mean over the columns of the score divided by that of the column's expert: {listed}."
        unscaled = [table.columns[at] for at in table.mean_of if at not in table.column_experts]
        if unscaled:
            yield f"Normalised leaves out {_headers(unscaled)}: no expert has a score above 0."


def _missing(table: Table) -> Iterator[str]:
    """Which models lack which columns, and why."""
    lacking: dict[str, list[str]] = {}
    for row in table.rows:
        gaps = [column for column, cell in zip(table.columns, row.cells, strict=True) if cell is None]
        known = [column for column in gaps if column.task in row.participant.model.tasks]
        for reason, columns in (("No result", [c for c in gaps if c not in known]), ("No finite number", known)):
            if columns:
                lacking.setdefault(f"{reason} of {_headers(columns)}", []).append(row.participant.label)
    for text, labels in lacking.items():
        yield f"{text}: {', '.join(labels)}."


def _limits(table: Table) -> Iterator[str]:
    """Columns of which every model saw the same part (--limit); where models differ, `_differences` tells."""
    parts = []
    for column in table.columns:
        seen = {task.samples for row in table.rows if (task := row.participant.model.tasks.get(column.task))}
        counts = next(iter(seen))
        if len(seen) == 1 and counts and counts[0] < counts[1]:
            parts.append(f"{column.header} {counts[0]} of {counts[1]}")
    if parts:
        yield f"Only a part of the samples was evaluated: {', '.join(parts)}."


def _differences(table: Table) -> Iterator[str]:
    """Settings in which the models of a column differ; the same difference in several columns is one note."""
    where: dict[str, list[Column]] = {}
    for column in table.columns:
        rows = [row for row in table.rows if column.task in row.participant.model.tasks]
        settings = [row.participant.model.tasks[column.task].settings for row in rows]
        for key in dict.fromkeys(key for each in settings for key in each):
            by_value: dict[str, list[Row]] = {}
            for row, each in zip(rows, settings, strict=True):
                by_value.setdefault(each.get(key, "not set"), []).append(row)
            if len(by_value) > 1:
                where.setdefault(f"{key}: {_split(by_value)}", []).append(column)
    for text, columns in where.items():
        yield f"Different {text}{'' if len(columns) == len(table.columns) else f', in {_headers(columns)}'}."


def _split(by_value: dict[str, list[Row]]) -> str:
    """The models of each value, such as "0.4.9 (one, two), 0.4.13 (the others)"."""
    ordered = sorted(by_value.items(), key=lambda pair: len(pair[1]))
    others = len(ordered[-1][1]) > max(3, len(ordered[-2][1]))
    parts = []
    for value, rows in ordered:
        last = others and value == ordered[-1][0]
        parts.append(f"{value} ({'the others' if last else ', '.join(row.participant.label for row in rows)})")
    return ", ".join(parts)


def _files(table: Table) -> Iterator[str]:
    """Models whose results come from several files."""
    for row in table.rows:
        runs = row.participant.model.runs
        if len(runs) == 1:
            continue
        counts = {c: sum(c.task in run.tasks for run in runs) for c in table.columns}
        repeated = [column for column, count in counts.items() if count > 1]
        newest = f"; of {_headers(repeated)}, which several have, the newest counts" if repeated else ""
        yield f"{row.participant.label}: from {len(runs)} files ({', '.join(run.when for run in runs)}){newest}."


def _headers(columns: Sequence[Column]) -> str:
    return ", ".join(column.header for column in columns)
