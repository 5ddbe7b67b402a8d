"""From written weights to a model: config, tokenizer, processor and code are added, and the whole is checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from mergekit.options import MergeOptions
from transformers import PreTrainedTokenizerBase

from mergekit_mm.checkpoints.disk import DiskTensor, read_headers, read_json
from mergekit_mm.checkpoints.weight_files import ADAPTER_CONFIG
from mergekit_mm.output.config_json import write_config
from mergekit_mm.output.omni import finish_omni
from mergekit_mm.output.side_files import drop_chat_template, write_side_files
from mergekit_mm.output.verify import planned_tensors, require_as_planned, verified_config
from mergekit_mm.plan.merge_plan import MergePlan, OmniPlan


def finish_model(
    plan: MergePlan,
    staging: Path,
    built: PreTrainedTokenizerBase | None,
    templated: PreTrainedTokenizerBase | None,
    options: MergeOptions,
) -> None:
    """Add config and side files to the weights in `staging`, and check the result.

    Args:
        built: the new tokenizer, if the config has a tokenizer section.
        templated: the copied tokenizer with the chat template of the config, if that has one.

    Raises:
        MergeError: the written tensors are not those of a model that transformers loads.
    """
    assert plan.side_files is not None
    written = read_headers(staging)
    if isinstance(plan, OmniPlan):
        write_side_files(plan.side_files, staging)
        finish_omni(plan, written, staging)
        return
    rows = _vocabulary_size(plan, written) if built or options.unsafe_truncate_embeddings else None
    require_as_planned(planned_tensors(plan, rows), written)
    write_config(verified_config(plan, written, staging, rows), staging)
    write_side_files(plan.side_files, staging)
    tokenizer = built or (templated if options.copy_tokenizer else None)
    if tokenizer is not None:
        if templated is not None:
            tokenizer.chat_template = templated.chat_template
            drop_chat_template(staging)
        tokenizer.save_pretrained(staging)


def carry_own_adapter(plan: MergePlan, staging: Path, out: Path) -> None:
    """Copy the adapter that the model's class loads by itself; its base is then `out`, as after `save_pretrained`."""
    if (own := plan.inputs.own_adapter) is None:
        return
    for name in own.files:
        shutil.copyfile(own.directory / name, staging / name)
    config = staging / ADAPTER_CONFIG
    content = {**read_json(config), "base_model_name_or_path": str(out)}
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _vocabulary_size(plan: MergePlan, written: Mapping[str, DiskTensor]) -> int:
    """Rows of the written embeddings."""
    base = plan.inputs.base_checkpoint
    name = base.embeddings
    return written[base.group_of[name].disk[0]].shape[0]
