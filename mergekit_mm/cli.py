"""The command line `mergekit-mm`: one function per command, which passes options on and prints what comes back.

Imports are local, so that `--help` is instant.
"""

from __future__ import annotations

from pathlib import Path

import click

from mergekit_mm import __version__
from mergekit_mm.commands.align import align
from mergekit_mm.commands.common import SEED, executed, logged, numbers, on_a_cluster, read_config
from mergekit_mm.commands.tune import tune
from mergekit_mm.errors import MergeError, system_errors
from mergekit_mm.execution.settings import Settings, from_environment, in_environment


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergekit-mm")
def main() -> None:
    """Merge multimodal LLMs with mergekit.

    Once installed, the plugin works inside the stock command: `mergekit-yaml CONFIG OUT`. The commands here look at
    that installation, and stand in where it cannot reach.
    """


main.add_command(align)
main.add_command(tune)


def _strengths(context: click.Context, option: click.Parameter, value: str) -> list[float]:
    """The numbers of --scaling."""
    return numbers(value, "--scaling")


def _bytes(context: click.Context, option: click.Parameter, value: str) -> int:
    """The number of bytes of --out-shard-size."""
    from mergekit.common import parse_kmb

    try:
        return parse_kmb(value)
    except ValueError:
        message = f"{value!r} is not a number of bytes like 500M or 5B"
        raise click.BadParameter(message, param_hint="--out-shard-size") from None


@main.command()
@click.argument("directories", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@logged
def doctor(directories: tuple[Path, ...]) -> None:
    """Tell what is installed and active, and what interrupted merges have left.

    Versions, start-up hook, methods, with advice where something is amiss. Starts a fresh interpreter and imports
    mergekit there, which takes some seconds. Exits with 1 when something is broken. Unfinished merges are looked for
    in DIRECTORIES, and in the directories in them; without any, in the working directory.
    """
    from mergekit_mm.hosts.doctor import examine

    broken = False
    for finding in examine(directories or [Path()]):
        broken |= finding.state == "BROKEN"
        click.echo(str(finding))
    if broken:
        raise SystemExit(1)


# The options are those of mergekit-yaml, `--help` among them, so they pass through unread.
@main.command("yaml", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.option("--verbose", is_flag=True)
@click.option("--debug", is_flag=True)
@on_a_cluster
@executed
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def yaml_command(arguments: tuple[str, ...], verbose: bool, debug: bool, settings: Settings) -> None:
    """Run mergekit-yaml with the plugin: CONFIG OUT [OPTIONS].

    The same command as the stock one, for environments that its start-up hook does not reach (PYTHONPATH,
    `pip --target`, `python -S`). Takes every option of mergekit-yaml, see `mergekit-mm yaml --help`; --verbose and
    --debug are its -v and -vv. --workers N, --restart and --progress json are what MERGEKIT_MM_WORKERS=N,
    MERGEKIT_MM_RESTART=1 and MERGEKIT_MM_PROGRESS=json are for the stock command.
    """
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    import mergekit_mm.register  # noqa: F401  # plugs in without the start-up hook

    level = ["-vv"] if debug else ["-v"] if verbose else []
    with in_environment(settings):
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
    help="Bytes per output file.",
)
@click.option("--cuda/--no-cuda", default=False, help="Merge on a GPU.")
@click.option("--random-seed", type=SEED, help="For methods that draw (dare_linear, dare_ties).")
@click.option("--quiet/--no-quiet", default=False, help="No progress bars.")
@on_a_cluster
@executed
@logged
def sweep(
    config: str,
    out: str,
    scaling: list[float],
    out_shard_size: int,
    cuda: bool,
    random_seed: int | None,
    quiet: bool,
    settings: Settings,
) -> None:
    """Merge once, write several strengths: OUT/scaling_0.3 and so on.

    Each output is base + s * (merged - base), where merged is what CONFIG gives by itself. The merge is solved once for
    all of them, so that a sweep costs little more than its output files.
    """
    from mergekit.options import MergeOptions

    from mergekit_mm.merge import run_sweep

    options = MergeOptions(out_shard_size=out_shard_size, cuda=cuda, quiet=quiet, random_seed=random_seed)
    source, parsed = read_config(config)
    for path in run_sweep(parsed, out, options, scaling, source, settings):
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
@click.option("--random-seed", type=SEED, help="For methods that draw (dare_linear, dare_ties).")
@click.option("--quiet/--no-quiet", default=False, help="No progress bar, and no line per module.")
@executed
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
    settings: Settings,
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

    source, parsed = read_config(config)
    options = MergeOptions(cuda=cuda, quiet=quiet, random_seed=random_seed)
    if rank is None and rank_mode == "shared":
        raise click.UsageError("--rank-mode shared needs --rank: the rank of the bases.")
    result = merge_to_adapter(
        parsed, out, options, rank, getattr(torch, dtype), source, rank_mode == "shared", settings
    )
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
    from mergekit_mm.execution.estimate import before_the_merge
    from mergekit_mm.merge import plan_merge
    from mergekit_mm.plan import as_json as plan_as_json
    from mergekit_mm.plan.scope import is_planned_here

    if as_json and tensor:
        raise click.UsageError("--json has every tensor: leave --tensor out.")
    source, parsed = read_config(config)
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
            if not tensor:
                click.echo("\n".join(before_the_merge(plan, from_environment().workers)))


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
