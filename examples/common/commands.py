"""The unmodified console scripts that the examples call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BATCH = 256
GRID = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5)  # the merge strengths that the OptMerge paper searched
MERGEKIT_METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def run(command: Sequence[str], **environment: str) -> None:
    """Run a console script from the repository's root, on one core; its output is shown if it fails."""
    script = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    options: dict[str, Any] = {"cwd": ROOT, "env": {"OMP_NUM_THREADS": "1", **os.environ, **environment}, "text": True}
    done = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(command)} failed with exit code {done.returncode}")


def mergekit_yaml(config: Path, target: Path) -> Path:
    """Merge to the directory `target`, and print the command with its wall time."""
    started = time.monotonic()
    run(["mergekit-yaml", str(config), str(target), "--quiet"])
    print(f"  mergekit-yaml {config} {target}   {time.monotonic() - started:.0f} s", flush=True)
    return target


def strength_parameter(merge_method: str) -> str:
    """The YAML name of a method's strength: mergekit's own methods and this package's call it differently."""
    return "lambda" if merge_method in MERGEKIT_METHODS else "scaling"


def sweep(config: dict[str, Any], scratch: Path) -> Iterator[tuple[float, Path]]:
    """Yield the merge of `config` at each strength of the grid: the strength, and the directory of the model."""
    config["parameters"][strength_parameter(config["merge_method"])] = 1.0
    file, out = scratch / "sweep.yaml", scratch / "sweep"
    file.write_text(yaml.safe_dump(config))
    run(["mergekit-mm", "sweep", str(file), str(out), "--quiet", "--scaling", ",".join(map(str, GRID))])
    for strength in GRID:
        yield strength, out / f"scaling_{strength:g}"


def lm_eval(
    model: Mapping[str, str],
    group: str,
    task_folder: Path,
    out: Path,
    limit: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    data: Path | None = None,
    start: Callable[..., None] = run,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Evaluate a model on a group of the tasks in `task_folder`.

    model: lm-eval's `--model_args`. data: the folder that MLLM_EVAL_DATA names. start: what starts the console script.
    Returns lm-eval's results, and by task its samples: each question with the model's reply.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = ["lm_eval", "--model", "mllm", "--model_args", json.dumps(model), "--tasks", group]
    command += ["--include_path", str(task_folder), "--batch_size", str(BATCH)]
    command += ["--output_path", str(out), "--log_samples"]
    command += ["--limit", str(limit)] if limit else []
    command += ["--metadata", json.dumps(metadata)] if metadata else []
    start(command, **({"MLLM_EVAL_DATA": str(data)} if data else {}))
    results = json.loads(next(out.rglob("results_*.json")).read_text())
    samples = {}
    for task in results["results"]:
        for file in out.rglob(f"samples_{task}_[0-9]*.jsonl"):
            samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
    return results, samples


def lm_eval_here(
    model: Mapping[str, str],
    group: str,
    task_folder: Path,
    limit: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """As `lm_eval`, in this process, which spares the start of another one; only the results, without samples."""
    from lm_eval.evaluator import evaluate  # local: slow to import, and most callers run the command
    from lm_eval.tasks import TaskManager

    from mergekit_mm.evaluation.model.mllm import MLLM

    manager = TaskManager(include_path=str(task_folder), include_defaults=False, metadata=metadata)
    tasks = manager.load([group])
    return evaluate(MLLM(**model, batch_size=BATCH), tasks, limit=limit, bootstrap_iters=0, log_samples=False)
