"""`Library`: the spectra of many stars on one wavelength grid, with their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Column, Table
from specutils import Spectrum

from lamost_lsf.units import air_to_vacuum, to_angstrom, vacuum_to_air

__all__ = ["LABELS", "Library", "line_medium"]

#: Labels that every library has a column of (NaN where unknown): K, dex (cgs), dex, mag.
LABELS = ("teff", "logg", "feh", "ebv")
_UNITS = {"teff": u.K, "ebv": u.mag}

#: Stars that are convolved together.
_ROWS = 128


class Library:
    """Spectra of stars on one vacuum wavelength grid, with labels; what `read_library` returns.

    Spectra are held either as a matrix or as ``coefficients @ basis`` (redrock's star bases), in which case products
    that are linear in the flux are done on the few basis vectors.

    Parameters
    ----------
    name : str
        Of the library.
    table : `~astropy.table.Table`
        One row a star, with a column ``name``. Columns ``type`` (spectral type or class, "" if unknown), ``teff`` (K),
        ``logg`` (cgs), ``feh`` (dex) and ``ebv`` (mag) are added where missing, NaN where unknown; others are kept.
    wavelength : ndarray (n_pix,)
        Vacuum Angstrom, increasing; the stars' rest frame.
    flux : ndarray (n_star, n_pix), optional
        Per unit wavelength, in ``meta["flux_unit"]``; NaN where a star has no datum.
    coefficients, basis : ndarray (n_star, n_basis) and (n_basis, n_pix), optional
        In place of ``flux``.
    fwhm : float or ndarray (n_pix,) or (n_star, n_pix), optional
        Full width at half maximum of the spectra's own profile, Angstrom. None where unknown or narrower than a pixel.
    meta : mapping, optional
        Provenance: source, reference, flux unit and the like.

    Raises
    ------
    ValueError
        Shapes that do not fit, wavelengths that do not increase, neither or both of flux and basis.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed.libraries import Library
    >>> from astropy.table import Table
    >>> stars = Table({"name": ["a", "b"], "teff": [5800.0, 7200.0]})
    >>> library = Library("mine", stars, np.arange(4000.0, 5000.0), np.ones((2, 1000)), fwhm=2.5)
    >>> library
    <Library 'mine': 2 stars, 1000 pixels, 4000.0-4999.0 A>
    >>> library.select(teff=(7000, 8000)).table["name"].tolist()
    ['b']
    """

    def __init__(
        self,
        name: str,
        table: Table,
        wavelength: np.ndarray,
        flux: np.ndarray | None = None,
        *,
        coefficients: np.ndarray | None = None,
        basis: np.ndarray | None = None,
        fwhm: float | np.ndarray | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = str(name)
        self.table = _complete(table)
        self.wavelength = np.asarray(wavelength, dtype=np.float64)
        self.meta = dict(meta or {})
        n_pix = self.wavelength.size
        if self.wavelength.ndim != 1 or n_pix < 2 or not np.all(np.isfinite(self.wavelength)):
            raise ValueError(f"library {name}: wavelength must be a finite vector of two or more values")
        if np.any(np.diff(self.wavelength) <= 0) or self.wavelength[0] <= 0:
            raise ValueError(f"library {name}: the wavelengths must be positive and increase")
        if (flux is None) == (basis is None) or (basis is None) != (coefficients is None):
            raise ValueError(f"library {name}: give either flux, or coefficients and basis")
        n = len(self.table)
        self._flux = self._coefficients = self._basis = None
        if flux is not None:
            self._flux = np.asarray(flux)
            if self._flux.shape != (n, n_pix):
                raise ValueError(f"library {name}: flux has shape {self._flux.shape}, expected {(n, n_pix)}")
        else:
            self._coefficients = np.asarray(coefficients, dtype=np.float64)
            self._basis = np.asarray(basis, dtype=np.float64)
            expected = (n, self._basis.shape[0])
            if self._basis.ndim != 2 or self._basis.shape[1] != n_pix or self._coefficients.shape != expected:
                raise ValueError(
                    f"library {name}: coefficients {self._coefficients.shape} and basis {self._basis.shape} do not fit "
                    f"{n} stars of {n_pix} pixels"
                )
        self.fwhm = None
        if fwhm is not None:
            self.fwhm = np.asarray(fwhm, dtype=np.float64)
            if self.fwhm.shape not in ((), (n_pix,), (n, n_pix)):
                raise ValueError(
                    f"library {name}: fwhm has shape {self.fwhm.shape}; expected (), {(n_pix,)} or {(n, n_pix)}"
                )
            if self.fwhm.ndim == 0:
                self.fwhm = np.full(n_pix, float(self.fwhm))

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        w = self.wavelength
        return f"<Library {self.name!r}: {len(self)} stars, {w.size} pixels, {w[0]:.1f}-{w[-1]:.1f} A>"

    # -- data -----------------------------------------------------------------------------------------------

    @property
    def flux(self) -> np.ndarray:
        """Flux (n_star, n_pix); computed at each call where the library is held as a basis."""
        return self._flux if self._flux is not None else self._coefficients @ self._basis

    @property
    def labels(self) -> np.ndarray:
        """Labels (n_star, 3): Teff (K), log g, [Fe/H]; NaN where unknown."""
        return np.stack([np.asarray(self.table[key], dtype=np.float64) for key in ("teff", "logg", "feh")], axis=1)

    @property
    def labelled(self) -> np.ndarray:
        """Mask (n_star,) of the stars whose Teff, log g and [Fe/H] are all known."""
        return np.all(np.isfinite(self.labels), axis=1)

    @property
    def classes(self) -> np.ndarray:
        """First letter of each star's type (n_star,), "all" where it is unknown."""
        return np.array([str(name)[:1] or "all" for name in self.table["type"]])

    def rows(self, size: int = _ROWS) -> Iterator[tuple[slice, np.ndarray]]:
        """Flux of ``size`` stars at a time: pairs of a slice and an array (<= size, n_pix)."""
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, (self._flux[part] if self._flux is not None else self._coefficients[part] @ self._basis)

    def spectrum(self, index: int | str) -> Spectrum:
        """Spectrum of one star, by number or name.

        Raises
        ------
        KeyError
            No star, or more than one, of that name.
        """
        if isinstance(index, str):
            found = np.flatnonzero(np.asarray(self.table["name"]) == index)
            if found.size != 1:
                raise KeyError(f"library {self.name} has {found.size} stars named {index!r}")
            index = int(found[0])
        one = self[np.array([index])]
        flux = np.asarray(one.flux[0], dtype=np.float64)
        row = one.table[0]
        meta = {"name": str(row["name"]), "source": self.name, "wavelength_medium": "vacuum"}
        meta.update({key: float(row[key]) for key in LABELS if np.isfinite(row[key])})
        mask = ~np.isfinite(flux)
        unit = u.Unit(self.meta.get("flux_unit", ""))
        return Spectrum(
            flux=flux * unit, spectral_axis=self.wavelength * u.AA, mask=mask if mask.any() else None, meta=meta
        )

    # -- parts ----------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Library:
        index = np.arange(len(self))[index]
        if np.ndim(index) != 1:
            raise TypeError(
                "a library is indexed by a slice, a mask or numbers of stars; one star is .spectrum(number)"
            )
        return self._replace(
            table=self.table[index],
            flux=None if self._flux is None else self._flux[index],
            coefficients=None if self._coefficients is None else self._coefficients[index],
            fwhm=self.fwhm if self.fwhm is None or self.fwhm.ndim == 1 else self.fwhm[index],
        )

    def _replace(self, **changes: Any) -> Library:
        now = {
            "name": self.name, "table": self.table, "wavelength": self.wavelength, "flux": self._flux,
            "coefficients": self._coefficients, "basis": self._basis, "fwhm": self.fwhm, "meta": self.meta,
        }  # fmt: skip
        now.update(changes)
        return Library(
            now["name"], now["table"], now["wavelength"], now["flux"], coefficients=now["coefficients"],
            basis=now["basis"], fwhm=now["fwhm"], meta=now["meta"],
        )  # fmt: skip

    def select(self, *, types: Sequence[str] | str | None = None, **ranges: tuple[float, float]) -> Library:
        """Stars whose labels lie in closed ranges; unknown labels are outside every range.

        Parameters
        ----------
        types : sequence of str, optional
            First letters of the spectral types or classes to keep, such as "AFG".
        **ranges : tuple of float
            (low, high) of a column of the table, such as ``teff=(5000, 9750)``.

        Raises
        ------
        ValueError
            No such column, or a range that is none.
        """
        keep = np.ones(len(self), dtype=bool)
        for column, limits in ranges.items():
            if column not in self.table.colnames:
                raise ValueError(
                    f"library {self.name} has no column {column!r}; it has {', '.join(self.table.colnames)}"
                )
            if np.size(limits) != 2 or not limits[0] <= limits[1]:
                raise ValueError(f"{column} must be a range (low, high), got {limits!r}")
            value = np.asarray(self.table[column], dtype=np.float64)
            keep &= (value >= limits[0]) & (value <= limits[1])
        if types is not None:
            wanted = tuple(str(t).upper() for t in types)
            keep &= np.array([str(t).upper().startswith(wanted) for t in self.table["type"]], dtype=bool)
        return self[keep]

    def crop(self, low: float, high: float) -> Library:
        """Pixels between two vacuum wavelengths in Angstrom, ends included.

        Raises
        ------
        ValueError
            Fewer than two pixels there.
        """
        keep = (self.wavelength >= low) & (self.wavelength <= high)
        if keep.sum() < 2:
            raise ValueError(f"library {self.name} has no pixels between {low} and {high} A")
        return self._replace(
            wavelength=self.wavelength[keep],
            flux=None if self._flux is None else self._flux[:, keep],
            basis=None if self._basis is None else self._basis[:, keep],
            fwhm=None if self.fwhm is None else self.fwhm[..., keep],
        )

    def positive(self, low: float = 0.0, high: float = np.inf) -> np.ndarray:
        """Mask (n_star,) of the stars whose flux is positive and finite at every pixel between two wavelengths.

        A few archetypes of the redrock bases, linear combinations that they are, dip below zero in the ultraviolet.
        """
        pixels = (self.wavelength >= low) & (self.wavelength <= high)
        out = np.empty(len(self), dtype=bool)
        for part, flux in self.rows():
            out[part] = np.all(flux[:, pixels] > 0, axis=1)  # NaN is not positive
        return out

    # -- resolution -----------------------------------------------------------------------------------------

    def degrade(
        self,
        spectral_axis: u.Quantity | np.ndarray,
        *,
        resolving_power: float | Callable[[np.ndarray], np.ndarray] | None = None,
        fwhm: float | Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Library:
        """Library at a lower resolution and on another wavelength grid.

        Every spectrum is convolved (`~lamost_lsf.ResolutionMatrix`) with a Gaussian of FWHM
        ``sqrt(target**2 - own**2)``: exact where the library's own profile is a Gaussian. Where the target equals the
        library's own width the spectrum is only interpolated.

        Parameters
        ----------
        spectral_axis : `~astropy.units.Quantity` or ndarray (n_out,)
            Vacuum wavelengths of the result; plain numbers are Angstrom.
        resolving_power, fwhm : float or callable
            Target: lambda/FWHM, or FWHM in Angstrom; a number or a function of vacuum wavelength in Angstrom. One of
            the two.

        Returns
        -------
        Library
            Pixels beyond the library's own coverage are NaN.

        Raises
        ------
        ValueError
            A target finer than the library's own resolution (by more than 0.5 %, which is how well that is known), or
            anything but one target.
        """
        from lamost_lsf.sed.libraries_resolution import degrade_rows

        axis = to_angstrom(spectral_axis, "spectral_axis") if isinstance(spectral_axis, u.Quantity) else None
        axis = np.asarray(spectral_axis, dtype=np.float64) if axis is None else axis
        if (resolving_power is None) == (fwhm is None):
            raise ValueError("give one of resolving_power and fwhm")
        given = resolving_power if fwhm is None else fwhm

        def target(w: np.ndarray) -> np.ndarray:
            value = np.broadcast_to(np.asarray(given(w) if callable(given) else given, dtype=np.float64), w.shape)
            if not np.all(np.isfinite(value) & (value > 0)):
                raise ValueError("the target resolution must be positive and finite")
            return w / value if fwhm is None else value

        meta = dict(self.meta)
        changes: dict[str, Any] = {"wavelength": axis, "fwhm": np.array(target(axis)), "meta": meta}
        if self._basis is not None:
            changes["basis"] = degrade_rows(self.wavelength, self._basis, self.fwhm, axis, target, self.name)
        elif self.fwhm is not None and self.fwhm.ndim == 2:
            changes["flux"] = np.concatenate(
                [
                    degrade_rows(self.wavelength, self._flux[i : i + 1], self.fwhm[i], axis, target, self.name)
                    for i in range(len(self))
                ]
                or [np.empty((0, axis.size))]
            )
        else:
            changes["flux"] = degrade_rows(self.wavelength, self._flux, self.fwhm, axis, target, self.name)
        return self._replace(**changes)


def _complete(table: Table) -> Table:
    """Copy of a table of stars with all the columns that are promised."""
    table = Table(table, copy=True)
    n = len(table)
    if "name" not in table.colnames:
        raise ValueError(f"a table of stars needs a column 'name'; it has {', '.join(table.colnames) or 'none'}")
    for key in LABELS:
        if key not in table.colnames:
            table[key] = np.full(n, np.nan)
        values = np.ma.filled(np.ma.asarray(table[key], dtype=np.float64), np.nan)
        table[key] = Column(values, unit=_UNITS.get(key))
    if "type" not in table.colnames:
        table["type"] = np.full(n, "", dtype="U12")
    for key in ("name", "type"):
        table[key] = np.array([str(value).strip() for value in table[key]], dtype=str)
    first = ["name", "type", *LABELS]
    return table[first + [key for key in table.colnames if key not in first]]


# H alpha and H beta in vacuum: the strongest lines that A to G stars share, 1.8 and 1.4 A from their air wavelengths
_BALMER = air_to_vacuum(np.array([6562.79, 4861.35]))


def line_medium(wavelength: np.ndarray, flux: np.ndarray) -> tuple[str, float] | None:
    """Medium of the wavelengths of a star at rest, told from the cores of H alpha and H beta.

    Parameters
    ----------
    wavelength : ndarray (n_pix,)
        Angstrom.
    flux : ndarray (n_pix,)

    Returns
    -------
    tuple of (str, float), or None
        "vacuum" or "air", and how far the lines lie from vacuum (0) towards air (1); None where the lines are too weak
        or not covered, or lie at neither.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.arange(4700, 6800, 0.5)
    >>> flux = 1 - sum(0.6 * np.exp(-0.5 * ((w - line) / 4) ** 2) for line in (4861.35, 6562.79))
    >>> medium, fraction = line_medium(w, flux)
    >>> medium, f"{fraction:.2f}"
    ('air', '1.00')
    """
    fractions = []
    for vacuum in _BALMER:
        air = float(vacuum_to_air(vacuum))
        grid = np.arange(air - 12.0, vacuum + 12.0, 0.05)
        if grid[0] - 1.0 < wavelength[0] or grid[-1] + 1.0 > wavelength[-1]:
            continue
        # means over 1 A: fine structure is no part of the line
        near = (wavelength > grid[0] - 5.0) & (wavelength < grid[-1] + 5.0)
        w, f = wavelength[near], np.asarray(flux, dtype=np.float64)[near]
        area = np.concatenate([[0.0], np.cumsum(0.5 * (f[1:] + f[:-1]) * np.diff(w))])
        value = np.interp(grid + 0.5, w, area) - np.interp(grid - 0.5, w, area)
        chord = value[0] + (value[-1] - value[0]) * (grid - grid[0]) / (grid[-1] - grid[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = 1.0 - value / chord
        if not np.all(np.isfinite(depth)) or depth.max() < 0.05:
            continue
        # the deeper half of the line: its wings are blended with others
        core = np.clip(depth - 0.5 * depth.max(), 0.0, None)
        fractions.append((vacuum - np.sum(grid * core) / core.sum()) / (vacuum - air))
    if not fractions:
        return None
    mean = float(np.mean(fractions))
    if not -0.5 < mean < 1.5:
        return None
    return ("air" if mean > 0.5 else "vacuum"), mean
