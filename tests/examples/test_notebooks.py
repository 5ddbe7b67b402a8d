"""The notebook is its script, is valid, and runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from forks import program

from examples.common import forked
from examples.notebooks.convert import NOTEBOOK, SCRIPT, notebook

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def test_the_notebook_is_what_the_script_stands_for() -> None:
    """Where this fails: `python -m examples.notebooks.convert`."""
    assert NOTEBOOK.read_text(encoding="utf-8") == notebook(SCRIPT.read_text(encoding="utf-8"))


def test_the_notebook_is_valid() -> None:
    nbformat = pytest.importorskip("nbformat", reason="it checks the notebook: pip install nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT))


def test_what_becomes_of_a_script() -> None:
    made = json.loads(notebook("# %% [markdown]\n# # A title\n#\n# Text.\n\n# %%\n#: %pip install x\nprint(1)  # %%\n"))
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]] == [
        ("markdown", "# A title\n\nText."),
        ("code", "%pip install x\nprint(1)  # %%"),
    ]


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    """In a clone of its own, so to say: what it writes is not left in this one."""
    for folder in ("examples", "merge_yamls"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    forked.preload()  # here, where other tests of this process find it done
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = program([sys.executable, SCRIPT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = tmp_path / "out/first_merge"
    assert "optmerge of 4 models in the layout of examples/easy_vqa/models/base" in done.stdout
    assert "merged by optmerge" in done.stdout
    assert (out / "merged/model.safetensors").is_file()
    (answers,) = [line for line in done.stdout.splitlines() if line.startswith("merged ")]
    assert answers.count("|") == 4
    assert (out / "report/report.md").is_file()
    assert "easy_vqa" in done.stdout[done.stdout.index("$ mergekit-mm report") :]
    for page in ("experts.html", "answers.html"):
        assert (out / page).read_text().lower().startswith("<!doctype html>")
