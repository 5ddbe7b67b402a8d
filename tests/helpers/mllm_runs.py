"""Small checkpoints for the lm-eval model `mllm`, tasks made from lists of documents, and the answers to them."""

from __future__ import annotations

import functools
import io
import wave
from pathlib import Path
from typing import Any

import datasets
import end_to_end as c
import processors
import torch
import transformers as t
import zoo
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from processors import donor, picture

from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.evaluation.tasks import media
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.modeling import OmniForConditionalGeneration

CLS = {
    "llava": t.LlavaForConditionalGeneration,
    "qwen2_vl": t.Qwen2VLForConditionalGeneration,
    "qwen2_audio": t.Qwen2AudioForConditionalGeneration,
}
SHORT = {"until": ["\n"], "do_sample": False, "max_gen_toks": 6}
TASKS = Path(__file__).parents[2] / "eval_tasks"
Doc = dict[str, Any]


# ------------------------------------------------------------------------------------------------- checkpoints


def lively(model: Any, seed: int = 0) -> Any:
    """Random weights large enough for what the model sees to matter for what it says."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                scale = 1.0 if "embed" in name or "lm_head" in name else 2.0 / tensor.shape[-1] ** 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return model


@functools.cache
def saved(family: str) -> Path:
    """A checkpoint of a family of the zoo, with its processor, in float32."""
    path = c.fresh(family)
    torch.manual_seed(0)  # of what `lively` leaves as it is: vectors
    lively(CLS[family](getattr(zoo, family)())).save_pretrained(path)
    donor(family).save_pretrained(path)
    return path


@functools.cache
def omni() -> Path:
    """An omni checkpoint that takes images and videos by qwen2_vl, sounds by qwen2_audio."""
    path, owners = c.fresh("omni"), {"image": "qwen2_vl", "video": "qwen2_vl", "audio": "qwen2_audio"}
    processor = processors.omni(**owners)
    ids = {m: processor.tokenizer.convert_tokens_to_ids(processors.PLACEHOLDER[m]) for m in owners}
    owner = {m: {"owner": processor.modalities[m]["owner"], "token_id": ids[m]} for m in owners}
    host, guest = zoo.qwen2_vl(), zoo.qwen2_audio()
    host.text_config.vocab_size = len(processor.tokenizer)
    config = OmniConfig(host=host.to_dict(), guests={"qwen2_audio": guest.to_dict()}, modalities=owner)
    torch.manual_seed(0)
    lively(OmniForConditionalGeneration(config)).save_pretrained(path)
    processor.save_pretrained(path)
    return path


# ------------------------------------------------------------------------------------------------------- tasks


def png(seed: int, **size: int) -> dict[str, Any]:
    data = io.BytesIO()
    picture(seed, **size).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def wav(seed: int, rate: int = processors.RATE) -> dict[str, Any]:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((processors.tone(seed) * 30000).astype("<i2").tobytes())
    return {"bytes": data.getvalue(), "path": None}


def film(seed: int, frames: int = 4) -> dict[str, Any]:
    return {"frames": [png(100 * seed + at) for at in range(frames)], "path": None}


def task(docs: list[Doc], name: str = "mine", **config: Any) -> dict[str, Any]:
    """Documents with `prompt`, and `image`, `images`, `video`, `audio`, as a task that has no file."""

    def visuals(doc: Doc) -> list[Any]:
        return media.visuals(doc) + [media.open_image(each) for each in doc.get("images") or []]

    names = {key for doc in docs for key in doc}
    return {
        "task": name,
        "custom_dataset": lambda **_: {
            "test": datasets.Dataset.from_list([{**dict.fromkeys(names), "answer": "a", **doc} for doc in docs])
        },
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "doc_to_image": visuals,
        "doc_to_audio": media.sounds,
        "fewshot_config": {"samples": []},
        "generation_kwargs": SHORT,
        "process_results": lambda doc, results: {"score": float(results[0] == doc["answer"])},
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        **config,
    }


CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["a", "b", "no b"],
    "doc_to_target": 0,
    "process_results": None,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def model(path: Path, **arguments: Any) -> MLLM:
    return MLLM(str(path), **{"dtype": "float32", "device": "cpu", **arguments})


def evaluate(lm: Any, *tasks: Any, **arguments: Any) -> dict[str, Any]:
    ours = TaskManager(include_path=str(TASKS), include_defaults=False)  # lm-eval's own are 14 000 files
    return simple_evaluate(
        lm, tasks=list(tasks), task_manager=ours, bootstrap_iters=0, **{"log_samples": True, **arguments}
    )


def said(lm: Any, docs: list[Doc], **config: Any) -> list[Any]:
    """What the model answers to each document: a text, or the likelihood of every choice."""
    samples = evaluate(lm, task(docs, **config))["samples"]["mine"]
    answers = [[resps[0] for resps in sample["resps"]] for sample in samples]
    return [[value for value, _ in each] if isinstance(each[0], tuple) else each[0] for each in answers]
