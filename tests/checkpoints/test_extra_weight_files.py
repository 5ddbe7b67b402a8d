"""What lies beside the weights of an input: adapters, parts that were trained whole, leftovers, other formats.

Every file of weights is used as transformers or the trainer's own code would use it, or named before the work begins.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from end_to_end import (
    Tensors,
    altered,
    assert_close,
    assert_same_bytes,
    checkpoint,
    command,
    edit_json,
    fresh,
    llama,
    merge,
    plugin,
    refused,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
    written,
)
from peft_adapters import adapted, pair, plus, wide
from remote_code import remote_code_checkpoint
from safetensors.torch import load_file, save_file


def beside(model: Path, adapter: Path, **config: Any) -> Path:
    """A directory with the weights of a model and the files of an adapter."""
    path = altered(model)
    for file in adapter.iterdir():
        if file.name.startswith("adapter_"):
            shutil.copy(file, path)
    edit_json(path / "adapter_config.json", **config)
    return path


def remote_adapter(base: Path, seed: int) -> tuple[Path, Tensors]:
    """An adapter of a model with code of its own, and the values that it makes of that model's tensors."""
    path, generator = fresh("adapter"), torch.Generator().manual_seed(seed)
    path.mkdir()
    factors: Tensors = {}
    meant = tensors(base)
    for name in [name for name in meant if name.startswith("language_model.") and "q_proj.weight" in name]:
        a, b = torch.randn(4, 64, generator=generator) * 0.1, torch.randn(64, 4, generator=generator) * 0.1
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        meant[name] = meant[name] + 2 * b @ a
    save_file(factors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 4, "lora_alpha": 8}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path, meant


# ------------------------------------------------------------------------------------------ a model and an adapter


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_directory_with_an_adapter_is_what_transformers_makes_of_it(family: str) -> None:
    base = checkpoint(family)
    adapter, whole = adapted(family, 1)
    both = beside(base, adapter, base_model_name_or_path="someone/else")
    loaded = getattr(transformers, zoo.FAMILIES[family].cls).from_pretrained(both)
    assert any("lora_A" in name for name, _ in loaded.named_parameters()), "transformers does not apply it"
    outcome = merge(task_arithmetic(base, [both], weight=1.0))
    assert_close(outcome.tensors, wide(tensors(whole)))
    assert f"{both} holds a model and an adapter: the adapter is applied" in outcome.said
    assert not list(outcome.out.glob("adapter_*"))


def test_a_directory_with_an_adapter_of_remote_code() -> None:
    base = remote_code_checkpoint("base")
    adapter, meant = remote_adapter(base, 1)
    got = merge(task_arithmetic(base, [beside(base, adapter)], weight=1.0)).tensors
    assert_close(got, meant)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "optmerge"])
def test_a_fine_tune_with_an_adapter_beside_it(method: str) -> None:
    """Over other weights than the base's the adapter is a part of the fine-tune."""
    base, tuned = checkpoint("llava"), checkpoint("llava", tag="expert_0")
    adapter, whole = adapted("llava", 2, path=tuned)
    other = checkpoint("llava", tag="expert_1")
    got = merge(with_method(method, base, [beside(tuned, adapter), other])).tensors
    assert_close(got, wide(merge(with_method(method, base, [whole, other])).tensors), 2e-5)


@pytest.mark.slow
def test_over_the_bases_own_weights_it_keeps_its_factors() -> None:
    base, ((adapter, _), (second, _)) = checkpoint("llava"), pair("llava")
    embedded = [beside(base, adapter), beside(base, second)]
    got = merge(with_method("iso_c", base, embedded)).tensors
    assert_same_bytes(got, merge(with_method("iso_c", base, [plus(base, adapter), plus(base, second)])).tensors)
    _, done = command("lora", task_arithmetic(base, embedded), "--quiet")  # exact, so that no --rank is needed
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_such_a_directory_as_the_base() -> None:
    base, ((adapter, whole), _) = checkpoint("llava"), pair("llava")
    expert = checkpoint("llava", tag="expert_0")
    both = beside(base, adapter)
    got = merge(task_arithmetic(both, [expert]))
    assert_close(got.tensors, wide(merge(task_arithmetic(whole, [expert])).tensors))
    assert not list(got.out.glob("adapter_*"))
    _, done = command("lora", task_arithmetic(both, [expert]), "--rank", "4")
    assert done.exit_code == 1
    assert "holds an adapter of its own" in done.output


@pytest.mark.slow
def test_an_adapter_is_not_applied_twice() -> None:
    base, ((adapter, _), (other, _)) = checkpoint("llava"), pair("llava")
    both = beside(base, adapter)
    once = merge(task_arithmetic(base, [both])).tensors
    explicit = merge(task_arithmetic(base, [plus(both, both)])).tensors
    assert_close(explicit, once)
    refused(task_arithmetic(base, [plus(both, other)]), "holds an adapter of its own", str(other))


@pytest.mark.slow
def test_an_adapter_named_alone_is_put_on_its_base() -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    expected = merge(task_arithmetic(base, [plus(base, adapter)])).tensors
    assert_same_bytes(merge(task_arithmetic(base, [adapter])).tensors, expected)
    with_config = fresh("adapter")
    shutil.copytree(adapter, with_config)
    shutil.copy(base / "config.json", with_config)
    assert_same_bytes(merge(task_arithmetic(base, [with_config])).tensors, expected)
    edit_json(with_config / "adapter_config.json", base_model_name_or_path=f"someone/{base.name}")
    assert_same_bytes(merge(task_arithmetic(base, [with_config])).tensors, expected)
    edit_json(with_config / "adapter_config.json", base_model_name_or_path="someone/else")
    refused(task_arithmetic(base, [with_config]), "someone/else", f"BASE+{with_config}")
    edit_json(with_config / "adapter_config.json", base_model_name_or_path=None)
    refused(task_arithmetic(base, [with_config]), "names no base", f"BASE+{with_config}")


def test_a_folder_of_adapters_is_not_one_of_them() -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    run = fresh("run")
    shutil.copytree(adapter, run / "checkpoint-100")
    refused(task_arithmetic(base, [run]), "Name one of the adapters in it: checkpoint-100")
    refused(task_arithmetic(base, [plus(base, run)]), "name one of them", "checkpoint-100")


def test_an_adapter_that_is_no_lora_is_refused_not_dropped() -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    refused(task_arithmetic(base, [beside(base, adapter, peft_type="IA3")]), "IA3")


def test_a_text_only_model_with_an_adapter_beside_it() -> None:
    """mergekit by itself would leave the adapter out."""
    base = llama(0)
    factors = {"lora_A": torch.randn(2, 64) * 0.1, "lora_B": torch.randn(64, 2) * 0.1}
    path = altered(base)
    layer = "model.layers.0.self_attn.q_proj"
    save_file(
        {f"base_model.model.{layer}.{p}.weight": t for p, t in factors.items()}, path / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (path / "adapter_config.json").write_text(json.dumps(config))
    start = tensors(base)
    got = merge(task_arithmetic(base, [path], weight=1.0)).tensors
    tuned = start[f"{layer}.weight"] + factors["lora_B"] @ factors["lora_A"]
    assert_close(got, {**start, f"{layer}.weight": tuned})


def test_check_and_inspect_show_the_adapter() -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    both = beside(base, adapter)
    shown = plugin("inspect", both).output
    assert "the adapter is applied" in shown
    assert f"{both}: LoRA of" in shown
    assert "the adapter is applied" in plugin("check", written(task_arithmetic(base, [both]))).output


# ------------------------------------------------------------------------------- adapters that belong to a model


def granite(seed: int | None) -> Path:
    """A Granite Speech with or without the adapter that its class switches on for sounds."""
    path = altered(checkpoint("granite_speech"), has_lora_adapter=True)
    if seed is not None:
        adapter, _ = adapted("granite_speech", seed, r=2, target_modules=r".*language_model.*q_proj")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copy(adapter / name, path)
    return path


def test_the_adapter_of_granite_speech_is_carried_along() -> None:
    base, expert = granite(1), altered(checkpoint("granite_speech", tag="expert_0"), has_lora_adapter=True)
    outcome = merge(task_arithmetic(base, [expert]))
    assert_close(weights(outcome.out), sum_of_deltas(weights(base), [weights(expert)]))
    assert_same_bytes(*(load_file(path / "adapter_model.safetensors") for path in (outcome.out, base)))
    assert "has of its own is not merged" in outcome.said
    model = transformers.GraniteSpeechForConditionalGeneration.from_pretrained(outcome.out)
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_different_adapters_of_granite_speech_are_refused() -> None:
    refused(task_arithmetic(granite(1), [granite(2)]), "different adapters of their own")


def weights(path: Path) -> Tensors:
    return load_file(path / "model.safetensors")


def test_adapters_of_media_in_folders_are_not_mixed_up() -> None:
    """Phi-4-multimodal keeps one for each medium beside the model."""
    base, expert = (altered(checkpoint("phi4_multimodal", tag=tag)) for tag in ("base", "expert_0"))
    for path, seed in ((base, 1), (expert, 2)):
        adapter, _ = adapted("phi4_multimodal", seed, r=2, target_modules=r".*layers\.0.*qkv_proj")
        shutil.copytree(adapter, path / "vision-lora")
    refused(task_arithmetic(base, [expert]), "different adapters in vision-lora/")


# ----------------------------------------------------------------------------------- parts that were trained whole


def saved(found: Mapping[str, torch.Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, file)
    else:
        torch.save(dict(found), file)


def in_a_training_state(found: Tensors) -> Any:
    return {"model": found, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 2}


def saved_by_peft(found: Tensors) -> Tensors:
    """Under PEFT a module that is trained whole has its copy from before the training beside it."""
    names = {name: f"base_model.model.{name.replace('.merger', '.merger.modules_to_save.default')}" for name in found}
    before = {path.replace("modules_to_save.default", "original_module"): found[n] - 1 for n, path in names.items()}
    return {path: found[name] for name, path in names.items()} | before


PARTS: dict[str, tuple[str, Callable[[Tensors], Any]]] = {
    "LLaVA": ("non_lora_trainables.bin", lambda f: {f"base_model.model.{n}": t for n, t in f.items()}),
    "LLaVA's first stage": ("mm_projector.bin", lambda f: f),
    "Qwen-VL-Series-Finetune": (
        "non_lora_state_dict.bin",
        lambda f: {f"base_model.model.{n}": t for n, t in f.items()},
    ),
    "ms-swift": ("vit.safetensors", lambda f: f),
    "MiniCPM": ("vpm_resampler_embedtokens.pt", lambda f: {f"base_model.model.{n}": t for n, t in f.items()}),
    "without the outer prefix": ("connector.pth", lambda f: {n.removeprefix("model."): t for n, t in f.items()}),
    "DistributedDataParallel": ("projector.ckpt", lambda f: {f"module.{n}": t for n, t in f.items()}),
    "a state of a training": ("last.pt", in_a_training_state),
    "modules that PEFT saves": ("non_lora_trainables.bin", saved_by_peft),
    "torch.compile": ("connector.pt", lambda f: {f"_orig_mod.base_model.model.{n}": t for n, t in f.items()}),
    "FSDP": (
        "tower.bin",
        lambda f: {f"_fsdp_wrapped_module.{n.replace('merger', 'merger._orig_mod')}": t for n, t in f.items()},
    ),
    "under the name of a model": ("model.safetensors", lambda f: f),
    "under the older name of a model": ("pytorch_model.bin", lambda f: f),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", list(PARTS))
def test_parts_that_were_trained_whole_are_used(how: str) -> None:
    base = checkpoint("qwen2_vl")
    adapter, whole = adapted("qwen2_vl", 1)
    file, change = PARTS[how]
    memory = transformers.AutoModelForMultimodalLM.from_pretrained(base).state_dict()
    trained = {name: tensor + 1 for name, tensor in memory.items() if "merger" in name}
    expected = {n: t + 1 if "merger" in n else t for n, t in wide(tensors(whole)).items()}
    saved(change(trained), adapter / file)
    outcome = merge(task_arithmetic(base, [plus(base, adapter)], weight=1.0))
    assert_close(outcome.tensors, expected)
    count = len(trained) * 2 if change is saved_by_peft else len(trained)
    assert f"{file} ({count} tensors" in outcome.said
    assert f"with {file} ({count} tensors" in plugin("inspect", plus(base, adapter)).output


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_parts_of_a_model_with_code_of_its_own(prefix: str) -> None:
    base = remote_code_checkpoint("base")
    adapter, meant = remote_adapter(base, 3)
    trained = {name: tensor * 2 for name, tensor in meant.items() if name.startswith("mlp1.")}
    saved({f"{prefix}{name}": tensor for name, tensor in trained.items()}, adapter / "non_lora_trainables.bin")
    got = merge(task_arithmetic(base, [plus(base, adapter)], weight=1.0)).tensors
    assert_close(got, meant | trained)


def test_parts_without_any_adapter() -> None:
    """The first stage of LLaVA leaves nothing but a projector."""
    base, stage = checkpoint("llava"), fresh("stage_1")
    stage.mkdir()
    names = [name for name in tensors(base) if "projector" in name]
    saved({name: tensors(base)[name] + 1 for name in names}, stage / "mm_projector.bin")
    got = merge(task_arithmetic(base, [plus(base, stage)], weight=1.0)).tensors
    assert_close(got, {n: t + 1 if n in names else t for n, t in wide(tensors(base)).items()})


@pytest.mark.slow
def test_names_of_llavas_own_code() -> None:
    """Its layers, its projector and its tower are called otherwise than in transformers; its head is not."""
    base, (adapter, _) = checkpoint("llava"), adapted("llava", 7, target_modules=r".*language_model.*q_proj")
    whole = {n: t for n, t in wide(tensors(base)).items() if "linear_" in n or n.endswith("layers.1.mlp.fc1.bias")}
    whole |= {"lm_head.weight": wide(tensors(base))["language_model.lm_head.weight"]}
    theirs = {
        "multi_modal_projector.linear_1": "model.mm_projector.0",
        "multi_modal_projector.linear_2": "model.mm_projector.2",
        "vision_tower.encoder": "model.vision_tower.vision_tower.vision_model.encoder",
    }

    def own(name: str) -> str:
        begin = next((begin for begin in theirs if name.startswith(begin)), "")
        return f"base_model.model.{theirs.get(begin, '')}{name.removeprefix(begin)}"

    expected = merge(task_arithmetic(base, [plus(base, adapter)], weight=1.0)).tensors
    for name in whole:
        expected[name if name in expected else f"language_model.{name}"] += 1
    factors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("model.language_model.layers", "model.layers"): t for name, t in factors.items()}
    assert renamed.keys().isdisjoint(factors)
    save_file(renamed, adapter / "adapter_model.safetensors")
    saved({own(name): tensor + 1 for name, tensor in whole.items()}, adapter / "non_lora_trainables.bin")
    assert_close(merge(task_arithmetic(base, [plus(base, adapter)], weight=1.0)).tensors, expected)


def with_part(file: str, content: Any) -> tuple[Path, Path]:
    """A base, and its adapter with one more file beside it."""
    base = checkpoint("llava")
    adapter, _ = adapted("llava", 5, target_modules=r".*language_model.*q_proj")
    saved(content, adapter / file) if isinstance(content, dict) else torch.save(content, adapter / file)
    return base, adapter


class Unknown:
    """What no restricted unpickler builds."""


def test_parts_that_fit_nowhere_are_refused_by_name() -> None:
    base, adapter = with_part("new_embeddings.safetensors", {"input_embeddings": torch.ones(4, 64)})
    refused(task_arithmetic(base, [plus(base, adapter)]), "new_embeddings.safetensors", "input_embeddings")
    base, adapter = with_part("parts.bin", {"model.norm.weight": torch.ones(1), "what": Unknown()})
    refused(task_arithmetic(base, [plus(base, adapter)]), "parts.bin", "cannot be read")
    base, adapter = with_part("second.safetensors", {"layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)})
    refused(task_arithmetic(base, [plus(base, adapter)]), "second.safetensors", "another adapter")
    base, adapter = with_part("mm_projector.bin", {"multi_modal_projector.linear_1.weight": torch.ones(3, 3)})
    refused(task_arithmetic(base, [plus(base, adapter)]), "linear_1", "(3, 3)")


def test_empty_tensors_are_those_of_a_sharded_training() -> None:
    base, adapter = with_part("non_lora_trainables.bin", {"multi_modal_projector.linear_1.bias": torch.zeros(0)})
    refused(task_arithmetic(base, [plus(base, adapter)]), "non_lora_trainables.bin:multi_modal", "ZeRO-3")
    base, adapter = with_part("nothing.bin", {})
    found = load_file(adapter / "adapter_model.safetensors")
    save_file({name: torch.zeros(0) for name in found}, adapter / "adapter_model.safetensors")
    refused(task_arithmetic(base, [plus(base, adapter)]), "without any values", "ZeRO-3")


def test_a_base_that_is_no_name() -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    both = fresh("adapter")
    shutil.copytree(adapter, both)
    edit_json(both / "adapter_config.json", base_model_name_or_path=["a", "b"])
    refused(task_arithmetic(base, [plus(base, both)]), "['a', 'b']", "no name of a model")
    refused(task_arithmetic(base, [both]), "names no base")


@pytest.mark.parametrize("folder", ["pytorch_model.bin", "pytorch_model"])
def test_weights_in_a_folder_below_the_model(folder: str) -> None:
    """zero_to_fp32.py of newer versions of DeepSpeed makes a directory of the name that it is given for a file."""
    base, expert = checkpoint("llava"), altered(checkpoint("llava", tag="expert_0"))
    (expert / folder).mkdir()
    torch.save(tensors(expert), expert / folder / "pytorch_model.bin")
    (expert / "model.safetensors").unlink()
    refused(task_arithmetic(base, [expert]), f"{folder}/ in it does", "move what is in")


def test_two_copies_of_a_part_have_to_agree() -> None:
    name = "model.multi_modal_projector.linear_1.bias"
    base, adapter = with_part("mm_projector.bin", {name: torch.ones(64)})
    saved({f"base_model.model.{name}": torch.ones(64)}, adapter / "non_lora_trainables.bin")
    merge(task_arithmetic(base, [plus(base, adapter)]))
    saved({f"base_model.model.{name}": torch.zeros(64)}, adapter / "non_lora_trainables.bin")
    refused(task_arithmetic(base, [plus(base, adapter)]), "two values", "mm_projector.bin", "non_lora_trainables.bin")


@pytest.mark.parametrize("file", ["merged.safetensors", "last.pt", "pytorch_model.bin"])
def test_an_adapter_is_not_put_on_what_it_is_merged_into(file: str) -> None:
    base, ((adapter, whole), _) = checkpoint("llava"), pair("llava")
    both = fresh("adapter")
    shutil.copytree(adapter, both)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(whole)
    saved(model.state_dict(), both / file)
    refused(task_arithmetic(base, [plus(base, both)]), file, "into which the adapter is merged")


def test_pickled_weights_beside_an_adapter_with_a_config_are_named_by_their_tensors() -> None:
    name = "multi_modal_projector.linear_1.bias"
    base, adapter = with_part("pytorch_model.bin", {name: torch.ones(64)})
    shutil.copy(base / "config.json", adapter)
    outcome = merge(task_arithmetic(base, [plus(base, adapter)]))
    assert f"{adapter}: pytorch_model.bin (1 tensors: {name})" in outcome.said


def test_the_state_of_a_training_is_no_part_of_an_adapter() -> None:
    base, adapter = with_part("optimizer.pt", {"state": {0: {"exp_avg": torch.ones(3)}}})
    for name in ("scheduler.pt", "rng_state_0.pth", "training_args.bin", "mp_rank_00_model_states.pt"):
        torch.save(Unknown(), adapter / name)
    outcome = merge(task_arithmetic(base, [plus(base, adapter)]))
    assert f"{adapter}: mp_rank_00_model_states.pt, optimizer.pt, rng_state_0.pth and 2 more" in outcome.said


# ------------------------------------------------------------------------------------------ what nothing would load


@pytest.mark.slow
def test_every_other_file_of_weights_is_named() -> None:
    base, expert = checkpoint("llava"), altered(checkpoint("llava", tag="expert_0"))
    value_head = {"v_head.summary.weight": torch.ones(1, 64)}
    saved(value_head, expert / "value_head.safetensors")
    saved(value_head, expert / "model-00003-of-00002.safetensors")
    saved(value_head, expert / "mm_projector.bin")
    torch.save(Unknown(), expert / "ema.pt")
    saved(value_head, expert / "pytorch_model.bin")
    (expert / "model.gguf").write_bytes(b"GGUF")
    config = task_arithmetic(base, [expert])
    outcome = merge(config)
    assert_close(outcome.tensors, sum_of_deltas(tensors(base), [weights(expert)]))
    told = [outcome.said, plugin("check", written(config)).output, plugin("inspect", expert).output]
    for name in ("value_head.safetensors (1 tensors: v_head.summary.weight)", "model-00003-of-00002.safetensors"):
        assert all(name in each for each in told)
    for name in ("mm_projector.bin (1 tensors", "ema.pt (cannot be read", "model.gguf, pytorch_model.bin"):
        assert all(name in each for each in told)


@pytest.mark.slow
def test_the_last_word_is_what_was_not_used() -> None:
    base, expert = checkpoint("llava"), checkpoint("llava", tag="expert_0")
    output = plugin("check", written(task_arithmetic(base, [expert]))).output
    assert output.rstrip().endswith("Every tensor of every input is used.")
    output = plugin("check", written(with_method("optmerge", base, [expert]))).output
    lines = output[output.index("Not used:") :].splitlines()
    towers = sum("vision_tower" in name for name in tensors(expert))
    assert f"{towers} tensors of vision_tower" in next(line for line in lines if str(expert) in line)
    assert merge(with_method("optmerge", base, [expert])).console.rstrip().endswith(lines[-1].strip())


@pytest.mark.slow
def test_beside_whole_weights_only_the_adapter_is_read() -> None:
    """Such a directory is a model; a projector of an earlier stage that was left in it would be older than its own."""
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    both = beside(base, adapter)
    name = "model.multi_modal_projector.linear_1.bias"
    saved({name: torch.ones(64)}, both / "mm_projector.bin")
    outcome = merge(task_arithmetic(base, [both]))
    assert_same_bytes(outcome.tensors, merge(task_arithmetic(base, [plus(base, adapter)])).tensors)
    assert f"{both}: mm_projector.bin (1 tensors: {name})" in outcome.said
