"""Disks that fail while a merge runs, and clocks that are wrong: one clear error, and the same command goes on."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from added_methods import added
from end_to_end import (
    Outcome,
    altered,
    checkpoint,
    experts,
    fresh,
    linear,
    merge,
    mergekit_yaml,
    run,
    with_method,
)
from interruptions import SHARDS, contents, killed, made, slow_merge, slow_method, staging_of
from mounts import Operation, failing_disk, in_own_mounts
from peft_adapters import pair, plus

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.task_vector import TaskVector, weighted_sum

WORKERS = "MERGEKIT_MM_WORKERS"
CONFIG = functools.partial(slow_merge, "slow_sum")


@pytest.fixture(autouse=True, scope="module")
def _method() -> Iterator[None]:
    with slow_method():
        yield


@functools.cache
def undisturbed() -> dict[str, bytes]:
    return contents(merge(CONFIG(), *SHARDS).out)


def assert_one_error(said: str, file: Path) -> None:
    """The last line is the error, names the file, and is not a traceback."""
    assert said.splitlines()[-1] == f"Error: Input/output error: {file}", said
    assert "Traceback" not in said
    assert "the same command goes on" in said


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(("kind", "workers"), [("model", "1"), ("model", "2"), ("adapter", "1")])
def test_an_input_whose_disk_fails(kind: str, workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over an earlier output, which stays as it is."""
    monkeypatch.setenv(WORKERS, workers)
    merge(linear(checkpoint("llava")))
    if kind == "model":
        inputs = [altered(path) for path in experts("llava")[:2]]
        file = inputs[1] / "model.safetensors"
    else:
        adapters = [adapter for adapter, _ in pair("llava")]
        inputs = [plus(checkpoint("llava"), adapter) for adapter in adapters]
        file = adapters[1] / "adapter_model.safetensors"
    said, done, kept, again, is_equal = in_own_mounts(_failing_input, inputs, file)
    assert_one_error(said, file)
    assert done
    assert kept
    assert f"continuing: {done} of" in again
    assert is_equal


def _failing_input(inputs: list[Path], file: Path) -> tuple[str, int, bool, str, bool]:
    out = merge(linear(checkpoint("llava"))).out
    before, calls, mended = contents(out), fresh("calls"), fresh("mended")
    with failing_disk(file, Operation.READ) as disk:

        def failing(task_vectors: Any) -> TaskVector:
            with calls.open("a") as counter:
                counter.write(".")
            merged = weighted_sum(task_vectors, [0.5] * len(task_vectors))
            if calls.stat().st_size >= 8 and not mended.exists():
                time.sleep(0.2)  # the journal waits for the disk
                disk.fail(forget=file.name.startswith("adapter"))  # An adapter is read more than once.
            return merged

        flags = (*SHARDS, "--no-write-model-card")  # for which all files would be read at once
        with added(task_vector_method("failing", "Failing", "")(failing)) as name:
            config = with_method(name, checkpoint("llava"), inputs)
            first = run(config, *flags, "--quiet", out=out)
            done, left = made(out), contents(out)
            disk.mend()
            mended.touch()
            again = merge(config, *flags, out=out)
            is_equal = contents(out) == contents(merge(config, *flags).out)
    return first.console, done, {name: left[name] for name in before} == before, again.console, is_equal


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.FSYNC])
@pytest.mark.parametrize("what", ["weights", "journal.jsonl"])
def test_an_output_whose_disk_fails(what: str, operation: Operation) -> None:
    out = fresh("merged")
    killed(CONFIG(), *SHARDS, out=out, after=8)
    undisturbed()
    said, file, again = in_own_mounts(_failing_output, out, what, operation)
    assert_one_error(said, file)
    assert "continuing: " in again
    assert contents(out) == undisturbed()


def _failing_output(out: Path, what: str, operation: Operation) -> tuple[str, Path, str]:
    directory = staging_of(out)
    assert directory
    file = directory / what if what != "weights" else sorted((directory / "0").glob("*.safetensors"))[-1]
    with failing_disk(file, operation) as disk:
        disk.fail()
        failed: Outcome = run(CONFIG(), *SHARDS, "--quiet", out=out)
    return failed.console, file, merge(CONFIG(), *SHARDS, out=out).console


# -------------------------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_was_set_in_between(years: int) -> None:
    """What an interrupted merge has left looks as if it came from the future, or was older than its inputs."""
    mergekit_yaml()
    inputs = [altered(path) for path in (checkpoint("llava"), *experts("llava")[:2])]
    _date(inputs[1], 40)
    config, out = with_method("slow_sum", inputs[0], inputs[1:]), fresh("merged")
    done = killed(config, *SHARDS, out=out, after=8)
    directory = staging_of(out)
    assert directory
    _date(directory, years)
    assert f"continuing: {done} of" in merge(config, *SHARDS, out=out).console
    assert contents(out) == contents(merge(config, *SHARDS).out)


def test_an_input_that_was_dated_back_or_forward_starts_a_merge_afresh() -> None:
    inputs = [altered(path) for path in (checkpoint("llava"), *experts("llava")[:2])]
    config, out = with_method("slow_sum", inputs[0], inputs[1:]), fresh("merged")
    for years in (-20, 20):
        killed(config, *SHARDS, out=out, after=5)
        _date(inputs[2], years)
        assert f"the input {inputs[2] / 'model.safetensors'} has changed" in run(config, *SHARDS, out=out).console


def _date(directory: Path, years: int) -> None:
    """Date a directory and all in it so many years from now."""
    then = time.time() + years * 365 * 86400
    for path in (*directory.rglob("*"), directory):
        os.utime(path, (then, then))
