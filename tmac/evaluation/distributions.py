"""Student's t distribution, from the standard library alone."""

from __future__ import annotations

import math

STEPS = 10_000
TINY = 1e-300


def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with `freedom` degrees of freedom stays below with `probability`.

    Found by bisection on `t_upper_tail`; good to 1e-8 of its value, for a million degrees of freedom too.

    Raises:
        ValueError: the probability is not between 0 and 1, or there is no degree of freedom.
    """
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(
            f"[t_quantile] expected a probability between 0 and 1 and at least one degree of freedom, found "
            f"{probability} and {freedom}"
        )
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    tail = 1 - probability
    low, high = 0.0, 1.0
    while t_upper_tail(high, freedom) > tail:
        low, high = high, 2 * high
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle
        low, high = (middle, high) if t_upper_tail(middle, freedom) > tail else (low, middle)


def t_upper_tail(value: float, freedom: int) -> float:
    """The probability that Student's t with `freedom` degrees of freedom is above `value`, which is at least 0.

    I_x(freedom / 2, 1 / 2) / 2 with x = freedom / (freedom + value^2) (Abramowitz and Stegun 26.7.1, 26.5.2).
    """
    return 0.5 * incomplete_beta(freedom / 2, 0.5, freedom / (freedom + value * value))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), 0 <= x <= 1, a and b positive.

    The continued fraction 8.17.22 of the NIST Digital Library of Mathematical Functions by the method of Lentz; on the
    side of the mean where it converges slowly, through I_x(a, b) = 1 - I_{1-x}(b, a).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    return front / _continued_fraction(a, b, x)


def _continued_fraction(a: float, b: float, x: float) -> float:
    """1 + d1 x / (1 + d2 x / (1 + ...))."""
    value, upper, lower = 1.0, 1.0, 0.0
    for step in range(1, STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / ((1 + term * lower) or TINY)
        upper = (1 + term / upper) or TINY
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            return value
    raise ArithmeticError(f"[incomplete_beta] no convergence for a={a}, b={b}, x={x}")
