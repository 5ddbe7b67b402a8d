"""The omni model that a composition describes: its config, and the tensors that it will ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.hyperparameters import hyperparameters
from mergekit_mm.checkpoints.transformers_private import on_meta_device
from mergekit_mm.errors import MergeError
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.modeling import OmniForConditionalGeneration
from mergekit_mm.plan.omni.composition import Composition, placeholder


def omni_model(
    omni: Composition,
    checkpoints: Mapping[ModelReference, Checkpoint],
    host: Mapping[str, Any],
    routed: Mapping[str, Any] | None = None,
) -> tuple[OmniConfig, dict[str, tuple[int, ...]]]:
    """The config, with `host` as the host's own; and name -> shape of every tensor that has to be on disk.

    routed: as in the omni config.

    Raises:
        MergeError: a donor that cannot be a part of an omni model, and why.
    """
    config = OmniConfig(
        host=dict(host),
        guests={name: dict(checkpoints[model].config) for name, model in omni.guests.items()},
        modalities={m: {"owner": omni.owner(m), "token_id": _token(omni, m, checkpoints)} for m in omni.modalities},
        routed=dict(routed or {}),
        architectures=[OmniForConditionalGeneration.__name__],
        dtype=host.get("dtype", host.get("torch_dtype", "float32")),
    )
    _compute_like(config.get_text_config(), checkpoints[omni.start])
    if omni.unties_head:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    try:
        model = on_meta_device(OmniForConditionalGeneration, config)
    except ValueError as error:
        raise MergeError(f"These models do not compose: {error}") from error
    first: dict[int, str] = {}
    tied = {n for n, p in model.named_parameters(remove_duplicate=False) if first.setdefault(id(p), n) != n}
    return config, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _compute_like(text: Any, start: Checkpoint) -> None:
    """Give the host's language model the constants of the one that the merge starts from."""
    known = hyperparameters(start)
    if known is not None and known.rms_norm_eps is not None:
        text.rms_norm_eps = known.rms_norm_eps
    if known is not None and known.rope is not None and isinstance(text.rope_parameters, dict):
        divided = {key: value for key, value in text.rope_parameters.items() if "mrope" in key}
        text.rope_parameters = {**known.rope, **divided}


def _token(omni: Composition, modality: str, checkpoints: Mapping[ModelReference, Checkpoint]) -> int:
    donor = checkpoints[omni.modalities[modality]]
    own = placeholder(modality, donor)
    assert own is not None
    found = omni.vocabulary.id_of(donor.directory, own)
    if found is None:
        raise MergeError(
            f"The placeholder of {modality} in {donor.name} is {own} by its config.json, but its tokenizer has no such "
            "token. Is the tokenizer another model's?"
        )
    return found
