"""The role of every tensor: language model, tower, projector and so on.

The role comes from the config: each `PreTrainedModel` inside a model carries the sub-config that it was built from, so
that the key of the sub-config (`vision_config`, `text_config`, ...) says what the module is. Modules that no sub-config
describes connect the others and are the projector.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mergekit_mm.checkpoints.meta_model import MetaModel


class Role(str, Enum):
    """The part of a multimodal LLM that a tensor belongs to. The first five roles make up the language model."""

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

# Pattern for the key of a sub-config -> the role of the modules built from it. The first match counts. Speech output
# comes first: everything below a talker or a vocoder belongs to it, a text_config of its own included.
_CONFIG_KEYS: tuple[tuple[str, Role], ...] = (
    (r"talker|token2wav|code2wav|vocoder|code_predictor|bigvgan|dit_config", Role.OTHER),
    (r"projector|perceiver|qformer|connector|resampler|adapter", Role.PROJECTOR),
    (r"video", Role.VIDEO_TOWER),
    (r"vision|visual|image|vq|vit", Role.VISION_TOWER),
    (r"audio|speech|acoustic|codec", Role.AUDIO_TOWER),
    (r"text|language|llm|decoder", Role.LANGUAGE_MODEL),
)

# Connectors that are built inside a tower from the tower's own config. No API tells them apart, but families name them
# alike. The pattern is for the tower's role and the name relative to the tower: a `downsample` deeper inside, or in a
# codec of sounds, is an ordinary stage.
_CONNECTOR_IN_TOWER = re.compile(
    r"(\w+_tower\.((\w+_)?merger(_list)?|connector|multi_modal_projector|vision_adapter|proj\d?)"
    r"|vision_tower\.downsample(r\d?)?)\."
)
# A model without a text_config is itself the decoder, with all its tensors but those with the name of a tower or a
# connector. These are connectors that their names do not show.
_CONNECTOR_IN_DECODER = {"phi4_multimodal": re.compile(r"model\.embed_tokens_extend\.")}


def classify(meta_model: MetaModel) -> dict[str, Role]:
    """The role of each tensor of a model's state dict."""
    model = meta_model.model
    keys = dict(_sub_config_keys(model.config))
    # name of a module built from a sub-config -> its role, None for a mere container; the model itself has no name
    built: dict[str, Role | None] = {
        name: _role_of_key(keys[id(module.config)], module.input_modalities)
        for name, module in model.named_modules()
        if name and isinstance(module, PreTrainedModel) and id(module.config) in keys
    }
    built[""] = None if Role.LANGUAGE_MODEL in built.values() else Role.LANGUAGE_MODEL
    vocabulary = _vocabulary(model, built)
    roles = {name: vocabulary.get(name) or _role(name, model, built) for name in meta_model.tensors}
    for pair in meta_model.aliases.items():  # One sub-config describes both of two tied tensors.
        if described := [roles[name] for name in pair if roles[name] is not Role.PROJECTOR]:
            roles |= {name: described[0] for name in pair if roles[name] is Role.PROJECTOR}
    return roles


def _sub_config_keys(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[int, str]]:
    """(identity of each sub-config, its dotted path of keys), outermost first."""
    for key in getattr(config, "sub_configs", None) or ():
        sub = getattr(config, key, None)
        if isinstance(sub, PreTrainedConfig):
            here = f"{path}.{key}".lstrip(".")
            yield id(sub), here
            yield from _sub_config_keys(sub, here)
    for guest in (getattr(config, "guests", None) or {}).values():  # guests of an omni model are containers
        yield id(guest), "guests"
        yield from _sub_config_keys(guest, "guests")


def _role_of_key(path: str, media: str | tuple[str, ...]) -> Role | None:
    """The role of a sub-config's path; None for a mere container such as `thinker_config`.

    media: the inputs of the modules that are built from the sub-config.
    """
    if re.search(_CONFIG_KEYS[0][0], path):
        return _CONFIG_KEYS[0][1]
    *above, role = [
        next((role for pattern, role in _CONFIG_KEYS[1:] if re.search(pattern, key)), None) for key in path.split(".")
    ]
    if role is not Role.PROJECTOR and not TOWERS.isdisjoint(above):
        return None  # a part of a tower
    if role is None and "encoder" in path.rpartition(".")[2]:  # the key names no medium
        return Role.AUDIO_TOWER if "image" not in media else Role.VISION_TOWER if "text" not in media else None
    return role


def _role(name: str, model: PreTrainedModel, built: Mapping[str, Role | None]) -> Role:
    owner = next((prefix for prefix in _ancestors(name) if built.get(prefix) is not None), "")
    role = built[owner] or Role.PROJECTOR
    if role in TOWERS and _CONNECTOR_IN_TOWER.match(f"{role.value}.{name[len(owner) + 1 :]}"):
        return Role.PROJECTOR
    if role is Role.VISION_TOWER and "video" in re.sub(r"^guests\.\w+\.", "", owner):
        return Role.VIDEO_TOWER  # twin towers that share one vision_config
    if role is Role.LANGUAGE_MODEL:
        connector = _CONNECTOR_IN_DECODER.get(model.config.model_type)
        if connector and connector.match(name):
            return Role.PROJECTOR
        # the name begins with the model's own, which may be that of a medium, as in SpeechT5
        named = role if owner else _role_of_name(name.removeprefix(f"{model.base_model_prefix}."))
        return _language_role(name, model) if named in LANGUAGE_ROLES else named
    return role


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
    # transformers has no common class for its many norms, but each has the word in its class or name
    if "norm" in (type(module).__name__ + owner.rpartition(".")[2]).lower():
        return Role.NORMS
    return Role.BIASES if leaf.endswith("bias") else Role.LANGUAGE_MODEL


def _vocabulary(model: PreTrainedModel, built: Mapping[str, Role | None]) -> dict[str, Role]:
    """Names of the input embeddings and the output head of the language model.

    The whole model is asked first, then the containers in it, then the language model: the full Qwen-Omni models raise,
    and their thinker answers; in Nemotron-H Omni only the language model knows its head.
    """
    containers = [name for name, role in built.items() if name and role is None]
    found: dict[Role, nn.Module] = {}
    for name in ["", *containers, *(name for name, role in built.items() if role is Role.LANGUAGE_MODEL)]:
        module = model.get_submodule(name)
        try:
            parts = {Role.EMBEDDINGS: module.get_input_embeddings(), Role.LM_HEAD: module.get_output_embeddings()}
        except (NotImplementedError, AttributeError):  # These models have no answer; a part of them has.
            continue
        found = {role: part for role, part in parts.items() if part is not None} | found
    return {n: role for role, part in found.items() for n in _names_within(model, part)}


def _names_within(model: nn.Module, part: nn.Module) -> Iterable[str]:
    path = next(name for name, module in model.named_modules() if module is part)
    return [f"{path}.{name}" for name in part.state_dict()]


_NOT_OF_TOKENS = re.compile(r"position|segment|token_type|\bwpe\b")  # tables that places or kinds of tokens index


def is_indexed_by_tokens(name: str, role: Role) -> bool:
    """Whether a tensor has a row for each token id, as embeddings and output heads have."""
    return role is Role.LM_HEAD or (role is Role.EMBEDDINGS and not _NOT_OF_TOKENS.search(name))


# Pattern for a tensor's name -> role, for checkpoints whose modelling code is not transformers' own. The first match
# counts.
_NAMES: tuple[tuple[str, Role], ...] = (
    (r"talker|token2wav|code2wav|vocoder|^tts\b|speech_(generator|decoder)", Role.OTHER),
    (
        r"projector|projection_layer|connector|aligner|resampler|merger|perceiver|qformer|^(model\.)?mlp1\.|^vte\.",
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
    """The role of each tensor, judged by its name; a name without any hint belongs to the language model."""
    return {name: _role_of_name(name) for name in names}


def _role_of_name(name: str) -> Role:
    return next((role for pattern, role in _NAMES if re.search(pattern, name)), Role.LANGUAGE_MODEL)
