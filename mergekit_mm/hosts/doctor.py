"""The findings of `mergekit-mm doctor`: versions, the start-up hook's files, its effect in a fresh interpreter."""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import site
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from mergekit_mm import __version__, _autoload
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.execution.leftovers import is_at_work, leftovers, size_on_disk

PACKAGES = ("mergekit", "transformers", "torch", "peft", "lm-eval")
FALLBACK = "`python -m mergekit_mm yaml CONFIG OUT` works without the hook"


@dataclass(frozen=True)
class Finding:
    """One line of the report; `state` is "ok", "note" or "BROKEN"."""

    state: str
    subject: str
    text: str

    def __str__(self) -> str:
        return self._start + self.text

    @property
    def _start(self) -> str:
        return f"{self.state:7}{self.subject:46}"

    def in_columns(self, columns: int) -> str:
        """The finding in lines of at most so many characters, unless a word is longer."""
        return textwrap.fill(
            self.text,
            columns,
            initial_indent=self._start,
            subsequent_indent=" " * 9,
            break_long_words=False,
            break_on_hyphens=False,
        )


def examine(directories: Iterable[Path] = ()) -> Iterator[Finding]:
    """Yield the findings in the order of a report, as they become known. Imports mergekit in a subprocess only.

    directories: where unfinished merges are looked for.
    """
    yield Finding("ok", "mergekit-mm", f"{__version__} in {Path(__file__).parents[1]}")
    yield Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")
    yield from _versions()
    yield _stock_command()
    hook = _hook()
    yield hook
    if hook.state == "ok":
        yield from _fresh_interpreter()
    for directory in directories:
        yield from _unfinished_merges(directory)


def _unfinished_merges(directory: Path) -> Iterator[Finding]:
    for path in leftovers(directory):
        if is_at_work(path):
            text = "a merge is at work in it"
        else:
            text = "of an interrupted merge: the same command goes on from there; else it can be deleted"
        yield Finding("note", "unfinished merge", f"{path} ({size_of(size_on_disk(path))}): {text}")


def _versions() -> Iterator[Finding]:
    try:
        required = [Requirement(line) for line in importlib.metadata.requires("mergekit-mm") or []]
    except importlib.metadata.PackageNotFoundError:  # runs from PYTHONPATH
        required = []
    ranges = {each.name: each.specifier for each in required if each.marker is None}
    for name in PACKAGES:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("BROKEN", name, f"missing: pip install '{name}{ranges.get(name, '')}'")
            continue
        if name in ranges and not ranges[name].contains(found, prereleases=True):
            yield Finding("BROKEN", name, f"{found}, needed is {ranges[name]}: pip install '{name}{ranges[name]}'")
        else:
            yield Finding("ok", name, found)


def _stock_command() -> Finding:
    """Compare the `mergekit-yaml` on PATH with this environment's: a plugin in another environment does nothing."""
    found, here = shutil.which("mergekit-yaml"), Path(sysconfig.get_path("scripts"))
    if found and Path(found).resolve().parent == here.resolve():
        return Finding("ok", "mergekit-yaml", found)
    if (here / "mergekit-yaml").exists():
        return Finding("note", "mergekit-yaml", f"of this environment is {here / 'mergekit-yaml'}, PATH gives {found}")
    return Finding(
        "note",
        "mergekit-yaml",
        f"is not in this environment (PATH gives {found}). Install mergekit-mm where mergekit is: pip in the same "
        "environment, `pipx inject mergekit mergekit-mm`, or `uv tool install mergekit --with mergekit-mm`",
    )


def _hook() -> Finding:
    directories = [*site.getsitepackages(), site.getusersitepackages()]
    candidates = [Path(each) / f"mergekit_mm.{suffix}" for each in directories for suffix in ("pth", "start")]
    files = [each for each in candidates if each.exists()]
    if os.environ.get("MERGEKIT_MM_AUTOLOAD") == "0":
        return Finding("note", "start-up hook", f"turned off by MERGEKIT_MM_AUTOLOAD=0; {FALLBACK}")
    if len({each.suffix for each in files}) < 2:
        text = "not installed, stock mergekit-yaml does not see the plugin: pip install mergekit-mm here"
        return Finding("BROKEN", "start-up hook", f"{text}; {FALLBACK}")
    return Finding("ok", "start-up hook", f"mergekit_mm.pth and .start in {files[0].parent}")


def _fresh_interpreter() -> Iterator[Finding]:
    code = "from mergekit_mm.hosts.doctor import _report; _report()"
    # From sys.prefix, since `-c` puts the working directory on the path, where a checkout would look installed.
    run = subprocess.run([sys.executable, "-c", code], cwd=sys.prefix, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("BROKEN", "interpreter", f"a fresh one cannot import the plugin and its hosts: {reason}")
        return
    report = json.loads(run.stdout.splitlines()[-1])
    if report["active"]:
        yield Finding("ok", "interpreter", "a fresh one has the hook active")
    else:
        yield Finding("BROKEN", "interpreter", f"a fresh one lacks the hook: is Python run with -S? {FALLBACK}")
    for host, error in report["outcomes"].items():
        yield Finding("BROKEN" if error else "ok", host, error or "plugged in")
    yield Finding("ok" if report["methods"] else "BROKEN", "methods", " ".join(report["methods"]) or "none")


def _report() -> None:
    """Import the hosts, in a fresh interpreter, and print as JSON whether the hook is active and what it registered."""
    active = _autoload.finder in sys.meta_path
    for host in _autoload.HOOKS:
        importlib.import_module(host)
    from mergekit.merge_methods import registered_methods

    from mergekit_mm.methods import catalogue

    registered = registered_methods()
    methods = [ours.name for ours in catalogue() if any(ours.host is each for each in registered)]
    print(json.dumps({"active": active, "outcomes": _autoload.outcomes, "methods": methods}))
