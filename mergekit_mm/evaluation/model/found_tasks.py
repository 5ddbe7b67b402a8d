"""Tasks of lm-eval, found and loaded by their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval.tasks import TaskManager

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.tasks.sources import HUB_ERRORS


def task_manager(names: Sequence[str], folders: Sequence[str | Path], metadata: Mapping[str, Any]) -> TaskManager:
    """The tasks of some folders; if a name is not among them, lm-eval's own too, whose thousands take some seconds.

    names: those that will be loaded. metadata: as of lm-eval's option.
    """
    paths = [str(folder) for folder in folders]
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=dict(metadata))
    if all(_matched(manager, name) for name in names):
        return manager
    return TaskManager(include_path=paths, metadata=dict(metadata))


def load_tasks(manager: TaskManager, names: Sequence[str]) -> dict[str, Any]:
    """The leaf tasks that some names mean, each once: tasks, groups, tags, patterns, or paths of YAML files.

    Names are loaded one by one, as lm-eval refuses a task beside a group that it is in.

    Raises:
        EvaluationError: a name means no task, or tasks or their data cannot be had; all of these are told at once.
    """
    matched: dict[str, None] = {}
    for name in names:
        found = _matched(manager, name)
        if not found:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            raise EvaluationError(f"No task of lm-eval is called {name!r}. {hint}`lm_eval ls tasks` lists all.")
        matched |= dict.fromkeys(found)
    tasks: dict[str, Any] = {}
    problems = []
    for name in matched:
        try:
            loaded = {} if name in tasks else manager.load([name])["tasks"]
        except EvaluationError:
            raise
        except (*HUB_ERRORS, OSError, ValueError, ImportError, DatasetsError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            problems.append(f"{name} cannot be loaded: {reason}")
            continue
        tasks |= {leaf: task for leaf, task in loaded.items() if leaf not in tasks}
    if problems:
        raise EvaluationError("\n".join(problems))
    return tasks


def _matched(manager: TaskManager, name: str) -> list[str]:
    return list(manager.match_tasks([name])) or ([name] if Path(name).is_file() else [])
