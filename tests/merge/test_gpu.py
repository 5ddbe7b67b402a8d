"""Every kind of merge on a real GPU, against the CPU: `python -m pytest -m gpu tests/merge/test_gpu.py`, some minutes.

test_devices.py runs the same merges on a device that is pretended, and needs no GPU.
"""

from __future__ import annotations

import pytest
import torch
from device_cases import COMMANDS, KINDS, METHODS, WAYS, Case, case_of, made, of_method, of_method_on_cpu, on_cpu
from end_to_end import assert_close, assert_same_bytes

from mergekit_mm.methods.declarations import DRAWING

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

TOLERANCE = 1e-5  # of values up to 0.3: another order of sums, and other routines for eigenvectors


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, way: str) -> None:
    got, expected = made(Case(of_method(method)), "--random-seed", "7", *WAYS[way]), of_method_on_cpu(method)
    if method in DRAWING:
        assert_same_bytes(got, expected)
    else:
        assert_close(got, expected, TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_merge(kind: str, way: str) -> None:
    assert_close(made(case_of(kind), *WAYS[way]), on_cpu(kind), TOLERANCE)


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_plugins_own_commands(kind: str) -> None:
    assert_close(made(case_of(kind), "--cuda"), on_cpu(kind), TOLERANCE)
