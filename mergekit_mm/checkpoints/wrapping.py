"""Names that PEFT and the wrappers of trainers give to the tensors of the model that they wrap.

For one layer, PEFT writes `q_proj.base_layer.weight`, `q_proj.lora_A.default.weight` and `q_proj.lora_B.default.weight`
instead of `q_proj.weight`, and `base_model.model.` before all names.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.(?P<adapter>(?!(weight|bias)$)[^.]+))?(?P<end>\.weight|\.bias)?"
)
_ALPHA = re.compile(r"(.+)\.(?:lora_)?alpha(?:\.[^.]+)?")
_FACTOR = re.compile(r"lora_(embedding_)?[AB](\.|$)", re.IGNORECASE)
# Parts of paths that PEFT, torch.compile, FSDP and gradient checkpointing insert at the modules that they wrap.
_WRAPPERS = re.compile(
    r"(?<![^.])(base_model\.model|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_checkpoint_module)\."
)

MERGE_WITH_PEFT = "Merge it with PEFT (merge_and_unload), save the model and name that directory instead."


class Part(NamedTuple):
    """What a name under PEFT says of one stored tensor of an adapter."""

    module: str  # the path of the layer that is adapted
    part: str  # lora_A, lora_B, lora_embedding_A, lora_embedding_B or lora_magnitude_vector
    adapter: str  # the name of the adapter; empty where names do not have it, as in the files that PEFT writes
    is_bias: bool


def part_of(name: str) -> Part | None:
    """Read a name like `q_proj.lora_A.default.weight`; None for a name that is none of LoRA's."""
    found = _PART.fullmatch(name)
    return found and Part(found["module"], found["part"], found["adapter"] or "", found["end"] == ".bias")


def is_factor(name: str) -> bool:
    """Whether a tensor, judged by its name, is one factor of a product, so that averages of it mean nothing."""
    return _FACTOR.search(name) is not None


def layer_of_alpha(name: str) -> str | None:
    """The layer whose alpha a tensor may be, judged by its name; None for any other tensor."""
    found = _ALPHA.fullmatch(name)
    return found[1] if found else None


def unwrapped(name: str) -> str:
    """A name without the parts that PEFT and trainers put before the part of a model that they wrap."""
    return _WRAPPERS.sub("", name)
