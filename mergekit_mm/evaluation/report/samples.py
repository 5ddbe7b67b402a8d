"""The answers in the sample files of lm-eval and lmms-eval, by question for all models.

`lm_eval --log_samples` writes one line for each document (and filter) into `samples_<task>_<date>.jsonl` beside the
result file of the same date. The keys `doc_id`, `doc`, `target`, `arguments`, `resps`, `filtered_resps`, `filter`,
`doc_hash` and those of the metrics are read. Media are hashes in them, or paths, which are not opened: a file of
results may come from anybody.

`lmms_eval --log_samples` (from 0.2.3 on; its `EvaluationTracker.save_results_samples` up to 0.7.2 was read for this)
writes `<date>_samples_<task>.jsonl` with the same keys, but

- `input` is the prompt, and from 0.4 on there are neither `arguments` nor `doc`;
- `resps` is missing where it equals `filtered_resps`, and lists of one reply may be that reply;
- `filter` is missing: a document has one line for each filter of its task, in their order;
- a metric may be a mapping of what its aggregation needs, in which `score` is the number of the document.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_mm.evaluation.report.results import ReportError, Run
from mergekit_mm.evaluation.report.roles import Participant
from mergekit_mm.evaluation.report.table import Column, Table

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}(?:\.\d+)?$")
_LMMS_EVAL_DATE = re.compile(r"^\d{8}_\d{6}_")
_ASKED_IN = ("prompt", "question", "query", "problem")  # keys of documents whose text is the question, in this order
# Marks of media at the beginning of a question; the page shows the media there.
_FIRST_MARKS = re.compile(r"^\s*((\w+: *)?<(image|audio|video)>\s*)+")
_OPTIONS_IN = ("choices", "options")


@dataclass(frozen=True)
class Answer:
    """What a model answered. read_as: what the task's filter made of it, where that is another text.

    value: of the metric, None where a document has no number.
    """

    text: str
    read_as: str
    value: float | None


@dataclass
class Question:
    """A document of a task with the answers of all models. answers: in the order of the table, None if not asked.

    document: its number. target: as lm-eval logs it; reference: as people read it. has_media: whether the model was
    given media, as far as the samples tell. fields: texts and numbers of the
    document, by which it is known again. hashes: of the document in the runs, which may differ between them where it
    holds pictures.
    """

    column: Column
    document: int
    text: str
    target: str
    reference: str
    answers: list[Answer | None]
    has_media: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    hashes: set[str] = field(default_factory=set)


def collect_questions(table: Table) -> tuple[list[Question], list[str]]:
    """The questions of the table's tasks in its order, and notes on what is missing.

    Models are taken to have been asked the same if number and target of a document agree.

    ReportError: a sample file is damaged.
    """
    found: dict[tuple[str, int, str], Question] = {}
    lacking: dict[str, list[str]] = {}
    unlogged: set[str] = set()
    without_media: set[str] = set()
    for column in table.columns:
        for at, row in enumerate(table.rows):
            path = _samples(row.participant, column.task)
            if path is None:
                if column.task in row.participant.model.tasks:
                    lacking.setdefault(row.participant.label, []).append(column.header)
                continue
            if _is_of_lmms_eval(path):
                without_media.add(column.header)
            for line in _lines(path, column, row.participant.model.tasks[column.task].filters):
                number, target = line["doc_id"], str(line.get("target", ""))
                question = found.get((column.task, number, target))
                if question is None:
                    question = found[column.task, number, target] = _question(column, line, len(table.rows))
                question.answers[at] = _answer(line, column)
                question.hashes.add(str(line.get("doc_hash")))
                if not isinstance(line.get("doc"), dict):
                    unlogged.add(column.header)
    order = {column.task: at for at, column in enumerate(table.columns)}
    questions = sorted(found.values(), key=lambda each: (order[each.column.task], each.document))
    return questions, [
        *_told(lacking, bool(questions), len(table.columns)),
        *_told_without(unlogged, "samples without documents; the question is the prompt as it was sent"),
        *_told_without(without_media, "samples of lmms-eval, whose pictures and sounds are not looked for"),
    ]


def _told(lacking: Mapping[str, Sequence[str]], some: bool, tasks: int) -> Iterator[str]:
    if not some:
        yield "No answers are shown, as no sample files lie beside the results: --log_samples writes them."
        return
    by_tasks: dict[str, list[str]] = {}
    for label, headers in lacking.items():
        by_tasks.setdefault("" if len(headers) == tasks else f" of {', '.join(headers)}", []).append(label)
    for which, labels in by_tasks.items():
        yield f"No answers{which} by {', '.join(labels)}: no sample files lie beside the results (--log_samples)."


def _told_without(headers: set[str], what: str) -> Iterator[str]:
    if headers:
        yield f"{', '.join(sorted(headers))}: {what}."


def _samples(participant: Participant, task: str) -> Path | None:
    """The sample file of the newest run of a task: that of the same date, else the only one in the folder."""
    run = next((run for run in reversed(participant.model.runs) if task in run.tasks), None)
    if run is None:
        return None
    exact = _of_same_date(run, task)
    if exact is not None and exact.is_file():
        return exact
    others = [path for path in run.path.parent.glob("*samples_*.jsonl") if _task_of(path) == task]
    return others[0] if len(others) == 1 and len(participant.model.runs) == 1 else None


def _is_of_lmms_eval(samples: Path) -> bool:
    return not samples.name.startswith("samples_")


def _task_of(samples: Path) -> str:
    """The task in the name of a sample file."""
    if _is_of_lmms_eval(samples):
        return _LMMS_EVAL_DATE.sub("", samples.stem).removeprefix("samples_")
    return _DATE.sub("", samples.stem).removeprefix("samples_").removesuffix("_")


def _of_same_date(run: Run, task: str) -> Path | None:
    if (date := _LMMS_EVAL_DATE.match(run.path.stem)) is not None:
        return run.path.with_name(f"{date[0]}samples_{task}.jsonl")
    date = _DATE.search(run.path.stem)
    return run.path.with_name(f"samples_{task}_{date[0]}.jsonl") if date else None


def _lines(path: Path, column: Column, filters: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The samples of a file in the filter of a column's metric. ReportError: a line is no sample.

    filters: those of the task, by which the lines of lmms-eval are told apart.
    """
    wanted = column.metric.partition(",")[2] or "none"
    of_lmms_eval = _is_of_lmms_eval(path)
    evaluator, replies = ("lmms-eval", "filtered_resps") if of_lmms_eval else ("lm-eval", "resps")
    seen: Counter[int] = Counter()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ReportError(f"{path}, line {number}: no JSON ({error}); the run may have been cut off") from error
            if not isinstance(line, dict) or not isinstance(line.get("doc_id"), int) or replies not in line:
                told = f"no sample of {evaluator}, which has `doc_id` and `{replies}`"
                raise ReportError(f"{path}, line {number}: {told}")
            if of_lmms_eval:
                line = _as_of_lm_eval(line, filters[min(seen[line["doc_id"]], len(filters) - 1)])
                seen[line["doc_id"]] += 1
            if line.get("filter", "none") == wanted:
                yield line


def _as_of_lm_eval(line: Mapping[str, Any], filter_: str) -> dict[str, Any]:
    """A line of lmms-eval with the keys of lm-eval."""
    arguments = {"gen_args_0": {"arg_0": line.get("input")}}
    return {**line, "resps": line.get("resps", line["filtered_resps"]), "arguments": arguments, "filter": filter_}


def _question(column: Column, line: Mapping[str, Any], models: int) -> Question:
    document = line["doc"] if isinstance(line.get("doc"), dict) else {}
    fields = {key: value for key, value in document.items() if isinstance(value, (str, int, float))}
    asked, target = _asked(document, line), str(line.get("target", ""))
    reference, media = _reference(line, target), _has_media(line)
    return Question(column, line["doc_id"], asked, target, reference, [None] * models, media, fields)


def _has_media(line: Mapping[str, Any]) -> bool:
    """Whether a request had media beside its prompt; taken for true where requests are not logged."""
    arguments = line.get("arguments")
    if not isinstance(arguments, dict):
        return True
    given = [each.get("arg_2") for each in arguments.values() if isinstance(each, dict)]
    return any(isinstance(media, dict) and any(media.values()) for media in given)


def _asked(document: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """The question as people read it: a text of the document with its options, else the prompt."""
    key = next((key for key in _ASKED_IN if isinstance(document.get(key), str) and document[key].strip()), None)
    if key is None:
        prompts = _choices(line, "arg_0")
        return prompts[0] if prompts else "(neither document nor prompt was logged)"
    options: list[Any] = next((document[each] for each in _OPTIONS_IN if isinstance(document.get(each), list)), [])
    listed = [] if key == "prompt" else [f"- {option}" for option in options if isinstance(option, (str, int, float))]
    return "\n".join([_FIRST_MARKS.sub("", document[key]).strip(), *listed])


def _reference(line: Mapping[str, Any], target: str) -> str:
    """The target; of a task that scores choices, the choice whose number it is."""
    choices = _choices(line, "arg_1")
    if _likelihoods(line) and target.isdigit() and int(target) < len(choices) > 1:
        return choices[int(target)].strip()
    return target


def _choices(line: Mapping[str, Any], argument: str) -> list[str]:
    """An argument of all requests of a document."""
    arguments = line.get("arguments")
    given = list(arguments.values()) if isinstance(arguments, dict) else []
    found = [each.get(argument) for each in given if isinstance(each, dict)]
    return [each for each in found if isinstance(each, str)]


def _answer(line: Mapping[str, Any], column: Column) -> Answer:
    value = line.get(column.metric.partition(",")[0])
    value = value.get("score") if isinstance(value, dict) else value
    number = float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    if scores := _likelihoods(line):
        choices, best = _choices(line, "arg_1"), scores.index(max(scores))
        known = len(choices) == len(scores) > 1
        return Answer(choices[best].strip() if known else f"log-likelihood {scores[best]:.4g}", "", number)
    raw, read = _first(line["resps"]), _first(line.get("filtered_resps", line["resps"]))
    return Answer(raw, "" if read.strip() == raw.strip() else read, number)


def _likelihoods(line: Mapping[str, Any]) -> list[float]:
    """The log-likelihoods of a document's requests; empty if its answer is a text. lm-eval writes them as texts."""
    given = line.get("filtered_resps")
    try:
        return [float(score) for score, greedy in given or [] if greedy in ("True", "False", True, False)]
    except (TypeError, ValueError):
        return []


def _first(given: Any) -> str:
    """The text of the first reply, in however many lists it is."""
    while isinstance(given, list) and given:
        given = given[0]
    return given if isinstance(given, str) else "" if given == [] else json.dumps(given, ensure_ascii=False)
