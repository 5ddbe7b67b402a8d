"""The seam in lm-eval 0.4.13: `TaskManager` reads task definitions from directories; ours is one more of them.

lm-eval has no discovery of task packages. A task of the same name in a directory that the user names (`--include_path`)
comes later and wins.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any


def task_directory() -> Path:
    """Where this package's task definitions are: inside it in a wheel, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "eval_tasks"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "eval_tasks"


def install() -> None:
    """Let every TaskManager know the tasks `mllm...`, once."""
    from lm_eval.tasks.manager import TaskManager  # local: the start-up hook calls this when that module is imported

    original = TaskManager.__init__
    if getattr(original, "__mergekit_mm__", False):
        return

    @functools.wraps(original)
    def __init__(
        self: Any,
        verbosity: str | None = None,
        include_path: Any = None,
        include_defaults: bool = True,
        metadata: Any = None,
    ) -> None:
        named = include_path if isinstance(include_path, (list, tuple)) else [include_path] if include_path else []
        paths = [task_directory(), *named] if include_defaults else include_path
        original(self, verbosity, paths, include_defaults, metadata)

    __init__.__mergekit_mm__ = True  # type: ignore[attr-defined]
    TaskManager.__init__ = __init__
