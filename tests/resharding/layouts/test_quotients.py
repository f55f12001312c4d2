"""The quotient of quantise_kernels' quick way, in exact arithmetic: a GPU's division to the bit, for bfloat16."""

from fractions import Fraction

import numpy as np


def rounded(value: Fraction) -> Fraction:
    """To float32, ties to even; of numbers within its normal range."""
    if value == 0:
        return value
    near = np.float32(float(value))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    gaps = [(abs(Fraction(float(x)) - value), int(x.view(np.uint32)) & 1, Fraction(float(x))) for x in around]
    return min(gaps)[2]


def test_every_quotient_of_bfloat16_numbers_and_scales_is_the_rounded_one() -> None:
    """A scale is a tile's largest magnitude over 448; powers of two change neither rounding, so that 8-bit mantissas of
    one binade for the maximum, and of two for the element, stand for all."""
    for largest in range(128, 256):
        scale = rounded(Fraction(largest, 448))
        inverse = rounded(1 / scale)
        for numerator in (*range(128, largest + 1), *(Fraction(n, 2) for n in range(128, 256))):
            x = Fraction(numerator)
            about = rounded(x * inverse)
            found = rounded(rounded(x - about * scale) * inverse + about)  # two fused multiply-adds
            assert found == rounded(x / scale), (largest, numerator)
