"""One alignment as data: what is merged, what is learnt from, and where everything lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.align.answers import Asking, Expert, fingerprint
from mergekit_mm.align.samples import Split
from mergekit_mm.align.settings import Settings
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.errors import MergeError
from mergekit_mm.plan.as_json import digest
from mergekit_mm.plan.inputs import name_in_config
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.tensor_plan import Merge

FOLDER = "align"  # the part of the output that holds the report and an adapter


@dataclass(frozen=True, eq=False)
class Job:
    """What one alignment is given. It holds no tensor, and nothing in it is done yet.

    config, plan, source, options: the merge that it begins with, its plan, its text, and how it is run. splits: the
    samples of each expert. out: the directory that will hold the model. folder: for what is kept until then. tell:
    takes the lines that tell how it goes.
    """

    config: MergeConfiguration
    plan: MergePlan
    source: str
    options: MergeOptions
    settings: Settings
    splits: Mapping[str, Split]
    out: Path
    folder: Path
    tell: Callable[[str], None]

    @property
    def device(self) -> str:
        """Where models are, by torch's name."""
        return self.options.device or "cpu"

    @property
    def quiet(self) -> MergeOptions:
        """The options for merges that are a step of this and need no report of their own."""
        return self.options.model_copy(update={"quiet": True})

    @cached_property
    def start(self) -> Path:
        """The directory of the merged model that the training begins with; its name changes where an input does."""
        inputs = self.plan.inputs
        files = [each.directory / file for each in inputs.checkpoints.values() for file in each.files]
        files += [file for adaptation in inputs.adaptations.values() for file in adaptation.adapter.files]
        key = f"{digest(self.plan)} {fingerprint(files)} {self.options.random_seed}"
        return self.folder / f"start-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    @property
    def training(self) -> Path:
        """The file from which an interrupted training goes on."""
        return self.folder / "training.pt"

    @property
    def answers(self) -> Path:
        """The folder of the experts' answers."""
        return self.folder / "answers"

    @property
    def directions(self) -> Path:
        """The folder of the directions that coefficients are for."""
        return self.folder / self.start.name.replace("start", "directions")

    @property
    def asking(self) -> Asking:
        return Asking(self.settings.answer_tokens, self.settings.top, self.settings.dtype, self.device)

    @property
    def key(self) -> str:
        """Equal for alignments that train the same."""
        content = [self.start.name, asdict(self.settings), self.digests]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def digests(self) -> dict[str, dict[str, list[str]]]:
        """The digests of the samples of each expert."""
        return {
            name: {part: [sample.digest for sample in getattr(own, part)] for part in ("trained", "held_back")}
            for name, own in self.splits.items()
        }

    @property
    def experts(self) -> dict[str, Expert]:
        return experts_of(self.plan)

    @cached_property
    def matrices(self) -> list[str]:
        """The names in memory of the language model's matrices that are trained: those that the merge changes.

        Raises:
            MergeError: there are none, or none has a target of the settings in its name.
        """
        found = [
            tensor.name
            for tensor in self.plan.merged_tensors
            if isinstance(tensor.action, Merge)
            and tensor.info.role is Role.LANGUAGE_MODEL
            and len(tensor.info.shape) == 2
        ]
        if not found:
            raise MergeError("This merge changes no matrix of a language model that could be trained.")
        targets = self.settings.targets
        chosen = [name for name in found if any(target in name for target in targets)] if targets else found
        if not chosen:
            raise MergeError(
                f"No matrix that this merge changes has {' or '.join(targets)} in its name; such as {found[0]} is one."
            )
        return chosen


def experts_of(plan: MergePlan) -> dict[str, Expert]:
    """The experts of a merge by their names in the config, in its order."""
    found: dict[str, Expert] = {}
    for model, checkpoint in plan.inputs.checkpoints.items():
        if model == plan.config.base_model:
            continue
        files = [checkpoint.directory / file for file in checkpoint.files]
        adaptation = plan.inputs.adaptations.get(model)
        adapter = adaptation.adapter.directory if adaptation else None
        files += adaptation.adapter.files if adaptation else []
        name = name_in_config(model)
        found[name] = Expert(name, checkpoint.directory, adapter, tuple(files))
    return found
