"""Merging in exact arithmetic, and values far from zero, on which inexact merging shows."""

from __future__ import annotations

from fractions import Fraction

import oracle
from bncore import Moments

FAR = 1e12  # a mean of 1e13 std: beside it, doubles lie 1e-3 std apart
STD = 0.1


def far_values(rng, size):
    return rng.standard_normal((size, 2)) * STD + FAR


def merged_exactly(pieces: list[Moments], channel: int) -> oracle.ExactMoments:
    """Merge in exact arithmetic, starting from the rounded means."""
    count, mean, m2 = Fraction(0), Fraction(0), Fraction(0)
    for piece in pieces:
        number = Fraction(float(piece.count[channel]))
        if number == 0:
            continue
        delta = Fraction(float(piece.mean[channel])) - mean
        total = count + number
        m2 += Fraction(float(piece.m2[channel])) + delta * delta * count * number / total
        mean += delta * number / total
        count = total
    return oracle.ExactMoments(count, mean, m2)
