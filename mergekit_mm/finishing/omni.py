"""What makes the weights of an omni model a model: its config, its code, one tokenizer, each donor's processor."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from transformers import AutoProcessor
from transformers.initialization import no_init_weights

from mergekit_mm.architecture.checkpoint import Checkpoint
from mergekit_mm.architecture.disk import CheckpointError, DiskTensor
from mergekit_mm.finishing.config_json import output_config
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.export import copy_code
from mergekit_mm.omni.modeling import OmniForConditionalGeneration
from mergekit_mm.omni.processing import OmniProcessor
from mergekit_mm.planning.composition import Composition, placeholder, settings


def finish_omni(
    omni: Composition,
    checkpoints: Mapping[ModelReference, Checkpoint],
    base: Checkpoint,
    written: Mapping[str, DiskTensor],
    layers: Sequence[int] | None,
    directory: Path,
) -> list[str]:
    """Write everything beside the weights, and check these against the config; returns what the user should know.

    base: the model whose language model the merge started from; what it does with its tensors is kept.

    Raises:
        CheckpointError: the written tensors are not those of the model that the config describes.
    """
    donors = {"host": omni.host, **omni.guests}
    owned = {m: {"owner": omni.owner(m), "token_id": _token(omni, m, checkpoints)} for m in omni.modalities}
    host = output_config(checkpoints[omni.host].config, written, layers, omni.vocabulary.size)
    guests = {name: dict(checkpoints[model].config) for name, model in omni.guests.items()}
    config = OmniConfig(host=host, guests=guests, modalities=owned, dtype=host.get("dtype", "float32"))
    _compute_like(config.get_text_config(), base)
    config.architectures = [OmniForConditionalGeneration.__name__]
    _verify(config, written)
    config.auto_map = copy_code(directory)
    config.save_pretrained(directory)
    omni.vocabulary.tokenizer.save_pretrained(directory)
    generation = checkpoints[omni.host].directory / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, directory / generation.name)
    return _write_processor(omni, {n: checkpoints[m] for n, m in donors.items()}, owned, config.auto_map, directory)


def _compute_like(text: Any, base: Checkpoint) -> None:
    """Give the host's language model the constants of the base's."""
    known = settings(base)
    if known is not None and known.rms_norm_eps is not None:
        text.rms_norm_eps = known.rms_norm_eps
    if known is not None and known.rope_theta is not None and isinstance(text.rope_parameters, dict):
        text.rope_parameters = {**text.rope_parameters, "rope_theta": known.rope_theta}


def _token(omni: Composition, modality: str, checkpoints: Mapping[ModelReference, Checkpoint]) -> int:
    donor = checkpoints[omni.modalities[modality]]
    own = placeholder(modality, donor)
    assert own is not None
    return omni.vocabulary.id_of(donor.directory, own)


def _write_processor(
    omni: Composition,
    donors: Mapping[str, Checkpoint],
    owned: Mapping[str, Mapping[str, Any]],
    auto_map: dict[str, str],
    directory: Path,
) -> list[str]:
    tokenizer = omni.vocabulary.tokenizer
    try:
        loaded = {
            name: AutoProcessor.from_pretrained(donors[name].directory)
            for name in {str(entry["owner"]) for entry in owned.values()}
        }
        modalities = {
            modality: {
                "owner": entry["owner"],
                "token": tokenizer.convert_ids_to_tokens(entry["token_id"]),
                "donor_token": tokenizer.convert_ids_to_tokens(entry["token_id"]),
            }
            for modality, entry in owned.items()
        }
        processor = OmniProcessor(tokenizer, loaded, modalities)
    except (
        Exception
    ) as error:  # a donor without a processor of its own: the model is whole, its inputs are made by hand
        return [f"No processor was written, as a donor's cannot be loaded or composed: {error}"]
    processor.auto_map = {"AutoProcessor": auto_map["AutoProcessor"]}
    processor.save_pretrained(directory)
    return []


def _verify(config: OmniConfig, written: Mapping[str, DiskTensor]) -> None:
    """Compare names and shapes with those of the model itself, built without storage."""
    with torch.device("meta"), no_init_weights():
        model = OmniForConditionalGeneration(config)
    model.tie_weights()
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    held = {name: tensor.shape for name, tensor in written.items()}
    first: dict[int, str] = {}
    tied = {n for n, p in model.named_parameters(remove_duplicate=False) if first.setdefault(id(p), n) != n}
    missing = [name for name in expected if name not in held and name not in tied]
    extra = [name for name in held if name not in expected]
    wrong = [f"{n}: {held[n]}, not {shape}" for n, shape in expected.items() if n in held and held[n] != shape]
    if missing or extra or wrong:
        raise CheckpointError(
            f"The composed weights are not those of their model: {len(missing)} missing {missing[:4]}, "
            f"{len(extra)} without a place {extra[:4]}, {len(wrong)} of another shape {wrong[:4]}."
        )
