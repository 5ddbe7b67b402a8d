"""Everything in a checkpoint but its weights: tokenizer, processor, chat template, remote code, generation config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from mergekit.common import ModelReference

from mergekit_mm.architecture.disk import read_json
from mergekit_mm.errors import MergeError

# what belongs to the weights, to another format of them, to a training run, or to the card
_NOT_COPIED = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json", "adapter_*"),
    *("*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.pth", "consolidated*"),
    *("optimizer.pt", "scheduler.pt", "rng_state*", "training_args.bin", "trainer_state.json", "*_results.json"),
    *("config.json", "README.md", "mergekit_config.yml", ".*"),
)
TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.*", "*.tiktoken"),
    *("tekken.json", "spiece.model", "sentencepiece*.model", "spm*.model"),
)
PROCESSOR = ("*processor_config.json", "chat_template.*", "generation_config.json")
# directories that transformers reads beside the files
_DIRECTORIES = ("additional_chat_templates", "processors")  # the latter are the donors' of an omni model


def copy_side_files(source: Path, target: Path, with_tokenizer: bool) -> None:
    """Copy every file that is not weights, byte for byte, remote code and its packages included."""
    left_out = _NOT_COPIED if with_tokenizer else _NOT_COPIED + TOKENIZER
    for path in sorted(source.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in left_out):
            continue
        if path.is_file():
            shutil.copyfile(path, target / path.name)
        elif path.name in _DIRECTORIES or (any(path.glob("**/*.py")) and not (path / "config.json").exists()):
            # one with a config is another model, as a checkpoint of the training
            ignore = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(path, target / path.name, ignore=ignore, dirs_exist_ok=True)


def has_tokenizer(directory: Path) -> bool:
    """Whether a checkpoint has any file of a tokenizer, in whatever format."""
    return any(fnmatch(path.name, pattern) for path in directory.iterdir() for pattern in TOKENIZER)


def chat_template(directory: Path) -> str | None:
    """The chat template of a checkpoint, from whichever of the files that may hold it. MergeError: one is damaged."""
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise MergeError(f"{jinja} is damaged: {error}") from error
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        file = directory / name
        if file.is_file():
            template = read_json(file).get("chat_template")
            if isinstance(template, str):
                return template
    return None


def drop_chat_template(directory: Path) -> None:
    """Remove the template from the files that a processor reads before `chat_template.jinja`."""
    (directory / "chat_template.json").unlink(missing_ok=True)
    file = directory / "processor_config.json"
    if file.is_file() and "chat_template" in (config := read_json(file)):
        del config["chat_template"]
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def adopt_chat_template(target: Path, experts: Mapping[ModelReference, Path]) -> str | None:
    """If the copied files hold no chat template but all experts agree on one, write theirs; says so if it did."""
    if chat_template(target) is not None or not experts:
        return None
    templates = {chat_template(directory) for directory in experts.values()}
    if len(templates) != 1 or (template := templates.pop()) is None:
        return None
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    return f"The base has no chat template; the one that all {len(experts)} experts share was taken."
