"""Outputs in places of all kinds: links, the working directory, a directory that holds other files, a full disk."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner
from end_to_end import (
    altered,
    assert_nothing_left,
    assert_same_bytes,
    checkpoint,
    experts,
    fresh,
    linear,
    merge,
    run,
    task_arithmetic,
    tensors,
)
from forks import program

from mergekit_mm.cli import main as cli


def recipe(**more: Any) -> dict[str, Any]:
    return task_arithmetic(checkpoint("llava"), experts("llava"), **more)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """An empty directory on another file system than the tests' own."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == fresh().parent.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    done = program([sys.executable, "-c", code, config, out])
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
