"""The card of an output as it is uploaded: the metadata that it lacks, and the results of a report.

The merge has written a card with all of the metadata; that of stock mergekit has less, and a user may have left it out.
What a card says already stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from mergekit.common import ModelPath
from mergekit.config import MergeConfiguration

from mergekit_mm.checkpoints.hub import local_path
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.model_cards import CARD, Parent, licences_told
from mergekit_mm.errors import MergeError
from mergekit_mm.output.card import metadata
from mergekit_mm.plan.config import read_config

RECIPE = "mergekit_config.yml"
_FRONT_MATTER = re.compile(r"\A\ufeff?---\n.*?^---[ \t]*\n", re.DOTALL | re.MULTILINE)

_BARE = """# {name}

A merge of models, made with [mergekit](https://github.com/arcee-ai/mergekit).
"""

_RECIPE = """
## Configuration

```yaml
{recipe}
```
"""


def uploaded_card(out: Path, repo: str, results: str) -> tuple[str, list[str]]:
    """The card of the output `out` under the name of its repository, and what its owner should know of it.

    results: Markdown that is added as a section; empty for none.

    Raises:
        MergeError: the metadata of the card cannot be read.
    """
    file = out / CARD
    try:
        told = (huggingface_hub.metadata_load(file) if file.is_file() else None) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise MergeError(f"The metadata at the top of {file} cannot be read: {error}") from error
    body = _FRONT_MATTER.sub("", file.read_text(encoding="utf-8")) if file.is_file() else _bare(out)
    title = re.compile(rf"^# {re.escape(out.resolve().name)}$", re.MULTILINE)
    body = title.sub(lambda _: f"# {repo.rpartition('/')[2]}", body, count=1)
    parents = _parents(out)
    library = "transformers" if (out / "config.json").is_file() else "peft"
    if parents:
        known = metadata(parents, library, parents[0].task)
    else:
        known = {"library_name": library}
    made: dict[str, Any] = {**known, "tags": ["mergekit", "merge"], **told}
    text = f"---\n{yaml.safe_dump(made, sort_keys=False, allow_unicode=True)}---\n{body.strip()}\n"
    if results:
        text += f"\n## Results\n\n{results.strip()}\n"
    return text, _notes(out, parents, made)


def _bare(out: Path) -> str:
    """The text of a card for an output without one."""
    text = _BARE.format(name=out.resolve().name)
    if (out / RECIPE).is_file():
        text += _RECIPE.format(recipe=(out / RECIPE).read_text(encoding="utf-8").rstrip())
    return text


def _notes(out: Path, parents: Sequence[Parent], made: Mapping[str, Any]) -> list[str]:
    if not parents:
        return [f"{out} has no {RECIPE}: the card tells neither the models that were merged nor their licences."]
    notes = []
    if not made.get("license"):
        notes.append(f"The card names no licence. {licences_told(parents)} Choose one in {out / CARD}: `license: ...`.")
    if local := [parent.name for parent in parents if not parent.is_on_hub]:
        notes.append(
            f"The card and {RECIPE} name {some(local)}, which nobody else has: put ids of the hub in their place if "
            "there are any."
        )
    return notes


def _parents(out: Path) -> list[Parent]:
    """The models and adapters of an output's recipe, the base first; none if there is no recipe that can be read."""
    file = out / RECIPE
    if not file.is_file():
        return []
    try:
        config = read_config(file.read_text(encoding="utf-8"), str(file))
    except (MergeError, UnicodeDecodeError):  # of another version of mergekit, perhaps
        return []
    return [_parent(path) for path in _paths(config)]


def _paths(config: MergeConfiguration) -> list[ModelPath]:
    models = sorted(config.referenced_models(), key=lambda each: (each != config.base_model, str(each)))
    found = {path.path: path for model in models for path in (model.model, model.lora) if path}
    return list(found.values())


def _parent(path: ModelPath) -> Parent:
    """A parent by what is on this machine of it: its directory, or its card in the cache of the hub."""
    local = local_path(path.path)
    if local.exists():
        return Parent.of(path.path, False, local)
    try:
        cached = huggingface_hub.try_to_load_from_cache(path.path, CARD, revision=path.revision)
    except ValueError:  # it is no name of the hub either
        return Parent.of(path.path, False, None)
    return Parent.of(path.path, True, Path(cached).parent if isinstance(cached, str) else None)


def results_of(report: Path, out: Path) -> tuple[str, dict[str, Path]]:
    """The section on the results of a report in a folder, and the files that it shows, by their paths in the upload.

    Raises:
        MergeError: the folder holds no report.
    """
    table, figure = report / "report.md", report / "report.png"
    if not table.is_file():
        raise MergeError(f"{report} holds no report.md: `mergekit-mm report RESULTS --out {report}` writes it.")
    text = table.read_text(encoding="utf-8")
    if not figure.is_file():
        return text, {}
    path = figure.relative_to(out).as_posix() if figure.is_relative_to(out) else figure.name
    return f"![scores of base, experts and merges with their intervals]({path})\n\n{text}", {path: figure}
