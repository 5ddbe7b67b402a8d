"""Merges and finished outputs are uploaded to a hub on this machine; what cannot be uploaded is refused before a merge.

The hub's library reads its environment when it is imported, so all commands run in one process of their own, in the
order in which they stand here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from end_to_end import checkpoint, experts, fresh, plugin, task_arithmetic, tensors, written
from hub_uploads import Account, Files, UploadHub, taking_uploads
from peft_adapters import factors, plus, written_adapter
from safetensors.torch import load, save_file

from mergekit_mm.api import MergeError, push

pytestmark = pytest.mark.slow

OWNER, OTHER = "lab", "elsewhere"
ACCOUNTS = {
    "writer": Account("ann", namespaces=frozenset({OWNER, "ann"})),
    "narrow": Account("ann", role="fineGrained", namespaces=frozenset({"ann"})),
    "reader": Account("ann", role="read", namespaces=frozenset({OWNER})),
    "cut off": Account("ann", is_cut_off=True),
}
OLD_MODEL = {"config.json": b"{}", "model-00001-of-00002.safetensors": b"one", "notes.txt": b"of the owner"}


@dataclass
class World:
    """The hub, the outputs on this machine, and how the commands ended."""

    hub: UploadHub
    out: Path  # of the merge that is uploaded at once
    adapter: Path
    never: Path  # of merges that are refused
    shards: Path  # a model in several files, with a report beside it
    stock: Path  # as stock mergekit leaves a merge
    foreign: Path  # a model without a recipe
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)

    def said(self, command: str, code: int = 0) -> str:
        """What a command said that ended with this exit code and no bug."""
        ended = self.ended[command]
        assert (ended["code"], ended["bug"]) == (code, None), ended
        text: str = ended["said"]
        return text

    def error(self, command: str) -> str:
        """The one line in which a command was refused."""
        said = self.said(command, 1)
        error = said[said.index("Error:") :].strip()
        assert len(error.splitlines()) == 1, error
        return error

    def card(self, repo: str) -> tuple[dict[str, Any], str]:
        """Metadata and text of an uploaded card."""
        _, head, body = self.hub.files(repo)["README.md"].decode().split("---\n", 2)
        return yaml.safe_load(head), body


def licensed(source: Path, name: str, **card: Any) -> Path:
    """A copy of a model whose card says this."""
    path = fresh(name)
    shutil.copytree(source, path)
    (path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# {name}\n")
    return path


def recipe() -> dict[str, Any]:
    own = {"license": "apache-2.0", "pipeline_tag": "image-text-to-text"}
    base, *others = [
        licensed(path, f"model_{at}", **own) for at, path in enumerate([checkpoint("llava"), *experts("llava")[:2]])
    ]
    return task_arithmetic(base, others)


def adapters() -> dict[str, Any]:
    base = checkpoint("llava")
    shape = tuple(tensors(base)["language_model.model.layers.0.mlp.up_proj.weight"].shape)
    module = "model.language_model.layers.0.mlp.up_proj"
    made = [written_adapter(base, factors({module: shape}, seed=seed)) for seed in (0, 1)]  # type: ignore[dict-item]
    return task_arithmetic(base, [plus(base, each) for each in made])


def in_shards() -> Path:
    """A model of two files of weights, with a report in a folder, and with files that are no part of it."""
    path = fresh("sharded_merge")
    path.mkdir()
    (path / "config.json").write_bytes((checkpoint("llava") / "config.json").read_bytes())
    parts = {f"model-0000{i}-of-00002.safetensors": {f"weight_{i}": torch.full((64, 64), float(i))} for i in (1, 2)}
    for name, part in parts.items():
        save_file(part, path / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "mergekit_config.yml").write_text(yaml.safe_dump(task_arithmetic(Path("org/base"), [Path("org/expert")])))
    (path / "report").mkdir()
    (path / "report" / "report.md").write_text("| model | mean |\n|---|---:|\n| merge | 81.1 |\n")
    (path / "report" / "report.png").write_bytes(b"a figure")
    for name in (".env", ".cache/huggingface/x", "checkpoint-10/optimizer.pt"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("not to be seen")
    return path


def as_stock_mergekit_leaves_it() -> Path:
    path = fresh("stock_merge")
    shutil.copytree(checkpoint("llava"), path)
    config = task_arithmetic(Path("org/base"), [Path("org/expert"), Path("org/base+org/adapter")])
    (path / "mergekit_config.yml").write_text(yaml.safe_dump(config))
    (path / "README.md").write_text(
        "---\nbase_model:\n- org/expert\ntags:\n- mergekit\nmodel-index:\n- name: mine\n---\n# stock_merge\n\n"
        "Made by hand.\n\n## stock_merge\n"
    )
    return path


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    hub = UploadHub(ACCOUNTS)
    hub.hold("lab/occupied", OLD_MODEL)
    hub.hold("lab/seen", {}, private=False)
    hub.hold("lab/versions", OLD_MODEL)
    hub.cuts["lab/flaky"] = 1
    hub.unavailable.add("lab/later")
    foreign = fresh("foreign")
    shutil.copytree(checkpoint("llava"), foreign)
    reported = fresh("report")
    with taking_uploads(hub):
        found = World(
            hub,
            fresh("first"),
            fresh("adapter_out"),
            fresh("never"),
            in_shards(),
            as_stock_mergekit_leaves_it(),
            foreign,
        )
        shutil.copytree(found.shards / "report", reported)
        (reported / "report.png").write_bytes(b"another figure")
        config, of_adapters = written(recipe()), written(adapters())
        yaml_never = ["mergekit-mm", "yaml", config, found.never, "--push"]
        push = ["mergekit-mm", "push"]
        found.ended = _run(
            hub,
            {
                "merged": ["mergekit-mm", "yaml", config, found.out, "--push", "lab/merged"],
                "again": [*push, found.out, "lab/merged"],
                "adapter": ["mergekit-mm", "lora", of_adapters, found.adapter, "--push", "lab/adapter", "--public"],
                "no name": [*yaml_never, "just_a_name"],
                "bad name": [*yaml_never, "lab/what--ever"],
                "no token": ["HF_TOKEN=", *yaml_never, "lab/x"],
                "unknown token": ["HF_TOKEN=of nobody", *yaml_never, "lab/x"],
                "reader": ["HF_TOKEN=reader", *yaml_never, "lab/x"],
                "narrow": ["HF_TOKEN=narrow", *yaml_never, "lab/x"],
                "narrow, there": ["HF_TOKEN=narrow", *yaml_never, "lab/merged"],
                "unreachable": ["HF_TOKEN=cut off", *yaml_never, "lab/x"],
                "occupied": [*yaml_never, "lab/occupied"],
                "no merge": [*push, found.out.parent, "lab/x"],
                "occupied push": [*push, found.shards, "lab/occupied"],
                "overwriting": [*push, found.shards, "lab/occupied", "--overwrite"],
                "public": [*push, found.stock, "lab/seen"],
                "public too": [*push, found.stock, "lab/seen", "--public"],
                "branch": [*push, found.stock, "lab/versions", "--revision", "second", "--quiet"],
                "flaky": [*push, found.shards, "lab/flaky"],
                "down": [*push, found.shards, "lab/later", "--report", reported],
                "resumed": [*push, found.shards, "lab/later", "--report", reported],
                "no report": [*push, found.shards, "lab/x", "--report", found.out],
                "without push": ["mergekit-mm", "yaml", config, found.never, "--public"],
                "foreign": [*push, found.foreign, "lab/foreign"],
            },
        )
        yield found


def _run(hub: UploadHub, commands: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(fresh("hub_home")), "HF_TOKEN": "writer", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "helpers" / "hub_commands.py"],
        env={**inherited, **own, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        input=json.dumps([[str(word) for word in command] for command in commands.values()]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


def local(out: Path) -> Files:
    """What an output holds beside its card."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != "README.md"}


# ------------------------------------------------------------------------------------------------ a merge, uploaded


def test_a_merge_is_uploaded_and_private(world: World) -> None:
    assert world.said("merged").splitlines()[-1] == f"{world.hub.url}/lab/merged"
    assert world.hub.repos["lab/merged"].private
    there = world.hub.files("lab/merged")
    assert {name: there[name] for name in there if name != "README.md"} == local(world.out)


def test_the_address_is_all_that_goes_to_the_standard_output(world: World) -> None:
    assert world.ended["again"]["printed"] == f"{world.hub.url}/lab/merged\n"


def test_the_card_of_an_uploaded_merge(world: World) -> None:
    metadata, body = world.card("lab/merged")
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-text-to-text"
    assert {"mergekit", "merge", "mergekit-mm"} <= set(metadata["tags"])
    assert "base_model" not in metadata  # its inputs are on no hub, of which it says so
    assert "which nobody else has" in world.said("merged")
    assert body.lstrip().startswith("# merged\n")
    assert "The licence of all inputs is apache-2.0." in body
    assert "# first\n" in (world.out / "README.md").read_text()


def test_the_same_output_again_sends_nothing(world: World) -> None:
    world.said("again")
    assert len(world.hub.repos["lab/merged"].commits) == 2
    assert [repo for repo, _ in world.hub.sent].count("lab/merged") == 1


def test_an_adapter_is_uploaded_for_everybody_to_see(world: World) -> None:
    world.said("adapter")
    assert not world.hub.repos["lab/adapter"].private
    metadata, body = world.card("lab/adapter")
    assert metadata["library_name"] == "peft"
    assert "license" not in metadata
    assert "No licence is known of" in body
    assert "The card names no licence. No licence is known of" in world.said("adapter")
    assert load(world.hub.files("lab/adapter")["adapter_model.safetensors"])


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("no name", ["'just_a_name' is no name of a repository", "ORG/NAME"]),
        ("bad name", ["'lab/what--ever' is no name of a repository"]),
        ("no token", ["log in with `hf auth login` or set HF_TOKEN", "/settings/tokens"]),
        ("unknown token", ["The hub does not take the token", "HF_TOKEN"]),
        ("reader", ["'token of ann' of ann reads only", "/settings/tokens"]),
        ("narrow", ["The token may not write to lab/x", "namespace lab", "/settings/tokens"]),
        ("narrow, there", ["The token may not write to lab/merged", "/settings/tokens"]),
        ("unreachable", ["The upload to lab/x failed, as http://127.0.0.1", "cannot be reached"]),
        ("occupied", ["lab/occupied on the hub already holds config.json, model-00001", "--overwrite"]),
    ],
)
def test_what_cannot_be_uploaded_is_not_merged(world: World, command: str, named: list[str]) -> None:
    error = world.error(command)
    assert all(each in error for each in named), error
    assert not world.never.exists()
    assert "lab/x" not in world.hub.repos


def test_a_folder_without_a_model_is_refused_before_the_hub_is_asked(world: World) -> None:
    assert "holds neither a model nor an adapter" in world.error("no merge")
    assert "lab/x" not in world.hub.repos


def test_options_of_an_upload_alone_are_refused(world: World) -> None:
    assert "are for --push" in world.said("without push", 2)


def test_a_repository_that_everybody_sees_is_not_taken_for_a_private_one(world: World) -> None:
    assert "lab/seen on the hub is public: give --public" in world.error("public")
    world.said("public too")
    assert "config.json" in world.hub.files("lab/seen")


def test_offline() -> None:
    """This process has HF_HUB_OFFLINE, as every process of the tests."""
    result = plugin("push", checkpoint("llava"), "lab/x")
    assert result.exit_code == 1
    assert "Nothing can be uploaded to lab/x while HF_HUB_OFFLINE is set" in result.output
    assert len(result.output.splitlines()) == 1
    with pytest.raises(MergeError, match="HF_HUB_OFFLINE"):
        push(checkpoint("llava"), "lab/x")


# ------------------------------------------------------------------------------------------------ what is there already


def test_another_model_is_replaced_only_when_asked(world: World) -> None:
    error = world.error("occupied push")
    assert "config.json" in error
    assert "notes.txt" not in error  # which stays in any case
    world.said("overwriting")
    there = world.hub.files("lab/occupied")
    assert there["config.json"] != OLD_MODEL["config.json"]
    assert there["notes.txt"] == OLD_MODEL["notes.txt"]
    assert there["model-00001-of-00002.safetensors"] == (world.shards / "model-00001-of-00002.safetensors").read_bytes()


def test_a_branch_begins_empty(world: World) -> None:
    assert world.said("branch") == f"{world.hub.url}/lab/versions/tree/second\n"
    assert world.hub.files("lab/versions") == OLD_MODEL
    assert "notes.txt" not in world.hub.files("lab/versions", "second")
    assert "config.json" in world.hub.files("lab/versions", "second")


def test_a_connection_that_is_cut_is_taken_up_again(world: World) -> None:
    world.said("flaky")
    assert world.hub.cuts["lab/flaky"] == 0
    assert "model-00002-of-00002.safetensors" in world.hub.files("lab/flaky")


def test_what_arrived_is_not_sent_again(world: World) -> None:
    error = world.error("down")
    assert "The hub is down for maintenance" in error
    assert "the same command again" in error
    world.said("resumed")
    assert "model-00002-of-00002.safetensors" in world.hub.files("lab/later")
    assert len(world.hub.sent) == len(set(world.hub.sent))


def test_hidden_files_and_leftovers_of_training_are_not_uploaded(world: World) -> None:
    assert not [name for name, content in world.hub.files("lab/later").items() if content == b"not to be seen"]


# ------------------------------------------------------------------------------------------------ cards


def test_the_report_is_shown_by_the_card(world: World) -> None:
    metadata, body = world.card("lab/later")
    assert metadata["base_model"] == ["org/base", "org/expert"]
    assert metadata["base_model_relation"] == "merge"
    section = body[body.index("## Results") :]
    assert "](report.png)" in section
    assert "| merge | 81.1 |" in section
    assert world.hub.files("lab/later")["report.png"] == b"another figure"
    assert "merge_method: task_arithmetic" in body
    in_output = body.replace("# later", "# flaky").replace("](report.png)", "](report/report.png)")
    assert world.card("lab/flaky") == (metadata, in_output)  # it is found there by itself
    assert "holds no report.md" in world.error("no report")


def test_the_card_of_stock_mergekit_is_completed(world: World) -> None:
    metadata, body = world.card("lab/seen")
    assert metadata["base_model"] == ["org/expert"]  # as it was
    assert metadata["base_model_relation"] == "merge"
    assert metadata["library_name"] == "transformers"
    assert metadata["tags"] == ["mergekit"]
    assert metadata["model-index"] == [{"name": "mine"}]
    assert body.strip() == "# seen\n\nMade by hand.\n\n## stock_merge"
    assert "org/adapter" in world.said("public too")  # of whose licence nothing is known


def test_a_model_without_a_recipe(world: World) -> None:
    assert "has no mergekit_config.yml: the card tells neither" in world.said("foreign")
    metadata, body = world.card("lab/foreign")
    assert metadata == {"library_name": "transformers", "tags": ["mergekit", "merge"]}
    assert body.lstrip().startswith("# foreign\n")
