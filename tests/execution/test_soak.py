"""Merges that are killed at random moments, and disks and inputs that fail while they run.

After each the output is the earlier one, the new one, or nothing that loads; and the same command ends with the bytes
of an undisturbed merge. `make soak` takes more moments, and other ones each time; MERGEKIT_MM_SOAK is their number, and
MERGEKIT_MM_SOAK_SEED draws them.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from added_methods import added
from end_to_end import (
    altered,
    checkpoint,
    experts,
    fresh,
    linear,
    merge,
    mergekit_yaml,
    plugin,
    run,
    with_method,
    written,
)
from interruptions import SHARDS, after, contents, made, slow_merge, slow_method
from mounts import in_own_mounts, mount_memory

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.task_vector import TaskVector, weighted_sum

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("MERGEKIT_MM_SOAK_SEED", "1"))
MOMENTS = range(int(os.environ.get("MERGEKIT_MM_SOAK", "4")))
CONFIG = functools.partial(slow_merge, "slow_sum")


@pytest.fixture(autouse=True, scope="module")
def _method() -> Iterator[None]:
    with slow_method():
        yield


@functools.cache
def undisturbed() -> tuple[dict[str, bytes], float]:
    """The output of a merge that nothing disturbs, and the seconds that it takes."""
    merge(linear(checkpoint("llava")))  # what is imported once does not count
    start = time.monotonic()
    found = contents(merge(CONFIG(), *SHARDS).out)
    return found, time.monotonic() - start


@functools.cache
def earlier() -> Path:
    return merge(linear(checkpoint("llava"))).out


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("number", MOMENTS)
def test_a_kill_at_any_moment(number: int, existing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, seconds = undisturbed()
    drawn = random.Random(f"{SEED} {number} {existing}")
    out = fresh("merged")
    before = contents(earlier()) if existing else {}
    if existing:
        shutil.copytree(earlier(), out)
    moments = []
    while len(moments) < 5 and (not moments or drawn.random() < 0.5):
        monkeypatch.setenv("MERGEKIT_MM_WORKERS", drawn.choice("123"))
        moments.append(drawn.uniform(0, 1.2 * seconds))
        code = after(lambda: run(CONFIG(), *SHARDS, out=out), moments[-1])
        assert code in (0, -signal.SIGKILL)
        left = {name: content for name, content in contents(out).items() if not name.startswith(".merged.unfinished/")}
        is_whole = left in (before, expected) and (left == expected if code == 0 else True)
        assert is_whole or "config.json" not in left, (SEED, moments)
    merge(CONFIG(), *SHARDS, out=out)
    assert contents(out) == expected, (SEED, moments)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_kills_of_a_sweep() -> None:
    recipe, whole, out = written(CONFIG()), fresh("sweep"), fresh("sweep")
    options = ("--scaling", "0.5,1", *SHARDS, "--quiet")
    start = time.monotonic()
    assert plugin("sweep", recipe, whole, *options).exit_code == 0
    drawn, seconds = random.Random(SEED), time.monotonic() - start
    for _ in MOMENTS[:3]:
        after(lambda: plugin("sweep", recipe, out, *options), drawn.uniform(0, 1.2 * seconds))
        for output in out.glob("scaling_*"):
            assert contents(output) == contents(whole / output.name)  # each appears as a whole
    assert plugin("sweep", recipe, out, *options).exit_code == 0
    assert contents(out) == contents(whole)


# ------------------------------------------------------------------------------------------------------- other failures


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("how", ["cut short", "rewritten", "gone"])
def test_an_input_that_changes_meanwhile(how: str, workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No output is made of an input as it was and as it is."""
    monkeypatch.setenv("MERGEKIT_MM_WORKERS", workers)
    inputs = [altered(path) for path in (checkpoint("llava"), *experts("llava")[:2])]
    file = inputs[1] / "model.safetensors"
    before, calls = file.read_bytes(), fresh("calls")

    def changing(task_vectors: Any) -> TaskVector:
        with calls.open("a") as counter:
            counter.write(".")
        if calls.stat().st_size == 4:
            if how == "gone":
                file.unlink()
            else:
                file.write_bytes(before[: len(before) // 2] if how == "cut short" else before)
        return weighted_sum(task_vectors, [0.5] * len(task_vectors))

    with added(task_vector_method("changing", "Changing", "")(changing)) as name:
        config = with_method(name, inputs[0], inputs[1:])
        outcome = run(config, *SHARDS, "--quiet")
        assert f"The input {file} has changed since the merge was planned" in outcome.error
        assert not outcome.out.exists()
        file.write_bytes(before)
        assert contents(merge(config, *SHARDS, out=outcome.out).out) == contents(merge(config, *SHARDS).out)


def test_a_disk_that_is_full_later() -> None:
    """Another program takes the rest of a small disk while a merge runs, and gives it back."""
    mergekit_yaml()
    told, has_config, done, again, is_equal = in_own_mounts(_on_a_small_disk, fresh("disk"))
    assert told.splitlines()[-1].startswith("Error: No space left on device")
    assert not has_config
    assert done
    assert f"continuing: {done} of" in again
    assert is_equal


def _on_a_small_disk(disk: Path) -> tuple[str, bool, int, str, bool]:
    mount_memory(disk, "4m")
    filler, calls = disk / "filler", []

    def filling(task_vectors: Any) -> TaskVector:
        calls.append(1)
        if len(calls) == 8:
            _fill(filler)
        time.sleep(0.02)
        return weighted_sum(task_vectors, [0.5] * len(task_vectors))

    out = disk / "merged"
    with added(task_vector_method("filling", "Filling", "")(filling)) as name:
        first = run(slow_merge(name), *SHARDS, "--quiet", out=out)
        done, has_config = made(out), (out / "config.json").exists()
        filler.unlink()
        again = merge(slow_merge(name), *SHARDS, out=out)
        is_equal = contents(out) == contents(merge(slow_merge(name), *SHARDS).out)
    return first.console, has_config, done, again.console, is_equal


def _fill(path: Path) -> None:
    """Write until the disk has no room left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            return
