"""Products made in parallel: in the order of their needs, with failures told, and without children left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.common.commands import ROOT
from examples.minibench.products import Product
from examples.minibench.schedule import build_all


def product(name: str, make: Callable[[Path], Any], *needs: Product) -> Product:
    return Product(name, "1", {}, make, needs)


def nothing() -> None:
    """What these products share."""


def test_products_are_made_after_those_that_they_need(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def write_process(folder: Path) -> None:
        (folder / "process").write_text(str(os.getpid()))

    first = product("first", write_process)
    seen = product("seen", lambda folder: shutil.copy(first.folder(tmp_path) / "process", folder), first)
    build_all([seen, first], tmp_path, jobs=2, prepare=nothing)
    assert int((first.folder(tmp_path) / "process").read_text()) != os.getpid()
    assert (seen.folder(tmp_path) / "process").exists()
    build_all([seen, first], tmp_path, jobs=2, prepare=nothing)
    assert "2 of 2 products exist already and are kept" in capfd.readouterr().out


def test_a_failure_stops_the_run_and_is_told(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise SystemExit("there are no pictures")

    def fail(folder: Path) -> None:
        raise ZeroDivisionError

    def die(folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(SystemExit, match=r"^model failed: there are no pictures$"):
        build_all([product("model", refuse)], tmp_path, jobs=2, prepare=nothing)
    with pytest.raises(SystemExit, match=r"(?s)^bug failed: Traceback.*ZeroDivisionError$"):
        build_all([product("bug", fail)], tmp_path, jobs=2, prepare=nothing)
    with pytest.raises(SystemExit, match=r"killed failed: its process ended with code -9"):
        build_all([product("killed", die)], tmp_path, jobs=2, prepare=nothing)


def test_a_product_of_a_stage_that_is_left_out_is_named(tmp_path: Path) -> None:
    base = product("base", lambda folder: None)
    with pytest.raises(SystemExit, match="expert needs base: add their stage to --stages"):
        build_all([product("expert", lambda folder: None, base)], tmp_path, jobs=1, prepare=nothing)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_children(tmp_path: Path, sent: signal.Signals) -> None:
    """Two products wait for a command each; the run gets a signal; nobody of the four is there any more."""
    script = f"""
import os, pathlib, signal, subprocess, sys
from examples.minibench.products import Product
from examples.minibench.schedule import build_all
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
def make(folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path({str(tmp_path)!r}, f"pids-{{os.getpid()}}").write_text(f"{{os.getpid()}} {{child.pid}}")
    child.wait()
out = pathlib.Path({str(tmp_path)!r})
build_all([Product(name, "1", {{}}, make) for name in "ab"], out, jobs=2, prepare=lambda: None)
"""
    run = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    files: list[Path] = []
    for _ in range(600):
        files = [file for file in tmp_path.glob("pids-*") if file.read_text().count(" ")]
        if len(files) == 2:
            break
        time.sleep(0.1)
    run.send_signal(sent)
    run.wait(60)
    pids = [int(word) for file in files for word in file.read_text().split()]
    assert len(pids) == 4
    for _ in range(100):
        if not (left := [pid for pid in pids if _runs(pid)]):
            break
        time.sleep(0.1)
    assert not left


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
