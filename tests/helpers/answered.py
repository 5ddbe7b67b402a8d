"""Result and sample files of a base, an expert and two merges that answer by rule, on the data sets in miniature."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import end_to_end as c
import eval_mirror
from eval_mirror import TASKS, Answering, right
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

PICTURES, SOUNDS = "mllm_gqa_testdev", "mllm_music_avqa_video_audio"
HOSTILE = (
    "</script><script>window.harmed = true</script><img src=x onerror='window.harmed = true'>"
    "<!-- <b>bold</b> & \u202eturned\u202c \x07 ⚠ 文字 "
)
LONG = "so it goes on, word by word, " * 400
ROLES = ("--base", "base", "--expert", "expert")


def _sometimes(doc: Mapping[str, Any]) -> str:
    return right(doc) if doc["answer"] in ("yes", "two") else f"{HOSTILE}{LONG}"


# The expert is always right, merge_a sometimes, the base where the answer is no, merge_b never.
REPLIES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "base": lambda doc: right(doc) if doc["answer"] == "no" else "17",
    "expert": right,
    "merge_a": _sometimes,
    "merge_b": lambda doc: "",
}


def save(model: Any, name: str, tasks: list[Any], manager: TaskManager, out: Path) -> None:
    """Evaluate a model and write its results and samples as the command line does with --log_samples."""
    tracker = EvaluationTracker(output_path=str(out))
    results = simple_evaluate(
        model, model_args={"pretrained": name}, tasks=tasks, task_manager=manager, evaluation_tracker=tracker
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples=samples)
    for task, lines in samples.items():
        tracker.save_results_samples(task_name=task, samples=lines)


@functools.cache
def _made() -> tuple[Path, Path]:
    root, out = c.fresh("data"), c.fresh("results")
    root.mkdir()
    eval_mirror.write(root)
    before = os.environ.get("MLLM_EVAL_DATA")
    os.environ["MLLM_EVAL_DATA"] = str(root)
    try:
        ours = TaskManager(include_path=str(TASKS), include_defaults=False)
        for name, reply in REPLIES.items():
            save(Answering(reply), f"org/{name}", [PICTURES, SOUNDS], ours, out)
    finally:
        os.environ.pop("MLLM_EVAL_DATA") if before is None else os.environ.update(MLLM_EVAL_DATA=before)
    return root, out


def data() -> Path:
    """The data sets, as `MLLM_EVAL_DATA` names them."""
    return _made()[0]


def results() -> Path:
    """The results of all models; each has a folder such as `org__base`."""
    return _made()[1]


def samples(folder: Path, task: str = PICTURES) -> Path:
    """The sample file of a task in the folder of a model."""
    (path,) = folder.glob(f"samples_{task}_*.jsonl")
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every sample of a file."""
    lines = [json.dumps(change(json.loads(line))) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def multiplied(folder: Path, count: int, reply: str = "answer") -> None:
    """Give the pictures' task so many questions, which all have texts of their own."""
    path = samples(folder)
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked = {**line["doc"], "prompt": f"<image>Question {number} about a chart, in some ten words or so?"}
            said = f"{reply} {number % 500} of {folder.name}"
            told = {"resps": [[said]], "filtered_resps": [said], "score": float((number + len(folder.name)) % 3 > 0)}
            file.write(json.dumps({**line, "doc_id": number, "doc": asked, "target": str(number), **told}) + "\n")
