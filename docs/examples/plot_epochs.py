"""
One star over a change of the instrument
========================================

The instrumental profile of LAMOST became wider and changed its shape between two seasons, and the velocities of a star
that had not moved jumped (Liu et al. 2026, section 5). Here the star, the arcs and the change are simulated, without
noise: what is left is what the methods do by themselves.
"""

import astropy.units as u
import matplotlib.pyplot as plt
from astropy.time import Time

from lamost_lsf.experiments import center_stability, rv_epochs, simulate_epochs, simulate_profiles
from lamost_lsf.experiments.figures import plot_centers, plot_jumps, plot_rv_epochs
from lamost_lsf.figures import plot_epochs
from lamost_lsf.simulation import Observatory, SimulatedIP, synthetic_template

# %%
# The change
# ----------
# The profile of one fibre at two dates. It does not move as a whole: it leans differently, and how far its centre moves
# depends on what is called its centre.

observatory = Observatory()
times = Time(["2017-01-10T15:00", "2022-01-12T15:00"])
waves = [4046.57, 4358.34, 5085.82] * u.AA
fig = plt.figure(figsize=(10, 3.4), layout="constrained")
plot_epochs(observatory.ip(1, "blue"), times, fig, fiber=[100], wavelength=waves, medium="air")

# %%
# Velocities
# ----------
# Exposures before and after, in the detector's pixels, with an arc every night. Three ways to a velocity: a Gaussian
# kernel; the profile itself as the kernel, zero at one of its centres, on wavelengths that a pipeline made with
# Sérsic's centre; and the same on wavelengths made anew from the arcs with that very centre.

star = synthetic_template(6200, wavelength_range=(4100, 4650) * u.AA)
visits = simulate_epochs(star, observatory, n_exposures=12, n_nights=4, arcs_per_night=1, noise=False)
centers = ["max", "centroid", "sersic", "half"]
result = rv_epochs(visits, star, observatory, window=4359.56 * u.AA, centers=centers, mixing=True)
table = result.summary()
table[table["method"] != "mixed"]["method", "kernel_center", "mean", "jump"].pprint(max_width=-1)

# %%
# Each velocity, in order of time. With the same centre in wavelengths and kernel the jump is gone, whatever the centre.

plot_rv_epochs(result, plt.figure(figsize=(12, 6.4), layout="constrained"))

# %%
# Two centres mixed
# -----------------
# Rows are the centres that the wavelengths were made with, columns those of the kernel. Only the diagonal is free.

fig, ax = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
plot_jumps(result, ax)

# %%
# Which centre?
# -------------
# Without noise, none is better. With noise, the maximum is the worst by far: the same line in 60 noisy arcs of a
# season, and the true profiles of the same moments.

ip = SimulatedIP("blue")
profiles = simulate_profiles(ip, n_exposures=60, fiber=60)
stability = center_stability(profiles, ip, wavelength=4359.56 * u.AA)
plot_centers(stability, plt.figure(figsize=(9.5, 5.2), layout="constrained"))
plt.show()
