"""The command `inspect`: one model by its headers, or the experts of a merge by their weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_mm.commands.common import logged, read_config
from mergekit_mm.console import show, teller

if TYPE_CHECKING:
    from mergekit_mm.analysis.result import Analysis


@click.command()
@click.argument("target", metavar="MODEL|CONFIG")
@click.option("--adapter-base", type=click.Choice(["trust"]), help="Whatever base the adapter names, it fits MODEL.")
@click.option("--layers", type=click.IntRange(min=1), help="Look at so many layers of each stack.  [default: all]")
@click.option(
    "--spectra/--no-spectra",
    default=None,
    help="Ranks, spectra and subspaces.  [default: if they take no more than some minutes]",
)
@click.option(
    "--losses/--no-losses",
    default=None,
    help="The interaction loss that methods leave.  [default: if they take no more than some minutes]",
)
@click.option(
    "--methods",
    metavar="METHOD[:PARAMETER=VALUE]...,...",
    help="Whose losses.  [default: linear,task_arithmetic,tsv,optmerge]",
)
@click.option("--json", "as_json", is_flag=True, help="Write all figures as JSON.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page for browsers there.")
@click.option("--cuda/--no-cuda", default=False, help="Compute on a GPU.")
@logged
def inspect(
    target: str,
    adapter_base: str | None,
    layers: int | None,
    spectra: bool | None,
    losses: bool | None,
    methods: str | None,
    as_json: bool,
    html: Path | None,
    cuda: bool,
    quiet: bool,
) -> None:
    """Show the tensors of a model by role, or how the experts of a merge lie to each other.

    MODEL is a directory or a hub id: its tensors by role, and how they are named on disk. MODEL+ADAPTER shows too what
    a LoRA adapter would change of it. Of models on the hub, headers and small files are downloaded.

    CONFIG is the file of a merge config with a base model: how far its experts went from the base, by role and layer,
    how their task vectors lie to each other, which tensors stand out, and what to do about it. The weights are read,
    one group of tensors at a time; adapters by their factors.
    """
    of_configs = {
        "--layers": layers,
        "--spectra": spectra,
        "--losses": losses,
        "--methods": methods,
        "--json": as_json or None,
        "--html": html,
        "--cuda": cuda or None,
    }
    if not Path(target).is_file():
        if Path(target).suffix in (".yaml", ".yml"):
            raise click.UsageError(f"{target} does not exist.")
        if given := [name for name, value in of_configs.items() if value is not None]:
            raise click.UsageError(f"{given[0]} is for the file of a merge config, and {target} is none.")
        _describe(target, adapter_base is not None)
        return
    if adapter_base:
        raise click.UsageError("--adapter-base is for a model: in a config, write `adapter_base: trust`.")
    if methods and losses is False:
        raise click.UsageError("--methods are those whose losses are wanted: leave out --no-losses.")
    import json

    from mergekit.options import MergeOptions

    from mergekit_mm.analysis import run
    from mergekit_mm.analysis.as_json import as_json as figures

    source, config = read_config(target)
    settings = run.Settings(layers, spectra, losses, methods.split(",") if methods else ())
    options = MergeOptions(cuda=cuda, quiet=quiet or not sys.stderr.isatty())
    analysis = run.inspect(config, source, options, settings, teller(quiet))
    if html:
        _write_page(html, analysis)
        teller(quiet)(f"{html} has them as a page.")
    if as_json:
        click.echo(json.dumps(figures(analysis), indent=2))
    else:
        show(str(analysis))


def _describe(model: str, trusted: bool) -> None:
    from mergekit_mm.plan.inspection import describe_model

    for line in describe_model(model, trusted=trusted):
        show(line)


def _write_page(path: Path, analysis: Analysis) -> None:
    from mergekit_mm.analysis.page import as_page
    from mergekit_mm.pages import write_page

    write_page(path, as_page(analysis))
