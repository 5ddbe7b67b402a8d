"""What an alignment costs, told before it is paid: samples, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mergekit_mm.align.basis import bytes_of_bases
from mergekit_mm.align.coefficients import combined_matrices, has_merged
from mergekit_mm.align.job import Job
from mergekit_mm.align.training import Lessons
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.evaluation.model.inputs import TEXT_KEYS
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.output.directory import check_room

TO_LOWER = (
    "lower --batch-size, --answer-tokens, --rank or the size of the media, or choose --recompute or --dtype bfloat16. "
    "The same command goes on from here"
)
_PER_TRAINED = 24  # bytes of a trained number: itself, its gradient, two moments, its start and its best, in float32
# Numbers that a layer keeps of each token for its gradient, per hidden and per feed-forward unit, as counted of LLaMA
# and Qwen2 with adapters. They take four bytes each in every dtype: norms and adapters widen what they read.
_PER_HIDDEN, _PER_INNER = 11, 3


def tell_plan(job: Job) -> None:
    """Tell what will be used of samples, memory and disk. MergeError if the disk has too little room."""
    for name, own in job.splits.items():
        job.tell(f"{name}: {len(own.trained)} samples to train on, {len(own.held_back)} held back")
    stored = sum(output.like.nbytes for output in job.plan.outputs)
    numbers = sum(output.like.nbytes // output.like.dtype.itemsize for output in job.plan.outputs)
    dtype = None if job.settings.dtype == "auto" else getattr(torch, job.settings.dtype)
    model = numbers * dtype.itemsize if dtype else stored
    shapes = [job.plan[name].info.shape for name in job.matrices]
    on_disk = 2 * job.plan.output_bytes
    if job.settings.way == "adapter":
        beside = _PER_TRAINED * job.settings.rank * sum(map(sum, shapes))
    else:
        beside = 4 * 4 * max(rows * columns for rows, columns in shapes)  # the gradient and a direction, widened
        itemsize = dtype.itemsize if dtype else model // max(1, numbers)
        on_disk += bytes_of_bases(job.plan, combined_matrices(job), itemsize, has_merged(job))
    job.tell(
        f"memory: {size_of(model)} for one model at a time, {size_of(beside)} for what is trained, and activations; "
        f"disk: {size_of(on_disk)}"
    )
    job.folder.mkdir(parents=True, exist_ok=True)
    check_room(job.folder, on_disk)


def activation_bytes(config: Any, tokens: int, answer_rows: int, itemsize: int, recomputed: bool) -> int:
    """About how much memory activations take while a gradient is computed: those of layers, and of the logits.

    config: of the language model. tokens: of a batch with its padding. answer_rows: of these, the ones that logits are
    computed for. itemsize: of the model's dtype. recomputed: whether layers keep their inputs alone. Towers, which are
    not trained, keep nothing.
    """
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layer = 4 * tokens * (_PER_HIDDEN * config.hidden_size + _PER_INNER * inner)
    layers = config.num_hidden_layers
    kept = layers * tokens * config.hidden_size * itemsize + layer if recomputed else layers * layer
    return int(kept + 3 * 4 * answer_rows * config.vocab_size)  # logits, their logarithms, and a gradient


def tell_memory(job: Job, lm: MLLM, lessons: Sequence[Lessons], recomputed: bool) -> None:
    """Tell how much memory the samples take, which are known now: their inputs, and the largest batch there may be."""
    every = [lesson for own in lessons for lesson in (*own.trained, *own.held_back)]
    tokens = max(lesson.inputs[key].shape[1] for lesson in every for key in TEXT_KEYS if key in lesson.inputs)
    rows = max(len(lesson.answer.ids) for lesson in every) + 1
    batch = [job.settings.at_once * each for each in (tokens, rows)]
    config, itemsize = lm.model.config.get_text_config(), lm.model.dtype.itemsize
    tensors = [value for lesson in every for value in lesson.inputs.values() if isinstance(value, torch.Tensor)]
    job.tell(
        f"activations: about {size_of(activation_bytes(config, batch[0], batch[1], itemsize, recomputed))}"
        f"{', layers are computed again' if recomputed else ''}; "
        f"inputs of all samples, in main memory: {size_of(sum(each.nbytes for each in tensors))}"
    )
