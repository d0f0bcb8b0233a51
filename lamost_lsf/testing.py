"""Contract tests for those who write a centre estimator or a wavelength fitter.

Two lines in the test suite of a plug-in::

    from lamost_lsf.testing import check_center
    def test_center(): check_center(my_estimator)

What is checked is what the package relies on, and nothing about which definition of a centre is the right
one. Only numpy and the package itself are needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from astropy.modeling import Model

from lamost_lsf.plugins import (
    CenterEstimator,
    WavelengthFitter,
    get_center,
    get_wavelength_fitter,
    list_plugins,
    plugin_problems,
)
from lamost_lsf.plugins.loading import call_mismatch
from lamost_lsf.plugins.records import fold_name

__all__ = ["CENTER_CHECKS", "FITTER_CHECKS", "check_center", "check_plugin", "check_wavelength_fitter"]

#: Width (FWHM) of the test profiles, in units of x.
_FWHM = 2.5


class _BrokenRuleError(AssertionError):
    """A claim of the contract does not hold."""


def _require(condition: bool, message: str) -> None:
    # Not the assert statement, which python -O removes.
    if not condition:
        raise _BrokenRuleError(message)


def _line(x: np.ndarray, center: float = 0.0, asymmetry: float = 0.0, fwhm: float = _FWHM) -> np.ndarray:
    """Line of unit peak: a Gaussian, with a weaker companion in the wing where it is to be asymmetric."""
    sigma = fwhm / np.sqrt(8.0 * np.log(2.0))
    t = (x - center) / sigma
    return np.exp(-0.5 * t**2) + asymmetry * np.exp(-0.5 * ((t - 1.1) / 1.2) ** 2)


class _CenterContract:
    def __init__(self, estimator: CenterEstimator, tolerance: float) -> None:
        self.estimator = estimator
        self.tolerance = tolerance * _FWHM
        # As many samples across the line as a LAMOST arc profile has, more than enough for any definition.
        self.x = np.linspace(-10.0, 10.0, 401)
        self.line = _line(self.x, 0.1, 0.25)

    def center(self, profile: np.ndarray, x: np.ndarray | None = None, **keywords: np.ndarray) -> float:
        """Centre of one profile, which must be one finite number."""
        x = self.x if x is None else x
        value = np.asarray(self.estimator(x, profile, **keywords))
        _require(value.shape == (), f"one profile of shape (n,) must give one number, not shape {value.shape}")
        _require(value.dtype.kind in "iuf", f"the centre must be a real number, not {value.dtype}")
        _require(bool(np.isfinite(value)), f"a clean profile of {x.size} samples gave {value}")
        return float(value)

    def same(self, value: float, expected: float, what: str, scale: float = 1.0) -> None:
        _require(
            abs(value - expected) <= self.tolerance * scale,
            f"{what}: {value:.8g}, expected {expected:.8g} within {self.tolerance * scale:.2g}",
        )

    def signature(self) -> None:
        """It can be called as (x, profile, *, error=None, mask=None); one profile gives one number."""
        mismatch = call_mismatch("center", self.estimator)
        _require(mismatch is None, f"it cannot be called as (x, profile, *, error=None, mask=None): {mismatch}")
        self.center(self.line)
        self.center(self.line, error=np.full(self.x.size, 0.01), mask=np.zeros(self.x.size, dtype=bool))

    def symmetric(self) -> None:
        """A symmetric line is centred where its axis of symmetry is."""
        for where in (0.0, 0.37, -0.81):
            self.same(self.center(_line(self.x, where)), where, f"a symmetric line at {where}")

    def mirror(self) -> None:
        """The mirrored profile has the mirrored centre: no half pixel lost, no axis flipped."""
        self.same(self.center(self.line[::-1].copy()), -self.center(self.line), "the mirrored profile")

    def shift(self) -> None:
        """A shifted line, and a shifted axis, shift the centre by as much."""
        base = self.center(_line(self.x, 0.0, 0.25))
        step = self.x[1] - self.x[0]
        for shift in (0.25 * step, 0.5 * step, 7 * step, 0.613):
            found = self.center(_line(self.x, shift, 0.25))
            self.same(found, base + shift, f"an asymmetric line shifted by {shift:.4g}")
        found = self.center(_line(self.x, 0.0, 0.25), x=self.x + 5000.0)
        self.same(found, base + 5000.0, "the axis shifted by 5000")

    def scale(self) -> None:
        """The centre does not depend on the unit of the flux."""
        base = self.center(self.line)
        for factor in (1e-17, 1e-3, 1e4):
            self.same(self.center(self.line * factor), base, f"flux times {factor:g}")

    def units(self) -> None:
        """The centre comes in the units of x, whatever they are."""
        base = self.center(self.line)
        for factor in (0.1, 20.0):
            found = self.center(self.line, x=self.x * factor)
            self.same(found, base * factor, f"x times {factor:g}", scale=factor)

    def error(self) -> None:
        """Equal errors of all samples change nothing, however large they are."""
        base = self.center(self.line)
        for sigma in (1e-3, 0.05):
            found = self.center(self.line, error=np.full(self.x.size, sigma))
            self.same(found, base, f"all errors {sigma:g}")

    def mask(self) -> None:
        """What lies under the mask is without influence, and what is left still has a centre."""
        rng = np.random.default_rng(11)
        error = np.full(self.x.size, 0.01)
        for where in (40, 190, 230):  # in the wing and on both sides of the line
            mask = np.zeros(self.x.size, dtype=bool)
            mask[where : where + 3] = True
            clean = self.center(self.line, error=error, mask=mask)
            for name, garbage in (("1000 times the peak", 1e3), ("NaN", np.nan), ("noise", None)):
                dirty, sigma = self.line.copy(), error.copy()
                dirty[mask] = rng.normal(0.0, 5.0, 3) if garbage is None else garbage
                sigma[mask] = np.nan
                found = self.center(dirty, error=sigma, mask=mask)
                self.same(found, clean, f"{name} under the mask at sample {where}", scale=0.01)
            without = self.center(self.line)
            _require(
                abs(clean - without) <= 0.2 * _FWHM,
                f"3 masked samples of {self.x.size} move the centre from {without:.4g} to {clean:.4g}",
            )

    def hopeless(self) -> None:
        """A profile without a single good sample, or without flux, gives NaN and does not raise."""
        bad = np.ones(self.x.size, dtype=bool)
        blank = np.zeros(self.x.size)
        for what, profile, mask in (
            ("all samples masked", self.line, bad),
            ("all samples NaN and masked", np.full(self.x.size, np.nan), bad),
            ("no flux at all", blank, None),
        ):
            try:
                value = self.estimator(self.x, profile.copy(), mask=mask)
            except Exception as error:
                raise _BrokenRuleError(
                    f"{what}: NaN was expected, it raised {type(error).__name__}: {error}"
                ) from error
            _require(bool(np.all(np.isnan(np.asarray(value, dtype=float)))), f"{what}: {value}, not NaN")

    def batch(self) -> None:
        """Many profiles in one call give what each gives alone; a hopeless one leaves the others alone."""
        if not getattr(self.estimator, "vectorized", False):
            return
        lines = np.array([_line(self.x, c, a) for c in (-0.4, 0.0, 0.9) for a in (0.0, 0.2)])
        errors = np.full(lines.shape, 0.01)
        masks = np.zeros(lines.shape, dtype=bool)
        masks[1, 210:214] = True
        alone = np.array(
            [self.center(f, error=e, mask=m) for f, e, m in zip(lines, errors, masks, strict=True)]
        ).reshape(3, 2)
        cube = (3, 2, self.x.size)
        args = lines.reshape(cube), errors.reshape(cube), masks.reshape(cube)
        together = np.asarray(self.estimator(self.x, args[0], error=args[1], mask=args[2]))
        _require(together.shape == (3, 2), f"profiles (3, 2, n) gave shape {together.shape}, not (3, 2)")
        difference = np.max(np.abs(together - alone))
        limit = 1e-3 * self.tolerance
        _require(
            bool(difference <= limit),
            f"a batch differs from single calls by {difference:.2g} (> {limit:.2g})",
        )
        masks[3] = True
        holed = np.asarray(self.estimator(self.x, lines, error=errors, mask=masks))
        _require(bool(np.isnan(holed[3])), "a profile that is masked altogether is not NaN in a batch")
        rest = np.delete(holed - alone.ravel(), 3)
        _require(bool(np.all(np.abs(rest) <= limit)), "a hopeless profile changes the others of its batch")
        empty = np.asarray(self.estimator(self.x, np.empty((0, self.x.size))))
        _require(empty.shape == (0,), f"profiles (0, n) gave shape {empty.shape}, not (0,)")

    def mutation(self) -> None:
        """The caller's arrays are left as they were."""
        arrays = {
            "x": self.x.copy(),
            "profile": self.line - 0.01,
            "error": np.full(self.x.size, 0.01),
            "mask": self.x > 9.0,
        }
        before = {name: array.copy() for name, array in arrays.items()}
        self.estimator(arrays["x"], arrays["profile"], error=arrays["error"], mask=arrays["mask"])
        for name, array in arrays.items():
            _require(np.array_equal(array, before[name]), f"it writes to its argument {name}")

    def uncertainty(self) -> None:
        """Its own error of the centre, if it has one, is the scatter under simulated weak noise."""
        own = getattr(self.estimator, "uncertainty", None)
        if own is None:
            return
        # Small enough that errors propagate linearly even for the position of a maximum.
        error = np.full(self.x.size, 3e-4)
        sigma = np.asarray(own(self.x, self.line, error=error))
        _require(sigma.shape == (), f"the uncertainty of one profile has shape {sigma.shape}, not ()")
        _require(bool(np.isfinite(sigma) and sigma >= 0), f"the uncertainty of a clean profile is {sigma}")
        rng = np.random.default_rng(5)
        draws = [self.center(self.line + rng.normal(0.0, error), error=error) for _ in range(400)]
        scatter = np.std(draws)
        # 400 draws know their scatter to 3.5 %; the rest allows for what is not linear.
        _require(
            0.75 * scatter - 1e-12 <= sigma <= 1.33 * scatter + 1e-12,
            f"uncertainty {float(sigma):.4g}, but the centre of simulated noise scatters by {scatter:.4g}",
        )


class _FitterContract:
    def __init__(self, fitter: WavelengthFitter, tolerance: float) -> None:
        self.fitter = fitter
        self.tolerance = tolerance
        self.domain = (0.0, 4000.0)
        self.pixel = np.sort(np.random.default_rng(3).uniform(60.0, 3940.0, 40))
        self.grid = np.linspace(*self.domain, 301)

    @staticmethod
    def curve(pixel: np.ndarray, degree: int) -> np.ndarray:
        """A spectrograph's wavelength scale, Angstrom: 0.57 A per pixel, bent by 12 A and less."""
        t = np.asarray(pixel) / 2000.0 - 1.0
        terms = (4500.0, 1140.0, -12.0, 3.0, 0.8, -0.3)
        return np.polynomial.polynomial.polyval(t, terms[: degree + 1])

    def fit(self, pixel: np.ndarray, wavelength: np.ndarray, **keywords: Any) -> Model:
        """Model of a fit, which must be an astropy model of one input and output."""
        model = self.fitter(pixel, wavelength, domain=self.domain, **keywords)
        _require(isinstance(model, Model), f"it must return an astropy Model, not {type(model).__name__}")
        _require(
            model.n_inputs == 1 and model.n_outputs == 1 and len(model) == 1,
            f"the model has {model.n_inputs} inputs, {model.n_outputs} outputs, set of {len(model)}: 1 each",
        )
        return model

    def close(self, model: Model, degree: int, what: str) -> None:
        value = np.asarray(model(self.grid), dtype=float)
        worst = np.max(np.abs(value - self.curve(self.grid, degree)))
        _require(bool(worst <= self.tolerance), f"{what}: off by {worst:.2g} (> {self.tolerance:.2g})")

    def signature(self) -> None:
        """It can be called as (pixel, wavelength, *, error=None, degree=5, domain)."""
        mismatch = call_mismatch("wavelength_fitter", self.fitter)
        form = "(pixel, wavelength, *, error=None, degree=5, domain)"
        _require(mismatch is None, f"it cannot be called as {form}: {mismatch}")

    def model(self) -> None:
        """The model is an astropy one that keeps shapes and needs no units."""
        model = self.fit(self.pixel, self.curve(self.pixel, 3), degree=3)
        _require(np.shape(model(2000.0)) == (), "a single pixel must give a single wavelength")
        value = model(self.grid.reshape(7, 43))
        _require(np.shape(value) == (7, 43), f"pixels of shape (7, 43) gave shape {np.shape(value)}")
        _require(not hasattr(value, "unit"), "the model must give plain numbers, without a unit")

    def recovers(self) -> None:
        """Lines that lie on a polynomial give that polynomial, everywhere in the domain."""
        for degree in (1, 3, 5):
            model = self.fit(self.pixel, self.curve(self.pixel, degree), degree=degree)
            self.close(model, degree, f"a polynomial of degree {degree}")
        self.close(self.fit(self.pixel, self.curve(self.pixel, 5)), 5, "the degree that is the default, 5")

    def order(self) -> None:
        """The order of the lines does not matter."""
        shuffled = np.random.default_rng(4).permutation(self.pixel)
        self.close(self.fit(shuffled, self.curve(shuffled, 3), degree=3), 3, "lines in random order")

    def degree(self) -> None:
        """The degree that is asked for is the degree that is fitted."""
        curved = self.curve(self.pixel, 2)
        straight = self.fit(self.pixel, curved, degree=1)(self.grid)
        bend = np.max(np.abs(np.diff(straight, 2)))
        _require(bool(bend <= 1e-3), f"degree=1 gave a curve (second difference {bend:.2g})")
        self.close(self.fit(self.pixel, curved, degree=2), 2, "a parabola fitted with degree=2")

    def weights(self) -> None:
        """A line counts by its error: a bad one with a large error hardly, errors in common not at all."""
        wavelength = self.curve(self.pixel, 3)
        error = np.full(self.pixel.size, 0.01)
        self.close(self.fit(self.pixel, wavelength, error=error, degree=3), 3, "equal errors")
        wrong = wavelength.copy()
        wrong[20] += 5.0
        error[20] = 1e6
        model = self.fit(self.pixel, wrong, error=error, degree=3)
        self.close(model, 3, "a line that is 5 A off with an error of 1e6 A")
        error[20] = 1e-4
        pulled = self.fit(self.pixel, wrong, error=error, degree=3)(self.pixel[20])
        _require(
            abs(pulled - wrong[20]) < 0.5,
            f"a line with 1/100 of the others' error is missed by {abs(pulled - wrong[20]):.2g} A",
        )

    def too_few(self) -> None:
        """Too few lines for the degree are a ValueError, not an arbitrary curve."""
        few = self.pixel[:4]
        try:
            self.fitter(few, self.curve(few, 3), degree=5, domain=self.domain)
        except ValueError:
            return
        except Exception as error:
            name = type(error).__name__
            raise _BrokenRuleError(f"4 lines, degree 5: ValueError expected, it raised {name}: {error}") from error
        raise _BrokenRuleError("4 lines, degree 5: ValueError expected, it returned a model")

    def mutation(self) -> None:
        """The caller's arrays are left as they were."""
        arrays = self.pixel.copy(), self.curve(self.pixel, 3), np.full(self.pixel.size, 0.01)
        before = [array.copy() for array in arrays]
        self.fit(arrays[0], arrays[1], error=arrays[2], degree=3)
        for name, array, old in zip(("pixel", "wavelength", "error"), arrays, before, strict=True):
            _require(np.array_equal(array, old), f"it writes to its argument {name}")


def _names(contract: type) -> tuple[str, ...]:
    helpers = {"center", "same", "fit", "close", "curve"}
    return tuple(name for name in vars(contract) if not name.startswith("_") and name not in helpers)


#: Names of the checks of `check_center`, for ``skip``.
CENTER_CHECKS = _names(_CenterContract)

#: Names of the checks of `check_wavelength_fitter`, for ``skip``.
FITTER_CHECKS = _names(_FitterContract)


def _run(label: str, contract: object, names: tuple[str, ...], skip: Collection[str]) -> None:
    if isinstance(skip, str) or set(skip) - set(names):
        raise ValueError(f"skip must be a collection of {', '.join(names)}; got {skip!r}")
    failures = []
    for name in names:
        if name in skip:
            continue
        check: Callable[[], None] = getattr(contract, name)
        try:
            with warnings.catch_warnings():
                # Claims are about values; what it warns of is the estimator's business.
                warnings.simplefilter("ignore")
                check()
        except Exception as error:
            text = str(error) if isinstance(error, _BrokenRuleError) else f"raised {type(error).__name__}: {error}"
            failures.append(f"  {name}: {text}\n    ({check.__doc__})")
    if failures:
        raise AssertionError(f"{label} breaks {len(failures)} of {len(names)} rules:\n" + "\n".join(failures))


def check_center(estimator: str | CenterEstimator, *, skip: Collection[str] = (), tolerance: float = 1e-3) -> None:
    """Hold a centre estimator to the contract of `lamost_lsf.plugins.CenterEstimator`.

    Parameters
    ----------
    estimator : str or callable
        Name of a centre, or the estimator.
    skip : collection of str
        Checks that a definition of its own does not meet on purpose, out of `CENTER_CHECKS`: "signature",
        "symmetric", "mirror", "shift", "scale", "units", "error", "mask", "hopeless", "batch", "mutation",
        "uncertainty".
    tolerance : float
        How well centres must agree, as a fraction of the line's FWHM.

    Raises
    ------
    AssertionError
        With all rules that are broken, and by how much.

    Examples
    --------
    >>> from lamost_lsf.testing import check_center
    >>> check_center("centroid")
    """
    contract = _CenterContract(get_center(estimator), tolerance)
    _run(f"center {_label(estimator)}", contract, CENTER_CHECKS, skip)


def check_wavelength_fitter(
    fitter: str | WavelengthFitter, *, skip: Collection[str] = (), tolerance: float = 1e-5
) -> None:
    """Hold a wavelength fitter to the contract of `lamost_lsf.plugins.WavelengthFitter`.

    Parameters
    ----------
    fitter : str or callable
        Name of a fitter, or the fitter.
    skip : collection of str
        Checks that are not met on purpose, out of `FITTER_CHECKS`: "signature", "model", "recovers", "order",
        "degree", "weights", "too_few", "mutation". A spline, say, may have no use for "degree".
    tolerance : float
        How well a noiseless polynomial must be recovered, Angstrom.

    Raises
    ------
    AssertionError
        With all rules that are broken, and by how much.

    Examples
    --------
    >>> from lamost_lsf.testing import check_wavelength_fitter
    >>> check_wavelength_fitter("legendre")
    """
    contract = _FitterContract(get_wavelength_fitter(fitter), tolerance)
    _run(f"wavelength fitter {_label(fitter)}", contract, FITTER_CHECKS, skip)


def check_plugin(name: str) -> None:
    """Check that an installed or registered plug-in loads without a fault and keeps every contract.

    Parameters
    ----------
    name : str
        Name of the plug-in, that is, of its entry point.

    Raises
    ------
    AssertionError
        If it is not there, is disabled, has a problem, or one of its objects breaks its contract.

    Examples
    --------
    >>> from lamost_lsf.testing import check_plugin
    >>> check_plugin("nonesuch")
    Traceback (most recent call last):
      ...
    AssertionError: plug-in 'nonesuch' offers nothing: it is not installed, disabled, or faulty
    """
    folded = fold_name(name)
    problems = [str(problem) for problem in plugin_problems() if fold_name(problem.plugin) == folded]
    if problems:
        raise AssertionError("\n".join(problems))
    with warnings.catch_warnings():
        # Those of other plug-ins.
        warnings.simplefilter("ignore")
        table = list_plugins()
    checks = {"center": check_center, "wavelength_fitter": check_wavelength_fitter}
    rows = [row for row in table if row["kind"] in checks and row["qualified_name"].startswith(f"{folded}:")]
    if not rows:
        raise AssertionError(f"plug-in {name!r} offers nothing: it is not installed, disabled, or faulty")
    for row in rows:
        checks[row["kind"]](str(row["qualified_name"]))


def _label(target: object) -> str:
    if isinstance(target, str):
        return repr(target)
    return repr(getattr(target, "__name__", type(target).__name__))
