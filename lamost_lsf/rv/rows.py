"""Columns of a batch's table, in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Column, Table

__all__ = ["COLUMNS", "blank_row", "table_of_rows"]

_KMS = u.km / u.s

#: Name, type, unit and description of every column; each row has them all.
COLUMNS: tuple[tuple[str, type, u.UnitBase | None, str], ...] = (
    ("spectrum", int, None, "number of the spectrum in the input, from 0"),
    ("file", str, None, "file that it was read from"),
    ("obsid", str, None, "observation, from the header"),
    ("window", str, None, "name of the window; 'combined' for all of them"),
    ("window_low", float, u.AA, "lower limit, vacuum, in the spectrum's frame"),
    ("window_high", float, u.AA, "upper limit"),
    ("rv", float, _KMS, "radial velocity, positive receding, relativistic, in frame"),
    ("rv_err", float, _KMS, "1-sigma error by the flux errors, continuum marginalised"),
    ("rv_err_scaled", float, _KMS, "the same times the root of the reduced chi-square where that exceeds 1"),
    ("rv_err_ip", float, _KMS, "1-sigma error by the uncertainty of the LSF; NaN where its model has none"),
    ("rv_err_wave", float, _KMS, "1-sigma error by the uncertainty of the wavelength scale; NaN where not known"),
    ("rv_err_total", float, _KMS, "rv_err_scaled, rv_err_ip and rv_err_wave in quadrature, as far as they are known"),
    ("chi2", float, None, "chi-square of the best fit; of the windows about their mean in a combined row"),
    ("dof", int, None, "its degrees of freedom"),
    ("flags", int, None, "RVFlag; 0 is good"),
    ("reasons", str, None, "names of the flags"),
    ("message", str, None, "why there is no velocity, in words"),
    ("template_index", int, None, "number of the best template, from 0; -1 for none"),
    ("template", str, None, "its name"),
    ("runner_up", str, None, "next best template"),
    ("runner_up_delta_chi2", float, None, "how much larger its chi-square is"),
    ("second_rv", float, _KMS, "next minimum of the search with the best template, to some km/s"),
    ("second_delta_chi2", float, None, "how much higher it is"),
    ("n_pixels", int, None, "pixels fitted"),
    ("n_rejected", int, None, "pixels rejected as cosmic rays"),
    ("snr", float, None, "median signal-to-noise ratio of a pixel"),
    ("degree", int, None, "of the continuum"),
    ("n_windows", int, None, "windows that a combined row is made of; 1 otherwise"),
    ("center", str, None, "centre of the profile at lag 0"),
    ("frame", str, None, "frame of the velocity"),
)
_BLANK: dict[type, Any] = {int: 0, float: np.nan, str: ""}


def blank_row() -> dict[str, Any]:
    """A row of nothing."""
    row = {name: _BLANK[kind] for name, kind, _, _ in COLUMNS}
    row["template_index"], row["n_windows"] = -1, 1
    return row


def table_of_rows(rows: Iterable[Mapping[str, Any]], meta: Mapping[str, Any] | None = None) -> Table:
    """Table of rows, with units and descriptions.

    Parameters
    ----------
    rows : iterable of mapping
        From `RVMachine.measure`.
    meta : mapping, optional
        Of the table.

    Examples
    --------
    >>> from lamost_lsf.rv.rows import blank_row, table_of_rows
    >>> table = table_of_rows([blank_row()])
    >>> len(table), table["rv"].unit
    (1, Unit("km / s"))
    """
    rows = list(rows)
    columns = []
    for name, kind, unit, description in COLUMNS:
        values = [row[name] for row in rows]
        data = np.array(values, dtype=np.str_ if kind is str else kind)
        columns.append(Column(data, name=name, unit=unit, description=description))
    return Table(columns, meta=dict(meta or {}))
