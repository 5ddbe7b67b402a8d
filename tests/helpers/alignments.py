"""Samples, merges and alignments of small models, for the tests of `mergekit-mm align`."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import end_to_end as c
import pytest
import torch
from click.testing import CliRunner, Result
from mllm_runs import png, saved, wav

from mergekit_mm.cli import main

EASY_VQA = Path(__file__).parents[2] / "examples" / "easy_vqa" / "models"
OMNI = Path(__file__).parents[2] / "examples" / "omni" / "models"
KINDS = ("color", "shape", "yesno")
EXPERT = str(EASY_VQA / "expert_color")

Rows = Sequence[Mapping[str, Any]]


@functools.cache
def samples() -> Path:
    """Sixteen questions of the package easy-vqa for each of the trained experts, without their answers."""
    easy_vqa = pytest.importorskip("easy_vqa")
    paths, rows = easy_vqa.get_train_image_paths(), []
    for kind in KINDS:
        own = [row for row in zip(*easy_vqa.get_train_questions(), strict=True) if kind_of(row[1]) == kind][::251][:16]
        rows += [{"expert": f"expert_{kind}", "prompt": f"<image>{row[0]}", "image": paths[row[2]]} for row in own]
    return written(rows)


def kind_of(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yesno"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"


def written(rows: Rows) -> Path:
    """Samples as a file, with pictures and sounds beside it that their paths may name: 0.png, 0.wav, ..., 3.wav."""
    folder = c.fresh("samples")
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number)["bytes"])
        (folder / f"{number}.wav").write_bytes(wav(number)["bytes"])
    path = folder / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def easy_vqa_merge(method: str = "tsv", **changes: Any) -> dict[str, Any]:
    """The config of a merge of the trained experts."""
    return {
        "merge_method": method,
        "base_model": str(EASY_VQA / "base"),
        "models": [{"model": str(EASY_VQA / f"expert_{kind}")} for kind in KINDS],
        "parameters": {"scaling": 0.7},
        "out_dtype": "float32",
        **changes,
    }


@functools.cache
def small_expert(number: int) -> Path:
    """A fine-tune of a small LLaVA of the zoo with random weights, with its processor; 0.05 of noise in its decoder."""
    generator = torch.Generator().manual_seed(number)

    def tuned(found: c.Tensors) -> c.Tensors:
        return {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            if "language_model" in name and tensor.ndim == 2
            else tensor
            for name, tensor in found.items()
        }

    return c.altered(saved("llava"), tuned)


def small_merge(method: str = "tsv", **changes: Any) -> dict[str, Any]:
    """The config of a merge of two small fine-tunes."""
    return {
        "merge_method": method,
        "base_model": str(saved("llava")),
        "models": [{"model": str(small_expert(number))} for number in (1, 2)],
        **changes,
    }


def small_samples(count: int = 4, expert: Any = None) -> Path:
    """Samples of the small fine-tunes: every other one is of text alone. expert: another first model."""
    names = [str(expert or small_expert(1)), str(small_expert(2))]
    pictures = [{"prompt": f"<image>what is {n}?", "image": f"{n}.png"} for n in range(count // 2)]
    texts = [{"prompt": f"is {n} a word?"} for n in range(count - count // 2)]
    return written([{"expert": name, **row} for name in names for row in pictures + texts])


QUICK = ("--steps", "2", "--check", "1", "--answer-tokens", "2", "--rate", "0.0003", "--gate", "0", "--quiet")


def align(config: Mapping[str, Any], read: Path, *options: str, out: Path | None = None) -> tuple[Path, Result]:
    """Where the command writes, and how it ended. Options come after those of `QUICK`."""
    out = out or c.fresh("aligned")
    given = ["align", str(c.written(config)), str(out), "--samples", str(read), *QUICK, *options]
    return out, CliRunner().invoke(main, given)


def aligned(config: Mapping[str, Any], read: Path, *options: str) -> Path:
    """The output of the command, which succeeds."""
    out, result = align(config, read, *options)
    if result.exception:
        raise result.exception
    return out


def report(out: Path) -> Any:
    return json.loads((out / "align" / "report.json").read_text())


def mean(step: Mapping[str, Any]) -> float:
    return sum(step["divergence"].values()) / len(step["divergence"])
