"""
A model trained from arcs
=========================

From the arc exposures of a small simulated season to a model of the instrumental profile, and how good that is.
Training needs torch (``pip install lamost-lsf[train]``); using the model does not.
"""

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np

import lamost_lsf as ll
from lamost_lsf.arcs import ArcExposure, extract_profiles
from lamost_lsf.figures import plot_fibers, plot_losses
from lamost_lsf.simulation import SimulatedIP, simulate_season

# %%
# Arcs
# ----
# Eight exposures in four nights, thirty fibres, fibre 155 with a defect. For real ones:
# ``ArcExposure.read("arc.fits")``.

truth = SimulatedIP("blue", 1)
season = simulate_season(truth, 2017, n_exposures=8, n_nights=4, seed=1, fiber=list(range(141, 171)), dead_fibers=[])
arcs = [ArcExposure.from_simulation(arc, instrument="lamost-lrs-blue") for arc in season]
first, *others = [extract_profiles(arc) for arc in arcs]
profiles = first.concatenate(*others)
print(profiles)

# %%
# Training
# --------
# Far fewer steps than the default, which is for a whole season. One fifth of the exposures is held out.

settings = {"epochs": 20, "refine_epochs": 5, "rounds": 2, "min_steps": 300, "hidden": 48, "batch_size": 512}
model, history = ll.train(profiles, settings=settings)
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax = plot_losses(history, ax=ax)

# %%
# Residuals
# ---------
# Observed minus predicted on the detector's own pixels, amplitude and background refitted, line by line:

result = ll.evaluate(model, profiles)
result.by("line")["line", "n", "dispersion", "dispersion_over_noise"].pprint()

# %%
# The fibre with a defect and its neighbours:

fig = plot_fibers(model, profiles, (154, 155, 156), plt.figure(figsize=(9, 4.2), layout="constrained"))

# %%
# Against the truth
# -----------------
# Only a simulation knows it. Between the lines nothing was observed; the model has to interpolate.

time, fiber = arcs[3].time, 150
lines = np.unique(profiles.wavelength)
middle = 0.5 * (lines[3] + lines[4])
fig, axes = plt.subplots(2, 2, figsize=(9, 4.6), sharex=True, height_ratios=(2, 1), layout="constrained")
for (top, bottom), w, name in zip(axes.T, (lines[3], middle), ("at a line", "half-way between two lines")):
    predicted = model.profile(time=time, fiber=fiber, wavelength=w * u.AA).normalized("peak")
    true = truth.profile(time=time, fiber=fiber, wavelength=w * u.AA).normalized("peak")
    x = predicted.offset.to_value(u.AA)
    expected = np.interp(x, true.offset.to_value(u.AA), true.flux)
    top.plot(x, expected, color="0.6", lw=4, label="truth")
    top.plot(x, predicted.flux, color="C3", lw=1, label="model")
    bottom.fill_between(x, -predicted.error, predicted.error, color="0.85", label="predicted error")
    bottom.plot(x, predicted.flux - expected, color="C3", lw=1)
    bottom.set(xlabel="observed - true wavelength [Å]", ylim=(-0.006, 0.006))
    top.set_title(f"{w:.0f} Å, {name}", fontsize="medium")
axes[0, 0].set_ylabel("flux / peak")
axes[1, 0].set_ylabel("model - truth")
axes[0, 0].legend(frameon=False)
axes[1, 1].legend(frameon=False, fontsize="small", loc="lower right")
