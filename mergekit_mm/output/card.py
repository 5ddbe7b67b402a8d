"""The model card of a merge: method, config, actions by role, inputs, their hashes and their licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from mergekit import merge_methods

from mergekit_mm import __version__
from mergekit_mm.checkpoints.hub import local_path
from mergekit_mm.checkpoints.model_cards import Parent, licences_told, shared_licence
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.checkpoints.transformers_private import media_model_types
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.plan.merge_plan import MergePlan, OmniPlan

_CARD = """---
{metadata}
---
# {name}

A merge of multimodal models, made with [mergekit](https://github.com/arcee-ai/mergekit) {mergekit} and
mergekit-mm {version} (torch {torch}, transformers {transformers}) by the method {method}.

## What was done

```text
{report}
```

## Inputs

| model | file | sha256 |
|---|---|---|
{inputs}

{licences}

## Configuration

```yaml
{yaml}
```
"""


def model_card(
    plan: MergePlan, name: str, config_yaml: str, hashes: Mapping[tuple[str, str], str], library: str = "transformers"
) -> str:
    """The text of README.md. hashes: (model or adapter, file) -> SHA-256. library: that which loads the output."""
    parents = _parents(plan)
    return _CARD.format(
        metadata=ModelCardData(**metadata(parents, library, parents[0].task or _task(plan))).to_yaml(),
        name=name,
        version=__version__,
        **{package: version_of(package) for package in ("mergekit", "torch", "transformers")},
        method=_link(plan.config.merge_method),
        report=plan.report(),
        inputs="\n".join(f"| {model} | {file} | `{digest}` |" for (model, file), digest in hashes.items()),
        licences=licences_told(parents),
        yaml=config_yaml.rstrip(),
    )


def metadata(parents: Sequence[Parent], library: str, task: str | None) -> dict[str, Any]:
    """What the hub reads of a card: where the model comes from, what loads it, and what it is for.

    An adapter has one base model, on which it is loaded; a merged model comes from all of its inputs. The licence is
    that of the inputs, if they have the same.

    Args:
        parents: the inputs, the base first.
        library: the library that loads the model.
        task: the hub's `pipeline_tag`; None if it is not known.
    """
    is_adapter = library == "peft"
    on_hub = list(dict.fromkeys(each.name for each in (parents[:1] if is_adapter else parents) if each.is_on_hub))
    licence = shared_licence(parents)
    found = {
        "base_model": on_hub,
        "base_model_relation": ("adapter" if is_adapter else "merge") if on_hub else None,
        "license": licence and licence.identifier,
        "license_name": licence and licence.name,
        "license_link": licence and licence.link,
        "library_name": library,
        "pipeline_tag": task,
        "tags": ["mergekit", "mergekit-mm", "merge", "multimodal"],
    }
    return {key: value for key, value in found.items() if value}


def _parents(plan: MergePlan) -> list[Parent]:
    """All models and adapters among the inputs, each once, the base first and the others by their names."""
    found: dict[str, Path] = {}
    for model in sorted(plan.inputs.checkpoints, key=lambda each: (each != plan.inputs.base, str(each))):
        found.setdefault(model.model.path, plan.inputs.checkpoints[model].directory)
        if model.lora:
            found.setdefault(model.lora.path, plan.inputs.adaptations[model].adapter.directory)
    return [Parent.of(name, not local_path(name).exists(), directory) for name, directory in found.items()]


def _task(plan: MergePlan) -> str | None:
    """The hub's `pipeline_tag` of a model whose base names none: by the media that it takes beside text."""
    base = plan.inputs.base_checkpoint
    if isinstance(plan, OmniPlan) or base.model_type == OmniConfig.model_type:
        return "any-to-any"  # The hub lists it so, and `transformers.pipeline` runs it.
    if base.meta_model is not None and base.model_type not in media_model_types():  # with a tower it is of CLIP's kind
        return None if base.is_multimodal else "text-generation"
    roles = {tensor.role for tensor in plan.inputs.tensors.values()}
    sees, hears = not roles.isdisjoint({Role.VISION_TOWER, Role.VIDEO_TOWER}), Role.AUDIO_TOWER in roles
    if sees:
        return "any-to-any" if hears else "image-text-to-text"
    return "audio-text-to-text" if hears else None


def _link(method: str) -> str:
    """The name of a method as Markdown, with a link to its publication if it declares one."""
    spec = merge_methods.get(method).spec
    name = spec.pretty_name or method
    return f"[{name}]({spec.reference_url})" if spec.reference_url else name
