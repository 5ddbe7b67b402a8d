"""Merge methods from outside the package: known to the stock command, and treated as ours are."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from end_to_end import checkpoint, experts, fresh, tensors, with_method

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method"


@pytest.fixture(scope="module")
def installed() -> Path:
    """Where `pip install examples/own_method` puts it."""
    target = fresh("packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target]
    subprocess.run([*pip, EXAMPLE], check=True, timeout=120)
    return target


def mergekit_yaml(packages: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    script = Path(sys.executable).with_name("mergekit-yaml")
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [script, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_method_of_ones_own(installed: Path) -> None:
    base, tuned = checkpoint("llava"), experts("llava")
    config, out = fresh("config.yaml"), fresh("out")
    recipe = {**with_method("clipped_sum", base, tuned), "parameters": {"limit": 0.5, "scaling": 2.0}}
    config.write_text(yaml.safe_dump(recipe))
    done = mergekit_yaml(installed, config, out)
    assert done.returncode == 0, done.stderr
    before, got = tensors(base), tensors(out)
    name = next(n for n in before if n.endswith("layers.0.mlp.up_proj.weight"))
    deltas = [(tensors(path)[name] - before[name]).double() for path in tuned]
    longest = 0.5 * statistics.median(float(delta.norm()) for delta in deltas)
    expected = before[name] + 2.0 * sum(delta * min(1.0, longest / float(delta.norm())) for delta in deltas)
    torch.testing.assert_close(got[name].double(), expected.double(), atol=1e-5, rtol=0)
    changed = {n for n in before if not torch.equal(before[n], got[n])}
    assert all("language_model" in n and "norm" not in n for n in changed), "its roles are not those of our methods"


def test_a_value_that_it_refuses(installed: Path) -> None:
    config, out = fresh("config.yaml"), fresh("out")
    recipe = {**with_method("clipped_sum", checkpoint("llava"), experts("llava")), "parameters": {"limit": -0.5}}
    config.write_text(yaml.safe_dump(recipe))
    done = mergekit_yaml(installed, config, out)
    assert done.returncode == 1
    assert "clipped_sum: limit must be 0 or more; got -0.5" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_one_that_is_broken_is_a_warning(installed: Path) -> None:
    broken = installed / "clipped_sum-0.1.0.dist-info" / "entry_points.txt"
    whole = broken.read_text()
    broken.write_text(whole + "no_such = clipped_sum:no_such\n")
    try:
        done = mergekit_yaml(installed, "--help")
    finally:
        broken.write_text(whole)
    assert done.returncode == 0
    assert "The merge method 'no_such' (clipped_sum:no_such) is not added: " in done.stderr
