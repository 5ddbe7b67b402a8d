"""Eigenpairs by LAPACK's steps: of any part of the spectrum, in both precisions, on spectra that defeat its drivers."""

from __future__ import annotations

import pytest
import torch
from random_deltas import randn
from torch import Tensor

from mergekit_mm.numerics import filters
from mergekit_mm.numerics.eigen import Spectrum, eigenpairs_

SIZES = [1, 2, 50, 300]
KINDS = ["flat", "steep", "low rank", "few values", "one value", "zero", "both signs", "wilkinson"]


def spectra(kind: str, size: int) -> Tensor:
    """A symmetric matrix (size, size) in float64."""
    falling = torch.arange(1, size + 1, dtype=torch.float64)
    values = {
        "flat": falling**-0.3,
        "steep": 2.0**-falling,
        "low rank": torch.where(falling <= size // 5 + 1, falling, 0.0),
        "few values": (falling / size * 4.5).ceil(),
        "one value": torch.full((size,), 3.0, dtype=torch.float64),
        "zero": torch.zeros(size, dtype=torch.float64),
        "both signs": falling - size / 2,
    }
    if kind == "wilkinson":  # pairs of eigenvalues that agree to the last digit
        away = (falling - (size + 1) / 2).abs()
        return away.diag() + torch.ones(size - 1).double().diag(1) + torch.ones(size - 1).double().diag(-1)
    q = torch.linalg.qr(randn(size, size).double()).Q
    matrix = (q * values[kind]) @ q.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("failing", [False, True], ids=["", "stemr fails"])
def test_any_part_of_the_spectrum(
    kind: str, size: int, dtype: torch.dtype, failing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if failing:
        monkeypatch.setattr(Spectrum, "_by_representations", lambda *_: None)
    matrix = spectra(kind, size)
    truth = torch.linalg.eigvalsh(matrix).flip(0)
    rounding = 1e-5 if dtype == torch.float32 else 1e-11
    scale = max(1e-9, float(truth.abs().max()))
    spectrum = Spectrum(matrix.to(dtype, copy=True))
    assert float((spectrum.values.double() - truth).abs().max()) < rounding * scale
    for start, stop in {(0, size), (0, -(-size // 5)), (size // 2, size // 2 + 1), (size // 3, size), (0, 0)}:
        values, vectors = (part.double() for part in spectrum.pairs(start, stop))
        assert vectors.shape == (size, stop - start)
        assert torch.allclose(values, truth[start:stop], rtol=0, atol=rounding * scale)
        assert torch.allclose(vectors.T @ vectors, torch.eye(stop - start).double(), rtol=0, atol=rounding)
        assert torch.allclose(matrix @ vectors, vectors * values, rtol=0, atol=rounding * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_a_filter_by_bands(kind: str, kept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is applied to large matrices: a band that ended within a cluster would count some of it twice."""
    monkeypatch.setattr(filters, "_BANDS_FROM", 300)
    matrix, coefficients = spectra(kind, 300), randn(4, 300).double()
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(matrix))
    count = next(i for i in range(int(kept * 300), 301) if i in (0, 300) or values[i - 1] - values[i] > 1e-9)

    def weights(eigenvalues: Tensor) -> Tensor:
        return torch.sigmoid(eigenvalues[:count])

    expected = (coefficients @ vectors[:, :count] * weights(values)) @ vectors[:, :count].T
    filtered = filters.filter_by_eigenvectors(coefficients, matrix, weights)
    assert torch.allclose(filtered, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [0, *SIZES])
def test_eigenvectors_take_the_place_of_the_matrix(size: int) -> None:
    matrix = spectra("flat", size) if size else torch.zeros(0, 0, dtype=torch.float64)
    given = matrix.clone()
    values, vectors = eigenpairs_(given)
    assert vectors.data_ptr() == given.data_ptr()
    assert torch.allclose((vectors * values) @ vectors.T, matrix, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_number_is_an_error(dtype: torch.dtype) -> None:
    matrix = spectra("flat", 50).to(dtype)
    matrix[3, 4] = matrix[4, 3] = torch.nan
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        Spectrum(matrix).pairs(0, 50)


@pytest.mark.parametrize("matrix", [torch.eye(8)[::2, ::2], torch.eye(8).half(), torch.eye(8).bfloat16()])
def test_a_matrix_that_lapack_cannot_take_in_place_is_refused(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match="takes contiguous float32 or float64"):
        Spectrum(matrix)
