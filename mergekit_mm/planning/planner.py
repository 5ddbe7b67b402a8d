"""mergekit's planner, taught that inputs may name tensors differently and that roles have policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mergekit.architecture import ModelArchitecture, WeightInfo
from mergekit.common import ModelReference
from mergekit.config import (
    ConfigReader,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
)
from mergekit.graph import Task
from mergekit.io.tasks import FinalizeModel, SaveTensor, TensorWriterTask
from mergekit.merge_methods import BasePolicy
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from mergekit.tokenizer import PermutedVocabulary
from mergekit.tokenizer.truncate import TruncatedVocabulary
from transformers import PreTrainedConfig

from mergekit_mm.architecture.checkpoint import TensorInfo
from mergekit_mm.architecture.disk import CheckpointError, DiskTensor
from mergekit_mm.architecture.roles import Role
from mergekit_mm.methods import method_named
from mergekit_mm.planning.composition import is_decoupled
from mergekit_mm.planning.decoupling import Decoupling
from mergekit_mm.planning.inputs import Inputs
from mergekit_mm.planning.layout import Output, as_base, as_omni
from mergekit_mm.planning.ledger import COPIED, Ledger
from mergekit_mm.planning.merging import AddDelta, MergeDelta, MergeTaskVectors, MergeTensors
from mergekit_mm.planning.modules import RoleModule
from mergekit_mm.planning.policies import Policy, is_own_method, policy_of, resolve, why_undefined
from mergekit_mm.planning.reading import SOURCES, GatherMemoryTensors, load, without_adapter
from mergekit_mm.planning.slicing import layers_of, slice_by_module
from mergekit_mm.planning.tasks import CastTensor, KeepTensor, RescaleDelta
from mergekit_mm.planning.vocabulary import UniteRows, remember


@dataclass(frozen=True)
class _Job:
    """One output tensor while it is planned."""

    weight: WeightInfo
    info: TensorInfo  # of the base's tensor that it is, or that it is like
    label: str  # the base's name for it on disk, which orders the work
    reader: ConfigReader


class MultimodalPlanner(MergePlanner):
    """Plan every tensor of the base's layout from inputs that were matched to it.

    Slices, gradients, filters and the tokenizer section are mergekit's; this class adds where tensors come from
    (`Inputs`), what is done with each (`Policy`), and under which names they are written.
    """

    def __init__(
        self,
        config: MergeConfiguration,
        arch: ModelArchitecture,
        options: MergeOptions,
        inputs: Inputs,
        sweep: bool = False,
    ):
        super().__init__(config, arch, options, PreTrainedConfig())
        self.inputs = inputs
        self._sweep = sweep  # merged tensors will be rescaled, so they stay in float32 until then
        self._checked: set[tuple[tuple[str, object], ...]] = set()  # values that the method accepts
        self._bases: dict[str, Task] = {}  # output tensor -> what its merged delta is added to
        self._undefined: dict[str, str] = {}  # role -> why the method is not defined on it
        self._like: dict[str, TensorInfo] = {}  # output tensor -> the one of the layout that it is, or is like
        self.ledger = Ledger()
        self.output: dict[str, DiskTensor] = {}  # name on disk -> the base's tensor that it is like; once planned
        self.unlisted = slice_by_module(self.config, {name: self._module(name) for name in arch.modules}, inputs.base)
        if self.unlisted:
            whose = "as their donors have them" if inputs.composition else f"as in {inputs.base}"
            inputs.notes.append(f"Not listed under `modules:`, so kept {whose}: {', '.join(self.unlisted)}.")
        self.decoupling: Decoupling | None = None
        if is_decoupled(config):
            self.decoupling = Decoupling(inputs, config, self._module("language_model").stack, self._read_device())

    # -- configuration ------------------------------------------------------------------------------------------------

    def normalize_config(self) -> None:
        """Check the inputs of each slice against the method's contract; the form was settled at construction."""
        for name, module in self.config.modules.items():
            if name in self.unlisted:
                continue
            for index, part in enumerate(module.slices):
                counts = Counter(str(source.model) for source in part.sources)
                if twice := [model for model, count in counts.items() if count > 1]:
                    raise ValueError(f"{', '.join(twice)} is listed twice; name each input once.")
                self._method.validate_inputs(
                    [source.model for source in part.sources],
                    part.base_model or self.config.base_model,
                    group_name=f"{name}.slices[{index}]",
                )

    def _module(self, name: str) -> RoleModule:
        module = self.arch_info.modules[name].architecture
        assert isinstance(module, RoleModule)
        return module

    # -- tensors ------------------------------------------------------------------------------------------------------

    def plan_module(self, module_name: str, definition: OutputModuleDefinition) -> None:
        """mergekit's order (before the layers, layers, after), with layer ranges checked first."""
        layers = self._module(module_name).num_layers(self.out_model_config)
        if module_name != "language_model" and layers_of(definition) != list(range(layers)):
            raise CheckpointError(
                f"slices of {module_name}: only layers of the language model can be repeated, moved or left out. Let "
                f"one slice take all {layers} layers, or list the module's `models:`."
            )
        for part in definition.slices:
            for source in part.sources:
                if not 0 <= source.layer_range[0] <= source.layer_range[1] <= layers:
                    raise CheckpointError(
                        f"layer_range {list(source.layer_range)} of {source.model} in module {module_name} "
                        f"is outside its {layers} layers."
                    )
        super().plan_module(module_name, definition)

    def plan_layer(
        self,
        sources: list[InputSliceDefinition],
        layer_offset: int,
        t: float,
        cfg_reader: ConfigReader,
        module_name: str,
    ) -> None:
        """Plan one output layer; its tensors are those of the layers it is made from."""
        module = self._module(module_name)
        indices = [source.layer_range[0] + layer_offset for source in sources]
        kinds = {tuple(module.layers[index]) for index in indices}
        if len(kinds) != 1:
            raise CheckpointError(f"Layers {indices} of module {module_name} are of different kinds.")
        for suffix in kinds.pop():
            like = module.name_at(indices[0], suffix)
            self.plan_tensor(
                weight=module.weight(module.name_at(self._current_module_layers, suffix), like),
                weights_in=[module.weight(module.name_at(index, suffix)) for index in indices],
                models=[source.model for source in sources],
                cfg_reader=cfg_reader.with_t(t),
            )
        self._current_module_layers += 1

    def plan_tensor(
        self,
        weight: WeightInfo,
        weights_in: list[WeightInfo],
        models: list[ModelReference],
        cfg_reader: ConfigReader,
    ) -> None:
        """Plan one output tensor: all names are the base's in memory."""
        if len(set(weights_in)) == 1:  # outside of layers mergekit counts the inputs of another slice than it names
            weights_in = weights_in[:1] * len(models)
        names = {model: self.inputs.names[model].get(w.name) for model, w in zip(models, weights_in, strict=True)}
        held = {model: name for model, name in names.items() if name is not None}
        info = self._like[weight.name] = self.inputs.tensors[weights_in[0].name]
        group = self.inputs.base_checkpoint.group_of.get(info.name)
        job = _Job(weight, info, group.disk[0] if group else info.name, cfg_reader)
        kept = info.role.module in self.unlisted
        policy = Policy.BASE if kept else policy_of(info.role, weight.name, self._method.spec.name, cfg_reader)
        experts = [model for model in held if model != cfg_reader.base_model]
        if (policy is Policy.MERGE and len(held) < min(len(models), 2)) or (policy is Policy.AVERAGE and not experts):
            policy = Policy.BASE  # no other input has this tensor
        if policy is Policy.MERGE and self._untouched(held, cfg_reader.base_model):
            policy = Policy.BASE
        bringer = self.inputs.bringer(info.name)
        of_some = policy is Policy.MERGE and len(held) < len(models)
        if of_some and (why := why_undefined(self._method, info.role, list(held), cfg_reader.base_model, bringer)):
            self._undefined[info.role.value], policy = why, Policy.BASE
        if self.decoupling is not None and policy is not Policy.MERGE:
            self.decoupling.kept_out(weight.name, info, job.label, held)
        if policy is Policy.BASE:
            keeper = self._keeper(info.role, held, cfg_reader.base_model, bringer)
            self.ledger.kept[info.role.value, keeper] += 1
            adapted = (m for m, name in held.items() if m != keeper and SOURCES[m].adapts(name))
            self.ledger.unused.update((model, info.role) for model in adapted)
            held.setdefault(keeper, self.inputs.names[keeper][info.name])
            task = self._keep(job, keeper, held)
        elif policy is Policy.AVERAGE:
            task = self._average(job, {model: held[model] for model in experts})
        else:
            task = self._merge(job, held)
        done = COPIED if policy is Policy.MERGE and len(models) == 1 else policy.value
        self.ledger.done[info.role.value, done] += 1
        self._tensors.append((weight, task))

    def _keeper(
        self, role: Role, held: dict[ModelReference, str], base: ModelReference | None, bringer: ModelReference
    ) -> ModelReference:
        """Whose tensor the policy `base` takes: the base model's; without one that has it, the donor's that leads."""
        keeper = base if base in held else bringer if bringer in held else next(iter(held), bringer)
        others = [model for model in held if model != keeper]
        if others and keeper != base and self.inputs.composition:
            self.ledger.overruled[role.value, keeper] = others
        return keeper

    def _untouched(self, held: dict[ModelReference, str], base: ModelReference | None) -> bool:
        """Whether all inputs are adapters of one base model, none of which changes this tensor: every delta is zero."""
        needs_base = self._method.spec.contract.base is BasePolicy.REQUIRED
        same = {without_adapter(model) for model in held} == {base} and len(held) > 1
        return needs_base and same and not any(SOURCES[model].adapts(name) for model, name in held.items())

    def _merge(self, job: _Job, held: dict[ModelReference, str]) -> Task:
        spec, reader = self._method.spec, job.reader
        shared, per_input = resolve(
            spec,
            tensor_name=job.weight.name,
            inputs=held,
            sources=reader.parameter_sources,
            base_model=reader.base_model,
            t=reader.t,
        )
        if is_own_method(spec.name) and (values := tuple(shared.items())) not in self._checked:
            method_named(spec.name).check(**shared)
            self._checked.add(values)
        dtype = None if is_own_method(spec.name) else self._merge_dtype(held)
        if reader.base_model in held:  # in the dtype in which the merge reads it too, so that it is read once
            self._bases[job.weight.name] = self._keep(job, reader.base_model, dict(held), dtype)
        common = {
            "method_name": spec.name,
            "model_order": tuple(held),
            "parameters": shared,
            "input_parameters": per_input,
            "base_model": reader.base_model,
            "output_weight": job.weight,
        }
        if self.decoupling is not None:
            decoupled = self.decoupling.merged(job.weight.name, job.info, job.label, held, dtype, common)
            if decoupled is not None:
                return decoupled
        adapters = self._adapters_of_base(job, held)
        if is_own_method(spec.name):
            gather = self._gather(job, held, None, adapters)
            return MergeTaskVectors(gather_tensors=gather, as_vector=job.info.is_convolution, **common)
        if spec.name == "task_arithmetic" and adapters and len(adapters) == len(held) - 1:
            # a sum of adapters is added to the base as one pair of factors, and no adapted copy of it is made
            gather = self._gather(job, {model: held[model] for model in adapters}, None, adapters)
            delta = MergeDelta(gather_tensors=gather, over=reader.base_model, **common)
            return AddDelta(base=self._bases[job.weight.name], delta=delta)
        gather = self._gather(job, held, dtype)
        return MergeTensors(gather_tensors=gather, seed=self.options.random_seed or 0, **common)

    def _adapters_of_base(self, job: _Job, held: dict[ModelReference, str]) -> tuple[ModelReference, ...]:
        """The inputs that are adapters of the base model of this merge, whose delta needs no subtraction."""
        base = job.reader.base_model
        if base is None or base.lora or self._is_realigned(job):
            return ()
        return tuple(m for m in held if m.lora and without_adapter(m) == base)

    def _merge_dtype(self, held: dict[ModelReference, str]) -> str | None:
        """What mergekit's methods compute in; with adapters float32, as 16 bits would drop much of their deltas."""
        adapted = self._sweep or any(SOURCES[model].adapts(name) for model, name in held.items())
        return "float32" if adapted and self.config.dtype != "float64" else self.config.dtype

    def _average(self, job: _Job, experts: dict[ModelReference, str]) -> Task:
        return MergeTensors(
            method_name="linear",
            gather_tensors=self._gather(job, experts, self._merge_dtype(experts)),
            model_order=tuple(experts),
            parameters={"normalize": True},
            input_parameters={model: {"weight": 1.0} for model in experts},
            base_model=None,
            output_weight=job.weight,
        )

    def _keep(
        self, job: _Job, model: ModelReference, held: dict[ModelReference, str], dtype: str | None = None
    ) -> Task:
        if self._is_realigned(job):
            return KeepTensor(model=model, tensors=self._gather(job, held, dtype))
        return load(model, held[model], job.label, dtype, self._read_device())

    def _is_realigned(self, job: _Job) -> bool:
        """Whether the rows of a vocabulary are moved before they are merged."""
        moves = self._tokenizer_task or self.options.unsafe_truncate_embeddings or self.inputs.composition
        return job.weight.vocabulary_axis is not None and bool(moves)

    def _gather(
        self, job: _Job, held: dict[ModelReference, str], dtype: str | None, deltas: tuple[ModelReference, ...] = ()
    ) -> Task:
        """One tensor of several inputs, aligned by mergekit's tokenizer section where token ids index it."""
        axis = job.weight.vocabulary_axis
        omni = self.inputs.composition if axis is not None else None
        read = held if omni is None else self.inputs.holders(job.info.name)
        gather = GatherMemoryTensors(
            weight_info={model: WeightInfo(name=name, vocabulary_axis=axis) for model, name in read.items()},
            dtype=dtype,
            device=self._read_device(),
            label=job.label,
            deltas=deltas,
        )
        if omni is not None:
            return UniteRows(
                vocabulary=remember(omni.vocabulary),
                tensors=gather,
                models=tuple(held),
                directories=tuple((model, str(self.inputs.checkpoints[model].directory)) for model in read),
                markers=omni.markers if job.info.role is Role.EMBEDDINGS else (),
            )
        if axis is not None and self._tokenizer_task:
            section = self.config.tokenizer
            return PermutedVocabulary(
                gather_tensors=gather,
                tokenizer_task=self._tokenizer_task,
                tokens=(section.tokens if section else None) or {},
                pad_to_multiple_of=section.pad_to_multiple_of if section else None,
                base_model=self.config.base_model,
                vocabulary_axis=axis,
            )
        if axis is not None and self.options.unsafe_truncate_embeddings:
            return TruncatedVocabulary(gather_tensors=gather, weight_info=job.weight)
        return gather

    def _read_device(self) -> str | None:
        return self.options.device if self.options.read_to_gpu else None

    def plan_tensors(self) -> None:
        """Settle what makes each output tensor, once."""
        if not self._tensors:
            self._plan()
        if self._undefined:
            raise CheckpointError("\n".join(self._undefined.values()))

    @property
    def tensors(self) -> dict[str, Task]:
        """Output tensor, by its name in memory -> the task that makes it."""
        return {weight.name: task for weight, task in self._tensors}

    # -- output -------------------------------------------------------------------------------------------------------

    def plan_to_disk(self, out_path: str, scale: float | None = None) -> list[Task]:
        """Plan the merge to files in the base's layout, with every merged delta times `scale`; may be called again.

        Raises:
            CheckpointError: a tensor of the base's layout that nothing would make.
        """
        self.plan_tensors()
        made = self.tensors
        if scale is not None:
            for name, base in self._bases.items():
                made[name] = RescaleDelta(base=base, merged=made[name], scale=scale)
        outputs = list(self._outputs(made))
        if self.decoupling is not None:
            outputs = self.decoupling.applied(outputs, 1.0 if scale is None else scale)
        self.output = {name: like for name, _, like in outputs}
        writer = TensorWriterTask(
            out_path=out_path,
            max_shard_size=self.options.out_shard_size,
            safe_serialization=self.options.safe_serialization,
            use_async=self.options.async_write,
            max_write_threads=self.options.write_threads,
        )
        saves = tuple(
            SaveTensor(
                tensor_name=name,
                tensor_task=self._finished(task, like),
                writer_task=writer,
                clone=self.options.clone_tensors,
            )
            for name, task, like in outputs
        )
        targets = [*saves, FinalizeModel(tensor_save_tasks=saves, writer_task=writer)]
        return [*targets, self._tokenizer_task] if self._tokenizer_task else targets

    def _outputs(self, made: dict[str, Task]) -> Iterator[Output]:
        """Every tensor of the output before its cast."""
        inputs = self.inputs
        if inputs.composition is not None:
            return as_omni(made, self._like)
        modules = {name: self._module(name) for name in self.arch_info.modules}
        lengths = {name: len(layers_of(self.config.modules[name])) for name in modules}
        return as_base(inputs.base, inputs.base_checkpoint, made, modules, lengths)

    def _finished(self, task: Task, like: DiskTensor) -> Task:
        """In the dtype that the config asks for; else, after a method that computes in float32, in the input's own."""
        wanted = self.config.out_dtype or self.config.dtype
        if wanted is None and (self._sweep or self.inputs.adaptations or is_own_method(self._method.spec.name)):
            wanted = str(like.dtype).removeprefix("torch.")
            if not like.dtype.is_floating_point:
                return task
        return CastTensor(tensor=task, dtype=wanted) if wanted else task

    def layer_sources(self) -> list[int] | None:
        """For each output layer of the language model, the layer it came from; None if all are where they were."""
        if "language_model" not in self.arch_info.modules:
            return None
        layers = layers_of(self.config.modules["language_model"])
        return None if layers == list(range(len(self._module("language_model").layers))) else layers
