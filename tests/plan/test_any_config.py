"""Configs of any form: a plan or one clear error, soon, and never a traceback. `make soak` tries ten thousand."""

from __future__ import annotations

import copy
import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from end_to_end import checkpoint, experts, plugin, with_method, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft_adapters import pair, plus

COUNT = os.environ.get("MERGEKIT_MM_CONFIGS")
SECONDS, BYTES = 20.0, 10**9  # of CPU for one config, and of more memory for all: far above what any takes

KEYS = [
    *("merge_method", "base_model", "models", "model", "parameters", "dtype", "out_dtype", "tokenizer", "slices"),
    *(
        "tokenizer_source",
        "chat_template",
        "modules",
        "sources",
        "layer_range",
        "weight",
        "density",
        "scaling",
        "preset",
    ),
    *("language_model", "vision_tower", "embeddings", "norms", "normalize", "own_delta", "space", "svc", "iterations"),
    *("filter", "value", "omni", "lora", "path", "revision", "source", "tokens", "pad_to_multiple_of", "adapter_base"),
    *("ignore", "processor_source", "unknown", "", "*", "rank_fraction", "t", "select_topk", "lambda", "epsilon"),
]
WORDS = [
    "base",
    "union",
    "merge",
    "average",
    "auto",
    "float16",
    "bfloat16",
    "float8",
    "linear",
    "ties",
    "optmerge",
    "full",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 0.0, 0.5, 1.0, math.inf, -math.inf, math.nan, 1e308, 1e-320]),
    st.sampled_from([*WORDS, *KEYS, "a/b", "a+b", "/", ".", "..", "~", "x" * 300, "[0, 1]", "1_000", "0x10", "$HOME"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(KEYS) | st.text("abc", max_size=3), inner, max_size=4),
    ),
    max_leaves=8,
)


def sound_configs() -> list[dict[str, Any]]:
    """Configs that are planned as they are, with most of the keys that there are."""
    base, tuned = checkpoint("llava"), experts("llava")[:2]
    adapters = [plus(base, adapter) for adapter, _ in pair("llava")]
    filters = [{"filter": "self_attn", "value": 0.3}, {"value": [0.5, 1]}]
    return [
        with_method("optmerge", base, tuned, parameters={"preset": "full", "scaling": filters, "norms": "average"}),
        with_method("optmerge", base, adapters, parameters={"svc": True}, out_dtype="bfloat16"),
        with_method("ties", base, tuned, tokenizer={"source": "base", "pad_to_multiple_of": 8}),
        with_method("linear", base, tuned, chat_template="chatml", dtype="bfloat16"),
        {
            "merge_method": "passthrough",
            "dtype": "float32",
            "slices": [
                {"sources": [{"model": str(base), "layer_range": [0, 1]}]},
                {"sources": [{"model": str(base), "layer_range": [0, 2]}]},
            ],
        },
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value within a value."""
    if isinstance(value, dict):
        return [path, *(place for key, inner in value.items() for place in places(inner, (*path, key)))]
    if isinstance(value, list):
        return [path, *(place for index, inner in enumerate(value) for place in places(inner, (*path, index)))]
    return [path]


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """A sound config with some values exchanged, removed, added or repeated; now and then anything at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(values)
    config: Any = copy.deepcopy(draw(st.sampled_from(sound_configs())))
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from(places(config)[1:] or [("models",)]))
        holder = config
        for key in way:
            holder = holder[key]
        how = draw(st.sampled_from(["exchange", "exchange", "remove", "add", "repeat"]))
        if how == "exchange":
            holder[last] = draw(values)
        elif how == "remove":
            del holder[last]
        elif how == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(KEYS))] = draw(values)
    return config


@settings(
    max_examples=int(COUNT or 25),
    derandomize=COUNT is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(configs())
def test_a_plan_or_one_error(config: Any) -> None:
    expect_a_plan_or_one_error(yaml.safe_dump(config, allow_unicode=True))


def expect_a_plan_or_one_error(text: str) -> str:
    """What `mergekit-mm check` says of a config."""
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = plugin("check", written(text))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(text) from result.exception
    assert result.exit_code in (0, 1), text
    assert result.exit_code == 0 or result.output.startswith("Error: "), (text, result.output)
    assert time.process_time() - start < SECONDS, text
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < BYTES, text
    return result.output


def test_an_unknown_key_within_the_value_of_a_parameter() -> None:
    scaling = [{"filter": "self_attn", "value": 0.3, "other": None}, {"value": 1}]
    config = with_method("optmerge", checkpoint("llava"), experts("llava")[:2], parameters={"scaling": scaling})
    assert "Unknown key 'other' of parameters.scaling.0" in expect_a_plan_or_one_error(yaml.safe_dump(config))


# Each line is nine of the line before: a few hundred bytes that stand for 9^9 words.
LAUGHS = "\n".join(["a0: &a0 [lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00",
        "merge_method: !!python/object/apply:os.system ['touch x']",
        "[" * 100_000,
        "{a: " * 5_000,
        "merge_method: 2001-99-99",
        "? [1, 2]\n: 3",
        "merge_method: linear\nmodels: " + "9" * 10_000,
        f"{LAUGHS}\nmerge_method: linear\nmodels: *a9",
        f"{LAUGHS}\nmerge_method: linear\nmodels: [{{model: a}}]\nparameters: {{weight: *a9}}",
        "a: &a [*a]\nmerge_method: linear\nmodels: *a",
        "merge_method: linear\n" * 20_000,
    ],
    ids=lambda text: text[:12],
)
def test_texts_that_are_made_to_harm(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expect_a_plan_or_one_error(text).startswith("Error: ")
    assert not list(tmp_path.iterdir())
