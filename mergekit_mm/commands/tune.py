"""The command `tune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mergekit_mm.commands.common import SEED, json_object, logged, numbers, of_expert, read_config, read_samples
from mergekit_mm.console import show, teller


def _grids(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, list[float]]:
    """The numbers of --strengths by method; those of "" are for all methods without numbers of their own."""
    found = {}
    for value in values:
        method, _, listed = value.rpartition("=")
        found[method] = numbers(listed, "--strengths")
    return found


@click.command(context_settings={"show_default": True})
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tasks", metavar="NAME,...", help="Validation questions: tasks of lm-eval, groups or patterns.")
@click.option(
    "--samples",
    multiple=True,
    callback=of_expert,
    metavar="[EXPERT=]PATH",
    help="Without labels: samples as of `align`, by the divergence from the experts; may be given several times.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100,
    help="Questions of each task (samples of each expert) in the first round; 0: all, in one round.",
)
@click.option(
    "--methods",
    metavar="METHOD[:PARAMETER=VALUE]...,...",
    help="What is tried.  [default: the config's method and some that suit its experts]",
)
@click.option(
    "--strengths",
    multiple=True,
    callback=_grids,
    metavar="[METHOD=]NUMBER,...",
    help="Values of `scaling`, or of `lambda` for methods of mergekit; may be given several times.  "
    "[default: 0.1,0.3,0.5,0.7,1.0,1.5]",
)
@click.option("--metric", metavar="NAME[,FILTER]", help="Of the tasks.  [default: score, else a task's first mean]")
@click.option(
    "--include-path",
    "include",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A folder of tasks; may be given several times.",
)
@click.option(
    "--metadata", callback=json_object, default="{}", metavar="JSON", help="Options of the tasks, as of lm_eval."
)
@click.option(
    "--model-args",
    default="",
    show_default=False,
    metavar="NAME=VALUE,...",
    help="Other arguments of the lm-eval model `mllm`.",
)
@click.option("--write-model/--no-write-model", default=False, help="Write the best model too: OUT/model.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, help="Questions that go through the model at once."
)
@click.option(
    "--answer-tokens", type=click.IntRange(min=1), help="The longest answer of an expert to its samples.  [default: 32]"
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Of the model in memory; auto is that of its files.  [default: float32, on a GPU auto]",
)
@click.option("--seed", type=SEED, default=0, help="Of the order of the questions.")
@click.option("--random-seed", type=SEED, help="For merge methods that draw (dare_linear, dare_ties).")
@click.option("--cuda/--no-cuda", default=False, help="Merge and ask on a GPU.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep solved merges, the model and the answers' values here.  [default: beside OUT, until it is done]",
)
@logged
def tune(
    config: str,
    out: Path,
    tasks: str | None,
    samples: list[tuple[str | None, Path]],
    limit: int,
    methods: str | None,
    strengths: dict[str, list[float]],
    metric: str | None,
    include: tuple[Path, ...],
    metadata: dict[str, Any],
    model_args: str,
    write_model: bool,
    batch_size: int,
    answer_tokens: int | None,
    dtype: str | None,
    seed: int,
    random_seed: int | None,
    cuda: bool,
    work: Path | None,
    quiet: bool,
) -> None:
    """Find the merge method and the strength that do best on validation questions.

    \b
    mergekit-mm tune config.yaml out/ --tasks my_validation_task --limit 100

    CONFIG says what is merged. Its experts are merged by several methods, each solved once, and one model in memory
    becomes every candidate in turn. All candidates are asked the first --limit questions of each task, in an order that
    --seed draws; the better half goes on to twice as many, until two are left or all questions have been asked. OUT
    gets best.yaml for mergekit-yaml, a table (tune.md, .csv), a figure, and all values (tune.json). What is not apart
    from the best by more than noise is named.

    The same command goes on from where it was interrupted.
    """
    from mergekit.options import MergeOptions

    from mergekit_mm.evaluation.model.asked_tasks import model_arguments
    from mergekit_mm.hosts import lm_eval_tasks
    from mergekit_mm.tune.candidates import parse_variant
    from mergekit_mm.tune.run import Samples, Settings, Tasks
    from mergekit_mm.tune.run import tune as run_tune

    if bool(tasks) == bool(samples):
        raise click.UsageError("Say by what to choose: by --tasks with labels, or by --samples without.")
    of_tasks = {"--metric": metric, "--include-path": include, "--metadata": metadata, "--model-args": model_args}
    unread = [name for name, value in (of_tasks if samples else {"--answer-tokens": answer_tokens}).items() if value]
    if unread:
        raise click.UsageError(f"{unread[0]} has no effect on --{'samples' if samples else 'tasks'}: leave it out.")
    source, parsed = read_config(config)
    lm_eval_tasks.install()
    measured: Tasks | Samples
    if tasks:
        measured = Tasks(tasks.split(","), [lm_eval_tasks.task_directory(), *include], metadata, metric)
    else:
        measured = Samples(read_samples(samples), answer_tokens or 32)
    settings = Settings(
        variants=[parse_variant(each) for each in methods.split(",")] if methods else (),
        strengths=strengths,
        limit=limit or None,
        dtype=dtype or ("auto" if cuda else "float32"),
        at_once=batch_size,
        model_arguments=model_arguments(model_args),
        seed=seed,
        writes_model=write_model,
    )
    options = MergeOptions(cuda=cuda, random_seed=random_seed, quiet=quiet or not sys.stderr.isatty())

    for sentence in run_tune(parsed, source, out, options, settings, measured, work, teller(quiet)):
        show(sentence)
