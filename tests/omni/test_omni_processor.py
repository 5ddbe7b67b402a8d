"""Text and media as each donor's own processor makes them, in one processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import end_to_end as c
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
    clip,
    donor,
    omni,
    omni_checkpoint,
    omni_tokenizer,
    picture,
    sound_file,
    tone,
    video_file,
)

from mergekit_mm.omni import register
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.modeling import OmniForConditionalGeneration
from mergekit_mm.omni.processing import OmniProcessor
from mergekit_mm.omni.templates import media_snippet, omni_template

LLAVA_CHAT = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


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


def test_the_processor_may_put_the_placeholder_there_itself() -> None:
    """Gemma 3: the template writes the start of an image, its processor makes that the placeholders and the end."""
    images = t.Gemma3ImageProcessor(size={"height": 28, "width": 28}, do_pan_and_scan=False)
    tokenizer = zoo.tokenizer()
    tokenizer.image_token, tokenizer.boi_token, tokenizer.eoi_token = "<image>", "<v>", "</v>"
    tokenizer.image_token_id, tokenizer.boi_token_id = zoo.IMAGE, zoo.V_START
    template = CHAT.replace("<' + p['type'] + '></v>", "")
    source = t.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template)
    assert media_snippet(source, "image", "<image>") == "<v>"
    entry = {"image": {"owner": "host", "token": "<image>", "donor_token": "<image>"}}
    processor = OmniProcessor(zoo.tokenizer(), {"host": source}, entry)
    got = processor(text="a<image>b", images=picture(0))
    expected = source(text="a<v>b", images=picture(0), return_tensors="pt")
    assert torch.equal(got["input_ids"], expected["input_ids"])
    assert torch.equal(got["image__pixel_values"], expected["pixel_values"])


def test_the_hosts_own_prompt_is_unchanged() -> None:
    """LLaVA's template, which puts images first and a line break after each."""
    source = t.LlavaProcessor(t.CLIPImageProcessor(**SQUARE), zoo.tokenizer(), 14, "default", chat_template=LLAVA_CHAT)
    processor = OmniProcessor(omni_tokenizer(), {"host": source}, {"image": {"owner": "host", "token": "<omni_image>"}})
    chat = message({"type": "image"}, {"type": "image"}, said("which?"))
    own = source.apply_chat_template(chat, add_generation_prompt=True)
    assert own == "USER: <image>\n<image>\nwhich? ASSISTANT:"
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == own.replace("<image>", "<omni_image>")


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


@pytest.mark.parametrize("family", ["video_llava", "qwen2_vl"])
def test_a_video_file_is_sampled_as_the_donor_samples(family: str, tmp_path: Path) -> None:
    """By frames, by frames per second, or whole; what arrives is what the donor makes of the frames chosen by hand."""
    processor, path = omni(video=family), video_file(tmp_path / "a.mp4")
    with av.open(str(path)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    assert len(frames) == 12
    text = {"text": PLACEHOLDER["video"]}
    every = list(range(12))
    for options, chosen in (({}, every), ({"num_frames": 4}, every[::3]), ({"fps": 2}, every[::2])):
        got = processor(**text, videos=path, **options)
        by_hand = processor(**text, videos=frames[chosen])
        assert got.keys() == by_hand.keys()
        assert all(torch.equal(got[name], by_hand[name]) for name in got), options
    chat = message({"type": "video", "path": str(path)})
    out = processor.apply_chat_template(chat, tokenize=True, return_dict=True, num_frames=4)
    four = processor(**text, videos=path, num_frames=4)["video__pixel_values_videos"]
    assert torch.equal(out["video__pixel_values_videos"], four)
    with pytest.raises(ValueError, match="as files, or none"):
        processor(text=PLACEHOLDER["video"] * 2, videos=[path, frames])
    with pytest.raises(ValueError, match="no images in it"):
        processor(**text, videos=sound_file(tmp_path / "a.wav"))


def test_frames_of_a_video_as_files(tmp_path: Path) -> None:
    processor, text = omni(video="video_llava"), {"text": PLACEHOLDER["video"]}
    for i, frame in enumerate(clip(1)):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    whole = processor(**text, videos=clip(1))["video__pixel_values_videos"]
    assert torch.equal(whole, processor(**text, videos=paths)["video__pixel_values_videos"])


def test_sounds_of_files_at_other_rates(tmp_path: Path) -> None:
    """Resampled and mixed to one channel; close to the tone at the tower's own rate but for the filter's edges."""
    processor, text = omni(audio="qwen2_audio"), PLACEHOLDER["audio"]
    heard = processor(text=text, audio=tone(1))["audio__input_features"]
    for rate, channels in ((RATE, 1), (44100, 1), (8000, 2)):
        path = sound_file(tmp_path / f"{rate}_{channels}.wav", rate, channels)
        for given in (path, str(path)):
            got = processor(text=text, audio=given)
            assert (got["audio__input_features"] - heard).abs().median() < 0.1
        chat = message({"type": "audio", "url": str(path)})
        said = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
        assert torch.equal(said["audio__input_features"], got["audio__input_features"])
    as_tensor = processor(text=text, audio=torch.from_numpy(tone(1)))["audio__input_features"]
    assert torch.equal(as_tensor, heard)


def test_texts_are_cut_and_media_are_not() -> None:
    processor = omni(image="llava")
    cut = processor(text=["abcdef", "ab"], truncation=True, max_length=4, padding="max_length")
    assert cut["input_ids"].shape == (2, 4)
    assert cut["attention_mask"].sum(1).tolist() == [4, 2]
    same = processor(text=["abcdef", "ab"], text_kwargs={"truncation": True, "max_length": 4, "padding": True})
    assert torch.equal(same["input_ids"], cut["input_ids"])
    with pytest.raises(ValueError, match="longer than 4 tokens"):
        processor(text=f"ab{PLACEHOLDER['image']}", images=picture(0), truncation=True, max_length=4)


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
    picture(2).save(tmp_path / "a.png")
    chat = message(
        {"type": "image", "path": str(tmp_path / "a.png")}, said("see"), {"type": "audio", "audio": tone(1)},
        {"type": "video", "video": clip(1)}, said("!"),
    )  # fmt: skip
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "u:{image}see{audio}\n{video}!</s>a:".format(**PLACEHOLDER)  # the line break as the ear's own
    out = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    direct = processor(text=text, images=picture(2), audio=tone(1), videos=clip(1))
    assert out.keys() == direct.keys()
    assert all(torch.equal(out[name], direct[name]) for name in direct)


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
    template = omni_template(["nothing", "{% for m in messages %}[{{ " + part + " + '' }}]{% endfor %}"], PLACEHOLDER)
    processor = OmniProcessor(zoo.tokenizer(), chat_template=template)
    chat = message({"type": "video"}, said("what's 'this'?"))
    assert processor.apply_chat_template(chat) == "[<omni_video>what's 'this'?]"
    plain = OmniProcessor(zoo.tokenizer(), chat_template=omni_template([None, "nothing"], PLACEHOLDER))
    assert plain.apply_chat_template(chat, add_generation_prompt=True) == (
        "USER: <omni_video>what's 'this'?\nASSISTANT:"
    )


# --------------------------------------------------------------------------------------------------- with the model


@pytest.fixture(scope="module")
def saved() -> tuple[Path, Any, OmniProcessor, Any]:
    path = c.fresh("omni")
    return path, *omni_checkpoint(path)


@pytest.mark.slow
def test_from_a_sound_to_the_donors_logits(saved: Any) -> None:
    _, model, processor, guest = saved
    inputs = processor(text=f"hear {PLACEHOLDER['audio']} now", audio=tone(2))
    expected = donor("qwen2_audio_llama")(text="hear <a><audio></a> now", audio=tone(2), return_tensors="pt")
    with torch.no_grad():
        got, wanted = model(**inputs).logits, guest(**expected).logits
    torch.testing.assert_close(got[..., : zoo.VOCAB], wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
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
    assert t.AutoProcessor.from_pretrained(path.parent, subfolder=path.name).modalities == processor.modalities
    for auto in (t.AutoModelForMultimodalLM, t.AutoModelForImageTextToText):
        assert isinstance(auto.from_pretrained(path), OmniForConditionalGeneration)
    second = c.fresh("again")
    loaded.save_pretrained(second)
    read = json.loads((second / "processor_config.json").read_text())
    assert read == json.loads((path / "processor_config.json").read_text())
    assert read["auto_map"]["AutoProcessor"] == "processing.OmniProcessor"
