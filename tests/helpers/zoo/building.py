"""Checkpoints of a family, written in its layouts: weights, tokenizer, side files."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_model_conversion_mapping

from zoo.configs import A_END, A_START, AUDIO, IMAGE, SPECIAL, V_END, V_START, VIDEO, VOCAB, Config
from zoo.families import FAMILIES, Family

BASE_STD, EXPERT_STD, N_EXPERTS = 0.02, 0.01, 3
# A count that float32 cannot hold: a BatchNorm counter that went through a float comes back changed.
BATCHES_TRACKED = 2**24 + 1


def _seed(*parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


def _fresh(spec: Family) -> Any:
    """The same model in every run. transformers leaves some parameters as it found the memory (the experts of
    Qwen3-Omni's talker): torch's deterministic mode makes NaN of those, and `_perturb` zero and noise."""
    torch.manual_seed(_seed(spec.name, "init"))
    torch.use_deterministic_algorithms(True)
    try:
        return getattr(t, spec.cls)(spec.config()).float().eval()
    finally:
        torch.use_deterministic_algorithms(False)


def _perturb(model: torch.nn.Module, std: float, seed: int, keep_infinite: bool) -> None:
    """Add N(0, std) to every floating tensor of the state dict, tied tensors once."""
    generator = torch.Generator().manual_seed(seed)
    seen = set()
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                tensor.fill_(BATCHES_TRACKED)
            key = (tensor.data_ptr(), tensor.shape)
            if not tensor.is_floating_point() or tensor.numel() == 0 or key in seen:
                continue
            seen.add(key)
            # a trained Gemma 4 has numbers where a fresh one has infinite clip bounds
            bound = float("inf") if keep_infinite else 8.0
            torch.nan_to_num_(tensor, nan=0.0, posinf=bound, neginf=-bound)
            tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * std)


def tokenizer(vocab: int = VOCAB, **named: str) -> Any:
    """A byte-level tokenizer of `vocab` tokens with the placeholders of the zoo; `named` has, say, its image_token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    names = [SPECIAL.get(i) or next(letters, None) or f"<unused{i}>" for i in range(vocab)]
    model = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], fuse_unk=False))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    extra = [SPECIAL[i] for i in (IMAGE, VIDEO, AUDIO, V_START, V_END, A_START, A_END)]
    return t.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=extra,
        **named,
    )


def write_side_files(path: Path, tag: str) -> None:
    """Marker versions of the files a processor needs, so a merge can be checked for copying them."""
    marker = {"zoo_marker": tag}
    contents: dict[str, Config] = {
        "preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor", **marker},
        "processor_config.json": {"processor_class": "LlavaProcessor", **marker},
        "video_preprocessor_config.json": {"video_processor_type": "LlavaOnevisionVideoProcessor", **marker},
        "chat_template.json": {"chat_template": f"{{# {tag} #}}"},
        "vocab.json": marker,
        "generation_config.json": {"max_new_tokens": 7},
    }
    for name, content in contents.items():
        (path / name).write_text(json.dumps(content, indent=2))
    template = f"{{# {tag} #}}{{% for m in messages %}}{{{{ m['content'] }}}}{{% endfor %}}"
    (path / "chat_template.jinja").write_text(template)


def _save(model: Any, path: Path, spec: Family, tag: str, layout: str) -> None:
    """Write one checkpoint in `layout`, with tokenizer and side files."""
    model._weight_conversions = None
    if layout == "hub" and not spec.published_prefix:
        # What from_pretrained records for a model that was read from a checkpoint with the old names.
        rules = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [rule for rule in rules if not getattr(rule, "prefix_to_add", None)]
    model.save_pretrained(path, save_original_format=layout != "memory")
    if layout == "hub" and spec.published_prefix:
        weights = path / "model.safetensors"
        renamed = {f"{spec.published_prefix}{name}": tensor for name, tensor in load_file(weights).items()}
        save_file(renamed, weights, metadata={"format": "pt"})
    tokenizer().save_pretrained(path)
    write_side_files(path, f"{spec.name}/{tag}")
    if spec.cls == "Qwen2_5OmniForConditionalGeneration":  # from_pretrained of the full model insists on this file
        torch.save({"tiny": {"bos_token": 60, "cond": torch.zeros(1, 16)}}, path / "spk_dict.pt")


def disk_names(path: Path) -> set[str]:
    with safe_open(path / "model.safetensors", "pt") as file:
        return set(file.keys())


def build(name: str, root: Path, layouts: Iterable[str] | None = None) -> None:
    """Write base and experts of one family under `root`, in its layouts (or the ones named)."""
    spec = FAMILIES[name]
    wanted = tuple(layouts or spec.layouts)
    model = _fresh(spec)
    _perturb(model, BASE_STD, _seed(name, "base"), spec.infinite)
    base = copy.deepcopy(model.state_dict())
    for tag in ("base", *(f"expert_{i}" for i in range(N_EXPERTS))):
        if tag != "base":
            model.load_state_dict(base)
            _perturb(model, EXPERT_STD, _seed(name, tag), spec.infinite)
        for layout in wanted:
            _save(model, root / layout / name / tag, spec, tag, layout)
    seen = {layout: disk_names(root / layout / name / "base") for layout in wanted}
    if any(seen[a] == seen[b] for a in seen for b in seen if a < b):
        raise AssertionError(f"{name}: two of the layouts {', '.join(seen)} have the same names")
