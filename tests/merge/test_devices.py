"""Every kind of merge on a GPU, as far as it can be tested without one: on a device that is pretended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from device_cases import COMMANDS, KINDS, METHODS, WAYS, Case, case_of, made, of_method, of_method_on_cpu, on_cpu
from end_to_end import (
    altered,
    assert_close,
    assert_same_bytes,
    checkpoint,
    experts,
    merge_in_memory,
    refused,
    tensors,
    with_method,
)
from pretend_device import PretendTensor, pretend_devices

from mergekit_mm.methods.declarations import DRAWING
from mergekit_mm.tasks.drawing import OwnStream

TOLERANCE = 1e-6
GPU = torch.device("cuda", 0)
OWN = ("optmerge", "wudi", "swudi", "aswudi", "tsv", "iso_c", "iso_cts", "dc_merge")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_there_what_it_gives_on_the_cpu(method: str) -> None:
    expected = of_method_on_cpu(method)
    with pretend_devices() as operations:
        got = made(Case(of_method(method)), "--random-seed", "7", "--cuda", "--low-cpu-memory")
    if method in DRAWING:  # they are run on the CPU
        assert_same_bytes(got, expected)
        assert operations[GPU] < 3 * len(got), "more than a cast was computed there"
    else:
        assert_close(got, expected, TOLERANCE)
        assert operations[GPU] > 100, "little or nothing was computed there"


# of every kind the way in which most values travel, and the one in which none does; of some all the ways
TRAVELS = ("cuda", "gpu-rich")
WHOLE = ("16 bits", "adapters, summed", "DoRA, solved", "omni, factors kept of a solver")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "way"), [(k, w) for k in KINDS for w in WAYS if k in WHOLE or w in TRAVELS])
def test_every_kind_of_merge_in_every_way_to_use_gpus(kind: str, way: str) -> None:
    case, expected = case_of(kind), on_cpu(kind)
    with pretend_devices(2) as operations:
        got = made(case, *WAYS[way])
    assert_close(got, expected, TOLERANCE)
    used = {device for device, count in operations.items() if device.type == "cuda" and count > 5}
    if "one model" not in kind or way not in ("cuda", "multi-gpu"):
        assert len(used) == (2 if way in ("multi-gpu", "gpu-rich") else 1), operations


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_the_plugins_own_commands(kind: str) -> None:
    case, expected = case_of(kind), on_cpu(kind)
    with pretend_devices() as operations:
        got = made(case, "--cuda")
    assert_close(got, expected, TOLERANCE)
    assert operations[GPU] > 100, operations


@pytest.mark.parametrize("method", OWN)
def test_a_method_where_new_tensors_are_on_the_device_by_default(method: str) -> None:
    """So it is in mergekit's own threads of `--multi-gpu`, which merge text-only models by the plugin's methods."""
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    inputs = [tensors(path)[name] for path in (*experts("llava"), checkpoint("llava"))]
    expected = merge_in_memory(inputs, method, {}, name)
    with pretend_devices(2), torch.device("cuda:1"):
        got = merge_in_memory([tensor.to("cuda:1") for tensor in inputs], method, {}, name)
        assert got.device == torch.device("cuda:1")
        got = got.cpu()
    assert torch.allclose(got, expected, rtol=0, atol=TOLERANCE)


# ------------------------------------------------------------------------------------------------------ several at once


@pytest.mark.slow
@pytest.mark.parametrize("method", DRAWING)
def test_a_method_that_draws_gives_the_same_bytes_on_several_devices(method: str) -> None:
    with pretend_devices(4):
        got = made(Case(of_method(method)), "--random-seed", "7", "--multi-gpu")
    assert_same_bytes(got, of_method_on_cpu(method))


def test_an_error_on_one_of_the_devices_is_told_as_any() -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    broken = altered(experts("llava")[0], lambda found: {**found, name: found[name] / 0})
    with pretend_devices(2):
        refused(
            with_method("ties", checkpoint("llava"), [broken]), "layers.1.mlp.up_proj.weight", flags=("--multi-gpu",)
        )


DRAWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bernoulli": torch.bernoulli,
    "in place": lambda x: x.clone().uniform_(),
    "into another": lambda x: torch.bernoulli(x, out=torch.empty_like(x)),
    "like another": torch.rand_like,
    "of a size": lambda x: torch.randint(9, x.shape, device=x.device),
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.5),
}


@pytest.mark.parametrize("how", DRAWS)
def test_what_is_drawn_depends_on_the_seed_alone(how: str) -> None:
    """Not on the device, on what other threads draw, or on what was drawn before."""
    shares = torch.linspace(0.1, 0.9, 1000)

    def draw(seed: int, device: str = "cpu") -> torch.Tensor:
        x = shares.to(device)
        with OwnStream(seed):
            drawn = torch.stack([DRAWS[how](x).double() for _ in range(3)])
        assert drawn.device == x.device
        return drawn.cpu()

    before = torch.get_rng_state()
    expected = [draw(seed) for seed in range(40)]
    assert len({tuple(drawn.flatten().tolist()) for drawn in expected}) == 40
    assert not torch.equal(expected[0][0], expected[0][1]), "the second draw repeats the first"
    with ThreadPoolExecutor(8) as threads:
        assert all(map(torch.equal, threads.map(draw, range(40)), expected))
    with pretend_devices():
        assert all(torch.equal(draw(seed, "cuda"), expected[seed]) for seed in range(3))
    assert torch.equal(torch.get_rng_state(), before), "the numbers of others have changed"


# ------------------------------------------------------------------------------------------------------- other options

OPTIONS = [
    ("--lazy-unpickle",),
    ("--async-write", "--write-threads", "2", "--out-shard-size", "50K"),
    ("--clone-tensors",),
    ("--low-cpu-memory", "--read-to-gpu"),
]


@pytest.mark.slow
@pytest.mark.parametrize("flags", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("kind", ["DoRA, solved", "omni, factors kept of a solver", "16 bits"])
def test_options_about_memory_and_writing_change_no_byte(kind: str, flags: tuple[str, ...]) -> None:
    assert_same_bytes(made(case_of(kind), *flags), on_cpu(kind))


def test_the_pretended_device_refuses_what_a_real_one_does() -> None:
    with pretend_devices(2):
        there, other, here = torch.ones(3, device="cuda"), torch.ones(3).to("cuda:1"), torch.ones(3)
        assert isinstance(there, PretendTensor)
        for a, b in ((there, here), (here, there), (there, other)):
            with pytest.raises(RuntimeError, match="on the same device"):
                a + b
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert float((there * torch.tensor(2.0)).sum()) == 6.0
        assert there[here > 0].device == GPU
