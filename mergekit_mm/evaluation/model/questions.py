"""What the documents of lm-eval's tasks ask: prompts with media, as the model `mllm` is given them, and no answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model.found_tasks import load_tasks
from mergekit_mm.evaluation.tasks.prompts import as_words

_ASKED = ("generate_until", "multiple_choice")  # output types whose requests are a question and what may answer it


@dataclass(frozen=True)
class Question:
    """What one document asks.

    document: its number in the split. prompt: with marks such as <image>; of a task without media, every such mark is a
    word. media: returns the media as requests of lm-eval have them, opened anew and not decoded. until: texts of which
    the first to be said ends an answer.
    """

    document: int
    prompt: str
    media: Callable[[], Mapping[str, list[Any]]]
    until: tuple[str, ...] = ()


class Questions:
    """The questions of one task in one split.

    name: of the task. split: of its data, by the data set's own name. is_scored: whether that is the split on which the
    task is scored if nothing else is said. until: what ends an answer. examples: how many worked examples the task puts
    before a question; they have answers, and are left out.
    """

    def __init__(self, task: ConfigurableTask, split: str | None, metadata: Mapping[str, Any]) -> None:
        """split: None is the one that the task reads with this metadata.

        EvaluationError: the data have no such split, or the task's requests are not questions.
        """
        config, own = task.config, _own_split(task)
        self.name, self.split = task.task_name, split or own
        self.is_scored = split in (None, own) and "split" not in metadata
        self.examples = config.num_fewshot or 0
        self.until = _until(task)
        if config.output_type not in _ASKED or task.multiple_input:
            raise EvaluationError(
                f"{self.name} does not ask questions: its output_type is {config.output_type}"
                f"{' with several inputs' if task.multiple_input else ''}, not {' or '.join(_ASKED)}."
            )
        self._task, self._documents = task, task.eval_docs if split is None else _documents(task, split)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, document: int) -> Question:
        found = self._documents[document]
        prompt = self._task.fewshot_context(found, num_fewshot=0, gen_prefix=self._task.doc_to_prefix(found))
        if not (self._task.config.doc_to_image or self._task.config.doc_to_audio):
            return Question(document, as_words(prompt), dict, self.until)
        return Question(document, prompt, lambda: self._media(document), self.until)

    def _media(self, document: int) -> dict[str, list[Any]]:
        found = self._documents[document]
        return {"visual": self._task.doc_to_image(found) or [], "audio": self._task.doc_to_audio(found) or []}


def _until(task: ConfigurableTask) -> tuple[str, ...]:
    """The texts that end an answer to a task's requests; none of a task that is not answered freely."""
    if task.config.output_type != "generate_until":
        return ()
    until = (task.config.generation_kwargs or {}).get("until") or ()
    return (until,) if isinstance(until, str) else tuple(filter(None, until))


def _own_split(task: ConfigurableTask) -> str:
    """The split that a task reads, by the name that it has in the data set."""
    config = task.config
    named = {**(config.metadata or {}), **(config.dataset_kwargs or {})}.get("split") if config.custom_dataset else None
    return str(named or config.test_split or config.validation_split)


def _documents(task: ConfigurableTask, split: str) -> Any:
    if split not in task.dataset:
        told = f"{task.task_name} has no split {split!r}; its data have {', '.join(sorted(map(str, task.dataset)))}."
        raise EvaluationError(
            f"{told} A task with a `custom_dataset` of its own may take another by --metadata."
            if task.config.custom_dataset
            else told
        )
    process = task.config.process_docs
    return task.dataset[split] if process is None else process(task.dataset[split])


def questions(manager: TaskManager, name: str, split: str | None) -> list[Questions]:
    """The questions of each task that a name means: a task, a group, a tag, a pattern, or the path of a YAML file.

    Raises:
        EvaluationError: there is no such task, its data cannot be had or have no such split, or it asks no questions.
    """
    tasks = load_tasks(manager, [name])
    if other := next((found for found, task in tasks.items() if not isinstance(task, ConfigurableTask)), None):
        raise EvaluationError(f"{other} is a task written in Python, whose prompts cannot be had without its answers.")
    metadata: Mapping[str, Any] = manager.metadata or {}
    return [Questions(task, split or metadata.get("data_split"), metadata) for task in tasks.values()]
