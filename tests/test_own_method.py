"""The example of a merge method from outside the package: known to every command, and treated as one of ours."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from checkpoints import checkpoint, experts, fresh, tensors, with_method

SCRIPT = Path(__file__).parents[1] / "examples" / "own_method" / "clipped_sum.py"


def test_a_method_of_ones_own() -> None:
    base, tuned = checkpoint("llava"), experts("llava")
    config, out = fresh("config.yaml"), fresh("out")
    recipe = {**with_method("clipped_sum", base, tuned), "parameters": {"limit": 0.5, "scaling": 2.0}}
    config.write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [sys.executable, SCRIPT, "yaml", config, out], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    before, got = tensors(base), tensors(out)
    name = next(n for n in before if n.endswith("layers.0.mlp.up_proj.weight"))
    deltas = [(tensors(path)[name] - before[name]).double() for path in tuned]
    longest = 0.5 * statistics.median(float(delta.norm()) for delta in deltas)
    expected = before[name] + 2.0 * sum(delta * min(1.0, longest / float(delta.norm())) for delta in deltas)
    torch.testing.assert_close(got[name].double(), expected.double(), atol=1e-5, rtol=0)
    changed = {n for n in before if not torch.equal(before[n], got[n])}
    assert all("language_model" in n and "norm" not in n for n in changed), "its roles are not those of our methods"
