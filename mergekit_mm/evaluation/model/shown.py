"""What the documents of tasks show: found again by the name of a task and the number of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model.found_tasks import load_tasks, task_manager
from mergekit_mm.evaluation.model.thumbnails import Thumbnail, thumbnails


class Shown:
    """The documents of some tasks, read from where lm-eval has them: a mirror, a cache, or the hub.

    problems: task -> why its documents cannot be had.
    """

    def __init__(self, names: Sequence[str], folders: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """names: of leaf tasks. folders, metadata: as lm_eval was given them (--include_path, --metadata)."""
        self.problems: dict[str, str] = {}
        self._tasks: dict[str, ConfigurableTask] = {}
        self._documents: dict[str, Any] = {}
        manager = task_manager(names, folders, metadata)
        for name in names:
            try:
                task = load_tasks(manager, [name]).get(name)
            except EvaluationError as error:
                self.problems[name] = str(error).splitlines()[0]
                continue
            if isinstance(task, ConfigurableTask):
                self._tasks[name], self._documents[name] = task, task.eval_docs
            else:
                self.problems[name] = f"{name} is a task written in Python"

    def __contains__(self, name: str) -> bool:
        return name in self._tasks

    def document(self, name: str, number: int) -> tuple[Mapping[str, Any], str] | None:
        """A document of a task and its target as lm-eval logs it; None if there is no such document."""
        if number >= len(self._documents[name]):
            return None
        found = self._documents[name][number]
        return found, str(self._tasks[name].doc_to_target(found))

    def thumbnails(self, name: str, document: Mapping[str, Any], side: int) -> list[Thumbnail]:
        """Small copies of what a document shows. side: pixels of the longer side of a picture."""
        task = self._tasks[name]
        has = {"visual": task.config.doc_to_image, "audio": task.config.doc_to_audio}
        read = {"visual": task.doc_to_image, "audio": task.doc_to_audio}
        return thumbnails({key: read[key](document) or [] for key in has if has[key]}, side)
