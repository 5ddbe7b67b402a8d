"""Models of the hub, served by a server of this machine: looked at by their headers, merged, and merged again offline.

The hub's library reads its environment when it is imported, so commands run in processes of their own, as
few as will do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from end_to_end import (
    altered,
    assert_same_bytes,
    checkpoint,
    experts,
    fresh,
    merge,
    sharded,
    task_arithmetic,
    tensors,
    written,
)
from hub_server import FOLDER, Hub, Request, serving
from peft_adapters import factors, written_adapter
from safetensors.torch import save_file
from test_unmerged_factors import unmerged

pytestmark = [pytest.mark.slow, pytest.mark.long]

FAMILY = "llava"
VOCODER = "vocoder/model.safetensors"
HEADER = 100_001  # bytes: what the hub's library asks for first, of whatever file


@dataclass
class World:
    """The hub, and what the commands made of it."""

    hub: Hub
    local: dict[str, Path]  # repository -> the folder that it serves
    home: Path  # of the hub's library
    online: dict[str, dict[str, Any]] = field(default_factory=dict)
    looked: list[Request] = field(default_factory=list)  # for content of weights, by `check` and `inspect`
    merged: Path = Path()
    merge: subprocess.CompletedProcess[str] | None = None
    offline: dict[str, dict[str, Any]] = field(default_factory=dict)
    again: Path = Path()
    unfinished: Path = Path()


def merge_of(base: object, *others: object) -> dict[str, Any]:
    return task_arithmetic(Path(str(base)), [Path(str(each)) for each in others])


def with_factors() -> Path:
    """A model with unmerged factors, whose scaling is told by the values of tensors, and with a long header."""
    path, _ = unmerged(FAMILY, 5)
    (path / "adapter_config.json").unlink()
    found = tensors(path)
    layers = [name.removesuffix(".lora_A.default.weight") for name in found if "lora_A" in name]
    found |= {f"{layer}.alpha": torch.tensor(12.0) for layer in layers}
    save_file(found, path / "model.safetensors", metadata={"format": "pt", "training": "." * HEADER})
    return path


def cut_off(model: Path) -> Path:
    path = altered(model)
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    return path


def pickled(model: Path) -> Path:
    path = altered(model)
    (path / "model.safetensors").unlink()
    torch.save(tensors(model), path / "pytorch_model.bin")
    return path


NEEDED = ("token2wav/campplus.onnx", "token2wav/flow.pt", f"{FOLDER}pytorch_model.bin")
NEVER_READ = ("pytorch_model.bin", "model.onnx", "onnx/model.onnx", "a[1].onnx", "optimizer.pt")


def with_vocoder(model: Path, value: float) -> Path:
    """A copy of a model with weights in a folder, which a merge copies and does not merge."""
    path = altered(model)
    (path / VOCODER).parent.mkdir()
    save_file({"weight": torch.full((1 << 16,), value)}, path / VOCODER)
    return path


def with_other_files(model: Path) -> Path:
    path = altered(model)
    for name in (*NEEDED, *NEVER_READ):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(name.encode())
    return path


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    base, (first, second, third) = with_vocoder(checkpoint(FAMILY), 0.0), experts(FAMILY)
    crowded = with_other_files(third)
    module = "model.language_model.layers.0.mlp.up_proj"
    shape = tensors(base)["language_model.model.layers.0.mlp.up_proj.weight"].shape
    adapter = written_adapter(base, factors({module: tuple(shape)}))
    local = {
        "org/base": base,
        "org/expert": first,
        "org/sharded": with_vocoder(sharded(second, 2), 1.0),
        "org/flaky": crowded,
        "org/broken": crowded,
        "org/gated": first,
        "org/adapter": adapter,
        "org/factors": with_factors(),
        "org/pickled": pickled(first),
        "org/cut": cut_off(first),
    }
    named = fresh("named")  # names of folders in which messages have them in the order of the repositories'
    for name, folder in local.items():
        (named / name).parent.mkdir(parents=True, exist_ok=True)
        (named / name).symlink_to(folder)
    local = {name: named / name for name in local}
    repos = {name: {"main": folder} for name, folder in local.items()}
    repos["org/expert"]["v2"] = second
    hub = Hub(repos, frozenset({"org/gated"}), {"org/broken": 200_000}, {"org/flaky"})
    with serving(hub):
        found = World(hub, local, fresh("hub_home"))
        _look(found)
        _merge(found)
        _merge_offline(found)
        yield found


def _look(found: World) -> None:
    """Every command that merges nothing, and a merge that gets no further than its downloads."""
    here = found.local
    both = merge_of("org/base", "org/expert", "org/sharded")
    adapted = merge_of("org/base", "org/base+org/adapter", "org/expert")
    found.unfinished = fresh("unfinished")
    commands: dict[str, list[object]] = {
        "check": ["mergekit-mm", "check", written(both)],
        "check local": ["mergekit-mm", "check", written(_replaced(both, here))],
        "adapter": ["mergekit-mm", "check", written(adapted)],
        "adapter local": ["mergekit-mm", "check", written(_replaced(adapted, here))],
        "inspect": ["mergekit-mm", "inspect", "org/sharded"],
        "inspect local": ["mergekit-mm", "inspect", here["org/sharded"]],
        "factors": ["mergekit-mm", "inspect", "org/factors"],
        "factors local": ["mergekit-mm", "inspect", here["org/factors"]],
        "pickled": ["mergekit-mm", "inspect", "org/pickled"],
        "cut": ["mergekit-mm", "inspect", "org/cut"],
        "copy": ["mergekit-mm", "check", written(merge_of("org/base", "org/flaky", "org/broken"))],
        "gated": ["mergekit-mm", "inspect", "org/gated"],
        "missing": ["mergekit-mm", "inspect", "org/nothing"],
        "revision": ["mergekit-mm", "inspect", "org/base@nowhere"],
        "broken": ["mergekit-yaml", written(merge_of(here["org/base"], "org/broken")), found.unfinished],
    }
    found.online = _run(commands, found.hub, found.home)
    found.looked = [r for r in found.hub.of_weights() if r.repo != "org/broken"]


def _merge(found: World) -> None:
    found.merged = fresh("merged")
    command = [Path(sysconfig.get_path("scripts")) / "mergekit-yaml", written(_merged()), found.merged]
    found.merge = subprocess.run(command, env=_environment(found.hub, found.home), capture_output=True, text=True)


def _merge_offline(found: World) -> None:
    found.again = fresh("again")
    commands: dict[str, list[object]] = {
        "merge": ["mergekit-yaml", written(_merged()), found.again],
        "check": ["mergekit-mm", "check", written(_merged())],
        "looked at": ["mergekit-yaml", written(merge_of("org/base", "org/sharded")), fresh("none")],
    }
    found.offline = _run(commands, found.hub, found.home, HF_HUB_OFFLINE="1")


def _merged() -> dict[str, Any]:
    return merge_of("org/base", "org/expert@v2", "org/flaky", "org/base+org/adapter")


def _replaced(config: dict[str, Any], places: dict[str, Path]) -> dict[str, Any]:
    """A config with local folders in the place of repositories."""
    text = json.dumps(config)
    for name, folder in places.items():
        text = text.replace(name, str(folder))
    result: dict[str, Any] = json.loads(text)
    return result


def _environment(hub: Hub, home: Path, **variables: str) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_CACHE", "HF_TOKEN")}
    return {**inherited, **own, "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables}


def _run(commands: dict[str, list[object]], hub: Hub, home: Path, **variables: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "helpers" / "hub_commands.py"],
        env=_environment(hub, home, **variables),
        input=json.dumps([[str(word) for word in command] for command in commands.values()]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


def said(ended: dict[str, Any], code: int = 0) -> str:
    """What a command said that ended with this exit code and no bug."""
    assert (ended["code"], ended["bug"]) == (code, None), ended
    text: str = ended["said"]
    return text


# ------------------------------------------------------------------------------------------------ looking at models


@pytest.mark.parametrize("command", ["check", "adapter", "inspect", "factors"])
def test_a_model_of_the_hub_is_told_of_as_its_local_copy_is(world: World, command: str) -> None:
    ours, local = said(world.online[command]), said(world.online[f"{command} local"])
    for name, folder in world.local.items():
        local = local.replace(str(folder), name)
    lines = [line for line in ours.splitlines() if not line.startswith("  note: Only the headers of")]
    assert lines == local.splitlines()
    told = f"of org/sharded differs from that of org/base, which the output has: {VOCODER}"
    assert (told in ours) == (command == "check")
    assert ("Only the headers of org/base, org/" in ours) == (command in ("check", "adapter"))


def test_only_headers_of_weights_are_fetched(world: World) -> None:
    looked = [request for request in world.looked if request.repo != "org/pickled"]
    names = ("base", "expert", "sharded", "flaky", "factors", "cut")
    assert {request.repo for request in looked} == {f"org/{name}" for name in names}
    assert min((world.local[r.repo] / r.file).stat().st_size for r in looked) > 2 * HEADER
    assert all(not request.whole and request.nbytes < 2 * HEADER for request in looked), looked


def test_pickled_weights_are_downloaded_with_a_word(world: World) -> None:
    assert said(world.online["pickled"]).count("org/pickled has pickled weights") == 1
    assert [request.whole for request in world.looked if request.repo == "org/pickled"] == [True]


def test_the_scaling_of_unmerged_factors_is_read(world: World) -> None:
    assert "alpha in the weights" in said(world.online["factors"])
    single = sum(name.endswith(".alpha") for name in tensors(world.local["org/factors"]))
    first, rest, *values = [r.nbytes for r in world.looked if r.repo == "org/factors"]
    assert first == HEADER < rest
    assert values == [4] * single


def test_a_copy_is_known_by_the_hashes_of_the_hub(world: World) -> None:
    assert "The weights of org/broken are identical to those of org/flaky" in said(world.online["copy"])
    assert "identical" not in said(world.online["check"])


# ------------------------------------------------------------------------------------------------ merging


def test_merge_of_models_of_the_hub(world: World) -> None:
    """The revision that is named, a download that broke off and was taken up again, and an adapter: all after `check`
    has left the small files of the same models in the cache."""
    assert world.merge is not None
    assert world.merge.returncode == 0, world.merge.stderr
    assert "Trying to resume" in world.merge.stderr
    local = {"org/expert@v2": experts(FAMILY)[1], **world.local}
    expected = merge(_replaced(_merged(), local)).tensors
    assert_same_bytes(tensors(world.merged), expected)


def test_the_card_of_a_merge_names_the_models_of_the_hub(world: World) -> None:
    metadata = yaml.safe_load((world.merged / "README.md").read_text().split("---\n")[1])
    assert metadata["base_model"] == ["org/base", "org/adapter", "org/expert", "org/flaky"]
    assert metadata["base_model_relation"] == "merge"


def test_what_no_merge_reads_is_not_downloaded(world: World) -> None:
    """Formats that are left out beside the weights may be what a folder is about."""
    (snapshot,) = (world.home / "hub" / "models--org--flaky" / "snapshots").iterdir()
    served = {path.relative_to(world.local["org/flaky"]) for path in world.local["org/flaky"].rglob("*")}
    got = {path.relative_to(snapshot) for path in snapshot.rglob("*")}
    assert {str(path) for path in served - got} == {*NEVER_READ, "onnx"}
    assert {Path(name) for name in NEEDED} <= got


def test_merge_offline(world: World) -> None:
    said(world.offline["merge"])
    assert_same_bytes(tensors(world.again), tensors(world.merged))
    assert "Only the headers" not in said(world.offline["check"])


def test_what_was_only_looked_at_is_not_merged_offline(world: World) -> None:
    told = said(world.offline["looked at"], 1)
    assert "Only a part of org/sharded is in the cache" in told
    assert "Run this once with a network" in told


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("gated", ["org/gated is gated on the hub", "ask for access at http://127.0.0.1", "HF_TOKEN"]),
        ("missing", ["org/nothing is neither a local directory nor a public model", "HF_TOKEN"]),
        ("revision", ["org/base has no revision nowhere"]),
        ("cut", ["org--cut", "cannot be read"]),
        ("broken", ["The download of org/broken broke off", "what was downloaded already is kept."]),
    ],
)
def test_one_line_tells_what_is_wrong_with_a_model(world: World, command: str, named: list[str]) -> None:
    told = said(world.online[command], 1)
    error = told[told.index("Error:") :]
    assert all(each in error for each in named), error
    assert len(error.splitlines()) <= 2, error


def test_a_download_that_breaks_leaves_no_output(world: World) -> None:
    said(world.online["broken"], 1)
    assert not world.unfinished.exists()
    assert not list(world.unfinished.parent.glob(".*unfinished*"))
