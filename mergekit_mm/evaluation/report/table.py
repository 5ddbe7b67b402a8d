"""The comparison table: columns, means, gains, normalised accuracy. Pure functions of what was read.

For a model with scores s_c in the columns c of the mean (n of them), m = (1/n) sum_c s_c is its mean, and

- its gain over the base is m - m(base); its gain over the best expert m - max_e m(e), e over the experts;
- its normalised accuracy is (1/n) sum_c s_c / s_c(e_c), where e_c is the expert with the best score in column c
  (Ilharco et al., 2023, "Editing Models with Task Arithmetic", with one expert a task).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mergekit_mm.evaluation.report.results import Evaluated, ReportError, Score, Task
from mergekit_mm.evaluation.report.roles import Participant, Role

DECIMALS = 1  # of printed numbers
PAPER_COLUMNS = (
    *("VizWiz", "GQA", "MathVista", "MATH-Vision", "ChartQA", "TextVQA", "OCRVQA", "RefCOCO", "RefCOCO+", "RefCOCOg"),
    *("MUSIC-AVQA", "AVQA"),
)


@dataclass(frozen=True)
class Column:
    """A leaf task in one metric."""

    task: str
    metric: str
    header: str
    percent: bool  # a share of 1, shown times 100; others are shown as they are and have no part in the mean
    higher_is_better: bool


@dataclass(frozen=True, eq=False)
class Row:
    """A model's numbers: scores in percent, gains in points of percent; None where there is nothing to compare."""

    participant: Participant
    cells: tuple[Score | None, ...]
    mean: Score | None
    gain_over_base: float | None
    gain_over_expert: float | None
    normalised: float | None


@dataclass(frozen=True, eq=False)
class Table:
    """All columns and rows, in the order in which they are shown."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    mean_of: tuple[int, ...]  # numbers of the columns that the mean is over
    base: Participant | None
    best_expert: Participant | None
    column_experts: dict[int, Participant]  # column of the mean -> the expert whose score counts as 100 %

    @property
    def has_mean(self) -> bool:
        """Whether there is a mean that is no mere copy of the only column."""
        return bool(self.mean_of) and len(self.columns) > 1

    def best_merges(self, cells: Sequence[Score | None], higher_is_better: bool = True) -> set[int]:
        """The rows of the merges with the best of `cells` (one a row) as printed; none if there is but one merge."""
        values = {
            at: round(cell.value, DECIMALS) * (1 if higher_is_better else -1)
            for at, (row, cell) in enumerate(zip(self.rows, cells, strict=True))
            if cell and row.participant.role is Role.MERGE
        }
        return {at for at, value in values.items() if len(values) > 1 and value == max(values.values())}


def build(found: Sequence[Participant], metric: str | None = None, tasks: Sequence[str] = ()) -> Table:
    """The table of the models `found`. Its mean is over the columns that every model has.

    metric: only tasks that have this metric become columns; by default each task has its `score`, or its first metric
    where there is no `score`. tasks: names or patterns of tasks, columns or groups; by default all.

    ReportError: no task has the metric, or one of `tasks` names nothing.
    """
    every = _columns(found, metric)
    picked = _named(found, every, tasks) if tasks else set(every)
    columns = [column for column in every if column in picked]
    cells = [tuple(_cell(each.model, column) for column in columns) for each in found]
    mean_of = tuple(at for at, column in enumerate(columns) if column.percent and all(row[at] for row in cells))
    means = [_mean([row[at] for at in mean_of]) for row in cells]
    experts = [at for at, each in enumerate(found) if each.role is Role.EXPERT]
    base = next((at for at, each in enumerate(found) if each.role is Role.BASE), None)
    base_mean = means[base] if base is not None else None
    averaged = [(mean.value, at) for at in experts if (mean := means[at])]
    best = max(averaged, key=lambda pair: pair[0], default=None)
    measure = {at: top for at in mean_of if (top := _best_expert({e: cells[e][at] for e in experts}))}

    def row(each: Participant, scores: tuple[Score | None, ...], mean: Score | None) -> Row:
        over_base = mean.value - base_mean.value if mean and base_mean and each.role is not Role.BASE else None
        compared = each.role in (Role.MERGE, Role.REFERENCE)
        over_expert = mean.value - best[0] if mean and best and compared else None
        return Row(each, scores, mean, over_base, over_expert, _normalised(scores, measure))

    return Table(
        columns=tuple(columns),
        rows=tuple(map(row, found, cells, means)),
        mean_of=mean_of,
        base=None if base is None else found[base],
        best_expert=found[best[1]] if best else None,
        column_experts={at: found[e] for at, (_, e) in measure.items()},
    )


def _columns(found: Sequence[Participant], metric: str | None) -> list[Column]:
    """Columns of the paper in its order, then the others in the order of the files."""
    by_task: dict[str, list[Task]] = {}
    for each in found:
        for name, task in each.model.tasks.items():
            by_task.setdefault(name, []).append(task)
    chosen = {name: made for name, each in by_task.items() if (made := _metric(each, metric))}
    if not chosen:
        known = dict.fromkeys(each for tasks in by_task.values() for task in tasks for each in task.scores)
        raise ReportError(f"no task has the metric {metric!r}; found: {', '.join(known)}")
    titles = {name: by_task[name][0].paper_column or name for name in chosen}
    shared = Counter(titles.values())
    headers = {name: title if shared[title] == 1 else name for name, title in titles.items()}
    place = {title: at for at, title in enumerate(PAPER_COLUMNS)}
    ordered = sorted(chosen, key=lambda name: place.get(titles[name], len(place)))
    return [_column(name, chosen[name], headers[name], by_task[name]) for name in ordered]


def _metric(tasks: Sequence[Task], metric: str | None) -> str | None:
    """The metric asked for if a model has it; else `score`, or the first that all have."""
    if metric:
        return metric if any(metric in task.scores for task in tasks) else None
    names = list(dict.fromkeys(name for task in tasks for name in task.scores))
    common = [name for name in names if all(name in task.scores for task in tasks)]
    return "score" if "score" in names else next(iter(common or names), None)


def _column(name: str, metric: str, header: str, tasks: Sequence[Task]) -> Column:
    higher = not any(metric.partition(",")[0] in task.lower_is_better for task in tasks)
    values = [task.scores[metric].value for task in tasks if metric in task.scores]
    percent = higher and all(0 <= value <= 1 for value in values)
    return Column(name, metric, header if metric == "score" else f"{header} ({metric})", percent, higher)


def _named(found: Sequence[Participant], columns: Sequence[Column], wanted: Sequence[str]) -> set[Column]:
    """The columns that `wanted` names: by header, task, pattern or group. ReportError for a name that fits none."""
    groups = {group: members for each in found for run in each.model.runs for group, members in run.groups.items()}

    def leaves(name: str) -> list[str]:
        return [leaf for member in groups[name] for leaf in leaves(member)] if name in groups else [name]

    picked: set[Column] = set()
    for name in wanted:
        tasks = leaves(name)
        hits = {
            column
            for column in columns
            if column.task in tasks or column.header.lower() == name.lower() or fnmatchcase(column.task, name)
        }
        if not hits:
            known = ", ".join(dict.fromkeys([*(c.header for c in columns), *(c.task for c in columns), *groups]))
            raise ReportError(f"no column, task or group is called {name!r}; found: {known}")
        picked |= hits
    return picked


def _cell(model: Evaluated, column: Column) -> Score | None:
    task = model.tasks.get(column.task)
    score = task.scores.get(column.metric) if task else None
    if score is None or not column.percent:
        return score
    return Score(100 * score.value, None if score.stderr is None else 100 * score.stderr)


def _mean(cells: Sequence[Score | None]) -> Score | None:
    """Plain mean, None without any cell; its standard error takes the columns as independent samples."""
    present = [cell for cell in cells if cell]
    if not present:
        return None
    errors = [cell.stderr for cell in present if cell.stderr is not None]
    stderr = math.hypot(*errors) / len(present) if len(errors) == len(present) else None
    return Score(math.fsum(cell.value for cell in present) / len(present), stderr)


def _best_expert(scores: Mapping[int, Score | None]) -> tuple[float, int] | None:
    """The best score of the experts in a column, and the row of that expert; None without a score above 0."""
    top = max(
        ((score.value, expert) for expert, score in scores.items() if score), default=(0.0, 0), key=lambda pair: pair[0]
    )
    return top if top[0] > 0 else None


def _normalised(cells: Sequence[Score | None], measure: Mapping[int, tuple[float, int]]) -> float | None:
    ratios = [cell.value / value for at, (value, _) in measure.items() if (cell := cells[at])]
    return 100 * math.fsum(ratios) / len(ratios) if ratios and len(ratios) == len(measure) else None
