"""The omni model that a composition describes: its config, and the tensors that it will load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.hyperparameters import hyperparameters
from mergekit_mm.checkpoints.transformers_private import on_meta_device
from mergekit_mm.errors import MergeError
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.modeling import OmniForConditionalGeneration
from mergekit_mm.plan.omni.composition import Composition, placeholder


def omni_model(
    omni: Composition, host_config: Mapping[str, Any], routed: Mapping[str, Any] | None = None
) -> tuple[OmniConfig, dict[str, tuple[int, ...]]]:
    """The config of the omni model; and name -> shape of every tensor that has to be on disk.

    host_config: the host's part of the config, as its own config.json would have it. routed: as in the omni config.

    Raises:
        MergeError: a donor cannot be a part of an omni model.
    """
    config = OmniConfig(
        host=dict(host_config),
        guests={name: dict(omni.checkpoints[model].config) for name, model in omni.guests.items()},
        modalities={m: {"owner": omni.owner(m), "token_id": _placeholder_id(omni, m)} for m in omni.modalities},
        routed=dict(routed or {}),
        architectures=[OmniForConditionalGeneration.__name__],
        dtype=host_config.get("dtype", host_config.get("torch_dtype", "float32")),
    )
    _compute_like(config.get_text_config(), omni.checkpoints[omni.language_base])
    if omni.adds_head:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    try:
        model = on_meta_device(OmniForConditionalGeneration, config)
    except ValueError as error:
        raise MergeError(f"These models do not compose: {error}") from error
    first_name: dict[int, str] = {}
    tied = {n for n, p in model.named_parameters(remove_duplicate=False) if first_name.setdefault(id(p), n) != n}
    return config, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _compute_like(text_config: Any, language_base: Checkpoint) -> None:
    """Give the host's language model the constants of the language model that the merge starts from."""
    constants = hyperparameters(language_base)
    if constants is not None and constants.rms_norm_eps is not None:
        text_config.rms_norm_eps = constants.rms_norm_eps
    if constants is not None and constants.rope is not None and isinstance(text_config.rope_parameters, dict):
        mrope = {key: value for key, value in text_config.rope_parameters.items() if "mrope" in key}
        text_config.rope_parameters = {**constants.rope, **mrope}


def _placeholder_id(omni: Composition, modality: str) -> int:
    """The united id of a modality's placeholder. MergeError if its owner's tokenizer does not have that token."""
    donor = omni.checkpoints[omni.modalities[modality]]
    own_id = placeholder(modality, donor)
    assert own_id is not None
    united_id = omni.vocabulary.id_of(donor.directory, own_id)
    if united_id is None:
        raise MergeError(
            f"The placeholder of {modality} in {donor.name} is {own_id} by its config.json, but its tokenizer has no "
            "such token. Is the tokenizer another model's?"
        )
    return united_id
