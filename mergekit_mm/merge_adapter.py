"""One merge whose result is an adapter: what it changes of its base, factorised, module by module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.options import MergeOptions

from mergekit_mm.architecture.checkpoint import Checkpoint
from mergekit_mm.architecture.listing import indented
from mergekit_mm.errors import MergeError
from mergekit_mm.finishing.card import hash_inputs, model_card
from mergekit_mm.finishing.directory import check_output, staged
from mergekit_mm.graph.executors import executor_for
from mergekit_mm.lora.write import write_adapter
from mergekit_mm.merge import refusing, require_device
from mergekit_mm.numerics.factorise import Factors, factorise
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.planning.deltas import plan_deltas
from mergekit_mm.planning.plan import plan_merge
from mergekit_mm.planning.policies import ROLE_PARAMETERS

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModuleResult:
    """One module of a written adapter."""

    path: str
    rank: int
    energy: float  # share of the squared norm of the merged delta that the factors keep


def merge_to_adapter(
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    rank: int | None,
    dtype: torch.dtype,
    config_source: str,
) -> list[ModuleResult]:
    """Run a merge and write what it changes of its base as one PEFT adapter, of at most `rank` per module.

    Raises:
        MergeRefused: as for any merge; or the merge changes what no adapter can hold, or what has no low rank without
            a `rank` to cut it to.
    """
    out = Path(out_path)
    if options.random_seed is not None:
        torch.manual_seed(options.random_seed)
    with refusing(MergeError, ValueError, RuntimeError, OSError):
        require_device(options)
        with plan_merge(config, options, source=config_source) as plan:
            check_output(out, plan.inputs.directories)
            tasks = plan_deltas(plan.planner)
            if not options.quiet:
                click.echo(plan.report(), err=True)
            with staged(out) as staging:
                base = plan.inputs.base_checkpoint
                linear, embeddings = _adaptable(base)
                factors = dict(_factorised(tasks, base, linear | embeddings, rank, options))
                if not factors:
                    known = "" if config.base_model else " Name the base by `base_model:`, if that is another model."
                    raise MergeError(
                        f"This merge changes nothing of its base, {base.name}, so there is no adapter to write.{known}"
                    )
                name = str(plan.inputs.base.model.path)
                model_class = type(base.skeleton.model) if base.skeleton else None
                every = _all_modules(base)
                write_adapter(staging, factors, embeddings & factors.keys(), every, name, model_class, dtype)
                (staging / "mergekit_config.yml").write_text(config_source, encoding="utf-8")
                if options.write_model_card:
                    card = model_card(
                        plan, out.resolve().name, config_source, hash_inputs(plan, options.quiet), library="peft"
                    )
                    (staging / "README.md").write_text(card, encoding="utf-8")
            return [ModuleResult(path, found.rank, found.energy) for path, found in factors.items()]


def _factorised(
    tasks: dict[str, Task[TaskVector]], base: Checkpoint, modules: set[str], rank: int | None, options: MergeOptions
) -> Iterator[tuple[str, Factors]]:
    """(module path, factors) of everything that changes, in `modules` alone; only factors are kept.

    Raises:
        MergeError: a change outside of linear layers and embeddings, or of full rank without a rank to cut it to.
    """
    fit = {name: path for name in tasks if (path := name.removesuffix(".weight")) in modules}
    others = {name: task for name, task in tasks.items() if name not in fit}
    # first, as decompositions may take hours
    unfit = [name for name, delta in _run(others, options) if delta.dense(torch.float32).any()]
    if unfit:
        roles = {base.tensors[name].role.value for name in unfit} & {*ROLE_PARAMETERS}
        policies = ", ".join(f"{role}: base" for role in sorted(roles))
        raise MergeError(
            f"This merge changes {len(unfit)} tensors outside of linear layers and embeddings, or tied ones, which no "
            f"adapter can hold:{indented(unfit, '  ')}\n"
            + (f"Keep them by `parameters: {{{policies}}}`, or write a model." if policies else "Write a model.")
        )
    for name, delta in _run({name: tasks[name] for name in fit}, options):
        if delta.right is None and rank is None and delta.dense(torch.float32).any():
            raise MergeError(
                f"What this merge changes of {name} has no low rank: say with --rank how many directions to keep."
            )
        if (found := factorise(delta.to(options.device), rank)) is not None:
            yield fit[name], found.to("cpu")


def _run(tasks: dict[str, Task[TaskVector]], options: MergeOptions) -> Iterator[tuple[str, TaskVector]]:
    names = {task: name for name, task in tasks.items()}
    for task, delta in executor_for(list(names), options).run(quiet=options.quiet):
        yield names[task], delta


def _adaptable(base: Checkpoint) -> tuple[set[str], set[str]]:
    """Paths of the linear layers and of the embeddings that PEFT can adapt; tied ones are left out."""
    if base.skeleton is None:  # remote code: a matrix of that name is a linear layer
        matrices = [n for n, t in base.tensors.items() if n.endswith(".weight") and len(t.shape) == 2]
        return {n.removesuffix(".weight") for n in matrices}, set()
    modules = base.skeleton.model.named_modules()
    fit = {p: m for p, m in modules if not base.skeleton.tied_to(f"{p}.weight")}
    linear = {p for p, m in fit.items() if isinstance(m, torch.nn.Linear)}
    return linear, {p for p, m in fit.items() if isinstance(m, torch.nn.Embedding)}


def _all_modules(base: Checkpoint) -> set[str]:
    """Paths of the modules of every kind, which a short target name could mean."""
    if base.skeleton is None:
        return {name.rpartition(".")[0] for name in base.tensors}
    return {path for path, _ in base.skeleton.model.named_modules()}
