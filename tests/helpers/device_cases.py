"""One merge of each kind that the plugin knows, for tests that run them on another device than the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from end_to_end import (
    Tensors,
    altered,
    checkpoint,
    command,
    experts,
    linear,
    merge,
    task_arithmetic,
    tensors,
    with_method,
)
from peft_adapters import adapted, pair, plus
from safetensors.torch import load_file

MERGED = dict.fromkeys(("vision_tower", "projector", "embeddings", "lm_head", "norms", "biases"), "merge")
KEPT = dict.fromkeys(MERGED, "base")

# the ways to use GPUs that mergekit-yaml has
WAYS: dict[str, tuple[str, ...]] = {
    "cuda": ("--cuda",),
    "low-cpu-memory": ("--cuda", "--low-cpu-memory"),
    "read-to-gpu": ("--cuda", "--read-to-gpu"),
    "multi-gpu": ("--multi-gpu",),
    "gpu-rich": ("--gpu-rich",),
}


class Case(NamedTuple):
    """A merge config, the command that runs it and further options."""

    config: Mapping[str, Any]
    command: str = "yaml"
    flags: tuple[str, ...] = ()


# method -> (number of experts, parameters of the merge, parameters of each expert)
METHODS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "linear": (3, {}, {"weight": 1.0}),
    "task_arithmetic": (3, {}, {"weight": 0.3}),
    "slerp": (1, {"t": 0.3}, {}),
    "nuslerp": (2, {}, {"weight": 0.5}),
    "multislerp": (3, {}, {"weight": 0.3}),
    "karcher": (3, {}, {}),
    "ties": (3, {}, {"weight": 0.5, "density": 0.6}),
    "dare_linear": (3, {}, {"weight": 0.5, "density": 0.6}),
    "dare_ties": (3, {}, {"weight": 0.5, "density": 0.6}),
    "della_linear": (3, {"vision_tower": "base"}, {"weight": 0.5, "density": 0.6, "epsilon": 0.1}),
    "della": (3, {"vision_tower": "base"}, {"weight": 0.5, "density": 0.6, "epsilon": 0.1}),
    "breadcrumbs": (3, {}, {"weight": 0.5, "density": 0.9, "gamma": 0.05}),
    "model_stock": (3, {}, {}),
    "sce": (3, {"select_topk": 0.5}, {}),
    "ram": (3, {}, {}),
    "arcee_fusion": (1, {}, {}),
    "nearswap": (1, {"t": 0.01}, {}),
    "optmerge": (3, MERGED, {}),
    "wudi": (3, MERGED, {}),
    "swudi": (3, MERGED, {}),
    "aswudi": (3, MERGED, {}),
    "tsv": (3, MERGED, {}),
    "iso_c": (3, MERGED, {}),
    "iso_cts": (3, MERGED, {}),
    "dc_merge": (3, {**MERGED, "svc": True}, {}),
}


def of_method(method: str, base: Path | None = None, others: list[Path] | None = None, **more: Any) -> dict[str, Any]:
    count, shared, each = METHODS[method]
    base = base or checkpoint("llava")
    entries = [{"model": str(path), "parameters": each} for path in (others or experts("llava"))[:count]]
    if method in ("linear", "karcher"):
        entries.append({"model": str(base), "parameters": each})
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": entries,
        "dtype": "float32",
        "parameters": {**shared, **more},
    }


def of_adapters(method: str, **more: Any) -> dict[str, Any]:
    base = checkpoint("llava")
    return of_method(method, base, [plus(base, adapter) for adapter, _ in pair("llava")], **more)


@functools.cache
def _variant(**config: Any) -> tuple[Path, Path]:
    return adapted("llava", 41, **config)[0], adapted("llava", 42)[0]


def of_variant(method: str, **config: Any) -> dict[str, Any]:
    """Over an adapter of another kind, and one that is plain."""
    base = checkpoint("llava")
    return of_method(method, base, [plus(base, adapter) for adapter in _variant(**config)], **MERGED)


def over_an_adapter(method: str, **more: Any) -> dict[str, Any]:
    """The base itself is a model with an adapter."""
    base, (first, second) = checkpoint("llava"), (adapter for adapter, _ in pair("llava"))
    return of_method(method, plus(base, first), [plus(base, second), experts("llava")[0]], **more)


@functools.cache
def omni_adapters() -> tuple[Path, Path, Path]:
    """A base, and two donors of one language model: the image's and the sound's, each a model with an adapter."""
    base = checkpoint("llava")
    llava = tensors(checkpoint("llava", "memory"))
    ours = {name: tensor for name, tensor in llava.items() if name.startswith(("model.language_model.", "lm_head."))}
    ear = altered(checkpoint("qwen2_audio_llama", "memory"), lambda found: {**found, **ours})
    targets = {"r": 3, "target_modules": r".*language_model.*layers\.0.*(k|v|gate|down)_proj"}
    return (
        base,
        plus(base, adapted("llava", 31)[0]),
        plus(ear, adapted("qwen2_audio_llama", 32, path=ear, **targets)[0]),
    )


def decoupled(method: str) -> dict[str, Any]:
    base, eye, ear = omni_adapters()
    return of_method(method, base, [eye, ear], composition="damc", host=str(eye)) | {"dtype": "float32"}


def halves(path: Path) -> Path:
    return altered(path, lambda found: {name: tensor.bfloat16() for name, tensor in found.items()}, dtype="bfloat16")


def two_donors(**parameters: Any) -> dict[str, Any]:
    return linear(checkpoint("llava"), checkpoint("qwen2_audio_llama"), parameters=parameters)


def of_halves(method: str) -> Case:
    config = of_method(method, halves(checkpoint("llava")), [halves(path) for path in experts("llava")])
    return Case(config | {"dtype": "bfloat16"})


KINDS: dict[str, Callable[[], Case]] = {
    "16 bits": lambda: of_halves("ties"),
    "converted tensors": lambda: Case(with_method("iso_c", checkpoint("glm4v_moe"), experts("glm4v_moe"))),
    "adapters, summed": lambda: Case(of_adapters("task_arithmetic")),
    "adapters as factors": lambda: Case(of_adapters("tsv")),
    "adapters, applied": lambda: Case(of_adapters("ties")),
    "adapters by Adam": lambda: Case(of_adapters("optmerge", preset="full")),
    "DoRA, summed": lambda: Case(of_variant("task_arithmetic", use_dora=True)),
    "DoRA, solved": lambda: Case(of_variant("optmerge", use_dora=True)),
    "embeddings": lambda: Case(of_variant("task_arithmetic", target_modules=("embed_tokens", "q_proj"))),
    "a convolution": lambda: Case(of_variant("optmerge", target_modules=("patch_embedding", "q_proj"))),
    "whole modules": lambda: Case(of_variant("task_arithmetic", modules_to_save=("lm_head", "linear_1"))),
    "biases": lambda: Case(of_variant("optmerge", target_modules=r".*vision_tower.*(q_proj|fc1)", bias="lora_only")),
    "an adapted base": lambda: Case(over_an_adapter("optmerge")),
    "omni": lambda: Case(two_donors()),
    "omni, whole matrices kept": lambda: Case(two_donors(composition="damc")),
    "omni, factors kept": lambda: Case(decoupled("task_arithmetic")),
    "omni, factors kept of a solver": lambda: Case(decoupled("tsv")),
    "a tokenizer section": lambda: Case(
        task_arithmetic(checkpoint("llava"), experts("llava"), tokenizer={"source": "union"})
    ),
    "truncated embeddings": lambda: Case(
        task_arithmetic(checkpoint("llava"), experts("llava")), flags=("--unsafe-truncate-embeddings",)
    ),
    "one model, cast": lambda: Case(linear(checkpoint("qwen3_vl")) | {"out_dtype": "bfloat16"}),
}
# commands of the plugin, which have one option for GPUs
COMMANDS: dict[str, Callable[[], Case]] = {
    "an adapter of adapters": lambda: Case(of_adapters("optmerge"), "lora"),
    "an adapter of a difference": lambda: Case(of_adapters("slerp"), "lora", ("--rank", "4")),
    "an adapter over an adapted base": lambda: Case(
        over_an_adapter("task_arithmetic", **KEPT), "lora", ("--rank", "64")
    ),
    "an adapter of fine-tunes": lambda: Case(
        of_method("tsv", **dict.fromkeys(MERGED, "base")), "lora", ("--rank", "4")
    ),
    "strengths": lambda: Case(of_method("iso_c"), "sweep", ("--scaling", "0.5,1")),
    "strengths of adapters": lambda: Case(of_adapters("task_arithmetic"), "sweep", ("--scaling", "0.5,1")),
    "strengths of an omni model": lambda: Case(decoupled("task_arithmetic"), "sweep", ("--scaling", "0.5,1")),
}


def made(case: Case, *flags: str) -> Tensors:
    """What a case writes, run with further options; of an adapter the products of its factors."""
    if case.command == "yaml":
        return merge(case.config, *case.flags, *flags).tensors
    out, done = command(case.command, case.config, *case.flags, *flags, "--quiet")
    if done.exit_code:
        raise AssertionError(done.output) from done.exception
    if case.command == "sweep":
        return {f"{path.name}/{name}": t for path in sorted(out.iterdir()) for name, t in tensors(path).items()}
    factors = load_file(out / "adapter_model.safetensors")
    found = {}
    for name, b in factors.items():
        if name.endswith("lora_B.weight"):
            found[name] = b @ factors[name.replace("lora_B", "lora_A")]
    assert len(factors) == 2 * len(found), "an adapter with other parts than matrices"
    return found


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).abs().max()) / (float(expected.double().abs().max()) or 1.0)


@functools.cache
def case_of(kind: str) -> Case:
    return {**KINDS, **COMMANDS}[kind]()


@functools.cache
def on_cpu(kind: str) -> Tensors:
    return made(case_of(kind))


@functools.cache
def of_method_on_cpu(method: str) -> Tensors:
    return made(Case(of_method(method)), "--random-seed", "7")
