"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_mm.commands.common import json_object, logged
from mergekit_mm.console import show, tell
from mergekit_mm.errors import system_errors


@click.command(context_settings={"show_default": True})
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--base", metavar="MODEL", help="The base model.")
@click.option("--expert", "experts", multiple=True, metavar="MODEL", help="An expert; may be given several times.")
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="MODEL",
    help="A model to compare with that is neither input nor merge.",
)
@click.option("--tasks", metavar="NAME,...", help="Columns: tasks, headings, groups or patterns.  [default: all]")
@click.option("--metric", metavar="NAME", help="Only tasks that have it.  [default: score, else a task's first]")
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "csv"]), default="text", help="What is printed."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write report.md, .csv and .png there.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with all of it and, where lm_eval ran with --log_samples, the answers side by side.",
)
@click.option(
    "--include-path",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Of --html: a folder with further tasks, as of lm_eval, to find pictures by. May be given several times.",
)
@click.option(
    "--metadata",
    callback=json_object,
    default="{}",
    metavar="JSON",
    help="Of --html: options of the tasks, as of lm_eval, to find pictures by.",
)
@click.option(
    "--media-mb",
    type=click.FloatRange(min=0),
    default=4.0,
    help="Of --html: megabytes of pictures, sounds and frames in the page; 0 looks for none.",
)
@logged
def report(
    results: tuple[Path, ...],
    base: str | None,
    experts: tuple[str, ...],
    references: tuple[str, ...],
    tasks: str | None,
    metric: str | None,
    form: str,
    out: Path | None,
    html: Path | None,
    include_path: tuple[Path, ...],
    metadata: dict[str, Any],
    media_mb: float,
) -> None:
    """Compare base, experts and merges by the result files that lm_eval --output_path wrote.

    RESULTS are files, or directories with results_*.json (of lmms-eval: *_results.json) at any depth. Files of one
    model are united; if several hold the same task, the newest counts.

    MODEL is a model's name as lm-eval had it (pretrained=, or peft=), the last part of that name, or a pattern such as
    '*-expert-?'. Models that are neither base, expert nor reference are merges. Without these options the roles come
    from the mergekit_config.yml of merged models on disk; where there is none, the table has no roles and no gains.

    \b
    mean        plain mean of the columns that every model has
    vs base     mean minus the base's mean
    vs expert   mean minus the best mean of an expert
    normalised  mean over the columns c of  score(c) / score of c's expert(c),
                the expert being the one with the best score in c

    Scores have intervals of 1.96 standard errors. Differences in how the models were measured (versions, samples,
    prompts, settings) are listed beneath the table.

    --html writes one file that needs no server and no network. Pictures are those of the tasks' data, read from where
    lm_eval reads them (the mirror in MLLM_EVAL_DATA, the cache, the hub), or of the files that the model mllm writes
    with thumbnails=FOLDER among RESULTS.

    \b
    mergekit-mm report results --base Qwen/Qwen2-VL-7B \\
        --expert '*-OCR' --expert '*-Chart' --out report/
    """
    from mergekit_mm.evaluation.report import Sources, make_report
    from mergekit_mm.hosts.lm_eval_tasks import task_directory

    made = make_report(results, base, experts, references, metric, tasks.split(",") if tasks else ())
    if out:
        with system_errors(out):
            made.write(out)
    (show if form == "text" else click.echo)(made.text(form))
    if form == "csv":
        tell("\n".join(made.notes))
    if html:
        folders = [path if path.is_dir() else path.parent for path in results]
        # With ours named, the thousands of task files of lm-eval are read only for tasks that are in none of these.
        tasks_in = [task_directory(), *include_path]
        size = made.write_page(html, Sources(folders, tasks_in, metadata, round(media_mb * 1e6)))
        tell(f"{html}: {size / 1e6:.1f} MB")
