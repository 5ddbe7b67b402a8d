"""What a merge leaves behind: a directory that is a complete model, or nothing."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
import zoo
from click.testing import CliRunner
from end_to_end import (
    Outcome,
    altered,
    assert_close,
    assert_nothing_left,
    assert_same_bytes,
    checkpoint,
    experts,
    fresh,
    linear,
    load,
    merge,
    mergekit_yaml,
    refused,
    run,
    side_files,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
)

FAMILIES = ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "qwen2_audio", "qwen2_5_omni"]


def config_of(outcome: Outcome) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((outcome.out / "config.json").read_text())
    return config


def plain_merge(family: str = "llava", *flags: str, **more: Any) -> Outcome:
    return merge(task_arithmetic(checkpoint(family), experts(family), **more), *flags)


@functools.cache
def merged(family: str) -> Outcome:
    """The plainest merge, to be looked at and not to be changed."""
    return plain_merge(family)


def dtypes_in(config: Any) -> set[str]:
    """Every dtype that a config names, at any depth."""
    if not isinstance(config, dict):
        return set()
    here = {value for key, value in config.items() if key in ("dtype", "torch_dtype") and value}
    return here.union(*(dtypes_in(value) for value in config.values()))


# -------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_is_the_bases(family: str) -> None:
    outcome = merged(family)
    assert config_of(outcome) == json.loads((checkpoint(family) / "config.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", [pytest.param("dtype", marks=pytest.mark.slow), "out_dtype"])
def test_the_config_says_what_was_written(family: str, key: str) -> None:
    outcome = plain_merge(family, **{key: "bfloat16"})
    config = config_of(outcome)
    assert dtypes_in(config) == {"bfloat16"}
    before = json.loads((checkpoint(family) / "config.json").read_text())
    assert {k: v for k, v in config.items() if k != "dtype" and not isinstance(v, dict)} == {
        k: v for k, v in before.items() if k != "dtype" and not isinstance(v, dict)
    }
    model = load(outcome.out, zoo.FAMILIES[family].cls)
    assert next(p.dtype for p in model.parameters() if p.ndim == 2) == torch.bfloat16


@pytest.mark.parametrize("key", ["torch_dtype", None])
def test_an_old_configs_dtype_key_is_kept_up_to_date(key: str | None) -> None:
    """Configs written before transformers 4.56 say `torch_dtype`, or nothing, which means float32."""
    base = altered(checkpoint("llava", "hub"))
    config = json.loads(
        (base / "config.json").read_text(),
        object_hook=lambda part: {name: v for k, v in part.items() if (name := key if k == "dtype" else k)},
    )
    if key:
        config["text_config"][key] = config[key]
    (base / "config.json").write_text(json.dumps(config))
    outcome = merge(task_arithmetic(base, experts("llava", "hub"), out_dtype="float16"))
    assert dtypes_in(config_of(outcome)) == {"float16"}
    assert load(outcome.out, "LlavaForConditionalGeneration").config.dtype == torch.float16


# ---------------------------------------------------------------------------------------------- side files


@pytest.mark.parametrize("family", FAMILIES)
def test_side_files_are_the_bases(family: str) -> None:
    """With experts that have files of their own; byte for byte."""
    outcome = merged(family)
    expected = side_files(checkpoint(family))
    assert len(expected) >= 9
    assert side_files(outcome.out) == expected
    assert side_files(experts(family)[0]) != expected


def test_files_of_any_name_come_along() -> None:
    base = altered(checkpoint("qwen2_vl"))
    extra = {
        "merges.txt": "#version: 0.2\n",
        "added_tokens.json": "{}",
        "special_tokens_map.json": "{}",
        "tokenizer.model": "\x00\x01 sentencepiece",
        "audio_preprocessor_config.json": "{}",
        "modeling_extra.py": "raise SystemExit",
        "LICENSE": "as is",
    }
    for name, content in extra.items():
        (base / name).write_text(content)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    outcome = merge(task_arithmetic(base, experts("qwen2_vl")))
    assert {name: (outcome.out / name).read_text() for name in extra} == extra
    assert (outcome.out / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"


def test_what_belongs_to_the_bases_weights_stays_behind() -> None:
    """Other formats of the base's weights, and its model card, say nothing true about the merge."""
    base = altered(checkpoint("qwen2_vl"))
    left = ("pytorch_model.bin", "consolidated.safetensors", "model.gguf", "optimizer.pt", "training_args.bin")
    left += ("adapter_config.json", "rng_state_0.pth", "eval_results.json")
    for name in left:
        (base / name).write_bytes(b"not read")
    (base / "README.md").write_text("# The base\n\nScores 100 on everything.")
    (base / ".gitattributes").write_text("*.safetensors filter=lfs")
    outcome = merge(task_arithmetic(base, experts("qwen2_vl")))
    assert not {path.name for path in outcome.out.iterdir()} & {*left, ".gitattributes"}
    assert "Scores 100" not in (outcome.out / "README.md").read_text()


def test_side_files_of_another_model() -> None:
    expert = experts("llava")[1]
    outcome = plain_merge(parameters={"processor_source": str(expert)})
    assert side_files(outcome.out) == side_files(expert)
    assert config_of(outcome) == json.loads((checkpoint("llava") / "config.json").read_text())


@pytest.mark.parametrize("base", ["base", "expert_0"])
def test_without_a_base_model_the_first_gives_the_files(base: str) -> None:
    first, second = checkpoint("llava", "plain", base), checkpoint("llava", "plain", "expert_2")
    assert side_files(merge(linear(first, second)).out) == side_files(first)


def test_no_copy_tokenizer() -> None:
    outcome = plain_merge("llava", "--no-copy-tokenizer")
    assert not list(outcome.out.glob("tokenizer*"))


# ------------------------------------------------------------------------------------------- chat template


def template_of(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path).chat_template


def with_template(source: Path, template: str | None) -> Path:
    path = altered(source)
    for name in ("chat_template.jinja", "chat_template.json"):
        (path / name).unlink(missing_ok=True)
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


SHARED = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def test_a_template_that_all_experts_share_is_taken_if_the_base_has_none() -> None:
    base = with_template(checkpoint("llava"), None)
    outcome = merge(task_arithmetic(base, [with_template(path, SHARED) for path in experts("llava")]))
    assert template_of(outcome.out) == SHARED
    assert "chat template" in outcome.said


@pytest.mark.parametrize("third", ["{{ something_else }}", None])
def test_experts_that_disagree_give_no_template(third: str | None) -> None:
    base = with_template(checkpoint("llava"), None)
    others = [with_template(path, SHARED) for path in experts("llava")[:2]]
    outcome = merge(task_arithmetic(base, [*others, with_template(experts("llava")[2], third)]))
    assert template_of(outcome.out) is None


def test_the_bases_template_wins() -> None:
    base = with_template(checkpoint("llava"), "{{ base }}")
    outcome = merge(task_arithmetic(base, [with_template(path, SHARED) for path in experts("llava")]))
    assert template_of(outcome.out) == "{{ base }}"


def test_mergekits_chat_template_key() -> None:
    outcome = plain_merge(chat_template="chatml")
    assert "im_start" in template_of(outcome.out)


# ------------------------------------------------------------------------------------------------ vocabulary


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_a_padded_vocabulary(family: str) -> None:
    """Embeddings, head, config and tokenizer agree after mergekit's tokenizer section changed the size."""
    tokenizer = {"source": "base", "pad_to_multiple_of": 64}
    outcome = plain_merge(family, tokenizer=tokenizer)
    model = load(outcome.out, zoo.FAMILIES[family].cls)
    assert model.get_input_embeddings().weight.shape[0] == 320
    assert model.get_output_embeddings().weight.shape[0] == 320
    assert model.config.get_text_config().vocab_size == 320
    assert torch.isfinite(model(**zoo.prompt(20, 30)).logits).all()
    expected = sum_of_deltas(tensors(checkpoint(family)), [tensors(path) for path in experts(family)])
    got = outcome.tensors
    assert_close({n: t[:300] if t.shape[0] == 320 else t for n, t in got.items()}, expected)


def test_a_union_of_tokenizers_keeps_the_processor_files() -> None:
    outcome = plain_merge("qwen2_5_vl", tokenizer={"source": "union"})
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        assert (outcome.out / name).read_bytes() == (checkpoint("qwen2_5_vl") / name).read_bytes()
    assert len(transformers.AutoTokenizer.from_pretrained(outcome.out)) == zoo.VOCAB


# ------------------------------------------------------------------------------------------------ model card


@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_the_model_card(method: str) -> None:
    config = with_method(method, checkpoint("llava", "hub"), experts("llava", "hub"))
    config["parameters"] = {"vision_tower": "base"}
    outcome = merge(config)
    card = (outcome.out / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert "merge" in yaml.safe_load(head)["tags"]
    assert method.replace("_", " ") in body.lower() or method in body.lower()
    assert "vision_tower: base" in body
    for path in (checkpoint("llava", "hub"), *experts("llava", "hub")):
        assert str(path) in body
        assert hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() in body
    for package in (torch, transformers):
        assert f"{package.__name__} {package.__version__.partition('+')[0]}" in body
    assert yaml.safe_load((outcome.out / "mergekit_config.yml").read_text()) == config


def test_no_model_card() -> None:
    outcome = plain_merge("llava", "--no-write-model-card")
    assert not (outcome.out / "README.md").exists()
    load(outcome.out, "LlavaForConditionalGeneration")


@pytest.mark.slow
def test_the_written_config_repeats_the_merge() -> None:
    first = merged("llava")
    again = merge(yaml.safe_load((first.out / "mergekit_config.yml").read_text()))
    assert_same_bytes(again.tensors, first.tensors)


# ------------------------------------------------------------------------------------------------- directory


def test_nothing_but_the_output_is_left() -> None:
    outcome = merged("llava")
    assert [path.name for path in outcome.out.parent.iterdir()] == [outcome.out.name]
    hidden = [path.name for path in outcome.out.rglob("*") if path.name.startswith(".") or "tmp" in path.name]
    assert not hidden
    umask = os.umask(0)
    os.umask(umask)
    assert outcome.out.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.slow
def test_an_output_directory_that_is_there_already() -> None:
    """Shards, index and files of an earlier merge make way, whatever their number; what is not a model's stays."""
    out = fresh("merged")
    config = task_arithmetic(checkpoint("llava"), experts("llava"))
    merge(config, "--out-shard-size", "150K", out=out)
    assert len(list(out.glob("*.safetensors"))) > 2
    (out / "notes.txt").write_text("mine")
    earlier = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_config.json", "adapter_model.bin")
    for name in earlier:
        (out / name).write_text("of another model, or of an adapter, which transformers would load")
    source = altered(checkpoint("qwen2_vl"))
    for path, name in ((out, "old.jinja"), (source, "new.jinja")):
        (path / "additional_chat_templates").mkdir()
        (path / "additional_chat_templates" / name).write_text("{{ tools }}")
    outcome = merge(linear(source), out=out)
    assert not [name for name in earlier if (out / name).exists()]
    assert [path.name for path in (out / "additional_chat_templates").iterdir()] == ["new.jinja"]
    assert_same_bytes(outcome.tensors, tensors(checkpoint("qwen2_vl")))
    assert not (out / "model.safetensors.index.json").exists() or len(list(out.glob("*.safetensors"))) == len(
        set(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"].values())
    )
    assert (out / "notes.txt").read_text() == "mine"
    load(out, "Qwen2VLForConditionalGeneration")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_an_empty_output_directory() -> None:
    out = fresh("merged")
    out.mkdir()
    assert_same_bytes(merge(linear(checkpoint("llava")), out=out).tensors, tensors(checkpoint("llava")))


def test_an_output_path_with_missing_parents() -> None:
    out = fresh("a") / "b" / "merged"
    assert_same_bytes(merge(linear(checkpoint("llava")), out=out).tensors, tensors(checkpoint("llava")))


def test_an_output_path_that_is_a_file() -> None:
    out = fresh("merged")
    out.write_text("precious")
    assert str(out) in run(linear(checkpoint("llava")), out=out).error
    assert out.read_text() == "precious"


def test_a_failing_merge_does_no_harm_to_an_earlier_one() -> None:
    """The failure comes in the middle of the work: a NaN in the last layer."""
    out = merge(linear(checkpoint("llava"))).out
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def damage(found: dict[str, torch.Tensor]) -> None:
        found["language_model.model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")

    broken = altered(checkpoint("llava", "plain", "expert_0"), damage)
    outcome = run(task_arithmetic(checkpoint("llava"), [broken]), out=out)
    assert outcome.exit_code
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    "mistake",
    [
        {"merge_method": "no_such_method"},
        {"base_model": "/nowhere/to/be/found"},
        {"chat_template": "nonsense"},
    ],
)
def test_mistakes_in_the_config_leave_nothing(mistake: dict[str, Any]) -> None:
    refused({**task_arithmetic(checkpoint("llava"), experts("llava")), **mistake})


def test_a_config_without_models_leaves_nothing() -> None:
    """mergekit itself ends it, with a traceback, while it reads the config."""
    outcome = run({**task_arithmetic(checkpoint("llava"), experts("llava")), "models": None})
    assert "'models'" in outcome.error
    assert_nothing_left(outcome)


# -------------------------------------------------------------------------------------------------- options


def test_quiet() -> None:
    assert plain_merge("llava", "--quiet").console == ""
    loud = merged("llava").console
    assert "in the layout of" in loud
    assert "vision_tower" in loud


def test_the_report_accounts_for_every_role() -> None:
    """Counts of tensors per role and what is done with them."""
    outcome = merge(with_method("optmerge", checkpoint("llava", "hub"), experts("llava", "hub")))
    for role in ("language_model", "vision_tower", "projector", "embeddings", "lm_head", "norms"):
        assert role in outcome.said


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes() -> None:
    config = with_method("dare_linear", checkpoint("qwen2_vl"), experts("qwen2_vl"))
    for entry in config["models"]:
        entry["parameters"] = {"weight": 0.3, "density": 0.5}
    first, second, other = (merge(config, "--random-seed", seed) for seed in ("7", "7", "8"))
    assert_same_bytes(first.tensors, second.tensors)
    assert any(not torch.equal(t, other.tensors[n]) for n, t in first.tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--lazy-unpickle",), ("--low-cpu-memory",), ("--read-to-gpu", "--device", "cpu")])
def test_mergekits_options(flags: tuple[str, ...]) -> None:
    outcome = merge(task_arithmetic(checkpoint("llava", "hub"), experts("llava", "memory")), *flags)
    expected = [tensors(path) for path in experts("llava", "hub")]
    assert_close(outcome.tensors, sum_of_deltas(tensors(checkpoint("llava", "hub")), expected))


@pytest.mark.parametrize("flags", [(), ("--lazy-unpickle",)])
def test_pickled_inputs(flags: tuple[str, ...]) -> None:
    """Weights in pytorch_model.bin, as older checkpoints have them."""
    expert = altered(checkpoint("llava", "hub", "expert_0"))
    torch.save(tensors(expert), expert / "pytorch_model.bin")
    (expert / "model.safetensors").unlink()
    outcome = merge(task_arithmetic(checkpoint("llava", "hub"), [expert]), *flags)
    expected = sum_of_deltas(tensors(checkpoint("llava", "hub")), [tensors(experts("llava", "hub")[0])])
    assert_close(outcome.tensors, expected)


def test_pickled_output() -> None:
    outcome = plain_merge("llava", "--no-safe-serialization")
    (file,) = outcome.out.glob("pytorch_model*.bin")
    expected = sum_of_deltas(tensors(checkpoint("llava")), [tensors(path) for path in experts("llava")])
    assert_close(torch.load(file, weights_only=True), expected)


def test_several_merges_in_one_file() -> None:
    """`mergekit-multi` merges merges: the second reads what the first wrote."""
    mergekit_yaml()
    from mergekit.scripts.multimerge import main

    base, others = checkpoint("llava", "hub"), experts("llava", "hub")
    first = {"name": "first", **task_arithmetic(base, others[:2])}
    last = task_arithmetic(base, others[2:], weight=0.0)
    last["models"].append({"model": "first", "parameters": {"weight": 1.0}})
    recipe, out = fresh("recipe.yaml"), fresh("merged")
    recipe.write_text(yaml.safe_dump_all([first, last]))
    result = CliRunner().invoke(main, [str(recipe), "--out-path", str(out), "-I", str(fresh("steps"))])
    assert result.exit_code == 0, result.output
    assert_close(tensors(out), sum_of_deltas(tensors(base), [tensors(path) for path in others[:2]]))
    load(out, "LlavaForConditionalGeneration")


def without_tokenizer() -> Path:
    base = altered(checkpoint("llava"))
    for pattern in ("tokenizer*", "vocab.*"):
        for file in base.glob(pattern):
            file.unlink()
    return base


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tekken.json", "spm_char.model"])
def test_tokenizers_of_other_kinds(file: str) -> None:
    base = without_tokenizer()
    (base / file).write_text("{}")
    outcome = merge(linear(base))
    assert "no tokenizer" not in outcome.said
    assert (outcome.out / file).exists()
    assert not (merge(linear(base), "--no-copy-tokenizer").out / file).exists()


def test_a_base_without_a_tokenizer_is_told() -> None:
    base = without_tokenizer()
    config = {**with_method("optmerge", base, experts("llava"))}
    told = f"{base} has no tokenizer"
    assert told in run(config).console
    assert told not in run({**config, "parameters": {"processor_source": str(experts("llava")[0])}}).console
