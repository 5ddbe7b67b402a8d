"""The command line `mergekit-mm`: one function per command, which passes options on and prints what comes back.

Imports are local, so that `--help` is instant.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_mm import __version__
from mergekit_mm.errors import MergeError, bugs_reported, refused_by, system_errors

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration

    from mergekit_mm.align.samples import Sample

_SEED = click.IntRange(0, 2**32 - 1)


def logged(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --verbose and --debug, and ask for a report of an exception that is a bug."""

    @click.option("-v", "--verbose", count=True, show_default=False, help="Tell what is being done; -vv is --debug.")
    @click.option("--debug", is_flag=True, help="Tell all details, and the full traceback of every error.")
    @functools.wraps(command)
    def run(*args: Any, verbose: int, debug: bool, **kwargs: Any) -> None:
        if debug or verbose:
            logging.basicConfig()
            logging.getLogger().setLevel(logging.DEBUG if debug or verbose > 1 else logging.INFO)
        with bugs_reported():
            command(*args, **kwargs)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergekit-mm")
def main() -> None:
    """Merge multimodal LLMs with mergekit.

    Once installed, the plugin works inside the stock command: `mergekit-yaml CONFIG OUT`. The commands here look at
    that installation, and stand in where it cannot reach.
    """


def _strengths(context: click.Context, option: click.Parameter, value: str) -> list[float]:
    """The numbers of --scaling."""
    return _numbers(value, "--scaling")


def _numbers(value: str, option: str) -> list[float]:
    try:
        scales = [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers", param_hint=option) from None
    if not all(map(math.isfinite, scales)):
        raise click.BadParameter("strengths must be finite", param_hint=option)
    return scales


def _bytes(context: click.Context, option: click.Parameter, value: str) -> int:
    """The number of bytes of --out-shard-size."""
    from mergekit.common import parse_kmb

    try:
        return parse_kmb(value)
    except ValueError:
        message = f"{value!r} is not a number of bytes like 500M or 5B"
        raise click.BadParameter(message, param_hint="--out-shard-size") from None


@main.command()
@logged
def doctor() -> None:
    """Tell what is installed and active.

    Versions, start-up hook, methods, with advice where something is amiss. Starts a fresh interpreter and imports
    mergekit there, which takes some seconds. Exits with 1 when something is broken.
    """
    from mergekit_mm.hosts.doctor import examine

    broken = False
    for finding in examine():
        broken |= finding.state == "BROKEN"
        click.echo(str(finding))
    if broken:
        raise SystemExit(1)


# The options are those of mergekit-yaml, `--help` among them, so they pass through unread.
@main.command("yaml", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.option("--verbose", is_flag=True)
@click.option("--debug", is_flag=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def yaml_command(arguments: tuple[str, ...], verbose: bool, debug: bool) -> None:
    """Run mergekit-yaml with the plugin: CONFIG OUT [OPTIONS].

    The same command as the stock one, for environments that its start-up hook does not reach (PYTHONPATH,
    `pip --target`, `python -S`). Takes every option of mergekit-yaml, see `mergekit-mm yaml --help`; --verbose and
    --debug are its -v and -vv.
    """
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    import mergekit_mm.register  # noqa: F401  # plugs in without the start-up hook

    level = ["-vv"] if debug else ["-v"] if verbose else []
    mergekit_yaml.main(args=[*arguments, *level], prog_name="mergekit-mm yaml")


@main.command(context_settings={"show_default": True})
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option(
    "--scaling", required=True, callback=_strengths, help="Strengths to write, comma separated: 0.1,0.3,0.5,0.7,1.0,1.5"
)
@click.option(
    "--out-shard-size",
    default="1B",
    callback=_bytes,
    help="Bytes per output file; each strength collects one in memory.",
)
@click.option("--cuda/--no-cuda", default=False, help="Merge on a GPU.")
@click.option("--random-seed", type=_SEED, help="For methods that draw (dare_linear, dare_ties).")
@click.option("--quiet/--no-quiet", default=False, help="No progress bars.")
@logged
def sweep(
    config: str, out: str, scaling: list[float], out_shard_size: int, cuda: bool, random_seed: int | None, quiet: bool
) -> None:
    """Merge once, write several strengths: OUT/scaling_0.3 and so on.

    Each output is base + s * (merged - base), where merged is what CONFIG gives by itself. The merge is solved once for
    all of them, so that a sweep costs little more than its output files.
    """
    from mergekit.options import MergeOptions

    from mergekit_mm.merge import run_sweep

    options = MergeOptions(out_shard_size=out_shard_size, cuda=cuda, quiet=quiet, random_seed=random_seed)
    source, parsed = _read_config(config)
    for path in run_sweep(parsed, out, options, scaling, source):
        click.echo(path)


@main.command(context_settings={"show_default": True})
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--rank", type=click.IntRange(min=1), help="Keep at most so many directions per module.  [default: all]")
@click.option(
    "--rank-mode",
    type=click.Choice(["truncate", "shared"]),
    default="truncate",
    help="Cut what was merged, or merge adapters in their best shared bases of that rank.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", help="Of the file.")
@click.option("--cuda/--no-cuda", default=False, help="Merge on a GPU.")
@click.option("--random-seed", type=_SEED, help="For methods that draw (dare_linear, dare_ties).")
@click.option("--quiet/--no-quiet", default=False, help="No progress bar, and no line per module.")
@logged
def lora(
    config: str,
    out: str,
    rank: int | None,
    rank_mode: str,
    dtype: str,
    cuda: bool,
    random_seed: int | None,
    quiet: bool,
) -> None:
    """Merge to one PEFT adapter: OUT holds what CONFIG changes of its base.

    With adapters as inputs the result is exact, of a rank up to the sum of theirs, unless --rank cuts it. What full
    fine-tunes change has no low rank and must be cut; so must what ties, DARE and Adam make of adapters. Tells for each
    module its rank and the energy that is kept: the share of the squared norm of the merged delta. Norms, convolutions,
    biases, and modules that the adapters themselves hold whole, are written whole.
    """
    import torch
    from mergekit.options import MergeOptions

    from mergekit_mm.merge_adapter import merge_to_adapter

    source, parsed = _read_config(config)
    options = MergeOptions(cuda=cuda, quiet=quiet, random_seed=random_seed)
    if rank is None and rank_mode == "shared":
        raise click.UsageError("--rank-mode shared needs --rank: the rank of the bases.")
    result = merge_to_adapter(parsed, out, options, rank, getattr(torch, dtype), source, rank_mode == "shared")
    if not quiet:
        for module in result.modules:
            click.echo(f"{module.path}  rank {module.rank}  energy {module.energy:.6f}")
    if ranks := [module.rank for module in result.modules]:
        worst = min(module.energy for module in result.modules)
        click.echo(
            f"{out}: {len(ranks)} modules of rank {min(ranks)} to {max(ranks)}; energy kept at least {worst:.6f}"
        )
    for key, whole in (("modules_to_save", result.saved), ("bias: all", result.biases)):
        if whole:
            click.echo(f"{out}: whole, as no factors can hold them ({key}): {', '.join(whole)}")
    if result.saved or result.biases:
        click.echo("PEFT loads such an adapter; servers that take factors alone, as vLLM, refuse it.")


def _of_expert(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str | None, Path]]:
    """The files and folders of --samples, with the expert to which one belongs as a whole."""
    found: list[tuple[str | None, Path]] = []
    for value in values:
        expert, is_named, path = value.partition("=")
        found.append((expert, Path(path)) if is_named and not Path(value).exists() else (None, Path(value)))
    return found


def _parts_of_names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """The parts of names in --targets; None if it is not given."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def _tasks_of_expert(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str | None, str]]:
    """The tasks of --samples-from, with the expert to which they belong if it is said."""
    found: list[tuple[str | None, str]] = []
    for value in values:
        expert, is_named, names = value.rpartition("=")
        found += [(expert if is_named else None, name) for name in names.split(",")]
    return found


def _json_object(context: click.Context, option: click.Parameter, value: str) -> dict[str, Any]:
    """The object of --metadata."""
    import json

    try:
        found = json.loads(value)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"{value!r} is no JSON: {error}", param_hint="--metadata") from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value!r} is no JSON object", param_hint="--metadata")
    return found


@main.command(context_settings={"show_default": True})
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--samples",
    multiple=True,
    callback=_of_expert,
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
    "--metadata", callback=_json_object, default="{}", metavar="JSON", help="Options of the tasks, as of lm_eval."
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
@click.option("--seed", type=_SEED, default=0, help="Of what is drawn, of its order, and of the adapter.")
@click.option("--random-seed", type=_SEED, help="For merge methods that draw (dare_linear, dare_ties).")
@click.option("--cuda/--no-cuda", default=False, help="Merge, ask and train on a GPU.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the start, the answers and the training's state here.  [default: beside OUT, until it is done]",
)
@click.option("--quiet/--no-quiet", default=False, help="Tell nothing but the outcome.")
@logged
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

    from mergekit_mm.align.folders import read_folder
    from mergekit_mm.align.run import align as run_alignment
    from mergekit_mm.align.samples import read_samples
    from mergekit_mm.align.settings import Settings
    from mergekit_mm.align.tasks import experts_in, read_tasks
    from mergekit_mm.evaluation.model.questions import questions, task_manager
    from mergekit_mm.hosts import lm_eval_tasks

    def tell(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    source, parsed = _read_config(config)
    given = {name: value for name, value in settings.items() if value is not None}
    read: list[Sample] = []
    with system_errors():
        for expert, path in samples:
            read += read_folder(path, expert) if path.is_dir() else read_samples(path, expert)
        if samples_from and per_expert:
            lm_eval_tasks.install()
            manager = task_manager(include_path, metadata, split)
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
    click.echo(f"{out}: {result}")


def _grids(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, list[float]]:
    """The numbers of --strengths by method; those of "" are for all methods without numbers of their own."""
    found = {}
    for value in values:
        method, _, numbers = value.rpartition("=")
        found[method] = _numbers(numbers, "--strengths")
    return found


def _metadata(context: click.Context, option: click.Parameter, value: str | None) -> dict[str, Any]:
    """The object of --metadata."""
    import json

    try:
        found = json.loads(value or "{}")
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"{value!r} is no JSON: {error}", param_hint="--metadata") from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value!r} is no JSON object", param_hint="--metadata")
    return found


@main.command(context_settings={"show_default": True})
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tasks", metavar="NAME,...", help="Validation questions: tasks of lm-eval, groups or patterns.")
@click.option(
    "--samples",
    multiple=True,
    callback=_of_expert,
    metavar="[EXPERT=]FILE",
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
@click.option("--metadata", callback=_metadata, metavar="JSON", help="As of lm_eval: options of the tasks.")
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
@click.option("--seed", type=_SEED, default=0, help="Of the order of the questions.")
@click.option("--random-seed", type=_SEED, help="For merge methods that draw (dare_linear, dare_ties).")
@click.option("--cuda/--no-cuda", default=False, help="Merge and ask on a GPU.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep solved merges, the model and the answers' values here.  [default: beside OUT, until it is done]",
)
@click.option("--quiet/--no-quiet", default=False, help="Tell nothing but the outcome.")
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

    from mergekit_mm.align.samples import read_samples
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
    source, parsed = _read_config(config)
    lm_eval_tasks.install()
    measured: Tasks | Samples
    if tasks:
        measured = Tasks(tasks.split(","), [lm_eval_tasks.task_directory(), *include], metadata, metric)
    else:
        measured = Samples([s for expert, path in samples for s in read_samples(path, expert)], answer_tokens or 32)
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

    def tell(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    for sentence in run_tune(parsed, source, out, options, settings, measured, work, tell):
        click.echo(sentence)


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Write the whole plan as JSON, every tensor of it.")
@click.option("--tensor", metavar="NAME", help="Tell what is done with this one tensor, from which inputs, and why.")
@logged
def check(config: str, as_json: bool, tensor: str | None) -> None:
    """Tell whether the merge in CONFIG will work, and what it will do, reading headers, small files and samples.

    Of models on the hub, headers and small files are downloaded. Exits with 1 and the reasons if mergekit-yaml would
    refuse the merge. The names of tensors are those that the output has on disk or in memory.
    """
    import json

    from mergekit_mm.checkpoints.remote import headers_only
    from mergekit_mm.merge import plan_merge
    from mergekit_mm.plan import as_json as plan_as_json
    from mergekit_mm.plan.scope import is_planned_here

    if as_json and tensor:
        raise click.UsageError("--json has every tensor: leave --tensor out.")
    source, parsed = _read_config(config)
    if not is_planned_here(parsed):
        told = "Text-only models, and no adapter for a method of the plugin: mergekit runs this merge by itself."
        if as_json or tensor:
            raise MergeError(told)
        click.echo(told)
        return
    with headers_only() as options:
        plan = plan_merge(parsed, options, source)
        if as_json:
            click.echo(json.dumps(plan_as_json.as_json(plan), indent=2))
        else:
            click.echo(plan[tensor] if tensor else plan)


@main.command()
@click.argument("model")
@click.option("--adapter-base", type=click.Choice(["trust"]), help="Whatever base the adapter names, it fits MODEL.")
@logged
def inspect(model: str, adapter_base: str | None) -> None:
    """Show the tensors of MODEL (a directory or a hub id) by role, and how they are named on disk.

    MODEL+ADAPTER shows too what a LoRA adapter would change of it. Of models on the hub, headers and small files are
    downloaded.
    """
    from mergekit_mm.plan.inspection import describe_model

    for line in describe_model(model, trusted=adapter_base is not None):
        click.echo(line)


@main.command(context_settings={"show_default": True})
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

    \b
    mergekit-mm report results --base Qwen/Qwen2-VL-7B \\
        --expert '*-OCR' --expert '*-Chart' --out report/
    """
    from mergekit_mm.evaluation.report import make_report

    with system_errors(out):
        text, notes = make_report(
            results, base, experts, references, metric, tasks.split(",") if tasks else (), form, out
        )
    click.echo(text)
    if form == "csv":
        click.echo("\n".join(notes), err=True)


def _read_config(path: str) -> tuple[str, MergeConfiguration]:
    """The text of a merge config, and what mergekit reads in it.

    Raises:
        MergeError: it is no YAML, or no merge config.
    """
    from mergekit_mm.hosts.registration import register_methods
    from mergekit_mm.plan.config import read_config

    with refused_by(register_methods.__module__):  # another version of mergekit
        register_methods()
    try:
        source = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MergeError(f"{path} is no merge config: {error}") from error
    return source, read_config(source, path)
