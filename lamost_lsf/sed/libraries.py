"""Stellar libraries: one labelled table and flux matrix each, whatever their files look like."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamost_lsf.sed.libraries_base import LABELS, Library, line_medium
from lamost_lsf.sed.libraries_models import read_bosz, read_phoenix, read_redrock
from lamost_lsf.sed.libraries_observed import read_calspec, read_mastar, read_miles, read_ngsl, read_pickles

__all__ = ["LABELS", "LIBRARIES", "Library", "line_medium", "read_library"]

#: Reader of each library: function of a folder, with options of its own.
LIBRARIES: dict[str, Callable[..., Library]] = {
    "bosz": read_bosz,
    "calspec": read_calspec,
    "mastar": read_mastar,
    "miles": read_miles,
    "ngsl": read_ngsl,
    "phoenix": read_phoenix,
    "pickles": read_pickles,
    "redrock": read_redrock,
}


def read_library(name: str, folder: str | os.PathLike, **options: Any) -> Library:
    """Read a stellar library from its files.

    =========  =====================================================  ========================  ===================
    name       files                                                  wavelengths in them       labels
    =========  =====================================================  ========================  ===================
    bosz       MAST, releases 2017 (FITS, ASCII) and 2024 (text)      told from the lines       in the names
    calspec    CALSPEC FITS tables, ``calspec_info.txt``              vacuum                    in the headers
    mastar     ``MaStarHC_*.fits``                                    vacuum                    none
    miles      npz, or ``s????.fits``; ``paramsMILES*.txt``           air                       in the table
    ngsl       ``h_stis_ngsl_*_v2.fits``                              air                       ``labels=``
    phoenix    npz, or ``lte*.fits``                                  vacuum                    in the names
    pickles    ``pickles*.fits``                                      air                       types only
    redrock    ``rrtemplate-STAR-*.fits``: coefficients and basis     vacuum                    classes only
    =========  =====================================================  ========================  ===================

    Parameters
    ----------
    name : str
        One of the above, in any case.
    folder : path
        Where its files are. Nothing is ever downloaded here; see `~lamost_lsf.sed.download.download_library`.
    **options
        Of the reader: ``types`` and ``positive`` for redrock; ``wavelength_range`` for bosz, calspec and ngsl;
        ``medium`` for bosz, ngsl and pickles; ``labels``, a table or file of labels by star, for the observed ones.

    Returns
    -------
    Library
        Vacuum Angstrom, rest frame.

    Raises
    ------
    ValueError
        No such library, or options that its reader does not have.
    FileNotFoundError
        No such folder, or none of the library's files in it.
    FormatError
        Damaged files, or files of another layout.

    Examples
    --------
    >>> stars = read_library("redrock", "templates/redrock", types="AFG", positive=(3050, 10500))    # doctest: +SKIP
    >>> stars                                                                                        # doctest: +SKIP
    <Library 'redrock': 3577 stars, 80001 pixels, 3000.0-11000.0 A>
    """
    reader = LIBRARIES.get(str(name).lower())
    if reader is None:
        raise ValueError(f"no library {name!r}; choose from {', '.join(LIBRARIES)}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    known = reader.__kwdefaults__ or {}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"library {name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}"
        )
    return reader(Path(folder), **options)
