"""The parameter `own_delta` of every method: shares of the experts' own deltas beside the merged one."""

from __future__ import annotations

import pytest
import torch
from end_to_end import checkpoint, experts, merge, tensors
from mergekit.merge_methods import merge_tensors


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
