"""An omni checkpoint loads where transformers is, with the plugin or without it, and answers alike.

Two clean environments: one that has neither this package nor mergekit, lm-eval and peft, in which the checkpoint's own
code is run; and one with the wheel, in which no code of the checkpoint is.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fresh_venvs
import pytest
import torch
import transformers
from end_to_end import fresh, linear, merge
from processors import picture, sound_file, video_file, with_processor

from mergekit_mm.omni import register

pytestmark = [pytest.mark.slow, pytest.mark.long]

ABSENT = ("mergekit", "lm_eval", "peft")
SCRIPT = """
import importlib.util, json, sys
import torch, transformers as t
path, media, out, trusted = sys.argv[1:]
found = [n for n in ("mergekit_mm", "mergekit", "lm_eval", "peft") if importlib.util.find_spec(n)]
code = {"trust_remote_code": True} if trusted == "yes" else {}
model = t.AutoModelForMultimodalLM.from_pretrained(path, **code).eval()
processor = t.AutoProcessor.from_pretrained(path, **code)
chat = [{"role": "user", "content": [
    {"type": "image", "path": f"{media}/a.png"}, {"type": "audio", "path": f"{media}/a.wav"},
    {"type": "text", "text": "and"}, {"type": "video", "path": f"{media}/a.mp4"}]}]
inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True, num_frames=4)
made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
with torch.no_grad():
    logits = model(**inputs).logits
package = type(model).__module__.split(".")[0], type(processor).__module__.split(".")[0]
loaded = [n for n in sys.modules if n.startswith("mergekit_mm.omni")]
torch.save({"found": found, "package": package, "loaded": loaded, "inputs": dict(inputs), "logits": logits,
            "made": made, "text": processor.batch_decode(made)}, out)
"""


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    donors = [with_processor(family) for family in ("llava", "qwen2_audio_llama", "video_llava")]
    return merge(linear(*donors, parameters={"vision_tower": str(donors[0])})).out


@pytest.fixture(scope="module")
def media() -> Path:
    directory = fresh("media")
    directory.mkdir()
    picture(0, 60, 40).save(directory / "a.png")
    sound_file(directory / "a.wav", rate=44100, channels=2)
    video_file(directory / "a.mp4")
    return directory


def answer(environment: fresh_venvs.Environment, checkpoint: Path, media: Path, trusted: bool) -> dict[str, Any]:
    out = fresh("answer.pt")
    cache = {"HF_MODULES_CACHE": str(fresh("modules")), "HF_HUB_OFFLINE": "1"}
    arguments = [str(checkpoint), str(media), str(out), "yes" if trusted else "no"]
    done = environment.run("python", "-c", SCRIPT, *arguments, **cache)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(out)
    return found


def test_with_the_plugin_and_without_it(checkpoint: Path, media: Path) -> None:
    bare = fresh_venvs.Environment(fresh("bare"), without=ABSENT)
    alone = answer(bare, checkpoint, media, trusted=True)
    assert (alone["found"], alone["loaded"], alone["package"]) == ([], [], ("transformers_modules",) * 2)
    plugged = answer(fresh_venvs.installed(), checkpoint, media, trusted=False)
    assert plugged["found"] == ["mergekit_mm", *ABSENT]
    assert plugged["package"] == ("mergekit_mm", "mergekit_mm")
    media_keys = {"image__pixel_values", "audio__input_features", "video__pixel_values_videos"}
    assert media_keys <= alone["inputs"].keys() == plugged["inputs"].keys()
    for name, value in alone["inputs"].items():
        assert torch.equal(value, plugged["inputs"][name]), name
    assert torch.equal(alone["logits"], plugged["logits"])
    assert torch.equal(alone["made"], plugged["made"])
    assert alone["text"] == plugged["text"]


def test_a_fine_tune_of_it_carries_the_code_too(checkpoint: Path) -> None:
    """Loaded and saved with the plugin, it still loads elsewhere."""
    register()
    saved = fresh("tuned")
    transformers.AutoModelForMultimodalLM.from_pretrained(checkpoint).save_pretrained(saved)
    transformers.AutoProcessor.from_pretrained(checkpoint).save_pretrained(saved)
    code = {path.name: path.read_text() for path in checkpoint.glob("*.py")}
    assert len(code) > 5
    assert {path.name: path.read_text() for path in saved.glob("*.py")} == code
    again = shutil.copytree(saved, fresh("again"))
    for name in ("AutoConfig", "AutoModelForMultimodalLM", "AutoModelForImageTextToText"):
        here, there = (transformers.AutoConfig.from_pretrained(path).auto_map[name] for path in (checkpoint, again))
        assert here == there
