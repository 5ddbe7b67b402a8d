"""A notebook from a script: `python -m examples.notebooks.convert` writes first_merge.ipynb from first_merge.py.

The script is what is edited, checked and tested. In it `# %% [markdown]` begins a cell of text, each line of which is a
comment, and `# %%` one of code. A line of code that begins with `#: ` is one for the notebook alone, such as `%pip`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("first_merge.py")
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
_CODE, _TEXT, _NOTEBOOK_ALONE = "# %%", "# %% [markdown]", "#: "


def notebook(script: str) -> str:
    """The text of the notebook, in version 4.5 of nbformat, that a script stands for."""
    cells: list[tuple[str, list[str]]] = []
    for line in script.splitlines():
        if line in (_CODE, _TEXT):
            cells.append((line, []))
        else:
            cells[-1][1].append(line)
    content = {
        "cells": [_cell(number, mark == _TEXT, lines) for number, (mark, lines) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, is_text: bool, lines: list[str]) -> dict[str, Any]:
    prefix = "# " if is_text else _NOTEBOOK_ALONE
    text = "\n".join("" if is_text and line == "#" else line.removeprefix(prefix) for line in lines).strip("\n")
    cell: dict[str, Any] = {"cell_type": "markdown" if is_text else "code", "id": f"cell-{number}", "metadata": {}}
    cell |= {} if is_text else {"execution_count": None, "outputs": []}
    return {**cell, "source": text.splitlines(keepends=True)}


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(SCRIPT.read_text(encoding="utf-8")), encoding="utf-8")
