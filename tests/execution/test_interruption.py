"""A merge that is ended at any moment: the same command goes on, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import fcntl
import functools
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from end_to_end import (
    Outcome,
    altered,
    checkpoint,
    experts,
    fresh,
    linear,
    merge,
    plugin,
    run,
    tensors,
    with_method,
    written,
)
from interruptions import (
    SHARDS,
    contents,
    held,
    interrupted,
    journal_of,
    killed,
    made,
    slow_merge,
    slow_method,
    staging_of,
)
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from peft_adapters import pair, plus

from mergekit_mm.execution.settings import Settings
from mergekit_mm.merge import run_multimodal_merge


@pytest.fixture(autouse=True, scope="module")
def _method() -> Iterator[None]:
    with slow_method():
        yield


CONFIG = functools.partial(slow_merge, "slow_sum")


@functools.cache
def undisturbed() -> dict[str, bytes]:
    return contents(merge(CONFIG(), *SHARDS).out)


def assert_nothing_is_left(outcome: Outcome) -> None:
    assert [path.name for path in outcome.out.parent.iterdir()] == [outcome.out.name]
    assert not [path.name for path in outcome.out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("after", "workers"), [(1, "1"), (25, "1"), (8, "2")])
def test_a_killed_merge_goes_on(after: int, workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEKIT_MM_WORKERS", workers)
    out = fresh("merged")
    done = killed(CONFIG(), *SHARDS, out=out, after=after)
    assert not out.exists()
    outcome = merge(CONFIG(), *SHARDS, out=out)
    assert f"continuing: {done} of {len(tensors(out))} tensors are done" in outcome.console
    assert contents(out) == undisturbed()
    assert_nothing_is_left(outcome)


@pytest.mark.slow
def test_a_merge_that_is_killed_again_and_again_comes_to_its_end() -> None:
    out = fresh("merged")
    steps = [killed(CONFIG(), *SHARDS, out=out, after=after) for after in (2, 12, 30)]
    assert steps == sorted(set(steps))
    assert f"continuing: {steps[-1]} of" in merge(CONFIG(), *SHARDS, out=out).console
    assert contents(out) == undisturbed()


@pytest.mark.slow
def test_the_number_of_workers_may_change_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    out = fresh("merged")
    done = killed(CONFIG(), *SHARDS, out=out, after=9)
    monkeypatch.setenv("MERGEKIT_MM_WORKERS", "3")
    assert f"continuing: {done} of" in merge(CONFIG(), *SHARDS, out=out).console
    assert contents(out) == undisturbed()


def test_an_earlier_output_is_untouched_until_the_new_one_is_complete() -> None:
    out = merge(linear(checkpoint("llava"))).out
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    killed(CONFIG(), *SHARDS, out=out, after=5)
    left = contents(out)
    assert {name: left[name] for name in before} == before
    assert {name.split("/")[0] for name in left.keys() - before.keys()} == {".merged.unfinished"}
    assert "continuing: " in merge(CONFIG(), *SHARDS, out=out).console
    assert contents(out) == {**undisturbed(), "notes.txt": b"mine"}


@pytest.mark.slow
@pytest.mark.parametrize("point", ["finished", "cleared"])
def test_an_interruption_while_the_output_is_moved(point: str) -> None:
    """Over an existing output, which cannot be replaced in one step."""
    out = merge(linear(checkpoint("llava"))).out
    (out / "notes.txt").write_text("mine")
    ended = interrupted(
        lambda: run(CONFIG(), *SHARDS, out=out), out, lambda: any(point in entry for entry in journal_of(out))
    )
    assert ended in (0, -signal.SIGKILL)
    merge(CONFIG(), *SHARDS, out=out)
    assert contents(out) == {**undisturbed(), "notes.txt": b"mine"}


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_other_interruptions(by: signal.Signals) -> None:
    out = fresh("merged")
    interrupted(lambda: run(CONFIG(), *SHARDS, out=out), out, lambda: made(out) >= 5, by)
    assert not out.exists()
    done = made(out)
    assert done >= 5
    assert f"continuing: {done} of" in merge(CONFIG(), *SHARDS, out=out).console
    assert contents(out) == undisturbed()


def test_nothing_stays_where_the_output_is_a_part_of_something_that_does_not() -> None:
    """As where an alignment writes its result."""
    out, parsed = fresh("merged"), MergeConfiguration.model_validate(CONFIG())
    options = MergeOptions(quiet=True, out_shard_size=20_000)
    work = functools.partial(run_multimodal_merge, parsed, str(out), options, None, Settings(keeps=False))
    interrupted(work, out, lambda: made(out) >= 5, signal.SIGINT)
    assert not list(out.parent.iterdir())


# ---------------------------------------------------------------------------------------------- what cannot be trusted


@pytest.mark.slow
def test_what_is_not_on_the_disk_as_the_journal_claims_is_made_again() -> None:
    """As after a crash of the machine: one tensor's bytes are others, one file is gone, and the last line is torn."""
    out = fresh("merged")
    done = killed(CONFIG(), *SHARDS, out=out, after=12)
    directory = staging_of(out)
    assert directory
    claimed = [name for entry in journal_of(out) for name in entry.get("tensors", {})]
    weights = json.loads((directory / "0" / "model.safetensors.index.json").read_text())["weight_map"]
    one, other = (directory / "0" / weights[name.partition("/")[2]] for name in (claimed[0], claimed[-1]))
    assert one != other
    one.write_bytes(one.read_bytes()[:-1] + bytes([one.read_bytes()[-1] ^ 1]))
    other.unlink()
    with (directory / "journal.jsonl").open("a") as journal:
        journal.write('{"tensors": {"0/lm_head')
    said = merge(CONFIG(), *SHARDS, out=out).console
    kept = int(said.split("continuing: ")[1].split()[0])
    assert 0 < kept < done
    assert contents(out) == undisturbed()


# ----------------------------------------------------------------------------------------------- what starts afresh


Change = Callable[[dict[str, Any], list[Path]], tuple[str, ...]]


def of_the_config(config: dict[str, Any], _: list[Path]) -> tuple[str, ...]:
    config["parameters"] = {"scaling": 0.5}
    return SHARDS


def of_options(_config: dict[str, Any], _: list[Path]) -> tuple[str, ...]:
    return ("--out-shard-size", "40K", "--random-seed", "3")


def of_an_input(_config: dict[str, Any], inputs: list[Path]) -> tuple[str, ...]:
    weights = inputs[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # the same values, but who can tell without reading all of them?
    return SHARDS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (of_the_config, "the config has changed"),
        (of_options, "the option out_shard_size and the option random_seed have changed"),
        (of_an_input, "the input {1}/model.safetensors has changed"),
    ],
)
def test_a_merge_that_has_changed_starts_afresh_and_says_why(change: Change, told: str) -> None:
    inputs = [altered(path) for path in (checkpoint("llava"), *experts("llava")[:2])]
    config, out = with_method("slow_sum", inputs[0], inputs[1:]), fresh("merged")
    killed(config, *SHARDS, out=out, after=5)
    flags = change(config, inputs)
    outcome = merge(config, *flags, out=out)
    assert f"starting afresh: {told.format(*inputs)} since this merge was interrupted" in outcome.console
    assert "continuing" not in outcome.console
    assert contents(out) == contents(merge(config, *flags).out)
    assert_nothing_is_left(outcome)


@pytest.mark.slow
def test_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command of this package, and by the environment for the stock one."""
    out = fresh("merged")
    killed(CONFIG(), *SHARDS, out=out, after=5)
    result = plugin("yaml", written(CONFIG()), out, *SHARDS, "--restart", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "continuing" not in result.output
    assert contents(out) == undisturbed()
    killed(CONFIG(), *SHARDS, out=out, after=5)
    monkeypatch.setenv("MERGEKIT_MM_RESTART", "1")
    assert "continuing" not in merge(CONFIG(), *SHARDS, out=out).console


@pytest.mark.slow
def test_what_other_merges_have_left_stays_and_the_doctor_lists_it() -> None:
    out, other = fresh("merged"), fresh("other")
    killed(CONFIG(), *SHARDS, out=other, after=5)
    other.with_name(".old.unfinished-abc").mkdir()
    out = other.parent / "merged"
    merge(CONFIG(), *SHARDS, out=out)
    assert made(other) >= 5
    with (other.parent / ".other.unfinished" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a merge at work does
        told = plugin("doctor", other.parent).output.splitlines()
    found = [line for line in told if "unfinished merge" in line]
    assert len(found) == 2
    assert any(".other.unfinished" in line and "a merge is at work in it" in line for line in found)
    assert any(".old.unfinished-abc" in line and "the same command goes on" in line for line in found)


@pytest.mark.slow
def test_of_two_merges_to_one_output_the_second_is_refused() -> None:
    out = fresh("merged")
    with held(lambda: run(CONFIG(), *SHARDS, out=out), out, lambda: made(out) >= 3):
        assert f"Another merge to {out} is running" in run(linear(checkpoint("llava")), out=out).error
    assert "continuing" in merge(CONFIG(), *SHARDS, out=out).console
    assert contents(out) == undisturbed()


# ------------------------------------------------------------------------------------------------ other kinds of output


@pytest.mark.slow
def test_a_sweep() -> None:
    recipe, out, whole = written(CONFIG()), fresh("sweep"), fresh("sweep")
    options = ("--scaling", "0.5,1", *SHARDS, "--quiet")
    assert plugin("sweep", recipe, whole, *options).exit_code == 0
    code = interrupted(lambda: plugin("sweep", recipe, out, *options), out, lambda: made(out) >= 20)
    assert code == -signal.SIGKILL
    assert not out.exists()
    result = plugin("sweep", recipe, out, *options[:-1])
    assert result.exit_code == 0, result.output
    assert "continuing: " in result.output
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_an_adapter() -> None:
    base = checkpoint("llava")
    config = with_method("slow_sum", base, [])
    config["models"] = [{"model": str(plus(base, adapter))} for adapter, _ in pair("llava")]
    recipe, out, whole = written(config), fresh("adapter"), fresh("adapter")
    assert plugin("lora", recipe, whole, "--rank", 4).exit_code == 0
    work = functools.partial(plugin, "lora", recipe, out, "--rank", 4, "--workers", 2)
    code = interrupted(work, out, lambda: sum("results" in entry for entry in journal_of(out)) >= 2)
    assert code == -signal.SIGKILL
    result = plugin("lora", recipe, out, "--rank", 4)
    assert result.exit_code == 0, result.output
    assert "factors are done" in result.output
    assert contents(out) == contents(whole)
