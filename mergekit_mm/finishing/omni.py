"""What makes the weights of an omni model a model: its config, its code, one tokenizer, each donor's processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergekit_mm.architecture.disk import DiskTensor
from mergekit_mm.composing.model import omni_model
from mergekit_mm.composing.processor import omni_processor
from mergekit_mm.errors import MergeError
from mergekit_mm.finishing.config_json import output_config
from mergekit_mm.omni.export import copy_code
from mergekit_mm.planning.plan import Plan


def finish_omni(plan: Plan, written: Mapping[str, DiskTensor], directory: Path) -> None:
    """Write everything beside the weights, and check these against the config.

    Raises:
        MergeError: the written tensors are not those of the model that the config describes.
    """
    omni, checkpoints = plan.inputs.composition, plan.inputs.checkpoints
    assert omni is not None
    host = plan.inputs.base_checkpoint
    own = output_config(host.config, written, plan.planner.layer_sources(), omni.vocabulary.size)
    routed = plan.planner.decoupling.forms if plan.planner.decoupling else {}
    config, expected = omni_model(omni, checkpoints, own, routed)
    _verify(expected, written)
    config.auto_map = copy_code(directory)
    config.save_pretrained(directory)
    omni.vocabulary.tokenizer.save_pretrained(directory)
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
        raise MergeError(
            f"The composed weights are not those of their model: {len(missing)} missing {missing[:4]}, "
            f"{len(extra)} without a place {extra[:4]}, {len(wrong)} of another shape {wrong[:4]}."
        )
