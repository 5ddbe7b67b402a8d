"""Who brings what to an omni model: the host its language model, guests their towers, each modality one owner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_mm.architecture.checkpoint import Checkpoint
from mergekit_mm.architecture.disk import CheckpointError
from mergekit_mm.architecture.roles import LANGUAGE_ROLES, Role
from mergekit_mm.planning.vocabulary import Vocabulary, unite

HOST = "host"  # parameter of the whole merge: which model's class runs the language model
COMPOSITION = "composition"  # of the whole merge: how tokens of media go through the language model
STATIC, DAMC = "static", "damc"  # as text does; each through its own donor's matrices
MODALITIES = ("image", "video", "audio")
# the parameter that chooses a modality's owner among several donors that could serve it
CHOICE = {"image": Role.VISION_TOWER.value, "video": Role.VIDEO_TOWER.value, "audio": Role.AUDIO_TOWER.value}


@dataclass(frozen=True, eq=False)
class Composition:
    """An omni model to be made. `modalities`: modality -> the donor that serves it."""

    host: ModelReference
    guests: Mapping[str, ModelReference]  # name -> donor
    modalities: Mapping[str, ModelReference]
    vocabulary: Vocabulary

    def owner(self, modality: str) -> str:
        """`host`, or the name of a guest, as the omni config has it."""
        donor = self.modalities[modality]
        return HOST if donor == self.host else next(name for name, guest in self.guests.items() if guest == donor)

    def takes_towers_of(self, model: ModelReference, checkpoints: Mapping[ModelReference, Checkpoint]) -> bool:
        """Whether a donor's towers are in the output: grafted, or merged with the host's of the same architecture."""
        same = checkpoints[model].config.get("model_type") == checkpoints[self.host].config.get("model_type")
        return same or model in self.guests.values()


def is_composed(checkpoints: Mapping[ModelReference, Checkpoint]) -> bool:
    """Whether multimodal models of different architectures are among the inputs."""
    return len({c.config.get("model_type") for c in checkpoints.values() if c.is_multimodal}) > 1


def compose(config: MergeConfiguration, checkpoints: Mapping[ModelReference, Checkpoint]) -> Composition:
    """Settle host, guests and the owner of each modality, from the config where it says, else from the models.

    Raises:
        CheckpointError: several donors serve one modality and the config does not choose; a choice that is no donor.
    """
    donors = {model: c for model, c in checkpoints.items() if c.is_multimodal}
    unknown = [c.name for c in donors.values() if c.skeleton is None]
    if unknown:
        raise CheckpointError(
            f"{_listed(donors)} are different multimodal architectures, and {', '.join(unknown)} brings its own code: "
            "such a model can be merged with others of its kind, but is no part for an omni model."
        )
    parameters = config.parameters or {}
    host = _chosen(HOST, parameters, donors) or _default_host(config, donors)
    modalities: dict[str, ModelReference] = {}
    for modality in MODALITIES:
        serving = _serving(modality, host, donors)
        chosen = _chosen(CHOICE[modality], parameters, donors) if len(serving) > 1 else None
        if chosen is not None and chosen not in serving:
            raise CheckpointError(f"parameter {CHOICE[modality]}: {chosen} does not take {modality} inputs.")
        if len(serving) > 1 and chosen is None:
            both = _listed({model: donors[model] for model in serving})
            raise CheckpointError(
                f"{both} are different multimodal architectures that both take {modality} inputs. "
                f"For an omni model choose one: `parameters: {CHOICE[modality]}: {serving[0]}`."
            )
        if serving:
            modalities[modality] = chosen or serving[0]
    guests: dict[str, ModelReference] = {}
    for donor in dict.fromkeys(modalities.values()):
        if donor != host:
            guests["_".join(m for m, owner in modalities.items() if owner == donor)] = donor
    return Composition(host, guests, modalities, unite(checkpoints[host], checkpoints.values()))


def choices(config: MergeConfiguration, checkpoints: Mapping[ModelReference, Checkpoint]) -> set[str]:
    """The top-level parameters that choose donors here, and are no policies."""
    names = {str(model) for model in checkpoints}
    found = {name for name in CHOICE.values() if str((config.parameters or {}).get(name)) in names}
    return found | ({HOST} & (config.parameters or {}).keys())


def is_decoupled(config: MergeConfiguration) -> bool:
    """Whether a config asks for DAMC. Raises ValueError for a composition that does not exist."""
    value = (config.parameters or {}).get(COMPOSITION, STATIC)
    if value not in (STATIC, DAMC):
        raise ValueError(f"parameter {COMPOSITION}: {value!r} is not known; choose {STATIC} | {DAMC}.")
    return bool(value == DAMC)


@dataclass(frozen=True)
class Settings:
    """What a language model does with its tensors beyond their shapes."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float | None
    rope_theta: float | None


# with another of these the same tensors are another function; the others only shift it
_BINDING = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")


def settings(checkpoint: Checkpoint) -> Settings | None:
    """The settings of a checkpoint's language model; None for remote code."""
    if checkpoint.skeleton is None:
        return None
    text = checkpoint.skeleton.model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    rope = getattr(text, "rope_parameters", None) or {}
    return Settings(
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or getattr(text, "hidden_size", heads) // heads,
        getattr(text, "hidden_act", ""),
        getattr(text, "rms_norm_eps", None),
        rope.get("rope_theta") if isinstance(rope, dict) else None,
    )


def differences(base: Checkpoint, other: Checkpoint) -> tuple[list[str], list[str]]:
    """How another language model of the same shapes computes otherwise: what forbids a merge, what is to be known."""
    ours, theirs = settings(base), settings(other)
    if ours is None or theirs is None:
        return [], []
    told = {
        key: f"{key} {value} in {other.name}, {vars(ours)[key]} in {base.name}"
        for key, value in vars(theirs).items()
        if value != vars(ours)[key]
    }
    return [t for key, t in told.items() if key in _BINDING], [t for key, t in told.items() if key not in _BINDING]


def guest_tensors(guest: Checkpoint) -> dict[str, str]:
    """Name inside the guest's inner model -> name in its memory, of all but its language model."""
    return {
        name.removeprefix("model."): name for name, info in guest.tensors.items() if info.role not in LANGUAGE_ROLES
    }


def _chosen(
    name: str, parameters: Mapping[str, Any], donors: Mapping[ModelReference, Checkpoint]
) -> ModelReference | None:
    value = parameters.get(name)
    found = next((model for model in donors if str(model) == str(value)), None)
    if name == HOST and value is not None and found is None:
        raise CheckpointError(f"parameter {HOST}: {value} is none of {', '.join(map(str, donors))}.")
    return found


def _listed(donors: Mapping[ModelReference, Checkpoint]) -> str:
    return " and ".join(f"{model} ({donor.config.get('model_type')})" for model, donor in donors.items())


def _default_host(config: MergeConfiguration, donors: Mapping[ModelReference, Checkpoint]) -> ModelReference:
    """The base if it is multimodal; else a model whose positions need its own class (M-RoPE); else the first."""
    if config.base_model in donors:
        return config.base_model
    special = (m for m, c in donors.items() if re.search(r"mrope", str(c.config.get("text_config", c.config))))
    return next(special, next(iter(donors)))


def _serving(modality: str, host: ModelReference, donors: Mapping[ModelReference, Checkpoint]) -> list[ModelReference]:
    """The donors that take a modality, one of each architecture, the host before others of its own."""
    found: dict[str, ModelReference] = {}
    for model in (host, *donors):
        if placeholder(modality, donors[model]) is not None:
            found.setdefault(str(donors[model].config.get("model_type")), model)
    return list(found.values())


def placeholder(modality: str, donor: Checkpoint) -> int | None:
    """The id of the donor's placeholder token of a modality; None if it does not take it."""
    if donor.skeleton is None or modality not in (donor.skeleton.model.input_modalities or MODALITIES):
        return None
    config = donor.skeleton.model.config
    found = (getattr(config, f"{modality}_token_{end}", None) for end in ("id", "index"))
    return next((token for token in found if isinstance(token, int)), None)
