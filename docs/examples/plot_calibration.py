"""
A wavelength scale from an arc
==============================

Lines of an arc lamp, found, centred and fitted; what the residuals say; a drift after the arc, taken out by sky lines;
and why the definition of a line's centre belongs to the scale. The exposures are simulated, so that the truth is known.
"""

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
from astropy.time import Time

from lamost_lsf.calibration import ArcSeries, calibrate, recalibrate
from lamost_lsf.calibration.shift import center_difference
from lamost_lsf.instruments import get_instrument
from lamost_lsf.simulation import SimulatedIP, simulate_arc, simulate_sky

# %%
# The arc
# -------
# Neon and argon in the red arm, every tenth fibre. For real ones: ``ArcExposure.read("arc.fits")``, or bare counts with
# ``rough=``; without any rough scale the lines are identified by their pattern.

ip = SimulatedIP("red")
lines = get_instrument("lamost-lrs-red").lines
evening, fibers = Time("2018-01-10T11:00"), np.arange(5, 250, 10)
arc = simulate_arc(ip, evening, fiber=fibers, dead_fibers=0, seed=1)
calibration = calibrate(arc, lines, center="half")
print(calibration)

# %%
# Residuals
# ---------
# Above, one fibre with its identified lines; below, how far they lie from the curve of degree 5, in all fibres (grey)
# and in this one. A line that is off in every fibre has a wrong wavelength, or a neighbour that nobody listed.

row = int(np.argmin(np.abs(fibers - 125)))
solution = calibration[row]
pixel = np.arange(arc.flux.shape[1])
fig, (top, bottom) = plt.subplots(
    2, 1, figsize=(9, 5.4), sharex=True, gridspec_kw={"height_ratios": (1.4, 1)}, layout="constrained"
)
top.semilogy(solution(pixel).value, np.maximum(arc.flux[row], 10.0), lw=0.6, color="0.3")
table = solution.lines
used = np.asarray(table["used"], dtype=bool)
top.plot(table["wavelength"][used].value, np.full(used.sum(), 18.0), "|", color="C0", ms=10, label="lines used")
top.set(ylabel="electrons", title=f"fibre {fibers[row]}: rms {solution.rms(u.pix):.4f}")
top.legend(loc="upper left")
step = solution.dispersion(pixel.mean()).to_value(u.AA / u.pix)
for one in calibration:
    good = np.asarray(one.lines["used"], dtype=bool)
    bottom.plot(one.lines["wavelength"][good].value, one.lines["residual"][good].value / step, ".", color="0.8", ms=4)
bottom.errorbar(
    table["wavelength"][used].value, table["residual"][used].value / step, table["error"][used].value / step, fmt="o",
    color="C0", ms=4,
)  # fmt: skip
bottom.axhline(0, color="0.5", lw=0.8)
_ = bottom.set(xlabel="wavelength in vacuum (Angstrom)", ylabel="residual (pixel)")

# %%
# A drift since the arc
# ---------------------
# Five hours later the light has moved by 0.4 Angstrom, half a pixel or 16 km/s. Night-sky lines, centred as the arc's
# were, take it out; the scale is then compared with the truth. From 7500 to 8300 Angstrom the lamp has no line that
# stands alone, and the curve has the least to hold on to.

series = ArcSeries([arc], lines, center="half")
science = simulate_sky(ip, evening + 5 * u.h, fiber=fibers, dead_fibers=0, drift=0.4 * u.AA, seed=2)


def off(result):
    """Scale less where the half-flux point of a line truly is, Angstrom, one value a fibre and wavelength."""
    wave = np.linspace(6300, 8300, 9)
    profile = ip.profile(time=science.time, fiber=fibers[:, None], wavelength=wave * u.AA)
    place = wave + profile.center("half").to_value(u.AA)
    truth = science.meta["truth"]["wavelength"]
    return wave, np.array([
        np.interp(np.interp(w, t, pixel), pixel, scale) - wave
        for w, t, scale in zip(place, truth, result.wavelength, strict=True)
    ])  # fmt: skip


fig, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
for name, sky, color in (("the arc's scale", False, "C3"), ("corrected by sky lines", True, "C0")):
    wave, error = off(recalibrate(science, series, center="half", sky=sky))
    ax.plot(wave + (20 if sky else -20), error.T, ".", color=color, ms=4)
    ax.plot([], [], ".", color=color, label=f"{name}: mean {error.mean():+.3f}, scatter {error.std():.3f} Angstrom")
ax.axhline(0, color="0.5", lw=0.8)
ax.set(xlabel="wavelength in vacuum (Angstrom)", ylabel="scale less truth (Angstrom)", ylim=(-0.1, 0.55))
_ = ax.legend(loc="center right")

# %%
# Another centre, another scale
# -----------------------------
# The same arc with Sérsic's centre gives another scale, because the profile is skew. How far they are apart is known
# from the profile alone, and so published wavelengths can be moved from one centre to the other without their arc
# (`~lamost_lsf.calibration.shift_center`).

other = calibrate(arc, lines, center="sersic")
wave = np.linspace(6000, 8400, 100)
fig, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
for k, number in enumerate((15, 125, 235)):
    i = int(np.argmin(np.abs(fibers - number)))
    at = np.interp(wave, calibration[i](pixel).value, pixel)
    measured = other[i](at).value - calibration[i](at).value
    lsf = ip.at(time=evening, fiber=int(fibers[i]))
    predicted = -center_difference(lsf, wave * u.AA, to="sersic", from_="half").value
    ax.plot(wave, measured, color=f"C{k}", label=f"fibre {fibers[i]}: two calibrations")
    ax.plot(wave, predicted, "--", color=f"C{k}", lw=1, label="from the profile")
ax.set(xlabel="wavelength in vacuum (Angstrom)", ylabel="Sérsic less half (Angstrom)")
ax.legend(ncols=3, fontsize="small")
plt.show()
