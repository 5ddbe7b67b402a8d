"""Several processes at one merge: the same bytes, and what is told where one of them fails."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from added_methods import added
from end_to_end import (
    altered,
    assert_nothing_left,
    checkpoint,
    experts,
    fresh,
    linear,
    merge,
    plugin,
    refused,
    run,
    with_method,
    written,
)
from interruptions import SHARDS, contents, slow_merge, staging_of
from threadpoolctl import threadpool_info

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.task_vector import TaskVector, weighted_sum

WORKERS = "MERGEKIT_MM_WORKERS"


def half_of_the_sum(task_vectors: Any) -> TaskVector:
    return weighted_sum(task_vectors, [0.5] * len(task_vectors))


@pytest.mark.parametrize("method", ["optmerge", "dare_linear"])
def test_the_same_bytes_by_any_number(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a method that solves and by one that draws, from the stock command."""
    config = with_method(method, checkpoint("llava"), experts("llava")[:2])
    if method == "dare_linear":
        config["models"] = [{**entry, "parameters": {"weight": 0.5, "density": 0.5}} for entry in config["models"]]
    found = []
    for count in ("1", "2", "5"):
        monkeypatch.setenv(WORKERS, count)
        found.append(contents(merge(config, *SHARDS).out))
    assert found[0] == found[1] == found[2]


def test_few_tensors_are_not_worth_a_second_process() -> None:
    processes = fresh("processes")

    def noting(task_vectors: Any) -> TaskVector:
        processes.write_text(str(os.getpid()))
        return half_of_the_sum(task_vectors)

    with added(task_vector_method("noting", "Noting", "")(noting)) as name:
        merge(slow_merge(name), *SHARDS)
    assert processes.read_text() == str(os.getpid())


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_number_without_a_meaning_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, value)
    refused(linear(checkpoint("llava")), f"{WORKERS}={value} is not a number of processes")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_library_computes_with_one_thread(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else sums would round otherwise on another machine, and threads wait for each other beside other work."""
    counts = fresh("counts")

    def counting(task_vectors: Any) -> TaskVector:
        found = [torch.get_num_threads(), *(each["num_threads"] for each in threadpool_info())]
        with counts.open("a") as file:
            file.write(f"{os.getpid()} {max(found)}\n")
        return half_of_the_sum(task_vectors)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setenv(WORKERS, workers)
    try:
        with added(task_vector_method("counting", "Counting", "")(counting)) as name:
            merge(slow_merge(name), *SHARDS)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    lines = [line.split() for line in counts.read_text().splitlines()]
    assert {count for _, count in lines} == {"1"}
    assert (str(os.getpid()) in {process for process, _ in lines}) == (workers == "1")


# ------------------------------------------------------------------------------------------------------------ failures


def deadly(times: int, how: str, counter: Path) -> Any:
    """A solver that ends its worker so many times, and then works."""

    def solve(task_vectors: Any) -> TaskVector:
        assert multiprocessing.parent_process(), "this would end the tests"
        with counter.open("a") as file:
            file.write(".")
        if counter.stat().st_size <= times:
            if how == "memory":
                raise MemoryError("of no use")
            if how == "limit":
                used = re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())
                assert used is not None
                resource.setrlimit(resource.RLIMIT_AS, (int(used[1]) * 1024 + (64 << 20), resource.RLIM_INFINITY))
                torch.zeros(1 << 28)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return half_of_the_sum(task_vectors)

    return solve


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("signal", "A worker was ended by SIGKILL"),
        ("memory", "A worker had too little memory"),
        ("limit", "A worker had too little memory"),
    ],
)
def test_a_worker_that_dies_is_told_and_its_work_is_done_by_others(
    how: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKERS, "2")
    with added(task_vector_method("deadly", "Deadly", "")(deadly(1, how, fresh("counter")))) as name:
        outcome = merge(slow_merge(name), *SHARDS)
    assert outcome.console.count(told) == 1
    line = next(line for line in outcome.console.splitlines() if told in line)
    assert "proj.weight" in line
    assert "once more, by 1 at a time" in line
    with added(task_vector_method("deadly", "Deadly", "")(half_of_the_sum)) as name:
        assert contents(outcome.out) == contents(merge(slow_merge(name), *SHARDS).out)


@pytest.mark.slow
def test_work_that_ends_every_worker_is_an_error_and_what_is_done_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, "2")
    out, counter = fresh("merged"), fresh("counter")
    with added(task_vector_method("deadly", "Deadly", "")(deadly(1000, "signal", counter))) as name:
        outcome = run(slow_merge(name), *SHARDS, out=out)
    assert isinstance(outcome.exception, SystemExit), repr(outcome.exception)
    assert "for the second time while it made" in outcome.error
    assert not out.exists()
    assert "the same command goes on" in outcome.console
    assert staging_of(out)


def test_an_exception_in_a_worker_is_what_it_would_be_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, "2")

    def broken(task_vectors: Any) -> TaskVector:
        raise ZeroDivisionError

    with added(task_vector_method("broken", "Broken", "")(broken)) as name:
        outcome = run(slow_merge(name), *SHARDS)
    assert type(outcome.exception) is ZeroDivisionError
    assert "in broken" in str(outcome.exception.__cause__)
    assert "please report it" in outcome.exception.__notes__[0]


def test_a_refusal_in_a_worker_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, "2")
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    broken = altered(experts("llava")[0], lambda found: {**found, name: found[name] / 0})
    config = with_method("optmerge", checkpoint("llava"), [broken])
    refused(config, "layers.1.mlp.down_proj", "NaN or infinite", flags=SHARDS)


def test_a_disk_that_is_too_small_shows_before_any_work() -> None:
    """As on a full disk: the system takes no file of more than a few bytes."""

    def never(task_vectors: Any) -> TaskVector:
        raise AssertionError("nothing should be computed")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with added(task_vector_method("never", "Never", "")(never)) as name:
        config = slow_merge(name)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            outcome = run(config, "--quiet")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.console.startswith("Error: File too large: ")
    assert_nothing_left(outcome)


@pytest.mark.slow
def test_the_commands_of_this_package_have_the_option() -> None:
    recipe, out = written(linear(checkpoint("llava"))), fresh("merged")
    result = plugin("yaml", recipe, out, "--workers", 2, *SHARDS)
    assert result.exit_code == 0, result.output
    assert contents(out) == contents(merge(linear(checkpoint("llava")), *SHARDS).out)
    assert WORKERS not in os.environ
    for command in ("sweep", "lora", "yaml"):
        assert plugin(command, recipe, out, "--workers", 0).exit_code == 2
