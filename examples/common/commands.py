"""The unmodified console scripts that the examples call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BATCH = 256


def run(command: Sequence[str], **environment: str) -> None:
    """Run a console script from the repository's root, on one core; what it printed is shown if it fails."""
    script = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    options: dict[str, Any] = {"cwd": ROOT, "env": {"OMP_NUM_THREADS": "1", **os.environ, **environment}, "text": True}
    done = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(command)} failed with exit code {done.returncode}")


def mergekit_yaml(config: Path, target: Path) -> None:
    """Merge."""
    run(["mergekit-yaml", str(config), str(target), "--quiet"])


def lm_eval(
    model: Mapping[str, str],
    tasks: str,
    out: Path,
    limit: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    data: Path | None = None,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Score a model (lm-eval's `--model_args`): the results, and by task what the model said to each question."""
    shutil.rmtree(out, ignore_errors=True)
    command = ["lm_eval", "--model", "mllm", "--model_args", json.dumps(model), "--tasks", tasks]
    command += ["--batch_size", str(BATCH), "--output_path", str(out), "--log_samples"]
    command += ["--limit", str(limit)] if limit else []
    command += ["--metadata", json.dumps(metadata)] if metadata else []
    run(command, **({"MLLM_EVAL_DATA": str(data)} if data else {}))
    results = json.loads(next(out.rglob("results_*.json")).read_text())
    samples = {}
    for task in results["results"]:
        for file in out.rglob(f"samples_{task}_[0-9]*.jsonl"):
            samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
    return results, samples
