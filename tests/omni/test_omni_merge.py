"""Models of different modalities on one LLM become one omni model, by the stock command."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
import zoo
from end_to_end import (
    altered,
    checkpoint,
    edit_json,
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
    text_inputs,
    with_method,
    written,
)
from omni_models import MEDIA, TOLERANCE, answers, omni
from peft_adapters import adapted, plus
from processors import with_processor
from tokenizers import Tokenizer

from mergekit_mm.checkpoints.checkpoint import open_checkpoint
from mergekit_mm.plan.omni.composition import placeholder

# (host, guests): every two share a backbone in the zoo
PAIRINGS = [
    ("llava", ("qwen2_audio_llama",)),
    ("llava", ("qwen2_audio_llama", "video_llava")),
    ("llava_qwen2", ("qwen2_audio",)),
    ("qwen2_vl", ("qwen2_audio",)),
    ("qwen2_5_vl", ("audioflamingo3",)),
]


def recipe(host: str, guests: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """The language model of the first guest, and of nobody else, on the host."""
    config = task_arithmetic(checkpoint(host), [checkpoint(g) for g in guests], weight=0.0)
    if "video_llava" in guests:
        more = {"parameters": {"vision_tower": str(checkpoint(host))}, **more}
    return {**config, **more}


@pytest.mark.slow
@pytest.mark.parametrize(("host", "guests"), PAIRINGS)
def test_with_the_hosts_language_model_it_answers_as_the_host(host: str, guests: tuple[str, ...]) -> None:
    model, donor = omni(merge(recipe(host, guests))), load(checkpoint(host), zoo.FAMILIES[host].cls)
    for inputs in (zoo.FAMILIES[host].media(), text_inputs(donor, host)):
        assert torch.allclose(answers(model, inputs), logits(donor, inputs), atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "guests"), PAIRINGS)
def test_with_a_guests_language_model_it_answers_as_the_guest(host: str, guests: tuple[str, ...]) -> None:
    for guest in guests:
        others = [checkpoint(host), *(checkpoint(g) for g in guests if g != guest)]
        choice = {"host": str(checkpoint(host)), "vision_tower": str(checkpoint(host))}
        config = task_arithmetic(checkpoint(guest), others, weight=0.0, parameters=choice)
        if "video_llava" not in guests:
            del config["parameters"]["vision_tower"]  # nothing to choose
        model, donor = omni(merge(config)), load(checkpoint(guest), zoo.FAMILIES[guest].cls)
        inputs = zoo.FAMILIES[guest].media()
        expected = logits(donor, inputs)
        assert torch.allclose(answers(model, inputs), expected, atol=1e-4)
        assert not torch.allclose(answers(omni(merge(recipe(host, guests))), inputs), expected, atol=1e-2)


# every other family of the zoo that shares its backbone with another, once
MORE_PAIRINGS = [
    ("llava_next", "glmasr"),
    ("llava_next_video", "granite_speech"),
    ("llava_pixtral", "voxtral"),
    ("paddleocr_vl", "voxtral"),
    ("vipllava", "video_llava"),
    ("video_llava", "smolvlm"),
    ("idefics2", "qwen2_audio_llama"),
    ("qwen2_audio_llama", "idefics3"),
    ("mistral3", "glmasr"),
    ("granite_speech", "janus"),
    ("glmasr", "deepseek_vl"),
    ("voxtral", "perception_lm"),
    ("internvl", "audioflamingo3"),
    ("llava_onevision", "musicflamingo"),
    ("got_ocr2", "qwen2_audio"),
    pytest.param(
        "qwen2_5_omni_thinker",
        "ovis2",
        marks=pytest.mark.skipif(
            not zoo.THINKER_IN_MEMORY,
            reason="the thinker of transformers 5.20 embeds media outside its inner model, so it is refused as a host",
        ),
    ),
    ("qwen3_vl", "lighton_ocr"),
    ("cohere2_vision", "aya_vision"),
]


def medium_of(family: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Modality, inputs, and the same inputs as the omni model takes them."""
    inputs = zoo.FAMILIES[family].media()
    modality = next(MEDIA[name] for name in inputs if name in MEDIA)
    shared = ("input_ids", "attention_mask")
    named = {k if k in shared else f"{modality}__{k}": v for k, v in inputs.items() if k != "mm_token_type_ids"}
    return modality, inputs, named


@pytest.mark.slow
@pytest.mark.parametrize(("host", "guest"), MORE_PAIRINGS)
def test_every_pair_that_shares_a_backbone_answers_as_either_donor(host: str, guest: str) -> None:
    paths = {family: checkpoint(family) for family in (host, guest)}
    towers = {"image": "vision_tower", "video": "video_tower", "audio": "audio_tower"}
    choice = {"host": str(paths[host])}
    choice |= {towers[medium_of(family)[0]]: str(paths[family]) for family in (host, guest)}  # the guest's, of one kind
    for modality in {"image", "video", "audio"} - {medium_of(guest)[0]}:
        if all(placeholder(modality, open_checkpoint(f, paths[f])) is not None for f in paths):
            choice[towers[modality]] = str(paths[host])
    for family in (host, guest):
        modality, inputs, named = medium_of(family)
        if family == host and modality == medium_of(guest)[0]:
            continue  # that is the guest's to see
        others = [path for other, path in paths.items() if other != family]
        model = omni(merge(task_arithmetic(paths[family], others, weight=0.0, parameters=choice)))
        expected = logits(load(paths[family], zoo.FAMILIES[family].cls), inputs)
        with torch.no_grad():
            assert torch.allclose(model(**named).logits, expected, atol=1e-5)


def test_towers_are_grafted_bit_for_bit_and_the_language_model_is_merged() -> None:
    host, guest = checkpoint("llava"), checkpoint("qwen2_audio_llama")
    outcome = merge(with_method("linear", host, [guest]))
    got = outcome.tensors
    tower = {n: t for n, t in tensors(guest).items() if n.startswith(("audio_tower", "multi_modal_projector"))}
    assert tower
    for name, tensor in tower.items():
        assert torch.equal(got[f"guests.audio.{name}"], tensor), name
    ours, theirs = (tensors(checkpoint(family, "memory")) for family in ("llava", "qwen2_audio_llama"))
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(got[name], (ours[name] + theirs[name]) / 2, atol=1e-6)
    card = yaml.safe_load((outcome.out / "README.md").read_text().split("---")[1])
    assert (card["library_name"], card["pipeline_tag"]) == ("transformers", "any-to-any")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "ties", "optmerge", "tsv"])
def test_any_method_merges_the_language_models_over_a_text_llm(method: str) -> None:
    """Base: the LLM that all donors grew from; it is none of the modalities' owners."""
    torch.manual_seed(0)
    sizes = {"vocab_size": zoo.VOCAB, "hidden_size": zoo.HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    text = save_model(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)))
    donors = [checkpoint("llava"), checkpoint("qwen2_audio_llama")]
    outcome = merge(with_method(method, text, donors))
    assert f"image by {donors[0]}" in outcome.said
    assert f"audio by {donors[1]}" in outcome.said
    model = omni(outcome)
    both = zoo.FAMILIES["llava"].media()
    both["input_ids"] = torch.cat([both["input_ids"], zoo.FAMILIES["qwen2_audio_llama"].media()["input_ids"]], dim=1)
    both["attention_mask"] = torch.ones_like(both["input_ids"])
    sound = {k: v for k, v in zoo.FAMILIES["qwen2_audio_llama"].media().items() if k in MEDIA}
    first = answers(model, {**both, **sound})
    changed = {k: v * 2 + 1 if v.is_floating_point() else v for k, v in sound.items()}
    assert torch.isfinite(first).all()
    assert not torch.allclose(first, answers(model, {**both, **changed}), atol=1e-4), "the sound does not reach it"


def with_own_token(source: Path, token: str) -> Path:
    """The donor with one token of its own at the place of its placeholder, in a vocabulary of its own size."""
    path = altered(source, lambda found: {n: grown(n, t) for n, t in found.items()})
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([token], special_tokens=True)
    tokenizer.save_pretrained(path)
    config = transformers.AutoConfig.from_pretrained(path).to_dict()
    text = {**config["text_config"], "vocab_size": zoo.VOCAB + 1}
    edit_json(path / "config.json", text_config=text, audio_token_index=zoo.VOCAB)
    return path


def grown(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.shape[0] != zoo.VOCAB:
        return tensor
    return torch.cat([tensor, torch.full((1, tensor.shape[1]), 0.5)])


@functools.cache
def with_own_tokens() -> tuple[Path, Path]:
    """A host and a guest with a token of their own each, of one id: rows of 1.0 and of 0.5."""
    host = checkpoint("llava")
    guest = with_own_token(checkpoint("qwen2_audio_llama"), "<sound of its own>")
    tokenizer = transformers.AutoTokenizer.from_pretrained(host)
    tokenizer.add_tokens(["<a token of the host>"], special_tokens=True)  # where the guest has its own
    host = altered(
        host, lambda found: {n: grown(n, t) * (2 if t.shape[0] == zoo.VOCAB else 1) for n, t in found.items()}
    )
    tokenizer.save_pretrained(host)
    text = transformers.AutoConfig.from_pretrained(host).to_dict()["text_config"]
    edit_json(host / "config.json", text_config={**text, "vocab_size": zoo.VOCAB + 1})
    return host, guest


def test_a_token_of_one_donor_gets_an_id_and_keeps_its_row() -> None:
    host, guest = with_own_tokens()
    for method in ("linear", "optmerge"):
        outcome = merge(with_method(method, host, [guest]))
        united = transformers.AutoTokenizer.from_pretrained(outcome.out)
        ids = {t: united.convert_tokens_to_ids(t) for t in ("<sound of its own>", "<a token of the host>", "<image>")}
        assert ids == {"<sound of its own>": zoo.VOCAB + 1, "<a token of the host>": zoo.VOCAB, "<image>": zoo.IMAGE}
        rows = outcome.tensors["model.language_model.embed_tokens.weight"]
        assert rows.shape[0] == zoo.VOCAB + 2
        assert torch.equal(rows[zoo.VOCAB + 1], torch.full((zoo.HIDDEN,), 0.5))
        assert torch.equal(rows[zoo.VOCAB], torch.full((zoo.HIDDEN,), 1.0))
        model = omni(outcome)
        assert model.config.modalities["audio"]["token_id"] == zoo.VOCAB + 1
        sound = zoo.FAMILIES["qwen2_audio_llama"].media()
        sound["input_ids"] = torch.where(sound["input_ids"] == zoo.AUDIO, zoo.VOCAB + 1, sound["input_ids"])
        assert torch.isfinite(answers(model, sound)).all()


def test_it_keeps_its_row_where_its_donor_takes_no_part() -> None:
    """Average of the experts, the base not among them; a module that is not listed; slices of other models."""
    host, guest = with_own_tokens()
    averaged = task_arithmetic(host, [guest], parameters={"embeddings": "average", "lm_head": "average"})
    towers = {**task_arithmetic(host, []), "modules": {"audio_tower": {"models": [{"model": str(guest)}]}}}
    del towers["models"]
    ranges = [([0, 1], [host]), ([1, 2], [guest, host])]
    sources = [[{"model": str(m), "layer_range": part} for m in models] for part, models in ranges]
    sliced = {"merge_method": "linear", "slices": [{"sources": s} for s in sources], "parameters": {"weight": 1.0}}
    for config in (averaged, towers, sliced):
        got = merge(config).tensors
        for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(got[name][zoo.VOCAB :], torch.tensor([[1.0], [0.5]]).expand(2, zoo.HIDDEN)), name


def test_marks_around_media_have_the_embeddings_of_who_was_trained_on_them() -> None:
    """An LLM's reserved tokens, which a donor's config names: Qwen2-VL's `vision_start_token_id`."""
    seeing, hearing = checkpoint("qwen2_vl"), checkpoint("qwen2_audio")
    marks, others = [zoo.V_START, zoo.V_END], [zoo.A_START, 20]
    name = "model.language_model.embed_tokens.weight"
    eye, ear = (tensors(checkpoint(family, "memory"))[name] for family in ("qwen2_vl", "qwen2_audio"))
    for config, expected in (
        (with_method("optmerge", hearing, [seeing]), ear),
        (linear(hearing, seeing), (eye + ear) / 2),
    ):
        outcome = merge(config)
        assert f"The embeddings of <v>, </v>, which stand around media, are those of {seeing}." in outcome.said
        got = outcome.tensors[name]
        assert torch.equal(got[marks], eye[marks])
        assert torch.allclose(got[others], expected[others], atol=1e-6)


@pytest.mark.slow
def test_adapters_are_donors_too() -> None:
    host, guest = checkpoint("llava"), checkpoint("qwen2_audio_llama")
    (on_host, whole_host), (on_guest, whole_guest) = adapted("llava", 21), adapted("qwen2_audio_llama", 22)
    got = merge(linear(plus(host, on_host), plus(guest, on_guest))).tensors
    expected = merge(linear(whole_host, whole_guest)).tensors
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(got[name].float(), tensor.float(), atol=1e-5), name


# ------------------------------------------------------------------------------------------------------------ refusals


def too_narrow() -> Path:
    """An audio model on another backbone."""
    return checkpoint("qwen2_audio")


@pytest.mark.parametrize(
    ("models", "parameters", "told"),
    [
        (("llava", "qwen2_audio"), {}, ["nothing would consume", "q_proj.bias"]),
        (("llava", "video_llava"), {}, ["image inputs", "vision_tower:"]),
        (("llava", "qwen2_audio_llama"), {"host": "elsewhere"}, ["host", "elsewhere"]),
        (("llava", "video_llava", "qwen2_audio_llama"), {"vision_tower": "qwen2_audio_llama"}, ["image"]),
    ],
)
def test_what_does_not_compose_is_refused(models: tuple[str, ...], parameters: dict[str, str], told: list[str]) -> None:
    paths = [checkpoint(m) for m in models]
    values = {k: str(checkpoint(v)) if v in zoo.FAMILIES else v for k, v in parameters.items()}
    refused(linear(*paths, parameters=values), *told)


def test_donors_with_unlike_vocabularies_are_refused() -> None:
    guest = altered(checkpoint("qwen2_audio_llama"))
    other = transformers.AutoTokenizer.from_pretrained(guest)
    names = {token: index for index, token in enumerate(f"<{i}>" for i in range(zoo.VOCAB))}
    from tokenizers import models

    transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(names, "<0>"))).save_pretrained(
        guest
    )
    assert len(other) == len(names)
    refused(linear(checkpoint("llava"), guest), "do not share a vocabulary")
    # transformers makes an empty tokenizer of a Qwen2 without the files of one
    sizes = {"vocab_size": zoo.VOCAB, "hidden_size": zoo.HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    text = fresh("text")
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **heads)).save_pretrained(text)
    refused(linear(checkpoint("qwen2_vl"), checkpoint("qwen2_audio"), text), "each needs the files of its tokenizer")


def test_new_tokens_never_get_the_numbers_of_others() -> None:
    host, guest = altered(checkpoint("llava")), altered(checkpoint("qwen2_audio_llama"))
    known = json.loads((host / "tokenizer.json").read_text())
    known["model"]["vocab"]["<unused299>"] = zoo.VOCAB + 1
    edit_json(host / "tokenizer.json", model=known["model"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(guest)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(guest)
    refused(linear(host, guest), f"The tokenizer of {host} leaves numbers out")


@pytest.mark.slow
def test_a_guest_whose_positions_are_lost_is_told() -> None:
    """Qwen2-VL is the host by default; another host places its images one by one."""
    seeing, hearing = checkpoint("qwen2_vl"), checkpoint("qwen2_audio")
    assert "one by one" not in merge(linear(hearing, seeing)).said
    outcome = merge(linear(hearing, seeing, parameters={"host": str(hearing)}))
    assert f"{seeing} places its media in two or three dimensions" in outcome.said


def test_a_processor_that_will_be_missing_is_told_before_the_merge() -> None:
    guest = with_processor("qwen2_audio_llama")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (guest / name).unlink(missing_ok=True)
    said = plugin("check", written(linear(with_processor("llava"), guest))).output
    assert f"No processor will be written, as that of {guest} cannot be loaded" in said


def test_the_host_can_be_chosen() -> None:
    models = checkpoint("llava"), checkpoint("video_llava"), checkpoint("qwen2_audio_llama")
    choice = {"host": str(models[1]), "vision_tower": str(models[1])}
    outcome = merge(linear(*models, parameters=choice))
    assert type(omni(outcome).config.host).__name__ == "VideoLlavaConfig"
    assert f"image by {models[1]}" in outcome.said


def test_a_composition_that_there_is_not_is_told_first() -> None:
    """Before anything that only some composition could have wrong."""
    guests = [checkpoint("qwen2_audio_llama"), checkpoint("qwen2_audio_llama", tag="expert_0")]
    config = task_arithmetic(checkpoint("llava"), guests)
    refused(config, "cannot merge the projector")
    outcome = refused({**config, "parameters": {"composition": "all"}}, "parameter composition: 'all' is not known")
    assert "projector" not in outcome.error


@pytest.mark.slow
def test_what_is_written_does_not_depend_on_what_the_process_has_done() -> None:
    """transformers writes more beside a model once its auto classes know the model, as they do in this process."""
    config = linear(checkpoint("llava"), checkpoint("qwen2_audio_llama"))
    here, out = merge(config).out, fresh("in_a_new_process")
    script = "import sys; from mergekit_mm import api; api.merge(*sys.argv[1:], quiet=True)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(written(config)), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = {path.relative_to(here) for path in here.rglob("*") if path.is_file()}
    assert names == {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert names
    own = {Path("README.md"), Path("mergekit_config.yml")}
    assert not [name for name in names - own if (here / name).read_bytes() != (out / name).read_bytes()]
