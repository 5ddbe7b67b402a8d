"""The recipes in merge_yamls/, without the weights they name.

Each is planned over its models at full size: the published configs, tensor names and shapes, with holes for values.
And each is run, with toys of the same architectures in the place of its models, against what its comments promise.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
import zoo
from end_to_end import (
    Tensors,
    altered,
    assert_close,
    checkpoint,
    edit_json,
    experts,
    fresh,
    load,
    mean,
    merge,
    plugin,
    save_model,
    side_files,
    sum_of_deltas,
    tensors,
    written,
)
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from peft_adapters import factors as random_factors
from peft_adapters import plus, written_adapter
from published_models import INTERNVL2_5_1B, QWEN2_5_7B, QWEN2_VL_7B, full_size, internvl_shapes, linked, without_values
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from mergekit_mm.errors import MergeError
from mergekit_mm.merge import plan_merge
from mergekit_mm.methods.optmerge import PRESETS
from mergekit_mm.methods.reference import robust_merge
from mergekit_mm.plan.build import build_plan
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.tensor_plan import Average, Keep, Merge

pytestmark = pytest.mark.long

RECIPES = Path(__file__).parents[2] / "merge_yamls"
Recipe = dict[str, Any]

# ------------------------------------------------------------------------------------------------------ the recipes


def recipe(name: str) -> Recipe:
    found: Recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    return found


def ids(recipe: Recipe) -> list[str]:
    """The models that a recipe names, base first."""
    return [recipe["base_model"], *(entry["model"] for entry in recipe["models"])]


def over(recipe: Recipe, find: Callable[[str], Path]) -> Recipe:
    """The recipe with a directory in the place of each id, and nothing else changed."""
    moved = deepcopy(recipe)
    moved["base_model"] = str(find(recipe["base_model"]))
    for entry in moved["models"]:
        entry["model"] = str(find(entry["model"]))
    return moved


def check(recipe: Recipe) -> str:
    return str(plan_merge(MergeConfiguration.model_validate(recipe), MergeOptions()))


# per recipe, what becomes of the tensors of each role; from the architectures, counted by hand
QWEN2_VL_ROLES = {
    ("language_model", "merge"): 28 * 7,  # q, k, v, o, gate, up, down
    ("embeddings", "base"): 1,
    ("lm_head", "base"): 1,
    ("norms", "base"): 28 * 2 + 1,
    ("biases", "base"): 28 * 3,  # of q, k, v
    ("vision_tower", "base"): 32 * 12 + 1,  # two norms, qkv, proj, fc1, fc2 with biases; the patch embedding
    ("projector", "base"): 6,  # a norm and two linear layers with biases
}
ROLES = {
    "qwen2_vl_7b_optmerge": QWEN2_VL_ROLES,
    "qwen2_vl_7b_baselines": QWEN2_VL_ROLES,
    "internvl2_5_1b_optmerge": {
        ("language_model", "merge"): 24 * 7,
        ("embeddings", "base"): 1,
        ("lm_head", "base"): 1,
        ("norms", "base"): 24 * 2 + 1,
        ("biases", "base"): 24 * 3,
        ("vision_tower", "base"): 24 * 14 + 4,
        ("projector", "merge"): 3,
        ("projector", "base"): 3,  # its biases
    },
    "text_llm_into_qwen2_5_vl_7b": {
        ("language_model", "merge"): 28 * 7,
        ("embeddings", "base"): 1,
        ("lm_head", "base"): 1,
        ("norms", "merge"): 28 * 2 + 1,
        ("biases", "merge"): 28 * 3,
        ("vision_tower", "base"): 32 * 12 + 1,  # as Qwen2-VL, with norms without bias but a third linear layer
        ("projector", "base"): 5,
    },
    "qwen2_5_vl_7b_ocr_spatial_medical": {
        ("language_model", "merge"): 28 * 7,
        ("embeddings", "merge"): 1,
        ("lm_head", "merge"): 1,
        ("norms", "merge"): 28 * 2 + 1,
        ("biases", "merge"): 28 * 3,
        ("vision_tower", "merge"): 32 * 12 + 1,
        ("projector", "merge"): 5,
    },
    "llava_1_5_7b_mm_mergebench": {
        ("language_model", "merge"): 32 * 7,
        ("embeddings", "base"): 1,
        ("lm_head", "base"): 1,
        ("norms", "base"): 32 * 2 + 1,
        ("vision_tower", "base"): 24 * 16
        + 3
        + 4,  # two norms, q, k, v, out, fc1, fc2 with biases; embeddings; two norms
        ("projector", "average"): 4,
    },
    "qwen3_vl_2b_mergemedbench": {
        ("language_model", "merge"): 28 * 7,
        ("embeddings", "base"): 1,  # the head is tied to it
        ("norms", "base"): 28 * 4 + 1,  # those of queries and keys too
        ("vision_tower", "base"): 24 * 12 + 3,  # the patch embedding with its bias, the table of positions
        ("projector", "base"): 4 * 6,  # the merger, and three for deeper layers
    },
}
PARAMETERS = {  # published as 8.29, 0.94, 8.29, 7.06 and 2.13 billion
    "qwen2_vl_7b_optmerge": 8_291_375_616,
    "qwen2_vl_7b_baselines": 8_291_375_616,
    "internvl2_5_1b_optmerge": 938_193_024,
    "text_llm_into_qwen2_5_vl_7b": 8_292_166_656,
    "qwen2_5_vl_7b_ocr_spatial_medical": 8_292_166_656,
    "llava_1_5_7b_mm_mergebench": 7_063_427_072,
    "qwen3_vl_2b_mergemedbench": 2_127_532_032,
}


ELSEWHERE = ("easy_vqa_", "dare_ties_", "omni")  # in test_easy_vqa.py and below, test_dare.py, test_omni_recipes.py


def test_every_recipe_is_tested() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith(ELSEWHERE)} == set(ROLES)


@functools.cache
def planned(name: str) -> MergePlan:
    """The plan of a recipe over its models at full size."""
    return build_plan(MergeConfiguration.model_validate(over(recipe(name), full_size)), MergeOptions())


POLICIES = {Keep: "base", Average: "average", Merge: "merge"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROLES)
def test_plan_at_full_size(name: str) -> None:
    plan = planned(name)
    done = Counter((tensor.info.role.value, POLICIES[type(tensor.action)]) for tensor in plan)
    assert done == ROLES[name]
    assert len(plan) == len(plan.inputs.base_checkpoint.tensors)
    disk = plan.inputs.base_checkpoint.disk
    assert sorted(output.name for output in plan.outputs) == sorted(disk)
    assert sum(math.prod(tensor.shape) for tensor in disk.values()) == PARAMETERS[name]
    assert plan.output_bytes == 2 * PARAMETERS[name]
    assert str(plan.inputs.base) == str(full_size(recipe(name)["base_model"]))
    assert len(plan.inputs.checkpoints) == len(ids(recipe(name)))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen2-VL-7B", {"visual.blocks.31.mlp.fc2.bias", "visual.merger.ln_q.weight"}),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {"visual.blocks.31.mlp.gate_proj.weight", "visual.merger.mlp.2.bias"}),
    ],
)
def test_full_size_names_are_those_on_the_hub(name: str, published: set[str]) -> None:
    index = json.loads((full_size(name) / "model.safetensors.index.json").read_text())["weight_map"]
    assert published | {"model.layers.27.self_attn.v_proj.bias", "model.norm.weight", "lm_head.weight"} <= index.keys()
    assert {key.split(".")[0] for key in index} == {"model", "visual", "lm_head"}


@pytest.mark.parametrize(
    ("name", "preset", "scaling"), [("qwen2_vl_7b_optmerge", "lora", 1.0), ("internvl2_5_1b_optmerge", "full", 0.1)]
)
def test_settings_of_the_released_code(name: str, preset: str, scaling: float) -> None:
    """300 steps, rank min(out, in) / 5 for five experts; SGD from the mean for adapters, Adam from the sum else."""
    merges = [tensor for tensor in planned(name) if isinstance(tensor.action, Merge)]
    assert len(merges) == sum(count for (_, policy), count in ROLES[name].items() if policy == "merge")
    for tensor in merges:
        given = {key: value for key, value in tensor.parameters.items() if value is not None}
        assert (tensor.action, given) == (Merge("optmerge"), {"preset": preset, "scaling": scaling, "svc": False})
        assert tensor.base == planned(name).inputs.base
        assert set(tensor.inputs) == set(planned(name).inputs.checkpoints)
    settings = PRESETS[preset]
    assert settings.iterations == 300
    assert settings.rank((3584, 18944), 5) == 3584 // 5
    adapters = (settings.optimizer, settings.learning_rate, settings.momentum, settings.init)
    assert adapters == (("sgd", 1e-4, 0.9, "mean") if preset == "lora" else ("adam", 1e-5, 0.9, "sum"))


# ------------------------------------------------------------------------------------------------------ refusals


def other_generation(found: Recipe) -> None:
    found["models"][2]["model"] = str(full_size("Qwen/Qwen2.5-VL-7B-Instruct"))


def adapter(found: Recipe) -> None:
    found["models"][0]["model"] += "+someone/adapter"


def adapter_directory(found: Recipe) -> None:
    path = fresh("adapter")
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")
    found["models"][0]["model"] = str(path)


def quantized(found: Recipe) -> None:
    path = linked(full_size(recipe("qwen2_vl_7b_optmerge")["base_model"]))
    (path / "config.json").unlink()
    (path / "config.json").write_text(json.dumps({**QWEN2_VL_7B, "quantization_config": {"quant_method": "awq"}}))
    found["models"][0]["model"] = str(path)


def misspelt(found: Recipe) -> None:
    found["parameters"]["scalling"] = 0.3


def no_policy(found: Recipe) -> None:
    found["parameters"]["vision_tower"] = "keep"


def no_base(found: Recipe) -> None:
    del found["base_model"]


def other_format(found: Recipe) -> None:
    found["models"][0]["model"] = str(checkpoint("internvl", "plain", "expert_0"))


def other_size(found: Recipe) -> None:
    """Qwen2.5-3B: 36 layers of width 2048, tied embeddings."""
    config = {
        **QWEN2_5_7B,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    found["models"][0]["model"] = str(without_values(json.dumps(config)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("qwen2_vl_7b_optmerge", other_generation, ["qwen2_5_vl", "qwen2_vl", "different multimodal architectures"]),
        ("qwen2_vl_7b_optmerge", adapter, ["someone/adapter is neither a local directory nor"]),
        ("qwen2_vl_7b_optmerge", adapter_directory, ["config.json"]),
        ("qwen2_vl_7b_optmerge", quantized, ["quantized", "awq"]),
        ("qwen2_vl_7b_optmerge", misspelt, ["'scalling'", "'scaling'"]),
        ("qwen2_vl_7b_optmerge", no_policy, ["vision_tower", "'keep'", "base | average | merge"]),
        ("qwen2_vl_7b_optmerge", no_base, ["base"]),
        ("internvl2_5_1b_optmerge", other_format, ["internvl_chat", "different multimodal architectures"]),
        (
            "text_llm_into_qwen2_5_vl_7b",
            other_size,
            ["layers.0.self_attn.q_proj.weight: (2048, 2048), not (3584, 3584)", "model.layers.28."],
        ),
    ],
)
def test_refusals(name: str, change: Callable[[Recipe], None], told: list[str]) -> None:
    wrong = over(recipe(name), full_size)
    change(wrong)
    with pytest.raises(MergeError) as refusal:
        check(wrong)
    assert [each for each in told if each not in str(refusal.value)] == [], refusal.value


def test_check_on_the_command_line() -> None:
    """`mergekit-mm check`: the plan and exit code 0, or the reasons and exit code 1."""
    good, bad = over(recipe("internvl2_5_1b_optmerge"), full_size), over(recipe("internvl2_5_1b_optmerge"), full_size)
    other_format(bad)
    for config, code, told in ((good, 0, "168 optmerge"), (bad, 1, "different multimodal architectures")):
        result = plugin("check", written(config))
        assert result.exit_code == code, result.output
        assert told in result.output
        assert "Traceback" not in result.output


@pytest.mark.slow
def test_vocabularies_of_different_size() -> None:
    """Qwen2.5-0.5B into InternVL2.5-1B: 151936 rows, tied, against 151674; both tables of the base stay."""
    text = {**INTERNVL2_5_1B["llm_config"], "vocab_size": 151936, "tie_word_embeddings": True}
    found = {
        "merge_method": "task_arithmetic",
        "base_model": str(full_size("OpenGVLab/InternVL2_5-1B")),
        "models": [{"model": str(without_values(json.dumps(text))), "parameters": {"weight": 0.3}}],
    }
    said = check(found)
    assert re.search(r"language_model +168 task_arithmetic\n", said)
    for role in ("embeddings", "lm_head"):
        assert re.search(rf"{role} +1 kept as in ", said), said
    assert said.count("151674 rows") == 2
    assert "151936" in said


# -------------------------------------------------------------------------------------------- run, with toys


def five(three: list[Path]) -> list[Path]:
    return [*three, *(altered(path) for path in three[:2])]


def with_toys(recipe: Recipe, toys: list[Path], **more: Any) -> Recipe:
    """The recipe over toys, in the order of its ids, writing float32 so that its values can be compared."""
    found = dict(zip(ids(recipe), toys, strict=True))
    return {**over(recipe, found.__getitem__), "out_dtype": "float32", **more}


def is_language_matrix(name: str, tensor: torch.Tensor) -> bool:
    return ".layers." in name and "vis" not in name and tensor.ndim == 2


def moved(before: Tensors, after: Tensors) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_run_qwen2_vl() -> None:
    toys = [checkpoint("qwen2_vl"), *five(experts("qwen2_vl"))]
    outcome = merge(with_toys(recipe("qwen2_vl_7b_optmerge"), toys))
    before = tensors(toys[0])
    assert moved(before, outcome.tensors) == {n for n, t in before.items() if is_language_matrix(n, t)}
    load(outcome.out, zoo.FAMILIES["qwen2_vl"].cls)


def test_the_experts_chat_template() -> None:
    """The base of the recipe has none; the experts' is taken if they agree, and with processor_source in any case."""
    base = altered(checkpoint("qwen2_vl"))
    others = [altered(path) for path in five(experts("qwen2_vl"))]
    for path in (base, *others):
        for file in ("chat_template.json", "chat_template.jinja"):
            (path / file).unlink(missing_ok=True)
        edit_json(path / "processor_config.json", chat_template=None)
        edit_json(path / "tokenizer_config.json", chat_template=None)
    for path in others:
        (path / "chat_template.json").write_text(json.dumps({"chat_template": "of the experts"}))
    toys = [base, *others]
    files = side_files(merge(with_toys(recipe("qwen2_vl_7b_optmerge"), toys)).out)
    assert files["chat_template.jinja"] == b"of the experts"
    (others[3] / "chat_template.json").write_text(json.dumps({"chat_template": "of the OCR expert"}))
    chosen = with_toys(recipe("qwen2_vl_7b_optmerge"), toys)
    chosen["parameters"]["processor_source"] = str(others[3])
    assert side_files(merge(chosen).out) == side_files(others[3])


def rows() -> list[list[str]]:
    """The table in the comments of the recipe for baselines: name, method, lambda, normalize, density, rescale."""
    text = (RECIPES / "qwen2_vl_7b_baselines.yaml").read_text()
    pattern = r"^#   (\S.*?) {2,}(task_arithmetic|ties|dare_linear) +([\d.]+) +(true|false) +([\d.]+) +(true|false)"
    return [list(row) for row in re.findall(pattern, text, re.MULTILINE)]


def own_rows() -> list[list[str]]:
    """The rows of that table by the plugin's methods: merge_method, scaling."""
    text = (RECIPES / "qwen2_vl_7b_baselines.yaml").read_text()
    return [list(row) for row in re.findall(r"^#   \S.*? {2,}(\w+) +with `scaling: ([\d.]+)`", text, re.MULTILINE)]


def trimmed(base: Tensors, others: list[Tensors], density: float, strength: float = 0.3) -> Tensors:
    """TIES by its definition: the largest entries of each delta, a vote on the sign, the mean of those that agree."""
    merged = {}
    for name, value in base.items():
        kept = []
        for other in others:
            delta = other[name].double() - value.double()
            size = int(density * delta.numel()) or 1
            kept.append(torch.where(delta.abs() >= delta.abs().flatten().sort().values[-size], delta, 0.0))
        stack = torch.stack(kept)
        agree = (stack != 0) & ((stack > 0) == (stack.sum(0) >= 0))
        merged[name] = value.double() + strength * torch.where(agree, stack, 0.0).sum(0) / agree.sum(0).clamp(min=1)
    return merged


@pytest.mark.slow
def test_run_baselines() -> None:
    toys = [checkpoint("qwen2_vl"), *five(experts("qwen2_vl"))]
    before, others = tensors(toys[0]), [tensors(path) for path in toys[1:]]
    language = {name for name, tensor in before.items() if is_language_matrix(name, tensor)}
    expected = {
        "Weight Average": mean(others),
        "Task Arithmetic": sum_of_deltas(before, others, 0.3),
        "TIES": trimmed(before, others, 0.2),
    }
    assert [row[0] for row in rows()] == [*expected, "TA w/ DARE"]
    written_out = recipe("qwen2_vl_7b_baselines")
    for name, method, scale, normalize, density, rescale in rows():
        values = {"lambda": float(scale), "normalize": normalize == "true", "density": float(density)}
        values["rescale"] = rescale == "true"
        found = with_toys(written_out, toys, merge_method=method)
        found["parameters"] = {**written_out["parameters"], **values}
        if name == "Task Arithmetic":
            assert found == with_toys(written_out, toys)
        after = merge(found, "--random-seed", "42").tensors
        assert moved(before, after) == language, name
        if name in expected:
            assert_close({n: after[n] for n in language}, {n: expected[name][n] for n in language}, 1e-6)
        else:  # random, so only how far it moves along the sum of all deltas is known: 0.3 of it on average
            total = torch.cat([torch.stack([o[n] - before[n] for o in others]).sum(0).flatten() for n in language])
            step = torch.cat([(after[n] - before[n]).flatten() for n in language])
            share = float(step @ total / total.square().sum())
            assert 0.29 < share < 0.31, name
    assert [row[0] for row in own_rows()] == ["tsv", "iso_c", "wudi"]
    for method, scale in own_rows():
        found = with_toys(written_out, toys, merge_method=method)
        found["parameters"] = {"scaling": float(scale)}
        assert moved(before, merge(found).tensors) == language, method


def test_run_the_suite_of_orthomerge() -> None:
    """TIES over every tensor, and over the language model alone where the comment says how."""
    name, toys = "qwen2_5_vl_7b_ocr_spatial_medical", [checkpoint("qwen2_5_vl"), *experts("qwen2_5_vl")]
    before, others = tensors(toys[0]), [tensors(path) for path in toys[1:]]
    language = {n for n, tensor in before.items() if is_language_matrix(n, tensor)}
    written_out = recipe(name)
    after = merge(with_toys(written_out, toys)).tensors
    expected = trimmed(before, others, 0.2, 1.0)
    assert_close({n: after[n] for n in language}, {n: expected[n] for n in language}, 1e-6)
    assert {n.split(".")[0] for n in moved(before, after)} == {"model", "visual", "lm_head"}
    kept = re.findall(r"^  # (\w+): base$", (RECIPES / f"{name}.yaml").read_text(), re.MULTILINE)
    written_out["parameters"] |= dict.fromkeys(kept, "base")
    assert moved(before, merge(with_toys(written_out, toys)).tensors) == language


def trained_by_llava(base: Tensors, seed: int) -> tuple[Path, dict[str, tuple[torch.Tensor, torch.Tensor]], Tensors]:
    """An adapter as LLaVA's own code writes it, with its factors (scaling included) and its projector by our names."""
    generator = torch.Generator().manual_seed(seed)
    path, alpha, rank = fresh("adapter"), 8, 4
    path.mkdir()
    factors, content = {}, {}
    for name in sorted(name for name, tensor in base.items() if is_language_matrix(name, tensor)):
        rows, columns = base[name].shape
        b, a = (torch.randn(shape, generator=generator) * 0.1 for shape in ((rows, rank), (rank, columns)))
        own = f"base_model.model.model.{name[name.index('layers.') :].removesuffix('.weight')}"
        content |= {f"{own}.lora_A.weight": a, f"{own}.lora_B.weight": b}
        factors[name] = (alpha / rank * b, a)
    torch.save(content, path / "adapter_model.bin")
    theirs = {"linear_1": "mm_projector.0", "linear_2": "mm_projector.2"}
    projector = {n: t + torch.randn(t.shape, generator=generator) * 0.1 for n, t in base.items() if "linear_" in n}
    named = {re.sub(r".*(linear_\d)", lambda found: theirs[found[1]], name): t for name, t in projector.items()}
    torch.save({f"base_model.model.model.{n}": t for n, t in named.items()}, path / "non_lora_trainables.bin")
    about = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (path / "adapter_config.json").write_text(
        json.dumps({**about, "base_model_name_or_path": "./models/llava-v1.5-7b"})
    )
    (path / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    return path, factors, projector


def test_run_mm_mergebench() -> None:
    """Adapters as LLaVA's own code leaves them: RobustMerge of their factors, and the mean of their projectors."""
    base = checkpoint("llava")
    before = tensors(base)
    trained = [trained_by_llava(before, seed) for seed in range(8)]
    toys = [base, *(Path(f"{base}+{path}") for path, _, _ in trained)]
    after = merge(with_toys(recipe("llava_1_5_7b_mm_mergebench"), toys)).tensors
    for name in (name for name, tensor in before.items() if is_language_matrix(name, tensor)):
        pairs = [factors[name] for _, factors, _ in trained]
        expected = before[name].double() + robust_merge([(b.double(), a.double()) for b, a in pairs], density=0.2)
        assert torch.allclose(after[name].double(), expected, atol=1e-5), name
    for name in trained[0][2]:
        assert torch.allclose(after[name], torch.stack([own[name] for _, _, own in trained]).mean(0), atol=1e-6), name
    assert moved(before, after) == {*trained[0][1], *trained[0][2]}


def test_run_mergemedbench() -> None:
    base = checkpoint("qwen3_vl")
    before = tensors(base)
    language = {name for name, tensor in before.items() if is_language_matrix(name, tensor)}
    shapes = {name.removesuffix(".weight"): tuple(before[name].shape) for name in language}
    adapters = [written_adapter(base, random_factors(shapes, seed=seed)) for seed in range(8)]
    found = with_toys(recipe("qwen3_vl_2b_mergemedbench"), [base, *(plus(base, adapter) for adapter in adapters)])
    outcome = merge(found)
    assert moved(before, outcome.tensors) == language
    load(outcome.out, zoo.FAMILIES["qwen3_vl"].cls)


TOY_INTERNVL = deepcopy(INTERNVL2_5_1B)
TOY_INTERNVL["llm_config"].update(hidden_size=28, intermediate_size=48, num_hidden_layers=2, vocab_size=50)
TOY_INTERNVL["vision_config"].update(hidden_size=16, intermediate_size=32, num_hidden_layers=2, image_size=56)


def toy_internvl(seed: int) -> Path:
    """Base (seed 0) or expert: near the base, whose values have a seed of their own."""
    path = fresh()
    path.mkdir()
    start, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=start) for name, shape in internvl_shapes(TOY_INTERNVL)}
    if seed:
        found = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=own) for name, tensor in found.items()}
    save_file(found, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({**TOY_INTERNVL, "torch_dtype": "float32"}))
    (path / "modeling_internvl_chat.py").write_text('raise SystemExit("remote code was run")\n')
    return path


def test_run_internvl() -> None:
    toys = [toy_internvl(seed) for seed in range(6)]
    found = recipe("internvl2_5_1b_optmerge")
    outcome = merge(with_toys(found, toys))
    before = tensors(toys[0])
    language = {name for name, tensor in before.items() if is_language_matrix(name, tensor)}
    assert moved(before, outcome.tensors) == language | {"mlp1.0.weight", "mlp1.1.weight", "mlp1.3.weight"}
    assert side_files(outcome.out) == side_files(toys[0])
    del found["parameters"]["projector"]  # as its comment says
    assert moved(before, merge(with_toys(found, toys)).tensors) == language


def toy_text(base: Path, shift: float, seed: int, **more: Any) -> Path:
    """A text-only twin of the VLM's decoder, `shift` away from it."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**{**zoo.text("qwen2"), **more}))
    decoder = tensors(base)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if decoder[name].shape == tensor.shape:
                tensor.copy_(decoder[name] + shift * torch.randn(tensor.shape))
    return save_model(model)


def test_run_text_llm_into_a_vlm() -> None:
    """merged = VLM + 0.3 (fine-tune - its start) in the decoder; all else is the VLM's."""
    vlm = checkpoint("qwen2_5_vl")
    start = toy_text(vlm, 0.05, 1)
    tuned = toy_text(start, 0.01, 2)
    found = recipe("text_llm_into_qwen2_5_vl_7b")
    outcome = merge(with_toys(found, [vlm, tuned, start]))
    before, fine, origin = tensors(vlm), tensors(tuned), tensors(start)
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    expected = {
        name: tensor.double() + 0.3 * (fine[name].double() - origin[name].double())
        if name in fine and name not in tables
        else tensor
        for name, tensor in before.items()
    }
    assert moved(before, outcome.tensors) == {name for name in before if name in fine} - tables
    assert_close(outcome.tensors, expected, 1e-6)
    load(outcome.out, zoo.FAMILIES["qwen2_5_vl"].cls)
    # without the model it started from, as the comment says: 0.7 VLM + 0.3 fine-tune
    del found["models"][1]
    mixed = merge(with_toys(found, [vlm, tuned])).tensors
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.allclose(mixed[name], 0.7 * before[name] + 0.3 * fine[name], atol=1e-6)


def test_text_llm_of_another_vocabulary_needs_no_policies() -> None:
    """What the comment on embeddings says: with other vocabularies, both tables stay without being asked."""
    vlm = checkpoint("qwen2_5_vl")
    tuned, start = (toy_text(vlm, 0.01, seed, vocab_size=zoo.VOCAB + 8) for seed in (3, 4))
    found = recipe("text_llm_into_qwen2_5_vl_7b")
    del found["parameters"]
    outcome = merge(with_toys(found, [vlm, tuned, start]))
    before = tensors(vlm)
    assert not moved(before, outcome.tensors) & {"model.embed_tokens.weight", "lm_head.weight"}
    assert "model.layers.0.mlp.up_proj.weight" in moved(before, outcome.tensors)


# ---------------------------------------------------------------------------------- recipes of the examples


@pytest.mark.parametrize("path", sorted(RECIPES.glob("easy_vqa_*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_the_demo(path: Path) -> None:
    """They run on models in this repository, by paths from its root."""
    config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
    models = [Path(str(model.model.path)) for model in config.referenced_models()]
    root = RECIPES.parent
    if not all((root / model / "config.json").is_file() for model in models):
        pytest.skip("its models have not been made")
    before = Path.cwd()
    os.chdir(root)
    try:
        said = str(plan_merge(config, MergeOptions()))
    finally:
        os.chdir(before)
    assert config.merge_method in said
