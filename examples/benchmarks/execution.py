"""Whole merges as work on a machine: against copying the same bytes, by workers, beside other work, and resumed.

Makes random LLaVA-style checkpoints and merges them with the stock `mergekit-yaml`. The time of a merge of next to
nothing, which is start-up, is subtracted from every figure. Linux only.

    python -m examples.benchmarks.execution --gigabytes 0.5 --experts 5 --work /some/disk
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors import safe_open

from examples.benchmarks.processes import Usage, measured

COMMAND = str(Path(sys.executable).parent / "mergekit-yaml")


def make(directory: Path, layers: int, width: int, experts: int, text_only: bool = False) -> None:
    """A base and its fine-tunes in bfloat16; text_only: without the tower, as stock mergekit merges them."""
    text = {"model_type": "llama", "vocab_size": 2000, "hidden_size": width, "intermediate_size": 4 * width}
    vision = {"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    config = transformers.LlavaConfig(
        text_config={**text, "num_hidden_layers": layers, "num_attention_heads": 8, "dtype": "bfloat16"},
        vision_config={**vision, "num_attention_heads": 4, "image_size": 28, "patch_size": 14},
        image_token_index=1999,
    )
    torch.manual_seed(0)
    kind = transformers.LlamaForCausalLM if text_only else transformers.LlavaForConditionalGeneration
    model = kind(config.text_config if text_only else config).to(torch.bfloat16)
    model.save_pretrained(directory / "base", max_shard_size="1GB")
    for number in range(experts):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        model.save_pretrained(directory / f"expert_{number}", max_shard_size="1GB")


def recipe(models: Path, method: str, experts: int) -> Path:
    entries = [{"model": str(models / f"expert_{n}"), "parameters": {"weight": 1.0 / experts}} for n in range(experts)]
    config: dict[str, Any] = {"merge_method": method, "models": entries}
    if method != "linear":
        config |= {"base_model": str(models / "base"), "models": [{"model": entry["model"]} for entry in entries]}
    path = models / f"{method}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def merged(config: Path, out: Path, workers: int, *flags: str) -> Usage:
    shutil.rmtree(out, ignore_errors=True)
    os.environ["MERGEKIT_MM_WORKERS"] = str(workers)
    return measured([COMMAND, str(config), str(out), "--quiet", *flags])


def copied(models: Path, experts: int, out: Path) -> Usage:
    """All inputs read, and one output written to the disk."""
    files = sorted(file for n in range(experts) for file in (models / f"expert_{n}").glob("*.safetensors"))
    first = [file for file in files if file.parent.name == "expert_0"]
    quoted = [" ".join(f"'{file}'" for file in some) for some in (files, first)]
    usage = measured(["sh", "-c", f"cat {quoted[0]} > /dev/null && cat {quoted[1]} > '{out}' && sync '{out}'"])
    out.unlink()
    return usage


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Other processes that compute all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def killed_late(config: Path, out: Path, share: float) -> float:
    """Start a merge and kill it once this share of its tensors is done; returns the share that was."""
    shutil.rmtree(out, ignore_errors=True)
    first = Path(yaml.safe_load(config.read_text())["models"][0]["model"])
    count = 0
    for file in first.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as opened:
            count += len(opened.keys())
    journal = out.parent / f".{out.name}.unfinished/journal.jsonl"
    process = subprocess.Popen([COMMAND, str(config), str(out), "--quiet"])
    done = 0.0
    while process.poll() is None and done < share:
        time.sleep(0.005)
        if journal.is_file():
            lines = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"]
            done = sum(len(line.get("tensors", ())) for line in lines) / count
    process.send_signal(signal.SIGKILL)
    process.wait()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of one model")
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--solve", type=int, default=512, help="width of the model that optmerge merges; 0 for none")
    parser.add_argument("--stock", action="store_true", help="also stock mergekit, over text-only models of that size")
    parser.add_argument("--work", type=Path, help="a directory on the disk to use")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        root, of_large = Path(name), max(1, round(args.gigabytes * 1e9 / (32 * args.width**2)))
        for folder, layers, width in (
            ("tiny", 1, 64),
            ("large", of_large, args.width),
            ("solved", 4, args.solve),
        ):
            if width:
                make(root / folder, layers, width, args.experts)
        start = merged(recipe(root / "tiny", "linear", args.experts), root / "out", 1)
        print(f"start-up: {start.wall:.1f} s, {start.cpu:.1f} s of CPU, {start.peak / 1e6:.0f} MB; subtracted below")

        def row(what: str, usage: Usage, base: Usage = start) -> None:
            peak = (usage.peak - base.peak) / 1e6
            print(f"{what:<44} {usage.wall - base.wall:>7.1f} {usage.cpu - base.cpu:>7.1f} {peak:>8.0f}", flush=True)

        print(f"{'':<44} {'wall s':>7} {'CPU s':>7} {'peak MB':>8}")
        row("copy of the same bytes", copied(root / "large", args.experts, root / "copy"), Usage(0.0, 0.0, 0))
        linear = recipe(root / "large", "linear", args.experts)
        for workers in args.workers:
            row(f"linear, workers: {workers}", merged(linear, root / "out", workers))
        row("linear, without a model card", merged(linear, root / "out", 1, "--no-write-model-card"))
        share = killed_late(linear, root / "out2", 0.8)
        rest = measured([COMMAND, str(linear), str(root / "out2"), "--quiet"])
        row(f"linear, the rest after {share:.0%} were done", rest)
        if args.solve:
            solved = recipe(root / "solved", "optmerge", args.experts)
            for workers in args.workers:
                row(f"optmerge, workers: {workers}", merged(solved, root / "out", workers))
            with busy(2):
                row("optmerge, workers: 1, beside two busy processes", merged(solved, root / "out", 1))
        if args.stock:
            shutil.rmtree(root / "large")
            for folder, layers, width in (("tiny text", 1, 64), ("large", of_large, args.width)):
                make(root / folder, layers, width, args.experts, text_only=True)
            base = merged(recipe(root / "tiny text", "linear", args.experts), root / "out", 1)
            linear = recipe(root / "large", "linear", args.experts)
            row("stock mergekit, linear, text-only models", merged(linear, root / "out", 1), base)


if __name__ == "__main__":
    main()
