"""Other weights for a loaded model, under the names that they have in the whole checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mllm_runs import model, saved

from mergekit_mm.evaluation.model.weights import Weights


def test_a_tensor_changes_and_no_other() -> None:
    lm = model(saved("llava"), dtype="bfloat16")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    new = torch.randn(before[name].shape)
    assert Weights(lm).put(name, new)
    for each, tensor in lm.model.state_dict().items():
        torch.testing.assert_close(tensor, new.bfloat16() if each == name else before[each], rtol=0, atol=0)
    assert not Weights(lm).put("model.gone.weight", new)
    with pytest.raises(ValueError, match="has the shape"):
        Weights(lm).put(name, new[:1])


def test_the_part_that_answers_in_text_has_its_names_in_the_whole_model() -> None:
    """As `mllm` loads a model that speaks: its thinker alone."""
    thinker = torch.nn.Sequential()
    thinker.add_module("layer", torch.nn.Linear(2, 2))
    weights = Weights(SimpleNamespace(model=thinker, is_original_internvl=False))
    assert weights.put("thinker.layer.bias", torch.ones(2))
    assert not weights.put("talker.layer.bias", torch.zeros(2))
    assert thinker.layer.bias.tolist() == [1.0, 1.0]
