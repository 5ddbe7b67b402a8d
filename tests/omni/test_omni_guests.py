"""Several donors of one architecture in an omni model: policies, choices, refusals. Omni models merged again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import zoo
from end_to_end import (
    Tensors,
    altered,
    assert_close,
    checkpoint,
    edit_json,
    experts,
    fresh,
    linear,
    load,
    logits,
    merge,
    plugin,
    refused,
    run,
    save_model,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
)
from omni_models import TOLERANCE, answers, omni
from peft_adapters import adapted, plus
from processors import picture, tone, with_processor

pytestmark = [pytest.mark.slow, pytest.mark.long]

EAR = "qwen2_audio_llama"
PREFIX = "guests.audio."
UP = "model.language_model.layers.0.mlp.up_proj.weight"  # in memory; names on disk depend on transformers' version


def text_llm() -> Path:
    """The LLM that LLaVA and the audio models of these tests might have grown from."""
    torch.manual_seed(0)
    sizes = {"vocab_size": zoo.VOCAB, "hidden_size": zoo.HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2}
    return save_model(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
        )
    )


def ears(path: Path) -> Tensors:
    """Tower and projector of an audio donor."""
    return {n: t for n, t in tensors(path).items() if n.startswith(("audio_tower", "multi_modal_projector"))}


def of_guest(merged: Tensors) -> Tensors:
    return {name.removeprefix(PREFIX): tensor for name, tensor in merged.items() if name.startswith(PREFIX)}


def tower(found: Tensors) -> Tensors:
    return {name: tensor for name, tensor in found.items() if name.startswith("audio_tower")}


def projector(found: Tensors) -> Tensors:
    return {name: tensor for name, tensor in found.items() if name.startswith("multi_modal_projector")}


def mean(*found: Tensors) -> Tensors:
    return {name: torch.stack([f[name] for f in found]).mean(0) for name in found[0]}


# --------------------------------------------------------------------------------- donors of a guest's architecture


def test_without_a_base_linear_averages_and_delta_methods_keep_the_first_by_default() -> None:
    first, second = experts(EAR)[:2]
    expected = mean(ears(first), ears(second))
    assert_close(of_guest(merge(linear(checkpoint("llava"), first, second)).tensors), expected, 1e-6)
    outcome = merge(with_method("optmerge", text_llm(), [checkpoint("llava"), first, second]))
    assert_close(of_guest(outcome.tensors), ears(first), 0)
    for role in ("audio_tower", "projector"):
        assert f"{role} is that of {first}; {second} has one of the same kind" in outcome.said
    assert f"37 grafted from {first}" in outcome.said
    report = (outcome.out / "README.md").read_text()
    assert f"37 grafted from {first}" in report


def test_policies_hold_for_each_role_of_the_guest() -> None:
    first, second = experts(EAR)[:2]
    policies = {"audio_tower": "average", "projector": "base", "vision_tower": "base"}
    outcome = merge(task_arithmetic(text_llm(), [checkpoint("llava"), first, second], parameters=policies))
    got = of_guest(outcome.tensors)
    assert_close(tower(got), mean(tower(ears(first)), tower(ears(second))), 1e-6)
    assert_close(projector(got), projector(ears(first)), 0)
    assert "37 mean of the experts" in outcome.said


@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_a_base_of_the_guests_architecture_is_the_base_of_its_towers(method: str) -> None:
    base, tuned = checkpoint(EAR), experts(EAR)[:2]
    choice: dict[str, Any] = {"host": str(checkpoint("llava"))}
    got = of_guest(merge(with_method(method, base, [checkpoint("llava"), *tuned], parameters=choice)).tensors)
    merged = sum_of_deltas(ears(base), [ears(path) for path in tuned])
    assert_close(got, merged if method == "task_arithmetic" else ears(base), 1e-6)
    choice |= {"audio_tower": "average", "projector": "merge"}
    got = of_guest(merge(with_method(method, base, [checkpoint("llava"), *tuned], parameters=choice)).tensors)
    assert_close(tower(got), mean(*(tower(ears(path)) for path in tuned)), 1e-6)
    if method == "optmerge":
        name = "multi_modal_projector.linear.weight"
        assert not torch.equal(got[name], ears(base)[name])


def test_a_named_donor_is_taken_as_it_is() -> None:
    first, second = experts(EAR)[:2]
    outcome = merge(linear(checkpoint("llava"), first, second, parameters={"audio_tower": str(second)}))
    assert_close(of_guest(outcome.tensors), ears(second), 0)
    assert f"audio by {second}" in outcome.said
    assert f"Only the language model of {first} is merged: the config names those of {second}" in outcome.said
    models = checkpoint("llava", "memory"), *experts(EAR, "memory")[:2]
    all_three = mean(*({UP: tensors(path)[UP]} for path in models))
    assert torch.allclose(outcome.tensors[UP], all_three[UP], atol=1e-6)


def test_a_text_llm_is_a_donor_of_its_language_model() -> None:
    llm = text_llm()
    got = merge(linear(checkpoint("llava"), checkpoint(EAR), llm)).tensors[UP]
    found = [tensors(checkpoint("llava", "memory"))[UP], tensors(checkpoint(EAR, "memory"))[UP]]
    found.append(tensors(llm)["model.layers.0.mlp.up_proj.weight"])
    assert torch.allclose(got, torch.stack(found).mean(0), atol=1e-6)


def test_a_named_donor_of_the_hosts_architecture_is_the_host() -> None:
    first, second = checkpoint("llava"), experts("llava")[0]
    outcome = merge(linear(first, second, checkpoint(EAR), parameters={"vision_tower": str(second)}))
    name = "vision_tower.encoder.layers.0.mlp.fc1.weight"
    theirs = next(t for n, t in tensors(second).items() if n.endswith(name))
    assert torch.equal(outcome.tensors[f"model.{name}"], theirs)
    assert f"host {second}" in outcome.said


def test_adapters_of_one_guest_are_merged_in_its_towers_too() -> None:
    base, host = checkpoint(EAR), checkpoint("llava")
    (one, whole_one), (two, whole_two) = adapted(EAR, 31), adapted(EAR, 32)
    got = of_guest(merge(linear(host, plus(base, one), plus(base, two))).tensors)
    expected = of_guest(merge(linear(host, whole_one, whole_two)).tensors)
    assert_close(got, expected)


def other_shape() -> Path:
    """An audio model whose tower is wider inside."""
    config = zoo.qwen2_audio_llama()
    config.audio_config.encoder_ffn_dim = 96
    return save_model(transformers.Qwen2AudioForConditionalGeneration(config))


def test_donors_of_different_shapes_need_a_choice() -> None:
    host, first, second = checkpoint("llava"), checkpoint(EAR), other_shape()
    told = "fc1.weight: (96, 32), not (64, 32)", "shape of 6 tensors", f"`parameters: audio_tower: {first}`"
    refused(linear(host, first, second), *told)
    got = of_guest(merge(linear(host, first, second, parameters={"audio_tower": str(second)})).tensors)
    assert got["audio_tower.layers.0.fc1.weight"].shape == (96, 32)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"method": "task_arithmetic"},
            ["cannot merge the audio_tower of", "the projector of", "audio_tower: average"],
        ),
        ({"method": "optmerge", "audio_tower": "merge"}, ["optmerge cannot merge the audio_tower of"]),
        ({"method": "linear", "audio_tower": "llava"}, ["parameter audio_tower", "does not take audio inputs"]),
        ({"method": "linear", "audio_tower": "elsewhere"}, ["not a policy", "one of its donors"]),
        ({"method": "linear", "host": "llava", "vision_tower": "llava/1"}, ["are both chosen"]),
        ({"method": "linear", "processor_source": "llava"}, ["processor_source: not for an omni model"]),
    ],
)
def test_what_is_not_defined_is_refused(config: dict[str, str], told: list[str]) -> None:
    models = {"llava": str(checkpoint("llava")), "llava/1": str(experts("llava")[0])}
    parameters = {key: models.get(value, value) for key, value in config.items() if key != "method"}
    donors = [Path(models["llava"]), *experts(EAR)[:2], *([Path(models["llava/1"])] if "host" in config else [])]
    refused(with_method(config["method"], text_llm(), donors, parameters=parameters), *told)


@pytest.mark.parametrize("setting", [{"tokenizer_source": "union"}, {"chat_template": "auto"}])
def test_settings_of_one_tokenizer_are_refused(setting: dict[str, str]) -> None:
    refused(linear(checkpoint("llava"), checkpoint(EAR), **setting), f"{next(iter(setting))}: not for an omni model")


# ------------------------------------------------------------------------------------------------ tied and untied heads


def tied(family: str) -> Path:
    """A family's model whose head is its embeddings."""
    config = zoo.FAMILIES[family].config()
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = True
    torch.manual_seed(5)
    path = save_model(getattr(transformers, zoo.FAMILIES[family].cls)(config))
    assert not [name for name in tensors(path) if name.endswith("lm_head.weight")]
    return path


@pytest.mark.parametrize("ties", [("llava",), ("video_llava",), ("llava", "video_llava")])
def test_heads_are_tied_only_if_all_are(ties: tuple[str, ...]) -> None:
    """Whoever gives the language model, it answers as that donor: a head of its own is not lost."""
    donors = {family: tied(family) if family in ties else checkpoint(family) for family in ("llava", "video_llava")}
    choice = {"host": str(donors["llava"]), "vision_tower": str(donors["llava"])}
    for family, path in donors.items():
        others = [other for other in donors.values() if other != path]
        outcome = merge(task_arithmetic(path, others, weight=0.0, parameters=choice))
        model = omni(outcome)
        assert ("lm_head.weight" in outcome.tensors) == (len(ties) == 1)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == (len(ties) == 2)
        donor, inputs = load(path, zoo.FAMILIES[family].cls), zoo.FAMILIES[family].media()
        assert torch.allclose(answers(model, inputs), logits(donor, inputs), atol=TOLERANCE)


# ------------------------------------------------------------------------------------------ omni models as inputs


@pytest.fixture(scope="module")
def made() -> Path:
    donors = [with_processor(family) for family in ("llava", EAR, "video_llava")]
    return merge(linear(*donors, parameters={"vision_tower": str(donors[0])})).out


def tuned(made: Path, seed: int) -> Path:
    """What a fine-tune of an omni model saves."""
    model = transformers.AutoModelForMultimodalLM.from_pretrained(made)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    path = fresh("tuned")
    model.save_pretrained(path)
    transformers.AutoProcessor.from_pretrained(made).save_pretrained(path)
    return path


def test_fine_tunes_of_one_omni_model_are_merged(made: Path) -> None:
    others = [tuned(made, 1), tuned(made, 2)]
    outcome = merge(task_arithmetic(made, others))
    assert_close(outcome.tensors, sum_of_deltas(tensors(made), map(tensors, others)))
    omni(outcome)
    processor = transformers.AutoProcessor.from_pretrained(outcome.out)
    assert processor.donors.keys() == {"host", "audio", "video"}
    assert {path.name for path in outcome.out.glob("*.py")} == {path.name for path in made.glob("*.py")} != set()
    policies = {"audio_tower": "average", "video_tower": "merge"}
    got = merge(with_method("optmerge", made, others, parameters=policies)).tensors
    base, first, second = tensors(made), *map(tensors, others)
    for name, tensor in got.items():
        if "audio_tower" in name:
            assert torch.allclose(tensor, (first[name] + second[name]) / 2, atol=1e-6), name
        elif "vision_tower" in name or "projector" in name:
            assert torch.equal(tensor, base[name]), name
    changed = {name for name in got if not torch.equal(got[name], base[name])}
    assert "guests.video.video_tower.encoder.layers.0.mlp.fc1.weight" in changed
    assert "model.language_model.layers.0.mlp.up_proj.weight" in changed


def test_an_adapter_is_trained_on_an_omni_model_and_merged(made: Path) -> None:
    """By PEFT as users call it, with gradient checkpointing; the merge is what PEFT's own makes."""
    processor = transformers.AutoProcessor.from_pretrained(made)
    inputs = processor(text="<image> <audio> hi", images=picture(0), audio=tone(0))
    model = transformers.AutoModelForMultimodalLM.from_pretrained(made)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    trained = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = trained(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    path = fresh("adapter")
    trained.save_pretrained(path)
    got = merge(task_arithmetic(made, [plus(made, path)], weight=1.0)).tensors
    expected = trained.merge_and_unload().state_dict()
    assert_close(got, dict(expected))
    moved = {name.split(".layers")[0] for name, tensor in got.items() if not torch.equal(tensor, tensors(made)[name])}
    assert moved >= {"model.language_model", "guests.audio.audio_tower"}


def test_inspect_tells_the_roles_of_an_omni_model(made: Path) -> None:
    told = plugin("inspect", made)
    assert told.exit_code == 0, told.output
    counts = {line.split()[0]: int(line.split()[2]) for line in told.output.splitlines()[3:] if "_tower" in line}
    assert counts == {"vision_tower": 78, "audio_tower": 37, "video_tower": 39}
    assert "unknown" not in told.output


def test_an_omni_model_is_no_part_of_another(made: Path) -> None:
    refused(linear(made, checkpoint("llava")), f"{made} is an omni model already")
    other = merge(linear(checkpoint("llava"), checkpoint(EAR))).out
    refused(linear(made, other), "lacks 82 tensors")


# ------------------------------------------------------------------------------------------------ odd checkpoints


def test_rotary_positions_are_the_bases_and_what_differs_is_told() -> None:
    guest = altered(checkpoint("video_llava"))
    text = transformers.AutoConfig.from_pretrained(guest).to_dict()["text_config"]
    scaled = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
    edit_json(guest / "config.json", text_config={**text, "rope_parameters": scaled})
    choice = {"host": str(checkpoint("llava")), "vision_tower": str(checkpoint("llava"))}
    outcome = merge(task_arithmetic(guest, [checkpoint("llava")], weight=0.0, parameters=choice))
    assert "The language models differ: rope" in outcome.said
    model, inputs = omni(outcome), zoo.FAMILIES["video_llava"].media()
    assert {k: model.config.get_text_config().rope_parameters[k] for k in scaled} == scaled
    expected = logits(load(guest, "VideoLlavaForConditionalGeneration"), inputs)
    assert torch.allclose(answers(model, inputs), expected, atol=TOLERANCE)


def test_a_window_of_attention_that_the_host_has_not_is_told() -> None:
    guest = altered(checkpoint("qwen2_audio"))
    text = transformers.AutoConfig.from_pretrained(guest).to_dict()["text_config"]
    sliding = {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2}
    edit_json(guest / "config.json", text_config={**text, **sliding})
    host = checkpoint("qwen2_vl")
    assert f"{guest} attends to 4 tokens before one, {host} to all" in merge(linear(host, guest)).said
    assert "tokens before one" not in merge(linear(host, checkpoint("qwen2_audio"))).said


def test_only_layers_of_the_language_model_move() -> None:
    host, guest = checkpoint("llava"), checkpoint(EAR)
    source = {"sources": [{"model": str(guest), "layer_range": [0, 2]}]}
    config = {**linear(host, guest, parameters={"weight": 1.0}), "modules": {"audio_tower": {"slices": [source] * 2}}}
    config["modules"]["language_model"] = {"models": config.pop("models")}
    outcome = run(config)
    assert "slices of audio_tower: only layers of the language model" in outcome.error
    assert "Executing" not in outcome.said
    sources = [{"model": str(m), "layer_range": [0, 2]} for m in (host, guest)]
    repeated = {**config, "modules": {"language_model": {"slices": [{"sources": sources}] * 2}}}
    model = omni(merge(repeated))
    assert model.config.get_text_config().num_hidden_layers == len(model.get_decoder().layers) == 4


def test_constants_that_the_host_computes_without_are_refused() -> None:
    granite = altered(checkpoint("granite_speech"))
    text = transformers.AutoConfig.from_pretrained(granite).to_dict()["text_config"]
    edit_json(granite / "config.json", text_config={**text, "embedding_multiplier": 12.0})
    told = "The language models differ: constants {'embedding_multiplier': 12.0}"
    refused(linear(checkpoint("llava"), granite), told)


def test_left_over_tensors_of_a_donor_are_told_and_left_out() -> None:
    """Old checkpoints hold buffers that the model has no place for."""
    extra = torch.arange(60)
    host = altered(checkpoint("llava"), lambda found: {**found, "vision_tower.embeddings.position_ids": extra})
    guest = altered(checkpoint(EAR), lambda found: {**found, "audio_tower.position_ids": extra})
    outcome = merge(linear(host, guest))
    assert outcome.said.count("has no place for; they are left out") == 2
    omni(outcome)


def test_a_placeholder_without_a_token_is_refused() -> None:
    guest = altered(checkpoint(EAR))
    edit_json(guest / "config.json", audio_token_index=zoo.VOCAB + 7)
    refused(linear(checkpoint("llava"), guest), f"The placeholder of audio in {guest} is {zoo.VOCAB + 7}")


def test_placeholders_of_one_name_are_told_apart() -> None:
    """Two donors that use the same reserved token of their LLM, one for images and one for sounds."""
    host, guest = with_processor("llava"), with_processor(EAR)
    edit_json(guest / "config.json", audio_token_index=zoo.IMAGE)
    edit_json(guest / "processor_config.json", audio_token="<image>")
    template = (guest / "chat_template.jinja").read_text()
    (guest / "chat_template.jinja").write_text(template.replace("<' + p['type'] + '>", "<image>"))
    outcome = merge(task_arithmetic(guest, [host], weight=0.0, parameters={"host": str(host)}))
    model, processor = omni(outcome), transformers.AutoProcessor.from_pretrained(outcome.out)
    assert {m: e["token_id"] for m, e in model.config.modalities.items()} == {"image": zoo.IMAGE, "audio": zoo.VOCAB}
    assert torch.equal(outcome.tensors["lm_head.weight"][zoo.VOCAB], outcome.tensors["lm_head.weight"][zoo.IMAGE])
    inputs = processor(text="hear <omni_audio> and see <image>", audio=tone(1), images=picture(0))
    counts = [int((inputs["input_ids"] == token).sum()) for token in (zoo.IMAGE, zoo.VOCAB)]
    assert counts[0] == 4
    donor, source = load(guest, zoo.FAMILIES[EAR].cls), transformers.AutoProcessor.from_pretrained(guest)
    heard = source(text="hear <a><image></a>", audio=tone(1), return_tensors="pt")
    assert counts[1] == int((heard["input_ids"] == zoo.IMAGE).sum()) > 1
    with torch.no_grad():
        got = model(**processor(text="hear <omni_audio>", audio=tone(1))).logits[..., : zoo.VOCAB]
    assert torch.allclose(got, logits(donor, heard), atol=TOLERANCE)


def test_donors_in_different_dtypes_and_an_output_in_shards() -> None:
    host = altered(checkpoint("llava"), lambda found: {n: t.bfloat16() for n, t in found.items()}, dtype="bfloat16")
    outcome = merge(linear(host, checkpoint(EAR), out_dtype="bfloat16"), "--out-shard-size", "50k")
    assert len(list(outcome.out.glob("*.safetensors"))) > 2
    assert {t.dtype for t in outcome.tensors.values()} == {torch.bfloat16}
    assert omni(outcome).config.dtype is torch.bfloat16
    mixed = merge(linear(host, checkpoint(EAR)))
    assert_close(of_guest(mixed.tensors), ears(checkpoint(EAR)), 0)
    omni(mixed)
