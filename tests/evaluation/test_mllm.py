"""The lm-eval model `mllm` on small checkpoints: what it answers, what it is shown, what it refuses."""

from __future__ import annotations

import json
import re
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import end_to_end as c
import eval_mirror
import numpy as np
import peft
import processors
import pytest
import torch
import transformers as t
import zoo
from forks import program
from mllm_runs import CHOICES, SHORT, evaluate, film, model, omni, png, said, saved, task, wav
from PIL import Image
from processors import donor, picture

from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.evaluation.tasks import media

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def llava() -> MLLM:
    return model(saved("llava"))


# -------------------------------------------------------------------------------------------------- what it says


MIXED = [
    {"prompt": "<image>what is it?", "image": png(1)},
    {"prompt": "a rather longer question about the picture: <image> so what is it?", "image": png(2)},
    {"prompt": "<image>?", "image": png(3, width=84)},
    {"prompt": "no picture at all", "image": None},
    {"prompt": "<image>one, <image>two", "image": png(5), "images": [png(6)]},
]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_batches_do_not_change_answers(family: str) -> None:
    one, four = model(saved(family)), model(saved(family), batch_size=4)
    replies = said(one, MIXED)
    assert replies == said(four, MIXED)
    assert len(set(replies)) == len(MIXED)
    likelihoods = np.array(said(one, MIXED, **CHOICES))
    np.testing.assert_allclose(likelihoods, said(four, MIXED, **CHOICES), atol=1e-4)
    assert len(np.unique(likelihoods.round(3))) == likelihoods.size


def test_answers_are_those_of_transformers() -> None:
    """Greedy, by the family's own processor and template; and the likelihood of each choice by one forward."""
    lm, processor = model(saved("qwen2_vl"), batch_size=2), donor("qwen2_vl")
    bare = t.Qwen2VLForConditionalGeneration.from_pretrained(saved("qwen2_vl")).eval()
    docs = MIXED[:2]
    for doc, reply, likelihoods in zip(docs, said(lm, docs), said(lm, docs, **CHOICES), strict=True):
        before, after = doc["prompt"].split("<image>")
        content = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": after}]
        chat = [{"role": "user", "content": content[not before :]}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        shown = {"images": [media.open_image(doc["image"])], "return_tensors": "pt"}
        inputs = processor(text=prompt, **shown)
        length = inputs["input_ids"].shape[1]
        tokens = bare.generate(**inputs, max_new_tokens=6, do_sample=False)[0, length:]
        assert reply == processor.decode(tokens, skip_special_tokens=True).split("\n")[0]
        for choice, likelihood in zip(CHOICES["doc_to_choice"], likelihoods, strict=True):
            whole = processor(text=f"{prompt} {choice}", **shown)
            with torch.no_grad():
                likely = bare(**whole).logits[0].log_softmax(-1)
            ids = whole["input_ids"][0]
            expected = sum(likely[at - 1, ids[at]].item() for at in range(length, len(ids)))
            assert likelihood == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "changed"),
    [("llava", "image"), ("qwen2_vl", "video"), ("qwen2_audio", "audio")]
    + [("omni", m) for m in ("image", "video", "audio")],
)
def test_every_medium_reaches_the_model(path: str, changed: str) -> None:
    lm = model(omni() if path == "omni" else saved(path), batch_size=3)
    shown = ("video", "image", "audio") if path == "omni" else (changed,)
    make: dict[str, Callable[[int], dict[str, Any]]] = {"image": png, "video": film, "audio": wav}
    first = {"prompt": "".join(f"<{medium}> " for medium in shown), **{medium: make[medium](1) for medium in shown}}
    first, other, again = said(lm, [first, {**first, changed: make[changed](2)}, first], **CHOICES)
    assert np.abs(np.array(first) - other).max() > 1e-2
    np.testing.assert_allclose(first, again, atol=1e-4)


@pytest.mark.slow
def test_the_paper_s_omni_task_runs_on_an_omni_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eval_mirror.write(tmp_path)
    monkeypatch.setenv("MLLM_EVAL_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = {"pretrained": str(omni()), "dtype": "float32", "num_frames": 2}
    found = evaluate("mllm", "mllm_avqa_video_image_audio", model_args=arguments, batch_size=2, predict_only=True)
    samples = found["samples"]["mllm_avqa_video_image_audio"]
    assert len(samples) == 2
    assert all(isinstance(sample["resps"][0][0], str) for sample in samples)
    config = found["config"]
    assert (config["model"], config["processor"], str(config["model_dtype"])) == (
        "mllm",
        "OmniProcessor",
        "torch.float32",
    )
    assert "<omni_image>" in config["chat_template"]


# --------------------------------------------------------------------------------------------- prompts and templates


def written(lm: MLLM, prompt: str, **shown: Any) -> str:
    """The prompt as the model reads it, media not expanded."""
    return lm.reader.read(prompt, {"visual": [], **shown}, "here").text


def test_prompts_follow_the_chat_template(tmp_path: Path) -> None:
    path, shown = saved("qwen2_vl"), [picture(1)]
    assert written(model(path), "see <image>?", visual=shown) == "u:see <v><image></v>?</s>a:"
    assert written(model(path, chat_template="none"), "see <image>?", visual=shown) == "see <v><image></v>?"
    assert written(model(path, system_prompt="Be brief."), "hi") == "s:Be brief.</s>u:hi</s>a:"
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}USER: {{ m['content'] }}\n{% endfor %}ANSWER:")
    assert (
        written(model(path, chat_template=str(file)), "see <image>?", visual=shown)
        == "USER: see <v><image></v>?\nANSWER:"
    )
    mixed = "{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>' }}{% endfor %}"
    user = "{% if m['role'] == 'system' %}{{ '[' + m['content'] + ']' }}{% else %}" + mixed + "{% endif %}"
    file.write_text("{% for m in messages %}" + user + "{% endfor %}")
    lm = model(path, chat_template=str(file), system_prompt="Be brief.")
    assert written(lm, "see <image>?", visual=shown) == "[Be brief.]see <image>?"
    # a model that has none; its config says what goes around a picture
    plain = c.altered(path)
    (plain / "chat_template.jinja").unlink()
    assert written(model(plain), "see <image>?", visual=shown) == "see <v><image></v>?"
    assert written(model(saved("llava")), "see <image>?", visual=shown) == "see <image>?"


def test_a_template_that_loses_the_prompt_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As that of Qwen2-VL's base models does."""
    file = tmp_path / "template.jinja"
    file.write_text("{% if false %}{{ messages }}{% endif %}<s>")
    lm = model(saved("qwen2_vl"), chat_template=str(file))
    assert written(lm, "<image>what?", visual=[picture(1)]) == "<v><image></v>what?"
    assert "does not write prompts with image" in caplog.text
    part = "{% if p['type'] == 'text' %}{{ p['text'][:12] }}{% else %}<image>{% endif %}"
    file.write_text("{% for m in messages %}{% for p in m['content'] %}" + part + "{% endfor %}{% endfor %}")
    lm = model(saved("qwen2_vl"), chat_template=str(file))
    with pytest.raises(ValueError, match="here: the chat template loses 'what is all this\\?' of the prompt"):
        written(lm, "<image>what is all this?", visual=[picture(1)])


@pytest.mark.slow
@pytest.mark.parametrize(("config", "system", "turn"), [({}, "Brief.", "s:Brief.</s>"), (CHOICES, None, "")])
def test_the_template_is_not_applied_twice(config: dict[str, Any], system: str | None, turn: str) -> None:
    lm = model(saved("qwen2_vl"), system_prompt=system)
    docs = [{"prompt": "<image>what?", "image": png(1)}]
    asked = [
        evaluate(lm, task(docs, **config), apply_chat_template=by_host)["samples"]["mine"][0] for by_host in (0, 1)
    ]
    assert [sample["arguments"][0][0] for sample in asked] == ["<image>what?", f"{turn}u:<v><image></v>what?</s>a:"]
    if not config:
        assert asked[0]["resps"] == asked[1]["resps"]
        chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
        assert lm.apply_chat_template(chat) == "s:Brief.\n\nBe kind.</s>u:hi</s>a:"


def test_marks_and_media_are_matched() -> None:
    lm = model(saved("qwen2_vl"))
    first, second, clip = picture(1), picture(2), {"type": "video", "frames": [picture(3)] * 2}
    read = lm.reader.read("<image2> then <video> then <image1>", {"visual": [first, clip, second]}, "here")
    assert read.text == "u:<v><image></v> then <v><video></v> then <v><image></v></s>a:"
    assert read.media == {"image": [second, first], "video": [clip], "audio": []}
    chat = [{"role": "user", "content": "<image2> then <video> then <image1>"}]
    by_host = lm.reader.read(lm.apply_chat_template(chat), {"visual": [first, clip, second]}, "here")
    assert (by_host.text, by_host.media) == (read.text, read.media)
    for prompt, shown, told in [
        ("<image>a<image>", [first], "here: 2 x <image> in the prompt, but 1 media"),
        ("<video>", [first], "here: 1 x <video> in the prompt, but 0 media"),
        ("<image>a", [first, second], "here: 1 x <image> in the prompt, but 2 media"),
        ("<image1>a<image3>", [first, second], "here: marks <image> are numbered [1, 3], for 2 media"),
    ]:
        with pytest.raises(ValueError, match=re.escape(told)):
            lm.reader.read(prompt, {"visual": shown}, "here")


@pytest.mark.slow
def test_media_without_marks_come_first(llava: MLLM, caplog: pytest.LogCaptureFixture) -> None:
    marked, bare = [{"prompt": "<image>what?", "image": png(1)}], [{"prompt": "what?", "image": png(1)}]
    assert said(llava, marked) == said(llava, bare, name="mine")
    assert "mine has media and no marks such as <image> in its prompt" in caplog.text


# ------------------------------------------------------------------------------------------------------- refusals


def test_media_that_the_model_lacks_are_named_before_the_run(llava: MLLM) -> None:
    docs = [
        {"prompt": "<image>", "image": png(1), "audio": None},
        {"prompt": "<audio>", "image": None, "audio": wav(1)},
    ]
    with pytest.raises(ValueError, match="tasks bring media that this model does not take") as caught:
        said(llava, docs, name="mine")
    assert "mine: audio. LlavaProcessor takes image." in str(caught.value)


def test_a_document_at_fault_is_named(llava: MLLM, tmp_path: Path) -> None:
    fine, broken = {"prompt": "<image>a", "image": png(1)}, {"bytes": b"no picture", "path": None}
    with pytest.raises(ValueError, match="mine, document 1: 2 x <image> in the prompt, but 1 media: '<image><image>'"):
        said(llava, [fine, {**fine, "prompt": "<image><image>"}])
    with pytest.raises(ValueError, match="mine, document 1: a prompt of 604 tokens, media included, and 6 new ones"):
        said(llava, [fine, {**fine, "prompt": "<image>" + 600 * "a"}])
    with pytest.raises(ValueError, match="mine, document 0: its audio cannot be read: audio given as bytes"):
        said(model(saved("qwen2_audio")), [{"prompt": "<audio>", "audio": broken}])


@pytest.mark.parametrize(
    ("family", "arguments", "told"),
    [
        ("llava", {"max_pixels": 100}, "CLIPImageProcessor takes neither min_pixels nor max_pixels.*crop_size"),
        ("llava", {"images_kwargs": {"sise": 3}}, "images_kwargs: CLIPImageProcessor takes no sise, but"),
        ("llava", {"audio_kwargs": {"padding": True}}, "audio_kwargs: LlavaProcessor takes no audio"),
        ("llava", {"batch_size": "auto"}, "batch_size is 'auto'"),
    ],
)
def test_arguments_that_do_not_fit(family: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model(saved(family), **arguments)


def test_a_text_llm_is_for_another_model() -> None:
    text = c.save_model(t.LlamaForCausalLM(zoo.llava().text_config))
    with pytest.raises(ValueError, match=r"has no processor, only a .*evaluate it by --model hf"):
        model(text)


# ------------------------------------------------------------------------------------------------------- arguments


def test_pixel_limits_reach_the_processor() -> None:
    doc = {"prompt": "<image>", "image": png(1, width=112, height=112)}
    counts = {}
    for limit in (None, 28 * 28 * 4):
        lm = model(saved("qwen2_vl"), max_pixels=limit)
        inputs = lm.reader.encode([lm.reader.read("<image>", {"visual": media.visuals(doc)}, "here")], "left")
        counts[limit] = int((inputs["input_ids"] == zoo.IMAGE).sum())
    assert counts == {None: 16, 28 * 28 * 4: 4}
    assert lm.get_model_info()["processor_options"] == {
        "image": {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4}}
    }


@pytest.mark.slow
def test_answers_end_where_they_should(llava: MLLM) -> None:
    docs = MIXED[:2]
    whole = said(llava, docs)
    for alias in ("max_new_tokens", "max_tokens"):
        short = said(llava, docs, generation_kwargs={"until": [], alias: 2})
        assert all(full.startswith(part.rstrip("\ufffd")) for full, part in zip(whole, short, strict=True))
        assert short != whole
    stop = whole[0][2]
    assert said(llava, docs[:1], generation_kwargs={**SHORT, "until": [stop]}) == [whole[0].partition(stop)[0]]


@pytest.mark.slow
def test_an_adapter_is_applied() -> None:
    bare = t.LlavaForConditionalGeneration.from_pretrained(saved("llava"))
    torch.manual_seed(0)
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    adapted = peft.get_peft_model(bare, peft.LoraConfig(**options))
    path = c.fresh("adapter")
    adapted.save_pretrained(path)
    merged = c.fresh("merged")
    adapted.merge_and_unload().save_pretrained(merged)
    donor("llava").save_pretrained(merged)
    found = [said(lm, MIXED[:2], **CHOICES) for lm in (model(saved("llava"), peft=str(path)), model(merged))]
    np.testing.assert_allclose(*found, atol=1e-3)
    assert np.abs(np.array(found[0]) - said(model(saved("llava")), MIXED[:2], **CHOICES)).max() > 1e-2


@pytest.mark.slow
def test_the_response_cache_knows_the_media(llava: MLLM, tmp_path: Path) -> None:
    def replies(seed: int) -> list[Any]:
        docs = [{"prompt": "<image>what?", "image": png(seed)}]
        found = evaluate(llava, task(docs), use_cache=str(tmp_path / "cache"))
        return [sample["resps"][0][0] for sample in found["samples"]["mine"]]

    first, second = replies(1), replies(2)
    assert first != second
    generate, llava.model.generate = llava.model.generate, None
    try:
        assert (replies(1), replies(2)) == (first, second)
    finally:
        llava.model.generate = generate


def test_text_tasks_and_media_tasks_in_one_run(llava: MLLM) -> None:
    """Retention: what a text-only task asks is answered as by lm-eval's `hf`."""
    shown = {"doc_to_image": None, "doc_to_audio": None}
    text = [{"prompt": "The sky is"}, {"prompt": "a much longer text about the grass, which is"}]
    tasks = [task(text, "words", **shown), task(MIXED[:3]), task(text, "choices", **{**shown, **CHOICES})]
    samples = evaluate(llava, *tasks)["samples"]
    assert [s["resps"][0][0] for s in samples["mine"]] == said(llava, MIXED[:3])
    bare, tokenizer = llava.model, llava.tokenizer
    for sample in samples["words"]:
        inputs = tokenizer(sample["doc"]["prompt"], return_tensors="pt")
        tokens = bare.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert sample["resps"][0][0] == tokenizer.decode(tokens, skip_special_tokens=True).split("\n")[0]
    assert all(len(sample["resps"]) == 3 for sample in samples["choices"])


def test_a_model_that_speaks_answers_by_its_thinker() -> None:
    path = c.altered(c.checkpoint("qwen2_5_omni"))
    for file in path.glob("*processor_config.json"):
        file.unlink()
    names = {"image": "<image>", "video": "<video>", "audio": "<audio>", "vision_bos": "<v>", "vision_eos": "</v>"}
    names |= {"audio_bos": "<a>", "audio_eos": "</a>"}
    tokenizer = zoo.tokenizer(**{f"{name}_token": token for name, token in names.items()})
    seeing = donor("qwen2_vl")
    parts = (seeing.image_processor, seeing.video_processor, processors.ear(), tokenizer)
    t.Qwen2_5OmniProcessor(*parts, chat_template=processors.CHAT).save_pretrained(path)
    lm = model(path)
    assert type(lm.model).__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
    assert len(said(lm, [{"prompt": "<image> and <audio>?", "image": png(1), "audio": wav(1)}])) == 1


# ------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_sounds_of_any_width_rate_and_number_of_channels(width: int, tmp_path: Path) -> None:
    """A tone of 8 kHz, 8 to 32 bits, two channels, comes out as the same tone at 12 kHz."""
    times = np.arange(800) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 300 * times)
    scaled = np.round(tone * (2 ** (8 * width - 1) - 1)).astype(np.int64) + (128 if width == 1 else 0)
    one = scaled.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((2, width, 8000, 0, "NONE", ""))
        file.writeframes(np.stack([one, one], 1).tobytes())
    heard = decoding.sound({"path": str(tmp_path / "tone.wav")}, 12000)
    assert (heard.dtype, heard.shape) == (np.float32, (1200,))
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(1200) / 12000)
    np.testing.assert_allclose(heard[60:-60], expected[60:-60], atol=0.02 if width == 1 else 0.005)
    kept = decoding.sound({"bytes": (tmp_path / "tone.wav").read_bytes()}, 8000)
    np.testing.assert_allclose(kept, tone, atol=0.01 if width == 1 else 1e-4)
    array = {"array": np.stack([tone, tone], 1), "sampling_rate": 8000}
    np.testing.assert_allclose(decoding.sound(array, 12000)[60:-60], expected[60:-60], atol=0.005)


def test_other_sounds_by_soundfile(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = processors.tone(1)
    soundfile.write(tmp_path / "tone.flac", samples, processors.RATE)
    heard = decoding.sound({"path": str(tmp_path / "tone.flac")}, processors.RATE)
    np.testing.assert_allclose(heard, samples, atol=1e-4)


def test_frames_are_taken_evenly_from_a_file(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    shades = np.linspace(0, 250, 26).astype(np.uint8)
    with av.open(str(tmp_path / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), shade, np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    shown = {"path": str(tmp_path / "film.mp4"), "num_frames": 8}
    video = decoding.video(shown, num_frames=6)  # the model's number, not the task's
    assert video.frames.shape == (6, 16, 32, 3)
    np.testing.assert_allclose(video.frames.mean((1, 2, 3)), shades[::5], atol=6)
    assert video.metadata["fps"] == 10
    assert video.metadata["frames_indices"] == [0, 5, 10, 15, 20, 25]
    assert len(decoding.video(shown).frames) == 8
    assert len(decoding.video({**shown, "num_frames": 99}).frames) == 26
    eval_mirror.film(tmp_path / "film.gif")  # a format that does not tell how long it is
    assert decoding.video({"path": tmp_path / "film.gif"}, 2).frames[:, 10, 10].tolist() == [[255, 0, 0], [0, 0, 0]]


def test_pictures_stand_upright_and_keep_their_shades(tmp_path: Path) -> None:
    """As a phone stores them: lying on the side, with a note in the file. And of 16 bits."""
    lying, note = Image.new("RGB", (20, 10)), Image.Exif()
    note[0x0112] = 6
    lying.save(tmp_path / "lying.jpg", exif=note)
    assert decoding.picture(media.open_image({"path": tmp_path / "lying.jpg"})).size == (10, 20)
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "grey.png")
    assert decoding.picture(media.open_image({"path": tmp_path / "grey.png"})).getpixel((0, 0)) == (3, 3, 3)


def test_pictures_are_rgb_and_the_given_ones_stay_unread() -> None:
    for mode in ("RGBA", "P", "L"):
        given = media.open_image(eval_mirror.picture("red", mode))
        assert decoding.picture(given).mode == "RGB"
        assert given.fp is not None  # its pixels are not in memory, and it can be asked for again
        assert decoding.picture(given).getpixel((10, 10)) == decoding.picture(given.copy()).getpixel((10, 10))


# ----------------------------------------------------------------------------------------------- the stock command


@pytest.mark.slow
def test_the_stock_command_and_the_stock_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model mllm` is there without more ado, and says of the same pictures what stock `hf-multimodal` says."""
    eval_mirror.write(tmp_path)
    monkeypatch.setenv("MLLM_EVAL_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = f"pretrained={saved('llava')},dtype=float32"
    command = ["--model", "mllm", "--model_args", f"{arguments},chat_template=none", "--tasks", "mllm_chart"]
    more = [
        "--device",
        "cpu",
        "--gen_kwargs",
        "max_gen_toks=8",
        "--log_samples",
        "--output_path",
        str(tmp_path / "out"),
    ]
    script = str(Path(sys.executable).parent / "lm_eval")
    done = program([script, *command, *more])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mllm_chartqa" in done.stdout
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    assert results["results"]["mllm_chart"]["score,none"] == 0
    assert results["config"]["model_dtype"] == "torch.float32"
    samples = [json.loads(line) for line in next(tmp_path.rglob("samples_*.jsonl")).read_text().splitlines()]
    options = {"device": "cpu", "gen_kwargs": "max_gen_toks=8", "model_args": f"{arguments},convert_img_format=True"}
    stock = evaluate("hf-multimodal", "mllm_chartqa", **options)["samples"]["mllm_chartqa"]
    replies = [[sample["resps"][0][0] for sample in found] for found in (samples, stock)]
    assert replies[0] == replies[1]
    assert len(set(replies[0])) > 1
