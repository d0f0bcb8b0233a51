"""`WavelengthSolution`: a fitted wavelength scale, with the lines it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from types import MappingProxyType
from typing import Any, Literal

import astropy.units as u
import numpy as np
from astropy.modeling import Model
from astropy.table import QTable, Row
from gwcs import WCS

from lamost_lsf.units import (
    SPEED_OF_LIGHT,
    Medium,
    check_medium,
    to_vacuum_angstrom,
    vacuum_to_air,
)
from lamost_lsf.wavelength.covariance import free_parameters, parameter_jacobian
from lamost_lsf.wavelength.fitters import check_degree, check_domain
from lamost_lsf.wavelength.inverse import MonotonicCurve, build_gwcs

__all__ = ["LINE_COLUMNS", "WavelengthSolution", "pixel_values"]

#: Columns of `WavelengthSolution.lines` and their units (None: no unit).
LINE_COLUMNS: dict[str, u.UnitBase | None] = {
    # a number first: ECSV would take a first column's text that begins with # for a comment
    "pixel": None,
    "label": None,
    "wavelength": u.AA,
    "error": u.AA,
    "residual": u.AA,
    "deviation": None,
    "leverage": None,
    "used": None,
    "reason": None,
}


def pixel_values(pixel: Any, name: str = "pixel") -> np.ndarray:
    """Float64 array of pixels from plain numbers or a Quantity in pixels."""
    if isinstance(pixel, u.Quantity):
        try:
            return np.asarray(pixel.to_value(u.pix), dtype=np.float64)
        except u.UnitConversionError:
            raise TypeError(f"{name} must be plain numbers or have the unit pix, got {pixel.unit}") from None
    return np.asarray(pixel, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class WavelengthSolution:
    """Wavelength as a function of pixel, for one spectrum.

    Made by `fit_wavelength_solution`. Pixel centres are whole numbers counted from 0, and pixel i covers
    i - 0.5 to i + 0.5. Wavelengths are vacuum Angstrom, in the frame of the lamp (no velocity applied).

    Parameters
    ----------
    model : `~astropy.modeling.Model`
        Pixel to vacuum wavelength in Angstrom, without units.
    domain : (float, float)
        First and last pixel that the solution is for. It holds to the outer edges of these pixels; beyond
        them it is NaN.
    lines : `~astropy.table.QTable`
        One row for each line that was offered: ``pixel``; ``label``; ``wavelength`` (vacuum); ``error`` (NaN
        where unknown); ``residual``, the listed minus the fitted wavelength; ``deviation``, the residual in
        sigma; ``leverage``; ``used``; ``reason``, empty for a used line, else why it was rejected.
    covariance : ndarray, shape (k, k)
        Of the model's free parameters, in the order of ``model.param_names``.
    fitter : str
        Name of the fitter.
    center : str, optional
        Name of the centre definition that measured ``pixel``. None: not stated.
    degree : int
        Degree that the fitter was asked for.
    provenance : mapping, optional
        Where centre and fitter come from: for each, name, distribution and version; and how lines were
        rejected.

    Raises
    ------
    ValueError
        The model is not strictly monotonic, or not finite, in the domain.

    Notes
    -----
    The arrays are read-only, and the model is a copy. `lines` is a table of the solution itself: copy it
    before you change it.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from lamost_lsf.wavelength import fit_wavelength_solution
    >>> pixel = np.array([3.0, 40.2, 55.1, 71.9, 90.4, 98.0])
    >>> solution = fit_wavelength_solution(pixel, (5000 + 0.5 * pixel) * u.AA, degree=1, domain=(0, 99))
    >>> print(f"{solution(20):.3f}")
    5010.000 Angstrom
    >>> print(f"{solution.wavelength_to_pixel(501 * u.nm):.3f}")
    20.000
    >>> solution.extrapolates([1, 20])
    array([ True, False])
    """

    model: Model
    domain: tuple[float, float]
    lines: QTable
    covariance: np.ndarray
    fitter: str
    center: str | None = None
    degree: int = 5
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.model, Model) or self.model.n_inputs != 1 or self.model.n_outputs != 1:
            raise TypeError(f"model must be an astropy model of one input and one output, got {self.model!r}")
        missing = [name for name in LINE_COLUMNS if name not in self.lines.colnames]
        if missing:
            raise ValueError(f"lines lacks the column(s) {', '.join(missing)}")
        lines = QTable(self.lines[list(LINE_COLUMNS)], copy=True)
        for name in lines.colnames:
            lines[name].setflags(write=False)
        covariance = np.array(self.covariance, dtype=np.float64)
        expected = len(free_parameters(self.model))
        if covariance.shape != (expected, expected):
            raise ValueError(
                f"covariance must have the shape {(expected, expected)} of the model's free parameters, "
                f"got {covariance.shape}"
            )
        covariance.setflags(write=False)
        for name, value in (
            ("model", self.model.copy()),
            ("domain", check_domain(self.domain)),
            ("lines", lines),
            ("covariance", covariance),
            ("degree", check_degree(self.degree)),
            ("provenance", MappingProxyType(dict(self.provenance))),
        ):
            object.__setattr__(self, name, value)
        _ = self._curve  # refuses a curve that turns over, before anyone relies on it

    @cached_property
    def _curve(self) -> MonotonicCurve:
        first, last = self.domain
        return MonotonicCurve(self.model, first - 0.5, last + 0.5)

    @cached_property
    def _used_range(self) -> tuple[float, float]:
        pixel = self.lines["pixel"][self.lines["used"]]
        return (float(np.min(pixel)), float(np.max(pixel))) if len(pixel) else (np.nan, np.nan)

    @property
    def medium(self) -> Medium:
        """Medium of every wavelength in the solution: "vacuum"."""
        return "vacuum"

    @property
    def n_used(self) -> int:
        """Number of lines in the fit."""
        return int(np.sum(self.lines["used"]))

    @property
    def rejected(self) -> QTable:
        """Lines that were not used, with the reason for each."""
        return self.lines[~self.lines["used"]]

    # -- evaluation ------------------------------------------------------------------------------------------

    def _inside(self, pixel: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (pixel >= self._curve.first) & (pixel <= self._curve.last)

    def _evaluate(self, pixel: np.ndarray) -> np.ndarray:
        """Vacuum Angstrom, plain; NaN outside the domain."""
        inside = self._inside(pixel)
        result = np.full(pixel.shape, np.nan)
        if np.any(inside):
            result[inside] = self.model(pixel[inside])
        return result

    def pixel_to_wavelength(self, pixel, *, medium: Medium = "vacuum") -> u.Quantity:
        """Wavelength at pixel positions.

        Parameters
        ----------
        pixel : array_like or `~astropy.units.Quantity` in pix, any shape
            Positions; whole numbers are centres of pixels.
        medium : {"vacuum", "air"}
            Of the result.

        Returns
        -------
        `~astropy.units.Quantity`, shape of ``pixel``, Angstrom
            NaN outside the domain.

        Raises
        ------
        TypeError
            A unit other than pix.
        ValueError
            An unknown medium.
        """
        medium = check_medium(medium)
        wavelength = self._evaluate(pixel_values(pixel))
        return (vacuum_to_air(wavelength) if medium == "air" else wavelength) * u.AA

    def __call__(self, pixel) -> u.Quantity:
        """Vacuum wavelength at pixel positions: see `pixel_to_wavelength`."""
        return self.pixel_to_wavelength(pixel)

    def wavelength(self, pixel, *, medium: Medium = "vacuum") -> u.Quantity:
        """Same as `pixel_to_wavelength`."""
        return self.pixel_to_wavelength(pixel, medium=medium)

    def wavelength_to_pixel(self, wavelength: u.Quantity, *, medium: Medium = "vacuum"):
        """Pixel position of wavelengths: the numerical inverse of the model, to 1e-9 pixel.

        Parameters
        ----------
        wavelength : `~astropy.units.Quantity`, any shape
            A length.
        medium : {"vacuum", "air"}
            Of ``wavelength``.

        Returns
        -------
        float or ndarray, shape of ``wavelength``
            NaN outside the domain.

        Raises
        ------
        TypeError
            No unit of length.
        ValueError
            An unknown medium.
        """
        pixel = self._curve.inverse(to_vacuum_angstrom(wavelength, medium))
        return float(pixel) if pixel.ndim == 0 else pixel

    def dispersion(self, pixel) -> u.Quantity:
        """Derivative of the vacuum wavelength, Angstrom per pixel (shape of ``pixel``).

        Negative where wavelength falls with pixel; NaN outside the domain.
        """
        pixel = pixel_values(pixel)
        inside = self._inside(pixel)
        result = np.full(pixel.shape, np.nan)
        if np.any(inside):
            result[inside] = self._curve.derivative(pixel[inside])
        return result * (u.AA / u.pix)

    def extrapolates(self, pixel) -> np.ndarray:
        """True where no used line lies beyond ``pixel`` on one side: there the curve is a guess.

        Parameters
        ----------
        pixel : array_like or `~astropy.units.Quantity` in pix, any shape
            Positions.

        Returns
        -------
        ndarray of bool, shape of ``pixel``
            Also True outside the domain and for NaN.
        """
        pixel = pixel_values(pixel)
        first, last = self._used_range
        with np.errstate(invalid="ignore"):
            return ~((pixel >= first) & (pixel <= last) & self._inside(pixel))

    def uncertainty(self, pixel) -> u.Quantity:
        """One-sigma error of the wavelength at pixel positions, from the covariance of the fit.

        It is the random error that the lines' errors leave on the curve. What the curve cannot follow (a
        degree too low) is not in it, nor errors that all lines share (another centre definition, a lamp that
        lights the slit differently from the sky).

        Parameters
        ----------
        pixel : array_like or `~astropy.units.Quantity` in pix, any shape
            Positions.

        Returns
        -------
        `~astropy.units.Quantity`, shape of ``pixel``, Angstrom
            NaN outside the domain, where the covariance is unknown, and for a model without parameters.
        """
        pixel = pixel_values(pixel)
        inside = self._inside(pixel)
        result = np.full(pixel.shape, np.nan)
        if np.any(inside) and self.covariance.size:
            jacobian = parameter_jacobian(self.model, pixel[inside])
            variance = np.einsum("ij,jk,ik->i", jacobian, self.covariance, jacobian)
            result[inside] = np.sqrt(np.maximum(variance, 0.0))
        return result * u.AA

    # -- quality ---------------------------------------------------------------------------------------------

    def _in_unit(self, value: np.ndarray, unit: u.UnitBase) -> u.Quantity:
        """Differences of wavelength at the lines (n_lines,), Angstrom, as length, pixel or velocity."""
        unit = u.Unit(unit)
        if unit.is_equivalent(u.AA):
            return (value * u.AA).to(unit)
        if unit.is_equivalent(u.km / u.s):
            return (SPEED_OF_LIGHT * value / self.lines["wavelength"].value * u.km / u.s).to(unit)
        if unit == u.pix:
            return value / self.dispersion(self.lines["pixel"]).value * u.pix
        raise ValueError(f"unit must be a length, a velocity or pix, got {unit}")

    def residuals(self, unit: u.UnitBase = u.AA) -> u.Quantity:
        """Residual of every line offered: listed minus fitted wavelength.

        Parameters
        ----------
        unit : `~astropy.units.Unit`
            A length, a velocity (c times residual over wavelength), or pix (residual over dispersion).

        Returns
        -------
        `~astropy.units.Quantity`, shape (n_lines,)
            NaN for a line without a position or outside the domain.

        Raises
        ------
        ValueError
            Another unit.
        """
        return self._in_unit(self.lines["residual"].value, unit)

    def leave_one_out(self, unit: u.UnitBase = u.AA) -> u.Quantity:
        """Error with which the *other* lines predict each line: listed wavelength minus prediction.

        For a model linear in its parameters this is residual / (1 - leverage), exactly; for others to first
        order. Rejected lines are not in the fit, so theirs is the residual. A degree that is too high shows
        here and not in the residuals.

        Parameters
        ----------
        unit : `~astropy.units.Unit`
            A length, a velocity, or pix.

        Returns
        -------
        `~astropy.units.Quantity`, shape (n_lines,)
            Infinite, with the sign of the residual, for a line that nothing but itself determines.
        """
        residual = self.lines["residual"].value
        left = np.where(self.lines["used"], 1.0 - self.lines["leverage"], 1.0)
        with np.errstate(divide="ignore"):
            predicted = np.where(left > 1e-12, residual / np.where(left > 0, left, 1.0), np.copysign(np.inf, residual))
        return self._in_unit(predicted, unit)

    def rms(self, unit: u.UnitBase = u.AA, *, weighted: bool = False, leave_one_out: bool = False) -> u.Quantity:
        """Root mean square of the used lines' residuals (divided by n, not by the degrees of freedom).

        Parameters
        ----------
        unit : `~astropy.units.Unit`
            A length, a velocity, or pix.
        weighted : bool
            Weight each line by 1/error^2, as the fit did.
        leave_one_out : bool
            Of the leave-one-out errors instead.

        Returns
        -------
        `~astropy.units.Quantity`
            Scalar.

        Raises
        ------
        ValueError
            Another unit, or ``weighted`` where no errors were given.
        """
        used = np.asarray(self.lines["used"])
        values = (self.leave_one_out(unit) if leave_one_out else self.residuals(unit))[used]
        weights = np.ones(len(values))
        if weighted:
            weights = 1.0 / self.lines["error"].value[used] ** 2
            if not np.all(np.isfinite(weights)):
                raise ValueError("weighted=True needs errors of the lines, and none were given")
        return np.sqrt(np.sum(weights * values**2) / np.sum(weights))

    @property
    def chi2_reduced(self) -> float:
        """Chi-square of the used lines over the degrees of freedom; NaN without errors or freedom.

        Well above 1: errors too small, or a curve that cannot follow the spectrograph.
        """
        used = np.asarray(self.lines["used"])
        freedom = int(np.sum(used)) - len(self.covariance)
        if freedom <= 0:
            return np.nan
        pull = self.lines["residual"].value[used] / self.lines["error"].value[used]
        return float(np.sum(pull**2) / freedom)

    # -- other forms -----------------------------------------------------------------------------------------

    def to_gwcs(self) -> WCS:
        """Solution as a `gwcs.WCS`: pixel to vacuum wavelength in Angstrom, and back.

        The inverse is a quintic spline that agrees with `wavelength_to_pixel` to 1e-8 pixel, so that the WCS
        can be saved to ASDF without this package. Outside the domain it is NaN.

        Returns
        -------
        `gwcs.WCS`
            One axis; ``specutils.Spectrum(flux, wcs=...)`` takes it.

        Examples
        --------
        >>> import astropy.units as u
        >>> import numpy as np
        >>> from specutils import Spectrum
        >>> from lamost_lsf.wavelength import fit_wavelength_solution
        >>> pixel = np.array([3.0, 40.2, 55.1, 71.9, 90.4, 98.0])
        >>> solution = fit_wavelength_solution(pixel, (5000 + 0.5 * pixel) * u.AA, degree=1, domain=(0, 99))
        >>> spectrum = Spectrum(np.ones(100) * u.Jy, wcs=solution.to_gwcs())
        >>> print(spectrum.spectral_axis[:2])
        [5000. 5000.5] Angstrom
        """
        return build_gwcs(self._curve)

    def to_row(self) -> Row:
        """Summary as one row of a table, for a night's or an exposure's worth of solutions.

        Returns
        -------
        `~astropy.table.Row`
            Centre, fitter, degree, numbers of lines, domain, wavelengths at its ends (vacuum), rms in
            Angstrom, pixels and km/s, leave-one-out rms, reduced chi-square. Stack rows with
            `astropy.table.vstack`.
        """
        first, last = self.domain
        ends = self(np.array([first, last]))
        table = QTable(
            {
                "center": [self.center or ""],
                "fitter": [self.fitter],
                "degree": [self.degree],
                "n_used": [self.n_used],
                "n_rejected": [len(self.lines) - self.n_used],
                "first_pixel": [first],
                "last_pixel": [last],
                "first_wavelength": ends[:1],
                "last_wavelength": ends[1:],
                "rms": self.rms().reshape(1),
                "rms_pixel": self.rms(u.pix).reshape(1),
                "rms_velocity": self.rms(u.km / u.s).reshape(1),
                "rms_leave_one_out": self.rms(leave_one_out=True).reshape(1),
                "chi2_reduced": [self.chi2_reduced],
                "medium": [self.medium],
            }
        )
        return table[0]

    def __repr__(self) -> str:
        first, last = self._evaluate(np.array(self.domain))
        return (
            f"<WavelengthSolution {self.fitter} of degree {self.degree}, center={self.center!r}: pixel "
            f"{self.domain[0]:g}..{self.domain[1]:g} -> {first:.2f}..{last:.2f} Angstrom (vacuum), "
            f"{self.n_used} of {len(self.lines)} lines, rms {self.rms().value:.4f} Angstrom>"
        )

    # -- files -----------------------------------------------------------------------------------------------

    def write(
        self, path: str | PathLike, *, format: Literal["asdf", "ecsv"] | None = None, overwrite: bool = False
    ) -> None:
        """Write to an ASDF or ECSV file; nothing half-written is ever left behind.

        Parameters
        ----------
        path : path
            File name.
        format : {"asdf", "ecsv"}, optional
            None: by the file name's ending.
        overwrite : bool
            Whether an existing file may be replaced.

        Raises
        ------
        FileExistsError
            The file exists and ``overwrite`` is False.
        ValueError
            Neither format nor ending says which kind of file.
        TypeError
            A third party's model that ASDF does not know.
        """
        from lamost_lsf.wavelength.files import write_solution

        write_solution(self, path, format=format, overwrite=overwrite)

    @classmethod
    def read(cls, path: str | PathLike) -> WavelengthSolution:
        """Read what `write` wrote; the kind of file is seen from its content.

        Parameters
        ----------
        path : path
            ASDF or ECSV file.

        Returns
        -------
        `WavelengthSolution`
            Equal to the one written, bit for bit.

        Raises
        ------
        FileNotFoundError
            No such file.
        `~lamost_lsf.errors.FormatError`
            Not a wavelength solution, another version, truncated, or altered since it was written.
        """
        from lamost_lsf.wavelength.files import read_solution

        return read_solution(path)
