"""`measure_rvs`: the radial velocities of many spectra as a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import astropy.units as u
from astropy.table import Table
from specutils import Spectrum

from lamost_lsf.lsf import LSF
from lamost_lsf.rv.budget import WavelengthError
from lamost_lsf.rv.machine import CHUNK, RVMachine
from lamost_lsf.rv.prepare import center_name
from lamost_lsf.rv.rows import table_of_rows

__all__ = ["measure_rvs"]


def measure_rvs(
    spectra: Any,
    templates: Spectrum | Sequence[Spectrum],
    lsf: LSF | Any,
    *,
    windows: Any = None,
    center: str | Callable | None = None,
    velocity_range: u.Quantity | tuple[float, float] = (-1000.0, 1000.0),
    continuum: str = "ratio",
    degree: int | None = None,
    cosmic_sigma: float | None = 6.0,
    frame: str | None = None,
    zero_points: Mapping[str, Any] | Callable | None = None,
    window_scatter: u.Quantity | Mapping[str, Any] | Callable | None = None,
    wavelength_error: WavelengthError = None,
    mask: str = "and",
    extension: str | None = None,
    chunk: int = CHUNK,
) -> Table:
    """Radial velocities of many spectra by chi-square, templates seen through each spectrum's own LSF.

    The measurement of `measure_rv`, with all that is common to the spectra made once: templates are convolved with a
    basis of the LSFs, and all trial velocities of many spectra are matrix products with it. The fine step uses each
    spectrum's own LSF (Liu et al. 2026, section 5).

    Parameters
    ----------
    spectra : iterable of path, `~specutils.Spectrum` or `~lamost_lsf.io.LamostArrays`
        Observed, with uncertainties. One alone is a batch of one.
    templates : `~specutils.Spectrum` or sequence of them
        As for `measure_rv`; the one of the least chi-square is chosen in each window.
    lsf : IPArchive, LSF, callable, or sequence of LSF
        An archive finds each spectrum's LSF by its header; a function gets the spectrum's ``meta`` and returns one. An
        LSF holds for all, a sequence has one for each.
    windows : optional
        None: all of each spectrum. "blue", "red", "arms", "segments" (150 A either side of every line of LAMOST's
        arcs), a wavelength (150 A either side), two (vacuum, the spectrum's frame), a list of these, or a mapping that
        names them.
    center, velocity_range, continuum, degree, cosmic_sigma
        As for `measure_rv`.
    frame : {"heliocentric", "barycentric", "topocentric"}, optional
        Frame of the velocities; that of each spectrum's wavelengths by default (LAMOST's products: heliocentric).
    zero_points, window_scatter : mapping or callable, optional
        Of each window, for the row of all windows; see `lamost_lsf.rv.combine.combine_windows`.
    wavelength_error : Quantity or callable, optional
        1-sigma error of the wavelength scale, a length or a velocity, common to a window: one for all, or a function
        of a spectrum's ``meta``; ``meta["wavelength_error"]`` by default. It becomes ``rv_err_wave``.
    mask, extension
        Of files; see `~lamost_lsf.io.read_lamost`.
    chunk : int
        Spectra that are in memory at a time.

    Returns
    -------
    `~astropy.table.Table`
        One row for each spectrum and window in order, and one, named "combined", for all windows of a spectrum where
        there are several. Columns with units and descriptions: velocity, its errors by flux, LSF and wavelength scale,
        chi-square, flags, template and runner-up, second minimum, centre, frame: `lamost_lsf.rv.rows.COLUMNS`. A
        spectrum that cannot be read or measured has NaN, flags (`RVFlag`) and a message.

    Raises
    ------
    TypeError, ValueError
        Bad arguments: templates that do not cover a window at every trial velocity, unknown windows or options, no or
        the wrong number of LSFs. Never for what a single spectrum contains.

    Warns
    -----
    CenterMismatchWarning
        Once for all spectra whose wavelengths were calibrated with another centre than the kernel's.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.time import Time
    >>> import lamost_lsf as ll
    >>> from lamost_lsf.rv import measure_rvs
    >>> from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template
    >>> template, observatory = synthetic_template(6000), Observatory()
    >>> stars = [
    ...     simulate_star(template, observatory, time=Time("2017-01-10T15:00"), fiber=fiber, velocity=v * u.km / u.s)
    ...     for fiber, v in ((31, -40), (77, 110))
    ... ]
    >>> table = measure_rvs([*stars, "missing.fits"], template, observatory, windows=(5000, 5300) * u.AA)
    >>> [bool(abs(row["rv"] - v) < 4 * row["rv_err"]) for row, v in zip(table, (-40, 110))]
    [True, True]
    >>> table["reasons"].tolist()
    ['', '', 'unreadable']
    """
    if isinstance(spectra, str | os.PathLike | Spectrum) or not isinstance(spectra, Iterable):
        spectra = [spectra]
    lsfs: Iterable[Any] | None = None
    if isinstance(lsf, Sequence) and not isinstance(lsf, str):
        lsfs, lsf = list(lsf), None
        spectra = list(spectra)
        if len(lsfs) != len(spectra):
            raise ValueError(f"{len(lsfs)} LSFs for {len(spectra)} spectra")
    elif lsf is None:
        raise TypeError("lsf must be an archive, an LSF, a function of a spectrum's meta, or one LSF for each spectrum")
    if isinstance(chunk, bool) or not int(chunk) == chunk or chunk < 1:
        raise ValueError(f"chunk must be a positive whole number, got {chunk!r}")
    machine = RVMachine(
        templates, lsf, windows=windows, center=center, velocity_range=velocity_range, continuum=continuum,
        degree=degree, cosmic_sigma=cosmic_sigma, frame=frame, zero_points=zero_points, window_scatter=window_scatter,
        wavelength_error=wavelength_error, mask=mask, extension=extension,
    )  # fmt: skip
    rows = [row for part in machine.iterate(spectra, lsfs, chunk=int(chunk)) for row in part]
    from lamost_lsf import __version__

    meta = {
        "version": __version__,
        "center": "" if center is None else center_name(center),
        "continuum": continuum,
        "velocity_range": list(machine.limits),
        "templates": machine.names,
    }
    return table_of_rows(rows, meta)
