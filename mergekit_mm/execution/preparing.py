"""From a plan to where work can begin: the tasks, and the files that they fill.

A plan comes to the same here on every machine. So another one can make a unit of which it is told no more than the
names.
"""

from __future__ import annotations

from mergekit.options import MergeOptions

from mergekit_mm.execution.layout import Layout, in_order, lay_out
from mergekit_mm.output.verify import planned_tensors, verify_planned
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.solutions import Solutions
from mergekit_mm.tasks.tokenizer import planned_rows


def prepared(
    plan: MergePlan, options: MergeOptions, sweep: bool = False, solutions: Solutions | None = None
) -> tuple[Compiler, Layout]:
    """The compiler of a plan, whose new vocabulary is built, and the layout of every output.

    sweep, solutions: as of the compiler.

    Raises:
        MergeError: the model that would be written could not be loaded.
    """
    compiler = Compiler(plan, options, sweep=sweep, solutions=solutions)
    rows = planned_rows(plan, compiler.new_vocabulary, options)
    tensors = planned_tensors(plan, rows)
    verify_planned(plan, tensors, rows)
    return compiler, lay_out(in_order(plan, tensors), options.out_shard_size, plan.made)
