"""`mergekit-mm align`: its options on small models with random weights, and what it says where it cannot go on."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import end_to_end as c
import pytest
import torch
import yaml
from alignments import (
    EASY_VQA,
    KINDS,
    align,
    aligned,
    easy_vqa_merge,
    report,
    samples,
    small_expert,
    small_merge,
    small_samples,
    written,
)
from mllm_runs import saved
from peft import PeftModel
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from mergekit_mm import api
from mergekit_mm.align.objective import Answer, divergence
from mergekit_mm.align.recomputing import recompute_layers
from mergekit_mm.align.settings import Settings
from mergekit_mm.cli import main
from mergekit_mm.errors import MergeError
from mergekit_mm.merge import enough_memory

pytestmark = [pytest.mark.slow, pytest.mark.long]  # each test aligns a model
COEFFICIENTS = ("--way", "coefficients")


@functools.cache
def adapted() -> Path:
    return aligned(small_merge(), small_samples())


def coefficients(out: Path) -> dict[str, list[float]]:
    """The coefficients of an output's config: of each matrix those of the experts, and `scaling` as the last."""
    config = yaml.safe_load((out / "mergekit_config.yml").read_text())
    of_experts = [{one["filter"]: one["value"] for one in m["parameters"]["own_delta"]} for m in config["models"]]
    of_merge = {one["filter"]: one["value"] for one in config["parameters"]["scaling"] if "filter" in one}
    return {name: [*(own[name] for own in of_experts), value] for name, value in of_merge.items()}


def remade(out: Path) -> bool:
    """Whether the stock command makes the same model from an output's config."""
    again = c.merge(yaml.safe_load((out / "mergekit_config.yml").read_text()))
    return (again.out / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------------- the adapter


def test_an_adapter_that_is_not_folded_lies_beside_the_merge() -> None:
    out = aligned(small_merge(), small_samples(), "--no-fold")
    start = c.merge(small_merge())
    found = c.tensors(out)
    assert all(torch.equal(tensor, found[name]) for name, tensor in start.tensors.items())
    config = json.loads((out / "align" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(out)
    assert (out / "mergekit_config.yml").read_text() == (start.out / "mergekit_config.yml").read_text()
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    whole = PeftModel.from_pretrained(model, out / "align").merge_and_unload().state_dict()
    folded = AutoModelForImageTextToText.from_pretrained(adapted(), dtype=torch.float32).state_dict()
    assert report(out)["best"] == report(adapted())["best"] > 0
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, folded[name], rtol=1e-5, atol=1e-6)


def test_a_folded_adapter_names_no_model() -> None:
    config = json.loads((adapted() / "align" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None


@pytest.mark.parametrize("way", [(), COEFFICIENTS])
def test_targets_are_parts_of_names(way: tuple[str, ...]) -> None:
    out = aligned(small_merge(), small_samples(), *way, "--targets", "down_proj,layers.1.self_attn.q_proj")
    assert report(out)["best"] > 0
    start = c.merge(small_merge())
    changed = {name for name, tensor in c.tensors(out).items() if not torch.equal(tensor, start.tensors[name])}
    assert len(changed) == 3
    assert all("down_proj" in name or "layers.1.self_attn.q_proj" in name for name in changed)


def test_a_target_that_nothing_has_is_told_with_a_name_that_there_is() -> None:
    _, result = align(small_merge(), small_samples(), "--targets", "query")
    assert "No matrix that this merge changes has query in its name; such as model.language_model" in result.output


def test_experts_that_are_adapters_are_asked_and_followed() -> None:
    config = easy_vqa_merge()
    config["models"] = [{"model": f"{EASY_VQA / 'base'}+{EASY_VQA / f'lora_{kind}'}"} for kind in KINDS]
    read = c.fresh("samples.jsonl")
    read.write_text(samples().read_text().replace("expert_", "lora_"))
    out = aligned(config, read, "--rate", "0.003", "--per-step", "36", "--steps", "16", "--check", "8")
    assert report(out)["best"] > 0
    start = c.merge(config)
    assert sum(not torch.equal(t, start.tensors[name]) for name, t in c.tensors(out).items()) == 21


# ------------------------------------------------------------------------------------------------ coefficients


def test_expert_merging_begins_at_a_tenth_of_each_experts_delta() -> None:
    out = aligned(small_merge(), small_samples(), "--preset", "expert-merging", "--rate", "1e-7")
    for found in coefficients(out).values():
        assert found == [pytest.approx(0.1, abs=1e-5), pytest.approx(0.1, abs=1e-5), 0]


def test_expert_merging_leaves_a_weighted_sum_of_the_experts_deltas() -> None:
    out = aligned(small_merge(), small_samples(), "--preset", "expert-merging", "--rate", "0.5")
    assert remade(out)
    found, base = c.tensors(out), c.tensors(saved("llava"))
    experts = [c.tensors(small_expert(number)) for number in (1, 2)]
    learnt = coefficients(out)
    assert any(abs(share - 0.1) > 0.01 for row in learnt.values() for share in row[:-1])
    in_memory = {"language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head"}
    compared = 0
    for name, tensor in found.items():
        row = learnt.get(name) or next(
            (learnt[n] for old, new in in_memory.items() if (n := name.replace(old, new)) in learnt), None
        )
        if row:
            deltas = [
                share * (own[name].double() - base[name].double()) for share, own in zip(row, experts, strict=False)
            ]
            torch.testing.assert_close(tensor.double(), base[name].double() + sum(deltas), rtol=1e-5, atol=1e-5)
            compared += 1
    assert compared == len(learnt) == 14


def test_options_replace_those_of_a_preset() -> None:
    assert Settings.of("expert-merging", steps=160).steps == 160
    assert Settings.of("expert-merging").rate == 0.5
    assert Settings.of(way="coefficients").rate == 0.03
    assert Settings.of().rate == 0.003


def moved(*options: str) -> float:
    """How far coefficients were from their start when the last step had been made."""
    work = c.fresh("work")
    aligned(
        small_merge(), small_samples(), *COEFFICIENTS, "--steps", "3", "--check", "3", "--work", str(work), *options
    )
    (last,) = torch.load(work / "training.pt")["parameters"]
    last[:, -1] -= 1
    return float(last.abs().mean())


def test_an_anchor_and_short_gradients_keep_coefficients_near_their_start() -> None:
    free = moved()
    assert free > 0
    assert moved("--anchor", "10000") < 0.9 * free
    assert moved("--clip", "1e-10") < 0.1 * free


def test_an_automatic_scaling_becomes_a_number() -> None:
    out = aligned(small_merge(parameters={"scaling": "auto"}), small_samples(), *COEFFICIENTS)
    assert report(out)["best"] > 0
    assert remade(out)
    config = yaml.safe_load((out / "mergekit_config.yml").read_text())
    assert config["parameters"]["scaling"][-1] == {"value": "auto"}


@pytest.mark.parametrize("way", [(), COEFFICIENTS])
def test_what_is_trained_is_in_float32_whatever_the_model_is(way: tuple[str, ...]) -> None:
    config = small_merge(out_dtype="bfloat16")
    out = aligned(config, small_samples(), *way, "--dtype", "bfloat16")
    assert report(out)["best"] > 0
    assert {tensor.dtype for tensor in c.tensors(out).values()} == {torch.bfloat16}
    if way:
        learnt = torch.tensor(list(coefficients(out).values()))
        assert remade(out)
    else:
        factors = load_file(out / "align" / "adapter_model.safetensors").values()
        assert {each.dtype for each in factors} == {torch.float32}
        learnt = torch.cat([each.flatten() for each in factors])
    assert not torch.equal(learnt, learnt.bfloat16().float())


# ---------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("way", [(), COEFFICIENTS])
def test_samples_may_be_text_alone(way: tuple[str, ...]) -> None:
    rows = [{"expert": str(small_expert(n)), "prompt": f"{at} words"} for n in (1, 2) for at in range(3)]
    out = aligned(small_merge(), written(rows), *way)
    assert report(out)["best"] > 0
    assert [len(own["trained"]) for own in report(out)["samples"].values()] == [2, 2]


def test_tokens_with_other_numbers_are_the_same_tokens() -> None:
    torch.manual_seed(0)
    expert_logits, logits, order = torch.randn(4, 9), torch.randn(4, 9), torch.randperm(9)
    answer = Answer.of(torch.arange(4), expert_logits, 5)
    moved = answer.renumbered({int(old): new for new, old in enumerate(order)})
    torch.testing.assert_close(divergence(moved, logits[:, order]), divergence(answer, logits))
    assert moved.ids.tolist() == [order.tolist().index(number) for number in range(4)]


@pytest.mark.parametrize("k", [4, 9])
def test_a_token_that_the_merged_model_lacks_belongs_to_the_tail(k: int) -> None:
    torch.manual_seed(0)
    expert_logits, logits = torch.randn(6, 9), torch.randn(6, 8, requires_grad=True)
    answer = Answer.of(torch.arange(6), expert_logits, k)
    found = divergence(answer.renumbered({8: None}), logits)
    p, log_q = expert_logits.double().softmax(-1), logits.detach().double().log_softmax(-1)
    expected = 0.0
    for at in range(6):
        kept = [number for number in answer.top[at].tolist() if number < 8]
        others = [number for number in range(8) if number not in kept]
        expected += sum(p[at, n] * (p[at, n].log() - log_q[at, n]) for n in kept)
        if others:
            tail = 1 - p[at, kept].sum()
            expected += tail * (tail.log() - log_q[at, others].exp().sum().log())
    torch.testing.assert_close(found.detach().double(), torch.as_tensor(expected), rtol=1e-5, atol=1e-5)
    found.backward()
    assert torch.isfinite(logits.grad).all()


# ------------------------------------------------------------------------------------------ memory and time


def kept_bytes(recomputed: bool) -> tuple[int, list[torch.Tensor]]:
    """How much a small LLaMA keeps for its gradient, and the gradients of what is trained."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, attention_dropout=0.5, **shape)).eval().requires_grad_(False)
    trained = [layer.mlp.down_proj.weight.requires_grad_() for layer in model.model.layers]
    assert recompute_layers(model, recomputed) is recomputed
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.arange(48)[None] % 64, use_cache=False).logits.square().mean()
    loss.backward()
    return sum(sizes.values()), [weight.grad for weight in trained]


def test_layers_that_are_computed_again_keep_less_and_give_the_same_gradient() -> None:
    (whole, expected), (less, found) = kept_bytes(False), kept_bytes(True)
    assert less < whole / 3
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_is_computed_again_changes_no_byte() -> None:
    out = aligned(small_merge(), small_samples(), "--recompute")
    for name in ("model.safetensors", "align/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (adapted() / name).read_bytes()


def test_memory_disk_and_time_are_told_before_the_training() -> None:
    _, result = align(small_merge(), small_samples(), "--no-quiet")
    lines = result.output.splitlines()
    places = [next(at for at, line in enumerate(lines) if line.startswith(start)) for start in TOLD]
    assert places == sorted(places)
    assert lines[places[-1]].endswith("s a step")


TOLD = ("memory: ", "merging by tsv", "asking ", "activations: about ", "step 0", "expected: ", "step 1")


def test_too_little_memory_is_one_error_after_which_nothing_is_done_again(tmp_path: Path) -> None:
    work = tmp_path / "work"
    out, result = align(small_merge(), small_samples(), "--rank", str(10**13), "--work", str(work))
    assert result.exit_code == 1
    assert "The memory of cpu does not suffice (can't allocate memory" in result.output
    assert "lower --batch-size, --answer-tokens, --rank" in result.output
    assert not out.exists()
    out, result = align(small_merge(), small_samples(), "--work", str(work), "--no-quiet", out=out)
    assert result.exit_code == 0, result.output
    assert not any(line.startswith(("asking", "merging")) for line in result.output.splitlines())


def test_other_errors_of_torch_are_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"), enough_memory("cpu"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    with pytest.raises(MergeError, match="the machine needs more memory"), enough_memory("cpu"):
        torch.empty(2**60)


# -------------------------------------------------------------------------------------------------- bad values


def test_a_start_that_computes_no_number_is_refused() -> None:
    out, result = align(small_merge(parameters={"scaling": 1e25}), small_samples())
    assert result.exit_code == 1
    assert "Before the first step, the merged model's divergence from" in result.output
    assert not out.exists()


@pytest.mark.parametrize("way", [(), COEFFICIENTS])
def test_after_a_step_too_far_the_start_is_kept_and_it_is_said(way: tuple[str, ...]) -> None:
    out, result = align(small_merge(), small_samples(), *way, "--rate", "1e30")
    assert result.exit_code == 0, result.output
    assert "the start is kept; at step 1 the divergence was no longer finite" in result.output
    start = c.merge(small_merge())
    assert all(torch.equal(tensor, start.tensors[name]) for name, tensor in c.tensors(out).items())
    assert "The start was kept." in (out / "README.md").read_text()


def expert_without(*names: str, **config: Any) -> Path:
    path = c.altered(small_expert(1), **config)
    for name in names:
        (path / name).unlink()
    return path


def test_an_expert_without_a_processor_is_told_before_anything_is_merged() -> None:
    names = {path.name for path in small_expert(1).iterdir()} - {"config.json", "model.safetensors"}
    expert = expert_without(*names)
    config = small_merge(models=[{"model": str(expert)}, {"model": str(small_expert(2))}])
    out, result = align(config, small_samples(expert=expert))
    assert result.exit_code == 1
    assert f"{expert} has no processor that can be loaded" in result.output
    assert not list(out.parent.glob(f".{out.name}*"))


def test_a_sample_with_a_medium_that_its_expert_does_not_take_is_told_before_anything_is_merged() -> None:
    rows = [{"expert": str(small_expert(n)), "prompt": f"{at} words"} for n in (1, 2) for at in range(3)]
    rows[4] |= {"prompt": "<audio>what?", "audio": "1.wav"}
    out, result = align(small_merge(), written(rows))
    assert result.exit_code == 1
    assert "line 5: the sample has audio, which its expert" in result.output
    assert not list(out.parent.glob(f".{out.name}*"))


def test_the_defaults_that_the_help_shows_are_those_of_the_settings() -> None:
    shown = {one.name: one.show_default for one in main.commands["align"].params if getattr(one, "show_default", None)}
    numbers = {name: value for name, value in shown.items() if str(value).replace(".", "").isdigit()}
    assert len(numbers) > 7
    assert all(float(value) == getattr(Settings(), name) for name, value in numbers.items())


def test_programs_align_by_the_same_settings() -> None:
    out = api.align(small_merge(), c.fresh("aligned"), small_samples(), QUICK_SETTINGS, quiet=True)
    assert report(out)["settings"] == report(adapted())["settings"]
    assert (out / "model.safetensors").read_bytes() == (adapted() / "model.safetensors").read_bytes()


QUICK_SETTINGS = {"steps": 2, "check": 1, "answer_tokens": 2, "rate": 0.0003, "gate": 0.0}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stepz": 3}, "there is no setting 'stepz'"),
        ({"preset": "best"}, "preset 'best' is not known; there is expert-merging"),
        ({"way": "wishes"}, "the ways are adapter, coefficients"),
        ({"rank": 0}, "rank is 0; it must be 1 or more"),
        ({"rate": float("nan")}, "rate is nan"),
    ],
)
def test_a_setting_that_will_not_do_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(MergeError, match=re.escape(told)):
        Settings.of(**settings)
