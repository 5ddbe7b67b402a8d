"""A sample as the tensors of one model, alone or with the tokens of an answer after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoProcessor

from mergekit_mm.align.samples import Sample
from mergekit_mm.errors import EvaluationError, MergeError
from mergekit_mm.evaluation.model.inputs import TEXT_KEYS, by_modality, modality_processor
from mergekit_mm.evaluation.model.internvl import original_config
from mergekit_mm.evaluation.model.mllm import MLLM, NOT_CAUSAL
from mergekit_mm.omni import register as register_omni

Inputs = Mapping[str, Any]  # a model's tensors by name: a row for each text, media listed along the first axis


def load(model: str, adapter: str | None, dtype: str, device: str) -> MLLM:
    """A model as the lm-eval model `mllm` loads it, in the mode for evaluation. dtype: by torch's name, or `auto`.

    Raises:
        MergeError: transformers cannot load it, or it does not read its prompt from left to right.
    """
    register_omni()
    name = f"{model}+{adapter}" if adapter else model
    try:
        lm = MLLM(model, peft=adapter, dtype=dtype, device=device)
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise MergeError(f"{name} cannot be loaded: {_first_line(error)}") from error
    if lm.backend == "seq2seq" or lm.config.model_type in NOT_CAUSAL:
        raise MergeError(f"{name} is a {lm.config.model_type}, which does not read a prompt from left to right alone.")
    return lm


def require_media(model: Path, samples: Sequence[Sample]) -> None:
    """Check, by a model's processor alone, that the model takes the media of samples.

    Raises:
        MergeError: the processor cannot be loaded. EvaluationError: a medium is of a modality that it does not take.
    """
    if original_config(str(model)) is not None:
        return  # an InternVL in its original form, whose processor is made once its model is loaded
    register_omni()
    try:
        processor = AutoProcessor.from_pretrained(model)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise MergeError(f"{model} has no processor that can be loaded: {_first_line(error)}") from error
    for sample in samples:
        for modality, media in by_modality(sample.media()).items():
            if media and modality_processor(processor, modality) is None:
                raise EvaluationError(
                    f"{sample.where}: the sample has {modality}, which its expert {model} does not take "
                    f"({type(processor).__name__})."
                )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def in_model(lm: MLLM, name: str) -> str:
    """The name in a loaded model of a parameter that has this name in the whole model.

    Of a model that speaks, the part that is loaded is the one that answers in text, the `thinker`.
    """
    held = {own for own, _ in lm.model.named_parameters()}
    return name if name in held else name.removeprefix("thinker.")


def encode(lm: MLLM, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The inputs of each sample by itself, on the CPU.

    Raises:
        EvaluationError: the model does not take a sample's media, or they cannot be read.
    """
    lm.reader.check((sample.where, sample.media()) for sample in samples)
    read = [lm.reader.read(sample.prompt, sample.media(), sample.where) for sample in samples]
    return [dict(lm.reader.encode([one], "left")) for one in read]


def with_answer(inputs: Inputs, answer: torch.Tensor) -> dict[str, Any]:
    """The inputs of one sample with the token ids (tokens,) of an answer after its prompt."""
    ids = answer.to(inputs["input_ids"].dtype).unsqueeze(0)
    after = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {
        key: torch.cat([value, after.get(key, torch.zeros_like(ids)).to(value.dtype)], dim=1)
        if key in TEXT_KEYS
        else value
        for key, value in inputs.items()
    }


def batches(samples: Sequence[Inputs], size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """The samples in batches of at most `size`, as their indices and their inputs, which are padded on the right.

    Samples go together if they have the same kinds of media, whose tensors differ in nothing but their number; media
    that come as anything but tensors are not stacked.
    """
    groups: dict[Any, list[int]] = {}
    for at, sample in enumerate(samples):
        groups.setdefault(_kind(sample, at), []).append(at)
    for members in groups.values():
        for start in range(0, len(members), size):
            part = members[start : start + size]
            yield part, _stacked([samples[at] for at in part])


def _kind(sample: Inputs, at: int) -> Any:
    media = {key: value for key, value in sample.items() if key not in TEXT_KEYS}
    if not all(isinstance(value, torch.Tensor) and value.ndim for value in media.values()):
        return at
    return tuple(sample), tuple((key, value.shape[1:]) for key, value in media.items())


def _stacked(samples: Sequence[Inputs]) -> dict[str, Any]:
    if len(samples) == 1:
        return dict(samples[0])
    longest = max(sample["input_ids"].shape[1] for sample in samples)
    stacked: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if key in TEXT_KEYS:  # All are padded by zeros, which in the attention mask hide the other ones.
            values = [torch.nn.functional.pad(value, (0, longest - value.shape[1])) for value in values]
        stacked[key] = torch.cat(values)
    return stacked


def on_device(lm: MLLM, inputs: Inputs) -> dict[str, Any]:
    """The inputs where the model is, floating numbers in the model's dtype."""
    return {
        key: value.to(lm.device, lm.model.dtype if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in inputs.items()
    }
