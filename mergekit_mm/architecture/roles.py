"""The role of every tensor: language model, tower, projector and so on.

The role comes from the config: each `PreTrainedModel` inside a model carries the very sub-config it was
built from, so the key of that sub-config (`vision_config`, `text_config`, ...) says what the module is.
What no sub-config describes connects the others and is the projector. `_CONNECTORS` holds the exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mergekit_mm.architecture.skeleton import Skeleton


class Role(str, Enum):
    """What a tensor does in a multimodal LLM. The first five make up the language model."""

    LANGUAGE_MODEL = "language_model"
    EMBEDDINGS = "embeddings"
    LM_HEAD = "lm_head"
    NORMS = "norms"
    BIASES = "biases"
    VISION_TOWER = "vision_tower"
    AUDIO_TOWER = "audio_tower"
    VIDEO_TOWER = "video_tower"
    PROJECTOR = "projector"
    OTHER = "other"

    @property
    def module(self) -> str:
        """The name of the merge module (`modules:` in a mergekit config) that holds tensors of this role."""
        return Role.LANGUAGE_MODEL.value if self in LANGUAGE_ROLES else self.value


LANGUAGE_ROLES = frozenset({Role.LANGUAGE_MODEL, Role.EMBEDDINGS, Role.LM_HEAD, Role.NORMS, Role.BIASES})
TOWERS = frozenset({Role.VISION_TOWER, Role.AUDIO_TOWER, Role.VIDEO_TOWER})

# A sub-config's key -> the role of the modules built from it; the first match counts. Speech output comes
# first: whatever lies below a talker or a vocoder serves that, its own text_config included.
_CONFIG_KEYS: tuple[tuple[str, Role], ...] = (
    (r"talker|token2wav|code2wav|vocoder|code_predictor|bigvgan|dit_config", Role.OTHER),
    (r"projector|perceiver|qformer|connector|resampler|adapter", Role.PROJECTOR),
    (r"video", Role.VIDEO_TOWER),
    (r"vision|visual|image|vq|vit", Role.VISION_TOWER),
    (r"audio|speech|encoder", Role.AUDIO_TOWER),
    (r"text|language|llm|decoder", Role.LANGUAGE_MODEL),
)

# Connectors that are built inside a tower, from the tower's own config: no API tells them apart.
# model type of the tower's (or the whole model's) config -> what their names match, relative to that module.
_CONNECTORS: dict[str, str] = {
    "qwen2_vl_vision": r"^merger\.",
    "qwen2_5_vl_vision": r"^merger\.",
    "qwen3_vl_vision": r"^(merger|deepstack_merger_list)\.",
    "qwen3_vl_moe_vision": r"^(merger|deepstack_merger_list)\.",
    "qwen3_5_vision": r"^merger\.",
    "qwen3_5_moe_vision": r"^merger\.",
    "qwen2_5_omni_vision_encoder": r"^merger\.",
    "qwen2_5_omni_audio_encoder": r"^proj\.",
    "qwen3_omni_moe_vision_encoder": r"^(merger|merger_list)\.",
    "qwen3_omni_moe_audio_encoder": r"^(proj1|proj2)\.",
    "glm4v_vision": r"^(merger|downsample)\.",
    "glm4v_moe_vision": r"^(merger|downsample)\.",
    "llama4_vision_model": r"^vision_adapter\.",
    "minicpmv4_6_vision": r"^vit_merger\.",
    # phi4 has no text_config, so its decoder is what is left over; its projectors lie beside the towers
    "phi4_multimodal": r"(^|\.)(img_projection|up_proj_for_\w+|down_proj_for_\w+|global_img_\w+|sub_img_\w+)",
}


def classify(skeleton: Skeleton) -> dict[str, Role]:
    """The role of each tensor of a model's state dict."""
    model = skeleton.model
    keys = dict(_sub_config_keys(model.config))
    has_text = any(_role_of_key(path) is Role.LANGUAGE_MODEL for path in keys.values())
    # name of a module built from a sub-config -> (its role, its config's model type); "" is the model itself
    built: dict[str, tuple[Role | None, str]] = {
        "": (Role.PROJECTOR if has_text else Role.LANGUAGE_MODEL, model.config.model_type)
    }
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if name and isinstance(config, PreTrainedConfig) and id(config) in keys:
            built[name] = (_role_of_key(keys[id(config)]), config.model_type)
    vocabulary = _vocabulary(model, built)
    return {name: vocabulary.get(name) or _role(name, model, built) for name in skeleton.tensors}


def _sub_config_keys(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[int, str]]:
    """(identity of each sub-config, its dotted path of keys), outermost first."""
    for key in getattr(config, "sub_configs", None) or ():
        sub = getattr(config, key, None)
        if isinstance(sub, PreTrainedConfig):
            here = f"{path}.{key}".lstrip(".")
            yield id(sub), here
            yield from _sub_config_keys(sub, here)


def _role_of_key(path: str) -> Role | None:
    """The role that a sub-config's path stands for; None for a mere container such as `thinker_config`."""
    if re.search(_CONFIG_KEYS[0][0], path):
        return _CONFIG_KEYS[0][1]
    last = path.rpartition(".")[2]
    return next((role for pattern, role in _CONFIG_KEYS[1:] if re.search(pattern, last)), None)


def _role(name: str, model: PreTrainedModel, built: Mapping[str, tuple[Role | None, str]]) -> Role:
    owner, role, relative = "", None, name
    for prefix in _ancestors(name):
        if prefix in built and built[prefix][0] is not None:
            owner, (role, _) = prefix, built[prefix]
            relative = name[len(prefix) :].lstrip(".")
            break
    connector = _CONNECTORS.get(built[owner][1])
    if connector and re.search(connector, relative):
        return Role.PROJECTOR
    if role is Role.VISION_TOWER and "video" in owner:
        return Role.VIDEO_TOWER  # twin towers that share one vision_config
    if role is Role.LANGUAGE_MODEL:
        return _language_role(name, model)
    return role or Role.PROJECTOR


def _ancestors(name: str) -> Iterator[str]:
    """The dotted prefixes of a tensor's name, longest first, down to the empty one."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _language_role(name: str, model: PreTrainedModel) -> Role:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, nn.Embedding):
        return Role.EMBEDDINGS
    # transformers has no common class for its many norms, but all of them have the word in a name
    if "norm" in (type(module).__name__ + owner.rpartition(".")[2]).lower():
        return Role.NORMS
    return Role.BIASES if leaf.endswith("bias") else Role.LANGUAGE_MODEL


def _vocabulary(model: PreTrainedModel, built: Mapping[str, tuple[Role | None, str]]) -> dict[str, Role]:
    """Names of the input embeddings and the output head of the language model.

    The whole model is asked first, then the containers in it: the full Qwen-Omni models raise, their thinker answers.
    """
    for name in ["", *(name for name, (role, _) in built.items() if role is None)]:
        module = model.get_submodule(name)
        try:
            found = module.get_input_embeddings(), module.get_output_embeddings()
        except (NotImplementedError, AttributeError):
            continue
        if found[0] is not None:
            roles = zip(found, (Role.EMBEDDINGS, Role.LM_HEAD), strict=True)
            return {n: role for part, role in roles if part is not None for n in _names_within(model, part)}
    return {}


def _names_within(model: nn.Module, part: nn.Module) -> Iterable[str]:
    path = next(name for name, module in model.named_modules() if module is part)
    return [f"{path}.{name}" for name in part.state_dict()]


# For checkpoints whose modelling code is not transformers' own, names are all there is. The first match counts.
_NAMES: tuple[tuple[str, Role], ...] = (
    (r"talker|token2wav|code2wav|vocoder", Role.OTHER),
    (
        r"projector|projection_layer|connector|aligner|resampler|merger|perceiver|qformer|^(model\.)?mlp1\.",
        Role.PROJECTOR,
    ),
    (r"video_(tower|model|encoder)", Role.VIDEO_TOWER),
    (r"vision|visual|image_(tower|encoder)|\bvit\b|^vpm\.", Role.VISION_TOWER),
    (r"audio|speech|whisper|^apm\.", Role.AUDIO_TOWER),
    (r"lm_head|(^|\.)output\.weight$", Role.LM_HEAD),
    (r"embed_tokens|tok_embeddings|\bwte\b|word_embeddings", Role.EMBEDDINGS),
    (r"norm[^.]*\.(weight|bias)$|\bln_[^.]*\.(weight|bias)$", Role.NORMS),
    (r"bias$", Role.BIASES),
)


def classify_names(names: Iterable[str]) -> dict[str, Role]:
    """The role of each tensor as far as its name tells; a name that tells nothing belongs to the language model."""
    return {
        name: next((role for pattern, role in _NAMES if re.search(pattern, name)), Role.LANGUAGE_MODEL)
        for name in names
    }
