"""The command `align`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from mergekit_mm.commands.common import SEED, json_object, logged, of_expert, read_config, read_samples
from mergekit_mm.commands.push import Share, pushes
from mergekit_mm.console import show, teller
from mergekit_mm.errors import system_errors


def _tasks_of_expert(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str | None, str]]:
    """The tasks of --samples-from, with the expert to which they belong if it is said."""
    found: list[tuple[str | None, str]] = []
    for value in values:
        expert, is_named, names = value.rpartition("=")
        found += [(expert if is_named else None, name) for name in names.split(",")]
    return found


def _parts_of_names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """The parts of names in --targets; None if it is not given."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


@click.command(context_settings={"show_default": True})
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--samples",
    multiple=True,
    callback=of_expert,
    metavar="[EXPERT=]PATH",
    help="JSONL with a prompt, its media and its expert in each line; or a folder of media and prompts. "
    "May be given several times.",
)
@click.option(
    "--samples-from",
    multiple=True,
    callback=_tasks_of_expert,
    metavar="[EXPERT=]TASK,...",
    help="Tasks or groups of lm-eval, whose questions are taken without their answers. May be given several times.",
)
@click.option("--split", help="Of the data of these tasks.  [default: the one on which each is scored]")
@click.option(
    "--include-path",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="A folder with further tasks, as of lm_eval. May be given several times.",
)
@click.option(
    "--metadata", callback=json_object, default="{}", metavar="JSON", help="Options of the tasks, as of lm_eval."
)
@click.option(
    "--way",
    type=click.Choice(["adapter", "coefficients"]),
    show_default="adapter",
    help="Train a LoRA on the merge, or a few coefficients per matrix, which make a merge config again.",
)
@click.option(
    "--preset",
    type=click.Choice(["expert-merging"]),
    help="Values of a published method for what is not given; it is a baseline, with its own start.",
)
@click.option("--per-expert", type=click.IntRange(min=2), help="Draw so many samples for each expert.  [default: all]")
@click.option("--partial", is_flag=True, help="Experts may be without samples; what they can do may be forgotten.")
@click.option(
    "--targets",
    metavar="PART,...",
    callback=_parts_of_names,
    show_default="all that the merge changes",
    help="Train the matrices of the language model with one of these in their names, such as down_proj.",
)
@click.option("--rank", type=click.IntRange(min=1), show_default="8", help="Of the adapter.")
@click.option(
    "--fold/--no-fold",
    default=None,
    show_default="fold",
    help="Make the adapter a part of the model, or leave OUT the merge with the adapter in OUT/align.",
)
@click.option("--steps", type=click.IntRange(min=1), show_default="80", help="Of Adam.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    show_default="0.003 of an adapter, 0.03 of coefficients",
    help="Learning rate.",
)
@click.option(
    "--anchor",
    type=click.FloatRange(min=0),
    show_default="0",
    help="How much the mean distance from the start counts beside the divergence.",
)
@click.option(
    "--clip", type=click.FloatRange(min=0, min_open=True), show_default="none", help="Longest gradient, by its norm."
)
@click.option(
    "--per-step",
    type=click.IntRange(min=1),
    show_default="48",
    help="Samples in a step, of all experts together; at least one of each.",
)
@click.option(
    "--batch-size",
    "at_once",
    type=click.IntRange(min=1),
    show_default="8",
    help="Samples that go through the model at once.",
)
@click.option(
    "--check",
    type=click.IntRange(min=1),
    show_default="10",
    help="Steps between two looks at the samples that are held back.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    show_default="3",
    help="Looks without a lower divergence after which the training ends.",
)
@click.option(
    "--gate",
    type=click.FloatRange(min=0),
    show_default="1",
    help="Standard errors by which the divergence must have fallen on the samples held back; else the start is kept.",
)
@click.option("--answer-tokens", type=click.IntRange(min=1), show_default="32", help="The longest answer of an expert.")
@click.option("--top", type=click.IntRange(min=1), show_default="64", help="Tokens of a distribution that are kept.")
@click.option(
    "--recompute/--no-recompute",
    default=None,
    show_default="above a billion parameters",
    help="Compute layers again for the gradient instead of keeping what is in them: less memory, a third more time.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    show_default="float32, on a GPU auto",
    help="Of the models in memory; auto is that of the files. What is trained is in float32.",
)
@click.option("--seed", type=SEED, default=0, help="Of what is drawn, of its order, and of the adapter.")
@click.option("--random-seed", type=SEED, help="For merge methods that draw (dare_linear, dare_ties).")
@click.option("--cuda/--no-cuda", default=False, help="Merge, ask and train on a GPU.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the start, the answers and the training's state here.  [default: beside OUT, until it is done]",
)
@logged
@pushes
def align(
    config: str,
    out: Path,
    samples: list[tuple[str | None, Path]],
    preset: str | None,
    samples_from: list[tuple[str | None, str]],
    split: str | None,
    include_path: tuple[str, ...],
    metadata: dict[str, Any],
    per_expert: int | None,
    partial: bool,
    dtype: str | None,
    random_seed: int | None,
    cuda: bool,
    work: Path | None,
    quiet: bool,
    share: Share | None,
    **settings: Any,
) -> None:
    """Merge, and improve the merge by a few unlabelled samples for each expert.

    \b
    mergekit-mm align config.yaml out/ --samples samples.jsonl --per-expert 64
    {"expert": "expert_ocr", "prompt": "<image>What does the sign say?", "image": "sign.png"}

    \b
    mergekit-mm align config.yaml out/ --samples-from ocr_model=my_ocr_task --split train --per-expert 64
    mergekit-mm align config.yaml out/ --samples ocr_model=pictures/
    pictures/sign.png, pictures/sign.txt; or pictures/metadata.jsonl: {"file_name": "sign.png", "prompt": "..."}

    Each expert answers its own samples, one expert in memory at a time. A LoRA on the merged model is trained until its
    distributions at these answers come close to the experts' (KL divergence), and folded in; OUT/align holds it too. Or
    coefficients are trained: OUT is then what mergekit-yaml makes of OUT/mergekit_config.yml, without the samples. A
    quarter of the samples is held back: if the divergence does not fall on these, OUT is the merge itself.

    The same command goes on from where it was interrupted.
    """
    if not samples and not samples_from:
        raise click.UsageError("Name samples: --samples for files and folders, --samples-from for tasks of lm-eval.")
    if not samples_from and (split or include_path or metadata):
        raise click.UsageError("--split, --include-path and --metadata are for --samples-from.")
    if samples_from and per_expert is None:
        raise click.UsageError("--samples-from needs --per-expert: how many documents are drawn.")
    from mergekit.options import MergeOptions

    from mergekit_mm.align.run import align as run_alignment
    from mergekit_mm.align.settings import Settings
    from mergekit_mm.align.tasks import experts_in, read_tasks
    from mergekit_mm.evaluation.model.found_tasks import task_manager
    from mergekit_mm.evaluation.model.questions import questions
    from mergekit_mm.hosts import lm_eval_tasks

    tell = teller(quiet)
    source, parsed = read_config(config)
    given = {name: value for name, value in settings.items() if value is not None}
    read = read_samples(samples)
    if samples_from and per_expert:
        lm_eval_tasks.install()
        folders = [str(lm_eval_tasks.task_directory()), *include_path]
        options = metadata if split is None else {**metadata, "data_split": split}  # read by tasks of this package
        with system_errors():
            manager = task_manager([name for _, name in samples_from], folders, options)
            find = functools.partial(questions, manager, split=split)
            read += read_tasks(find, samples_from, experts_in(parsed), per_expert, settings["seed"], tell)
    result = run_alignment(
        parsed,
        out,
        MergeOptions(cuda=cuda, random_seed=random_seed, quiet=quiet),
        Settings.of(preset, dtype=dtype or ("auto" if cuda else "float32"), per_expert=per_expert, **given),
        read,
        source,
        work,
        tell,
        partial,
    )
    show(f"{out}: {result}")
    if share:
        share(out, quiet)
