"""lm-eval learns of our tasks: `TaskManager` reads task definitions from directories, and ours is one more of them.

lm-eval has no discovery of task packages. A task of the same name in a directory that the user names (`--include_path`)
comes later and wins. All tasks that a TaskManager loads, ours or not, follow the option `missing` for documents that
cannot be asked, and data sets that cannot be found are named together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def task_directory() -> Path:
    """The directory of this package's task definitions: inside it in a wheel, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "eval_tasks"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "eval_tasks"


def install() -> None:
    """Replace `lm_eval.tasks.manager.TaskManager.__init__` and `.load` (lm-eval 0.4.13 up to 0.5), once.

    Of the parameters of `__init__` only `include_path` and `include_defaults` are known here, and of what `load`
    returns the key `tasks`; all others are passed on as they are.
    """
    from lm_eval.tasks.manager import TaskManager  # local: the start-up hook calls this when that module is imported

    from mergekit_mm.hosts.wrapping import wrap

    wrap(TaskManager, "__init__", _init_with_our_tasks)
    wrap(TaskManager, "load", _load_prepared)


def _init_with_our_tasks(original: Any, *arguments: Any, **options: Any) -> None:
    from mergekit_mm.hosts.wrapping import bound

    call = bound(original, *arguments, **options)
    if call.arguments["include_defaults"]:
        given = call.arguments["include_path"] or []
        named = given if isinstance(given, (list, tuple)) else [given]
        call.arguments["include_path"] = [task_directory(), *named]
    original(*call.args, **call.kwargs)


def _load_prepared(original: Any, *arguments: Any, **options: Any) -> Any:
    from mergekit_mm.evaluation.tasks import prepared_tasks, sources  # local: most users of lm-eval never need them

    with sources.gathered():
        found = original(*arguments, **options)
    for task in found["tasks"].values():
        prepared_tasks.prepare(task)
    return found
