"""lm-eval's result files (`results_*.json`): one `Run` a file, one `Task` for each leaf task in it.

Written by `lm_eval --output_path`. Read here: `results`, `configs`, `versions`, `n-shot`, `n-samples`,
`group_subtasks`, `higher_is_better`, `config`, `model_name`, `date` and the versions of the libraries.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

_NO_METRIC = {"alias", "name", "sample_len", "sample_count"}
_IDENTITY = ("pretrained", "peft", "delta", "model", "path", "engine", "revision")  # which model, not how it is run
_HARDWARE = ("batch_size", "max_batch_size", "device", "device_map", "parallelize")
_HALF = ("bfloat16", "float16")
_GREEDY = ("repetition_penalty", "no_repeat_ngram_size", "eos_token_id")  # they act without sampling too
_DEFINITION = (
    *("dataset_path", "dataset_name", "dataset_kwargs", "test_split", "doc_to_text", "doc_to_choice", "doc_to_target"),
    *("description", "gen_prefix", "output_type", "generation_kwargs", "filter_list", "repeats", "process_results"),
    "metric_list",
)


class ReportError(ValueError):
    """No report can be made of this; the message says why."""


@dataclass(frozen=True)
class Score:
    """A metric as the file has it, usually a fraction, and its standard error where lm-eval could compute one."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Task:
    """What one file says of one leaf task."""

    name: str
    scores: Mapping[str, Score]  # by metric; "metric,filter" for a filter of its own
    lower_is_better: frozenset[str]
    paper_column: str | None
    samples: tuple[int, int] | None  # evaluated, of so many in the split
    settings: Mapping[str, str]  # under which conditions, to be compared between models


@dataclass(frozen=True, eq=False)
class Run:
    """One result file."""

    path: Path
    model: str  # as lm-eval names it: the adapter (`peft`), else `pretrained`, and the revision where there is one
    identity: tuple[str, ...]  # what tells models apart: that, and under an adapter `pretrained`; paths in full
    date: float  # start, seconds since the epoch
    tasks: Mapping[str, Task]
    groups: Mapping[str, Sequence[str]]  # group or tag -> what is directly in it

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.date).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model and all runs of it, oldest first."""

    name: str
    runs: tuple[Run, ...]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Of all runs; of a task in several runs, the newest."""
        return {name: task for run in self.runs for name, task in run.tasks.items()}


def find_results(paths: Iterable[Path]) -> list[Path]:
    """Files as given, and every `results_*.json` at any depth of directories; ReportError for a directory without."""
    found: dict[Path, Path] = {}
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("results_*.json"))
        if not files:
            others = sorted(each.relative_to(path).as_posix() for each in path.rglob("*.json*") if each.is_file())
            seen = f"; found: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}" if others else ""
            raise ReportError(f"{path}: no results_*.json there, as written by lm_eval --output_path{seen}")
        found |= {file.resolve(): file for file in files}
    return list(found.values())


def collect(paths: Iterable[Path], separate: bool) -> list[Evaluated]:
    """Models by their name, in the order of their first file; with `separate`, every file is a model of its own."""
    runs = [read_run(path) for path in find_results(paths)]
    if separate:
        return [Evaluated(run.model, (run,)) for run in runs]
    names = {run.identity: run.model for run in reversed(runs)}
    order = dict.fromkeys(run.identity for run in runs)
    runs.sort(key=lambda run: (run.date, run.path.name))
    return [Evaluated(names[each], tuple(run for run in runs if run.identity == each)) for each in order]


def read_run(path: Path) -> Run:
    """Read a result file. ReportError: it is none, or holds no task."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # also what is no UTF-8
        hint = "; samples_*.jsonl hold single replies, results_*.json the scores" if path.suffix == ".jsonl" else ""
        raise ReportError(f"{path} is not a result file of lm-eval: no JSON{hint}") from None
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict) or "configs" not in data:
        raise ReportError(f"{path} is not a result file of lm-eval: it lacks `results` or `configs`")
    config = data.get("config") or {}
    arguments = _arguments(config.get("model_args"))
    conditions = _conditions(data, config, arguments)
    tasks = {
        name: _task(data, name, conditions, arguments)
        for name in data["results"]
        if name in data["configs"]  # groups have none
    }
    if not tasks:
        raise ReportError(f"{path} holds no result of any task")
    model = str(data.get("model_name") or config.get("model") or path.parent.name).rstrip("/")
    revision = config.get("model_revision") or arguments.get("revision") or "main"
    model = model if revision == "main" else f"{model}@{revision}"
    beneath = [str(arguments["pretrained"])] if arguments.get("peft") and arguments.get("pretrained") else []
    return Run(
        path=path,
        model=model,
        identity=tuple(_in_full(each) for each in (model, *beneath)),
        date=float(data.get("date") or path.stat().st_mtime),
        tasks=tasks,
        groups={group: members for group, members in (data.get("group_subtasks") or {}).items() if members},
    )


def _in_full(name: str) -> str:
    """`models/x` and `/home/me/models/x/` are one model, where they lie there still."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _arguments(given: Any) -> dict[str, Any]:
    """`model_args`: a mapping, in older files the text of the command line."""
    if isinstance(given, str):
        return dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    return dict(given or {})


def _conditions(data: Mapping[str, Any], config: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """What holds for all tasks of a run."""
    found = {
        "lm-eval": data.get("lm_eval_version"),
        "transformers": data.get("transformers_version"),
        "lm-eval model": config.get("model"),
        "dtype": str(config.get("model_dtype") or arguments.get("dtype") or "").removeprefix("torch."),
        "chat template": data.get("chat_template") or config.get("chat_template"),  # `mllm` applies it by itself
        "system instruction": data.get("system_instruction"),
    }
    if found["dtype"] in _HALF:  # there answers depend on it, by rounding
        found["batch size"] = config.get("batch_size")
    skipped = (*_IDENTITY, *_HARDWARE, "dtype", *(["chat_template"] if "chat_template" in config else []))
    found |= {f"model argument {key}": value for key, value in arguments.items() if key not in skipped}
    generation = config.get("generation_config") or {}  # of the checkpoint
    found |= {f"generation config {key}": generation.get(key) for key in _GREEDY}
    return {key: _text(value) for key, value in found.items() if value not in (None, "")}


def _task(data: Mapping[str, Any], name: str, conditions: Mapping[str, str], arguments: Mapping[str, Any]) -> Task:
    config = data["configs"][name]
    metadata = dict(config.get("metadata") or {})
    column = metadata.pop("paper_column", None)
    version = metadata.pop("version", (data.get("versions") or {}).get(name))
    settings = {"task version": version, "few-shot examples": (data.get("n-shot") or {}).get(name)}
    # the command line copies the model's arguments into the metadata; `config_source` is a path
    settings |= {key: value for key, value in metadata.items() if key not in {*arguments, "config_source"}}
    for key in _DEFINITION:
        value = config.get(key)
        settings |= {f"{key}.{part}": value[part] for part in value} if isinstance(value, dict) else {key: value}
    counted = (data.get("n-samples") or {}).get(name)
    samples = (counted["effective"], counted["original"]) if counted else None
    if samples:
        settings["samples"] = f"{samples[0]} of {samples[1]}"
    higher = (data.get("higher_is_better") or {}).get(name) or {}
    return Task(
        name=name,
        scores=_scores(data["results"][name]),
        lower_is_better=frozenset(metric for metric, better in higher.items() if better is False),
        paper_column=column,
        samples=samples,
        settings={**conditions, **{key: _text(each) for key, each in settings.items() if each not in (None, "")}},
    )


def _scores(results: Mapping[str, Any]) -> dict[str, Score]:
    """Metrics in the file's order; those that are no finite number are left out."""
    scores = {}
    for key, value in results.items():
        metric, _, kind = key.partition(",")
        if key in _NO_METRIC or metric.endswith("_stderr") or not _finite(value):
            continue
        stderr = results.get(f"{metric}_stderr,{kind}")
        name = metric if kind in ("", "none") else key
        scores[name] = Score(float(value), float(stderr) if _finite(stderr) else None)
    return scores


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(value: Any) -> str:
    """A value as text that fits into a line: of long ones (code, templates) the start of the SHA-256."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    if len(text) > 60 or "\n" in text:
        return "sha256 " + hashlib.sha256(text.encode()).hexdigest()[:8]
    return text or '""'
