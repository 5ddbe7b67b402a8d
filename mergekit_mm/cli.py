"""The command line `mergekit-mm`: one thin function per command. Imports are local, so that `--help` is instant."""

import click

from mergekit_mm import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergekit-mm")
def main() -> None:
    """Merge multimodal LLMs with mergekit.

    Once installed, the plugin works inside the stock command: `mergekit-yaml CONFIG OUT`. The commands here look at
    that installation, and stand in where it cannot reach.
    """


@main.command()
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


# Options are mergekit's, so they pass through unread, `--help` among them.
@main.command("yaml", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def yaml_command(arguments: tuple[str, ...]) -> None:
    """Run mergekit-yaml with the plugin: CONFIG OUT [OPTIONS].

    The same command as the stock one, for environments that its start-up hook does not reach (PYTHONPATH,
    `pip --target`, `python -S`). Takes every option of mergekit-yaml; see `mergekit-mm yaml --help`.
    """
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    import mergekit_mm.register  # noqa: F401  # plugs in, also where the line above has run

    mergekit_yaml.main(args=list(arguments), prog_name="mergekit-mm yaml")


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
def check(config: str) -> None:
    """Tell whether the merge in CONFIG will work, and what it will do, reading file headers only.

    Exits with 1 and the reasons if mergekit-yaml would refuse it.
    """
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    from mergekit_mm.hosts.registration import register_methods
    from mergekit_mm.hosts.run_merge import is_multimodal
    from mergekit_mm.merge import check_merge

    register_methods()
    with open(config, encoding="utf-8") as file:
        parsed = MergeConfiguration.model_validate(yaml.safe_load(file))
    if not is_multimodal(parsed):
        click.echo("No input is multimodal: mergekit runs this merge itself, as without the plugin.")
        return
    click.echo(check_merge(parsed, MergeOptions()))


@main.command()
@click.argument("model")
def inspect(model: str) -> None:
    """Show the tensors of MODEL (a directory or a hub id) by role, and how they are named on disk."""
    from mergekit.common import ModelReference
    from mergekit.options import MergeOptions

    from mergekit_mm.architecture.checkpoint import open_checkpoint
    from mergekit_mm.architecture.describe import describe
    from mergekit_mm.architecture.disk import CheckpointError
    from mergekit_mm.planning.inputs import locate

    try:
        for line in describe(open_checkpoint(model, locate(ModelReference.parse(model).model, MergeOptions()))):
            click.echo(line)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
