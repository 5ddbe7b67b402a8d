"""The command `push`, and the options by which other commands upload what they wrote."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_mm.commands.common import logged
from mergekit_mm.console import show, teller

if TYPE_CHECKING:
    from mergekit_mm.share.destination import Destination

Share = Callable[[str | Path, bool], None]  # uploads an output; takes whether to be quiet

_PUBLIC = click.option("--public", is_flag=True, help="A new repository is for everybody to see.  [default: private]")
_REVISION = click.option("--revision", metavar="BRANCH", help="Of the repository, made if it is not there.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what the repository holds.")


def pushes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --push and the options that go with it.

    The command gets the parameter `share`: None, or a function that takes the output and `quiet`, and uploads it.
    Repository, token and rights have been checked before the command runs.
    """

    @click.option("--push", metavar="ORG/NAME", help="Upload the output to this repository of the hub.")
    @_PUBLIC
    @_REVISION
    @_OVERWRITE
    @functools.wraps(command)
    def run(*args: Any, push: str | None, public: bool, revision: str | None, overwrite: bool, **kwargs: Any) -> Any:
        if push is None:
            if public or revision or overwrite:
                raise click.UsageError("--public, --revision and --overwrite are for --push.")
            return command(*args, share=None, **kwargs)
        from mergekit_mm.share.destination import prepare

        destination = prepare(push, revision, public, overwrite)
        destination.require_free(None)
        return command(*args, share=functools.partial(_share, destination), **kwargs)

    return run


def _share(destination: Destination, out: str | Path, quiet: bool, report: Path | None = None) -> None:
    """Upload an output, and print where it is."""
    from mergekit_mm.share.upload import upload

    show(upload(Path(out), destination, report, quiet, teller(quiet)))


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@_PUBLIC
@_REVISION
@_OVERWRITE
@click.option(
    "--report",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of `mergekit-mm report --out`: table and figure go into the card.  [default: OUT, OUT/report]",
)
@logged
def push(
    out: Path, repo: str, public: bool, revision: str | None, overwrite: bool, report: Path | None, quiet: bool
) -> None:
    """Upload OUT, a merged model or adapter, to the repository ORG/NAME of the hub: private, unless --public.

    \b
    mergekit-mm push out/ my-org/my-merge --report report/

    The token is that of `hf auth login`, or HF_TOKEN. OUT stays as it is; the card gets what the hub reads and OUT's
    lacks. Nothing on the hub is replaced without --overwrite. The same command goes on from where it was interrupted.
    """
    from mergekit_mm.share.destination import prepare
    from mergekit_mm.share.folder import require_finished

    require_finished(out, report)
    _share(prepare(repo, revision, public, overwrite), out, quiet, report)
