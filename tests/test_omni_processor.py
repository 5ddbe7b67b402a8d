"""Text and media as each donor's own processor makes them, in one processor."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import checkpoints as c
import numpy as np
import pytest
import torch
import transformers as t
import zoo
from PIL import Image
from processors import (
    CHAT,
    MEDIUM,
    PLACEHOLDER,
    RATE,
    SQUARE,
    checkpoint,
    clip,
    donor,
    omni,
    omni_tokenizer,
    picture,
    tone,
)

from mergekit_mm.omni import register
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.modeling import OmniForConditionalGeneration
from mergekit_mm.omni.processing import OmniProcessor
from mergekit_mm.omni.templates import media_snippet, omni_template


def in_omni_ids(ids: torch.Tensor) -> torch.Tensor:
    new = dict(zip((zoo.IMAGE, zoo.VIDEO, zoo.AUDIO), range(zoo.VOCAB, zoo.VOCAB + 3), strict=True))
    return ids.clone().apply_(lambda i: new.get(i, i))


ARGUMENT = {"image": "images", "video": "videos", "audio": "audio"}
DONORS = [  # with the modalities they process
    ("llava", "image"),
    ("video_llava", "image"),
    ("video_llava", "video"),
    ("llava_onevision", "image"),
    ("llava_onevision", "video"),
    ("qwen2_vl", "image"),
    ("qwen2_vl", "video"),
    ("qwen2_audio", "audio"),
    ("audioflamingo3", "audio"),
]
COUNTS = [(1,), (1, 0, 1), (2, 1)]


@pytest.mark.parametrize(
    ("family", "modality", "counts"),
    # AudioFlamingo's own processor takes one sound per text, and every text needs one
    [(*d, n) for d in DONORS for n in COUNTS if d[0] != "audioflamingo3"] + [("audioflamingo3", "audio", (1, 1))],
    ids=str,
)
def test_a_medium_becomes_what_its_donor_makes_of_it(family: str, modality: str, counts: tuple[int, ...]) -> None:
    """Ids, masks, token types and tensors of a batch, byte for byte, with other text around the media."""
    processor, source = omni(**{modality: family}), donor(family)
    snippet = processor.modalities[modality]["snippet"]
    texts = ["hi ".join(["ab" * (i + 1)] + ["{}"] * n) + " cd" for i, n in enumerate(counts)]
    media = [[MEDIUM[modality](10 * i + j) for j in range(n)] for i, n in enumerate(counts)]
    flat = [item for sample in media for item in sample]
    given = {ARGUMENT[modality]: media if modality == "image" else flat}
    if modality == "audio":
        given["sampling_rate"] = RATE
    if family == "llava_onevision" and modality == "image":  # which is confused by samples without any
        given = {"images": [sample for sample in media if sample]}
    given |= {"text_kwargs": {"padding": True}, "return_tensors": "pt"}  # `padding` alone would be for sounds as well
    expected = dict(source(text=[x.format(*[snippet] * 3) for x in texts], **given))
    got = dict(
        processor(
            text=[x.format(*[PLACEHOLDER[modality]] * 3) for x in texts],
            padding=True,
            padding_side="left" if family == "audioflamingo3" else None,  # as its own processor insists
            **{ARGUMENT[modality]: media},
        )
    )
    assert torch.equal(got.pop("input_ids"), in_omni_ids(expected.pop("input_ids")))
    for name in ("attention_mask", "mm_token_type_ids"):
        assert (name in got) == (name in expected)
        if name in got:
            assert torch.equal(got.pop(name), expected.pop(name)), name
    assert got.keys() == {f"{modality}__{name}" for name in expected}
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(got[f"{modality}__{name}"]), torch.as_tensor(value)), name


def test_what_a_donor_writes_around_a_medium_comes_along() -> None:
    processor = omni(image="qwen2_vl", audio="qwen2_audio")
    snippets = {modality: entry["snippet"] for modality, entry in processor.modalities.items()}
    assert snippets == {"image": "<v><image></v>", "audio": "<a><audio></a>"}
    ids = processor(text=f"x{PLACEHOLDER['image']}y", images=picture(0))["input_ids"][0].tolist()
    assert (ids.count(zoo.V_START), ids.count(zoo.VOCAB), ids.count(zoo.V_END)) == (1, 4, 1)


@pytest.mark.parametrize(
    ("template", "snippet"),
    [
        (None, "<image>"),
        ("{{ messages[0]['content'] }}{{ nonsense() }}", "<image>"),
        (CHAT, "<v><image></v>"),
        ("{{ '<s>' }}{% for p in messages[0]['content'] %}{{ p['text'] or '<image>' }}{% endfor %}</s>", "<image>"),
        ("{% for p in messages[0]['content'] %}{{ p['text'] or '<s>A <v><image>!' }}{% endfor %}", "<v><image>"),
    ],
)
def test_snippets_are_read_off_chat_templates(template: str | None, snippet: str) -> None:
    source = t.LlavaProcessor(t.CLIPImageProcessor(), zoo.tokenizer(), 14, "default", chat_template=template)
    assert media_snippet(source, "image", "<image>") == snippet


def test_token_types_are_for_the_hosts_media_only() -> None:
    processor = omni(image="qwen2_vl", video="qwen2_vl", audio="qwen2_audio")
    text = "{audio} a {image} b {video}".format(**PLACEHOLDER)
    out = processor(text=[text, "plain"], images=picture(0), videos=clip(0), audio=tone(0), padding=True)
    types, ids = out["mm_token_type_ids"], out["input_ids"]
    expected = torch.where(ids == zoo.VOCAB, 1, torch.where(ids == zoo.VOCAB + 1, 2, 0))
    assert torch.equal(types, expected)
    assert types[0].sum() > 0
    assert (ids[0] == zoo.VOCAB + 2).sum() > 1


# ---------------------------------------------------------------------------------------- how media may be given


def test_media_as_files_and_arrays_and_frames(tmp_path: Path) -> None:
    processor = omni(image="llava", video="video_llava", audio="qwen2_audio")
    picture(3).save(tmp_path / "a.png")
    image = {"text": PLACEHOLDER["image"]}
    from_file = processor(**image, images=str(tmp_path / "a.png"))["image__pixel_values"]
    assert torch.equal(from_file, processor(**image, images=[[picture(3)]])["image__pixel_values"])
    assert torch.equal(from_file, processor(**image, images=np.asarray(picture(3)))["image__pixel_values"])
    video = {"text": PLACEHOLDER["video"]}
    frames = [Image.fromarray(frame) for frame in clip(1)]
    whole = processor(**video, videos=clip(1))["video__pixel_values_videos"]
    assert torch.equal(whole, processor(**video, videos=[frames])["video__pixel_values_videos"])
    assert torch.equal(whole, processor(**video, videos=frames)["video__pixel_values_videos"])
    few = processor(**video, videos=clip(1), num_frames=4, do_sample_frames=True)
    assert few["video__pixel_values_videos"].shape[1] == 4


def test_two_images_of_one_text_or_of_two() -> None:
    processor = omni(image="llava")
    token = PLACEHOLDER["image"]
    one = processor(text=[token + token, "x"], images=[picture(0), picture(1)], padding=True)
    nested = processor(text=[token + token, "x"], images=[[picture(0), picture(1)], []], padding=True)
    assert all(torch.equal(one[name], nested[name]) for name in one)
    two = processor(text=[token, token], images=[picture(0), picture(1)])
    assert torch.equal(two["image__pixel_values"], one["image__pixel_values"])


@pytest.mark.parametrize(
    ("text", "media", "reason"),
    [
        ("<omni_image>", {"images": [picture(0), picture(1)]}, r"1 image placeholder\(s\) .* but 2 image input\(s\)"),
        ("<omni_image>" * 2, {"images": picture(0)}, r"2 image placeholder\(s\) .* but 1 image input\(s\)"),
        ("<omni_image>", {}, r"1 image placeholder\(s\) .* but 0 image"),
        ("hello", {"audio": tone(0)}, r"0 audio placeholder\(s\) .* but 1 audio"),
        (
            ["<omni_image>"] * 2,
            {"images": [[picture(0), picture(1)], []]},
            r"sample 0: 1 image placeholder\(s\) .* but 2 image",
        ),
        ("<omni_audio>", {"audio": tone(0), "sampling_rate": 16000}, "hears 12000 Hz, got 16000 Hz"),
        ("hello", {"videos": clip(0)}, "takes no video"),
    ],
)
def test_media_that_do_not_fit_the_text(text: Any, media: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        omni(image="llava", audio="qwen2_audio")(text=text, padding=True, **media)


def test_a_processor_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="no processor of 'nobody'"):
        OmniProcessor(omni_tokenizer(), {}, {"image": {"owner": "nobody", "token": "<omni_image>"}})
    with pytest.raises(ValueError, match="'<picture>' is not a single token"):
        OmniProcessor(omni_tokenizer(), {"host": donor("llava")}, {"image": {"owner": "host", "token": "<picture>"}})
    with pytest.raises(ValueError, match="LlavaProcessor of 'host' has no video_token"):
        OmniProcessor(omni_tokenizer(), {"host": donor("llava")}, {"video": {"owner": "host", "token": "<omni_video>"}})
    other = t.LlavaProcessor(t.CLIPImageProcessor(**SQUARE), zoo.tokenizer(), 14, "default")
    other.tokenizer.add_tokens(["<frame>"], special_tokens=True)
    entry = {"owner": "host", "token": "<omni_image>", "snippet": "<frame><image>"}
    with pytest.raises(ValueError, match="no '<frame>'"):
        OmniProcessor(omni_tokenizer(), {"host": other}, {"image": entry})(text="<omni_image>", images=picture(0))
    renamed = OmniProcessor(omni_tokenizer(), {"host": other}, {"image": {**entry, "rename": {"<frame>": "<v>"}}})
    assert renamed(text="<omni_image>", images=picture(0))["input_ids"][0, 0] == zoo.V_START


# -------------------------------------------------------------------------------------------------------- chat


def message(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_one_template_for_every_medium(tmp_path: Path) -> None:
    processor = omni(image="qwen2_vl", video="qwen2_vl", audio="qwen2_audio")
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((tone(1) * 30000).astype(np.int16).tobytes())
    picture(2).save(tmp_path / "a.png")
    chat = message(
        {"type": "image", "path": str(tmp_path / "a.png")}, said("see"), {"type": "audio", "audio": tone(1)},
        {"type": "video", "video": clip(1)}, said("!"),
    )  # fmt: skip
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "u:{image}see{audio}{video}!</s>a:".format(**PLACEHOLDER)
    out = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    direct = processor(text=text, images=picture(2), audio=tone(1), videos=clip(1))
    assert out.keys() == direct.keys()
    assert all(torch.equal(out[name], direct[name]) for name in direct)
    if all(map(importlib.util.find_spec, ("soundfile", "soxr"))):  # what transformers reads sounds with
        filed = message({"type": "audio", "path": str(tmp_path / "tone.wav")})
        heard = processor.apply_chat_template(filed, tokenize=True, return_dict=True)
        assert heard["audio__input_features"].shape == out["audio__input_features"].shape


def test_text_reads_as_in_the_hosts_own_template() -> None:
    processor, source = omni(image="qwen2_vl"), donor("qwen2_vl")
    chat = [*message(said("one"), said("two")), {"role": "assistant", "content": "three"}]
    assert processor.apply_chat_template(chat) == source.apply_chat_template(chat)
    out = processor.apply_chat_template([chat, chat], tokenize=True, return_dict=True)
    assert torch.equal(out["input_ids"], processor(text=[source.apply_chat_template(chat)] * 2)["input_ids"])
    with pytest.raises(Exception, match="no content of type audio"):
        processor.apply_chat_template(message({"type": "audio"}))


@pytest.mark.parametrize("listed", [True, False])
def test_templates_that_read_text_only_one_way(listed: bool) -> None:
    part = "m['content'][0]['text']" if listed else "m['content']"
    template = omni_template("{% for m in messages %}[{{ " + part + " + '' }}]{% endfor %}", PLACEHOLDER)
    processor = OmniProcessor(zoo.tokenizer(), chat_template=template)
    chat = message({"type": "video"}, said("what's 'this'?"))
    assert processor.apply_chat_template(chat) == "[<omni_video>what's 'this'?]"
    with pytest.raises(ValueError, match="neither plain text content nor lists"):
        omni_template("nothing", PLACEHOLDER)


# --------------------------------------------------------------------------------------------------- with the model


@pytest.fixture(scope="module")
def saved() -> tuple[Path, Any, OmniProcessor, Any]:
    path = c.fresh("omni")
    return path, *checkpoint(path)


def test_from_a_sound_to_the_donors_logits(saved: Any) -> None:
    _, model, processor, guest = saved
    inputs = processor(text=f"hear {PLACEHOLDER['audio']} now", audio=tone(2))
    expected = donor("qwen2_audio_llama")(text="hear <a><audio></a> now", audio=tone(2), return_tensors="pt")
    with torch.no_grad():
        got, wanted = model(**inputs).logits, guest(**expected).logits
    torch.testing.assert_close(got[..., : zoo.VOCAB], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("modality", ["image", "video"])
def test_from_pixels_to_the_donors_logits(modality: str) -> None:
    """With positions in three dimensions, which follow from the token types."""
    source = t.Qwen2VLForConditionalGeneration(zoo.qwen2_vl()).eval()
    text, given = f"a<v><{modality}></v>b", {ARGUMENT[modality]: MEDIUM[modality](5)}
    with torch.no_grad():
        wanted = source(**donor("qwen2_vl")(text=text, return_tensors="pt", **given)).logits
    source.resize_token_embeddings(zoo.VOCAB + 3, mean_resizing=False)
    entry = {modality: {"owner": "host", "token_id": omni_tokenizer().convert_tokens_to_ids(PLACEHOLDER[modality])}}
    model = OmniForConditionalGeneration(OmniConfig(host=source.config.to_dict(), modalities=entry)).eval()
    model.load_state_dict(source.state_dict())
    with torch.no_grad():
        got = model(**omni(**{modality: "qwen2_vl"})(text=f"a{PLACEHOLDER[modality]}b", **given)).logits
    torch.testing.assert_close(got[..., : zoo.VOCAB], wanted, rtol=0, atol=1e-5)


def test_auto_classes_know_it(saved: Any) -> None:
    path, _, processor, _ = saved
    register()
    register()  # a second time does no harm
    inputs = processor(text="a{audio}b{image}".format(**PLACEHOLDER), images=picture(0), audio=tone(0))
    loaded = t.AutoProcessor.from_pretrained(path)
    assert isinstance(loaded, OmniProcessor)
    assert loaded.modalities == processor.modalities
    assert loaded.chat_template == processor.chat_template
    again = loaded(text="a{audio}b{image}".format(**PLACEHOLDER), images=picture(0), audio=tone(0))
    assert all(torch.equal(again[name], inputs[name]) for name in inputs)
    for auto in (t.AutoModelForMultimodalLM, t.AutoModelForImageTextToText):
        assert isinstance(auto.from_pretrained(path), OmniForConditionalGeneration)
    second = c.fresh("again")
    loaded.save_pretrained(second)
    read = json.loads((second / "processor_config.json").read_text())
    assert read == json.loads((path / "processor_config.json").read_text())
    assert read["auto_map"]["AutoProcessor"] == "processing.OmniProcessor"


ALONE = """
import sys
sys.modules["mergekit_mm"] = None  # as where it is not installed
import numpy as np, torch, transformers as t
path, out = sys.argv[1:]
with_code = {"trust_remote_code": True}
model = t.AutoModelForMultimodalLM.from_pretrained(path, **with_code).eval()
processor = t.AutoProcessor.from_pretrained(path, **with_code)
times = np.arange(4000) / processor.donors["ear"].feature_extractor.sampling_rate
chat = [{"role": "user", "content": [
    {"type": "image", "image": np.full((28, 28, 3), 90, np.uint8)}, {"type": "text", "text": "hi"},
    {"type": "audio", "audio": np.sin(900 * times).astype(np.float32)}]}]
inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
assert not [name for name in sys.modules if name.startswith("mergekit_mm.omni")]
with torch.no_grad():
    torch.save({"inputs": dict(inputs), "logits": model(**inputs).logits}, out)
"""


def test_a_checkpoint_stands_alone(saved: Any, tmp_path: Path) -> None:
    """In a process that cannot import the package, by the code in the checkpoint."""
    path, model, _, _ = saved
    environment = {**os.environ, "MERGEKIT_MM_AUTOLOAD": "0", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "out.pt")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        expected = model(**result["inputs"]).logits
    assert set(result["inputs"]) >= {"image__pixel_values", "audio__input_features", "audio__feature_attention_mask"}
    torch.testing.assert_close(result["logits"], expected, rtol=0, atol=1e-6)
