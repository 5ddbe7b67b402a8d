"""What each expert says to its samples, asked one expert at a time and kept on disk."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mergekit_mm.align.inputs import encode, load, on_device, with_answer
from mergekit_mm.align.objective import Answer
from mergekit_mm.align.samples import Sample
from mergekit_mm.errors import EvaluationError, MergeError
from mergekit_mm.evaluation.model.likelihood import logits_of_answers
from mergekit_mm.evaluation.model.mllm import MLLM


@dataclass(frozen=True)
class Expert:
    """An expert of a merge: a model, or one with an adapter.

    name: as the config has it. model, adapter: their directories. files: all files of weights.
    """

    name: str
    model: Path
    adapter: Path | None
    files: tuple[Path, ...]

    @property
    def fingerprint(self) -> str:
        """Changes where a file of weights does, by its size and its time."""
        return fingerprint(self.files)


@dataclass(frozen=True)
class Asking:
    """How experts are asked. tokens: the longest answer. top: how many tokens of each distribution are kept."""

    tokens: int
    top: int
    dtype: str
    device: str


class Kept:
    """The answers in a directory, a file for each expert, sample and way of asking; none is asked for twice."""

    def __init__(self, directory: Path, asking: Asking) -> None:
        self.directory, self.asking = directory, asking

    def ask(self, expert: Expert, samples: Sequence[Sample], tell: Callable[[str], None]) -> list[Answer]:
        """The answers of an expert, which is loaded if some are not kept yet.

        Raises:
            MergeError: the expert cannot be loaded. EvaluationError: it does not take the media of a sample.
        """
        missing = [sample for sample in samples if not self._path(expert, sample).is_file()]
        if missing:
            tell(f"asking {expert.name}: {len(missing)} samples")
            self.directory.mkdir(parents=True, exist_ok=True)
            adapter = None if expert.adapter is None else str(expert.adapter)
            lm = load(str(expert.model), adapter, self.asking.dtype, self.asking.device)
            try:
                for sample, inputs in zip(missing, encode(lm, missing), strict=True):
                    _write(self._path(expert, sample), self._answer(lm, sample, inputs), lm.tokenizer)
            finally:
                del lm
                release()
        return [_read(self._path(expert, sample)) for sample in samples]

    def require_same_tokens(self, expert: Expert, samples: Iterable[Sample], tokenizer: Any) -> None:
        """MergeError if the ids in an expert's answers stand for other tokens in the merged model's tokenizer."""
        for sample in samples:
            with safe_open(str(self._path(expert, sample)), framework="pt") as file:
                tokens = json.loads(file.metadata()["tokens"])
            for number, token in tokens.items():
                ours = tokenizer.convert_ids_to_tokens(int(number))
                if ours != token:
                    raise MergeError(
                        f"The token {number} is {token!r} for {expert.name}, and {ours!r} for the merged model: an "
                        "expert can be learnt from only if its tokens have the same numbers."
                    )

    def _path(self, expert: Expert, sample: Sample) -> Path:
        how = f"{expert.fingerprint} {sample.digest} {self.asking.tokens} {self.asking.top} {self.asking.dtype}"
        return self.directory / f"{hashlib.sha256(how.encode()).hexdigest()[:32]}.safetensors"

    @torch.inference_mode()
    def _answer(self, lm: MLLM, sample: Sample, inputs: Any) -> Answer:
        prompt = inputs["input_ids"]
        if prompt.shape[1] + self.asking.tokens > lm.max_length:
            raise EvaluationError(
                f"{sample.where}: a prompt of {prompt.shape[1]} tokens, media included, and an answer of up to "
                f"{self.asking.tokens} exceed the model's {lm.max_length}: ask for fewer tokens, or make media smaller."
            )
        moved = on_device(lm, inputs)
        pad = lm.tokenizer.pad_token_id
        said = lm.model.generate(**moved, max_new_tokens=self.asking.tokens, do_sample=False, pad_token_id=pad)[0].cpu()
        if torch.equal(said[: prompt.shape[1]], prompt[0]):
            said = said[prompt.shape[1] :]
        ids = said[: _length(said.tolist(), lm)]
        whole = with_answer(inputs, ids)
        (logits,) = logits_of_answers(lm.model, on_device(lm, whole), [ids.tolist()])
        return Answer.of(ids, logits, self.asking.top)


def _length(ids: Sequence[int], lm: MLLM) -> int:
    """How many tokens an answer has, with the one that ends it."""
    ends = lm.model.generation_config.eos_token_id
    ends = {lm.eot_token_id, *(ends if isinstance(ends, list) else [ends])}
    return next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))


def _write(path: Path, answer: Answer, tokenizer: Any) -> None:
    numbers = sorted({*answer.ids.tolist(), *answer.top.flatten().tolist()})
    tokens = dict(zip(numbers, tokenizer.convert_ids_to_tokens(numbers), strict=True))
    tensors = {"ids": answer.ids, "top": answer.top.int(), "log_probabilities": answer.log_probabilities}
    unfinished = path.with_suffix(".unfinished")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, unfinished, metadata={"tokens": json.dumps(tokens)})
    os.replace(unfinished, path)


def _read(path: Path) -> Answer:
    with safe_open(str(path), framework="pt") as file:
        return Answer(file.get_tensor("ids"), file.get_tensor("top").long(), file.get_tensor("log_probabilities"))


def fingerprint(files: Iterable[Path]) -> str:
    """A text that changes where one of some files does, by its size and its time."""
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def release() -> None:
    """Give the memory of a model that is no longer held back to the system and the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
