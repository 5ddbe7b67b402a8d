"""`mergekit-mm report`: the results of a base, experts and merges in one table.

| file | what it holds |
|---|---|
| `results.py` | result files of lm-eval and lmms-eval, read into models, runs, tasks and scores |
| `roles.py` | which model is the base, an expert, a merge or a reference; short names |
| `table.py` | the comparison itself: columns, means, gains, normalised accuracy |
| `notes.py` | sentences beneath the table: definitions, and what was not measured alike |
| `render.py` | the table as text, Markdown and CSV |
| `figure.py` | the table as a figure |

The order is that of the data, and imports go back along it only: `results` imports none of the others. This room may
import `errors` and libraries, and no other room: it reads files, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergekit_mm.evaluation.report.figure import draw
from mergekit_mm.evaluation.report.notes import notes
from mergekit_mm.evaluation.report.render import as_csv, as_markdown, as_text, write_files
from mergekit_mm.evaluation.report.results import collect
from mergekit_mm.evaluation.report.roles import participants
from mergekit_mm.evaluation.report.table import build


def make_report(
    paths: Sequence[Path],
    base: str | None,
    experts: Sequence[str],
    references: Sequence[str],
    metric: str | None,
    tasks: Sequence[str],
    form: str,
    out: Path | None,
) -> tuple[str, list[str]]:
    """The table of the result files in `paths`, in the form `text`, `markdown` or `csv`, and its notes.

    Notes are part of text and Markdown. base, experts and references: as for `roles.participants`. metric, tasks: as
    for `table.build`. out: a directory to which report.md, report.csv and report.png are written.

    ReportError: there are no results, a name fits nothing, or roles contradict each other.
    """
    found, origin = participants(collect(paths), base, experts, references)
    table = build(found, metric, tasks)
    remarks = [*notes(table), *origin]
    if out:
        write_files(out, table, remarks, draw(table))
    if form == "csv":
        return as_csv(table), remarks
    return (as_text if form == "text" else as_markdown)(table, remarks), remarks
