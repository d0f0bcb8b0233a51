"""
Spectral energy distributions from spectra
==========================================

A network learns from a library of stars what their whole spectral energy distributions look like, given no more than
normalised spectra between 4000 and 7000 A, and how well that can be known. Here the library is made up, small, and
degraded with the true profile of one fibre; real ones come from `lamost_lsf.sed.read_library`.
"""

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
import torch
from astropy.table import Table
from astropy.time import Time

from lamost_lsf import sed
from lamost_lsf.sed.figures import plot_error_comparison, plot_predictions, plot_residual_curves
from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template

torch.set_num_threads(1)

# %%
# A library
# ---------
# 120 stars with temperatures and metallicities, on one grid of wavelengths.

rng = np.random.default_rng(0)
teff = rng.uniform(5200, 9500, 120)
feh = rng.uniform(-1.0, 0.3, 120)
step = 0.1 * u.AA
stars = [synthetic_template(t, metallicity=m, step=step) for t, m in zip(teff, feh, strict=True)]
names = [f"star {k}" for k in range(len(stars))]
library = sed.Library(
    "made up",
    Table(
        {"name": names, "type": np.where(teff > 7400, "A", np.where(teff > 6000, "F", "G")), "teff": teff, "feh": feh}
    ),
    stars[0].spectral_axis.to_value(u.AA),
    np.stack([star.flux.value for star in stars]),
)

# %%
# Training
# --------
# Inputs are made with the LSF of the fibre that will be observed with, outputs with R = 200. Stars are set aside to
# test on. A real training takes tens of minutes; this one, on few stars, seconds.

observatory = Observatory()
setup = {"time": Time(["2017-01-10T13:00"]), "spectrograph": 11, "fiber": 25}
lsf = observatory.lsf(time=setup["time"][0], spectrograph=11, fiber=25)
spectra = sed.prepare_set(library, output_grid=sed.WavelengthGrid(200, 3700, 9050), input_lsf=lsf)
train, test = spectra.split(0.75, seed=1)
settings = sed.TrainSettings(epochs=80, batch_size=64, learning_rate=5e-3, validate_every=50)
model, history = sed.pretrain(train, settings)
print(model)
losses = history.to_table()

fig, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
ax.plot(losses["step"], losses["train_loss"], label="training")
ax.plot(losses["step"], losses["validation_loss"], label="validation")
ax.set(xlabel="step", ylabel="loss")
ax.legend(frameon=False)

# %%
# How good it is
# --------------
# Residuals of the test stars by class, and whether the predicted errors (dashed) are as large.

residuals = sed.evaluate(model, test, (20, 40, 80), repeats=10)
fig = plot_residual_curves(residuals, plt.figure(figsize=(9, 7), layout="constrained"))

# %%
# The same at single wavelengths: errors that are true lie on the line. Those of a network that has seen so little are
# those of the middling star: too large where spectra tell most, in F stars here.

fig, ax = plt.subplots(figsize=(5, 5), layout="constrained")
plot_error_comparison(residuals, ax, wavelength=(3800, 4252, 5000, 7206, 8800))

# %%
# A star
# ------
# An observed spectrum, in one call: it is brought to the rest frame, masks and errors are heeded, and what is unlike
# the training set is flagged.

star = simulate_star(
    synthetic_template(6400, metallicity=-0.4, step=step), observatory, velocity=-42 * u.km / u.s, snr=28, seed=3,
    center="zero", **setup,
)  # fmt: skip
result = sed.predict(model, star, -42 * u.km / u.s)
print(result.meta["flags"], f"SNR {result.meta['snr']:.0f}")

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
plot_predictions(result, ["predicted"], ax)
truth = sed.Library(
    "truth", Table({"name": ["star"]}), stars[0].spectral_axis.to_value(u.AA),
    synthetic_template(6400, metallicity=-0.4, step=step).flux.value[None],
)  # fmt: skip
true_sed, _ = sed.scale_sed(
    truth.degrade(model.output_grid.spectral_axis, resolving_power=200).flux[0], model.output_grid
)
ax.plot(model.output_grid.wavelength, true_sed, "k", lw=0.7, label="true")
ax.legend(frameon=False)
plt.show()
