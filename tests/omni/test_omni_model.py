"""The composed model answers as each of its donors does, and about several media at once."""

from __future__ import annotations

import copy
import functools
from typing import Any

import end_to_end as c
import pytest
import torch
import transformers
import zoo

from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.modeling import OmniForConditionalGeneration

pytestmark = pytest.mark.long

# Another id than any donor's: an omni vocabulary is a union, in which placeholders move.
TOKENS = {"image": 281, "video": 282, "audio": 283}
DONOR_TOKENS = {"image": zoo.IMAGE, "video": zoo.VIDEO, "audio": zoo.AUDIO}
MODALITY = {"pixel_values": "image", "pixel_values_videos": "video", "input_features": "audio"}
QUIET = {"suppress_tokens": list(range(281, 293)), "do_sample": False, "max_new_tokens": 5}

# Host and guests whose language models have the same tensors.
PAIRS = [
    ("llava", "qwen2_audio_llama", "video_llava"),
    ("llava_qwen2", "qwen2_audio"),
    ("llava_onevision", "audioflamingo3"),
    ("idefics3", "voxtral"),
    ("internvl", "qwen2_audio"),
    ("qwen2_vl", "qwen2_audio"),
    ("qwen2_5_vl", "audioflamingo3"),
    ("qwen2_audio_llama", "smolvlm"),
]
SAME_BACKBONE = [pytest.param(*pair[:1], pair[1:], id="+".join(pair)) for pair in PAIRS]
TRIO, MROPE = SAME_BACKBONE[:1], [p for p in SAME_BACKBONE if p.values[0] in ("qwen2_vl", "qwen2_5_vl")]

# More than embeddings passes from towers to language model, or the two cannot be told apart.
NO_GUESTS = {"gemma3", "gemma4", "paligemma", "llama4", "blip_2", "instructblip", "florence2"}


@functools.cache
def donor(family: str) -> Any:
    return c.load(c.checkpoint(family), zoo.FAMILIES[family].cls)


def modality_of(family: str) -> str:
    media = zoo.FAMILIES[family].media
    assert media
    return next(MODALITY[name] for name in media() if name in MODALITY)


def donor_inputs(family: str) -> dict[str, Any]:
    media = zoo.FAMILIES[family].media
    assert media
    return media()


def omni_ids(ids: torch.Tensor) -> torch.Tensor:
    for modality, token in DONOR_TOKENS.items():
        ids = torch.where(ids == token, TOKENS[modality], ids)
    return ids


def omni_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """A donor's inputs as the omni model takes them."""
    modality = next(MODALITY[name] for name in inputs if name in MODALITY)
    plain = {"attention_mask", "labels"}
    out = {name if name in plain else f"{modality}__{name}": value for name, value in inputs.items()}
    out.pop(f"{modality}__mm_token_type_ids", None)  # left to the model
    ids = omni_ids(out.pop(f"{modality}__input_ids"))
    return {"input_ids": ids, **out}


def config_of(host: str, *guests: str) -> OmniConfig:
    modalities = {modality_of(f): {"owner": f, "token_id": TOKENS[modality_of(f)]} for f in guests}
    if zoo.FAMILIES[host].media:
        modalities[modality_of(host)] = {"owner": "host", "token_id": TOKENS[modality_of(host)]}
    return OmniConfig(
        host=donor(host).config.to_dict(), guests={g: donor(g).config.to_dict() for g in guests}, modalities=modalities
    )


def load_parts(model: Any, host: str, *guests: str, language_model: str = "") -> Any:
    """The towers of every donor, and the language model of one of them (by default the host's)."""
    missing = model.load_state_dict(donor(host).state_dict(), strict=False)
    assert not missing.unexpected_keys, missing
    assert all(name.startswith("guests.") for name in missing.missing_keys), missing
    for guest in guests:
        towers = model.guests[guest].state_dict()
        given = {name: tensor for name, tensor in donor(guest).model.state_dict().items() if name in towers}
        model.guests[guest].load_state_dict(given)  # strict: every tensor of the towers
    if language_model:
        model.get_decoder().load_state_dict(donor(language_model).model.get_decoder().state_dict())
        model.lm_head.load_state_dict(donor(language_model).lm_head.state_dict())
    return model.eval()


def compose(host: str, *guests: str, language_model: str = "") -> Any:
    config = config_of(host, *guests)
    speaker = donor(language_model or host)
    # what no tensor says, and the families of the zoo have defaults of their own for
    if language_model:
        text, its = config.get_text_config(), speaker.config.get_text_config()
        text.rms_norm_eps = its.rms_norm_eps
        text.rope_parameters = {**text.rope_parameters, "rope_theta": its.rope_parameters["rope_theta"]}
    model = load_parts(OmniForConditionalGeneration(config), host, *guests, language_model=language_model)
    model.generation_config = copy.deepcopy(speaker.generation_config)
    return model


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> torch.Tensor:
    return model(**inputs).logits


def assert_as(donor_model: Any, model: Any, inputs: dict[str, Any], tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        logits(model, **omni_inputs(inputs)), logits(donor_model, **inputs), rtol=0, atol=tolerance
    )


# --------------------------------------------------------------------------------------------------- faithful


@pytest.mark.parametrize(("host", "guests"), SAME_BACKBONE)
def test_with_a_donors_language_model_it_is_that_donor(host: str, guests: tuple[str, ...]) -> None:
    for family in (host, *guests):
        model = compose(host, *guests, language_model="" if family == host else family)
        inputs = donor_inputs(family)
        assert_as(donor(family), model, inputs)
        ids = omni_inputs(inputs)["input_ids"]
        blind = logits(model, input_ids=ids)
        assert (blind - logits(model, **omni_inputs(inputs))).abs().max() > 1e-2, "the medium made no difference"


@pytest.mark.slow
@pytest.mark.parametrize(("host", "guests"), SAME_BACKBONE)
def test_it_generates_what_the_donor_generates(host: str, guests: tuple[str, ...]) -> None:
    for family in (host, *guests):
        model = compose(host, *guests, language_model="" if family == host else family)
        inputs = donor_inputs(family)
        for beams in (1, 3):
            got = model.generate(**omni_inputs(inputs), num_beams=beams, **QUIET)
            expected = donor(family).generate(**inputs, num_beams=beams, **QUIET)
            start = inputs["input_ids"].shape[1]
            assert got[:, start:].tolist() == expected[:, start:].tolist(), f"{family}, {beams} beams"


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe", "gemma3", "paligemma", "glm4v"])
def test_a_host_that_is_more_than_embeddings_is_itself(family: str) -> None:
    """DeepStack, attention in both directions, positions in three dimensions: all in the host's own hands."""
    model = compose(family, "qwen2_audio")
    assert_as(donor(family), model, donor_inputs(family))
    heard = mixed(family, "qwen2_audio")
    louder = {**heard, "audio__input_features": heard["audio__input_features"] + 1}
    assert (logits(model, **heard) - logits(model, **louder)).abs().max() > 1e-2


@pytest.mark.slow
def test_a_text_llm_as_the_host() -> None:
    source = donor("qwen2_audio")
    llm_config = source.config.get_text_config()
    entry = {"audio": {"owner": "ear", "token_id": TOKENS["audio"]}}
    model = OmniForConditionalGeneration(OmniConfig(host=llm_config, guests={"ear": source.config}, modalities=entry))
    model.get_decoder().load_state_dict(source.model.get_decoder().state_dict())
    model.lm_head.load_state_dict(source.lm_head.state_dict())
    towers = {k: v for k, v in source.model.state_dict().items() if not k.startswith("language_model.")}
    model.guests["ear"].load_state_dict(towers)
    assert_as(source, model.eval(), donor_inputs("qwen2_audio"))
    text = zoo.prompt(20, 30, 40)
    torch.testing.assert_close(logits(model, **text), logits(source, **text), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["llava_qwen2", "qwen2_vl"])
def test_text_alone_needs_no_tower(host: str) -> None:
    text = zoo.prompt(20, 30, 40, 50)
    model = compose(host, "qwen2_audio")
    torch.testing.assert_close(logits(model, **text), logits(donor(host), **text), rtol=0, atol=1e-5)
    got, expected = model.generate(**text, **QUIET), donor(host).generate(**text, **QUIET)
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("family", [name for name, f in zoo.FAMILIES.items() if f.media])
def test_any_family_lends_its_towers_to_its_own_llm(family: str) -> None:
    """A family without a line of its own: its donor's hidden states come out, or it is refused with the reason."""
    spec = zoo.FAMILIES[family]
    if spec.missing:
        pytest.skip(spec.missing)
    torch.manual_seed(0)
    source = getattr(transformers, spec.cls)(spec.config()).float().eval()
    text = source.config.get_text_config()
    if type(text) not in transformers.AutoModelForCausalLM._model_mapping:
        pytest.skip("its language model is no text LLM of transformers")
    modality = modality_of(family)
    config = OmniConfig(host=text, guests={"g": source.config})
    config.modalities = {modality: {"owner": "g", "token_id": TOKENS[modality]}}
    if family in NO_GUESTS:
        with pytest.raises(ValueError, match=r"Make it the host|cannot be"):
            OmniForConditionalGeneration(config)
        return
    model = OmniForConditionalGeneration(config).eval()
    if hasattr(source.model, "get_rope_index"):
        pytest.skip("its media have positions in two or three dimensions")
    model.get_decoder().load_state_dict(source.model.get_decoder().state_dict())
    towers = model.guests["g"].state_dict()
    model.guests["g"].load_state_dict({n: t for n, t in source.model.state_dict().items() if n in towers})
    inputs = donor_inputs(family)
    with torch.no_grad():  # heads are the host's own: some scale their logits
        got = model(**omni_inputs(inputs), output_hidden_states=True).hidden_states[-1]
        expected = source(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------- several media, batches


def mixed(host: str, *guests: str) -> dict[str, Any]:
    """One prompt with the media of all, one after the other."""
    parts = [omni_inputs(donor_inputs(family)) for family in (host, *guests)]
    ids = torch.cat([part["input_ids"] for part in parts], dim=1)
    return {**{name: value for part in parts for name, value in part.items()}, "input_ids": ids}


@pytest.mark.slow
@pytest.mark.parametrize(("host", "guests"), TRIO + MROPE)
def test_every_medium_of_a_mixed_prompt_counts(host: str, guests: tuple[str, ...]) -> None:
    model, inputs = compose(host, *guests), mixed(host, *guests)
    plain = logits(model, **inputs)
    for name in (n for n, v in inputs.items() if v.is_floating_point()):
        changed = logits(model, **{**inputs, name: inputs[name] + 1})
        assert (changed - plain).abs().max() > 1e-2, name
    # the cache gives what a pass over the whole sequence gives
    out = model.generate(**inputs, **QUIET)[:, inputs["input_ids"].shape[1] :]
    whole = logits(model, **{**inputs, "input_ids": torch.cat([inputs["input_ids"], out], 1)})[:, -6:-1]
    whole[..., QUIET["suppress_tokens"]] = -torch.inf
    assert out.tolist() == whole.argmax(-1).tolist()
    assert out.tolist() == model.generate(**inputs, **QUIET, use_cache=False)[:, -5:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["llava_qwen2", "qwen2_vl"])
def test_assisted_generation_says_the_same(host: str) -> None:
    """It asks about tokens that the given token types do not reach."""
    model, inputs = compose(host, "qwen2_audio"), mixed(host, "qwen2_audio")
    if host == "qwen2_vl":
        inputs["mm_token_type_ids"] = torch.where(inputs["input_ids"] == TOKENS["image"], 1, 0)
    plain = model.generate(**inputs, **QUIET)
    assert model.generate(**inputs, **QUIET, assistant_model=model).tolist() == plain.tolist()


def two_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompt with a second medium of the kind."""
    doubled = {
        name: torch.cat([v, v + 0.5 if v.is_floating_point() else v]) for name, v in inputs.items() if "ids" not in name
    }
    along = {name: torch.cat([v, v], 1) for name, v in inputs.items() if "ids" in name}
    return {**doubled, **along}


@pytest.mark.slow
@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "qwen2_audio_llama"])
def test_several_media_of_one_kind(host: str) -> None:
    guest = {"llava": "qwen2_audio_llama", "qwen2_vl": "qwen2_audio", "qwen2_audio_llama": "llava"}[host]
    for family in (host, guest):
        model = compose(host, guest, language_model="" if family == host else family)
        assert_as(donor(family), model, two_of(donor_inputs(family)))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("host", ["llava_qwen2", "qwen2_vl"])
def test_a_padded_batch_is_its_samples(host: str, side: str) -> None:
    model = compose(host, "qwen2_audio")
    samples = [mixed(host, "qwen2_audio"), zoo.prompt(20, 30), omni_inputs(donor_inputs("qwen2_audio"))]
    length = max(s["input_ids"].shape[1] for s in samples)
    ids, mask = torch.full((3, length), zoo.PAD), torch.zeros(3, length, dtype=torch.long)
    for i, sample in enumerate(samples):
        n = sample["input_ids"].shape[1]
        place = slice(length - n, length) if side == "left" else slice(0, n)
        ids[i, place], mask[i, place] = sample["input_ids"][0], 1
    media: dict[str, list[torch.Tensor]] = {}
    for sample in samples:
        for name, value in sample.items():
            if name != "input_ids":
                media.setdefault(name, []).append(value)
    batch = {"input_ids": ids, "attention_mask": mask, **{name: torch.cat(v) for name, v in media.items()}}
    together = logits(model, **batch)
    for i, sample in enumerate(samples):
        torch.testing.assert_close(together[i][mask[i].bool()], logits(model, **sample)[0], rtol=0, atol=1e-5)
    if side == "left":
        answers = model.generate(**batch, **QUIET)[:, length:]
        beams = model.generate(**batch, **QUIET, num_beams=2)[:, length:]
        for i, sample in enumerate(samples):
            n = sample["input_ids"].shape[1]
            assert answers[i].tolist() == model.generate(**sample, **QUIET)[0, n:].tolist()
            assert beams[i].tolist() == model.generate(**sample, **QUIET, num_beams=2)[0, n:].tolist()


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize("host", ["llava_qwen2", "qwen2_vl"])
def test_gradients_reach_every_part(host: str) -> None:
    model, inputs = compose(host, "qwen2_audio"), mixed(host, "qwen2_audio")
    model.train()
    model.gradient_checkpointing_enable()
    out = model(**inputs, labels=inputs["input_ids"])
    shifted = torch.nn.functional.cross_entropy(out.logits[0, :-1].float(), inputs["input_ids"][0, 1:])
    torch.testing.assert_close(out.loss, shifted)
    out.loss.backward()
    for part in ("model.get_decoder()", "guests.qwen2_audio", "model", "lm_head"):
        module = model.get_decoder() if part.endswith("()") else model.get_submodule(part)
        grads = [p.grad.abs().sum() for p in module.parameters() if p.grad is not None]
        assert sum(grads) > 0, part
    towers = [n for n, p in model.named_parameters() if p.grad is None]
    assert not [n for n in towers if "multi_modal_projector" in n or "merger" in n], towers


# ------------------------------------------------------------------------------------------------ saving, loading


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "guests"),
    [*TRIO, *MROPE[:1], pytest.param("qwen3_vl_moe", ("audioflamingo3",), id="moe"),
     pytest.param("gemma3", ("qwen2_audio",), id="tied")],
)  # fmt: skip
def test_a_saved_model_comes_back(host: str, guests: tuple[str, ...]) -> None:
    model, path = compose(host, *guests), c.fresh("omni")
    model.save_pretrained(path)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    c.assert_names(c.tensors(path), model.state_dict().keys() - tied)
    loaded, report = OmniForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    assert not any(report.values()), report
    c.assert_same_bytes(loaded.state_dict(), model.state_dict())
    inputs = mixed(host, *guests)
    assert torch.equal(logits(loaded.eval(), **inputs), logits(model, **inputs))
    assert loaded.config.to_dict()["guests"] == model.config.to_dict()["guests"]


def test_it_loads_as_transformers_models_do() -> None:
    model, path = compose("llava_qwen2", "qwen2_audio"), c.fresh("omni")
    model.save_pretrained(path)
    inputs = mixed("llava_qwen2", "qwen2_audio")
    half = OmniForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    torch.testing.assert_close(logits(half, **halves).float(), logits(model, **inputs), rtol=0, atol=0.1)
    assert {"Qwen2DecoderLayer", "Qwen2AudioEncoderLayer", "SiglipEncoderLayer"} <= set(half._no_split_modules)
    eager = OmniForConditionalGeneration.from_pretrained(path, attn_implementation="eager").eval()
    kinds = {m.config._attn_implementation for m in eager.modules() if hasattr(m, "is_causal") and hasattr(m, "config")}
    assert kinds == {"eager"}
    torch.testing.assert_close(logits(eager, **inputs), logits(model, **inputs), rtol=0, atol=1e-5)


def test_a_copy_and_a_larger_vocabulary() -> None:
    model = compose("llava_qwen2", "qwen2_audio")
    inputs = mixed("llava_qwen2", "qwen2_audio")
    twin = copy.deepcopy(model)
    twin.resize_token_embeddings(zoo.VOCAB + 8)
    assert twin.config.vocab_size == zoo.VOCAB + 8
    assert model.config.vocab_size == zoo.VOCAB
    got = logits(twin, **inputs)
    assert got.shape[-1] == zoo.VOCAB + 8
    torch.testing.assert_close(got[..., : zoo.VOCAB], logits(model, **inputs), rtol=0, atol=1e-5)


def test_the_config_knows_what_loading_and_generation_ask() -> None:
    config = config_of("qwen2_vl", "qwen2_audio")
    text = donor("qwen2_vl").config.get_text_config()
    assert config.get_text_config() is config.host.text_config
    for name in ("vocab_size", "hidden_size", "pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(config, name) == getattr(text, name)
    assert config.tie_word_embeddings is False
    assert config.host.image_token_id == TOKENS["image"]
    assert config.guests["qwen2_audio"].audio_token_id == zoo.AUDIO
    path = c.fresh("config")
    config.save_pretrained(path)
    assert OmniConfig.from_pretrained(path).to_dict() == config.to_dict()


# ------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("guest", "reason"),
    [
        ("qwen3_vl", "deepstack_visual_embeds"),
        ("mllama", "cross_attention_states"),
        ("gemma3", "attention masks of its own"),
        ("paligemma", "attention masks of its own"),
        ("blip_2", "its language model is not a part"),
    ],
)
def test_a_guest_whose_media_are_more_than_embeddings(guest: str, reason: str) -> None:
    config = OmniConfig(host=zoo.llava_qwen2(), guests={"g": zoo.FAMILIES[guest].config()})
    with pytest.raises(ValueError, match=rf"guest 'g'.*{reason}"):
        OmniForConditionalGeneration(config)


def test_donors_that_do_not_fit() -> None:
    wide = zoo.qwen2_audio()
    wide.text_config.hidden_size = 128
    with pytest.raises(ValueError, match="its language model is 128 wide, the host's 64"):
        OmniForConditionalGeneration(OmniConfig(host=zoo.llava(), guests={"ear": wide}))
    for config in (zoo.llama4(), zoo.phi4_multimodal()):
        with pytest.raises(ValueError, match="cannot be the host"):
            OmniForConditionalGeneration(OmniConfig(host=config))


@pytest.mark.parametrize(
    ("modalities", "reason"),
    [
        ({"audio": {"owner": "eye", "token_id": 9}}, "'eye', which is none of host, ear"),
        ({"audio": {"owner": "host", "token_id": 9}}, "has no audio_token_id"),
        ({"audio": {"owner": "ear"}}, "needs 'owner' and 'token_id'"),
        ({m: {"owner": "host", "token_id": 9} for m in ("image", "video")}, "image and video share"),
    ],
)
def test_a_config_that_contradicts_itself(modalities: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OmniConfig(host=zoo.llava_onevision(), guests={"ear": zoo.qwen2_audio()}, modalities=modalities).host  # noqa: B018


def test_inputs_that_do_not_fit() -> None:
    model = compose("llava_qwen2", "qwen2_audio")
    heard = omni_inputs(donor_inputs("qwen2_audio"))
    few = {**heard, "input_ids": heard["input_ids"][:, 2:]}
    few["input_ids"] = torch.cat([few["input_ids"], torch.full((1, 3), TOKENS["audio"])], 1)
    for inputs, reason in (
        (few, "audio, 33 placeholders: .*tokens: 33, features: 30"),
        ({**heard, **zoo.prompt(20)}, "audio: there are inputs, and no placeholder"),
        ({**heard, "audio__pixel_values": heard["audio__input_features"]}, "takes no pixel_values"),
        ({**zoo.prompt(20), "video__pixel_values_videos": torch.zeros(1)}, "this model takes"),
        ({**heard, "input_ids": None, "inputs_embeds": torch.zeros(1, 4, 64)}, "audio: media need input_ids"),
    ):
        with pytest.raises(ValueError, match=reason):
            model(**inputs)
    seen = omni_inputs(donor_inputs("llava_qwen2"))
    with pytest.raises(ValueError, match="do not match"):
        model(**{**seen, "input_ids": seen["input_ids"][:, :4]})
