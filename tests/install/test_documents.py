"""The documents: their links lead somewhere, and what they show is accepted, prints what they say, and runs.

The documents name models by `path/to/base` and by ids of the hub. The tests run in a directory in which these are the
small models of the examples: a directory of that relative path is what mergekit takes a name for first.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from click import Command, Group
from click.testing import CliRunner
from mergekit import merge_methods
from mergekit.scripts import multimerge, run_yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import mergekit_mm.methods
import mergekit_mm.register  # where the tests run without the start-up hook
from mergekit_mm.cli import main
from mergekit_mm.methods.apply import TaskVectorMethod

ROOT = Path(__file__).parents[2]
HISTORY = ROOT / "CHANGELOG.md"  # names what is no more
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
HOOK_FILES = ("mergekit_mm.pth", "mergekit_mm.start")
FOLDERS = ("mergekit_mm", "merge_yamls", "eval_tasks", "examples", "tests", "docs")
VQA, OMNI = ROOT / "examples/easy_vqa/models", ROOT / "examples/omni/models"
MODELS = {  # what the documents call a model -> a small one that can stand there
    "path/to/base": VQA / "base",
    "path/to/expert": VQA / "expert_color",
    "path/to/expert_1": VQA / "expert_color",
    "path/to/expert_2": VQA / "expert_shape",
    "path/to/adapter_1": VQA / "lora_color",
    "path/to/adapter_2": VQA / "lora_shape",
    "lmsys/vicuna-7b-v1.5": OMNI / "llm",
    "llava-hf/llava-1.5-7b-hf": OMNI / "image",
    "LanguageBind/Video-LLaVA-7B-hf": OMNI / "video",
}
OTHERS = {"pip", "pipx", "uv", "uvx", "git", "cd", "export", "get", "get()", "hf", "curl", "md5sum"}  # not ours to test


class Block(NamedTuple):
    document: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(language: str) -> list[Block]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            lines = [each.removeprefix(match[1]) for each in match[3].splitlines()]
            found.append(Block(document, match[2], "\n".join(lines), line))
    assert found
    return [block for block in found if block.language == language]


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def spans(document: Path) -> list[str]:
    """What a document has between backticks."""
    return [" ".join(each.split()) for each in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(document))]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader who has the clone, models, and the README's first config as `merge.yaml`."""
    for folder in ("examples", "merge_yamls"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name, model in MODELS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(model)
    (tmp_path / "merge.yaml").write_text(next(b.text for b in blocks("yaml") if b.document == ROOT / "README.md"))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -------------------------------------------------------------------------------------------------------- links


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        there = (document.parent / path).resolve() if path else document
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d != HISTORY], ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_and_modules_that_are_named(document: Path) -> None:
    missing = []
    for span in spans(document):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*-]*", span):
            if not any(ROOT.glob(span.rstrip("/"))):
                missing.append(span)
        elif re.fullmatch(r"mergekit_mm(\.\w+)+", span) and span not in HOOK_FILES and not importable(span):
            missing.append(span)
    assert not missing


def importable(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, name = dotted.rpartition(".")
    try:
        importlib.import_module(dotted)
    except ModuleNotFoundError:
        return bool(module) and hasattr(importlib.import_module(module), name)
    return True


# ----------------------------------------------------------------------------------------------------- commands


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in a block for the shell, without variables that are set before it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


def options(command: Command) -> set[str]:
    return {each for parameter in command.params for each in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def flaw(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is wrong with a command, or nothing."""
    program, *arguments = words
    used = {each.partition("=")[0] for each in arguments if each.startswith("-")}
    if program == "mergekit-mm":
        assert isinstance(main, Group)
        if arguments[0].startswith("-"):
            return str(used - options(main) or "")
        if arguments[0] not in main.commands:
            return f"no command {arguments[0]}"
        known = options(main.commands[arguments[0]])
        return str(used - known - (options(run_yaml.main) if arguments[0] == "yaml" else set()) or "")
    if program in ("mergekit-yaml", "mergekit-multi"):
        return str(used - options((run_yaml if program == "mergekit-yaml" else multimerge).main) or "")
    if program == "lm_eval":
        return lm_eval_flaw(arguments, monkeypatch)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return str([each for each in arguments if "=" not in each and each not in targets] or "")
    if program in ("python", ".venv/bin/python"):
        paths = [each for each in arguments if each.startswith(FOLDERS) and "/" in each]
        modules = [each for option, each in pairwise(arguments) if option == "-m" and each.startswith(FOLDERS)]
        return str([each for each in paths if not (ROOT / each).exists()] + [m for m in modules if not runs(m)] or "")
    return "" if program in OTHERS else f"unknown program {program}"


def runs(module: str) -> bool:
    """Whether `python -m module`, in the clone, finds a file to run."""
    place = ROOT / module.replace(".", "/")
    return place.with_suffix(".py").exists() or (place / "__main__.py").exists()


def lm_eval_flaw(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    parsed = HarnessCLI().parse_args()  # exits where an option is unknown
    if parsed.command != "run":
        return ""
    folders = [ROOT / folder for folder in ("eval_tasks", parsed.include_path) if folder]
    if absent := [str(folder) for folder in folders if not folder.is_dir()]:
        return f"no folder {absent}"
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    named = parsed.tasks if isinstance(parsed.tasks, list) else parsed.tasks.split(",")
    return str([task for task in named if task not in manager.all_tasks] or "")


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_are_there_and_take_their_options(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(words, problem) for words in commands(block.text) if (problem := flaw(words, monkeypatch))]
    assert not found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_running_text(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = ("mergekit-mm ", "mergekit-yaml ", "make ", "python ")
    shown = [span.partition(" [")[0] for span in spans(document) if span.startswith(programs)]
    found = [(span, problem) for span in shown if (problem := flaw(shlex.split(span), monkeypatch))]
    assert not found


# What depends on the machine, in the lines on what a merge will take.
MEASURED = re.compile(r"(?<=to write; ).*|(?<=operations, about ).*(?= of one core)")


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_what_commands_print(block: Block, desk: Path) -> None:
    command, expected = block.text.split("\n", 1)
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "mergekit-mm"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert MEASURED.sub(">", result.output.strip()) == MEASURED.sub(">", expected.strip())


# ------------------------------------------------------------------------------------------------------ configs


@contextmanager
def methods_of(document: Path) -> Iterator[None]:
    """The merge methods that a document's blocks of Python make, known to mergekit for a while."""
    with ExitStack() as stack:
        for block in blocks("python"):
            if block.document == document and "@task_vector_method" in block.text:
                scope: dict[str, Any] = {"__name__": "shown"}
                exec(compile(block.text, str(block), "exec"), scope)
                for method in [each for each in scope.values() if isinstance(each, TaskVectorMethod)]:
                    stack.enter_context(known(method))
        yield


@contextmanager
def known(method: TaskVectorMethod) -> Iterator[None]:
    mergekit_mm.methods.add(method)
    try:
        yield
    finally:
        mergekit_mm.methods._added.remove(method)
        del merge_methods.registry._METHODS[method.name]


def over_models(parameters: dict[str, Any], desk: Path) -> dict[str, Any]:
    """A whole config for a block that has parameters alone. What it leaves out by name, the expert has."""
    expert = desk / "expert"
    shutil.copytree(MODELS["path/to/expert"], expert)
    spare = {name.replace("*", "weight"): torch.zeros(2, 2) for name in parameters.get("ignore", ())}
    save_file(load_file(expert / "model.safetensors") | spare, expert / "model.safetensors", metadata={"format": "pt"})
    return {
        "merge_method": "task_arithmetic",
        "base_model": "path/to/base",
        "models": [{"model": str(expert)}],
        "parameters": {"weight": 1.0, **parameters},
    }


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_configs_are_accepted(block: Block, desk: Path) -> None:
    config = yaml.safe_load(block.text)
    if "task" in config:  # a task of lm-eval
        from lm_eval.tasks import TaskManager

        folder = desk / "tasks"
        folder.mkdir()
        (folder / "own.yaml").write_text(block.text.replace("/path/to/eval_tasks", str(ROOT / "eval_tasks")))
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        assert config["task"] in manager.all_tasks
        assert (ROOT / config["include"].removeprefix("/path/to/")).exists()
        return
    if config.keys() == {"parameters"}:
        block = block._replace(text=yaml.safe_dump(over_models(config["parameters"], desk)))
    (desk / "config.yaml").write_text(block.text)
    with methods_of(block.document):
        result = CliRunner().invoke(main, ["check", "config.yaml"])
    assert result.exit_code == 0, result.output


# ------------------------------------------------------------------------------------------------------- Python


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block: Block, desk: Path) -> None:
    if 'from_pretrained("out")' in block.text:
        done = CliRunner().invoke(run_yaml.main, ["merge_yamls/omni.yaml", "out", "--quiet"])
        assert done.exit_code == 0, done.output
    exec(compile(block.text, str(block), "exec"), {"__name__": "shown"})


def test_the_method_that_is_shown_is_the_example() -> None:
    """But for the imports, of which the example may need others."""
    (shown,) = [block.text for block in blocks("python") if "@task_vector_method" in block.text]
    example = (ROOT / "examples/own_method/clipped_sum.py").read_text()
    assert after_imports(example) == after_imports(shown)


def after_imports(code: str) -> str:
    return re.split(r"^(?:from|import) .*$", code, flags=re.MULTILINE)[-1].strip()


# ----------------------------------------------------------------------------------------------------- messages


def strings() -> list[str]:
    """Every text in the package, docstrings included, with one character for each value that is put into it."""
    found = []
    for path in (ROOT / "mergekit_mm").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [text for node in ast.walk(tree) if (text := literal(node)) is not None]
    return found


def literal(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(value) or "\0" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = literal(node.left), literal(node.right)
        return None if parts == (None, None) else "".join(part or "\0" for part in parts)
    return None


def says(text: str, parts: list[str]) -> bool:
    """Whether a text has all parts, one after the other."""
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_messages_that_are_explained_are_in_the_source() -> None:
    """`…` in the document stands for what a message is about; the words between are the source's."""
    rows = re.findall(r"^\| (`+) ?(.*?) ?\1 \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 25
    known = strings()
    parts = {message: [part.strip() for part in message.split("…")] for _, message in rows}
    assert not [message for message in parts if not any(says(text, parts[message]) for text in known)]
