"""Every figure of an analysis against its definition in numpy in float64, on checkpoints; factors against dense."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import checkpoint, experts, task_arithmetic, with_method
from peft_adapters import in_memory, pair, plus
from pretend_device import pretend_devices

from mergekit_mm import api
from mergekit_mm.analysis.as_json import as_json
from mergekit_mm.analysis.groups import Figures
from mergekit_mm.analysis.places import place_of
from mergekit_mm.analysis.result import Analysis
from mergekit_mm.methods import reference
from mergekit_mm.numerics import relations
from mergekit_mm.numerics.relations import ROWS_OF_SIGNS
from mergekit_mm.numerics.task_vector import TaskVector

MOE = "qwen3_vl_moe"
DOWN = "model.language_model.layers.1.mlp.down_proj.weight"  # of llava
Deltas = dict[str, list[np.ndarray]]


@functools.cache
def dense(family: str = "llava") -> Analysis:
    return api.inspect(with_method("optmerge", checkpoint(family), experts(family)[:2]), quiet=True)


@functools.cache
def whole_and_factored() -> tuple[Analysis, Analysis]:
    """Two adapters, and the models that PEFT merges them into."""
    base, adapters = checkpoint("llava"), pair("llava")
    factored = with_method("optmerge", base, [plus(base, adapter) for adapter, _ in adapters])
    merged = with_method("optmerge", base, [whole for _, whole in adapters])
    return api.inspect(merged, quiet=True), api.inspect(factored, quiet=True)


@functools.cache
def deltas(family: str) -> tuple[dict[str, np.ndarray], Deltas]:
    """The base's tensors, and the task vectors of two experts, as transformers loads them, in float64."""
    base, *others = (in_memory(each, family) for each in (checkpoint(family), *experts(family)[:2]))
    values = {name: tensor.numpy() for name, tensor in base.items()}
    return values, {name: [other[name].numpy() - value for other in others] for name, value in values.items()}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / math.sqrt(np.square(one).sum() * np.square(other).sum()))


def named(analysis: Analysis, name: str) -> Figures:
    return next(tensor for tensor in analysis.tensors if tensor.name == name)


def test_norms_drifts_cosines_and_signs_of_a_role() -> None:
    values, found = deltas("llava")
    for role, group in dense().by_role.items():
        names = [tensor.name for tensor in group.tensors]
        base = np.concatenate([values[name].ravel() for name in names])
        one, other = (np.concatenate([found[name][at].ravel() for name in names]) for at in (0, 1))
        norms = [np.linalg.norm(one), np.linalg.norm(other)]
        np.testing.assert_allclose(group.norms, norms, rtol=1e-6, err_msg=role.value)
        np.testing.assert_allclose(group.drift, np.divide(norms, np.linalg.norm(base)), rtol=1e-6)
        assert group.cosine[0, 1] == pytest.approx(cosine(one, other), abs=1e-6)
        few_rows = all(tensor.shape[0] <= ROWS_OF_SIGNS for tensor in group.tensors)
        agreement = (np.sign(one) == np.sign(other)).mean()
        assert group.signs[0, 1] == pytest.approx(agreement, abs=1e-9 if few_rows else 0.01)


def test_all_floating_tensors_are_looked_at_whatever_becomes_of_them() -> None:
    values, _ = deltas("llava")
    assert {tensor.name for tensor in dense().tensors} == set(values)
    assert {tensor.action for tensor in dense().tensors} == {"merge", "keep"}
    assert all(tensor.action == "merge" for tensor in dense().merged.tensors)


def spectrum(delta: np.ndarray, rank: int) -> tuple[float, float, int, float]:
    s = np.linalg.svd(delta, compute_uv=False)
    s = s[s > 1e-5 * s[0]]
    share, squares = s / s.sum(), np.square(s)
    most = int((np.cumsum(squares) / squares.sum() < 0.99).sum()) + 1
    return (
        float(np.exp(-(share * np.log(share)).sum())),
        float(squares.sum() / squares[0]),
        most,
        float(squares[:rank].sum() / squares.sum()),
    )


def common(one: np.ndarray, other: np.ndarray, rank: int) -> tuple[float, float]:
    """What the leading subspaces of outputs and of inputs share."""
    (u, _, vh), (w, _, zh) = np.linalg.svd(one), np.linalg.svd(other)
    outputs = np.square(u[:, :rank].T @ w[:, :rank]).sum() / rank
    return float(outputs), float(np.square(vh[:rank] @ zh[:rank].T).sum() / rank)


@pytest.mark.parametrize("family", ["llava", MOE])
def test_spectra_and_subspaces_of_matrices_and_of_stacks(family: str) -> None:
    """A stack of matrices, which the experts of a mixture are, has the means over its matrices."""
    _, found = deltas(family)
    seen = [tensor for tensor in dense(family).tensors if tensor.measures.rank is not None]
    assert {len(tensor.shape) for tensor in seen} == ({2, 3} if family == MOE else {2})
    for tensor in seen:
        pairs = [each.reshape(-1, *tensor.shape[-2:]) for each in found[tensor.name]]
        rank = min(tensor.shape[-2:]) // 2
        assert tensor.measures.rank == rank
        for expert, own in enumerate(pairs):
            expected = np.mean([spectrum(matrix, rank) for matrix in own], axis=0)
            of_expert = tensor.spectrum(expert)
            assert of_expert is not None
            got = (of_expert.effective, of_expert.stable, of_expert.most, of_expert.kept)
            np.testing.assert_allclose(got, expected, rtol=1e-5)
        shared = tensor.measures.shared[0, 1]
        expected = np.mean([common(one, other, rank) for one, other in zip(*pairs, strict=True)], axis=0)
        np.testing.assert_allclose((shared.outputs.share, shared.inputs.share), expected, rtol=1e-4)
        chance = (rank / tensor.shape[-2], rank / tensor.shape[-1])
        np.testing.assert_allclose((shared.outputs.chance, shared.inputs.chance), chance)


def test_points_of_a_spectrum_are_singular_values() -> None:
    _, found = deltas("llava")
    s = np.linalg.svd(found[DOWN][0], compute_uv=False)
    own = named(dense(), DOWN).spectrum(0)
    assert own is not None
    assert own.points[0] == (1, 1.0)
    np.testing.assert_allclose(
        [height for _, height in own.points], [s[at - 1] / s[0] for at, _ in own.points], rtol=1e-6
    )


def loss(x: np.ndarray, taus: list[np.ndarray]) -> float:
    return sum(float(np.square((x - tau) @ tau.T).sum() / np.square(tau).sum()) for tau in taus)


def test_losses_are_those_of_what_the_methods_make() -> None:
    _, found = deltas("llava")
    seen = [tensor.name for tensor in dense().tensors if tensor.measures.losses]
    unmerged, left = 0.0, dict.fromkeys(("linear", "task_arithmetic", "tsv", "optmerge"), 0.0)
    for name in seen:
        taus = found[name]
        given = [torch.from_numpy(tau) for tau in taus]
        made = {
            "linear": sum(taus) / len(taus),
            "task_arithmetic": sum(taus),
            "tsv": reference.tsv(given).numpy(),
            "optmerge": reference.optmerge(given, "lora").numpy(),
        }
        unmerged += loss(np.zeros_like(taus[0]), taus)
        for label, x in made.items():
            left[label] += loss(x, taus)
    losses = dense().merged.losses
    assert list(losses) == list(left)
    for label, value in left.items():
        assert losses[label].share_left(1.0) == pytest.approx(value / unmerged, rel=1e-3)


def test_adapters_have_the_figures_of_the_models_that_they_make() -> None:
    whole, factored = whole_and_factored()
    assert [expert.form for expert in whole.experts] == ["full", "full"]
    assert [expert.form for expert in factored.experts] == ["adapter", "adapter"]
    for group in (factored.by_role, whole.by_role):
        assert set(group) == set(whole.by_role)
    for role, group in factored.by_role.items():
        other = whole.by_role[role]
        np.testing.assert_allclose(group.norms, other.norms, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(group.drift, other.drift, rtol=1e-4, atol=1e-7)
    merged = {tensor.name for tensor in factored.merged.tensors}  # what no adapter changes is kept
    names = [tensor.name for tensor in whole.merged.tensors if tensor.name in merged]
    assert sorted(names) == sorted(merged)
    for name in names:
        one, other = named(whole, name).measures, named(factored, name).measures
        np.testing.assert_allclose(one.inner, other.inner, rtol=1e-4, atol=1e-6 * one.inner.max())
        np.testing.assert_allclose(one.equal, other.equal, atol=0.01 * one.changed.max())
        for label, lost in other.losses.items():
            assert one.losses[label].share_left(1.0) == pytest.approx(lost.share_left(1.0), rel=1e-2, abs=1e-3)
        for own, theirs in zip(one.spectra, other.spectra, strict=True):
            if theirs is None:
                continue  # rounding of the base's values in the checkpoint of the other form
            assert own is not None
            assert (own.stable, own.most) == (pytest.approx(theirs.stable, rel=1e-3), theirs.most)


def test_the_deltas_of_adapters_are_not_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the rows whose signs are compared."""
    whole: list[tuple[int, ...]] = []
    form = TaskVector.dense

    def noted(self: TaskVector, dtype: torch.dtype) -> torch.Tensor:
        if self.is_factored and self.shape[0] > 2:
            whole.append(self.shape)
        return form(self, dtype)

    config = with_method(
        "optmerge", checkpoint("llava"), [plus(checkpoint("llava"), each) for each, _ in pair("llava")]
    )
    monkeypatch.setattr(TaskVector, "dense", noted)
    monkeypatch.setattr(relations, "ROWS_OF_SIGNS", 2)
    found = api.inspect(config, quiet=True)
    assert found.has_spectra
    assert found.methods
    assert not whole


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.language_model.layers.7.mlp.up_proj.weight", ("model.language_model.layers", 7, "mlp.up_proj")),
        ("model.layers.0.mlp.experts.3.up_proj.weight", ("model.layers", 0, "mlp.experts.*.up_proj")),
        ("model.layers.0.self_attn.q_proj.bias", ("model.layers", 0, "self_attn.q_proj.bias")),
        ("model.projector.2.weight", ("", None, "model.projector.2")),
        ("lm_head.weight", ("", None, "lm_head")),
    ],
)
def test_places(name: str, place: tuple[str, int | None, str]) -> None:
    assert place_of(name) == place


def test_layers_are_sampled_evenly_and_all_else_is_looked_at() -> None:
    config = task_arithmetic(checkpoint("qwen2_vl"), experts("qwen2_vl")[:2])
    every, one = (api.inspect(config, layers=layers, quiet=True) for layers in (None, 1))
    stacks = {stack: list(layers) for stack, layers in every.by_layer.items()}
    assert {stack: list(layers) for stack, layers in one.by_layer.items()} == {
        stack: [layers[-1] // 2] for stack, layers in stacks.items()
    }
    outside = [tensor.name for tensor in every.tensors if tensor.place.layer is None]
    assert [tensor.name for tensor in one.tensors if tensor.place.layer is None] == outside
    assert one.not_measured == {"layers that were not asked for": len(every.tensors) - len(one.tensors)}


def test_the_same_bytes_come_out_again() -> None:
    config = with_method("optmerge", checkpoint("llava"), experts("llava")[:2])
    again = api.inspect(config, quiet=True)
    assert json.dumps(as_json(again)) == json.dumps(as_json(dense()))
    assert str(again) == str(dense())


def test_donors_of_an_omni_model_are_compared_in_the_language_model() -> None:
    models = Path(__file__).parents[2] / "examples/omni/models"
    found = api.inspect(with_method("optmerge", models / "llm", [models / "image", models / "audio"]), quiet=True)
    assert found.is_omni
    assert {tensor.role.module for tensor in found.tensors} == {"language_model"}
    assert found.not_measured["the base model does not have them"] > 0
    assert 0 < abs(found.merged.cosine[0, 1]) < 1


@pytest.mark.parametrize("kind", ["dense", "adapters"])
def test_figures_are_the_same_on_another_device(kind: str) -> None:
    base = checkpoint("llava")
    models = experts("llava")[:2] if kind == "dense" else [plus(base, adapter) for adapter, _ in pair("llava")]
    config = with_method("optmerge", base, models)
    with pretend_devices() as operations:
        there = api.inspect(config, cuda=True, quiet=True)
    assert operations[torch.device("cuda", 0)] > 100
    here = api.inspect(config, quiet=True)
    for one, other in zip(there.tensors, here.tensors, strict=True):
        np.testing.assert_allclose(one.measures.inner, other.measures.inner, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(there.merged.mean_of_spectra("effective"), here.merged.mean_of_spectra("effective"))
    for label, found in here.merged.losses.items():
        assert there.merged.losses[label].share_left(1.0) == pytest.approx(found.share_left(1.0), rel=1e-5)
