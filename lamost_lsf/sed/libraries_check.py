"""Clean a library of abnormal spectra, and make those it lacks, by Gaussian-process regression on its labels."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
from astropy.table import Table
from scipy.ndimage import median_filter

from lamost_lsf.sed.gaussian_process import SpectralGP, rmsae
from lamost_lsf.sed.grids import INPUT_GRID, OUTPUT_GRID, WavelengthGrid, moving_average, scale_sed
from lamost_lsf.sed.libraries_base import Library
from lamost_lsf.sed.libraries_labels import check_labels
from lamost_lsf.sed.libraries_resolution import scaled_seds
from lamost_lsf.sed.preparation import SpectralSet, same_star

__all__ = ["SpectrumFlag", "check_spectra", "clean_library", "generate_spectra", "generated_set"]


class SpectrumFlag(enum.IntFlag):
    """Why a library spectrum is not taken for normal."""

    RESIDUAL = 1  #: RMSAE (Eq. 3) against the prediction at or above the threshold
    SPIKE = 2  #: a narrow residual that stands out from those of the other stars
    BAD_PIXELS = 4  #: non-finite or non-positive flux
    NO_LABELS = 8  #: a label is unknown
    OUTSIDE = 16  #: alone in its region of the labels: the regression cannot judge it
    LABEL = 32  #: a label far from what its spectrum says (only where asked for)


def generate_spectra(gp: SpectralGP, library: Library, *, name: str | None = None) -> Library:
    """Spectra of a library's stars as the Gaussian process predicts them from their labels (appendix C).

    Parameters
    ----------
    gp : SpectralGP
        Trained on another library, say MILES at R = 2000.
    library : Library
        Whose labels are used; stars without are left out.
    name : str, optional
        Of the result.

    Returns
    -------
    Library
        With the additional columns ``novelty`` and ``outside`` (see `GPPrediction`) and the median relative error
        ``gp_error``.
    """
    stars = library[library.labelled]
    if not len(stars):
        raise ValueError(f"no star of library {library.name} has all of Teff, log g and [Fe/H]")
    prediction = gp.predict(stars.labels)
    table = Table(stars.table, copy=True)
    table["novelty"], table["outside"] = prediction.novelty, prediction.outside
    table["gp_error"] = np.median(prediction.error / np.abs(prediction.flux), axis=1)
    meta = {"reference": "predicted by a Gaussian process from labels", "source": library.name, "flux_unit": ""}
    return Library(name or f"{library.name}-gp", table, gp.wavelength, prediction.flux, meta=meta)


def generated_set(
    gp: SpectralGP,
    library: Library,
    *,
    input_grid: WavelengthGrid = INPUT_GRID,
    output_grid: WavelengthGrid = OUTPUT_GRID,
) -> SpectralSet:
    """Stars whose own spectra are too coarse for the input: inputs from their labels, SEDs observed (appendix C).

    Parameters
    ----------
    gp : SpectralGP
        From labels to scaled flux (not divided by its continuum: noise comes before that) at the input's resolution on
        ``input_grid``; `prepare_set` of MILES gives the spectra to train it with.
    library : Library
        Dereddened (`deredden`), such as CALSPEC or NGSL. Stars without labels, or whose labels lie outside those of
        ``gp``, are left out.
    input_grid, output_grid : WavelengthGrid
        Where the library does not reach, SEDs are NaN.

    Returns
    -------
    SpectralSet
        To evaluate or to fine-tune with; labels are those of `generate_spectra`.

    Raises
    ------
    ValueError
        A ``gp`` on another grid or of normalised spectra, no star that can be used, SEDs that are not positive.
    """
    if gp.wavelength.shape != input_grid.wavelength.shape or not np.allclose(gp.wavelength, input_grid.wavelength):
        raise ValueError(f"the Gaussian process is not on the input grid {input_grid}")
    if np.median(np.abs(moving_average(gp.flux) - 1.0)) < 0.01:
        raise ValueError("the Gaussian process is of normalised spectra; train it with scaled ones (SpectralSet.flux)")
    made = generate_spectra(gp, library)
    inside = ~np.asarray(made.table["outside"], dtype=bool)
    stars = library[library.labelled][inside]
    if not len(stars):
        raise ValueError(f"no star of library {library.name} lies within the labels of the Gaussian process")
    sed, _ = scaled_seds(stars, output_grid)
    # the SED tells stars apart; pixels that are missing in one tell nothing
    common = np.isfinite(sed).all(axis=0)
    star = same_star(sed[:, common], np.asarray(stars.table["name"]))
    return SpectralSet(
        made.flux[inside].astype(np.float32), sed.astype(np.float32), star, stars.classes, input_grid, output_grid,
        made.table[inside],
    )  # fmt: skip


def check_spectra(
    library: Library,
    *,
    threshold: float = 0.05,
    spike: float = 10.0,
    label: float = np.inf,
    margin: float = 1.5,
    isotropic: bool = True,
    max_iterations: int = 8,
) -> tuple[Table, SpectralGP]:
    """Flag the abnormal spectra of a library by predicting each from the labels of all others (appendix B).

    A star is abnormal whose relative residuals have an RMSAE (Eq. 3) at or above ``threshold``, or a narrow residual (a
    running median over 11 pixels taken off) of at least ``threshold`` and ``spike`` times the robust scatter of its own
    others: a spike of a pixel or two hardly shows in the RMSAE. The worst leave the training set, which is fitted
    again, until it no longer changes; every star is judged by the final set, itself left out.

    Labels that are wrong by little, or of little influence on the flux, pass that test: where labels matter (in
    `generate_spectra`; not in the training of a network), ``label`` also judges them by the spectra (`check_labels`,
    which is not of the paper).

    Parameters
    ----------
    library : Library
        Spectra on the wavelength grid to be judged, all scaled alike (by their mean flux of 5526-5586 A, say).
    threshold : float
        Of the RMSAE: 0.05 for MILES, 0.068 for NGSL in the paper.
    spike : float
        In units of the scatter; ``inf`` to judge by the RMSAE alone.
    label : float
        In units of the scatter among stars of like spectra; ``inf``, the default, does not judge labels. With 4 about
        three in a hundred good stars of MILES are lost.
    margin : float
        Stars of RMSAE below ``margin * threshold`` and without spikes train. Above 1: a set that loses its borderline
        stars predicts their like worse, and would lose more of them at each fit.
    isotropic : bool
        See `SpectralGP`.
    max_iterations : int
        At most so many fits.

    Returns
    -------
    table : `~astropy.table.Table`
        By star: ``name``, labels, ``rmsae``, ``spike`` (largest narrow residual over its scatter, 0 where none reaches
        the threshold), ``spike_wavelength``, ``novelty``, ``flag`` (`SpectrumFlag`) and ``good``. With ``label`` also
        ``label`` (the largest offset over its scatter), ``teff_offset``, ``logg_offset`` and ``feh_offset`` (given
        minus what the spectrum says).
    gp : SpectralGP
        Of the stars that train.

    Raises
    ------
    ValueError
        Fewer than 20 stars that can be used.
    """
    if not (threshold > 0 and spike > 0 and label > 0 and margin >= 1 and max_iterations >= 1):
        raise ValueError("threshold, spike, label and max_iterations must be positive, margin at least 1")
    flux, labels = np.asarray(library.flux, dtype=np.float64), library.labels
    known = library.labelled
    whole = np.all(np.isfinite(flux) & (flux > 0), axis=1)
    usable = known & whole
    if usable.sum() < 20:
        raise ValueError(f"only {usable.sum()} of {len(library)} spectra are whole and labelled; 20 are needed")
    good, seen, start = usable.copy(), [], None
    for _ in range(max_iterations):
        gp = SpectralGP(labels[good], library.wavelength, flux[good], isotropic=isotropic, start=start)
        start = gp.parameters
        score, size, where, novelty = _judge(gp, flux, labels, good, usable, threshold)
        now = usable & (score < margin * threshold) & ~(size > spike)
        # a star that nothing else can predict is neither good nor bad: it stays, flagged
        now |= usable & (novelty > 0.5)
        if now.sum() < 20:
            raise ValueError(f"only {now.sum()} spectra are normal at threshold {threshold}: check labels and scaling")
        if np.array_equal(now, good) or any(np.array_equal(now, past) for past in seen):
            break
        seen.append(good)
        good = now
    flag = np.zeros(len(library), dtype=np.int64)
    flag[usable & (score >= threshold)] |= SpectrumFlag.RESIDUAL
    flag[usable & (size > spike)] |= SpectrumFlag.SPIKE
    flag[~whole] |= SpectrumFlag.BAD_PIXELS
    flag[~known] |= SpectrumFlag.NO_LABELS
    flag[usable & (novelty > 0.5)] |= SpectrumFlag.OUTSIDE
    table = library.table["name", "type", "teff", "logg", "feh"].copy()
    table["rmsae"], table["spike"], table["spike_wavelength"] = score, size, where
    if np.isfinite(label):
        offset, ratio = check_labels(flux, labels, good, usable)
        table["label"] = ratio.max(axis=1)
        for key, column in zip(("teff", "logg", "feh"), offset.T, strict=True):
            table[f"{key}_offset"] = column
        flag[usable & (table["label"] > label)] |= SpectrumFlag.LABEL
    table["novelty"], table["flag"], table["good"] = novelty, flag, flag == 0
    return table, gp


def clean_library(library: Library, *, grid: WavelengthGrid = OUTPUT_GRID, **options: Any) -> tuple[Library, Table]:
    """Stars of a library whose SEDs are normal: degraded to a SED's grid, scaled, and judged by `check_spectra`.

    Parameters
    ----------
    library : Library
        At its own resolution.
    grid : WavelengthGrid
        On which SEDs are judged, where all stars are known.
    **options
        Of `check_spectra`.

    Returns
    -------
    library : Library
        The normal stars.
    table : `~astropy.table.Table`
        Of `check_spectra`, for all stars.

    Raises
    ------
    ValueError
        Of `check_spectra`; no pixel of the grid at which most stars are known.
    """
    low = library.degrade(grid.spectral_axis, resolving_power=grid.resolving_power)
    flux, _ = scale_sed(low.flux, grid)
    known = np.isfinite(flux).mean(axis=0) > 0.9
    if not known.any():
        raise ValueError(f"library {library.name} reaches no pixel of {grid}")
    table, _ = check_spectra(Library(library.name, library.table, grid.wavelength[known], flux[:, known]), **options)
    return library[np.asarray(table["good"])], table


def _judge(
    gp: SpectralGP, flux: np.ndarray, labels: np.ndarray, trained: np.ndarray, usable: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """RMSAE, largest narrow residual over its scatter, its wavelength and novelty of every usable star, (n_star,)."""
    n = len(flux)
    predicted, novelty = np.full_like(flux, np.nan), np.full(n, np.nan)
    one = gp.leave_one_out()
    predicted[trained], novelty[trained] = one.flux, one.novelty
    others = usable & ~trained
    if others.any():
        rest = gp.predict(labels[others])
        predicted[others], novelty[others] = rest.flux, rest.novelty
    residual = predicted[usable] / flux[usable] - 1.0
    narrow = np.abs(residual - median_filter(residual, size=(1, 11), mode="nearest"))
    # in units of what is usual at that wavelength (no pixel is quieter than those around it), then for that star
    usual = np.median(narrow, axis=0)
    unit = narrow / np.maximum(np.maximum(median_filter(usual, size=25, mode="nearest"), usual), 1e-12)
    ratio = unit / np.maximum(1.4826 * np.median(unit, axis=1, keepdims=True), 1e-12)
    # a narrow residual that would be no fault over the whole spectrum is none here
    ratio = np.where(narrow >= least, ratio, 0.0)
    score, size, where = (np.full(n, np.nan) for _ in range(3))
    score[usable] = rmsae(predicted[usable], flux[usable])
    size[usable] = ratio.max(axis=1)
    where[usable] = gp.wavelength[ratio.argmax(axis=1)]
    return score, size, where, novelty
