"""The planned side files, copied byte for byte or written: every file of a checkpoint but its weights and config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mergekit_mm.checkpoints.disk import read_json
from mergekit_mm.checkpoints.side_files.model_files import is_of_tokenizer
from mergekit_mm.plan.side_files import SideFiles


def write_side_files(planned: SideFiles, target: Path) -> None:
    """Put the planned files into a directory. For a link, the file it leads to is copied."""
    for name, source in planned.copies.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, file)
    for name, text in planned.texts.items():
        (target / name).write_text(text, encoding="utf-8")


@contextmanager
def linked_tokenizer(planned: SideFiles, config: Path) -> Iterator[Path]:
    """A directory, for as long as the block lasts, from which the planned tokenizer can be loaded.

    config: the config.json of the model, from which transformers takes the class of a tokenizer that names none itself.
    """
    with TemporaryDirectory() as name:
        directory = Path(name)
        (directory / config.name).symlink_to(config.resolve())
        for path, source in planned.copies.items():
            if is_of_tokenizer(path) or path.endswith(".py"):
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / path).symlink_to(source.resolve())
        yield directory


def drop_chat_template(directory: Path) -> None:
    """Remove the template from the files that a processor reads before `chat_template.jinja`."""
    (directory / "chat_template.json").unlink(missing_ok=True)
    file = directory / "processor_config.json"
    if file.is_file() and "chat_template" in (config := read_json(file)):
        del config["chat_template"]
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
