"""Small tables as plain JSON: no pickles, and every float comes back bit by bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from astropy.table import MaskedColumn, Table
from astropy.time import Time

__all__ = ["concatenate_tables", "decode_table", "encode_table", "table_schema"]

_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float", "U": "str"}
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _encode_float(value: float) -> float | str:
    # JSON has no NaN; Python's repr of a finite float is exact
    return value if math.isfinite(value) else str(value)


def _decode_float(value: float | int | str) -> float:
    return _NOT_FINITE[value] if isinstance(value, str) else float(value)


def encode_table(table: Table) -> list[dict[str, Any]]:
    """Columns of a table as JSON values.

    Raises
    ------
    TypeError
        A column that is neither `~astropy.time.Time` nor one-dimensional bool, int, float or str (objects, for
        instance).
    ValueError
        A masked time.
    """
    encoded = []
    for name in table.colnames:
        column = table[name]
        if isinstance(column, Time):
            if column.ndim != 1:
                raise TypeError(f"column {name!r} has shape {column.shape}; one value a row is needed")
            if column.masked and np.any(column.mask):
                raise ValueError(f"column {name!r} has masked times")
            pairs = np.stack([np.asarray(column.jd1), np.asarray(column.jd2)], axis=1).tolist()
            encoded.append({"name": name, "kind": "time", "scale": column.scale, "values": pairs})
            continue
        array = np.ma.asarray(getattr(column, "value", column))
        unit = getattr(column, "unit", None)
        kind = _KINDS.get(array.dtype.kind)
        if kind is None or array.ndim != 1:
            raise TypeError(
                f"column {name!r} has dtype {array.dtype} and shape {array.shape}; "
                "a store takes Time, bool, int, float and str columns, one value a row"
            )
        values = array.tolist()  # Python values; None where masked
        if kind == "float":
            values = [None if v is None else _encode_float(v) for v in values]
        encoded.append({"name": name, "kind": kind, "unit": None if unit is None else str(unit), "values": values})
    return encoded


def table_schema(encoded: list[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    """Kind and unit (or time scale) of each column; int and float count as one kind."""
    return {
        c["name"]: ("number" if c["kind"] in ("int", "float") else c["kind"], c.get("unit", c.get("scale")))
        for c in encoded
    }


def concatenate_tables(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One encoded table of the rows of all; columns that a table lacks are masked there."""
    result: dict[str, dict[str, Any]] = {}
    n_rows = 0
    for table in tables:
        rows = len(table[0]["values"]) if table else 0
        for column in table:
            into = result.setdefault(column["name"], {**column, "values": [None] * n_rows})
            if column["kind"] == "float" and into["kind"] == "int":
                into["kind"] = "float"
            into["values"].extend(column["values"])
        n_rows += rows
        for column in result.values():
            column["values"].extend([None] * (n_rows - len(column["values"])))
    return list(result.values())


def decode_table(encoded: list[dict[str, Any]]) -> Table:
    """Table of encoded columns; a column with gaps is masked."""
    table = Table()
    for column in encoded:
        values, kind, name = column["values"], column["kind"], column["name"]
        gaps = np.array([v is None for v in values], dtype=bool)
        if kind == "time":
            pairs = np.array([[np.nan, np.nan] if v is None else v for v in values], dtype=np.float64).reshape(-1, 2)
            table[name] = Time(pairs[:, 0], pairs[:, 1], format="jd", scale=column["scale"])
            table[name].format = "isot"
            continue
        fill: Any = {"bool": False, "int": 0, "float": 0.0, "str": ""}[kind]
        plain = [fill if v is None else v for v in values]
        if kind == "float":
            plain = [_decode_float(v) for v in plain]
        dtype = {"bool": bool, "int": np.int64, "float": np.float64, "str": np.str_}[kind]
        data = np.array(plain, dtype=dtype)
        table[name] = MaskedColumn(data, mask=gaps) if gaps.any() else data
        if column["unit"] is not None:
            table[name].unit = column["unit"]
    return table
