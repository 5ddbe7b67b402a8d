"""lm-eval's result files (`results_*.json`): one `Run` a file, one `Task` for each leaf task in it.

`lm_eval --output_path` writes them. The keys `results`, `configs`, `versions`, `n-shot`, `n-samples`, `group_subtasks`,
`higher_is_better`, `config`, `model_name`, `date` and the versions of the libraries are read.

Three other layouts are read too: files of lm-eval before 0.4, which have no `configs` (`results.json`, metrics without
a filter); files of its first 0.4 releases; and files of lmms-eval (`<date>_results.json`), in which the date and the
model's arguments are texts.
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

from mergekit_mm.errors import UserError

_NO_METRIC = {"alias", "name", "sample_len", "sample_count"}
# Model arguments that say which model is run; all others say how it is run.
_IDENTITY = ("pretrained", "peft", "delta", "model", "path", "engine", "revision")
# The arguments in which lm-eval looks for a model's name, in its order.
_NAMES = ("peft", "delta", "pretrained", "model", "model_version", "path", "engine")
# Those that change no answer, or as little as rounding does.
_NO_CONDITION = ("batch_size", "max_batch_size", "device", "device_map", "parallelize", "thumbnails")
# Metrics of files that do not tell which way is better.
_LOWER_IS_BETTER = (
    "ppl",
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "brier_score",
    "wer",
    "cer",
)
_LMMS_EVAL_DATE = re.compile(r"\d{8}_\d{6}")
_STDERR = re.compile(r"_stderr(?:_[a-z]+)?$")
_OTHER_TOOLS = {  # keys at the top of the files of other tools
    "config_general": "lighteval (or the first Open LLM Leaderboard)",
    "config_tasks": "lighteval",
    "groups_scores": "HELM",
}
_HALF = ("bfloat16", "float16")
_GREEDY = ("repetition_penalty", "no_repeat_ngram_size", "eos_token_id")  # settings that act without sampling too
_DEFINITION = (  # keys of a task's config that are compared between models
    *("dataset_path", "dataset_name", "dataset_kwargs", "test_split", "doc_to_text", "doc_to_choice", "doc_to_target"),
    *("description", "gen_prefix", "output_type", "generation_kwargs", "filter_list", "repeats", "process_results"),
    "metric_list",
)


class ReportError(UserError):
    """A report cannot be made; the message says why."""


@dataclass(frozen=True)
class Score:
    """A metric as in the file, usually a fraction, and its standard error where lm-eval could compute one."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Task:
    """The results of one leaf task in one file."""

    name: str
    scores: Mapping[str, Score]  # by metric, or by "metric,filter" if the task names its filters
    lower_is_better: frozenset[str]
    paper_column: str | None
    samples: tuple[int, int] | None  # samples evaluated, samples in the split
    settings: Mapping[str, str]  # conditions of the run and of the task, which are compared between models
    filters: tuple[str, ...]  # names of the task's filters in their order; `none` is what a task without any has


@dataclass(frozen=True, eq=False)
class Run:
    """One result file."""

    path: Path
    model: str  # as lm-eval names it: the adapter (`peft`), else `pretrained`, and the revision if it is not main
    identity: tuple[str, ...]  # `model`, and for an adapter the model it is on; paths are resolved
    date: float  # start of the run in seconds since the epoch
    tasks: Mapping[str, Task]
    groups: Mapping[str, Sequence[str]]  # group or tag -> its direct members

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.date).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model and all runs of it, oldest first."""

    name: str
    runs: tuple[Run, ...]

    @property
    def beneath(self) -> tuple[str, ...]:
        """The model that an adapter is on; empty for other models."""
        return self.runs[0].identity[1:]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks of all runs; the newest result of a task that is in several runs."""
        return {name: task for run in self.runs for name, task in run.tasks.items()}


def find_results(paths: Iterable[Path]) -> list[Path]:
    """The given files, and the result files at any depth of the given directories.

    A result file is every `results_*.json`, and every `*_results.json` and `results.json` with results in it.

    ReportError: a directory has no result file.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("results_*.json"))
        if not path.is_file():
            named_otherwise = [*path.rglob("*_results.json"), *path.rglob("results.json")]
            files += sorted(each for each in named_otherwise if each not in files and _has_results(each))
        if not files:
            others = sorted(each.relative_to(path).as_posix() for each in path.rglob("*.json*") if each.is_file())
            seen = f"; found: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}" if others else ""
            raise ReportError(f"{path}: no results_*.json there, as written by lm_eval --output_path{seen}")
        found |= {file.resolve(): file for file in files}
    return list(found.values())


def _has_results(path: Path) -> bool:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and isinstance(data.get("results"), dict)


def collect(paths: Iterable[Path]) -> list[Evaluated]:
    """The models in result files, in the order of their first file."""
    runs = [read_run(path) for path in find_results(paths)]
    names = {run.identity: run.model for run in reversed(runs)}
    order = dict.fromkeys(run.identity for run in runs)
    runs.sort(key=lambda run: (run.date, run.path.name))
    return [Evaluated(names[each], tuple(run for run in runs if run.identity == each)) for each in order]


def read_run(path: Path) -> Run:
    """Read a result file. ReportError: the file is of another kind or of another tool, or holds no task."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is a ValueError too
        hint = "; samples_*.jsonl hold single replies, results_*.json the scores" if path.suffix == ".jsonl" else ""
        hint = "; the tables of VLMEvalKit are not read" if path.suffix in (".csv", ".xlsx", ".tsv") else hint
        raise ReportError(f"{path} is not a result file of lm-eval: no JSON{hint}") from error
    if isinstance(data, dict) and (tool := next((_OTHER_TOOLS[key] for key in _OTHER_TOOLS if key in data), None)):
        raise ReportError(
            f"{path} was written by {tool}, whose files are not read: only those of lm-eval and lmms-eval"
        )
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise ReportError(f"{path} is not a result file of lm-eval: it lacks `results` or `configs`")
    if not ("configs" in data or "versions" in data or "config" in data):
        raise ReportError(
            f"{path} is not a result file of lm-eval: it has `results`, but neither `configs` (lm-eval from 0.4 on, "
            "lmms-eval) nor `versions` and `config` (before)"
        )
    config = data["config"] if isinstance(data.get("config"), dict) else {}
    arguments = _arguments(config.get("model_args"))
    conditions = _conditions(path, data, config, arguments)
    leaves = data["configs"] if "configs" in data else data["results"].keys() - (data.get("groups") or {}).keys()
    tasks = {
        name: _task(data, name, conditions, arguments)
        for name, found in data["results"].items()
        if name in leaves and isinstance(found, dict)  # groups have no config
    }
    if not tasks:
        raise ReportError(f"{path} holds no result of any task")
    named = (arguments[key] for key in _NAMES if arguments.get(key))
    model = str(data.get("model_name") or next(named, None) or config.get("model") or path.parent.name).rstrip("/")
    revision = config.get("model_revision") or arguments.get("revision") or "main"
    model = model if revision == "main" else f"{model}@{revision}"
    beneath = [str(arguments["pretrained"])] if arguments.get("peft") and arguments.get("pretrained") else []
    return Run(
        path=path,
        model=model,
        identity=tuple(_in_full(each) for each in (model, *beneath)),
        date=_date(data.get("date"), path),
        tasks=tasks,
        groups={group: list(members) for group, members in (data.get("group_subtasks") or {}).items() if members},
    )


def _date(given: Any, path: Path) -> float:
    """Seconds since the epoch: lm-eval writes seconds, lmms-eval a text; else the file's last change counts."""
    text = str(given or "")
    try:
        return (
            float(text) if not _LMMS_EVAL_DATE.fullmatch(text) else datetime.strptime(text, "%Y%m%d_%H%M%S").timestamp()
        )
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return path.stat().st_mtime


def _in_full(name: str) -> str:
    """A path resolved, if it exists: `models/x` and `/home/me/models/x/` may be one model."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _arguments(given: Any) -> dict[str, Any]:
    """`model_args`: a mapping, in older files the text of the command line, which may be JSON."""
    if isinstance(given, str):
        if given.lstrip().startswith("{"):
            try:
                return dict(json.loads(given))
            except ValueError:
                return {}
        return dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    return dict(given or {})


def _conditions(
    path: Path, data: Mapping[str, Any], config: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, str]:
    """The settings that hold for all tasks of a run."""
    of_lmms_eval = _LMMS_EVAL_DATE.fullmatch(str(data.get("date") or "")) or re.match(r"\d{8}_\d{6}_results", path.stem)
    found = {
        "evaluator": "lmms-eval" if of_lmms_eval else "lm-eval",
        "lm-eval": data.get("lm_eval_version") or (None if "configs" in data else "before 0.4"),
        "transformers": data.get("transformers_version"),
        "lm-eval model": config.get("model"),
        "dtype": str(config.get("model_dtype") or arguments.get("dtype") or "").removeprefix("torch."),
        "chat template": data.get("chat_template") or config.get("chat_template"),  # `mllm` applies it by itself
        "system instruction": data.get("system_instruction"),
    }
    if found["dtype"] in _HALF:  # in half precision answers depend on the batch size, by rounding
        found["batch size"] = config.get("batch_size")
    skipped = (*_IDENTITY, *_NO_CONDITION, "dtype", *(["chat_template"] if "chat_template" in config else []))
    found |= {f"model argument {key}": value for key, value in arguments.items() if key not in skipped}
    generation = config.get("generation_config") or {}  # the checkpoint's, which `mllm` records
    found |= {f"generation config {key}": generation.get(key) for key in _GREEDY}
    return {key: _text(value) for key, value in found.items() if value not in (None, "")}


def _task(data: Mapping[str, Any], name: str, conditions: Mapping[str, str], arguments: Mapping[str, Any]) -> Task:
    config = (data.get("configs") or {}).get(name) or {}
    metadata = _metadata(config.get("metadata"))
    column = metadata.pop("paper_column", None)
    version = metadata.pop("version", (data.get("versions") or {}).get(name))
    settings = {"task version": version, "few-shot examples": (data.get("n-shot") or {}).get(name)}
    # lm-eval's command line copies the model's arguments into the metadata; `config_source` is a path.
    settings |= {key: value for key, value in metadata.items() if key not in {*arguments, "config_source"}}
    for key in _DEFINITION:
        value = config.get(key)
        settings |= {f"{key}.{part}": value[part] for part in value} if isinstance(value, dict) else {key: value}
    counted = (data.get("n-samples") or {}).get(name)
    samples = None
    if isinstance(counted, dict) and {"effective", "original"} <= counted.keys():
        samples = (counted["effective"], counted["original"])
    if samples:
        settings["samples"] = f"{samples[0]} of {samples[1]}"
    scores = _scores(data["results"][name])
    told = (data.get("higher_is_better") or {}).get(name) or {}
    higher = {metric: metric not in _LOWER_IS_BETTER for metric in (key.partition(",")[0] for key in scores)} | told
    return Task(
        name=name,
        scores=scores,
        lower_is_better=frozenset(metric for metric, better in higher.items() if better is False),
        paper_column=column,
        samples=samples,
        settings={**conditions, **{key: _text(each) for key, each in settings.items() if each not in (None, "")}},
        filters=_filters(config.get("filter_list")),
    )


def _filters(given: Any) -> tuple[str, ...]:
    """The names in a task's list of filters."""
    listed = given if isinstance(given, list) else []
    return tuple(str(each["name"]) for each in listed if isinstance(each, dict) and "name" in each) or ("none",)


def _metadata(given: Any) -> dict[str, Any]:
    """A task's metadata: a mapping, in older files a list of mappings."""
    parts = given if isinstance(given, list) else [given]
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def _scores(results: Mapping[str, Any]) -> dict[str, Score]:
    """The metrics in the order of the file; values that are not finite numbers are left out."""
    scores = {}
    for key, value in results.items():
        metric, _, kind = key.partition(",")
        if key in _NO_METRIC or _STDERR.search(metric) or not _finite(value):
            continue
        stderr = results.get(f"{metric}_stderr,{kind}" if kind else f"{metric}_stderr")
        name = metric if kind in ("", "none") else key
        scores[name] = Score(float(value), float(stderr) if _finite(stderr) else None)
    return scores


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(value: Any) -> str:
    """A value as text that fits into a line; for a long value (code, a template) the start of its SHA-256."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    if len(text) > 60 or "\n" in text:
        return "sha256 " + hashlib.sha256(text.encode()).hexdigest()[:8]
    return text or '""'
