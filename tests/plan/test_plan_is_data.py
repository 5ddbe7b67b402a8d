"""A plan as data: what it says of every tensor, what makes two plans equal, and what is compiled from it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
import zoo
from end_to_end import (
    altered,
    checkpoint,
    experts,
    fresh,
    linear,
    merge,
    plugin,
    task_arithmetic,
    tensors,
    with_method,
    written,
)
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.options import MergeOptions
from peft_adapters import adapted, pair, plus
from safetensors import safe_open

from mergekit_mm import api
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.as_json import SCHEMA, as_json, digest
from mergekit_mm.plan.build import build_plan, with_side_files
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.outputs import Piece
from mergekit_mm.plan.tensor_plan import Average, Copy, Keep, Merge, Route
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.deltas import AddDelta, MergeDelta, RescaleDelta
from mergekit_mm.tasks.merging import MergeTensors

UP = "model.language_model.layers.0.mlp.up_proj.weight"  # of llava in memory
Recipe = dict[str, Any]


def plain() -> Recipe:
    policies = {"norms": "base", "projector": "average", "vision_tower": "base"}
    return task_arithmetic(checkpoint("llava"), experts("llava")[:2], parameters=policies)


@functools.cache
def adapters() -> list[Path]:
    return [plus(checkpoint("llava"), adapter) for adapter, _ in pair("llava")]


@functools.cache
def hearing() -> Path:
    """An audio model around the language model of llava, with an adapter of PEFT on it."""
    llava = tensors(checkpoint("llava", "memory"))
    ours = {name: value for name, value in llava.items() if name.startswith(("model.language_model.", "lm_head."))}
    ear = altered(checkpoint("qwen2_audio_llama", "memory"), lambda found: {**found, **ours})
    return plus(ear, adapted("qwen2_audio_llama", 41, path=ear)[0])


def of_adapters() -> Recipe:
    return with_method("optmerge", checkpoint("llava"), adapters())


def omni(**parameters: Any) -> Recipe:
    return linear(checkpoint("llava"), checkpoint("qwen2_audio_llama"), parameters=parameters)


def damc() -> Recipe:
    return omni(composition="damc")


def damc_of_adapters() -> Recipe:
    config = with_method("task_arithmetic", checkpoint("llava"), [adapters()[0], hearing()])
    return {**config, "parameters": {"composition": "damc"}}


RECIPES = [plain, of_adapters, omni, damc, damc_of_adapters]


def actions(plan: MergePlan, role: Role) -> Counter[str]:
    return Counter(type(tensor.action).__name__ for tensor in plan if tensor.info.role is role)


# ------------------------------------------------------------------------------------------------ what a plan says


def test_actions_and_reasons_of_a_plain_merge() -> None:
    base, (first, second) = checkpoint("llava"), experts("llava")[:2]
    plan = api.plan(plain())
    assert len(plan) == len(plan.tensors) == len(tensors(base))
    tensor = plan[UP]
    assert isinstance(tensor.action, Merge)
    assert (tensor.action.method, tensor.reason) == ("task_arithmetic", "")
    assert [str(model) for model in tensor.inputs] == [str(first), str(second), str(base)]
    assert str(tensor.base) == str(base)
    assert {str(model) for model in tensor.experts} == {str(first), str(second)}
    assert {str(model): own for model, own in tensor.input_parameters.items() if own} == {
        str(first): {"weight": 0.3, "density": 1.0},
        str(second): {"weight": 0.3, "density": 1.0},
    }
    for role, action in ((Role.NORMS, Keep), (Role.PROJECTOR, Average), (Role.VISION_TOWER, Keep)):
        found = [each for each in plan if each.info.role is role]
        assert found
        assert all(isinstance(each.action, action) and f"`{role.value}: " in each.reason for each in found)
    assert str(plan["model.language_model.norm.weight"].action) == f"kept as in {base}"


def test_the_reason_of_a_default() -> None:
    plan = api.plan(with_method("optmerge", checkpoint("llava"), experts("llava")[:2]))
    assert not plan[UP].reason
    assert plan["model.vision_tower.pre_layrnorm.weight"].reason.startswith("optmerge merges only the language model")


def test_what_no_adapter_changes_is_kept_for_that_reason() -> None:
    plan = api.plan(of_adapters())
    untouched = {t.name for t in plan if t.reason == "no adapter changes it"}
    merged = {t.name for t in plan if isinstance(t.action, Merge)}
    language = {t.name for t in plan if t.info.role is Role.LANGUAGE_MODEL}
    changed = {
        f"{key.removeprefix('base_model.model.').removesuffix('.lora_A.weight')}.weight"
        for adapter in adapters()
        for key in safe_open(Path(str(adapter).split("+")[1]) / "adapter_model.safetensors", "pt").keys()
        if key.endswith("lora_A.weight")
    }
    assert merged == changed & language
    assert merged | untouched == language
    assert merged


def test_a_copy_of_a_tied_tensor() -> None:
    """A checkpoint that stores the head beside the embeddings it is tied to."""
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    config = task_arithmetic(checkpoint("qwen2_5_vl"), experts("qwen2_5_vl")[:1])
    assert not any(isinstance(tensor.action, Copy) for tensor in api.plan(config))

    def tied(path: Path) -> Path:
        found = altered(path, lambda t: {**t, head: t[table]}, tie_word_embeddings=True)
        content = json.loads((found / "config.json").read_text())
        content.get("text_config", {})["tie_word_embeddings"] = True
        (found / "config.json").write_text(json.dumps(content))
        return found

    plan = api.plan(task_arithmetic(tied(checkpoint("qwen2_5_vl")), [tied(experts("qwen2_5_vl")[0])]))
    copies = [tensor for tensor in plan if isinstance(tensor.action, Copy)]
    assert [tensor.name for tensor in copies] == [head]
    assert isinstance(copies[0].action, Copy)
    assert plan[copies[0].action.of].info.role is Role.EMBEDDINGS
    assert {output.name for output in plan.outputs} >= {head, table}
    assert len(plan.merged_tensors) == len(plan) - 1


def test_towers_of_an_omni_model_are_their_donors() -> None:
    plan = api.plan(omni())
    eye, ear = str(checkpoint("llava")), str(checkpoint("qwen2_audio_llama"))
    for role, donor in ((Role.VISION_TOWER, eye), (Role.AUDIO_TOWER, ear)):
        kept = [tensor.action for tensor in plan if tensor.info.role is role]
        assert kept
        assert all(isinstance(action, Keep) and str(action.model) == donor for action in kept)
    assert set(actions(plan, Role.LANGUAGE_MODEL)) == {"Merge"}


def test_routes_keep_whole_matrices_or_factors() -> None:
    whole, factored = api.plan(damc()), api.plan(damc_of_adapters())
    for plan in (whole, factored):
        routes = [tensor.action for tensor in plan if isinstance(tensor.action, Route)]
        assert set(actions(plan, Role.LANGUAGE_MODEL)) == {"Route"}
        assert all(dict(route.owners).keys() == {"host", "audio"} for route in routes)
    ranks = {tensor.action.rank for tensor in whole if isinstance(tensor.action, Route)}
    assert ranks == {None}
    q, k = (factored[f"model.language_model.layers.0.self_attn.{name}_proj.weight"].action for name in "qk")
    assert isinstance(q, Route)
    assert isinstance(k, Route)
    assert (q.rank, k.rank) == (8, 0)  # two adapters of rank 4, of which none has the keys
    pieces = Counter(output.piece for output in factored.outputs)
    assert pieces[Piece.FACTOR] == 2 * pieces[Piece.BASIS] > 0
    assert not pieces[Piece.OWNER]


def test_what_a_role_is_told_to_be_does_not_depend_on_paths() -> None:
    """The host's towers come first, wherever it lies."""
    copies = []
    for name, family in (("z_host", "llava"), ("a_guest", "qwen2_audio_llama")):
        path = fresh(name).parent.parent / f"{name}_of_a_report"
        shutil.copytree(checkpoint(family), path)
        copies.append(path)
    line = next(line for line in api.check(linear(*copies)).splitlines() if line.lstrip().startswith("projector"))
    assert line.index(str(copies[0])) < line.index(str(copies[1]))


def test_the_order_within_a_role_is_mean_copied_merged_kept() -> None:
    policies = [{"filter": "layers.0.input", "value": "average"}, {"filter": "layers.1", "value": "base"}]
    config = task_arithmetic(
        checkpoint("llava"), experts("llava")[:2], parameters={"norms": [*policies, {"value": "merge"}]}
    )
    line = next(line for line in api.check(config).splitlines() if line.lstrip().startswith("norms"))
    counts = "1 mean of the experts; 2 task_arithmetic; 2 kept as in"
    assert line.split(maxsplit=1)[1].startswith(counts), line


def test_the_mean_does_not_use_the_base() -> None:
    said = api.check(plain())
    assert f"{checkpoint('llava')}: 4 tensors of projector" in said.partition("Not used:")[2]


def test_a_tensor_as_text() -> None:
    told = str(api.plan(plain())[UP]).splitlines()
    assert told[0] == f"{UP}  (language_model, 128 x 64, float32)"
    assert told[1] == "  merged by task_arithmetic"
    own = "language_model.model.layers.0.mlp.up_proj.weight"
    assert next(line for line in told if line.startswith("  from ")).startswith(f"  from {experts('llava')[0]}")
    assert f"  from {checkpoint('llava')} (base model)" in "\n".join(told)
    assert own not in told  # names of inputs are those in memory


# ------------------------------------------------------------------------------------------------ equality and digest


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_plans_built_twice_are_equal(recipe: Any) -> None:
    first, second = api.plan(recipe()), api.plan(recipe())
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    assert digest(first) == digest(second)
    assert list(first) == list(second)
    assert {hash(tensor) for tensor in first} == {hash(tensor) for tensor in second}


CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"dtype": "bfloat16"}, {}),
    ({"out_dtype": "float16"}, {}),
    ({"parameters": {"norms": "merge"}}, {}),
    ({"parameters": {"lambda": 0.999}}, {}),
    ({"parameters": {"normalize": True}}, {}),
    ({"tokenizer_source": "base"}, {}),
    ({"tokenizer": {"source": "base", "pad_to_multiple_of": 64}}, {}),
    ({"tokenizer": {"source": "base", "tokens": {"<image>": {"source": {"kind": "zero"}}}}}, {}),
    ({"chat_template": "chatml"}, {}),
    ({}, {"unsafe_truncate_embeddings": True}),
    ({}, {"copy_tokenizer": False}),
]


@pytest.mark.parametrize(("change", "options"), CHANGES, ids=str)
def test_plans_differ_where_their_outputs_would(change: dict[str, Any], options: dict[str, Any]) -> None:
    before, after = api.plan(plain()), api.plan({**plain(), **change}, **options)
    assert before != after
    assert digest(before) != digest(after)


def test_plans_differ_by_the_weight_of_one_expert() -> None:
    before, changed = api.plan(plain()), plain()
    changed["models"][1]["parameters"] = {"weight": 0.30001}
    after = api.plan(changed)
    assert before != after
    assert digest(before) != digest(after)
    assert before[UP] != after[UP]
    norm = "model.language_model.norm.weight"
    assert before[norm] == after[norm]


def test_a_plan_with_side_files_says_more_than_one_without() -> None:
    config, options = MergeConfiguration.model_validate(plain()), MergeOptions()
    alone = build_plan(config, options)
    whole = with_side_files(alone, options)
    assert alone != whole
    assert digest(alone) != digest(whole)
    assert as_json(alone)["side_files"] is None


@pytest.mark.slow
def test_the_digest_is_that_of_another_process() -> None:
    path = written(damc())
    script = (
        "import sys; from mergekit_mm import api; from mergekit_mm.plan.as_json import digest; "
        "print(digest(api.plan(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "12"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == digest(api.plan(path))


def test_a_plan_cannot_be_changed() -> None:
    plan = api.plan(plain())
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.moves_rows = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan[UP].reason = "none"


# ------------------------------------------------------------------------------------------------ JSON


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_json_tells_of_every_tensor_what_is_written(recipe: Any) -> None:
    config = recipe()
    result = plugin("check", written(config), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output[result.output.index("{") :], parse_constant=pytest.fail)
    assert told["schema"] == SCHEMA == 1
    out = merge(config).out
    names = {tensor["name"] for tensor in told["tensors"]}
    assert len(names) == len(told["tensors"])
    with safe_open(out / "model.safetensors", "pt") as file:
        on_disk = {name: file.get_tensor(name) for name in file.keys()}
    assert {output["name"] for output in told["outputs"]} == on_disk.keys()
    for output in told["outputs"]:
        value = on_disk[output["name"]]
        assert output["shape"] == list(value.shape), output["name"]
        assert output["dtype"] == str(value.dtype).removeprefix("torch.")
        assert output["bytes"] == value.numel() * value.element_size()
        assert output["tensor"] in names
        assert ("owner" in output) == (output["piece"] in ("owner", "factor"))
    for tensor in told["tensors"]:
        assert tensor["inputs"].keys() <= told["inputs"].keys()
        assert tensor["action"] in ("keep", "average", "merge", "copy", "route")
        assert tensor["action"] != "keep" or tensor["model"] in tensor["inputs"]
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files >= {*told["side_files"]["copied"], *told["side_files"]["written"]}
    assert MergeConfiguration.model_validate(told["config"]) == MergeConfiguration.model_validate(
        yaml.safe_load(yaml.safe_dump(config))
    )


def test_the_rows_of_a_united_vocabulary_are_known() -> None:
    """Each donor has a token of its own, so the output has more rows than either."""
    donors = []
    for family, token in (("llava", "<eye>"), ("qwen2_audio_llama", "<ear>")):
        path = altered(checkpoint(family))
        text = (path / "tokenizer.json").read_text()
        unused = next(name for name in json.loads(text)["model"]["vocab"] if name.startswith("<unused"))
        (path / "tokenizer.json").write_text(text.replace(f'"{unused}"', f'"{token}"'))
        donors.append(path)
    config = linear(*donors)
    plan, out = api.plan(config), merge(config).out
    assert plan.output_bytes == sum(value.numel() * value.element_size() for value in tensors(out).values())
    rows = {value.shape[0] for name, value in tensors(out).items() if name.endswith("embed_tokens.weight")}
    shapes = {output.name: output.like.shape for output in plan.outputs}
    assert rows == {shapes["model.language_model.embed_tokens.weight"][0]}
    assert min(rows) > zoo.VOCAB


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [UP, "language_model.model.layers.0.mlp.up_proj.weight", "language_model.lm_head.weight", "lm_head.weight"]
)
def test_one_tensor_by_its_name_in_memory_and_on_disk(name: str) -> None:
    path = written(plain())
    result = plugin("check", path, "--tensor", name)
    assert result.exit_code == 0, result.output
    assert result.output.strip().endswith(str(api.plan(path)[name]).strip())


def test_an_unknown_tensor_is_refused_with_names_that_come_close() -> None:
    path = written(plain())
    result = plugin("check", path, "--tensor", f"{UP}s")
    assert result.exit_code == 1
    assert f"The output has no tensor '{UP}s'. Did you mean {UP}" in result.output
    assert plugin("check", path, "--tensor", UP, "--json").exit_code == 2


# ------------------------------------------------------------------------------------------------ compiled


def compiled(recipe: Recipe, *scales: float) -> list[Task[Any]]:
    """Every task below the targets of one compiler, at some strengths."""
    options = MergeOptions()
    plan = with_side_files(build_plan(MergeConfiguration.model_validate(recipe), options), options)
    compiler = Compiler(plan, options, sweep=True)
    todo: list[Task[Any]] = [task for scale in scales for task in compiler.to_model(scale).values()]
    found: dict[Task[Any], None] = {}
    while todo:
        task = todo.pop()
        if task not in found:
            found[task] = None
            todo += task.arguments().values()
    return list(found)


@pytest.mark.parametrize("method", ["optmerge", "tsv"])
def test_two_strengths_share_the_solution(method: str) -> None:
    tasks = compiled(with_method(method, checkpoint("llava"), experts("llava")[:2]), 0.5, 1.0)
    solved = [task for task in tasks if isinstance(task, MergeDelta)]
    added = [task for task in tasks if isinstance(task, AddDelta)]
    assert len(solved) == len({task.name for task in solved}) == 14
    assert sorted(Counter(task.delta.name for task in added).values()) == [2] * 14
    assert {task.scale for task in added} == {0.5, 1.0}


def test_two_strengths_of_a_method_of_mergekit_share_the_merged_tensor() -> None:
    tasks = compiled(with_method("ties", checkpoint("llava"), experts("llava")[:2]), 0.5, 1.0)
    merged = [task for task in tasks if isinstance(task, MergeTensors)]
    scaled = [task for task in tasks if isinstance(task, RescaleDelta)]
    assert len(merged) == len(tensors(checkpoint("llava")))
    assert len(scaled) == 2 * len(merged)
