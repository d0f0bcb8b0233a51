"""Interstellar dust before stars: the extinction curve, and libraries without it."""

from __future__ import annotations

from typing import Any

import astropy.units as u
import numpy as np

from lamost_lsf.sed.libraries_base import Library

__all__ = ["deredden", "extinction_curve"]

__doctest_requires__ = {"deredden": ["dust_extinction"]}


def extinction_curve(wavelength: np.ndarray, r_v: float = 3.1) -> np.ndarray:
    """A(wavelength) / E(B-V), by the Milky Way's mean curve of Gordon et al. 2023 (`dust_extinction`).

    Parameters
    ----------
    wavelength : ndarray (n,), Angstrom, vacuum
    r_v : float
        A(V) / E(B-V), 2.3 to 5.6.

    Raises
    ------
    ImportError
        `dust_extinction` is not installed.
    """
    try:
        from dust_extinction.parameter_averages import G23
    except ImportError as error:
        raise ImportError("reddening needs dust_extinction: pip install dust_extinction") from error
    return np.asarray(G23(Rv=r_v)(np.asarray(wavelength) * u.AA)) * r_v


def deredden(library: Library, r_v: float = 3.1) -> Library:
    """Library without the dust before its stars.

    Parameters
    ----------
    library : Library
        With E(B-V), mag, in the column ``ebv``; stars whose E(B-V) is unknown are left out.
    r_v : float
        A(V) / E(B-V).

    Returns
    -------
    Library
        Flux times ``10**(0.4 A(wavelength))``, ``ebv`` 0, ``meta["dereddened"]`` True.

    Raises
    ------
    ValueError
        A library that says it is dereddened, or no star with a known E(B-V).
    ImportError
        `dust_extinction` is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table
    >>> from lamost_lsf.sed import Library, deredden
    >>> stars = Table({"name": ["a", "b"], "ebv": [0.1, np.nan]})
    >>> library = Library("mine", stars, np.array([4400.0, 5500.0]), np.ones((2, 2)))
    >>> clean = deredden(library)
    >>> clean.table["name"].tolist(), clean.flux.round(1).tolist()
    (['a'], [[1.5, 1.3]])
    """
    if library.meta.get("dereddened"):
        raise ValueError(f"library {library.name} is dereddened already")
    ebv = np.asarray(library.table["ebv"], dtype=np.float64)
    known = np.isfinite(ebv)
    if not known.any():
        raise ValueError(f"no star of library {library.name} has an E(B-V)")
    stars = library[known]
    factor = 10.0 ** (0.4 * ebv[known, None] * extinction_curve(library.wavelength, r_v))
    changes: dict[str, Any] = {"meta": {**library.meta, "dereddened": True}, "table": stars.table.copy()}
    changes["table"]["ebv"] = 0.0 * stars.table["ebv"]
    # every star has its own dust: no common basis is left
    return stars._replace(flux=stars.flux * factor, coefficients=None, basis=None, **changes)
