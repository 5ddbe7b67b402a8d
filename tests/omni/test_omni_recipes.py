"""The omni recipes for hub models, planned over checkpoints of full size without values (see sparse_checkpoints.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
import yaml
from end_to_end import fresh, merge
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from PIL import Image
from published_models import QWEN2_5_7B, QWEN2_5_VL_7B
from sparse_checkpoints import sparse_checkpoint

from mergekit_mm.merge import plan_merge

RECIPES = Path(__file__).parents[2] / "merge_yamls"
_VICUNA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
_CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
# what decides shapes in the published configs; the vocabulary of audio-flamingo-3-hf is a guess, which does not matter
HUB: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lmsys/vicuna-7b-v1.5": ({**_VICUNA, "architectures": ["LlamaForCausalLM"], "vocab_size": 32000}, []),
    "llava-hf/llava-1.5-7b-hf": (
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": 32000,
            "text_config": {**_VICUNA, "vocab_size": 32064},
            "vision_config": {**_CLIP_L, "image_size": 336},
        },
        ["<image>", "<pad>"],
    ),
    "LanguageBind/Video-LLaVA-7B-hf": (
        {
            "architectures": ["VideoLlavaForConditionalGeneration"],
            "model_type": "video_llava",
            "image_token_index": 32000,
            "video_token_index": 32001,
            "text_config": {**_VICUNA, "vocab_size": 32064},
            "vision_config": {**_CLIP_L, "image_size": 224},
        },
        ["<image>", "<video>", "<pad>"],
    ),
    "Qwen/Qwen2.5-7B-Instruct": (QWEN2_5_7B, []),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        {**QWEN2_5_VL_7B, "image_token_id": 151655, "video_token_id": 151656},
        [f"<{i}>" for i in range(151643, 151655)] + ["<|image_pad|>", "<|video_pad|>"],
    ),
    "nvidia/audio-flamingo-3-hf": (
        {
            "architectures": ["AudioFlamingo3ForConditionalGeneration"],
            "model_type": "audioflamingo3",
            "audio_token_id": 151643,
            "text_config": {**QWEN2_5_7B, "model_type": "qwen2", "vocab_size": 151672},
        },
        ["<sound>"],
    ),
}
LANGUAGE = {"omni_vicuna_7b": 32 * 7, "omni_qwen2_5_7b": 28 * 7}


def full_size(name: str) -> Path:
    """A checkpoint of the published shapes, with a tokenizer of the LLM's size and the donor's own tokens after it."""
    config, own = HUB[name]
    path = sparse_checkpoint(fresh(name.replace("/", "--")), config)
    shared = 32000 if config["model_type"] in ("llama", "llava", "video_llava") else 151643
    words = tokenizers.models.WordLevel({f"t{i}": i for i in range(shared)}, "t0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words))
    tokenizer.add_tokens(own, special_tokens=True)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LANGUAGE))
def test_omni_recipes_fit_their_models(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    found = yaml.safe_load(text)
    paths = {i: str(full_size(i)) for i in (found["base_model"], *(entry["model"] for entry in found["models"]))}
    for hub_id, path in paths.items():
        text = text.replace(f" {hub_id}", f" {path}")
    report = str(plan_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), MergeOptions()))
    assert f"language_model  {LANGUAGE[name]} optmerge" in report
    assert "differ" not in report
    first, second = (paths[entry["model"]] for entry in found["models"])
    if name == "omni_vicuna_7b":
        assert f"image by {first}" in report
        assert f"video by {second}" in report
    else:
        assert f"video by {first}" in report
        assert f"audio by {second}" in report
        assert report.splitlines()[0].endswith(first)


def test_the_examples_donors_become_one_model_that_takes_a_picture_and_a_sound_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """merge_yamls/omni.yaml as it stands, by the stock command; what the model says of it is the example's business."""
    monkeypatch.chdir(RECIPES.parent)
    outcome = merge(yaml.safe_load((RECIPES / "omni.yaml").read_text()))
    model = transformers.AutoModelForMultimodalLM.from_pretrained(outcome.out).eval()
    processor = transformers.AutoProcessor.from_pretrained(outcome.out)
    picture = Image.new("RGB", (64, 64), "red")
    sound = np.sin(np.arange(16000) * 0.3).astype(np.float32)
    content = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": "what color is the shape ?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[picture], audio=[sound], sampling_rate=16000, return_tensors="pt")
    media = {name.split("__")[0] for name in inputs if "__" in name}
    assert media == {"image", "audio"}
    said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert said.shape[1] > inputs["input_ids"].shape[1]
    inputs["image__pixel_values"] = -inputs["image__pixel_values"]
    other = model(**inputs).logits[:, -1]
    inputs["image__pixel_values"] = -inputs["image__pixel_values"]
    assert not torch.allclose(model(**inputs).logits[:, -1], other, atol=1e-3), "the picture does not reach the model"
