"""How strongly, and how reproducibly: `scaling` by layer, several strengths at once, same bytes from the same input."""

from __future__ import annotations

import pytest
import torch
import zoo
from end_to_end import (
    Tensors,
    assert_close,
    assert_same_bytes,
    checkpoint,
    command,
    experts,
    linear,
    load,
    merge,
    sharded,
    tensors,
    with_method,
)
from peft_adapters import wide

OWN = ["optmerge", "swudi", "iso_cts"]  # one of each kind of numerics; the others share these


def layer(name: str, index: int) -> bool:
    return f"language_model.model.layers.{index}." in name


def change(found: Tensors, index: int) -> float:
    """The norm of what was changed in one layer of the language model."""
    before = tensors(checkpoint("llava"))
    return float(sum((found[n] - before[n]).square().sum() for n in before if layer(n, index)) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("method", OWN)
def test_scaling_takes_gradients_and_filters(method: str) -> None:
    """LiNeS: the last layers move more than the first; here from nothing to the whole."""
    config = {**with_method(method, checkpoint("llava"), experts("llava"))}
    whole = merge(config).tensors
    lines = merge({**config, "parameters": {"scaling": [0.0, 1.0]}}).tensors
    assert change(lines, 0) == 0.0
    last = {n: t for n, t in whole.items() if layer(n, 1)}
    assert_same_bytes({n: lines[n] for n in last}, last)
    filtered = {"parameters": {"scaling": [{"filter": "mlp", "value": 0.0}, {"value": 1.0}]}}
    got, before = merge({**config, **filtered}).tensors, tensors(checkpoint("llava"))
    changed = {n for n in got if not torch.equal(got[n], before[n])}
    assert changed
    assert not any("mlp" in n for n in changed)


@pytest.mark.slow
@pytest.mark.parametrize("method", OWN)
def test_same_bytes_in_any_order_and_nearly_so_with_any_number_of_threads(method: str) -> None:
    """Reductions are in a fixed order; only another split of a sum over threads may round otherwise."""
    base, others = checkpoint("llava"), experts("llava")
    first = merge(with_method(method, base, others)).tensors
    again = merge(with_method(method, sharded(base), [sharded(e, 2) for e in others]), "--out-shard-size", "50K")
    assert_same_bytes(again.tensors, first)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert_close(merge(with_method(method, base, others)).tensors, first, 1e-6)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("method", ["optmerge", "task_arithmetic", "ties"])
def test_a_sweep_is_the_same_merge_at_each_strength(method: str) -> None:
    base, strengths = checkpoint("llava"), (0.25, 1.0, 1.5)
    config = with_method(method, base, experts("llava"))
    out, result = command("sweep", config, "--scaling", "0.25,1,1.5", "--quiet")
    assert result.exit_code == 0, result.output
    merged, before = wide(merge(config).tensors), wide(tensors(base))
    for strength in strengths:
        path = out / f"scaling_{strength:g}"
        expected = {n: torch.lerp(before[n].double(), v.double(), strength) for n, v in merged.items()}
        assert_close(wide(tensors(path)), expected, 1e-6)
        load(path, zoo.FAMILIES["llava"].cls)
    assert_same_bytes(tensors(out / "scaling_1"), merge(config).tensors)


@pytest.mark.parametrize(("scaling", "told"), [("0.3,x", "list of numbers"), ("nan", "finite")])
def test_strengths_that_are_no_numbers_are_refused(scaling: str, told: str) -> None:
    out, result = command("sweep", with_method("optmerge", checkpoint("llava"), experts("llava")), "--scaling", scaling)
    assert result.exit_code != 0
    assert told in result.output
    assert not out.exists()


def test_a_sweep_needs_a_base_to_scale_from() -> None:
    _, result = command("sweep", linear(*experts("llava")), "--scaling", "0.5")
    assert result.exit_code == 1
    assert "base_model" in result.output
