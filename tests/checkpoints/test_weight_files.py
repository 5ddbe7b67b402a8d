"""Files on either side of a merge: inputs that are not what they look like, and outputs in places of all kinds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
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

from mergekit_mm.cli import main as cli

UP = "language_model.model.layers.0.mlp.up_proj.weight"


def recipe(**more: Any) -> dict[str, Any]:
    return task_arithmetic(checkpoint("llava"), experts("llava"), **more)


# --------------------------------------------------------------------------------------------------- inputs


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


# --------------------------------------------------------------------------------------- the place of the output


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """An empty directory on another file system than the tests' own."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == fresh().parent.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@pytest.mark.parametrize("there", ["nothing", "an empty directory", "a model"])
def test_a_link_to_another_file_system(there: str, elsewhere: Path) -> None:
    """As a mounted volume is one."""
    target, out = elsewhere / "volume", fresh("merged")
    out.symlink_to(target)
    if there == "an empty directory":
        target.mkdir()
    elif there == "a model":
        merge(linear(checkpoint("qwen2_vl")), out=target)
    assert_same_bytes(merge(linear(checkpoint("llava")), out=out).tensors, tensors(checkpoint("llava")))
    assert out.is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["volume"]
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    out = fresh("here")
    out.mkdir()
    monkeypatch.chdir(out)
    merge(linear(checkpoint("llava")), out=Path("."))
    assert_same_bytes(tensors(out), tensors(checkpoint("llava")))
    assert "# here\n" in (out / "README.md").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["here"]


def test_files_that_an_input_links_to() -> None:
    out, linked = fresh("store"), fresh("linked")
    shutil.copytree(experts("llava")[0], out)
    linked.mkdir()
    for file in out.iterdir():
        (linked / file.name).symlink_to(file)
    assert str(linked) in run(task_arithmetic(checkpoint("llava"), [linked]), out=out).error
    assert_same_bytes(tensors(linked), tensors(experts("llava")[0]))


@pytest.mark.parametrize("role", ["processor_source", "tokenizer"])
def test_output_over_a_source_of_other_files(role: str) -> None:
    out = altered(experts("llava")[0])
    more = {"tokenizer": {"source": str(out)}} if role == "tokenizer" else {"parameters": {role: str(out)}}
    assert str(out) in run(recipe(**more), out=out).error
    assert_same_bytes(tensors(out), tensors(experts("llava")[0]))


def test_what_is_no_models_stays() -> None:
    out = fresh("merged")
    out.mkdir()
    mine = {"vae.safetensors", "controlnet.safetensors.index.json", "pytorch_model_ema.bin", "tokenizer_notes"}
    for name in mine - {"tokenizer_notes"}:
        (out / name).write_text(name)
    (out / "tokenizer_notes").mkdir()
    merge(recipe(), out=out)
    assert mine <= {path.name for path in out.iterdir()}


def test_side_files_of_an_earlier_merge_make_way() -> None:
    """A loader would prefer its chat template to that of the new tokenizer."""
    bare = altered(checkpoint("llava"))
    for name in ("chat_template.jinja", "chat_template.json", "generation_config.json", "preprocessor_config.json"):
        (bare / name).unlink()
    out = merge(recipe()).out
    merge(linear(bare), "--no-write-model-card", out=out)
    assert {path.name for path in out.iterdir()} - {"README.md"} == {path.name for path in bare.iterdir()}


def test_a_tokenizer_that_was_put_there_stays() -> None:
    out = fresh("merged")
    out.mkdir()
    (out / "tokenizer.json").write_text("mine")
    merge(recipe(), "--no-copy-tokenizer", out=out)
    assert (out / "tokenizer.json").read_text() == "mine"


def test_checkpoints_of_the_training_stay_behind() -> None:
    """With their code, which is copied from elsewhere in a model's directory."""
    base = altered(checkpoint("llava"))
    shutil.copytree(experts("llava")[1], base / "checkpoint-500")
    for directory in (base / "checkpoint-500", base / "package"):
        directory.mkdir(exist_ok=True)
        (directory / "modeling.py").write_text("# code")
    outcome = merge(linear(base))
    assert [path.name for path in outcome.out.iterdir() if path.is_dir()] == ["package"]


def test_output_in_a_directory_of_the_base() -> None:
    """The files that are being written are no package of the base's."""
    base = altered(checkpoint("llava"))
    (base / "code.py").write_text("# code")
    (base / "merged").mkdir()
    merge(linear(base), out=base / "merged")
    assert not [path for path in (base / "merged").rglob("*.safetensors") if path.parent.name != "merged"]


def test_a_full_disk() -> None:
    """Here a limit to the size of a file: the merge ends in one line, and nothing is left."""
    out, config = fresh("merged"), fresh("config.yaml")
    config.write_text(json.dumps(recipe()))  # JSON is YAML
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "import mergekit_mm.register\n"
        "from mergekit.scripts.run_yaml import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(config), str(out)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not list(out.parent.iterdir())


# --------------------------------------------------------------------------------------------- found beforehand


def assert_checked(config: dict[str, Any]) -> None:
    """`mergekit-mm check` refuses this config as well."""
    file = fresh("config.yaml")
    file.write_text(json.dumps(config))
    result = CliRunner().invoke(cli, ["check", str(file)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception


@pytest.mark.parametrize("wrong", ["no template", "no tokenizer"])
def test_a_chat_template_is_looked_at_before_the_merge(wrong: str) -> None:
    base = altered(checkpoint("llava"))
    if wrong == "no tokenizer":
        for file in base.glob("tokenizer*"):
            file.unlink()
    config = task_arithmetic(base, experts("llava"), chat_template="nonsense" if wrong == "no template" else "chatml")
    outcome = run(config)
    assert isinstance(outcome.exception, SystemExit)
    assert "vision_tower" not in outcome.console, "the merge has been announced"
    assert_nothing_left(outcome)
    assert_checked(config)


@pytest.mark.parametrize("old", ["chat_template.json", "processor_config.json"])
def test_a_processor_has_the_chat_template_that_was_asked_for(old: str) -> None:
    """Not that of a file which transformers reads first."""
    base = altered(checkpoint("qwen2_vl"))
    for name in ("chat_template.jinja", "chat_template.json"):
        (base / name).unlink(missing_ok=True)
    known = json.loads((base / old).read_text()) if (base / old).exists() else {}
    (base / old).write_text(json.dumps({**known, "chat_template": "{{ the_old_one }}"}))
    outcome = merge(task_arithmetic(base, experts("qwen2_vl"), chat_template="chatml"))
    held, _ = transformers.ProcessorMixin.get_processor_dict(outcome.out)
    template = held.get("chat_template") or transformers.AutoTokenizer.from_pretrained(outcome.out).chat_template
    assert "im_start" in template


def test_a_value_beyond_float16_is_no_damage() -> None:
    """`dtype: float16` converts the inputs; the error blames neither the file nor a NaN."""

    def grow(found: dict[str, torch.Tensor]) -> None:
        found[UP][0, 0] = 1e5

    error = run(with_method("ties", checkpoint("llava"), [altered(experts("llava")[0], grow)], dtype="float16")).error
    assert "1e+05" in error
    assert "bfloat16" in error
    assert "NaN" not in error
