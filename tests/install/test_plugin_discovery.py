"""The plugin as a user meets it: installed into fresh environments, and driven by the stock `mergekit-yaml`.

Starting mergekit costs seconds: tests share environments and results.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tarfile
import warnings
import zipfile
from email import message_from_string
from pathlib import Path
from types import ModuleType

import fresh_venvs
import pytest
from fresh_venvs import ROOT, Environment
from packaging.requirements import Requirement

import mergekit_mm
from mergekit_mm._autoload import HOOKS
from mergekit_mm.hosts.registration import (
    SUPPORTED_MERGEKIT,
    check_mergekit_version,
    install_run_merge,
    register_methods,
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheel() -> Path:
    return fresh_venvs.wheel()


@pytest.fixture(scope="module")
def installed() -> Environment:
    return fresh_venvs.installed()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment without this package, into which no test installs it."""
    return Environment(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config that merges two experts of a text-only LLaMA of a few kilobytes by OptMerge."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("models")
    size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(**size, num_attention_heads=2, num_key_value_heads=1, dtype=torch.float32)
    for seed, name in enumerate(("base", "expert_a", "expert_b")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(directory / name)
    lines = [
        "merge_method: optmerge",
        f"base_model: {directory / 'base'}",
        f"models: [{{model: {directory / 'expert_a'}}}, {{model: {directory / 'expert_b'}}}]",
        "dtype: float32",
    ]
    path = directory / "recipe.yaml"
    path.write_text("\n".join(lines))
    return path


def merge(environment: Environment, command: list[str], recipe: Path, **variables: str) -> str:
    """Merge into a new directory; return the hash of the weights, or what was printed when it failed."""
    out = environment.directory / "merged"
    done = environment.run(*command, recipe, out, "--quiet", "--no-copy-tokenizer", **variables)
    if done.returncode:
        return done.stderr
    assert (out / "config.json").exists()
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def merged(installed: Environment, recipe: Path) -> str:
    return merge(installed, ["mergekit-yaml"], recipe)


# ------------------------------------------------------------------------------------------------- installations


@pytest.mark.slow
def test_wheel_carries_two_plain_lines_at_its_root(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
        lines = {name: archive.read(name).decode() for name in ("mergekit_mm.pth", "mergekit_mm.start")}
        assert "mergekit_mm/py.typed" in archive.namelist()
        assert "mergekit_mm/eval_tasks/mllm.yaml" in archive.namelist()
        assert not [name for name in archive.namelist() if "demo" in name]
    info = f"mergekit_mm-{mergekit_mm.__version__}.dist-info"
    assert top == {"mergekit_mm", "mergekit_mm.pth", "mergekit_mm.start", info}
    assert lines == {
        "mergekit_mm.pth": "import mergekit_mm._autoload; mergekit_mm._autoload.install()\n",
        "mergekit_mm.start": "mergekit_mm._autoload:install\n",
    }


@pytest.mark.slow
def test_wheel_and_hook_agree_on_the_mergekit_versions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode().splitlines()
    required = [Requirement(line.partition(": ")[2]) for line in metadata if line.startswith("Requires-Dist")]
    assert [each.specifier for each in required if each.name == "mergekit"] == [SUPPORTED_MERGEKIT]


@pytest.mark.slow
def test_links_of_the_readme_lead_somewhere_from_a_package_index(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) == len(re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())) > 20
    assert not [target for target in targets if not target.startswith("https://")]
    inside = re.findall(rf"/(blob|raw)/v{mergekit_mm.__version__}/([^)#\s]+)", text)
    assert {kind for kind, _ in inside} == {"blob", "raw"}
    assert not [path for _, path in inside if not (ROOT / path).exists()]


@pytest.mark.slow
def test_sdist_has_what_the_wheel_is_made_of_and_no_more(wheel: Path, tmp_path: Path) -> None:
    build = f"import hatchling.build; hatchling.build.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True)
    (sdist,) = tmp_path.iterdir()
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames()}
    built_by = {"pyproject.toml", "hatch_build.py", "README.md"}
    assert top == {"mergekit_mm", "eval_tasks", *built_by, "LICENSE", "PKG-INFO", ".gitignore"}
    again = fresh_venvs.wheel(sdist)
    with zipfile.ZipFile(wheel) as from_checkout, zipfile.ZipFile(again) as from_sdist:
        assert {each.filename: each.CRC for each in from_sdist.infolist()} == {
            each.filename: each.CRC for each in from_checkout.infolist()
        }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_start_up_imports_the_hook_alone_and_uninstall_leaves_nothing(kind: str, wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    bare = environment.modules_at_start()
    environment.install(*([wheel] if kind == "wheel" else ["--editable", ROOT]))
    names = {each.name for each in environment.files() - environment.empty}
    assert {"mergekit_mm.pth", "mergekit_mm.start", "mergekit-mm"} <= names
    assert environment.modules_at_start() - bare == {"mergekit_mm", "mergekit_mm._autoload"}

    environment.pip("uninstall", "--yes", "mergekit-mm")
    assert environment.files() == environment.empty
    assert not [each for each in environment.site.rglob("*") if "mergekit_mm" in str(each)]
    start = environment.run("python", "-c", "pass")
    assert (start.returncode, start.stderr) == (0, "")


@pytest.mark.slow
def test_stock_command_merges_after_a_wheel_install(merged: str) -> None:
    assert len(merged) == 64, merged


@pytest.mark.slow
def test_stock_command_merges_after_an_editable_install(recipe: Path, merged: str, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install("--editable", ROOT)
    assert merge(environment, ["mergekit-yaml"], recipe) == merged


@pytest.mark.slow
def test_opt_out_leaves_mergekit_as_it_is(installed: Environment, recipe: Path) -> None:
    printed = merge(installed, ["mergekit-yaml"], recipe, MERGEKIT_MM_AUTOLOAD="0")
    assert "Unimplemented merge method optmerge" in printed


@pytest.mark.slow
def test_fallback_without_the_hook(recipe: Path, merged: str, bare: Environment) -> None:
    command = ["python", "-m", "mergekit_mm", "yaml"]
    assert merge(bare, command, recipe, PYTHONPATH=str(ROOT)) == merged


@pytest.mark.slow
def test_doctor_finds_all_well(installed: Environment) -> None:
    done = installed.run("mergekit-mm", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    report = {line[7:53].strip(): line for line in done.stdout.splitlines()}
    for package in ("mergekit", "transformers", "torch", "peft", "lm-eval"):
        assert importlib.metadata.version(package) in report[package]
    assert str(installed.site) in report["start-up hook"]
    assert "optmerge" in report["methods"].split()
    assert set(HOOKS) <= set(report)
    assert {line.split()[0] for line in report.values()} == {"ok"}


@pytest.mark.slow
def test_stock_lm_eval_knows_the_tasks_and_the_model(installed: Environment) -> None:
    """From a wheel, without --include_path; what the user includes comes later and wins."""
    done = installed.run("python", "-m", "lm_eval", "ls", "groups")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"mllm", "mllm_chart", "mllm_grounding"} <= set(re.findall(r"\bmllm\w*", done.stdout))
    listed = "import sys, lm_eval.models; from lm_eval.api.registry import model_registry as known; "
    listed += "print('mllm' in known, 'hf' in known, 'mergekit_mm.evaluation.model' in sys.modules)"
    assert installed.run("python", "-c", listed).stdout.split() == ["True", "True", "False"]
    plain = "; from lm_eval.tasks import TaskManager; print(hasattr(TaskManager.__init__, '__mergekit_mm__'))"
    off = installed.run("python", "-c", listed + plain, MERGEKIT_MM_AUTOLOAD="0")
    assert off.stdout.split() == ["False", "True", "False", "False"]


@pytest.mark.slow
def test_doctor_tells_a_hook_missing_from_one_turned_off(installed: Environment, bare: Environment) -> None:
    missing = bare.run("python", "-m", "mergekit_mm", "doctor", PYTHONPATH=str(ROOT))
    assert missing.returncode == 1
    assert "BROKEN start-up hook" in missing.stdout
    off = installed.run("mergekit-mm", "doctor", MERGEKIT_MM_AUTOLOAD="0")
    assert off.returncode == 0, off.stdout + off.stderr
    assert "note   start-up hook" in off.stdout
    assert all("python -m mergekit_mm yaml" in each.stdout for each in (missing, off))


HOST_FIRST = """
import os, warnings
import mergekit.merge_methods as host
stranger = host.GeneralizedTaskArithmeticMerge(
    consensus_method=None, sparsification_method=None, default_normalize=False, default_rescale=False,
    method_name="optmerge", method_pretty_name="A stranger", method_reference_url=None,
)
host.register(stranger)
del os.environ["MERGEKIT_MM_AUTOLOAD"]
from mergekit_mm import _autoload
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    _autoload.install()
    _autoload.install()
from mergekit_mm.methods import catalogue
names = {method.spec.name for method in host.registered_methods()}
assert {method.name for method in catalogue()} <= names, names
assert host.get("optmerge") is stranger
texts = [str(each.message) for each in caught if "optmerge" in str(each.message)]
assert len(texts) == 1 and "already" in texts[0], texts
assert _autoload.outcomes == {"mergekit.merge_methods": ""}, _autoload.outcomes
"""


@pytest.mark.slow
def test_host_imported_first_and_a_name_taken(installed: Environment) -> None:
    done = installed.run("python", "-c", HOST_FIRST, MERGEKIT_MM_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr


def test_registering_again_changes_nothing(recwarn: pytest.WarningsRecorder) -> None:
    run_yaml = importlib.import_module("mergekit.scripts.run_yaml")
    importlib.import_module("mergekit_mm.register")
    host = importlib.import_module("mergekit.merge_methods")
    before = host.registered_methods(), run_yaml.run_merge
    assert run_yaml.run_merge.__mergekit_mm__
    register_methods()
    install_run_merge()
    assert (host.registered_methods(), run_yaml.run_merge) == before
    assert not [each for each in recwarn if "mergekit" in str(each.message)]


def test_other_versions_of_mergekit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_mergekit_version()
    information = tmp_path / "mergekit-0.2.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mergekit\nVersion: 0.2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match=r"mergekit 0\.2\.0 is not supported: pip install"):
        check_mergekit_version()


# ---------------------------------------------------------------------------------- the hook, on toys of its own


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A second instance of the hook that waits for `toyhost.core`, in the place of nothing that mergekit needs."""
    package = tmp_path / "toyhost"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "core.py").write_text("calls = []\nloader = __loader__\nready = True\n")
    (tmp_path / "toyplugin.py").write_text(
        "def plug():\n    import toyhost.core\n    toyhost.core.calls.append(toyhost.core.ready)\n"
        "def fail():\n    raise ValueError('broken plugin')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in ("toyhost", "toyhost.core", "toyplugin"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("hook_on_toys", ROOT / "mergekit_mm" / "_autoload.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HOOKS", {"toyhost.core": "toyplugin:plug"})
    monkeypatch.delenv("MERGEKIT_MM_AUTOLOAD", raising=False)
    return module


def test_hook_fires_once_after_the_body_and_leaves(hook: ModuleType) -> None:
    finders = list(sys.meta_path)
    hook.install()
    hook.install()
    assert sys.meta_path == [hook.finder, *finders]
    assert importlib.util.find_spec("toyhost.core")  # looking is not importing
    core = importlib.import_module("toyhost.core")
    assert core.calls == [True]
    assert sys.meta_path == finders
    real = type(importlib.import_module("toyplugin").__loader__)
    assert {type(core.loader), type(core.__loader__), type(core.__spec__.loader)} == {real}
    hook.install()
    assert importlib.reload(core).calls == []
    assert sys.meta_path == finders


def test_hook_serves_a_host_imported_before(hook: ModuleType) -> None:
    core = importlib.import_module("toyhost.core")
    hook.install()
    assert core.calls == [True]
    assert hook.finder not in sys.meta_path


@pytest.mark.parametrize("strict", [False, True])
def test_a_broken_plugin_does_not_break_the_host(
    hook: ModuleType, strict: bool, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    hook.HOOKS["toyhost.core"] = "toyplugin:fail"
    hook.install()
    if strict:
        warnings.simplefilter("error")
    assert importlib.import_module("toyhost.core").ready
    said = capsys.readouterr().err if strict else str(recwarn.pop(RuntimeWarning).message)
    for part in ("mergekit-mm", "toyhost", "ValueError: broken plugin", "MERGEKIT_MM_AUTOLOAD=0"):
        assert part in said
    assert hook.finder not in sys.meta_path


def test_a_broken_host_may_be_mended_and_imported_again(hook: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "toyhost" / "core.py"
    good = source.read_text()
    source.write_text("raise ImportError('broken host')")
    hook.install()
    with pytest.raises(ImportError, match="broken host"):
        importlib.import_module("toyhost.core")
    source.write_text(good)
    importlib.invalidate_caches()
    assert importlib.import_module("toyhost.core").calls == [True]


def test_opt_out_installs_nothing(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEKIT_MM_AUTOLOAD", "0")
    hook.install()
    assert hook.finder not in sys.meta_path
