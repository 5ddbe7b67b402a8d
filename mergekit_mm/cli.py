"""The command line `mergekit-mm`: one function per command, which passes options on and prints what comes back.

Imports are local, so that `--help` is instant.
"""

from __future__ import annotations

from pathlib import Path

import click

from mergekit_mm import __version__
from mergekit_mm.commands.align import align
from mergekit_mm.commands.common import (
    LOG_FILE_OPTION,
    SEED,
    executed,
    logged,
    numbers,
    on_a_cluster,
    read_config,
    reported,
)
from mergekit_mm.commands.inspect import inspect
from mergekit_mm.commands.push import Share, push, pushes
from mergekit_mm.commands.report import report
from mergekit_mm.commands.tune import tune
from mergekit_mm.console import columns, show
from mergekit_mm.errors import MergeError
from mergekit_mm.execution.settings import Settings, from_environment, in_environment


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergekit-mm")
def main() -> None:
    """Merge multimodal LLMs with mergekit.

    Once installed, the plugin works inside the stock command: `mergekit-yaml CONFIG OUT`. The commands here look at
    that installation, and stand in where it cannot reach.
    """


main.add_command(align)
main.add_command(inspect)
main.add_command(push)
main.add_command(report)
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
def doctor(directories: tuple[Path, ...], quiet: bool) -> None:
    """Tell what is installed and active, and what interrupted merges have left.

    Versions, start-up hook, methods, with advice where something is amiss. Starts a fresh interpreter and imports
    mergekit there, which takes some seconds. Exits with 1 when something is broken. Unfinished merges are looked for
    in DIRECTORIES, and in the directories in them; without any, in the working directory. With --quiet only what is
    amiss is told.
    """
    from mergekit_mm.hosts.doctor import examine

    broken, wide = False, columns()
    for finding in examine(directories or [Path()]):
        broken |= finding.state == "BROKEN"
        if not quiet or finding.state != "ok":
            show(finding.in_columns(wide) if wide else str(finding))
    if broken:
        raise SystemExit(1)


def _show_options(context: click.Context) -> None:
    """Show the options that `mergekit-mm yaml` has beside those of mergekit, whose help does not know them."""
    formatter = context.make_formatter()
    with formatter.section("Options of mergekit-mm"):
        formatter.write_dl([record for each in context.command.params if (record := each.get_help_record(context))])
    click.echo(formatter.getvalue())


# The options are those of mergekit-yaml, `--help` among them, so they pass through unread.
@main.command("yaml", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.option("--verbose", is_flag=True)
@click.option("--debug", is_flag=True)
@LOG_FILE_OPTION
@on_a_cluster
@executed
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@pushes
def yaml_command(
    arguments: tuple[str, ...],
    verbose: bool,
    debug: bool,
    log_file: Path | None,
    settings: Settings,
    share: Share | None,
) -> None:
    """Run mergekit-yaml with the plugin: CONFIG OUT [OPTIONS].

    The same command as the stock one, for environments that its start-up hook does not reach (PYTHONPATH,
    `pip --target`, `python -S`). Takes every option of mergekit-yaml, see `mergekit-mm yaml --help`; --verbose and
    --debug are its -v and -vv. --log-file FILE appends all that is told to a file. --workers N, --restart and
    --progress json are what MERGEKIT_MM_WORKERS=N, MERGEKIT_MM_RESTART=1 and MERGEKIT_MM_PROGRESS=json are for the
    stock command. --push ORG/NAME uploads the output to the hub, with the options of `mergekit-mm push`.
    """
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    import mergekit_mm.register  # noqa: F401  # plugs in without the start-up hook

    if "--help" in arguments:
        _show_options(click.get_current_context())
    level = ["-vv"] if debug else ["-v"] if verbose else []
    context = mergekit_yaml.make_context("mergekit-mm yaml", [*arguments, *level])
    with context, reported(context.params["verbosity"], log_file), in_environment(settings):
        mergekit_yaml.invoke(context)
        if share:
            share(context.params["out_path"], context.params["quiet"])


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
        show(str(path))


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
@executed
@logged
@pushes
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
    share: Share | None,
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
            show(f"{module.path}  rank {module.rank}  energy {module.energy:.6f}")
    if ranks := [module.rank for module in result.modules]:
        worst = min(module.energy for module in result.modules)
        show(f"{out}: {len(ranks)} modules of rank {min(ranks)} to {max(ranks)}; energy kept at least {worst:.6f}")
    for key, whole in (("modules_to_save", result.saved), ("bias: all", result.biases)):
        if whole:
            show(f"{out}: whole, as no factors can hold them ({key}): {', '.join(whole)}")
    if result.saved or result.biases:
        show("PEFT loads such an adapter; servers that take factors alone, as vLLM, refuse it.")
    if share:
        share(out, quiet)


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Write the whole plan as JSON, every tensor of it.")
@click.option("--tensor", metavar="NAME", help="Tell what is done with this one tensor, from which inputs, and why.")
@logged
def check(config: str, as_json: bool, tensor: str | None, quiet: bool) -> None:
    """Tell whether the merge in CONFIG will work, and what it will do, reading headers, small files and samples.

    Of models on the hub, headers and small files are downloaded. Exits with 1 and the reasons if mergekit-yaml would
    refuse the merge. The names of tensors are those that the output has on disk or in memory. With --quiet, nothing but
    errors, warnings and what --json or --tensor ask for is printed.
    """
    import json

    from mergekit_mm.checkpoints.remote import headers_only
    from mergekit_mm.execution.estimate import plan_in_words
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
        if not quiet:
            show(told)
        return
    with headers_only() as options:
        plan = plan_merge(parsed, options, source)
        if as_json:
            click.echo(json.dumps(plan_as_json.as_json(plan), indent=2))
        elif tensor:
            show(str(plan[tensor]))
        elif not quiet:
            show(plan_in_words(plan, from_environment().workers))
