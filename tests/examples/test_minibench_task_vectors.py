"""Cosine, overlap and drift of experts' task vectors, from folders of models and adapters."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from examples.common.training import with_lora
from examples.minibench.evidence.task_vectors import averaged, relations
from examples.minibench.model import Size, make_model, make_tokenizer

SIZE = Size(width=32, layers=1, mlp=48, vision_width=32, vision_layers=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    model = make_model(make_tokenizer(["What is in the picture?"] * 9), SIZE)
    model.save_pretrained(folder)
    return model, folder


def moved(model: torch.nn.Module, folder: Path, step: float, seed: int) -> Path:
    """The model with a random change of all weights that are no smaller than a matrix."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim == 2:
                parameter += step * torch.randn(parameter.shape, generator=generator)
    other.save_pretrained(folder)
    return folder


def test_full_fine_tunes(base: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    model, folder = base
    experts = {
        "a": moved(model, tmp_path / "a", 0.01, 1),
        "twice": moved(model, tmp_path / "twice", 0.02, 1),
        "back": moved(model, tmp_path / "back", -0.01, 1),
        "other": moved(model, tmp_path / "other", 0.01, 2),
    }
    found = {each.experts: each for each in relations("full", folder, experts)}
    assert len(found) == 6
    assert found["a", "twice"].cosine == pytest.approx(1, abs=1e-4)
    assert found["a", "back"].cosine == pytest.approx(-1, abs=1e-4)
    assert found["a", "back"].overlap == pytest.approx(1, abs=1e-3)  # a sign does not turn a subspace
    assert found["a", "other"].cosine == pytest.approx(0, abs=0.05)
    assert found["a", "other"].overlap == pytest.approx(found["a", "other"].chance, abs=0.1)
    assert found["a", "twice"].drift[1] == pytest.approx(2 * found["a", "twice"].drift[0], rel=1e-3)
    (mean,) = averaged([[found["a", "twice"]], [found["a", "back"]]])
    assert mean.cosine == pytest.approx(0, abs=1e-4)


def test_adapters_have_no_more_directions_than_their_rank(base: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    model, folder = base
    experts = {}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        adapted = with_lora(copy.deepcopy(model), 2)
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.01)
        adapted.save_pretrained(tmp_path / name)
        experts[name] = tmp_path / name
    (found,) = relations("lora", folder, experts)
    assert found.chance <= 2 / 32  # two directions of at least 32
    assert found.overlap < 0.2
    assert abs(found.cosine) < 0.2
    (same,) = relations("lora", folder, {"a": experts["a"], "again": experts["a"]})
    assert (same.cosine, same.overlap) == (pytest.approx(1), pytest.approx(1))
