"""What makes the weights of an omni model a model: its config, its code, one tokenizer, each donor's processor."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference

from mergekit_mm.architecture.checkpoint import Checkpoint
from mergekit_mm.architecture.disk import CheckpointError, DiskTensor
from mergekit_mm.composing.composition import Composition
from mergekit_mm.composing.model import omni_model
from mergekit_mm.composing.processor import omni_processor
from mergekit_mm.finishing.config_json import output_config
from mergekit_mm.omni.export import copy_code


def finish_omni(
    omni: Composition,
    checkpoints: Mapping[ModelReference, Checkpoint],
    base: Checkpoint,
    written: Mapping[str, DiskTensor],
    layers: Sequence[int] | None,
    routed: Mapping[str, Any],
    directory: Path,
) -> None:
    """Write everything beside the weights, and check these against the config.

    base: the model whose language model the merge started from; what it does with its tensors is kept.
    layers: for each layer of the language model the host's that it is like, if they moved.
    routed: as in the omni config.

    Raises:
        CheckpointError: the written tensors are not those of the model that the config describes.
    """
    host = output_config(checkpoints[omni.host].config, written, layers, omni.vocabulary.size)
    config, expected = omni_model(omni, checkpoints, base, host, routed)
    _verify(expected, written)
    config.auto_map = copy_code(directory)
    config.save_pretrained(directory)
    omni.vocabulary.tokenizer.save_pretrained(directory)
    generation = checkpoints[omni.host].directory / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, directory / generation.name)
    processor, _ = omni_processor(omni, checkpoints, config)
    if processor is not None:
        processor.auto_map = {"AutoProcessor": config.auto_map["AutoProcessor"]}
        processor.save_pretrained(directory)


def _verify(expected: Mapping[str, tuple[int, ...]], written: Mapping[str, DiskTensor]) -> None:
    """Compare names and shapes with those of the model itself."""
    held = {name: tensor.shape for name, tensor in written.items()}
    missing = [name for name in expected if name not in held]
    extra = [name for name in held if name not in expected]
    wrong = [f"{n}: {held[n]}, not {shape}" for n, shape in expected.items() if n in held and held[n] != shape]
    if missing or extra or wrong:
        raise CheckpointError(
            f"The composed weights are not those of their model: {len(missing)} missing {missing[:4]}, "
            f"{len(extra)} without a place {extra[:4]}, {len(wrong)} of another shape {wrong[:4]}."
        )
