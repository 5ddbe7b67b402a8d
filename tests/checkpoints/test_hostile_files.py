"""Files that are made to harm: each is refused with its name, and nothing outside of the input is read or run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from end_to_end import altered, checkpoint, experts, fresh, plugin, task_arithmetic, tensors, written
from peft_adapters import pair, plus


def told(expert: Path) -> str:
    """What `check` says of a merge with this expert, which has to be one error."""
    result = plugin("check", written(task_arithmetic(checkpoint("llava"), [expert])))
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.output.startswith("Error: ")
    return result.output


def with_header(change: Any) -> Path:
    """An expert whose file has another header before the same values; `change` gives its bytes and length."""
    path = altered(experts("llava")[0])
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text, claimed = change(json.loads(content[8 : 8 + length]))
    file.write_bytes(struct.pack("<Q", claimed) + text + content[8 + length :])
    return path


def _padded(header: dict[str, Any]) -> tuple[bytes, int]:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return text, len(text)


def too_long(header: dict[str, Any]) -> tuple[bytes, int]:
    return _padded(header)[0], 10**10


def beyond_any_number(header: dict[str, Any]) -> tuple[bytes, int]:
    return _padded(header)[0], 2**64 - 1


def overlapping(header: dict[str, Any]) -> tuple[bytes, int]:
    one, other, *_ = (entry for name, entry in header.items() if name != "__metadata__")
    other["data_offsets"], other["shape"], other["dtype"] = one["data_offsets"], one["shape"], one["dtype"]
    return _padded(header)


def out_of_the_file(header: dict[str, Any]) -> tuple[bytes, int]:
    last = max((entry for name, entry in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"][1])
    last["data_offsets"][1] += 4096
    return _padded(header)


def of_a_huge_shape(header: dict[str, Any]) -> tuple[bytes, int]:
    next(entry for name, entry in header.items() if name != "__metadata__")["shape"] = [2**40, 2**40]
    return _padded(header)


def nested_without_end(_header: dict[str, Any]) -> tuple[bytes, int]:
    text = b"[" * 200_000
    return text, len(text)


@pytest.mark.parametrize(
    "change", [too_long, beyond_any_number, overlapping, out_of_the_file, of_a_huge_shape, nested_without_end]
)
def test_headers_that_lie(change: Any) -> None:
    path = with_header(change)
    assert f"The weights in {path} cannot be read: " in told(path)


def test_pickles_that_run_code_are_not_run() -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(harmed),)

    harmed, path = fresh("harmed"), altered(experts("llava")[0])
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Harm()}))
    assert f"{path} cannot be read: " in told(path)
    adapter = fresh("adapter")
    shutil.copytree(pair("llava")[0][0], adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({"a": Harm()}))
    assert "adapter_model.bin" in told(plus(checkpoint("llava"), adapter))
    assert not harmed.exists()


@pytest.mark.parametrize("way", ["../{}/model.safetensors", "{}/model.safetensors", "sub/../../{}/model.safetensors"])
def test_an_index_does_not_lead_out_of_its_directory(way: str) -> None:
    """By a relative path, and by one from the root."""
    other, path = altered(experts("llava")[1]), altered(experts("llava")[0])
    (path / "sub").mkdir()
    (path / "model.safetensors").unlink()
    target = way.format(other if way.startswith("{") else Path(os.path.relpath(other, path.parent)))
    names = tensors(other)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, target)}))
    assert f"names {target}, which is not in its directory" in told(path)


@pytest.mark.parametrize("weight_map", [[], "x", 3, {"a": 3}, {"a": None}, {"a": ["b"]}, {"a": ""}, {"a": "\x00"}])
def test_an_index_of_another_form(weight_map: Any) -> None:
    path = altered(experts("llava")[0])
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert str(path) in told(path)


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a": ' * 100_000, "\x00", "[]", '{"model_type": 3}', '{"text_config": 3}']
)
@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_configs_that_are_none(name: str, content: str) -> None:
    if name == "config.json":
        expert = altered(experts("llava")[0])
        (expert / name).write_text(content)
        told(expert)
        return
    adapter = fresh("adapter")
    shutil.copytree(pair("llava")[0][0], adapter)
    (adapter / name).write_text(content)
    told(plus(checkpoint("llava"), adapter))
