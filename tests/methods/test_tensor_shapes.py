"""Every merge method on tensors of odd shapes: scalars, rows of one value, stacks, empty ones, integers, in each dtype.

Checkpoints with modelling code of their own may hold any of them; so do the families of transformers, one by
one: gates, class tokens, scales of layers, convolutions.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end import Tensors, assert_close, fresh, merge, mergekit_yaml, plugin, refused, tensors, written
from mergekit.merge_methods import registered_methods
from safetensors.torch import save_file

from mergekit_mm.methods import catalogue

SHAPES = [
    (),
    (1,),
    (3,),
    (3, 1),
    (1, 3),
    (1, 1),
    (4, 5),
    (3, 2, 2),
    (3, 1, 4),
    (2, 3, 1, 1),
    (2, 2, 1, 2, 2),
    (0,),
    (0, 4),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WEIGHT = 0.5
# how many experts a method takes beside the base; 0 for a method without a base
EXPERTS = {"passthrough": 0, "linear": 0, "karcher": 0, "slerp": 1, "nearswap": 1, "arcee_fusion": 1}
GIVEN = {"t": 0.3, "density": 0.5, "gamma": 0.1}

mergekit_yaml()  # registers the plugin's methods
FOR_ADAPTERS = {method.name for method in catalogue() if method.needs_factors}
METHODS = sorted({method.spec.name for method in registered_methods()} - FOR_ADAPTERS)


def name_of(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"language_model.model.odd_{'x'.join(map(str, shape)) or 'scalar'}_{str(dtype).removeprefix('torch.')}"


@functools.cache
def model(seed: int) -> Path:
    """The base (0) or a fine-tune of it."""
    found: Tensors = {}
    for index, (shape, dtype) in enumerate((shape, dtype) for shape in SHAPES for dtype in DTYPES):
        start = torch.randn(shape, generator=torch.Generator().manual_seed(index))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + index))
        found[name_of(shape, dtype)] = (start + (0.1 * noise if seed else 0.0)).to(dtype)
    found["language_model.model.counter"] = torch.tensor(7)
    found["language_model.model.mask"] = torch.tensor([True, False])
    found["language_model.model.zeros"] = torch.zeros(4, 1)
    path = fresh(f"odd_{seed}")
    path.mkdir()
    save_file(found, path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "vision_config": {}}
    (path / "config.json").write_text(json.dumps(config))
    return path


def recipe(method: str, base: Path, experts: list[Path], **parameters: Any) -> dict[str, Any]:
    """The method over as many of these models as it takes, with a value for whatever it asks for."""
    spec = next(m.spec for m in registered_methods() if m.spec.name == method)
    given = {name: GIVEN[name] for name in GIVEN if name in {p.name for p in spec.parameters}}
    count = EXPERTS.get(method, len(experts))
    config: dict[str, Any] = {"merge_method": method, "parameters": given | parameters}
    if method not in ("passthrough", "linear", "karcher"):
        config["base_model"] = str(base)
    listed = experts[:count] if count else [base, *experts][: 1 if method == "passthrough" else 3]
    if method in ("slerp", "nearswap", "arcee_fusion"):
        listed = [base, *listed]
    weighs = "weight" in {p.name for p in spec.parameters}
    config["models"] = [{"model": str(m), "parameters": {"weight": WEIGHT} if weighs else {}} for m in listed]
    return config


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_shape(method: str) -> None:
    config = recipe(method, model(0), [model(1), model(2)])
    assert plugin("check", written(config)).exit_code == 0
    got, base = merge(config).tensors, tensors(model(0))
    assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in base.items()}
    assert not [name for name, tensor in got.items() if not tensor.isfinite().all()]
    for name in ("counter", "mask"):
        assert torch.equal(got[f"language_model.model.{name}"], base[f"language_model.model.{name}"])
    if method != "passthrough":
        assert not torch.equal(got[name_of((4, 5), torch.float32)], base[name_of((4, 5), torch.float32)])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_equal_inputs_stay_what_they_are(method: str) -> None:
    """Also where they are frozen parts in 16 bits, or nothing but zeros."""
    got, base = merge(recipe(method, model(0), copies())).tensors, tensors(model(0))
    assert_close({n: t.float() for n, t in got.items()}, {n: t.float() for n, t in base.items()}, 2e-2)


@functools.cache
def copies() -> list[Path]:
    """Models that are the base again, each in a place of its own."""
    made = []
    for index in (1, 2):
        path = fresh(f"twin_{index}")
        path.mkdir()
        for file in model(0).iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        made.append(path)
    return made


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_merges_rows_of_one_value_whole(method: str) -> None:
    """Ranks within a row of one value would divide by zero; longer rows are thinned out."""
    thinned = merge(recipe(method, model(0), [model(1), model(2)])).tensors
    whole = merge(recipe(method, model(0), [model(1), model(2)], density=1.0)).tensors
    single = {name for name, t in whole.items() if t.shape[1:2] == (1,) or t.shape in ((), (1,))}
    assert len(single) > 12
    assert not [name for name in single if not torch.equal(thinned[name], whole[name])]
    assert not torch.equal(thinned[name_of((4, 5), torch.float32)], whole[name_of((4, 5), torch.float32)])


@pytest.mark.parametrize(
    ("method", "parameters", "told"),
    [
        ("della", {"density": 0.5, "epsilon": 0.6}, ["della cannot merge", "Epsilon"]),
        ("linear", {"weight": 0.0}, ["linear", "NaN or Inf"]),
        ("multislerp", {"weight": 0.0}, ["multislerp"]),
    ],
)
def test_what_a_method_would_refuse_in_the_middle_is_refused_before(
    method: str, parameters: dict[str, float], told: list[str]
) -> None:
    config = recipe(method, model(0), [model(1), model(2)], **parameters)
    for entry in config["models"]:
        entry["parameters"] = {name: value for name, value in entry["parameters"].items() if name not in parameters}
    checked = plugin("check", written(config))
    assert checked.exit_code == 1
    assert not [each for each in told if each not in checked.output], checked.output
    refused(config, *told)
