"""Kullback-Leibler divergence of logits, row by row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from tmac.threads import get_num_threads

Rows = NDArray[np.float32]
CHUNK_BYTES = 1 << 18  # of logits: what is made of them stays in a core's cache


def row_divergence(reference: Rows, logits: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """KL(p || q) of every row in nats, f64 `[rows]`, and whether both rows are largest at the same token.

    With p and q the softmax of `reference` and `logits`, f32 `[rows, vocab]`, and d = reference - logits,
        KL = sum_i p_i d_i - log sum_i exp(reference_i) + log sum_i exp(logits_i).
    Exponentials are float32 of logits less the row's largest, and sums are pairwise, so that the error is some
    2^-22 of the logits' range. Tokens of no probability under p add nothing; the divergence is infinite where q forbids
    a token that p does not.

    Raises:
        ValueError: the shapes differ, or there is a NaN, or a row without a finite logit.
    """
    if reference.shape != logits.shape or reference.ndim != 2:
        raise ValueError(
            f"[divergence] expected logits [rows, vocab] twice, found {list(reference.shape)} and {list(logits.shape)}"
        )
    rows, vocab = reference.shape
    step = max(1, CHUNK_BYTES // (4 * max(vocab, 1)))
    starts = range(0, rows, step)
    with ThreadPoolExecutor(get_num_threads()) as pool:
        parts = list(pool.map(lambda at: _chunk(reference[at : at + step], logits[at : at + step]), starts))
    if not parts:
        return np.empty(0, np.float64), np.empty(0, bool)
    kl = np.concatenate([part[0] for part in parts])
    if np.isnan(kl).any():
        raise ValueError(f"[divergence] there is a NaN among the logits of row {int(np.isnan(kl).argmax())}")
    return kl, np.concatenate([part[1] for part in parts])


def _chunk(reference: Rows, logits: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    top, other_top = reference.argmax(1), logits.argmax(1)
    largest, other_largest = _at(reference, top), _at(logits, other_top)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found below
        difference = reference - largest
        weights = np.exp(difference)
        total = weights.sum(1).astype(np.float64)
        shifted = logits - other_largest
        difference -= shifted
        other_total = np.exp(shifted, out=shifted).sum(1).astype(np.float64)
        cross = np.matmul(weights[:, None], difference[:, :, None])[:, 0, 0]
        kl = cross / total - np.log(total) + np.log(other_total)
    for row in np.flatnonzero(~np.isfinite(kl)):
        kl[row] = _careful(reference[row], logits[row])
    return np.maximum(kl, 0.0), top == other_top


def _at(rows: Rows, columns: NDArray[np.intp]) -> Rows:
    return np.take_along_axis(rows, columns[:, None], 1)


def _careful(reference: Rows, logits: Rows) -> float:
    """KL of one row that may hold infinities; NaN where it holds a NaN or nothing finite."""
    wanted, found = _log_softmax(reference), _log_softmax(logits)
    if np.isnan(wanted).any() or np.isnan(found).any():
        return float("nan")
    likely = np.isfinite(wanted)
    return float(np.sum(np.exp(wanted[likely]) * (wanted[likely] - found[likely])))


def _log_softmax(row: Rows) -> NDArray[np.float64]:
    wide = row.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted = wide - wide.max()
        return np.asarray(shifted - np.log(np.exp(shifted).sum()))
