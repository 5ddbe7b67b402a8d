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
