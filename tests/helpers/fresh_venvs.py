"""Fresh environments for tests of an installation; they cost seconds, so test files share them.

An environment is a bare venv that reaches the packages of this interpreter through links, all but mergekit-mm and the
`.pth` files, so that the installation under test is the only one.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from end_to_end import fresh

ROOT = Path(__file__).parents[2]


class Environment:
    """A venv with everything but mergekit-mm and the distributions `without`."""

    def __init__(self, directory: Path, without: tuple[str, ...] = ()) -> None:
        self.directory = directory
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
        self.scripts = directory / "bin"
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(directory)}))
        links = directory / "packages"
        links.mkdir()
        for source in [Path(each) for each in sys.path if Path(each).name in ("site-packages", "dist-packages")]:
            for entry in source.iterdir():
                package = entry.name.partition("-")[0].partition(".")[0]
                if package not in ("mergekit_mm", *without) and entry.suffix not in (".pth", ".start"):
                    (links / entry.name).symlink_to(entry)
        (self.site / "packages.pth").write_text(f"{links}\n")
        stock = (Path(sysconfig.get_path("scripts")) / "mergekit-yaml").read_text().splitlines(keepends=True)
        (self.scripts / "mergekit-yaml").write_text(f"#!{self.scripts / 'python'}\n" + "".join(stock[1:]))
        (self.scripts / "mergekit-yaml").chmod(0o755)
        self.empty = self.files()

    def files(self) -> set[Path]:
        """What an installation could leave behind; byte code excepted, which Python writes as it runs."""
        found = [*self.site.rglob("*"), *self.scripts.iterdir()]
        return {each for each in found if each.name != "__pycache__" and each.suffix != ".pyc"}

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script of this environment from its own directory; Python and plugin variables are those given."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MERGEKIT_MM", "PYTHON"))}
        path = f"{self.scripts}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [self.scripts / command[0], *command[1:]],
            env=inherited | {"PATH": path} | variables,
            cwd=self.directory,
            capture_output=True,
            text=True,
        )

    def pip(self, *arguments: str | Path) -> None:
        python = str(self.scripts / "python")
        pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", *map(str, arguments)]
        done = subprocess.run(pip, cwd=self.directory, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def install(self, *what: str | Path) -> None:
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", *what)

    def modules_at_start(self) -> set[str]:
        return set(self.run("python", "-c", "import sys; print(*sys.modules)").stdout.split())


@functools.cache
def wheel(source: Path = ROOT) -> Path:
    """This package as a wheel, built once from each source."""
    out = fresh("wheel")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    return next(out.iterdir())


@functools.cache
def installed() -> Environment:
    """An environment with the wheel, which no test changes."""
    environment = Environment(fresh("installed"))
    environment.install(wheel())
    return environment
