"""The number by which the product of LoRA's factors is multiplied: alpha / r, wherever a checkpoint says it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key
from safetensors import safe_open

from mergekit_mm.checkpoints.disk import DiskTensor, read_json, unpickled
from mergekit_mm.checkpoints.wrapping import MERGE_WITH_PEFT, is_factor
from mergekit_mm.errors import MergeError

# keys of a model's config by which InternVL's own code wraps a part of the model: a rank, whose alpha is twice as much
RANK_IN_CONFIG = {"language_model.": "use_llm_lora", "vision_model.": "use_backbone_lora"}

_PEFT_DEFAULT = 8  # PEFT's own value of both r and lora_alpha, for an adapter_config.json that leaves them out
_LORA_CONFIGS = ("lora_config", "lora", "peft_config", "adapter_config", "lora_adapter_metadata")
_KEYS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


def lora_scaling(
    name: str,
    config: Mapping[str, Any],
    module: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    where: str,
    matrices: int = 1,
) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation, by PEFT's own matching of patterns to modules.

    Args:
        name: of the input, for messages.
        config: with the keys of an adapter_config.json.
        module: the adapted module, or the adapted parameter if that has no module of its own.
        a: shape of the factor A, (r * matrices, in).
        b: shape of the factor B, (out, r * matrices).
        where: the file of the config, for messages.
        matrices: how many matrices the adapted tensor is a stack of; each has factors of rank r.

    Raises:
        MergeError: the config is damaged, or of another rank than the factors.
    """
    try:
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        rank = ranks.get(get_pattern_key(ranks.keys(), module), config.get("r", _PEFT_DEFAULT))
        alpha = alphas.get(get_pattern_key(alphas.keys(), module), config.get("lora_alpha", _PEFT_DEFAULT))
    except (AttributeError, re.error) as error:
        raise MergeError(f"{name}: rank_pattern or alpha_pattern of {where} is damaged: {error}") from None
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise MergeError(f"{name}: {where} gives {module} the rank {rank} and the alpha {alpha}.")
    if a[0] != rank * matrices or b[1] != rank * matrices:
        stack = f" for each of {matrices} matrices" if matrices > 1 else ""
        raise MergeError(
            f"{name}: the factors of {module} are {b} and {a}, which is not the rank {rank}{stack} that "
            f"{where} (r, rank_pattern) gives it."
        )
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


class StoredScalings:
    """The scalings of factors inside a full checkpoint, as an adapter_config.json, its files or its config say them."""

    def __init__(self, name: str, directory: Path, config: Mapping[str, Any], disk: Mapping[str, DiskTensor]) -> None:
        """name: of the input, for messages. disk: name in the files -> header of all tensors."""
        self.name, self.directory, self.config, self.disk = name, directory, config, disk
        file = directory / "adapter_config.json"
        self.adapter_config = read_json(file) if file.is_file() else {}
        sources = [("adapter_config.json", self.adapter_config), *self._in_metadata()]
        sources += [("config.json", found) for found in _lora_configs(config)]
        self._sources = [(where, found) for where, found in sources if "lora_alpha" in found]
        self.used: set[float] = set()
        self.where: set[str] = set()

    def of(
        self, module: str, a: tuple[int, ...], b: tuple[int, ...], alpha_key: str | None, matrices: int = 1
    ) -> float:
        """The scaling of the factors of one layer; arguments as of `lora_scaling`.

        alpha_key: the key of a stored tensor that holds the layer's alpha, if there is one.

        Raises:
            MergeError: nothing says the scaling.
        """
        where, scaling = self._found(module, a, b, alpha_key, matrices)
        self.where.add(where)
        self.used.add(scaling)
        return scaling

    def _found(
        self, module: str, a: tuple[int, ...], b: tuple[int, ...], alpha_key: str | None, matrices: int
    ) -> tuple[str, float]:
        rank = a[0] // matrices
        if alpha_key is not None:
            return "alpha in the weights", self._number(alpha_key) / rank
        for where, found in self._sources:
            return where, lora_scaling(self.name, {"r": rank, **found}, module, a, b, where, matrices)
        for part, key in RANK_IN_CONFIG.items():
            if module.startswith(part) and (configured := self.config.get(key)):
                found = {"r": configured, "lora_alpha": 2 * configured}
                return f"{key} in config.json", lora_scaling(self.name, found, module, a, b, "config.json", matrices)
        raise MergeError(
            f"{self.name} holds unmerged LoRA factors (of {module} and others), and nothing tells what they are "
            "multiplied by: put the adapter_config.json of the training (r, lora_alpha) into that directory. "
            f"Or: {MERGE_WITH_PEFT[0].lower()}{MERGE_WITH_PEFT[1:]}"
        )

    def _number(self, key: str) -> float:
        """The value of a stored tensor of one element."""
        path = self.directory / self.disk[key].file
        if path.suffix != ".safetensors":
            return float(unpickled(path)[key])
        with safe_open(str(path), framework="pt") as file:
            return float(file.get_tensor(key))

    def _in_metadata(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(file, config of LoRA) of the safetensors files that have one in their metadata."""
        for file in sorted({tensor.file for key, tensor in self.disk.items() if is_factor(key)}):
            if not file.endswith(".safetensors"):
                continue
            with safe_open(str(self.directory / file), framework="pt") as opened:
                metadata = opened.metadata() or {}
            parsed = {}
            for key, text in metadata.items():
                try:
                    parsed[key] = json.loads(text)
                except (ValueError, RecursionError):
                    parsed[key] = text
            yield from ((file, found) for found in _lora_configs(parsed))


def _lora_configs(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a config says of LoRA, at its top or under a name for it, with the keys of an adapter_config.json."""
    for part in (config, *(config.get(key) for key in _LORA_CONFIGS)):
        if not isinstance(part, Mapping):
            continue
        part = part["default"] if isinstance(part.get("default"), Mapping) else part
        found = {key: value for key, value in part.items() if key in _KEYS}
        rank = next((part[key] for key in ("lora_r", "lora_rank") if key in part), None)
        if rank is not None:
            found["r"] = rank
        if part is not config and part.get("alpha") is not None:
            found.setdefault("lora_alpha", part["alpha"])
        yield found
