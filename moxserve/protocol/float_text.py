"""Floats as JSON text, all numbers of an array at once.

The rule is that of tensorflow_model_server: 6 significant digits (`%.6g` of C) where those read back equal, else 9 for
float32 and 17 for float64; whole numbers end in `.0`; NaN, Infinity and -Infinity stand bare.

Few numbers, and float64, are formatted one by one. Of many float32, each column of characters is computed for all
numbers together: a number has a fixed set of places (sign, leading zeros, digits with a place for the point after each,
exponent), and places that it does not use hold a NUL byte, all of which one call then removes.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

__all__ = ["write_floats"]

# Below, one by one is faster.
_FEW = 256
# How many numbers are worked on at a time, so that what they need stays in the processor's cache.
_PIECE = 8192
# From which power of ten on, and below which: beyond, tables of doubles are no longer exact.
_LOW, _HIGH = -17, 22
_DIGITS = 9
_LEAD, _EXPONENT = 5, 4
_FIRST_DIGIT = 1 + _LEAD
_TAIL = _FIRST_DIGIT + 2 * _DIGITS
_WIDTH = _TAIL + 1 + _EXPONENT


def write_floats(array: np.ndarray) -> list[str]:
    """Write each element along the first dimension: a number, or nested lists of numbers.

    Args:
        array: float32 or float64 of one dimension or more, of which none but the first may be 0.
    """
    if array.size < _FEW or array.dtype != np.float32:
        return _nested(_one_by_one(array.reshape(-1)), array.shape)
    size = array.size // len(array)
    step = max(1, _PIECE // size)
    rows: list[str] = []
    for at in range(0, len(array), step):
        rows += _write_piece(array[at : at + step])
    return rows


def _nested(items: list[str], shape: tuple[int, ...]) -> list[str]:
    for size in reversed(shape[1:]):
        items = ["[" + ", ".join(items[i : i + size]) + "]" for i in range(0, len(items), size)]
    return items


def _one_by_one(flat: np.ndarray) -> list[str]:
    values = flat.tolist()
    # One call of the % operator formats them all in C.
    short = ("%.6g " * len(values) % tuple(values)).split()
    exact = np.array(list(map(float, short)), dtype=flat.dtype) == flat
    if not exact.all():
        places = np.flatnonzero(~exact).tolist()
        digits = "%.9g " if flat.dtype == np.float32 else "%.17g "
        long = digits * len(places) % tuple([values[i] for i in places])
        for i, text in zip(places, long.split(), strict=True):
            short[i] = text
    return [text if "." in text or "e" in text else _whole(text) for text in short]


def _whole(text: str) -> str:
    if text[-1].isdigit():
        return text + ".0"
    return {"inf": "Infinity", "-inf": "-Infinity"}.get(text, "NaN")


# Many


def _write_piece(array: np.ndarray) -> list[str]:
    """Write some rows, by way of a matrix of one row a character, one column a number."""
    depth = array.ndim - 1
    chars = np.zeros((depth + _WIDTH + depth + 2, array.size), np.uint8)
    _fill_numbers(chars[depth : depth + _WIDTH], array.reshape(-1))
    chars[-2], chars[-1] = ord(","), ord(" ")
    size = 1
    for level, length in enumerate(reversed(array.shape[1:])):
        size *= length
        chars[level, ::size] = ord("[")
        chars[depth + _WIDTH + level, size - 1 :: size] = ord("]")
    # Rows are told apart by what no number has.
    chars[-2, size - 1 :: size] = ord("\n")
    chars[-1, size - 1 :: size] = 0
    text = chars.T.tobytes().translate(None, b"\0")
    return text[:-1].decode("ascii").split("\n")


def _fill_numbers(chars: np.ndarray, flat: np.ndarray) -> None:
    """Write numbers into `[_WIDTH, n]` places that are all NUL."""
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(flat).astype(np.float64)
    odd = ~((magnitude >= _POWERS[0]) & (magnitude < _POWERS[-1]) | (magnitude == 0))
    magnitude[odd] = 0
    digits, exponent, short = _decimals(magnitude, odd)
    _fill_digits(chars, digits, exponent, short)
    chars[0] = np.signbit(flat) * np.uint8(ord("-"))
    if odd.any():
        texts = np.array(_one_by_one(flat[odd]), dtype=f"S{_WIDTH}")
        chars[:, odd] = texts.view(np.uint8).reshape(-1, _WIDTH).T


def _decimals(magnitude: np.ndarray, odd: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round to 9 significant digits, or to 6 where those read back equal; set `odd` where that is not sure.

    Args:
        magnitude: float64 of values that a float32 can have, 0 or within reach.
        odd: bool, changed in place.

    Returns:
        The digits as an integer of 9 places, the exponent of ten of the first place, and where 6 are enough.
    """
    exponent = np.searchsorted(_POWERS, magnitude, side="right") - 1
    np.maximum(exponent, 0, out=exponent)
    nine = _scaled(magnitude, exponent, odd)
    six = np.floor((nine + 500) / 1000)
    # The quotient of two exact doubles is what reading the text gives.
    short = (six * _SIX_UP[exponent] / _SIX_DOWN[exponent]).astype(np.float32) == magnitude
    digits = np.where(short, six * 1000, nine).astype(np.int64)
    exponent += _LOW
    carried = digits >= 10**_DIGITS
    digits[carried] //= 10
    exponent[carried] += 1
    zero = magnitude == 0
    exponent[zero] = 0
    return digits, exponent, short


def _scaled(magnitude: np.ndarray, exponent: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """Return values of float32 times the power of ten that gives them 9 places before the point, rounded to integers.

    The power is a sum of two parts of 26 bits, whose products with 24 bits are exact, and of a rest. So the fraction
    is known to 1e-14; where it is a half within that, `odd` is set, since the tie may be none.
    """
    product = magnitude * _NINE_HIGH[exponent]
    whole = np.rint(product)
    fraction = (product - whole) + (magnitude * _NINE_MIDDLE[exponent] + magnitude * _NINE_LOW[exponent])
    more = np.rint(fraction)
    odd |= np.abs(np.abs(fraction - more) - 0.5) < 1e-9
    whole += more
    return whole


def _fill_digits(chars: np.ndarray, digits: np.ndarray, exponent: np.ndarray, short: np.ndarray) -> None:
    groups = (digits // 1_000_000, digits // 1000 % 1000, digits % 1000)
    zeros = _TRAILING[groups[2]]
    zeros += (groups[2] == 0) * (_TRAILING[groups[1]] + (groups[1] == 0) * _TRAILING[groups[0]])
    exponent = exponent.astype(np.int8)
    scientific = (exponent < -4) | (exponent >= np.where(short, np.int8(6), np.int8(_DIGITS)))
    before = np.where(scientific | (exponent < 0), np.int8(1), exponent + np.int8(1))
    used = np.maximum(_DIGITS - zeros, before)
    # After which digit the point is; none where it is among the leading zeros, or has nothing behind it.
    point = np.where(scientific & (used > 1) | (exponent >= 0) & ~scientific, before, np.int8(-1))
    for place in range(_DIGITS):
        row = _FIRST_DIGIT + 2 * place
        np.multiply(_DIGIT[place % 3][groups[place // 3]], used > place, out=chars[row])
        np.multiply(point == place + 1, np.uint8(ord(".")), out=chars[row + 1])
    np.multiply((point == used) & ~scientific, np.uint8(ord("0")), out=chars[_TAIL])
    _fill_leading_zeros(chars, np.where(scientific, np.int8(0), -exponent))
    if scientific.any():
        _fill_exponent(chars[_TAIL + 1 :], exponent, scientific)


def _fill_leading_zeros(chars: np.ndarray, places: np.ndarray) -> None:
    """Write `0.`, `0.0` and so on for numbers below 1; `places` tells where the first digit is, 1 being at once."""
    for row, needed, char in ((1, 1, "0"), (2, 1, "."), (3, 2, "0"), (4, 3, "0"), (5, 4, "0")):
        np.multiply(places >= needed, np.uint8(ord(char)), out=chars[row])


def _fill_exponent(chars: np.ndarray, exponent: np.ndarray, scientific: np.ndarray) -> None:
    size = np.abs(exponent).astype(np.uint8)
    chars[0] = ord("e")
    chars[1] = np.where(exponent < 0, np.uint8(ord("-")), np.uint8(ord("+")))
    chars[2] = size // 10 + ord("0")
    chars[3] = size % 10 + ord("0")
    chars *= scientific


# Tables: by power of ten from _LOW on, and by group of three digits.


def _split_power(power: int) -> tuple[float, float, float]:
    """Split a power of ten into two parts of 26 bits at most, and the rest."""
    rest = Fraction(10) ** power
    parts = []
    for _ in range(2):
        mantissa, binary = math.frexp(float(rest))
        parts.append(math.ldexp(math.trunc(mantissa * 2**26), binary - 26))
        rest -= Fraction(parts[-1])
    return parts[0], parts[1], float(rest)


_EXPONENTS = range(_LOW, _HIGH)
_POWERS = np.array([float(Fraction(10) ** e) for e in (*_EXPONENTS, _HIGH)])
_NINE_HIGH, _NINE_MIDDLE, _NINE_LOW = np.array([_split_power(_DIGITS - 1 - e) for e in _EXPONENTS]).T.copy()
_SIX_UP = np.array([float(10 ** max(0, e - 5)) for e in _EXPONENTS])
_SIX_DOWN = np.array([float(10 ** max(0, 5 - e)) for e in _EXPONENTS])
_DIGIT = np.array([[ord(f"{group:03d}"[place]) for group in range(1000)] for place in range(3)], np.uint8)
_TRAILING = np.array([3 - len(f"{group:03d}".rstrip("0")) for group in range(1000)], np.int8)
