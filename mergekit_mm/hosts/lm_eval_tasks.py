"""The seam in lm-eval 0.4.13: `TaskManager` reads task definitions from directories; ours is one more of them.

lm-eval has no discovery of task packages. A task of the same name in a directory that the user names (`--include_path`)
comes later and wins. All tasks that a TaskManager loads, ours or not, follow the option `missing` for documents that
cannot be asked, and data sets that cannot be had are named together.
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

    original, load = TaskManager.__init__, TaskManager.load
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

    @functools.wraps(load)
    def load_prepared(self: Any, *arguments: Any, **options: Any) -> Any:
        from mergekit_mm.evaluation.tasks import missing, sources  # local: most users of lm-eval never need them

        with sources.gathered():
            found = load(self, *arguments, **options)
        for task in found["tasks"].values():
            missing.prepare(task)
        return found

    __init__.__mergekit_mm__ = True  # type: ignore[attr-defined]
    TaskManager.__init__ = __init__
    TaskManager.load = load_prepared
