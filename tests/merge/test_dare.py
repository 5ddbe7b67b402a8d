"""DARE as the papers have it: by mergekit's own methods with the settings of the recipes, and reproducible."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from end_to_end import (
    Tensors,
    assert_same_bytes,
    checkpoint,
    experts,
    fresh,
    merge,
    sharded,
    tensors,
)

SCALE = 0.3
KEPT = dict.fromkeys(("vision_tower", "projector", "embeddings", "lm_head", "norms", "biases"), "base")


def config(models: list[Path]) -> dict[str, Any]:
    """DARE as published: the row "TA w/ DARE" of merge_yamls/qwen2_vl_7b_baselines.yaml."""
    return {
        "merge_method": "dare_linear",
        "base_model": str(checkpoint("llava")),
        "models": [{"model": str(model)} for model in models],
        "parameters": {"weight": 1.0, "lambda": SCALE / 0.8, "density": 0.8, "rescale": False, **KEPT},
        "dtype": "float32",
    }


def deltas(found: list[Tensors], name: str) -> torch.Tensor:
    before = tensors(checkpoint("llava"))[name].double()
    return torch.stack([other[name].double() - before for other in found])


def trimmed(delta: torch.Tensor) -> torch.Tensor:
    """The largest 20 % of the entries of each delta; 0.8 of them, rounded down, fall."""
    flat = delta.abs().reshape(len(delta), -1)
    fallen = flat.shape[1] - max(1, int(0.2 * flat.shape[1]))
    threshold = flat.sort(dim=1).values[:, fallen]
    return torch.where(flat >= threshold[:, None], delta.reshape(len(delta), -1), 0.0).reshape(delta.shape)


def ties(delta: torch.Tensor) -> torch.Tensor:
    """Trim, elect the sign of the larger mass, average the entries that agree with it."""
    kept = trimmed(delta)
    agrees = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    return (kept * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def merged_names() -> list[str]:
    """The tensors that the paper merges: matrices of the language model."""
    found = tensors(checkpoint("llava"))
    return [n for n, t in found.items() if "language_model.model.layers" in n and t.ndim == 2]


def test_dare_drops_a_fifth_and_divides_the_rest_by_the_density() -> None:
    one = experts("llava")[:1]
    got, found, before = merge(config(one)).tensors, [tensors(e) for e in one], tensors(checkpoint("llava"))
    dropped = total = 0
    for name in merged_names():
        change, delta = got[name].double() - before[name].double(), deltas(found, name)[0]
        kept = torch.isclose(change, delta * SCALE / 0.8, atol=1e-6, rtol=0)
        gone = change == 0
        assert (kept | gone).all(), name
        dropped, total = dropped + int((gone & (delta.abs() > 1e-4)).sum()), total + int((delta.abs() > 1e-4).sum())
    assert abs(dropped / total - 0.2) < 0.01


@pytest.mark.slow
def test_same_seed_same_bytes_whatever_the_order_of_the_work() -> None:
    """The draw of a tensor depends on the seed and its name alone."""

    def run(inputs: list[Path], *flags: str, **more: Any) -> Tensors:
        return merge({**config(inputs), **more}, *flags).tensors

    first = run(experts("llava"), "--random-seed", "1")
    again = run([sharded(e) for e in experts("llava")], "--random-seed", "1", "--out-shard-size", "50K")
    assert_same_bytes(again, first)
    other = run(experts("llava"), "--random-seed", "2")
    assert any(not torch.equal(other[n], first[n]) for n in merged_names())
    only_two = {"modules": {"language_model": {"models": config(experts("llava"))["models"]}}, "models": None}
    assert_same_bytes(run(experts("llava"), "--random-seed", "1", **only_two), first)


@pytest.mark.slow
def test_dare_then_ties_in_two_steps(caplog: pytest.LogCaptureFixture) -> None:
    """mergekit's dare_ties does not trim; the two steps of dare_ties_as_published.yaml do."""
    from mergekit.scripts.multimerge import main

    published = Path(__file__).parents[2] / "merge_yamls" / "dare_ties_as_published.yaml"
    ids = {"BASE": checkpoint("llava"), **{f"EXPERT_{i + 1}": e for i, e in enumerate(experts("llava"))}}
    text = published.read_text()
    for name, path in ids.items():
        text = text.replace(name, str(path))
    recipe, steps, out = fresh("recipe.yaml"), fresh("steps"), fresh("out")
    recipe.write_text(text)
    with caplog.at_level(logging.ERROR):
        done = CliRunner().invoke(main, [str(recipe), "--intermediate-dir", str(steps), "--out-path", str(out)])
    assert done.exit_code == 0, done.output
    between = [tensors(steps / f"dared_{i + 1}") for i in range(3)]
    masks = [deltas(between, merged_names()[0])[i] == 0 for i in range(3)]
    assert not torch.equal(masks[0], masks[1]), "each expert has a mask of its own"
    got, before = tensors(out), tensors(checkpoint("llava"))
    for name in merged_names():
        expected = before[name].double() + SCALE * ties(deltas(between, name))
        assert torch.allclose(got[name].double(), expected, atol=1e-6), name
        assert not torch.allclose(got[name], before[name], atol=1e-4), name
    documents = list(yaml.safe_load_all(published.read_text()))
    assert {d["merge_method"] for d in documents} == {"dare_linear", "ties"}
