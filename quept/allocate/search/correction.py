"""A sensitivity table corrected by whole plans that were measured, so that an allocation can be made again.

Isolated costs S do not add up at low widths, but they are wrong in a pattern: a role (all the down
projections), a stretch of blocks or a width costs more or less in company than alone. So the few factors of
such a pattern are fitted, not a cost per layer:

    log KL(plan) = c + p log sum over units u of S[u, b] exp(f[role of u, b] + f[stretch of u, b] + f[b])

with Gaussian priors, f ~ N(0, PRIOR^2) and p ~ N(0.85, 0.15^2), and the logarithm of a measured KL off by
N(0, noise^2). `fit` finds the most likely f, c and p (Gauss and Newton's method) and how sure they are
(Laplace's approximation); `Posterior.costs` gives the corrected costs, of the mean or of a draw. Allocating
on a draw tries what the measurements leave open, and no more (Thompson sampling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..solve.constraints import Unit

STRETCHES = 6  # stretches of neighbouring blocks, about equally long, that have factors of their own
PRIOR = 0.3  # of a factor's logarithm
POWER, POWER_SPREAD = 0.85, 0.15
STEPS, STRIDE = 8, 0.5  # Gauss-Newton steps, and how far one may move a parameter
LEAST = 1e-12  # where a zero stands on a logarithmic scale


def design(
    units: Sequence[Unit], roles: Mapping[str, str], blocks: Mapping[str, int], weights: Mapping[str, int]
) -> np.ndarray:
    """Which factors take part in the cost of each option: (options of all units in order, factors). A unit
    of several layers has theirs in proportion to their weights. roles, blocks, weights: of each layer by
    name."""
    columns: dict[tuple, int] = {}
    rows = []
    longest = 1 + max(blocks.values(), default=0)
    for unit in units:
        whole = sum(weights[name] for name in unit.layers)
        for bits in unit.bits:
            row: dict[int, float] = {}
            shares = {("embeddings", bits): 1.0} if not unit.layers else {("width", bits): 1.0}
            for name in unit.layers:
                for kind in (("role", roles[name]), ("stretch", blocks[name] * STRETCHES // longest)):
                    shares[*kind, bits] = shares.get((*kind, bits), 0.0) + weights[name] / whole
            for key, share in shares.items():
                row[columns.setdefault(key, len(columns))] = share
            rows.append(row)
    matrix = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        matrix[i, list(row)] = list(row.values())
    return matrix


@dataclass(frozen=True)
class Posterior:
    """base (options): the table's costs. factors (options, n): the design. mean (n + 2): log factors, then c
    and p; root: Cholesky factor of their precision. misfit: root mean square error of log KL at the mean."""

    base: np.ndarray
    factors: np.ndarray
    mean: np.ndarray
    root: np.ndarray
    misfit: float

    def costs(self, spread: float = 0.0, rng: np.random.Generator | None = None) -> np.ndarray:
        """Corrected costs (options): the most likely ones, or a draw `spread` times as wide as the
        posterior."""
        parameters = self.mean
        if spread:
            parameters = parameters + spread * np.linalg.solve(
                self.root.T, rng.standard_normal(len(self.mean))
            )
        return self.base * np.exp(self.factors @ parameters[:-2])


def fit(
    base: np.ndarray, factors: np.ndarray, picks: np.ndarray, log_kl: np.ndarray, noise: np.ndarray
) -> Posterior:
    """picks (plans, units): the option of each unit in each measured plan; log_kl, noise (plans)."""
    n = factors.shape[1]
    spread = np.concatenate([np.full(n, PRIOR), [10.0, POWER_SPREAD]])
    centre = np.zeros(n + 2)
    centre[-1] = POWER
    at, plans = centre.copy(), np.arange(len(picks))[:, None]
    shares = np.zeros((len(picks), len(base)))
    for step in range(STEPS + 1):
        terms = (base * np.exp(factors @ at[:n]))[picks]
        total = np.maximum(terms.sum(1), LEAST)
        log_total = np.log(total)
        off = log_kl - at[-2] - at[-1] * log_total
        shares[plans, picks] = terms / total[:, None]
        slope = np.column_stack([at[-1] * (shares @ factors), np.ones(len(picks)), log_total])
        weighted = slope / noise[:, None] ** 2
        precision = slope.T @ weighted + np.diag(spread**-2)
        if step == STEPS:
            break
        move = np.linalg.solve(precision, weighted.T @ off + (centre - at) / spread**2)
        at = at + np.clip(move, -STRIDE, STRIDE)
    misfit = float(np.sqrt(np.mean(off**2))) if len(off) else 0.0
    return Posterior(base, factors, at, np.linalg.cholesky(precision), misfit)
