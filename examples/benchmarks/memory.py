"""Peak memory of a merge by the size of the model. It should depend on the largest tensors, not on the model.

Makes random LLaVA-style checkpoints of one width and several depths, merges three experts of each with the stock
`mergekit-yaml`, and samples the anonymous memory of that process. Linux only.

    python -m examples.benchmarks.memory --layers 4 8 16 --methods linear optmerge
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
import transformers
import yaml

from examples.benchmarks.processes import measured

EXPERTS = 3


def make(directory: Path, layers: int, width: int) -> tuple[int, int]:
    """Write a base and its experts; returns the bytes of one model and of its largest tensor."""
    config = transformers.LlavaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 1000,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=999,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    model.save_pretrained(directory / "base", max_shard_size="200MB")
    for i in range(EXPERTS):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=1e-4)
        model.save_pretrained(directory / f"expert_{i}", max_shard_size="200MB")
    return sum(sizes), max(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--methods", nargs="+", default=["linear", "task_arithmetic", "ties", "optmerge"])
    parser.add_argument(
        "--shard-size", default="50M", help="mergekit's --out-shard-size: bytes buffered before writing"
    )
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    command = str(Path(sys.executable).parent / "mergekit-yaml")
    idle = measured([sys.executable, "-c", "import mergekit.scripts.run_yaml, mergekit_mm.merge"]).peak
    print(f"{EXPERTS} experts and a base; imports alone: {idle / 1e6:.0f} MB, not counted below")
    print(f"{'method':<16} layers  model MB  largest MB  peak MB  peak/largest  peak/model")
    for layers in args.layers:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            size, largest = make(root, layers, args.width)
            for method in args.methods:
                models = [{"model": str(root / f"expert_{i}"), "parameters": {"weight": 0.3}} for i in range(EXPERTS)]
                config = {"merge_method": method, "base_model": str(root / "base"), "models": models}
                if method == "linear":
                    del config["base_model"]
                (root / "merge.yaml").write_text(yaml.safe_dump(config))
                run = [
                    command,
                    str(root / "merge.yaml"),
                    str(root / "out"),
                    "--quiet",
                    "--out-shard-size",
                    args.shard_size,
                ]
                peak = measured(run).peak - idle
                print(
                    f"{method:<16} {layers:>6} {size / 1e6:>9.0f} {largest / 1e6:>10.1f} {peak / 1e6:>8.0f} "
                    f"{peak / largest:>12.1f} {peak / size:>10.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
