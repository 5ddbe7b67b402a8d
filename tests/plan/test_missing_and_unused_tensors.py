"""Every tensor of every input is accounted for before anything is done, and a failure leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
import zoo
from end_to_end import (
    Tensors,
    altered,
    assert_close,
    assert_same_bytes,
    checkpoint,
    experts,
    fresh,
    llama,
    load,
    merge,
    refused,
    run,
    sharded,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
    with_tensor,
    without,
)
from forks import program
from mergekit.merge_methods import merge_tensors
from transformers import LlavaForConditionalGeneration

# a tensor of the language model and one of a tower, per family and layout, as they are called on disk
NAMES = {
    ("llava", "plain"): ("language_model.model.layers.1.mlp.up_proj.weight", "multi_modal_projector.linear_1.weight"),
    ("llava", "hub"): (
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
    ),
    ("llava", "memory"): ("model.language_model.norm.weight", "model.vision_tower.encoder.layers.1.mlp.fc1.bias"),
    ("qwen2_vl", "plain"): ("model.layers.0.mlp.down_proj.weight", "visual.merger.mlp.0.weight"),
    ("qwen3_vl_moe", "plain"): (
        "model.language_model.layers.0.mlp.experts.down_proj",
        "model.visual.blocks.0.attn.qkv.weight",
    ),
}
CASES = [(family, layout, name) for (family, layout), names in NAMES.items() for name in names]


@pytest.mark.parametrize(("family", "layout", "name"), CASES)
def test_an_expert_lacks_a_tensor(family: str, layout: str, name: str) -> None:
    expert = without(checkpoint(family, layout, "expert_0"), name)
    # an input is named as the config names it, a tensor by its last parts, the same in every layout
    config = task_arithmetic(checkpoint(family, layout), [expert, *experts(family, layout)[1:]])
    refused(config, str(expert), tail(name))


def tail(name: str) -> str:
    return ".".join(name.split(".")[-3:])


@pytest.mark.parametrize(("family", "layout", "name"), CASES[::2])
def test_the_base_lacks_a_tensor(family: str, layout: str, name: str) -> None:
    base = without(checkpoint(family, layout), name)
    refused(task_arithmetic(base, experts(family, layout)), str(base), tail(name))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma4", "kimi_k25"])
def test_an_expert_holds_a_tensor_that_nothing_consumes(family: str) -> None:
    stray = "model.mystery_adapter.weight"
    expert = with_tensor(checkpoint(family, "plain", "expert_0"), stray, torch.ones(3, 4))
    refused(task_arithmetic(checkpoint(family), [expert, *experts(family)[1:]]), str(expert), stray)


def test_a_layer_too_many() -> None:
    expert = altered(
        checkpoint("llava", "hub", "expert_0"),
        lambda found: (
            found
            | {
                n.replace(".layers.1.", ".layers.2."): v
                for n, v in found.items()
                if "language_model.model.layers.1." in n
            }
        ),
    )
    refused(task_arithmetic(checkpoint("llava", "hub"), [expert]), str(expert), "layers.2.")


@pytest.mark.parametrize(("family", "layout", "name"), CASES)
def test_a_shape_differs(family: str, layout: str, name: str) -> None:
    expert = altered(
        checkpoint(family, layout, "expert_0"),
        lambda found: {k: torch.cat([v, v]) if k == name else v for k, v in found.items()},
    )
    before, after = tensors(checkpoint(family, layout))[name].shape, tensors(expert)[name].shape
    shapes = [] if family == "qwen3_vl_moe" else [str(tuple(before)), str(tuple(after))]  # stored transposed
    refused(task_arithmetic(checkpoint(family, layout), [expert]), str(expert), tail(name), *shapes)


def test_different_multimodal_architectures() -> None:
    base, other = checkpoint("llava"), checkpoint("qwen2_5_vl", "plain", "expert_0")
    refused(task_arithmetic(base, [other]), str(base), str(other))


def test_every_problem_is_listed_at_once() -> None:
    first = without(checkpoint("internvl", "plain", "expert_0"), "language_model.model.norm.weight")
    second = with_tensor(checkpoint("internvl", "plain", "expert_1"), "model.stray", torch.ones(2))
    refused(
        task_arithmetic(checkpoint("internvl"), [first, second]), str(first), "norm.weight", str(second), "model.stray"
    )


@pytest.mark.parametrize("role", ["base", "expert"])
def test_output_over_an_input(role: str) -> None:
    base, expert = altered(checkpoint("llava")), altered(checkpoint("llava", "plain", "expert_0"))
    target = base if role == "base" else expert
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    outcome = run(task_arithmetic(base, [expert]), out=target)
    assert str(target) in outcome.error
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["optmerge", "task_arithmetic"])
def test_a_damaged_value(method: str, value: float) -> None:
    name = "model.layers.0.self_attn.v_proj.weight"

    def damage(found: Tensors) -> None:
        found[name][1, 2] = value

    expert = altered(checkpoint("qwen2_5_vl", "plain", "expert_1"), damage)
    others = [checkpoint("qwen2_5_vl", "plain", "expert_0"), expert]
    refused(with_method(method, checkpoint("qwen2_5_vl"), others), "layers.0.self_attn.v_proj.weight", str(expert))


@pytest.mark.parametrize(
    ("broken", "hint"),
    [("model.safetensors", "weights"), ("config.json", "config.json")],
)
def test_an_input_without_one_of_its_files(broken: str, hint: str) -> None:
    expert = altered(checkpoint("llava", "plain", "expert_0"))
    (expert / broken).unlink()
    refused(task_arithmetic(checkpoint("llava"), [expert]), str(expert), hint)


def test_a_shard_is_missing() -> None:
    expert = sharded(checkpoint("llava", "hub", "expert_0"))
    shard = "model-00002-of-00003.safetensors"
    (expert / shard).unlink()
    refused(task_arithmetic(checkpoint("llava", "hub"), [expert]), str(expert), shard)


def test_a_truncated_file() -> None:
    expert = altered(checkpoint("llava", "plain", "expert_0"))
    weights = expert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(task_arithmetic(checkpoint("llava"), [expert]), str(expert))


@pytest.mark.parametrize(
    ("family", "layout"), [("llava", "hub"), ("qwen2_vl", "plain"), ("qwen3_omni_moe_thinker", "hub")]
)
def test_sharded_inputs(family: str, layout: str) -> None:
    base = checkpoint(family, layout)
    others = experts(family, layout)
    outcome = merge(task_arithmetic(sharded(base), [sharded(others[0], 5), others[1], sharded(others[2], 2)]))
    assert_close(outcome.tensors, sum_of_deltas(tensors(base), [tensors(path) for path in others]))


# ------------------------------------------------------------------- differences that are not mistakes, and said

OLD_BUFFERS = {
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(8.0),
    "vision_tower.vision_model.embeddings.position_ids": torch.arange(5).reshape(1, 5),
}


def with_old_buffers(path: Path) -> Path:
    """Checkpoints of older transformers store what is now computed; transformers ignores it when it loads them."""
    return altered(path, lambda found: {**found, **OLD_BUFFERS})


@pytest.mark.parametrize("who", ["base", "experts", "all"])
def test_buffers_of_old_checkpoints(who: str) -> None:
    base, others = checkpoint("llava", "hub"), experts("llava", "hub")
    expected = sum_of_deltas(tensors(base), [tensors(path) for path in others])
    if who != "experts":
        base = with_old_buffers(base)
    if who != "base":
        others = [with_old_buffers(path) for path in others]
    outcome = merge(task_arithmetic(base, others))
    got = outcome.tensors
    assert_close({n: t for n, t in got.items() if n not in OLD_BUFFERS}, expected)
    assert all(torch.equal(got[n], v) for n, v in OLD_BUFFERS.items() if n in got)
    model, report = LlavaForConditionalGeneration.from_pretrained(outcome.out, output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert torch.isfinite(model(**zoo.image(4)).logits).all()


def test_counters_that_differ_are_the_bases() -> None:
    """Arithmetic on them has no meaning; which one is kept is said."""
    base, (expert, *_) = checkpoint("granite_speech"), experts("granite_speech")
    counters = {name: value for name, value in tensors(base).items() if not value.is_floating_point()}
    trained = altered(expert, lambda found: {n: t + 7 if n in counters else t for n, t in found.items()})
    outcome = merge(task_arithmetic(base, [trained]))
    assert counters
    assert_same_bytes({name: outcome.tensors[name] for name in counters}, counters)
    for name in counters:
        assert f"{name} (torch.int64) differs between the inputs; {base}'s is kept" in outcome.said


@pytest.mark.parametrize("who", ["base", "expert"])
def test_a_tied_head_on_one_disk_only(who: str) -> None:
    """The head of a model with tied embeddings may or may not be stored; it is the same model."""
    base, (expert, *rest) = checkpoint("gemma3", "hub"), experts("gemma3", "hub")
    name = "language_model.model.embed_tokens.weight"
    expected = sum_of_deltas(tensors(base), [tensors(path) for path in (expert, *rest)])
    doubled = altered(
        base if who == "base" else expert, lambda found: {**found, "language_model.lm_head.weight": found[name].clone()}
    )
    outcome = merge(task_arithmetic(*(doubled, [expert, *rest]) if who == "base" else (base, [doubled, *rest])))
    got = outcome.tensors
    head = got.pop("language_model.lm_head.weight", expected[name].float())
    assert torch.allclose(head, expected[name].float(), atol=1e-5)
    assert_close(got, expected)
    load(outcome.out, "Gemma3ForConditionalGeneration")


@pytest.mark.parametrize(("family", "layout"), [("qwen2_vl", "plain"), ("llava", "hub"), ("gemma3", "memory")])
def test_an_expert_with_added_tokens(family: str, layout: str) -> None:
    """Its embeddings and head do not fit: the base's stay, which is said, and all else is merged."""
    base, (expert, *rest) = checkpoint(family, layout), experts(family, layout)
    names = {n for n in tensors(base) if n.endswith(("embed_tokens.weight", "lm_head.weight"))}
    grown = altered(expert, lambda found: {n: torch.cat([t, t[:9]]) if n in names else t for n, t in found.items()})
    config = json.loads((grown / "config.json").read_text())
    config["text_config"]["vocab_size"] = zoo.VOCAB + 9
    (grown / "config.json").write_text(json.dumps(config))
    outcome = merge(task_arithmetic(base, [grown, *rest]))
    assert "embed_tokens" in outcome.said
    assert str(zoo.VOCAB + 9) in outcome.said
    start, got = tensors(base), outcome.tensors
    fitting = sum_of_deltas({n: t for n, t in start.items() if n not in names}, [tensors(p) for p in (expert, *rest)])
    assert_close({n: t for n, t in got.items() if n not in names}, fitting)
    others = sum_of_deltas({n: start[n] for n in names}, [tensors(path) for path in rest])
    for name in names:  # kept, or merged from the experts that have rows for it
        assert torch.equal(got[name], start[name]) or torch.allclose(got[name].double(), others[name], atol=1e-5)
    load(outcome.out, zoo.FAMILIES[family].cls)


def test_a_quantized_input() -> None:
    expert = altered(checkpoint("llava", "plain", "expert_0"), quantization_config={"quant_method": "gptq", "bits": 4})
    refused(task_arithmetic(checkpoint("llava"), [expert]), str(expert), "gptq")


# ----------------------------------------------------------------------------------------------------- dtypes


def as_dtype(source: Path, dtype: torch.dtype) -> Path:
    name = str(dtype).removeprefix("torch.")
    return altered(source, lambda found: {k: v.to(dtype) for k, v in found.items()}, dtype=name)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "kimi_k25"])
def test_inputs_of_different_dtypes(family: str) -> None:
    """A float32 base and half-precision experts, merged in float32: only the experts' own rounding remains."""
    base = checkpoint(family)
    first, second, third = experts(family)
    others = [as_dtype(first, torch.bfloat16), as_dtype(second, torch.float16), third]
    got = merge(task_arithmetic(base, others)).tensors
    assert_close(got, sum_of_deltas(tensors(base), [{k: v.float() for k, v in tensors(p).items()} for p in others]))
    assert {t.dtype for t in got.values()} == {torch.float32}


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "granite_speech"])
def test_out_dtype(family: str) -> None:
    base, others = checkpoint(family), experts(family)
    outcome = merge(task_arithmetic(base, others, out_dtype="bfloat16"))
    expected = sum_of_deltas(tensors(base), [tensors(path) for path in others])
    got = outcome.tensors
    floating = [name for name, value in tensors(base).items() if value.is_floating_point()]
    assert {got[name].dtype for name in floating} == {torch.bfloat16}
    assert_close(got, expected, tolerance=0.02)
    for name in floating:  # one rounding, at the end
        assert torch.allclose(got[name].float(), expected[name].float(), rtol=2**-8, atol=1e-5), name
    assert all(
        torch.equal(got[n], v) and got[n].dtype == v.dtype for n, v in tensors(base).items() if n not in floating
    )
    config = json.loads((outcome.out / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


def test_without_a_dtype_the_base_has_its_way() -> None:
    """bfloat16 in, bfloat16 out, for stock methods and for the plugin's."""
    base = as_dtype(checkpoint("qwen2_5_vl"), torch.bfloat16)
    others = [as_dtype(path, torch.bfloat16) for path in experts("qwen2_5_vl")]
    for method in ("task_arithmetic", "optmerge"):
        config = with_method(method, base, others)
        del config["dtype"]
        got = merge(config).tensors
        assert {t.dtype for t in got.values()} == {torch.bfloat16}, method


def test_optmerge_computes_in_float32_whatever_the_dtype() -> None:
    """bfloat16 in and out, and between them one float32 computation and one rounding."""
    base = as_dtype(checkpoint("qwen2_5_vl"), torch.bfloat16)
    others = [as_dtype(path, torch.bfloat16) for path in experts("qwen2_5_vl")]
    config = {**with_method("optmerge", base, others), "dtype": "bfloat16"}
    got = merge(config).tensors
    name = "model.layers.1.mlp.gate_proj.weight"
    inputs = [tensors(path)[name].float() for path in (*others, base)]
    exact = merge_tensors(inputs, "optmerge", base_index=3, dtype=torch.float32)
    assert torch.equal(got[name], exact.bfloat16())
    assert not torch.equal(got[name], tensors(base)[name])


# ------------------------------------------------------------------------------------------------- text only


@pytest.mark.slow
def test_text_only_merges_are_mergekits_own() -> None:
    """The same bytes in every file with the plugin and without it, by the console script itself."""
    script = Path(sys.executable).with_name("mergekit-yaml")
    base = llama(0)
    config = with_method("ties", base, [llama(1, base), llama(2, base)])
    recipe = fresh("recipe.yaml")
    recipe.write_text(yaml.safe_dump(config))
    hashes, said = [], []
    for autoload in ("1", "0"):
        out = fresh("merged")
        environment = {**os.environ, "MERGEKIT_MM_AUTOLOAD": autoload, "HF_HUB_OFFLINE": "1"}
        command = [str(script), str(recipe), str(out), "--random-seed", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        card = out / "README.md"  # lists models in the order of a set, which differs from run to run
        card.write_text("\n".join(sorted(card.read_text().splitlines())))
        hashes.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()})
        said.append(done.stderr)
        shutil.rmtree(out)
    assert hashes[0] == hashes[1]
    assert "mergekit-mm" not in said[0]


@pytest.mark.slow
def test_the_console_script_merges_multimodal_models() -> None:
    script = Path(sys.executable).with_name("mergekit-yaml")
    recipe, out = fresh("recipe.yaml"), fresh("merged")
    recipe.write_text(yaml.safe_dump(task_arithmetic(checkpoint("llava", "hub"), experts("llava", "memory"))))
    done = program([script, recipe, out])
    assert done.returncode == 0, done.stderr[-2000:]
    expected = sum_of_deltas(tensors(checkpoint("llava", "hub")), [tensors(p) for p in experts("llava", "hub")])
    assert_close(tensors(out), expected)
    load(out, "LlavaForConditionalGeneration")
