"""`mergekit-mm align` on a merge of donors of different media, each of which answers to its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import end_to_end as c
import pytest
import torch
import yaml
from alignments import OMNI, align, aligned, report, written
from mllm_runs import model

pytestmark = pytest.mark.slow  # each test aligns a model
DONORS = ("image", "audio", "video")


def merge_of_donors(method: str = "tsv", suffix: str = "", **parameters: Any) -> dict[str, Any]:
    """The config of an omni model. suffix: `lora` for donors that are adapters."""
    names = {donor: f"{OMNI / donor}_aligned+{OMNI / donor}_lora" if suffix else str(OMNI / donor) for donor in DONORS}
    return {
        "merge_method": method,
        "base_model": str(OMNI / "llm"),
        "models": [{"model": name} for name in names.values()],
        "parameters": {"host": names["image"], "vision_tower": names["image"], **parameters},
        "out_dtype": "float32",
    }


def questions(config: dict[str, Any]) -> Path:
    """Questions to each donor about its medium; to the one of videos without any."""
    asked = {
        "image": lambda n: {"prompt": "<image>what colour is it?", "image": f"{n}.png"},
        "audio": lambda n: {"prompt": "<audio>what do you hear?", "audio": f"{n}.wav"},
        "video": lambda n: {"prompt": f"is {n} a number?"},
    }
    names = [entry["model"] for entry in config["models"]]
    rows = [{"expert": name, **asked[d](n)} for name, d in zip(names, DONORS, strict=True) for n in range(4)]
    return written(rows)


@pytest.mark.parametrize("suffix", ["", "lora"])
@pytest.mark.parametrize("way", ["adapter", "coefficients"])
def test_an_omni_model_comes_closer_to_its_donors(way: str, suffix: str) -> None:
    config = merge_of_donors(suffix=suffix, scaling=1.0)
    rate = {"adapter": "0.0001", "coefficients": "0.001"}[way]
    out = aligned(config, questions(config), "--way", way, "--rate", rate, "--recompute")
    assert report(out)["best"] > 0
    start = c.merge(config)
    changed = {name for name, tensor in c.tensors(out).items() if not torch.equal(tensor, start.tensors[name])}
    assert len(changed) == 21
    assert all("_proj" in name for name in changed)
    assert model(out).max_length > 0  # it loads
    if way == "coefficients":
        again = c.merge(yaml.safe_load((out / "mergekit_config.yml").read_text()))
        assert (again.out / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_matrices_that_each_donor_keeps_are_not_trained() -> None:
    config = merge_of_donors(composition="damc", scaling=1.0)
    _, result = align(config, questions(config))
    assert "This merge changes no matrix of a language model that could be trained" in result.output
