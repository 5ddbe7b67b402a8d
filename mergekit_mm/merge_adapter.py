"""One merge with an adapter as its result: the merged deltas over the base, factorised module by module."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.checkpoints.adapters.whole import module_paths, saved_modules, tensors_of
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.listing import indented
from mergekit_mm.checkpoints.side_files.inventory import take_inventory
from mergekit_mm.errors import MergeError, system_errors
from mergekit_mm.execution.input_hashes import InputHashes
from mergekit_mm.execution.key import key_of
from mergekit_mm.execution.progress import Progress
from mergekit_mm.execution.results import Results, Values
from mergekit_mm.execution.settings import Settings, from_environment
from mergekit_mm.execution.staging import staging
from mergekit_mm.merge import enough_memory, require_device
from mergekit_mm.methods import is_own_method, method_named
from mergekit_mm.methods.declarations import ELEMENTWISE, WEIGHTED_SUMS
from mergekit_mm.numerics.low_rank import Factors, factorise
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.output.adapter_files import write_adapter
from mergekit_mm.output.card import model_card
from mergekit_mm.output.directory import check_output
from mergekit_mm.plan.build import build_plan
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.parameters import merges_in_core
from mergekit_mm.plan.policies import ROLE_PARAMETERS
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.deltas import Changed
from mergekit_mm.tasks.executors import Tasks
from mergekit_mm.tasks.found_scalings import FoundScalings


@dataclass(frozen=True)
class ModuleResult:
    """One module of a written adapter with factors."""

    path: str
    rank: int
    energy: float  # share of the squared norm of the merged delta that the factors keep


@dataclass(frozen=True)
class AdapterResult:
    """The contents of a written adapter."""

    modules: list[ModuleResult]  # the modules with factors
    saved: list[str]  # paths of the modules that are written whole
    biases: list[str]  # names of the biases that are written whole; they belong to other linear layers


def merge_to_adapter(
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    rank: int | None,
    dtype: torch.dtype,
    config_source: str,
    shares_bases: bool = False,
    settings: Settings | None = None,
) -> AdapterResult:
    """Run a merge and write its deltas over the base as one PEFT adapter.

    Linear layers and embeddings get factors, of at most `rank` per module, in `dtype`. Other tensors that change, and
    modules that an input's adapter holds whole, are written whole, as the merge itself would write them.

    Args:
        shares_bases: adapters are merged in their best shared bases of `rank`, and not cut after.
        settings: how it is carried out; None for what the environment says.

    Raises:
        MergeError: as for any merge; or the merge changes a tensor that no adapter can hold, or by a delta of full rank
            while `rank` is None; or the method does not work in bases that adapters share, and is to.
    """
    out, settings = Path(out_path), settings or from_environment()
    tell = Progress(options.quiet, settings.progress == "json")
    if shares_bases:
        _require_cores(config)
    require_device(options)
    if options.random_seed is not None:
        torch.manual_seed(options.random_seed)
    with system_errors(out), enough_memory(options.device):
        plan = build_plan(config, options, config_source)
        check_output(out, plan.inputs.directories)
        if (over := plan.inputs.base).lora and plan.inputs.adaptations[over].adapter.directory.samefile(
            plan.inputs.base_checkpoint.directory
        ):
            raise MergeError(
                f"{over.model} holds an adapter of its own, which transformers would load under the new one: save "
                "the two as one model, and name that as the base."
            )
        compiler = Compiler(plan, options, shared_rank=rank if shares_bases else None)
        tasks = compiler.to_deltas()
        files_of_base = take_inventory(plan.inputs.base_checkpoint.directory).files  # An adapter goes with these.
        tell(f"{plan.report()}\n{plan.not_used(files_of_base)}")
        key = key_of(plan, options, rank=rank, dtype=str(dtype), shares_bases=shares_bases, output="adapter")
        with staging(out, [out], key, settings, tell) as found:
            base = plan.inputs.base_checkpoint
            linear, embeddings = _adaptable(base)
            with ExitStack() as beside:
                journal = beside.enter_context(found.journal)
                hashes = None
                if options.write_model_card and not found.is_finished:
                    hashes = beside.enter_context(InputHashes(plan, found.done, journal))
                results = Results(compiler, found, journal, settings, tell)
                # Whole tensors come first: their refusals need not wait for decompositions, which may take hours.
                saved, whole = _whole_tensors(compiler, tasks, linear, linear | embeddings, results)
                saved_prefixes = tuple(f"{module}." for module in saved)
                to_factorise = {
                    name: path
                    for name in tasks
                    if (path := name.removesuffix(".weight")) in linear | embeddings
                    and name not in whole
                    and not name.startswith(saved_prefixes)
                }
                deltas = {name: tasks[name] for name in to_factorise}
                factors = _factorised(deltas, to_factorise, rank, options, results)
                card_hashes = hashes.result(tell) if hashes else None
            if lines := list(FoundScalings(results.scalings).lines()):
                tell("\n".join(lines))
            if not factors and not whole:
                advice = "" if config.base_model else " Name the base by `base_model:`, if that is another model."
                raise MergeError(
                    f"This merge changes nothing of its base, {base.name}, so there is no adapter to write.{advice}"
                )
            if not found.is_finished:
                name = str(plan.inputs.base.model.path)
                model_class = type(base.meta_model.model) if base.meta_model else None
                paths = module_paths(base)
                written = factors or _zero_factors(base, linear, saved_prefixes)
                content = found.content(0)
                shutil.rmtree(content, ignore_errors=True)  # An interrupted run may have begun to write it.
                content.mkdir()
                adapted = embeddings & factors.keys()
                write_adapter(content, written, adapted, paths, name, model_class, dtype, whole, saved)
                (content / "mergekit_config.yml").write_text(config_source, encoding="utf-8")
                if card_hashes is not None:
                    card = model_card(plan, out.resolve().name, config_source, card_hashes, library="peft")
                    (content / "README.md").write_text(card, encoding="utf-8")
            found.finish()
        modules = [ModuleResult(path, own.rank, own.energy) for path, own in factors.items()]
        return AdapterResult(modules, saved, [each for each in whole if not each.startswith(saved_prefixes)])


def _require_cores(config: MergeConfiguration) -> None:
    """MergeError unless the method can merge small matrices in the place of the deltas that they stand for."""
    name = config.merge_method
    if is_own_method(name):
        works, instead = not method_named(name).needs_factors, "it merges the factors as they were trained"
    else:
        works = name in WEIGHTED_SUMS or merges_in_core(config)
        instead = "it works on weights" + (" unless `space: core` is set" if name in ELEMENTWISE else "")
    if not works:
        raise MergeError(f"{name} does not merge adapters in bases that they share, as {instead}: leave the mode out.")


def _whole_tensors(
    compiler: Compiler,
    tasks: Tasks,
    linear: set[str],
    adaptable: set[str],
    results: Results,
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The modules that are written whole; and name in memory -> value of all their tensors, and of biases elsewhere.

    A module is written whole if one of its tensors changes that is no matrix of a module in `adaptable`, or that an
    input's adapter holds whole.

    Args:
        tasks: the tasks of `Compiler.to_deltas`.
        linear: the paths of the linear layers. adaptable: these, and the paths of embeddings.
        results: runs the tasks.

    Raises:
        MergeError: a tensor changes in a module that PEFT cannot save.
    """

    def whole(_name: str, tensor: torch.Tensor | None) -> Values | None:
        return None if tensor is None else {"whole": tensor}

    def if_dense(_name: str, delta: TaskVector | None) -> Values | None:
        return {"dense": torch.tensor(True)} if delta is not None and delta.right is None else None

    plan, base = compiler.plan, compiler.inputs.base_checkpoint
    replaced = [name for name in tasks if any(each.replaces(name) for each in plan.inputs.adaptations.values())]
    # PEFT saves embeddings that it adapts whole too, changed or not. Then their factors are the whole change.
    factored = [name for name in replaced if _all_add_factors(plan, name)]
    dense = [name for name, _ in results.of("adapted modules", {name: tasks[name] for name in factored}, if_dense)]
    candidates = {n for n in tasks if n.removesuffix(".weight") not in adaptable} | {*replaced} - {*factored} | {*dense}
    comparisons = {
        name: Changed(merged=compiler.written(plan[name]), base=compiler.reads.base_tensor(plan[name]))
        for name in tasks
        if name in candidates
    }
    changed = {name: values["whole"] for name, values in results.of("comparisons", comparisons, whole)}
    biases = {name for name in changed if name.endswith(".bias") and name.removesuffix(".bias") in linear}
    saved, why_not = saved_modules(base, changed.keys() - biases)
    if why_not:
        roles = sorted({base.tensors[name].role.value for name in why_not} & {*ROLE_PARAMETERS})
        policies = ", ".join(f"{role}: base" for role in roles)
        refused = [f"{name}: {why}" for name, why in why_not.items()]
        raise MergeError(
            f"This merge changes {len(refused)} tensors that no adapter can hold:{indented(refused, '  ')}\n"
            + (f"Keep them by `parameters: {{{policies}}}`, or write a model." if policies else "Write a model.")
        )
    unchanged = {
        name: compiler.written(plan[name])
        for module in saved
        for name in tensors_of(base, module)
        if name not in changed
    }
    others = results.of("whole tensors", unchanged, whole)
    return saved, changed | {name: values["whole"] for name, values in others}


def _all_add_factors(plan: MergePlan, name: str) -> bool:
    """Whether every adapter that holds a tensor whole has factors for it as well."""
    holding_whole = [adaptation for adaptation in plan.inputs.adaptations.values() if adaptation.replaces(name)]
    return all(adaptation.adds_factors(name) for adaptation in holding_whole)


def _zero_factors(base: Checkpoint, linear: set[str], saved_prefixes: tuple[str, ...]) -> dict[str, Factors]:
    """Factors of zero for one linear layer outside of the saved modules: PEFT refuses an adapter that adapts none."""
    for name, info in base.tensors.items():
        path = name.removesuffix(".weight")
        if path in linear and not name.startswith(saved_prefixes) and len(info.shape) == 2:
            rows, columns = info.shape
            return {path: Factors(torch.zeros(rows, 1), torch.zeros(1, columns), 1.0)}
    raise MergeError(f"{base.name} has no linear layer left that an adapter could adapt: write a model.")


def _factorised(
    tasks: Tasks, paths: Mapping[str, str], rank: int | None, options: MergeOptions, results: Results
) -> dict[str, Factors]:
    """Module path -> factors on the CPU of every matrix that changes. No delta is kept once it is factorised.

    paths: name in memory -> module path.

    Raises:
        MergeError: a delta has full rank, and `rank` is None.
    """

    def factors(name: str, delta: TaskVector | None) -> Values | None:
        if delta is None:
            return None
        if delta.right is None and rank is None and delta.dense(torch.float32).any():
            raise MergeError(
                f"What this merge changes of {name} has no low rank: say with --rank how many directions to keep."
            )
        found = factorise(delta.to(options.device), rank)
        if found is None:
            return None
        b, a, energy = found.to("cpu")
        return {"b": b, "a": a, "energy": torch.tensor(energy, dtype=torch.float64)}

    return {
        paths[name]: Factors(values["b"], values["a"], float(values["energy"]))
        for name, values in results.of("factors", tasks, factors)
    }


def _adaptable(base: Checkpoint) -> tuple[set[str], set[str]]:
    """Paths of the linear layers and of the embeddings that PEFT can adapt; tied ones are left out."""
    if base.meta_model is None:  # Only names are known of remote code: any matrix `weight` is taken for a linear layer.
        matrices = [n for n, t in base.tensors.items() if n.endswith(".weight") and len(t.shape) == 2]
        return {n.removesuffix(".weight") for n in matrices}, set()
    modules = base.meta_model.model.named_modules()
    untied = {path: module for path, module in modules if not base.meta_model.tied_to(f"{path}.weight")}
    linear = {path for path, module in untied.items() if isinstance(module, torch.nn.Linear)}
    return linear, {path for path, module in untied.items() if isinstance(module, torch.nn.Embedding)}
