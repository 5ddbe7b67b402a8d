"""`mergekit-mm report`: the results of a base, experts and merges in one table.

| file | what it holds |
|---|---|
| `results.py` | result files of lm-eval and lmms-eval, read into models, runs, tasks and scores |
| `roles.py` | which model is the base, an expert, a merge or a reference; short names |
| `table.py` | the comparison itself: columns, means, gains, normalised accuracy |
| `notes.py` | sentences beneath the table: definitions, and what was not measured alike |
| `render.py` | the table as text, Markdown and CSV |
| `figure.py` | the table as a figure |
| `samples.py` | sample files of lm-eval and lmms-eval, read into questions with the answers of all models |
| `media.py` | pictures, sounds and frames of questions, within a number of bytes |
| `strengths.py` | merges of which there are several strengths |
| `answers.py`, `answers.js`, `answers.css` | the answers side by side, as a section of a page |
| `page.py` | all of it as one HTML file |

The order is that of the data, and imports go back along it only: `results` imports none of the others. This room may
import `errors`, `pages` and libraries: it reads files, whoever wrote them. `media` alone imports `evaluation.model`
too, where a page is to show what the data of a task have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit_mm.evaluation.report.figure import draw
from mergekit_mm.evaluation.report.media import Sources
from mergekit_mm.evaluation.report.notes import notes
from mergekit_mm.evaluation.report.page import write_report
from mergekit_mm.evaluation.report.render import as_csv, as_markdown, as_text, write_files
from mergekit_mm.evaluation.report.results import collect
from mergekit_mm.evaluation.report.roles import participants
from mergekit_mm.evaluation.report.table import Table, build

__all__ = ["Report", "Sources", "make_report"]


@dataclass(frozen=True)
class Report:
    """The compared models as a table, and its notes."""

    table: Table
    notes: Sequence[str]

    def text(self, form: str) -> str:
        """The table in the form `text`, `markdown` or `csv`; the first two have the notes."""
        if form == "csv":
            return as_csv(self.table)
        return (as_text if form == "text" else as_markdown)(self.table, self.notes)

    def write(self, directory: Path) -> None:
        """Write report.md, report.csv and report.png into a directory."""
        write_files(directory, self.table, self.notes, draw(self.table))

    def write_page(self, path: Path, sources: Sources) -> int:
        """Write the page with the answers to a file; returns its size in bytes. Errors: as of `page.write_report`."""
        return write_report(path, self.table, self.notes, sources)


def make_report(
    paths: Sequence[Path],
    base: str | None,
    experts: Sequence[str],
    references: Sequence[str],
    metric: str | None,
    tasks: Sequence[str],
) -> Report:
    """The result files in `paths`, compared.

    base, experts and references: as for `roles.participants`. metric, tasks: as for `table.build`.

    ReportError: there are no results, a name fits nothing, or roles contradict each other.
    """
    found, origin = participants(collect(paths), base, experts, references)
    table = build(found, metric, tasks)
    return Report(table, [*notes(table), *origin])
