"""A column enters in whichever type a release or a rewriting tool gave it, numbers or text of one type leave (spec section 7)."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdlib.errors import DataError


def integers(table: pa.Table, name: str, absent: int | None = None) -> NDArray[np.int64]:
    """Return a column of whole numbers, stored as integers of any width or, after a detour through pandas, as reals.

    Args:
        table: Holds the column.
        name: Its name.
        absent: What a null means; None if there must be none.

    Raises:
        DataError: If the column holds no numbers, fractions, or a null that means nothing.
    """
    column = _numbers(table, name)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if column.null_count and absent is None:
        raise DataError(f"column '{name}' is empty in {column.null_count} of {len(column)} rows; download the file again")
    try:
        whole = column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(f"column '{name}' holds a number that is not whole or not an int64 ({error})") from error
    numbers: NDArray[np.int64] = (whole if absent is None else pc.fill_null(whole, absent)).to_numpy()
    return numbers


def reals(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column of real numbers; a null becomes NaN.

    Raises:
        DataError: If the column holds no numbers.
    """
    numbers: NDArray[np.float64] = _numbers(table, name).cast(pa.float64(), safe=False).to_numpy()
    return numbers


def texts(table: pa.Table, name: str) -> list[str]:
    """Return a column of text.

    Raises:
        DataError: If the column holds something else, a null, or bytes that are no text.
    """
    column = table.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"column '{name}' is of type {kind}, expected text; {_REMEDY}")
    if column.null_count:
        raise DataError(f"column '{name}' is empty in {column.null_count} of {len(column)} rows; download the file again")
    try:
        found: list[str] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"column '{name}' holds bytes that are no text; download the file again") from error
    return found


def lists(table: pa.Table, name: str) -> list[list[float] | None]:
    """Return a column of short lists of numbers; a list may be null, an element that is null becomes NaN.

    Raises:
        DataError: If the column holds something else.
    """
    check_lists(table.schema, name)
    rows = table.column(name).to_pylist()
    return [row and [math.nan if value is None else value for value in row] for row in rows]


def check_lists(schema: pa.Schema, name: str) -> None:
    """Check that a column holds lists of numbers: of any width, any or one length, any name of the elements.

    Raises:
        DataError: If it does not.
    """
    kind = schema.field(name).type
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not nested or not _is_number(kind.value_type):
        raise DataError(f"column '{name}' is of type {kind}, expected lists of numbers; {_REMEDY}")


_REMEDY = "it is of another component or release, or was rewritten: download the file again"


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind)) and kind != pa.float16()  # of which Arrow casts nothing


def _numbers(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):  # what a writer without a schema makes of a column without values
        column = column.cast(pa.int64())
    if not _is_number(column.type):
        raise DataError(f"column '{name}' is of type {column.type}, expected numbers; {_REMEDY}")
    return column
