"""Converts columns of whichever type a release or a rewriting tool gave them to numbers or text of
one type (spec section 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdlib.errors import DataError
from kdlib.types import Float64, Int64

Converters = Mapping[str, Callable[[pa.ChunkedArray], Any]]
"""By the name of a column one of the functions below."""
_REMEDY = "it is of another component or release, or was rewritten: download the file again"


def integers(column: pa.ChunkedArray, absent: int | None = None) -> Int64:
    """Return whole numbers, stored as integers of any width or, after a detour through pandas, as
    reals.

    ``absent`` is what a null means; None if there must be none.

    Raises:
        DataError: If the column holds no numbers, fractions, or a null that means nothing.
    """
    column = _numbers(column)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if absent is None:
        _refuse_nulls(column)
    try:
        whole = column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(f"holds a number that is not whole or not an int64 ({error})") from error
    return (whole if absent is None else pc.fill_null(whole, absent)).to_numpy()


def reals(column: pa.ChunkedArray) -> Float64:
    """Return real numbers; a null becomes NaN.

    Raises:
        DataError: If the column holds no numbers.
    """
    return _numbers(column).cast(pa.float64(), safe=False).to_numpy()


def texts(column: pa.ChunkedArray) -> list[str]:
    """Return text; raises DataError if the column holds something else, a null, or bytes that are
    no text.
    """
    if not is_text(column.type):
        raise DataError(f"is of type {_plain(column.type)}, expected text; {_REMEDY}")
    _refuse_nulls(column)
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError("holds bytes that are no text; download the file again") from error


def lists(column: pa.ChunkedArray) -> list[list[float]]:
    """Return short lists of numbers; a null becomes an empty list, an element that is null NaN.

    Raises:
        DataError: If the column holds something else.
    """
    check_lists(column.type)
    return [
        [math.nan if value is None else value for value in row or ()] for row in column.to_pylist()
    ]


def check_lists(kind: pa.DataType) -> None:
    """Check that a column holds lists of numbers: of any width, any or one length, any name of the
    elements.

    Raises:
        DataError: If it does not.
    """
    nested = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    if not nested or not _is_number(kind.value_type):
        raise DataError(f"is of type {kind}, expected lists of numbers; {_REMEDY}")


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds text, also where a dictionary holds each word once."""
    return pa.types.is_string(_plain(kind)) or pa.types.is_large_string(_plain(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_number(kind: pa.DataType) -> bool:
    # of which Arrow casts nothing
    return (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and kind != pa.float16()


def _refuse_nulls(column: pa.ChunkedArray) -> None:
    if column.null_count:
        raise DataError(
            f"is empty in {column.null_count} of {len(column)} rows; download the file again"
        )


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # what a writer without a schema makes of a column without values
    if pa.types.is_null(column.type):
        column = column.cast(pa.int64())
    if not _is_number(column.type):
        raise DataError(f"is of type {column.type}, expected numbers; {_REMEDY}")
    return column
