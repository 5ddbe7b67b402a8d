"""mergekit's planner, taught that inputs may name tensors differently and that roles have policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from mergekit.architecture import ModelArchitecture, WeightInfo
from mergekit.common import ModelReference
from mergekit.config import ConfigReader, InputSliceDefinition, MergeConfiguration, OutputModuleDefinition
from mergekit.graph import Task
from mergekit.io.tasks import FinalizeModel, SaveTensor
from mergekit.merge_methods import BasePolicy
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from transformers import PreTrainedConfig

from mergekit_mm.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method, method_named
from mergekit_mm.plan.constants import Constants
from mergekit_mm.plan.decoupling import Decoupling
from mergekit_mm.plan.gathering import Gathering, Job
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.plan.ledger import COPIED, Ledger
from mergekit_mm.plan.modules import ALIASES, RoleModule
from mergekit_mm.plan.omni.composition import is_decoupled
from mergekit_mm.plan.outputs import Output, as_base, as_omni
from mergekit_mm.plan.parameters import ignored, resolve
from mergekit_mm.plan.policies import Policy, policy_of, why_undefined
from mergekit_mm.plan.slicing import layers_of, slice_by_module
from mergekit_mm.tasks.deltas import AddDelta, MergeDelta, RescaleDelta
from mergekit_mm.tasks.merging import MergeTaskVectors, MergeTensors
from mergekit_mm.tasks.reading import without_adapter
from mergekit_mm.tasks.tokenizer import vocabulary_builder
from mergekit_mm.tasks.writing import CastTensor, CopyTensor, WriteShards


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
        sweep: bool,
    ):
        super().__init__(config, arch, options, PreTrainedConfig())
        self._tokenizer_task: Task | None = vocabulary_builder(self._tokenizer_task, inputs.checkpoints)
        self.inputs = inputs
        self._sweep = sweep  # merged tensors will be rescaled, so they stay in float32 until then
        self._checked: set[tuple[tuple[str, object], ...]] = set()  # values that the method accepts
        self._tried: set[str] = set()  # parameters and kinds of shapes on which mergekit's method works
        self._bases: dict[str, Task] = {}  # output tensor -> what its merged delta is added to
        self._undefined: dict[str, str] = {}  # role -> why the method is not defined on it
        self._like: dict[str, TensorInfo] = {}  # output tensor -> the one of the layout that it is, or is like
        self._asked: dict[ModelReference, set[str]] = {
            model: set() for model in inputs.names
        }  # the tensors that the merge asks each input for
        # the modules that the config lists; None if it lists models, which are those of every module
        self._listed = {ALIASES.get(name, name) for name in config.modules} if config.modules else None
        self.ledger = Ledger()
        self.constants = Constants(inputs)
        self.unlisted = slice_by_module(self.config, {name: self._module(name) for name in arch.modules}, inputs.base)
        if self.unlisted:
            whose = "as their donors have them" if inputs.composition else f"as in {inputs.base}"
            inputs.notes.append(f"Not listed under `modules:`, so kept {whose}: {', '.join(self.unlisted)}.")
        self.gathering = Gathering(config, options, inputs, self._tokenizer_task)
        self.decoupling: Decoupling | None = None
        if is_decoupled(config):
            self.decoupling = Decoupling(inputs, config, self._module("language_model").stack, self.gathering)

    # -- configuration ------------------------------------------------------------------------------------------------

    def normalize_config(self) -> None:
        """Check the inputs of each slice against the method's contract; the form was settled at construction."""
        for name, module in self.config.modules.items():
            if name in self.unlisted:
                continue
            for index, part in enumerate(module.slices):
                counts = Counter(self.inputs.place(source.model) for source in part.sources)
                if twice := [str(s.model) for s in part.sources if counts[self.inputs.place(s.model)] > 1]:
                    again = f", again as {twice[1]}" if twice[1] != twice[0] else " under two spellings"
                    raise MergeError(f"{twice[0]} is listed twice{again}; name each input once.")
                self._require_contract(name, module, index)

    def _require_contract(self, name: str, module: OutputModuleDefinition, index: int) -> None:
        """Refuse the inputs of a slice that the method does not take: too many, too few, or without their base."""
        part, method = module.slices[index], self._method.spec.name
        models, base = [source.model for source in part.sources], part.base_model or self.config.base_model
        try:
            self._method.validate_inputs(models, base)
        except ValueError as error:
            told = str(error).removeprefix("Merge method ")
            where = f" in slice {index} of {name}" if len(module.slices) > 1 else ""
            listed = ", ".join(f"{model} (base_model)" if model == base else str(model) for model in models)
            advice = ""
            if base is not None:
                counted = "is an input like any other: leave it out" if base in models else "must be among them: add it"
                advice = f" The base_model {counted}, or choose another merge_method."
            raise MergeError(f"{method}: {told}{where}. The inputs are {listed}.{advice}") from error

    def _module(self, name: str) -> RoleModule:
        module = self.arch_info.modules[name].architecture
        assert isinstance(module, RoleModule)
        return module

    # -- tensors ------------------------------------------------------------------------------------------------------

    def plan_module(self, module_name: str, definition: OutputModuleDefinition) -> None:
        """mergekit's order (before the layers, layers, after), with layer ranges checked first."""
        layers = self._module(module_name).num_layers(self.out_model_config)
        if module_name != "language_model" and layers_of(definition) != list(range(layers)):
            raise MergeError(
                f"slices of {module_name}: only layers of the language model can be repeated, moved or left out. Let "
                f"one slice take all {layers} layers, or list the module's `models:`."
            )
        for part in definition.slices:
            if len({source.layer_range[1] - source.layer_range[0] for source in part.sources}) > 1:
                listed = ", ".join(f"{list(source.layer_range)} of {source.model}" for source in part.sources)
                raise MergeError(
                    f"layer_range: all inputs of a slice must have the same number of layers; one of module "
                    f"{module_name} has {listed}."
                )
            for source in part.sources:
                if not 0 <= source.layer_range[0] <= source.layer_range[1] <= layers:
                    raise MergeError(
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
            raise MergeError(f"Layers {indices} of module {module_name} are of different kinds.")
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
        job = Job(weight, info, group.disk[0] if group else info.name, held, cfg_reader)
        policy = self._policy(job, models)
        if self.decoupling is not None and policy is not Policy.MERGE:
            self.decoupling.kept_out(job)
        if policy is Policy.BASE:
            task = self._keep(job)
        elif policy is Policy.AVERAGE:
            task = self._average(job)
        else:
            task = self._merge(job)
        done = COPIED if policy is Policy.MERGE and len(models) == 1 else policy.value
        self.ledger.done[info.role.value, done] += 1
        self._tensors.append((weight, task))

    def _policy(self, job: Job, models: list[ModelReference]) -> Policy:
        """What is done with a tensor: as the config says, where that means anything for those of the inputs `models`
        that have it; else it is kept."""
        role, held, listed = job.info.role, job.held, len(models)
        if role.module in self.unlisted:
            return Policy.BASE
        policy = policy_of(role, job.name, self._method.spec.name, job.reader)
        if policy is not Policy.BASE:
            for model in models:
                self._asked[model].add(job.info.name)
        if policy is Policy.AVERAGE and not job.experts:
            return Policy.BASE
        if policy is not Policy.BASE and self.constants.holds(job):
            return Policy.BASE
        if policy is Policy.MERGE:
            if len(held) < min(listed, 2) or self._untouched(job):
                return Policy.BASE
            source_model = self.inputs.source_model(job.info.name)
            if len(held) < listed and (why := why_undefined(self._method, role, list(held), job.base, source_model)):
                self._undefined[role.value] = why
                return Policy.BASE
        return policy

    def _untouched(self, job: Job) -> bool:
        """Whether all inputs are adapters of one base model, none of which changes this tensor: every delta is zero."""
        needs_base = self._method.spec.contract.base is BasePolicy.REQUIRED
        same = {without_adapter(model) for model in job.held} == {job.base} and len(job.held) > 1
        return needs_base and same and not job.adapted(job.held)

    def _keep(self, job: Job) -> Task:
        """The base model's tensor; without one that has it, that of the donor that leads."""
        role, source_model = job.info.role, self.inputs.source_model(job.info.name)
        kept_model = next(
            (model for model in (job.base, source_model) if model in job.held), next(iter(job.held), source_model)
        )
        others = [model for model in job.held if model != kept_model]
        if others and kept_model != job.base and self.inputs.composition:
            self.ledger.overruled[role.value, kept_model] = others
        self.ledger.kept[role.value, kept_model] += 1
        self.ledger.unused.update((model, role) for model in job.adapted(others))
        if kept_model not in job.held:
            job = replace(job, held={**job.held, kept_model: self.inputs.names[kept_model][job.info.name]})
        return self.gathering.one(job, kept_model)

    def _average(self, job: Job) -> Task:
        experts = job.experts
        return MergeTensors(
            method_name="linear",
            gather_tensors=self.gathering.together(job, experts, self._merge_dtype(job, experts)),
            model_order=tuple(experts),
            parameters={"normalize": True},
            input_parameters={model: {"weight": 1.0} for model in experts},
            base_model=None,
            output_weight=job.weight,
        )

    def _merge(self, job: Job) -> Task:
        spec, held = self._method.spec, job.held
        shared, per_input = resolve(
            spec,
            tensor_name=job.name,
            inputs=held,
            sources=job.reader.parameter_sources,
            base_model=job.base,
            t=job.reader.t,
        )
        own = is_own_method(spec.name)
        if own and (values := tuple(shared.items())) not in self._checked:
            method_named(spec.name).validate(**shared)
            self._checked.add(values)
        dtype = None if own else self._merge_dtype(job, held)
        if job.base in held:  # in the dtype in which the merge reads it too, so that it is read once
            self._bases[job.name] = self.gathering.one(job, job.base, dtype)
        common = {
            "method_name": spec.name,
            "model_order": tuple(held),
            "parameters": shared,
            "input_parameters": per_input,
            "base_model": job.base,
            "output_weight": job.weight,
            "seed": self.options.random_seed or 0,
        }
        if self.decoupling is not None and (decoupled := self.decoupling.merged(job, dtype, common)) is not None:
            return decoupled
        adapters = self.gathering.adapters_of_base(job)
        if own:
            gather = self.gathering.together(job, held, None, adapters)
            return MergeTaskVectors(gather_tensors=gather, as_vector=job.info.is_convolution, **common)
        if spec.name == "task_arithmetic" and adapters and len(adapters) == len(held) - 1:
            # a sum of adapters is added to the base as one pair of factors, and no adapted copy of it is made
            gather = self.gathering.together(job, adapters, None, adapters)
            delta = MergeDelta(gather_tensors=gather, over=job.base, **common)
            return AddDelta(base=self._bases[job.name], delta=delta)
        common["input_parameters"] = _whole_rows(job.info.shape, per_input)
        gather = self.gathering.together(job, held, dtype)
        task = MergeTensors(gather_tensors=gather, **common)
        if job.info.dtype.is_floating_point:
            self._try_out(task, job.info.shape)
        return task

    def _try_out(self, task: MergeTensors, shape: tuple[int, ...]) -> None:
        """Once for all tensors that are alike to the method: with the same parameters and axes of length one."""
        inputs = [(model == task.base_model, task.input_parameters[model]) for model in task.model_order]
        given = repr((task.parameters, inputs, [min(length, 2) for length in shape]))
        if given not in self._tried:
            task.try_out(shape)
            self._tried.add(given)

    def _merge_dtype(self, job: Job, models: Iterable[ModelReference]) -> str | None:
        """What mergekit's methods compute in; with adapters float32, as 16 bits would drop much of their deltas."""
        wide = self._sweep or job.is_widened(models)
        return "float32" if wide and self.config.dtype != "float64" else self.config.dtype

    def plan_tensors(self) -> None:
        """Settle what makes each output tensor, once."""
        if not self._tensors:
            self._plan()
            self._require_fit()
            if note := self.constants.note():
                self.inputs.notes.append(note)
        if problems := [*self._undefined.values(), *self.constants.problems()]:
            raise MergeError("\n".join(problems))

    def _require_fit(self) -> None:
        """MergeError for what of the inputs does not fit each other, as far as the merge asks for it."""
        problems = list(self.inputs.problems)
        patterns = ignored(self.config)

        def leaves_out(checkpoint: Checkpoint, info: TensorInfo) -> str | None:
            if (named := patterns.reason(checkpoint, info.name)) is not None:
                return named
            return f"{info.role.value} is kept as in {self.inputs.base}" if self._is_left(info) else None

        for model, matches in self.inputs.matches.items() if self.inputs.composition is None else ():
            for match in matches:
                match.judge(self._asked[model].__contains__, partial(leaves_out, match.other))
                problems += match.problems
                self.inputs.notes.extend(match.notes)
        if problems:
            raise MergeError("These inputs cannot be merged:\n" + "\n".join(problems))

    def _is_left(self, info: TensorInfo) -> bool:
        """Whether the config keeps tensors like this one, which the base does not have, as in the base."""
        module = (self.config.modules or {}).get(info.role.module)
        if self._listed is not None and info.role.module not in self._listed:
            return True
        reader = ConfigReader(config=self.config, t=0, module=module)
        return policy_of(info.role, info.name, self._method.spec.name, reader) is Policy.BASE

    @property
    def tensors(self) -> dict[str, Task]:
        """Output tensor, by its name in memory -> the task that makes it."""
        return {weight.name: task for weight, task in self._tensors}

    # -- output -------------------------------------------------------------------------------------------------------

    def plan_to_disk(self, out_path: str, scale: float | None = None) -> list[Task]:
        """Plan the merge to files in the base's layout, with every merged delta times `scale`; may be called again.

        Raises:
            MergeError: a tensor of the base's layout that nothing would make.
        """
        writer = WriteShards(
            out_path=out_path,
            max_shard_size=self.options.out_shard_size,
            safe_serialization=self.options.safe_serialization,
            use_async=self.options.async_write,
            max_write_threads=self.options.write_threads,
        )
        saves = tuple(
            SaveTensor(
                tensor_name=name,
                tensor_task=self._finished(task, like.dtype),
                writer_task=writer,
                clone=self.options.clone_tensors,
            )
            for name, task, like in self._outputs(scale)
        )
        targets = [*saves, FinalizeModel(tensor_save_tasks=saves, writer_task=writer)]
        return [*targets, self._tokenizer_task] if self._tokenizer_task else targets

    @cached_property
    def outputs(self) -> list[Output]:
        """Every tensor of the output, in its own strength."""
        return self._outputs(None)

    @property
    def output(self) -> dict[str, DiskTensor]:
        """Name on disk -> the input's tensor that it is like."""
        return {name: like for name, _, like in self.outputs}

    def _outputs(self, scale: float | None) -> list[Output]:
        """Every tensor of the output before its cast."""
        self.plan_tensors()
        inputs, made = self.inputs, self.tensors
        if scale is not None:
            for name, base in self._bases.items():
                made[name] = RescaleDelta(base=base, merged=made[name], scale=scale)
        made |= {copy: CopyTensor(tensor=made[first]) for copy, first in inputs.copies.items() if first in made}
        if inputs.composition is not None:
            outputs = as_omni(made, self._like)
        else:
            modules = {name: self._module(name) for name in self.arch_info.modules}
            moved = self.layer_sources() is not None
            outputs = as_base(inputs.base, inputs.base_checkpoint, made, modules, self._like, moved)
        if self.decoupling is not None:
            return self.decoupling.applied(outputs, 1.0 if scale is None else scale)
        return list(outputs)

    def finished(self, tensor: str) -> Task:
        """The task that makes an output tensor, by its name in memory, in the dtype in which a merge writes it."""
        return self._finished(self.tensors[tensor], self.inputs.tensors[tensor].dtype)

    def _finished(self, task: Task, own: torch.dtype) -> Task:
        """In the dtype that the config asks for; else, after a method that computes in float32, in the input's own."""
        wanted = self.config.out_dtype or self.config.dtype
        if wanted is None and (self._sweep or self.inputs.widens or is_own_method(self._method.spec.name)):
            wanted = str(own).removeprefix("torch.")
            if not own.is_floating_point:
                return task
        return CastTensor(tensor=task, dtype=wanted) if wanted else task

    def layer_sources(self) -> list[int] | None:
        """For each output layer of the language model, the layer it came from; None if all are where they were."""
        if "language_model" not in self.arch_info.modules:
            return None
        layers = layers_of(self.config.modules["language_model"])
        return None if layers == list(range(len(self._module("language_model").layers))) else layers


def _whole_rows(
    shape: tuple[int, ...], per_input: dict[ModelReference, dict[str, Any]]
) -> dict[ModelReference, dict[str, Any]]:
    """The parameters of the inputs for a tensor of this shape.

    DELLA drops values by their ranks within a row (along the second axis, if there is one). The only value of a row has
    no rank to speak of, so tensors of such rows are merged whole: with a density of 1.
    """
    if shape[1:2] != (1,) and shape not in ((), (1,)):
        return per_input
    return {m: {**own, "density": 1.0} if "epsilon" in own else own for m, own in per_input.items()}
