"""Functions of a symmetric positive semi-definite matrix, applied to the rows of another one: X q(A).

Gradient descent on a quadratic with the Hessian A is such a function, and so are the filters that replace it. Both are
written as a filter f on the spectrum of A, with the quotient q(lambda) = f(lambda) / lambda.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mergekit_mm.numerics.checks import require
from mergekit_mm.numerics.eigen import Spectrum

Quotient = Callable[[Tensor], Tensor]  # eigenvalues (n,) -> q (n,), or q of the leading ones that are kept
Filter = Literal["exponential", "tikhonov", "none"]
Time = Literal["absolute", "relative"]

_NODES = 128  # number of Chebyshev nodes: twice the highest degree that is ever worth applying
_EIGH_COST = 11.0  # a symmetric eigendecomposition costs this times size^3 flops of a matrix product (measured)
_LANCZOS_STEPS = 12  # enough for an upper bound of the spectrum
_DENSE_UP_TO = 256  # size up to which all eigenvalues cost as little as one
_BANDS_FROM = 2048  # size from which the memory that bands of eigenvectors save is worth their time
# Gap between eigenvalues, relative to the largest one, below which eigenvectors that were computed in separate calls
# are no longer orthogonal. At this gap they are 1e-5 off a right angle.
_TOUCHING = 1e-11
# dtype and device of small tensors whose numbers Python reads one by one; the default device may be a GPU
_SCALARS: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
_FILTERED_TOGETHER = 1024  # rows filtered at once; rows are independent, so scratch space need not grow with the matrix


def heavy_ball_quotient(eigenvalues: Tensor, learning_rate: float, momentum: float, iterations: int) -> Tensor:
    """q(lambda) = (1 - e_T(lambda)) / lambda of T heavy-ball steps, in float64 and without the division.

    With gradient g = 2 (lambda x - b), torch.optim.SGD's steps `v <- mu v + g; x <- x - lr v` from x_0 end at
    x_0 + q(lambda) (b - lambda x_0). e_T is the residual polynomial of the iteration; q obeys a recurrence of its own,
    `s <- mu s + 2 (lambda q - 1); q <- q - lr s`, which stays exact down to lambda = 0.
    """
    lam = eigenvalues.to(torch.float64)
    step = torch.zeros(*lam.shape, 3, 3, dtype=torch.float64, device=lam.device)  # (q, s, 1) -> the next (q, s, 1)
    step[..., 1, 0], step[..., 1, 1], step[..., 1, 2] = 2.0 * lam, momentum, -2.0
    step[..., 0, :] = -learning_rate * step[..., 1, :]
    step[..., 0, 0] += 1.0
    step[..., 2, 2] = 1.0
    return torch.linalg.matrix_power(step, iterations)[..., 0, 2]  # from q = s = 0, by repeated squaring


@dataclass(frozen=True)
class SpectralFilter:
    """f = 1 - exp(-t lambda) with t = exp_time, lambda / (lambda + tikhonov_alpha), or 1.

    A relative time has t / lambda_1 in the place of t and tikhonov_alpha lambda_1 in that of tikhonov_alpha, with
    lambda_1 the largest eigenvalue: how far the filter goes is then the same for spectra that differ by a factor, as
    those of experts with different effective ranks do.

    Raises:
        ValueError: a constant out of its range, named; also one that this kind of filter does not use.
    """

    kind: Filter
    time: Time
    exp_time: float
    tikhonov_alpha: float

    def __post_init__(self) -> None:
        require(0 < self.exp_time < math.inf, "exp_time", "positive", self.exp_time)
        require(0 < self.tikhonov_alpha < math.inf, "tikhonov_alpha", "positive", self.tikhonov_alpha)

    def quotient(self, eigenvalues: Tensor) -> Tensor:
        """f / lambda (n,) for positive eigenvalues (n,), descending."""
        unit = float(eigenvalues[0]) if self.time == "relative" and len(eigenvalues) else 1.0
        if self.kind == "exponential":
            return -torch.expm1(eigenvalues * (-self.exp_time / unit)) / eigenvalues
        return 1.0 / (eigenvalues + (self.tikhonov_alpha * unit if self.kind == "tikhonov" else 0.0))


def apply_quotient_(coefficients: Tensor, matrix: Tensor, quotient: Quotient) -> Tensor:
    """`coefficients @ q(matrix)`: coefficients (rows, size), matrix (size, size) symmetric positive semi-definite.

    The result has the dtype of the coefficients. A short filter is a low-degree polynomial to rounding accuracy and
    then needs matrix products only; otherwise, or where the polynomial would cost more, the matrix is decomposed. Both
    tensors may be used up.
    """
    rows, size = coefficients.shape
    bound = largest_eigenvalue_bound(matrix)
    if bound == 0.0:
        return coefficients * float(quotient(torch.zeros(1, **_SCALARS)))
    series = _chebyshev_series(quotient, bound, _tolerance(matrix.dtype))
    degree = len(series) - 1
    if degree < _NODES // 2 and 2.0 * degree * rows <= _EIGH_COST * size + 4.0 * rows:
        return torch.cat([_clenshaw(block, matrix, series, bound) for block in coefficients.split(_FILTERED_TOGETHER)])
    # eigenvectors in float32 would not be quite orthonormal
    return filter_by_eigenvectors(coefficients, matrix.to(torch.float64), lambda values: quotient(values.clamp_min(0)))


def filter_by_eigenvectors(coefficients: Tensor, matrix: Tensor, weights_of: Quotient) -> Tensor:
    """`coefficients @ V w V^T` for matrix = V Lambda V^T in float64, which is used up.

    weights_of: maps the eigenvalues, descending, to the weights w of the leading ones; the others have weight 0.

    The eigenvectors of a large matrix are computed in bands and never held as a whole, unless most of its eigenvalues
    coincide.
    """
    spectrum = Spectrum(matrix)
    weights = weights_of(spectrum.values).to(coefficients.dtype)
    most = len(matrix) // 4 if len(matrix) >= _BANDS_FROM else len(matrix)
    filtered = torch.zeros_like(coefficients)
    for start, stop in _bands(spectrum.values, len(weights), most):
        vectors = spectrum.pairs(start, stop)[1].to(coefficients.dtype)
        filtered.addmm_((coefficients @ vectors).mul_(weights[start:stop]), vectors.T)
    return filtered


def _bands(values: Tensor, count: int, most: int) -> Iterator[tuple[int, int]]:
    """Bands (start, stop) of about `most` eigenvalues each that cover the first `count` of all `values`, descending.

    Bands end at wide gaps and never within a cluster, for which a band may be longer than `most`: eigenvectors of close
    eigenvalues are orthogonal only if they are computed together.
    """
    gaps = (values[:-1] - values[1:]).tolist()  # gaps[i - 1] lies before values[i]
    touching = _TOUCHING * float(values.abs().max()) if count else 0.0
    start = 0
    while start < count:
        stop = min(start + most, count)
        if stop < count:
            late = stop - most // 8  # the widest gap from here to the end, or the last gap before
            stop = max(range(start + 1, stop + 1), key=lambda i: (gaps[i - 1] > touching, min(i, late), gaps[i - 1]))
        while stop < count and gaps[stop - 1] <= touching:
            stop += 1
        yield start, stop
        start = stop


def _tolerance(dtype: torch.dtype) -> float:
    """An error below the rounding of matrix products in `dtype`, and above that of the series in float64."""
    return max(torch.finfo(dtype).eps / 8, 1e-12)


def largest_eigenvalue(matrix: Tensor) -> float:
    """The largest eigenvalue of a symmetric positive semi-definite matrix (size, size), to the rounding of its dtype.

    Large matrices go through Lanczos steps, since one eigenvalue does not justify a decomposition. The error of an
    eigenvalue is of second order in the residual of its eigenvector, hence the square root in the tolerance.
    """
    if matrix.shape[0] <= _DENSE_UP_TO:
        return max(0.0, float(torch.linalg.eigvalsh(matrix.to(torch.float64))[-1]))
    return _lanczos(matrix, matrix.shape[0], 0.1 * math.sqrt(torch.finfo(matrix.dtype).eps))[0]


def largest_eigenvalue_bound(matrix: Tensor) -> float:
    """An upper bound of the spectrum of a symmetric positive semi-definite matrix (size, size).

    It is Lanczos' Ritz value plus its residual (Zhou and Li 2011), or the Frobenius norm where that is smaller.
    """
    frobenius = 1.02 * float(torch.linalg.vector_norm(matrix))  # the norm in float32 may fall short by 1%
    if matrix.shape[0] <= _LANCZOS_STEPS or frobenius == 0.0:
        return frobenius
    return min(frobenius, 1.01 * sum(_lanczos(matrix, _LANCZOS_STEPS, 0.0)))


def _lanczos(matrix: Tensor, steps: int, tolerance: float) -> tuple[float, float]:
    """The largest Ritz value, and the norm of the last residual, after `steps` steps of Lanczos.

    They are fewer if the residual of the Ritz value falls below `tolerance` of it.
    """
    start = torch.randn(matrix.shape[0], generator=torch.Generator().manual_seed(0), **_SCALARS)
    vector = (start / start.norm()).to(matrix)
    previous, beta = torch.zeros_like(vector), 0.0
    tridiagonal = torch.zeros(0, 0, **_SCALARS)
    tolerance = max(tolerance, torch.finfo(matrix.dtype).eps)
    while True:
        residual = matrix @ vector - beta * previous
        alpha = float(residual @ vector)
        tridiagonal = torch.block_diag(tridiagonal, torch.tensor([[alpha]], **_SCALARS))
        if beta:
            tridiagonal[-1, -2] = tridiagonal[-2, -1] = beta
        residual = residual - alpha * vector
        beta = float(residual.norm())
        values, vectors = torch.linalg.eigh(tridiagonal)
        value = float(values[-1])
        if len(values) >= steps or beta * abs(float(vectors[-1, -1])) <= tolerance * abs(value):
            return value, beta
        previous, vector = vector, residual / beta


def _chebyshev_series(quotient: Quotient, bound: float, tolerance: float) -> list[float]:
    """Chebyshev coefficients of q on [0, bound], cut where the rest is below `tolerance` of the largest value.

    numpy's `chebinterpolate` builds its cosines by a recurrence, and its coefficients have five times the error.
    """
    angles = (torch.arange(_NODES, **_SCALARS) + 0.5) * (math.pi / _NODES)
    samples = quotient(0.5 * bound * (1.0 + torch.cos(angles)))
    orders = torch.arange(_NODES, **_SCALARS).unsqueeze(1)
    series = (torch.cos(orders * angles) @ samples) * (2.0 / _NODES)
    series[0] *= 0.5
    tail = series.abs().flip(0).cumsum(0).flip(0)
    needed = int((tail > tolerance * samples.abs().max()).sum())
    return [float(c) for c in series[: max(1, needed)]]


def _clenshaw(block: Tensor, matrix: Tensor, series: list[float], bound: float) -> Tensor:
    """`block @ p(matrix)` for the Chebyshev series p on [0, bound], by Clenshaw's recurrence."""
    after, current = torch.zeros_like(block), block * series[-1]
    for order in range(len(series) - 2, -1, -1):
        # The first Chebyshev polynomial of the scaled matrix is 2 matrix / bound - 1. The last step of the recurrence
        # multiplies by it once, the others twice.
        factor = 1.0 if order == 0 else 2.0
        step = torch.addmm(current, current, matrix, beta=-factor, alpha=2.0 * factor / bound)
        after, current = current, step.sub_(after).add_(block, alpha=series[order])
    return current
