"""
An asymmetric profile against a Gaussian
========================================

Two absorption lines of a template as a skew instrumental profile records them, and as a Gaussian of the same width
would. The wavelength at which the lines appear differs, and that is what a radial velocity is made of.
"""

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
from astropy.time import Time
from specutils import Spectrum

import lamost_lsf as ll
from lamost_lsf.simulation import Observatory

# %%
# The profile
# -----------
# The simulated observatory stands for an archive of trained models: ``ll.IPArchive("models/")`` has the same methods.

lsf = Observatory().lsf(spectrograph=11, time=Time("2017-01-10T13:33"), fiber=25)
ip = lsf.profile([4200, 5180] * u.AA)
for w, fwhm, skewness in zip(ip.wavelength, ip.fwhm, ip.skewness):
    print(f"{w:.0f}: FWHM {fwhm:.2f}, skewness {skewness:+.2f}")

# %%
# A Gaussian of the same width at 5180 A, as it is commonly used:

gaussian = ll.GaussianIP(resolving_power=float(5180 * u.AA / ip[1].fwhm))

# %%
# Convolution
# -----------
# `lamost_lsf.convolve` takes the profile of each *true* wavelength and returns the spectrum on any pixels: LAMOST's.

rest = np.arange(5100, 5260, 0.02) * u.AA
depth = sum(0.9 * np.exp(-0.5 * ((rest.value - w) / 0.15) ** 2) for w in (5168.76, 5185.05))
template = Spectrum(flux=(1 - depth) * u.one, spectral_axis=rest)
pixels = 10 ** np.arange(np.log10(5150), np.log10(5200), 1e-4) * u.AA
fine = np.arange(5150, 5200, 0.05) * u.AA

seen = ll.convolve(template, lsf, pixels)
seen_fine = ll.convolve(template, lsf, fine)
smooth_fine = ll.convolve(template, gaussian, fine)

# %%
# What the lines look like
# ------------------------
# The skew profile has a steep and a shallow side. Its lines are not merely displaced: no shift makes the curves agree.

fig, axes = plt.subplot_mosaic(
    [["profile", "lines"], ["profile", "difference"]],
    figsize=(10, 4.6), layout="constrained", width_ratios=(1, 1.5), height_ratios=(2.2, 1),
)  # fmt: skip
skew, smooth = "C0", "C3"
ax = axes["profile"]
ax.plot(ip.offset.to_value(u.AA), ip[1].normalized("peak").flux, color=skew, label="instrumental profile, 5180 Å")
gauss = gaussian.profile(wavelength=5180 * u.AA).normalized("peak")
ax.plot(gauss.offset.to_value(u.AA), gauss.flux, color=smooth, ls="--", label="Gaussian of the same FWHM")
for name, style in (("half", ":"), ("centroid", "-.")):
    ax.axvline(ip[1].center(name).to_value(u.AA), ymax=0.66, color="0.5", lw=1, ls=style, label=f"its centre, {name!r}")
ax.set(xlim=(-6, 6), ylim=(-0.05, 1.55), xlabel="observed - true wavelength [Å]", ylabel="flux / peak")
ax.legend(frameon=False, fontsize="small", loc="upper left")

ax = axes["lines"]
ax.plot(fine, seen_fine.flux, color=skew, label="instrumental profile")
ax.plot(pixels, seen.flux, "o", ms=3, color=skew, label="... on LAMOST's pixels")
ax.plot(fine, smooth_fine.flux, color=smooth, ls="--", label="Gaussian")
ax.set(xlim=(5155, 5198), ylim=(0.86, 1.04), ylabel="flux")
ax.tick_params(labelbottom=False)
ax.legend(frameon=False, fontsize="small", loc="upper center", ncols=3)

ax = axes["difference"]
ax.plot(fine, seen_fine.flux - smooth_fine.flux, color="k", lw=1)
for w in (5168.76, 5185.05):
    ax.axvline(w, color="0.8", lw=1, zorder=0)
    axes["lines"].axvline(w, ymax=0.85, color="0.8", lw=1, zorder=0)
ax.set(xlim=(5155, 5198), xlabel="vacuum wavelength [Å]", ylabel="difference")

# %%
# In velocity
# -----------
# By how much a line seems to move depends on the definition of its centre. A calibration by arcs uses one; templates
# must be convolved with the same one at lag 0 (``center=``), then the velocities agree.

for name in ("max", "half", "centroid", "sersic"):
    shift = (ip[1].center(name) / (5180 * u.AA)).to_value(u.one) * 299792.458
    print(f"{name:8s} {shift:+6.2f} km/s from the zero of the wavelength scale")
