"""The model card of a merge: method, config, actions by role, inputs and their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as version_of

from huggingface_hub import ModelCardData
from mergekit import merge_methods

from mergekit_mm import __version__
from mergekit_mm.checkpoints.hub import local_path
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

## Configuration

```yaml
{yaml}
```
"""


def model_card(
    plan: MergePlan, name: str, config_yaml: str, hashes: Mapping[tuple[str, str], str], library: str = "transformers"
) -> str:
    """The text of README.md. hashes: (model or adapter, file) -> SHA-256. library: that which loads the output."""
    models = plan.inputs.checkpoints
    on_hub = list(dict.fromkeys(m.model.path for m in models if not local_path(m.model.path).exists()))
    is_omni = isinstance(plan, OmniPlan) or plan.inputs.base_checkpoint.model_type == OmniConfig.model_type
    metadata = ModelCardData(
        library_name=library,
        tags=["mergekit", "mergekit-mm", "merge", "multimodal"],
        base_model=on_hub or None,
        pipeline_tag="any-to-any" if is_omni else None,  # The hub lists it so, and `transformers.pipeline` runs it.
    )
    return _CARD.format(
        metadata=metadata.to_yaml(),
        name=name,
        version=__version__,
        **{package: version_of(package) for package in ("mergekit", "torch", "transformers")},
        method=_link(plan.config.merge_method),
        report=plan.report(),
        inputs="\n".join(f"| {model} | {file} | `{digest}` |" for (model, file), digest in hashes.items()),
        yaml=config_yaml.rstrip(),
    )


def _link(method: str) -> str:
    """The name of a method as Markdown, with a link to its publication if it declares one."""
    spec = merge_methods.get(method).spec
    name = spec.pretty_name or method
    return f"[{name}]({spec.reference_url})" if spec.reference_url else name
