"""The files that an omni model gets beside its weights: its config, its code, one tokenizer, each donor's processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.omni import register
from mergekit_mm.omni.export import copy_code
from mergekit_mm.output.verify import verified_omni
from mergekit_mm.plan.merge_plan import OmniPlan
from mergekit_mm.plan.omni.processor import omni_processor


def finish_omni(plan: OmniPlan, written: Mapping[str, DiskTensor], directory: Path) -> None:
    """Write config, code, tokenizer and processor, and check the written weights against the config.

    Raises:
        MergeError: the written tensors are not those of the model that the config describes.
    """
    register()  # What `save_pretrained` writes depends on it, and must not on what else this process has done.
    omni = plan.inputs.composition
    config = verified_omni(plan, written)
    config.auto_map = copy_code(directory)
    config.save_pretrained(directory)
    omni.vocabulary.tokenizer.save_pretrained(directory)
    processor, _ = omni_processor(omni, config)
    if processor is not None:
        processor.auto_map = {"AutoProcessor": config.auto_map["AutoProcessor"]}
        processor.save_pretrained(directory)
