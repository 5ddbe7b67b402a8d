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

    def ask(self, expert: Expert, samples: Sequence[Sample], tell: Callable[[str], None]) -> None:
        """Let an expert answer, which is loaded if some answers are not kept yet.

        Raises:
            MergeError: the expert cannot be loaded, or what it computes is no number. EvaluationError: it does not take
                the media of a sample.
        """
        missing = [sample for sample in samples if not self._path(expert, sample).is_file()]
        if missing:
            tell(f"asking {expert.name}: {len(missing)} samples")
            self.directory.mkdir(parents=True, exist_ok=True)
            adapter = None if expert.adapter is None else str(expert.adapter)
            lm = load(str(expert.model), adapter, self.asking.dtype, self.asking.device)
            try:
                for sample, inputs in zip(missing, encode(lm, missing), strict=True):
                    answer = self._answer(lm, sample, inputs)
                    if not torch.isfinite(answer.log_probabilities).all():
                        raise MergeError(
                            f"{sample.where}: {expert.name} computes NaN or infinite values for its answer. Its "
                            "weights are damaged, or its numbers exceed the dtype (choose --dtype float32)."
                        )
                    _write(self._path(expert, sample), answer, lm.tokenizer)
            finally:
                del lm
                release()

    def read(self, expert: Expert, samples: Iterable[Sample], tokenizer: Any) -> list[Answer]:
        """The answers of an expert that has been asked, in the token ids of the merged model's tokenizer.

        Tokens are the same if they are written the same. Those among the most probable ones that the merged model does
        not have become a part of the tail.

        Raises:
            MergeError: the merged model lacks a token of an answer itself.
        """
        answers = []
        for sample in samples:
            with safe_open(str(self._path(expert, sample)), framework="pt") as file:
                answer = Answer(*(file.get_tensor(name) for name in _TENSORS))
                tokens = {int(number): token for number, token in json.loads(file.metadata()["tokens"]).items()}
            ours = {number: _id_of(token, number, tokenizer) for number, token in tokens.items()}
            if lacking := [tokens[number] for number in answer.ids.tolist() if ours[number] is None]:
                raise MergeError(
                    f"{sample.where}: the answer of {expert.name} has the token {lacking[0]!r}, which the merged model "
                    "does not have."
                )
            answers.append(answer.renumbered(ours))
        return answers

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
        ids = ids[: _length_until(ids.tolist(), sample.until, lm.tokenizer)]
        whole = with_answer(inputs, ids)
        (logits,) = logits_of_answers(lm.model, on_device(lm, whole), [ids.tolist()])
        return Answer.of(ids, logits, self.asking.top)


def _length(ids: Sequence[int], lm: MLLM) -> int:
    """How many tokens an answer has, with the one that ends it."""
    ends = lm.model.generation_config.eos_token_id
    ends = {lm.eot_token_id, *(ends if isinstance(ends, list) else [ends])}
    return next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))


def _length_until(ids: Sequence[int], until: Sequence[str], tokenizer: Any) -> int:
    """How many tokens an answer has, with the one that completes the first text of `until`."""
    if any(each in tokenizer.decode(ids) for each in until):
        lengths = range(1, len(ids))
        return next((end for end in lengths if any(each in tokenizer.decode(ids[:end]) for each in until)), len(ids))
    return len(ids)


_TENSORS = ("ids", "top", "log_probabilities")  # the fields of an `Answer`


def _write(path: Path, answer: Answer, tokenizer: Any) -> None:
    numbers = sorted({*answer.ids.tolist(), *answer.top.flatten().tolist()})
    tokens = dict(zip(numbers, tokenizer.convert_ids_to_tokens(numbers), strict=True))
    tensors = {name: getattr(answer, name).contiguous() for name in _TENSORS}
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"tokens": json.dumps(tokens)})
    os.replace(unfinished, path)


def _id_of(token: str | None, number: int, tokenizer: Any) -> int | None:
    """The id of an expert's token in another tokenizer; None if that does not have it."""
    if token is None:  # the expert's embeddings have rows that stand for no token
        return None
    if tokenizer.convert_ids_to_tokens(number) == token:
        return number
    found = tokenizer.convert_tokens_to_ids(token)
    return found if found is not None and tokenizer.convert_ids_to_tokens(found) == token else None


def fingerprint(files: Iterable[Path]) -> str:
    """A text that changes where one of some files does, by its size and its time."""
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def release() -> None:
    """Give the memory of a model that is no longer held back to the system and the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
