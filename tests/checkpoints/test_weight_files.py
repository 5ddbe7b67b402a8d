"""Files of weights that are not what they look like: shards, pickles, names, dtypes, copies of the hub in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end import (
    altered,
    assert_close,
    assert_nothing_left,
    assert_same_bytes,
    checkpoint,
    edit_json,
    experts,
    fresh,
    linear,
    merge,
    run,
    sharded,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
)
from safetensors.torch import load_file, save_file

UP = "language_model.model.layers.0.mlp.up_proj.weight"


def shard_of(path: Path, name: str) -> tuple[Path, Path]:
    """The shard that the index names for a tensor, and another one."""
    weight_map = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    return path / weight_map[name], path / next(file for file in weight_map.values() if file != weight_map[name])


def refused(path: Path, *told: str, flags: tuple[str, ...] = ()) -> None:
    """A merge with this expert ends in one error, with these words in it and without a traceback."""
    outcome = run(task_arithmetic(checkpoint("llava"), [path]), *flags)
    assert isinstance(outcome.exception, SystemExit)
    assert all(word in outcome.error for word in (path.name, *told)), outcome
    assert_nothing_left(outcome)


def test_a_tensor_in_two_shards() -> None:
    """Which of the two is read would depend on what was read before."""
    path = sharded(experts("llava")[0])
    own, other = shard_of(path, UP)
    save_file({**load_file(other), UP: load_file(own)[UP] + 100}, other)
    refused(path, UP, other.name)


def test_a_tensor_in_another_shard_than_its_index_says() -> None:
    path = sharded(experts("llava")[0])
    _, other = shard_of(path, UP)
    index = path / "model.safetensors.index.json"
    edit_json(index, weight_map={**json.loads(index.read_text())["weight_map"], UP: other.name})
    refused(path, UP, other.name)


def test_one_file_beside_an_index_of_others() -> None:
    """Each loader prefers another of the two."""
    path = sharded(experts("llava")[0])
    shutil.copy(experts("llava")[1] / "model.safetensors", path)
    refused(path, "model.safetensors", "index")


def test_an_index_of_one_file() -> None:
    path = altered(checkpoint("llava"))
    weight_map = dict.fromkeys(tensors(path), "model.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_bytes(merge(linear(path)).tensors, tensors(path))


def pickled(state: Callable[[dict[str, torch.Tensor]], Any], **how: Any) -> Path:
    path = altered(experts("llava")[0])
    torch.save(state(tensors(path)), path / "pytorch_model.bin", **how)
    (path / "model.safetensors").unlink()
    return path


def test_a_training_checkpoint_is_no_model() -> None:
    refused(pickled(lambda found: {"state_dict": found, "epoch": 3}), "state_dict", "training")


def test_a_pickle_that_is_not_for_lazy_reading() -> None:
    refused(pickled(dict, _use_new_zipfile_serialization=False), "pytorch_model.bin", flags=("--lazy-unpickle",))


def test_pickled_parameters() -> None:
    path = pickled(lambda f: {n: torch.nn.Parameter(t) if t.is_floating_point() else t for n, t in f.items()})
    assert_same_bytes(merge(linear(path)).tensors, tensors(experts("llava")[0]))


def test_one_tensor_under_two_names() -> None:
    """Old names and new ones in one file: only one of the two would be loaded."""
    new = UP.replace("language_model.model", "model.language_model")
    refused(altered(experts("llava")[0], lambda found: {**found, new: found[UP] + 1}), UP, new)


def test_weights_in_8_bits() -> None:
    """Also where no config says that they are quantized."""
    refused(altered(experts("llava")[0], lambda found: {**found, UP: found[UP].to(torch.float8_e4m3fn)}), UP, "F8_E4M3")


def test_an_empty_quantization_config() -> None:
    path = altered(checkpoint("llava"), quantization_config=None)
    assert_same_bytes(merge(linear(path)).tensors, tensors(path))


def test_a_head_of_its_own_where_the_base_has_its_embeddings() -> None:
    """The merge has one tensor for two of the expert's."""

    def tied(source: Path, ties: bool) -> Path:
        path = altered(source, lambda f: {n: t for n, t in f.items() if not ties or "lm_head" not in n})
        text = json.loads((path / "config.json").read_text())["text_config"]
        edit_json(path / "config.json", tie_word_embeddings=ties, text_config={**text, "tie_word_embeddings": ties})
        return path

    base, expert = checkpoint("llava"), experts("llava")[0]
    error = run(task_arithmetic(tied(base, True), [tied(expert, False)])).error
    assert "lm_head.weight" in error
    assert "tie_word_embeddings" in error
    for ties in (True, False):
        merge(task_arithmetic(tied(base, ties), [tied(expert, True)]))


@pytest.mark.parametrize("twice", ["expert", "base"])
def test_one_model_under_two_names(twice: str) -> None:
    model = checkpoint("llava") if twice == "base" else experts("llava")[0]
    config = task_arithmetic(checkpoint("llava"), [experts("llava")[0]])
    config["models"].append({"model": f"{model}/", "parameters": {"weight": 1.0}})
    assert f"{model}/" in run(config).error


def on_the_hub(cache: Path, name: str, revision: str, source: Path) -> str:
    """A checkpoint as a download leaves it in a cache: links to files that are named by their hashes."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / hashlib.sha1(name.encode()).hexdigest()
    for directory in (snapshot, root / "blobs", root / "refs"):
        directory.mkdir(parents=True)
    (root / "refs" / revision).write_text(snapshot.name)
    for file in source.iterdir():
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return name if revision == "main" else f"{name}@{revision}"


def test_models_of_the_hub_without_a_network() -> None:
    """From a cache of one's own, one of them at a revision."""
    cache = fresh("cache")
    base = on_the_hub(cache, "acme/base", "main", checkpoint("llava"))
    expert = on_the_hub(cache, "acme/expert", "v2", experts("llava")[0])
    outcome = merge(task_arithmetic(Path(base), [Path(expert)]), "--transformers-cache", str(cache))
    expected = sum_of_deltas(tensors(checkpoint("llava")), [tensors(experts("llava")[0])])
    assert_close(outcome.tensors, expected)
    assert f"| {expert} | model.safetensors |" in (outcome.out / "README.md").read_text()


def test_a_value_beyond_float16_is_no_damage() -> None:
    """`dtype: float16` converts the inputs; the error blames neither the file nor a NaN."""

    def grow(found: dict[str, torch.Tensor]) -> None:
        found[UP][0, 0] = 1e5

    error = run(with_method("ties", checkpoint("llava"), [altered(experts("llava")[0], grow)], dtype="float16")).error
    assert "1e+05" in error
    assert "bfloat16" in error
    assert "NaN" not in error
