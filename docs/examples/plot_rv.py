"""
Radial velocity of a star
=========================

A LAMOST-like spectrum, templates of high resolution, and the profile of the fibre that the star was seen with.
"""

import warnings

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
from astropy.time import Time

import lamost_lsf as ll
from lamost_lsf.errors import CenterMismatchWarning
from lamost_lsf.plots import plot_rv, plot_rv_chi2, plot_rv_residuals
from lamost_lsf.rv import measure_rvs
from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template

# %%
# Data
# ----
# A star of known velocity, in three exposures of one night. For real ones: ``Spectrum.read("spec-....fits.gz")``,
# templates by `lamost_lsf.io.read_template`, and ``ll.IPArchive("models/")`` in place of the observatory.

observatory = Observatory()
templates = [synthetic_template(temperature) for temperature in (5600, 6000, 6400)]
setup = {
    "time": Time(["2017-01-10T13:00", "2017-01-10T13:33", "2017-01-10T14:06"]),
    "fiber": 25,
    "spectrograph": 11,
    "velocity": -42 * u.km / u.s,
    "center": "sersic",  # what the wavelengths were calibrated with
}
star = simulate_star(templates[1], observatory, snr=60, seed=3, **setup)

# %%
# Measurement
# -----------
# The LSF follows from the header: spectrograph, fibre and the times of the exposures, of which it is the mean. Its
# centre is the one that the spectrum's wavelengths were calibrated with.

lsf = observatory.lsf_for(star)
result = ll.measure_rv(star, templates, lsf, window=(4900, 5400) * u.AA, velocity_range=(-500, 500))
print(f"{result.rv:.2f} +- {result.rv_err:.2f}, {result.frame}, {result.template}, chi2/dof {result.chi2_reduced:.2f}")

# %%

fig, (top, middle) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=(2.2, 1), layout="constrained")
plot_rv(result, ax=top)
plot_rv_residuals(result, ax=middle)
top.set_xlabel("")

# %%
# Chi-square of the trial velocities, and the parabola whose width is the error:

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
plot_rv_chi2(result, ax=ax)

# %%
# What the centre is worth
# ------------------------
# The same star without noise, and other points of the profile at lag 0. Each velocity is off by the distance between
# that point and the one that the wavelengths rest on; the package warns of such a mixture.

quiet = simulate_star(templates[1], observatory, noise=False, **setup)
names = ["sersic", "max", "gauss", "half", "fourier", "centroid"]
velocities = []
with warnings.catch_warnings():
    warnings.simplefilter("ignore", CenterMismatchWarning)
    for name in names:
        one = ll.measure_rv(
            quiet, templates[1], lsf, center=name, window=(4900, 5400) * u.AA, velocity_range=(-500, 500)
        )
        velocities.append(one.rv.to_value(u.km / u.s))
        print(f"{name:8s} {velocities[-1]:.2f} km/s")

fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax.axvline(-42, color="0.6", lw=1, label="true velocity")
ax.plot(velocities, np.arange(len(names)), "o", label="measured without noise")
ax.set_yticks(np.arange(len(names)), names)
ax.invert_yaxis()
ax.set(xlabel="radial velocity [km/s]", ylabel="centre at lag 0")
ax.legend(frameon=False)

# %%
# Many stars
# ----------
# A plate of stars, each seen through another fibre. ``measure_rvs`` finds every spectrum's LSF by its header and
# gives a table; that the errors are right shows in what the velocities are off by, in units of them.

rng = np.random.default_rng(1)
truth = rng.normal(0, 60, 48)
stars = [
    simulate_star(
        templates[1], observatory, snr=rng.uniform(15, 80), seed=k, center="sersic", time=setup["time"][:1],
        spectrograph=11, fiber=int(5 * k + 1), velocity=v * u.km / u.s,
    )
    for k, v in enumerate(truth)
]  # fmt: skip
table = measure_rvs(stars, templates[1], observatory, windows=(4900, 5400) * u.AA, velocity_range=(-500, 500))
table["spectrum", "rv", "rv_err", "chi2", "dof", "reasons"][:5].pprint()

# %%

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=(1.4, 1))
left.errorbar(table["snr"], table["rv"] - truth, table["rv_err"], fmt="o", ms=4, lw=1)
left.axhline(0, color="0.6", lw=1, zorder=0)
left.set(xlabel="signal-to-noise ratio per pixel", ylabel="measured minus true velocity [km/s]")
pull = (table["rv"] - truth) / table["rv_err"]
x = np.linspace(-4, 4, 200)
right.hist(pull, bins=np.arange(-4, 4.1, 0.5), density=True, color="0.8")
right.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), label="expected")
right.set(xlabel="in units of the error", ylabel="density")
right.legend(frameon=False)
