"""The cost of `composition: damc`: bytes of the checkpoint, CPU time of a prompt and of a generated token.

    python -m examples.omni.damc_cost

An image and an audio donor of random weights, with LoRA adapters of rank 16 on one LLM of about 100 M parameters, are
merged by task_arithmetic three times: static, with whole matrices of the adapted donors, and with factors. Times are on
one thread, the least of several runs that take turns. This takes some minutes, 4 GB of memory and 6 GB of disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers as t
import yaml
from tokenizers import Tokenizer, models

from mergekit_mm.omni import register

IMAGE, AUDIO, VOCABULARY = 1, 2, 512
TOKENS = {"image": 256, "audio": 96, "text": 64}  # of the prompt
RUNS = 9


def language_model() -> t.LlamaConfig:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    return t.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=16, **sizes)


def donors() -> dict[str, Any]:
    """Donors with small towers, so that the language model takes nearly all of the time."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = t.CLIPVisionConfig(image_size=128, patch_size=8, **small)
    audio = t.Qwen2AudioEncoderConfig(
        num_mel_bins=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64, d_model=64,
        max_source_positions=2 * TOKENS["audio"],
    )  # fmt: skip
    text = language_model()
    return {
        "image": t.LlavaForConditionalGeneration(
            t.LlavaConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, vision_feature_layer=-1)
        ),
        "audio": t.Qwen2AudioForConditionalGeneration(
            t.Qwen2AudioConfig(text_config=text, audio_config=audio, audio_token_id=AUDIO)
        ),
    }


def save(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    words = {f"<{i}>": i for i in range(VOCABULARY)}
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<0>")), eos_token="<3>")
    tokenizer.save_pretrained(path)
    return path


def adapted(model: Any, path: Path) -> None:
    """Write a random adapter beside the model, and the model with the adapter merged into it."""
    wanted = r".*language_model.*(q|k|v|o|gate|up|down)_proj"
    model.name_or_path = str(path)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=wanted))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    tuned.save_pretrained(f"{path}_lora")
    save(tuned.merge_and_unload(), Path(f"{path}_whole"))


def least(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The least CPU seconds of each call."""
    found = dict.fromkeys(calls, float("inf"))
    for run in range(RUNS + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if run:  # the first is for warming up
                found[name] = min(found[name], time.process_time() - started)
    return found


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    register()
    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        out = merged(Path(scratch))
        inputs = prompt()
        known = {name: t.AutoModelForMultimodalLM.from_pretrained(path).eval() for name, path in out.items()}
        sizes = {name: (path / "model.safetensors").stat().st_size for name, path in out.items()}
        whole = least({name: lambda model=model: model(**inputs) for name, model in known.items()})
        caches = {name: model(**inputs).past_key_values for name, model in known.items()}
        token = {"input_ids": torch.tensor([[9]]), "use_cache": True}

        def step(name: str) -> None:
            known[name](past_key_values=caches[name], **token)
            caches[name].crop(-1)

        each = least({name: lambda name=name: step(name) for name in known})
    print(f"prompt of {TOKENS}; merged weights in float32\n")
    print("| | checkpoint | prompt | generated token |\n|---|---:|---:|---:|")
    for name in out:
        cells = []
        for unit, scale, values in (("MB", 1e-6, sizes), ("ms", 1e3, whole), ("ms", 1e3, each)):
            cells.append(f"{scale * values[name]:.4g} {unit} (x {values[name] / values['static']:.2f})")
        print(f"| {name} | {' | '.join(cells)} |")


def merged(scratch: Path) -> dict[str, Path]:
    with torch.inference_mode(False):
        llm = t.LlamaForCausalLM(language_model())
        save(llm, scratch / "llm")
        for name, model in donors().items():
            model.get_decoder().load_state_dict(llm.model.state_dict())
            adapted(model, save(model, scratch / name))
    out = {}
    for name in ("static", "whole matrices", "factors"):
        end = "+{}_lora" if name == "factors" else "_whole"
        config = {
            "merge_method": "task_arithmetic",
            "base_model": str(scratch / "llm"),
            "models": [
                {"model": str(scratch / donor) + end.format(scratch / donor), "parameters": {"weight": 0.5}}
                for donor in ("image", "audio")
            ],
            "parameters": {"composition": "static" if name == "static" else "damc"},
            "dtype": "float32",
        }
        recipe = scratch / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(config))
        out[name] = scratch / f"out {name}"
        command = [sys.executable, "-m", "mergekit_mm", "yaml", str(recipe), str(out[name]), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def prompt() -> dict[str, torch.Tensor]:
    ids = (
        [9] * (TOKENS["text"] // 2)
        + [IMAGE] * TOKENS["image"]
        + [AUDIO] * TOKENS["audio"]
        + [9] * (TOKENS["text"] // 2)
    )
    frames = 4 * TOKENS["audio"]
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "image__pixel_values": torch.randn(1, 3, 128, 128),
        "audio__input_features": torch.randn(1, 16, frames),
        "audio__feature_attention_mask": torch.ones(1, frames, dtype=torch.long),
    }


if __name__ == "__main__":
    main()
