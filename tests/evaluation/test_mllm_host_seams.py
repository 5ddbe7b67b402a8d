"""The private methods of lm-eval that `mllm` overrides are there, with the parameters that they are called with.

When one of these fails, lm-eval has changed: `mergekit_mm/evaluation/model/loading.py` and `mllm.py` are to follow it.
"""

from __future__ import annotations

import inspect

import pytest
import transformers as t
from lm_eval.api.model import CacheHook, hash_args
from lm_eval.models.huggingface import HFLM
from processors import with_processor

from mergekit_mm.evaluation.model.loading import AUTO_CLASSES, MultimodalLoader
from mergekit_mm.evaluation.model.mllm import MLLM

# Overridden method -> the parameters that lm-eval gives it by name and that the override, or what it calls, takes.
METHODS = {
    "_get_config": {"pretrained", "revision", "trust_remote_code", "gguf_file", "subfolder"},
    "_get_backend": {"config", "backend", "trust_remote_code"},
    "_create_tokenizer": {"pretrained", "tokenizer", "revision", "trust_remote_code", "subfolder"},
    "_create_model": {"pretrained", "peft", "dtype", "revision", "trust_remote_code", "subfolder", "gguf_file"},
    "_model_generate": {"context", "max_length", "stop"},
}
PUBLIC = [
    *("max_length", "apply_chat_template", "chat_template", "generate_until", "loglikelihood"),
    *("loglikelihood_rolling", "set_cache_hook", "gather_object", "get_model_info"),
]


@pytest.mark.parametrize("name", METHODS)
def test_overridden_private_methods_are_lm_evals_own(name: str) -> None:
    theirs = inspect.signature(getattr(HFLM, name)).parameters
    ours = inspect.signature(getattr(MLLM, name)).parameters
    assert METHODS[name] <= theirs.keys()
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in ours.values())
    assert takes_all or theirs.keys() <= ours.keys()


def test_they_are_called_while_a_model_is_made() -> None:
    """In the order that the overrides rely on: the config names the auto class and the processor's place."""
    source = inspect.getsource(HFLM.__init__)
    order = [source.index(f"self.{name}(") for name in METHODS if name != "_model_generate"]
    assert order == sorted(order)
    ours = {name for name, value in vars(MultimodalLoader).items() if inspect.isfunction(value) and name[0] == "_"}
    assert ours == METHODS.keys() - {"_model_generate"}


@pytest.mark.parametrize("name", PUBLIC)
def test_overridden_public_names_are_lm_evals_own(name: str) -> None:
    assert hasattr(HFLM, name)


def test_attributes_that_lm_eval_sets() -> None:
    lm = MLLM(str(with_processor("llava")), dtype="float32", device="cpu", max_length=77)
    assert lm.max_length == lm._max_length == 77
    assert isinstance(HFLM._DEFAULT_MAX_LENGTH, int)
    assert lm.model is lm._model
    assert lm.config is lm._config
    assert lm.attn_implementation == "sdpa"


def test_its_response_cache() -> None:
    assert list(inspect.signature(CacheHook.add_partial).parameters) == ["self", "attr", "req", "res"]
    assert list(inspect.signature(hash_args).parameters) == ["attr", "args"]


def test_auto_classes_and_public_mappings_agree() -> None:
    for auto, known in AUTO_CLASSES.items():
        assert getattr(t, auto.__name__) is auto
        assert auto._model_mapping is known
