"""One output tensor while it is planned, and how its inputs are read: one by one, or together and aligned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference
from mergekit.config import ConfigReader, MergeConfiguration
from mergekit.graph import Task
from mergekit.options import MergeOptions
from mergekit.tokenizer import BuildTokenizer
from mergekit.tokenizer.truncate import TruncatedVocabulary

from mergekit_mm.checkpoints.checkpoint import TensorInfo
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.tasks.reading import SOURCES, GatherMemoryTensors, load, without_adapter
from mergekit_mm.tasks.rows import UniteRows, remember
from mergekit_mm.tasks.tokenizer import PermuteRows
from mergekit_mm.tasks.writing import PickTensor


@dataclass(frozen=True)
class Job:
    """One output tensor."""

    weight: WeightInfo
    info: TensorInfo  # of the base's tensor that it is, or that it is like
    label: str  # the base's name for it on disk, which orders the work
    held: Mapping[ModelReference, str]  # the inputs that have it -> their own names for it in memory
    reader: ConfigReader

    @property
    def name(self) -> str:
        name: str = self.weight.name
        return name

    @property
    def base(self) -> ModelReference | None:
        """The base model here, which may be a slice's own; it need not be among those that have the tensor."""
        return self.reader.base_model

    @property
    def experts(self) -> list[ModelReference]:
        return [model for model in self.held if model != self.base]

    def adapted(self, models: Iterable[ModelReference]) -> list[ModelReference]:
        """Those of the models whose adapters change this tensor."""
        return [model for model in models if SOURCES[model].adapts(self.held[model])]

    def is_widened(self, models: Iterable[ModelReference]) -> bool:
        """Whether one of the models gives this tensor in float32 or wider, as an adapter has been applied to it."""
        return any(SOURCES[model].widens(self.held[model]) for model in models)


class Gathering:
    """Tasks that read the inputs of a job. Where token ids index it, rows are moved as the merge asks for."""

    def __init__(
        self, config: MergeConfiguration, options: MergeOptions, inputs: Inputs, tokenizer: BuildTokenizer | None
    ) -> None:
        self.inputs = inputs
        self.device = options.device if options.read_to_gpu else None
        self._section, self._base = config.tokenizer, config.base_model
        self._tokenizer = tokenizer
        self._truncates = options.unsafe_truncate_embeddings

    def one(self, job: Job, model: ModelReference, dtype: str | None = None) -> Task:
        """The tensor of one model, as the others' are laid out."""
        if self._is_realigned(job):
            return PickTensor(group=self.together(job, job.held, dtype), key=model)
        return load(model, job.held[model], job.label, dtype, self.device)

    def together(
        self, job: Job, models: Iterable[ModelReference], dtype: str | None, deltas: tuple[ModelReference, ...] = ()
    ) -> Task:
        """The tensors of several models; those in `deltas` are adapters of the base, and give task vectors."""
        axis, models = job.weight.vocabulary_axis, tuple(models)
        omni = self.inputs.composition if axis is not None else None
        read = self.inputs.holders(job.info.name) if omni else {model: job.held[model] for model in models}
        gather = GatherMemoryTensors(
            weight_info={model: WeightInfo(name=name, vocabulary_axis=axis) for model, name in read.items()},
            dtype=dtype,
            device=self.device,
            label=job.label,
            deltas=deltas,
        )
        if omni is not None:
            return UniteRows(
                vocabulary=remember(omni.vocabulary),
                tensors=gather,
                models=models,
                directories=tuple((model, str(self.inputs.checkpoints[model].directory)) for model in read),
                markers=omni.markers if job.info.role is Role.EMBEDDINGS else (),
            )
        if axis is not None and self._tokenizer:
            return PermuteRows(
                gather_tensors=gather,
                tokenizer_task=self._tokenizer,
                tokens=(self._section.tokens if self._section else None) or {},
                pad_to_multiple_of=self._section.pad_to_multiple_of if self._section else None,
                base_model=self._base,
                vocabulary_axis=axis,
            )
        if axis is not None and self._truncates:
            return TruncatedVocabulary(gather_tensors=gather, weight_info=job.weight)
        return gather

    def adapters_of_base(self, job: Job) -> tuple[ModelReference, ...]:
        """The inputs that are adapters of the base model, whose deltas need no subtraction; none for a counter."""
        if job.base is None or job.base.lora or self._is_realigned(job) or not job.info.dtype.is_floating_point:
            return ()
        return tuple(model for model in job.held if model.lora and without_adapter(model) == job.base)

    def _is_realigned(self, job: Job) -> bool:
        moves = self._tokenizer or self._truncates or self.inputs.composition
        return job.weight.vocabulary_axis is not None and bool(moves)
