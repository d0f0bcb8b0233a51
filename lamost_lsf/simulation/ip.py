"""`SimulatedIP`: an instrumental profile that is known exactly, everywhere."""

from __future__ import annotations

from copy import copy

import astropy.units as u
import numpy as np
from astropy.time import Time

from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.models.base import IPModel
from lamost_lsf.models.neural import LAMOST_WINDOWS, N_SAMPLES
from lamost_lsf.simulation._random import deviate
from lamost_lsf.simulation.optics import PARAMETERS, SLIT_SECOND_MOMENT, characteristic, frequencies, series
from lamost_lsf.time import lmjm_to_time, season, time_to_lmjm
from lamost_lsf.units import to_angstrom, to_vacuum_angstrom

__all__ = ["ARM_LIMITS", "EPOCH", "PIXEL_WIDTH", "SimulatedIP"]

#: Wavelengths at the ends of the detector of each arm, vacuum Angstrom.
ARM_LIMITS = {"blue": (3690.0, 5912.0), "red": (5690.0, 9060.0)}
N_PIXELS = 4096
#: Width of a detector pixel, Angstrom, in the mean over an arm.
PIXEL_WIDTH = {arm: (high - low) / (N_PIXELS - 1) for arm, (low, high) in ARM_LIMITS.items()}
#: When the profiles become wider and change their shape: the season that ends in 2021 (Liu et al. 2026, Figure 10).
EPOCH = Time("2020-08-31T16:00:00", scale="utc", format="isot")

N_FIBER = 250
# One stretch of wavelength for both arms' optics: what the red disperses more, it blurs more.
_SCALE = {"blue": 1.0, "red": PIXEL_WIDTH["red"] / PIXEL_WIDTH["blue"]}
_ARM_CODE = {"blue": 1, "red": 2}
_N_SMOOTH = 8  # names of smooth functions are 1-7
_MARGIN = 90.0  # Angstrom beyond the detector where the optics are still described
_MEAN_TEMPERATURE, _TEMPERATURE_SWING, _NIGHT_TEMPERATURE, _COOLING = 5.0, 12.0, 2.0, 0.35


class SimulatedIP(IPModel):
    """Analytic instrumental profile of a LAMOST-like spectrograph arm: a known truth to test against.

    A disc of a fibre behind a slit two thirds as wide, convolved with a Gaussian core and wing, the disc of a
    defocused pupil, a
    coma-like skew tail on either side, and a pixel. Widths, defocus, coma and illumination vary smoothly with fibre,
    wavelength
    and the temperature of the night, jump from season to season, and scatter from fibre to fibre.

    Parameters
    ----------
    arm : {"blue", "red"}
    spectrograph : int
        1-16; each has aberrations of its own.
    seed : int
        Another seed is another instrument. Profiles are reproducible from the arguments alone.
    fiber_scatter : float
        Fibre-to-fibre scatter, in units of the default; 0 makes the profile smooth in the fibre number.
    night_scatter : float
        Scatter of the nights' temperatures about the seasonal curve, in units of 2 deg C.
    defective_fiber : int or None
        A partly obscured fibre with a strong wing, as the paper's fibre 155 (section 4.1, Figures 5 and 6).
    epoch : `~astropy.time.Time` or None
        From then on profiles are wider and the asymmetry is turned over in part of the arm (Figure 10).
    offset : array_like `~astropy.units.Quantity`, optional
        Uniform offsets that `profile` and `at` sample; the 600 points of LAMOST's window by default. `evaluate`
        needs none.

    Raises
    ------
    ValueError
        An unknown arm, a spectrograph or fibre outside the survey's, a negative scatter, offsets that are not uniform.

    Notes
    -----
    Between `epoch` changes the shape is a smooth function of fibre, wavelength and `temperature`, but for the
    scatter. Areas
    are 1 over all offsets; a window may cut off up to 1e-4.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.time import Time
    >>> from lamost_lsf.simulation import SimulatedIP
    >>> ip = SimulatedIP("blue", spectrograph=1)
    >>> profile = ip.profile(time=Time("2017-01-10T15:00"), fiber=[20, 155], wavelength=4359.56 * u.AA)
    >>> profile.shape
    (2,)
    >>> bool(profile[1].sigma > 1.1 * profile[0].sigma)        # fibre 155 is defective
    True
    """

    needs_time = True
    needs_fiber = True
    n_fiber = N_FIBER

    def __init__(
        self,
        arm: str = "blue",
        spectrograph: int = 1,
        *,
        seed: int = 0,
        fiber_scatter: float = 1.0,
        night_scatter: float = 1.0,
        defective_fiber: int | None = 155,
        epoch: Time | None = EPOCH,
        offset: u.Quantity | None = None,
    ) -> None:
        if arm not in ARM_LIMITS:
            raise ValueError(f"arm must be 'blue' or 'red', got {arm!r}")
        if isinstance(spectrograph, bool) or int(spectrograph) != spectrograph or not 1 <= spectrograph <= 16:
            raise ValueError(f"spectrograph must be an integer 1-16, got {spectrograph!r}")
        for name, value in (("fiber_scatter", fiber_scatter), ("night_scatter", night_scatter)):
            if not 0.0 <= value <= 5.0:
                raise ValueError(f"{name} must be between 0 and 5, got {value!r}")
        if defective_fiber is not None and not 1 <= defective_fiber <= N_FIBER:
            raise ValueError(f"defective_fiber must be 1-{N_FIBER} or None, got {defective_fiber!r}")
        if epoch is not None and not (isinstance(epoch, Time) and epoch.isscalar):
            raise TypeError(f"epoch must be a scalar astropy Time or None, got {epoch!r}")
        self.arm, self.spectrograph, self.seed = arm, int(spectrograph), int(seed)
        self.fiber_scatter, self.night_scatter = float(fiber_scatter), float(night_scatter)
        self.defective_fiber = defective_fiber
        self.epoch = epoch
        self._epoch = np.inf if epoch is None else float(time_to_lmjm(epoch))
        low, high = ARM_LIMITS[arm]
        self.wavelength_range = (low - _MARGIN, high + _MARGIN)
        labels = (self.seed, self.spectrograph, _ARM_CODE[arm])
        self._coefficients = deviate(*labels, np.arange(_N_SMOOTH)[:, None], np.arange(9))
        self.offset = np.linspace(*LAMOST_WINDOWS[arm], N_SAMPLES) if offset is None else _uniform(offset)
        self.meta = {
            "model": "SimulatedIP",
            "instrument": f"lamost-lrs-{arm}",
            "arm": arm,
            "spectrograph": self.spectrograph,
            "seed": self.seed,
            "fiber_scatter": self.fiber_scatter,
            "night_scatter": self.night_scatter,
            "defective_fiber": defective_fiber,
            "epoch": None if epoch is None else epoch.utc.isot,
            "wavelength_medium": "vacuum",
        }

    def __repr__(self) -> str:
        return f"<SimulatedIP spectrograph {self.spectrograph}, {self.arm} arm, seed {self.seed}>"

    def with_offset(self, offset: u.Quantity) -> SimulatedIP:
        """The same instrument, with `profile` and `at` sampled at other (uniform) offsets."""
        new = copy(self)
        new.offset = _uniform(offset)
        return new

    # -- state of the instrument --------------------------------------------------------------------------

    def temperature(self, time: Time) -> u.Quantity:
        """Temperature (deg C) of the spectrograph room, the one quantity through which time acts within a season.

        A yearly wave, the weather of the night, and a slow cooling from dusk to dawn.
        """
        return self._temperature(time_to_lmjm(time)) * u.deg_C

    def _temperature(self, lmjm: np.ndarray) -> np.ndarray:
        day = lmjm / 1440.0
        night = np.floor(day - 0.5)  # a night runs from noon to noon, local time
        hours = 24.0 * (day - 0.5 - night) - 12.0  # from local midnight
        # coldest about 20 January (MJD 51563 was 20 January 2000)
        wave = -np.cos(2.0 * np.pi * (day - 51563.0) / 365.25)
        weather = _NIGHT_TEMPERATURE * self.night_scatter * deviate(self.seed, 90, night)
        return _MEAN_TEMPERATURE + _TEMPERATURE_SWING * wave + weather - _COOLING * hours

    def parameters(
        self, *, time: Time, fiber: int | np.ndarray, wavelength: u.Quantity, medium: str = "vacuum"
    ) -> dict[str, np.ndarray]:
        """Physical parameters of the profiles, each of the broadcast shape of the labels.

        Returns
        -------
        dict of ndarray
            Keys as in `lamost_lsf.simulation.optics.PARAMETERS`; lengths in Angstrom.
        """
        vacuum, fibers, lmjm, shape = self._labels(time, fiber, wavelength, medium, False)
        columns = self._parameters(lmjm, fibers, vacuum)
        return {name: columns[:, i].reshape(shape) for i, name in enumerate(PARAMETERS)}

    def _smooth(self, name: int, f: np.ndarray, x: np.ndarray, t: np.ndarray, year: np.ndarray) -> np.ndarray:
        """Random smooth function of order 1 of fibre, wavelength, temperature; jumps from season to season."""
        c = self._coefficients[name]
        jump = deviate(self.seed, self.spectrograph, _ARM_CODE[self.arm], name, 100, year)
        return (
            0.5 * c[0]
            + 0.6 * c[1] * f
            + 0.6 * c[2] * x
            + 0.5 * c[3] * (f**2 - 1.0 / 3.0)
            + 0.5 * c[4] * (x**2 - 1.0 / 3.0)
            + 0.4 * c[5] * f * x
            + (0.15 * c[6] + 0.10 * c[7] * f + 0.10 * c[8] * x) * t
            + 0.15 * jump
        )

    def _parameters(self, lmjm: np.ndarray, fiber: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        """Parameters (m, 10) at labels of shape (m,)."""
        scale = _SCALE[self.arm]
        low, high = ARM_LIMITS[self.arm]
        x = (2.0 * wavelength - low - high) / (high - low)
        f = (2.0 * fiber - N_FIBER - 1.0) / (N_FIBER - 1.0)
        t = (self._temperature(lmjm) - _MEAN_TEMPERATURE) / _TEMPERATURE_SWING
        times, inverse = np.unique(lmjm, return_inverse=True)
        year = np.atleast_1d(season(lmjm_to_time(times)))[inverse] if times.size else np.empty(0, dtype=int)
        late = (lmjm >= self._epoch).astype(np.float64)

        def fibre(name: int, amplitude: float) -> np.ndarray:
            # half of a fibre's character is the fibre's, half is how it was mounted that season
            spread = self.fiber_scatter * amplitude * np.sqrt(0.5)
            label = (self.seed, self.spectrograph, _ARM_CODE[self.arm], name, 200, fiber)
            return spread * (deviate(*label) + deviate(*label, year))

        def smooth(name: int) -> np.ndarray:
            return self._smooth(name, f, x, t, year)

        p = np.empty((lmjm.size, len(PARAMETERS)))
        focus, comatic = smooth(1), smooth(2)
        # the camera's focal surface is tilted and curved against the detector; a signed radius keeps the profile
        # smooth in it
        defocus = scale * (0.55 + 0.40 * focus + 0.25 * late + fibre(11, 0.028))
        # turned over by the change of epoch at one end of the arm, weakened at the other
        turned = 1.3 * comatic * (1.0 - late * (1.1 - 0.6 * x)) + 0.1 * late + fibre(12, 0.05)
        asymmetry = turned / np.sqrt(1.0 + turned**2)
        coma = scale**0.6 * (0.54 + 0.02 * np.tanh(smooth(3)) + 0.03 * late)
        red, blue = 0.5 * coma * (1.0 + asymmetry), 0.5 * coma * (1.0 - asymmetry)
        p[:, 0] = 0.5 * scale * 2.15 * (1.0 - 0.02 * x) * (1.0 + fibre(13, 0.007))
        p[:, 1] = np.tanh(0.08 * smooth(4) + fibre(14, 0.045))
        p[:, 2] = scale * (0.60 + 0.02 * np.tanh(smooth(5)) + 0.05 * late) * np.exp(fibre(15, 0.009))
        p[:, 3] = 0.012 * np.exp(0.3 * np.tanh(smooth(6)) + fibre(16, 0.09))
        p[:, 4] = scale * 1.6
        p[:, 5] = defocus
        p[:, 6], p[:, 7] = red, blue
        p[:, 9] = PIXEL_WIDTH[self.arm]
        if self.defective_fiber is not None:
            bad = fiber == self.defective_fiber
            p[bad, 1] = 0.6
            p[bad, 3] = 0.15
            p[bad, 2] *= 1.06
            p[bad, 6] += 0.12 * scale
        # The zero of the wavelength scale is the chief ray's: 85 % of the way from an unaberrated image's centre to the
        # centroid, near the peak of a skew image. (A gamma distribution of shape 2 has the mean 2.)
        centroid = 2.0 * (p[:, 6] - p[:, 7]) + p[:, 1] * p[:, 0] * SLIT_SECOND_MOMENT
        p[:, 8] = -0.85 * centroid + 0.02 * scale * smooth(7)
        return p

    # -- profiles -----------------------------------------------------------------------------------------

    def _labels(self, time, fiber, wavelength, medium, extrapolate):
        vacuum, fibers = to_vacuum_angstrom(wavelength, medium), np.asarray(fiber)
        self._check_labels(time, fibers, extrapolate)
        try:
            shape = np.broadcast_shapes(vacuum.shape, fibers.shape, time.shape)
        except ValueError:
            raise ValueError(
                f"shapes do not broadcast: wavelength {vacuum.shape}, fiber {fibers.shape}, time {time.shape}"
            ) from None
        lmjm = np.broadcast_to(self._time_label(time), shape).ravel()
        vacuum, fibers = np.broadcast_to(vacuum, shape).ravel(), np.broadcast_to(fibers, shape).ravel()
        if not extrapolate:
            self._check_wavelength(vacuum)
        return vacuum, fibers, lmjm, shape

    def _check_labels(self, time: Time | None, fiber: np.ndarray | None, extrapolate: bool) -> None:
        super()._check_labels(time, fiber, extrapolate)
        if not np.all((fiber >= 1) & (fiber <= N_FIBER)):
            raise OutOfRangeError(f"fiber must be 1-{N_FIBER}, got {fiber}")

    def _evaluate(self, time: np.ndarray | None, fiber: np.ndarray | None, wavelength: np.ndarray) -> np.ndarray:
        return self._profiles(self._parameters(time, fiber, wavelength), self.offset)

    @staticmethod
    def _profiles(parameters: np.ndarray, offset: np.ndarray) -> np.ndarray:
        if parameters.shape[0] == 0:
            return np.empty((0, offset.shape[-1]))
        real, imag = characteristic(parameters, frequencies(parameters[:, 2]))
        return series(real, imag, offset)

    def evaluate(
        self,
        offset: u.Quantity,
        *,
        time: Time,
        fiber: int | np.ndarray,
        wavelength: u.Quantity,
        medium: str = "vacuum",
        extrapolate: bool = False,
    ) -> np.ndarray:
        """The profile itself at any offsets: no grid, no interpolation, no window.

        Parameters
        ----------
        offset : `~astropy.units.Quantity`, (p,) or (..., p)
            Observed minus true wavelength. Leading axes are the broadcast shape of the labels.
        time, fiber, wavelength, medium, extrapolate
            As `profile` takes them.

        Returns
        -------
        ndarray (..., p)
            Per Angstrom, unit area over all offsets, not negative; good to 1e-8 of the peak.

        Raises
        ------
        OutOfRangeError
            A fibre or, without ``extrapolate``, a wavelength that the arm does not have.
        ValueError
            Shapes that do not fit.

        Examples
        --------
        >>> import astropy.units as u, numpy as np
        >>> from astropy.time import Time
        >>> ip = SimulatedIP("red")
        >>> x = np.arange(-20, 20, 0.25) * u.AA
        >>> h = ip.evaluate(x, time=Time("2018-02-01T14:00"), fiber=7, wavelength=6600 * u.AA)
        >>> print(f"{h.sum() * 0.25:.6f}")
        1.000000
        """
        vacuum, fibers, lmjm, shape = self._labels(time, fiber, wavelength, medium, extrapolate)
        x = np.atleast_1d(to_angstrom(offset, "offset"))
        parameters = self._parameters(lmjm, fibers, vacuum)
        if x.ndim > 1:
            try:
                x = np.broadcast_to(x, (*shape, x.shape[-1])).reshape(-1, x.shape[-1])
            except ValueError:
                raise ValueError(f"offset of shape {x.shape} does not fit labels of shape {shape}") from None
        return self._profiles(parameters, x).reshape((*shape, x.shape[-1]))


def _uniform(offset: u.Quantity) -> np.ndarray:
    x = to_angstrom(offset, "offset")
    if x.ndim != 1 or x.size < 5 or not np.all(np.isfinite(x)):
        raise ValueError(f"offset must be one-dimensional and finite with at least 5 samples, got shape {x.shape}")
    step = np.diff(x)
    if np.any(step <= 0) or np.ptp(step) > 1e-6 * step.mean():
        raise ValueError("offset must increase in uniform steps")
    return np.array(x)
