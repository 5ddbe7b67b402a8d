"""A whole merge at full size: five LoRA adapters of a random Qwen2-VL-2B, against `linear` over the models they make.

Writes a base of 2.2 billion random bfloat16 weights (4.4 GB) in the layout of the hub, five rank-16 adapters on every
linear layer of its language model, and the five models that PEFT would make of them (22 GB), then runs the stock
`mergekit-yaml` on each side. Random weights: this is about time and memory, not about the quality of a merge.

    python -m examples.benchmarks.whole_model                        # 35 GB of disk; some minutes
    python -m examples.benchmarks.whole_model --layers 4 --methods task_arithmetic optmerge
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from examples.benchmarks.processes import measured
from mergekit_mm.checkpoints.meta_model import meta_model_of

RANK, ALPHA, EXPERTS = 16, 32, 5
SHARD = 1 << 30  # bytes per file
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def qwen2_vl_2b(layers: int) -> dict[str, Any]:
    """The published config, as far as it decides shapes."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "dtype": "bfloat16",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "patch_size": 14},
    }


class Shards:
    """A checkpoint written file by file, so that no more than one file is in memory."""

    def __init__(self, directory: Path, config: dict[str, Any]):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(config))
        self._directory = directory
        self._held: dict[str, torch.Tensor] = {}
        self._map: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._held[name] = tensor
        if sum(t.nbytes for t in self._held.values()) >= SHARD:
            self.flush()

    def flush(self) -> None:
        if self._held:
            file = f"model-{len(set(self._map.values())) + 1:05d}.safetensors"
            save_file(self._held, self._directory / file, metadata={"format": "pt"})
            self._map |= dict.fromkeys(self._held, file)
            self._held = {}

    def close(self) -> None:
        self.flush()
        index = {"metadata": {}, "weight_map": self._map}
        (self._directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_inputs(root: Path, layers: int) -> None:
    """base/, adapter_i/ and merged_i/."""
    config = qwen2_vl_2b(layers)
    meta_model = meta_model_of(config)
    assert meta_model is not None
    generator = torch.Generator().manual_seed(0)
    on_disk = revert_weight_conversion(meta_model.model, dict(meta_model.model.state_dict()))
    factors = [{} for _ in range(EXPERTS)]  # type: list[dict[str, torch.Tensor]]
    base = Shards(root / "base", config)
    whole = [Shards(root / f"merged_{i}", config) for i in range(EXPERTS)]
    for name, shape in {name: tensor.shape for name, tensor in on_disk.items() if name != "lm_head.weight"}.items():
        weight = torch.randn(shape, generator=generator, dtype=torch.float32).mul_(0.02).bfloat16()
        base.add(name, weight)
        module = name.removesuffix(".weight")
        for i, model in enumerate(whole):
            tuned = weight
            if module.rpartition(".")[2] in LINEAR and "layers" in module:
                b = torch.randn(shape[0], RANK, generator=generator) * 1e-3
                a = torch.randn(RANK, shape[1], generator=generator) / shape[1] ** 0.5
                path = f"base_model.model.{module.replace('model.', 'model.language_model.', 1)}"
                factors[i] |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
                tuned = torch.addmm(weight.float(), b, a, alpha=ALPHA / RANK).bfloat16()
            model.add(name, tuned.clone())
    for shards in (base, *whole):
        shards.close()
    for i, found in enumerate(factors):
        directory = root / f"adapter_{i}"
        directory.mkdir()
        save_file(found, directory / "adapter_model.safetensors")
        names = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(LINEAR)}
        LoraConfig(**names, base_model_name_or_path=str(root / "base")).save_pretrained(directory)


def configured(root: Path, method: str, adapters: bool) -> dict[str, Any]:
    base = root / "base"
    models = [f"{base}+{root / f'adapter_{i}'}" if adapters else str(root / f"merged_{i}") for i in range(EXPERTS)]
    config: dict[str, Any] = {"merge_method": method, "models": [{"model": model} for model in models]}
    if method in ("linear", "task_arithmetic", "ties"):
        config["parameters"] = {"weight": 1.0 if method == "linear" else 0.3, "density": 0.2}
    if method != "linear":
        config["base_model"] = str(base)
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28, help="of the language model; the published one has 28")
    parser.add_argument("--methods", nargs="+", default=["linear", "task_arithmetic", "optmerge", "tsv", "iso_c"])
    parser.add_argument("--dir", type=Path, help="keep the inputs there, and use them if they are there")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        root = args.dir or Path(temporary)
        if not (root / "base").is_dir():
            write_inputs(root, args.layers)
        size = sum(f.stat().st_size for f in (root / "base").glob("*.safetensors"))
        print(f"base: {size / 1e9:.2f} GB, {EXPERTS} adapters of rank {RANK}")
        print("| method | inputs | wall s | CPU s | CPU / CPU of stock linear | memory MB |\n|---|---|---|---|---|---|")
        reference = 0.0
        for method, adapters in [("linear", False), *((method, True) for method in args.methods)]:
            recipe = root / "merge.yaml"
            recipe.write_text(yaml.safe_dump(configured(root, method, adapters)))
            out = root / "out"
            command = [str(Path(sys.executable).parent / "mergekit-yaml"), str(recipe), str(out), "--quiet"]
            wall, cpu, peak = measured([*command, "--no-write-model-card", "--out-shard-size", "1B"])
            reference = reference or cpu
            inputs = "adapters" if adapters else "the models they make"
            print(
                f"| {method} | {inputs} | {wall:.0f} | {cpu:.0f} | {cpu / reference:.2f} | {peak / 2**20:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
