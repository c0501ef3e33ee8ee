"""Arithmetic of INCRBYFLOAT: numbers with a 64-bit mantissa, printed with 17 decimals at most, as Redis has it on x86-64."""

from __future__ import annotations

import re
from fractions import Fraction

MANTISSA_BITS = 64
DECIMALS = 17
MAX_DIGITS = 4000
MAX_EXPONENT = 4000
"""Largest power of ten; Redis goes on to 4932, Python's conversions to text end at 4300 digits."""
_INFINITY = re.compile(rb"[+-]?inf(inity)?", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"([+-]?)0x([\da-f]+\.?[\da-f]*|\.[\da-f]+)(?:p([+-]?\d{1,5}))?", re.IGNORECASE)
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d{1,5}))?")


def parse(raw: bytes | bytearray) -> Fraction | None:
    """The number in `raw`, or None if it is none (infinity included)."""
    if len(raw) > MAX_DIGITS:
        return None
    if (match := _HEXADECIMAL.fullmatch(raw)) is not None:
        sign, digits, exponent = match.groups(b"0")
        if abs(int(exponent)) > MAX_EXPONENT:
            return None
        whole, _, behind = digits.partition(b".")
        value = Fraction(int(sign + whole + behind, 16)) * Fraction(2) ** (int(exponent) - 4 * len(behind))
    elif (match := _NUMBER.fullmatch(raw)) is not None and abs(int(match[1] or 0)) <= MAX_EXPONENT:
        value = Fraction(raw.decode())
    else:
        return None
    return _rounded(value) if abs(value) < 10**MAX_EXPONENT else None


def infinite(raw: bytes | bytearray) -> bool:
    """Whether `raw` says infinity."""
    return _INFINITY.fullmatch(raw) is not None


def add(a: Fraction, b: Fraction) -> Fraction:
    """Their sum, rounded as the machine would."""
    return _rounded(a + b)


def show(value: Fraction) -> bytes:
    """In digits, without trailing zeros."""
    scaled = round(abs(value) * 10**DECIMALS)
    whole, decimals = divmod(scaled, 10**DECIMALS)
    text = f"{whole}.{decimals:0{DECIMALS}d}".rstrip("0").rstrip(".")
    return (f"-{text}" if value < 0 and scaled else text).encode()


def _rounded(value: Fraction) -> Fraction:
    """The nearest number with a mantissa of MANTISSA_BITS; ties to even."""
    if not value:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length() - MANTISSA_BITS
    while abs(value) >= Fraction(2) ** (exponent + MANTISSA_BITS):
        exponent += 1
    return round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent
