"""`composition: damc`: the tokens of a medium go through their own donor's matrices, text through the merged ones."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from end_to_end import (
    altered,
    checkpoint,
    command,
    experts,
    fresh,
    linear,
    load,
    logits,
    merge,
    plugin,
    refused,
    save_model,
    task_arithmetic,
    tensors,
    with_method,
    written,
)
from omni_models import MEDIA, omni
from peft_adapters import adapted, plus

from mergekit_mm.omni.modeling import OmniForConditionalGeneration

pytestmark = pytest.mark.slow

TRIO = ("llava", "qwen2_audio_llama", "video_llava")  # image, sound, video
PAIR = ("qwen2_vl", "qwen2_audio")  # with biases, and positions in three dimensions
TOKEN = {"image": zoo.IMAGE, "video": zoo.VIDEO, "audio": zoo.AUDIO}
QUIET = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": list(TOKEN.values())}

Recipe = dict[str, Any]


def damc(config: Recipe) -> Recipe:
    return {**config, "parameters": {**config.get("parameters", {}), "composition": "damc"}}


def average(families: tuple[str, ...]) -> Recipe:
    """NaiveMC: the plain average of all donors."""
    config = linear(*map(checkpoint, families))
    if "video_llava" in families:
        config["parameters"] = {"vision_tower": str(checkpoint("llava"))}
    return config


@functools.cache
def averaged(families: tuple[str, ...], decoupled: bool = True) -> OmniForConditionalGeneration:
    return omni(merge(damc(average(families)) if decoupled else average(families)))


def modality(family: str) -> str:
    return next(MEDIA[key] for key in zoo.FAMILIES[family].media() if key in MEDIA)


def prompt_of(*families: str) -> dict[str, Any]:
    """One prompt with the media of these donors, one after the other, and text between them."""
    parts = [zoo.FAMILIES[family].media() for family in families]
    media = {f"{MEDIA[key]}__{key}": value for part in parts for key, value in part.items() if key in MEDIA}
    return {"input_ids": torch.cat([part["input_ids"] for part in parts], dim=1), **media}


def linears(model: Any) -> dict[str, torch.nn.Linear]:
    layers = model.get_decoder().layers
    return {name: module for name, module in layers.named_modules() if isinstance(module, torch.nn.Linear)}


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------ whole matrices


def reference(families: tuple[str, ...], inputs: Mapping[str, Any]) -> torch.Tensor:
    """The static model, in which every layer multiplies all tokens by each donor's matrix too, and then chooses."""
    model = averaged(families, decoupled=False)
    donors = [linears(load(checkpoint(family), zoo.FAMILIES[family].cls).model) for family in families]
    masks = [(inputs["input_ids"] == TOKEN[modality(family)]).unsqueeze(-1) for family in families]

    def choosing(name: str) -> Callable[..., torch.Tensor]:
        def hook(_module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            for mask, donor in zip(masks, donors, strict=True):
                own = args[0] @ donor[name].weight.T
                bias = donor[name].bias
                out = torch.where(mask, own if bias is None else own + bias, out)
            return out

        return hook

    handles = [layer.register_forward_hook(choosing(name)) for name, layer in linears(model).items()]
    try:
        return logits(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("families", [TRIO, PAIR])
def test_each_token_goes_through_the_matrices_of_its_owner(families: tuple[str, ...]) -> None:
    model, static = averaged(families), averaged(families, decoupled=False)
    for shown in (families, families[:1], families[1:]):
        inputs = prompt_of(*shown)
        close(logits(model, inputs), reference(families, inputs))
        assert not torch.allclose(logits(model, inputs), logits(static, inputs), atol=1e-3), "it is the static model"
    text = zoo.prompt(20, 30, zoo.IMAGE, 40)  # a placeholder without a medium is text
    assert torch.equal(logits(model, text), logits(static, text))


def test_biases_go_with_their_matrices_under_any_policy() -> None:
    """Our methods leave biases at the base, where nobody says otherwise."""
    eye, ear = map(checkpoint, PAIR)
    got = merge(damc(with_method("optmerge", eye, [ear]))).tensors
    name = "layers.0.self_attn.q_proj"
    heard = tensors(checkpoint(PAIR[1], "memory"))[f"model.language_model.{name}.bias"]
    own = {"host": tensors(eye)[f"model.{name}.bias"], "audio": heard}
    for owner, bias in own.items():
        assert torch.equal(got[f"model.language_model.{name}.media.{owner}.bias"], bias), owner
    assert torch.equal(got[f"model.language_model.{name}.text.bias"], own["host"])


@pytest.mark.parametrize("families", [TRIO, PAIR])
def test_a_batch_and_the_cache_and_beams_change_nothing(families: tuple[str, ...]) -> None:
    model = averaged(families)
    samples = [prompt_of(*families), zoo.prompt(20, 30), prompt_of(families[1])]
    length = max(sample["input_ids"].shape[1] for sample in samples)
    ids, mask = torch.full((3, length), zoo.PAD), torch.zeros(3, length, dtype=torch.long)
    media: dict[str, list[torch.Tensor]] = {}
    for row, sample in enumerate(samples):
        start = length - sample["input_ids"].shape[1]
        ids[row, start:], mask[row, start:] = sample["input_ids"][0], 1
        for name in sample.keys() - {"input_ids"}:
            media.setdefault(name, []).append(sample[name])
    batch = {"input_ids": ids, "attention_mask": mask, **{name: torch.cat(found) for name, found in media.items()}}
    together = logits(model, batch)
    answers = {beams: model.generate(**batch, **QUIET, num_beams=beams)[:, length:] for beams in (1, 2)}
    for row, sample in enumerate(samples):
        close(together[row][mask[row].bool()], logits(model, sample)[0])
        for beams, answer in answers.items():
            alone = model.generate(**sample, **QUIET, num_beams=beams, use_cache=False)
            assert answer[row].tolist() == alone[0, sample["input_ids"].shape[1] :].tolist(), beams


def test_gradients_are_those_without_checkpointing() -> None:
    """Layers run once more in the backward pass, when another prompt may have been seen."""
    model, inputs = copy.deepcopy(averaged(TRIO)).train(), prompt_of(*TRIO)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
        logits(model, zoo.prompt(20, 30))
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert all(plain[f"model.language_model.layers.0.mlp.up_proj.media.{o}.weight"].any() for o in model.config.owners)
    model.gradient_checkpointing_enable()
    again = gradients()
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        close(again[name], gradient)


def test_it_is_saved_and_loaded_as_any_model() -> None:
    model, inputs, path = averaged(TRIO), prompt_of(*TRIO), fresh("saved")
    model.save_pretrained(path)
    again, report = OmniForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(logits(again.eval(), inputs), logits(model, inputs))
    half = OmniForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    close(logits(half, halves).float(), logits(model, inputs), 0.1)


def test_the_code_it_carries_is_enough(tmp_path: Path) -> None:
    out = merge(damc(average(TRIO[:2]))).out
    script = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForMultimodalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "print('mergekit_mm.omni' in sys.modules)\n"
        "with torch.no_grad(): torch.save(model(**torch.load(sys.argv[2])).logits, sys.argv[2])"
    )
    inputs, file = prompt_of(*TRIO[:2]), tmp_path / "tensors.pt"
    torch.save(inputs, file)
    environment = {"MERGEKIT_MM_AUTOLOAD": "0", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", script, str(out), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["False"]
    close(torch.load(file), logits(averaged(TRIO[:2]), inputs))


# ------------------------------------------------------------------------------------------------------------ factors


@functools.cache
def adapters() -> tuple[Path, tuple[Path, Path], tuple[Path, Path]]:
    """A base, and two donors of it: as `model+adapter`, and as PEFT merges the adapter into the model.

    The adapters differ in rank, in targets and in the layers they change.
    """
    base = checkpoint("llava")
    llava = tensors(checkpoint("llava", "memory"))
    ours = {name: tensor for name, tensor in llava.items() if name.startswith(("model.language_model.", "lm_head."))}
    ear = altered(checkpoint("qwen2_audio_llama", "memory"), lambda found: {**found, **ours})
    targets = {"r": 3, "target_modules": r".*language_model.*layers\.0.*(k|v|gate|down)_proj"}
    eye, hearing = adapted("llava", 31), adapted("qwen2_audio_llama", 32, path=ear, **targets)
    return base, (plus(base, eye[0]), eye[1]), (plus(ear, hearing[0]), hearing[1])


def of_adapters(method: str, whole: bool = False, **parameters: Any) -> Recipe:
    base, *donors = adapters()
    config = with_method(method, base, [donor[whole] for donor in donors])
    return damc({**config, "parameters": {**parameters, "host": str(donors[0][whole])}})


@pytest.mark.parametrize(
    ("method", "parameters"), [("task_arithmetic", {}), ("optmerge", {"preset": "modality"}), ("tsv", {"scaling": 0.7})]
)
def test_adapters_are_kept_as_factors(method: str, parameters: dict[str, Any]) -> None:
    outcome = merge(of_adapters(method, **parameters))
    model, inputs = omni(outcome), prompt_of(*TRIO[:2])
    ranks = {"self_attn": {"q": 4, "k": [3, 0], "v": [7, 4], "o": 4}, "mlp": {"gate": [3, 0], "up": 4, "down": [7, 4]}}
    assert model.config.routed == {f"{p}.{n}_proj": r for p, found in ranks.items() for n, r in found.items()}
    whole = omni(merge(of_adapters(method, whole=True, **parameters)))
    assert set(whole.config.routed.values()) == {"full"}
    for shown in (inputs, prompt_of("llava"), prompt_of("qwen2_audio_llama"), zoo.prompt(20, 30)):
        close(logits(model, shown), logits(whole, shown))
    static = of_adapters(method, **parameters)
    del static["parameters"]["composition"]
    static = omni(merge(static))
    close(logits(model, zoo.prompt(20, 30)), logits(static, zoo.prompt(20, 30)))
    assert not torch.allclose(logits(model, inputs), logits(static, inputs), atol=1e-3)
    answer = model.generate(**inputs, **QUIET)
    assert answer.tolist() == model.generate(**inputs, **QUIET, use_cache=False).tolist()


def test_a_base_with_an_adapter_of_its_own_keeps_whole_matrices() -> None:
    """The donors' adapters are then no deltas over the base."""
    _, eye, ear = adapters()
    by_form = []
    for form in (0, 1):  # as `model+adapter`, and merged by PEFT
        recipe = damc(with_method("task_arithmetic", eye[form], [ear[form]]))
        by_form.append(omni(merge({**recipe, "parameters": {**recipe["parameters"], "host": str(eye[form])}})))
    assert set(by_form[0].config.routed.values()) == {"full"}
    for inputs in (prompt_of(*TRIO[:2]), zoo.prompt(20, 30)):
        close(logits(by_form[0], inputs), logits(by_form[1], inputs))


def test_that_factors_of_two_such_models_are_merged_is_told() -> None:
    made = merge(of_adapters("task_arithmetic")).out
    assert "keeps factors for its media" in merge(linear(made, altered(made))).said


@pytest.mark.parametrize("whole", [False, True])
def test_a_strength_is_that_of_the_text(whole: bool) -> None:
    out, done = command("sweep", of_adapters("task_arithmetic", whole), "--quiet", "--scaling", "0.5,1")
    assert done.exit_code == 0, done.output
    for strength in (0.5, 1.0):
        swept = OmniForConditionalGeneration.from_pretrained(out / f"scaling_{strength:g}").eval()
        config = of_adapters("task_arithmetic", whole, **{"lambda": strength})
        close(logits(swept, prompt_of(*TRIO[:2])), logits(omni(merge(config)), prompt_of(*TRIO[:2])))


def test_what_is_no_adapter_of_the_base_is_kept_whole() -> None:
    for config in (
        of_adapters("optmerge", preset="full"),  # Adam makes no factors of factors
        of_adapters("ties"),
        damc(with_method("task_arithmetic", checkpoint("llava"), [checkpoint("qwen2_audio_llama")])),
        damc(with_method("tsv", checkpoint("llava"), [plus(checkpoint("qwen2_audio_llama"), own_adapter())])),
    ):
        forms = omni(merge(config)).config.routed.values()
        assert {f for form in forms for f in (form if isinstance(form, list) else [form])} <= {"full", 0}


def own_adapter() -> Path:
    return adapted("qwen2_audio_llama", 33)[0]


def test_a_base_that_differs_in_some_layer_is_told() -> None:
    base, eye, hearing = adapters()
    model, adapter = str(hearing[0]).split("+")
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    altered_ear = altered(Path(model), lambda found: {**found, name: found[name] + 1e-3})
    adapter_config = Path(adapter) / "adapter_config.json"
    config = damc(with_method("task_arithmetic", base, [eye[0], plus(altered_ear, Path(adapter))]))
    before = adapter_config.read_text()
    adapter_config.write_text(before.replace(model, str(altered_ear)))
    try:
        refused(config, "layers.1.mlp.down_proj.weight", "merge_and_unload")
    finally:
        adapter_config.write_text(before)


# ----------------------------------------------------------------------------------------------------------- refusals


def mixtures_of_experts() -> list[Path]:
    """An image and an audio model around a mixture of experts."""
    text = transformers.Qwen2MoeConfig(
        vocab_size=zoo.VOCAB, hidden_size=zoo.HIDDEN, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_experts=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    )  # fmt: skip
    paths = []
    for family in ("llava", "qwen2_audio_llama"):
        config = zoo.FAMILIES[family].config()
        config.text_config = text
        paths.append(save_model(getattr(transformers, zoo.FAMILIES[family].cls)(config), family))
    return paths


def test_what_cannot_be_decoupled_is_refused() -> None:
    llava, ear = map(checkpoint, TRIO[:2])
    per_model = linear(llava, ear)
    per_model["models"][0]["parameters"]["composition"] = "damc"
    alone = damc({**task_arithmetic(ear, [], parameters={"host": str(llava)}), "modules": {}})
    for module, model in (("language_model", experts("qwen2_audio_llama")[0]), ("vision_tower", llava)):
        alone["modules"][module] = {"models": [{"model": str(model), "parameters": {"weight": 1.0}}]}
    del alone["models"]
    towers = {"vision_tower": alone["modules"]["vision_tower"]}
    for config, told in (
        (linear(llava, ear, parameters={"composition": "dmac"}), "choose static | damc"),
        (damc(linear(llava, llava)), "composition: damc is for omni models"),
        (per_model, "composition of input"),
        ({**alone, "modules": towers}, "has nothing to keep"),
        (alone, f"composition: damc needs {llava}"),
        (damc(linear(*mixtures_of_experts())), "mixtures of experts"),
    ):
        refused(config, told)


def test_text_models_alone_cannot_be_decoupled() -> None:
    sizes = {"vocab_size": zoo.VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = save_model(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2)))
    refused(damc(linear(text, text)), "composition: damc is for omni models")


def test_no_adapter_holds_an_omni_model() -> None:
    out, done = command("lora", of_adapters("task_arithmetic"), "--quiet")
    assert done.exit_code == 1
    assert "omni model" in done.output
    assert not out.exists()


def test_check_tells_what_it_costs() -> None:
    said = plugin("check", written(damc(average(TRIO)))).output
    own = sum(layer.weight.nbytes for layer in linears(averaged(TRIO, decoupled=False)).values())
    assert f"kept whole: 42 tensors, {3 * own / 1e9:.3g} GB more" in said
