"""The parameter `own_delta` of every method: shares of the experts' own deltas beside the merged one."""

from __future__ import annotations

import pytest
import torch
from end_to_end import assert_close, checkpoint, command, experts, merge, tensors, with_method
from mergekit.merge_methods import merge_tensors
from peft_adapters import pair, plus


def matrices(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 5, generator=generator) for _ in range(3)]


def test_shares_of_the_experts_deltas_are_added_to_the_scaled_merged_one() -> None:
    base, one, other = matrices(0)
    plain = merge_tensors([base, one, other], "tsv", base_index=0, parameters={"scaling": 1.0})
    shares = {"scaling": 0.5, "own_delta": {1: 0.25, 2: -0.125}}
    found = merge_tensors([base, one, other], "tsv", base_index=0, parameters=shares)
    expected = base + 0.5 * (plain - base) + 0.25 * (one - base) - 0.125 * (other - base)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scaling", [0.0, 0.7])
def test_a_config_gives_them_by_input_and_tensor(scaling: float) -> None:
    base, (one, other, _) = checkpoint("llava"), experts("llava")
    name = "layers.0.mlp.up_proj"
    config = {
        "merge_method": "wudi",
        "base_model": str(base),
        "models": [
            {"model": str(one), "parameters": {"own_delta": [{"filter": name, "value": 0.5}]}},
            {"model": str(other)},
        ],
        "parameters": {"scaling": scaling},
    }
    found = merge(config).tensors
    config["models"][0].pop("parameters")
    before = merge(config).tensors
    changed = [key for key, tensor in found.items() if not torch.equal(tensor, before[key])]
    assert len(changed) == 1
    assert name in changed[0]
    delta = tensors(one)[changed[0]].float() - tensors(base)[changed[0]].float()
    torch.testing.assert_close(
        found[changed[0]].float(), before[changed[0]].float() + 0.5 * delta, rtol=1e-2, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_all_parameters_together_are_the_same_in_a_plan_as_on_tensors(kind: str) -> None:
    """`svc`, `scaling: auto` and `own_delta`, with the experts as files and as tensors that are given to mergekit."""
    base = checkpoint("llava")
    if kind == "models":
        inputs = whole = experts("llava")[:2]
    else:
        inputs, whole = [plus(base, adapter) for adapter, _ in pair("llava")], [merged for _, merged in pair("llava")]
    parameters = {"scaling": "auto", "svc": True, "svc_alpha": 0.7, "rank_tolerance": 1e-3}
    shares = [0.25, -0.125]
    config = {**with_method("tsv", base, inputs), "parameters": parameters}
    for entry, share in zip(config["models"], shares, strict=True):
        entry["parameters"] = {"own_delta": share}
    found, before = merge(config).tensors, tensors(base)
    given = [tensors(path) for path in whole]
    matrices = [name for name in found if "layers.1" in name and "language_model" in name and found[name].ndim == 2]
    assert len(matrices) == 7
    for name in matrices:
        values = [each[name].float() for each in (before, *given)]
        made = merge_tensors(
            values, "tsv", base_index=0, parameters={**parameters, "own_delta": {1: shares[0], 2: shares[1]}}
        )
        size = float((made - values[0]).norm())
        assert size > 0
        # An output of 16 bits is rounded; an adapter that was merged into weights is rounded before.
        assert float((found[name].float() - made.to(found[name].dtype).float()).norm()) < 1e-3 * size
        plain = merge_tensors(values, "tsv", base_index=0, parameters=parameters)
        assert float((made - plain).norm()) > 1e-2 * size, "this test could not fail"
    if kind == "adapters":
        out, result = command("lora", config)
        assert result.exit_code == 0, result.output
        put_on = with_method("task_arithmetic", base, [plus(base, out)])
        put_on["models"][0]["parameters"] = {"weight": 1.0}
        assert_close(merge(put_on).tensors, found, 1e-6)


def test_shares_of_wide_deltas_stay_wide() -> None:
    base, one, other = (matrix.double() for matrix in matrices(1))
    parameters = {"scaling": 0.0, "own_delta": {1: 1 / 3, 2: 0.0}}
    found = merge_tensors([base, one, other], "tsv", base_index=0, parameters=parameters)
    torch.testing.assert_close(found, base + (one - base) / 3, rtol=0, atol=1e-15)
