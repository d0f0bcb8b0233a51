"""From library spectra to what a network is trained on: degraded inputs, scaled SEDs, and who belongs to which star."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import astropy.units as u
import numpy as np
from astropy.table import Table, vstack
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from specutils import Spectrum

from lamost_lsf.convolution import convolve
from lamost_lsf.lsf import LSF
from lamost_lsf.sed.grids import INPUT_GRID, OUTPUT_GRID, WavelengthGrid
from lamost_lsf.sed.libraries_base import Library
from lamost_lsf.sed.libraries_resolution import scaled_seds

__all__ = ["SpectralSet", "convolve_library", "prepare_set"]


@dataclass(frozen=True, repr=False)
class SpectralSet:
    """Spectra of stars as inputs and SEDs.

    Attributes
    ----------
    flux : ndarray (n, n_in), float32
        Flux per wavelength at the input's resolution on ``input_grid``, in the SED's scale; not yet divided by its
        continuum, because noise comes first.
    sed : ndarray (n, n_out), float32
        Scaled SED on ``output_grid``; NaN where it is not known.
    star : ndarray (n,)
        Which star each belongs to; a split never parts the spectra of one star.
    group : ndarray (n,) of str
        Class by which results are reported, and within which stars are smoothed (`Augmentation.smooth`).
    input_grid, output_grid : WavelengthGrid
    labels : `~astropy.table.Table`
        One row a spectrum, as the library gave it.
    """

    flux: np.ndarray
    sed: np.ndarray
    star: np.ndarray
    group: np.ndarray
    input_grid: WavelengthGrid = INPUT_GRID
    output_grid: WavelengthGrid = OUTPUT_GRID
    labels: Table = field(default_factory=Table)

    def __repr__(self) -> str:
        groups = ", ".join(f"{np.sum(self.group == g)} of {g}" for g in np.unique(self.group))
        stars = np.unique(self.star).size
        return (
            f"<SpectralSet of {len(self)} spectra of {stars} stars ({groups}), {self.input_grid}, {self.output_grid}>"
        )

    def __post_init__(self) -> None:
        n = len(self.flux)
        shapes = {"flux": (n, len(self.input_grid)), "sed": (n, len(self.output_grid)), "star": (n,), "group": (n,)}
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {np.shape(getattr(self, name))}")
        if len(self.labels) not in (0, n):
            raise ValueError(f"labels must have {n} rows, got {len(self.labels)}")
        if n == 0:
            raise ValueError("a set needs at least one spectrum")
        if not np.all(np.isfinite(self.flux)):
            raise ValueError("input spectra must be finite")
        known = np.isfinite(self.sed)
        if not known.any(axis=1).all() or np.any(self.sed[known] <= 0):
            raise ValueError("SEDs must be positive where they are known, and known somewhere")

    def __len__(self) -> int:
        return len(self.flux)

    def take(self, which: np.ndarray) -> SpectralSet:
        """Some of the spectra, by number or by a bool for each."""
        which = np.asarray(which)
        labels = self.labels[which] if len(self.labels) else self.labels
        return SpectralSet(
            self.flux[which], self.sed[which], self.star[which], self.group[which], self.input_grid, self.output_grid,
            labels,
        )  # fmt: skip

    @classmethod
    def concatenate(cls, sets: Sequence[SpectralSet]) -> SpectralSet:
        """Several sets on the same grids as one.

        Raises
        ------
        ValueError
            No set, or sets on different grids.
        """
        sets = list(sets)
        if not sets or any((s.input_grid, s.output_grid) != (sets[0].input_grid, sets[0].output_grid) for s in sets):
            raise ValueError("sets to join must be on the same grids, and at least one")
        labels = (
            vstack([s.labels for s in sets], metadata_conflicts="silent")
            if all(len(s.labels) for s in sets)
            else Table()
        )
        return cls(
            *(np.concatenate([getattr(s, name) for s in sets]) for name in ("flux", "sed", "star", "group")),
            sets[0].input_grid, sets[0].output_grid, labels,
        )  # fmt: skip

    def split(self, share: float = 0.75, *, seed: int = 0) -> tuple[SpectralSet, SpectralSet]:
        """Two parts by star, at random within each group: ``share`` of the stars, and the others.

        Raises
        ------
        ValueError
            A share that leaves one part empty.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        chosen = np.zeros(len(self), dtype=bool)
        for stars in self._shuffled_stars(seed):
            chosen |= np.isin(self.star, stars[: round(share * len(stars))])
        if not chosen.any() or chosen.all():
            raise ValueError(f"a share of {share} leaves one part of {len(self)} spectra empty")
        return self.take(chosen), self.take(~chosen)

    def folds(self, n: int = 4, *, seed: int = 0) -> Iterator[tuple[SpectralSet, SpectralSet]]:
        """Training and test sets of a cross-validation by star: every star is in one test set, and in one only.

        A test set of a few dozen stars tells a scatter to 10 or 20 per cent; together, the test sets tell it from all
        stars. Each group's stars are shared out as evenly as they can be.

        Raises
        ------
        ValueError
            Fewer than two folds, or more than the largest group has stars.
        """
        shuffled = self._shuffled_stars(seed)
        if not 2 <= n <= max(len(stars) for stars in shuffled):
            raise ValueError(f"n must be at least 2 and at most the number of stars of the largest group, got {n}")
        for k in range(n):
            test = np.isin(self.star, np.concatenate([stars[k::n] for stars in shuffled]))
            yield self.take(~test), self.take(test)

    def distinct(self) -> SpectralSet:
        """One spectrum a star, the first: a star of many copies then counts as one, in training and in a test."""
        return self.take(np.sort(np.unique(self.star, return_index=True)[1]))

    def by_label(self, name: str, edges: Sequence[float]) -> SpectralSet:
        """The same spectra in groups by a label, such as "5000-6500" of ``by_label("teff", [5000, 6500, 8000])``.

        Spectra whose label is unknown or beyond the edges are left out; the last edge belongs to the last group.

        Raises
        ------
        ValueError
            No such label, edges that do not rise, or no spectrum between them.
        """
        if name not in self.labels.colnames:
            raise ValueError(f"no label {name!r}; there are {', '.join(self.labels.colnames) or 'none'}")
        edges = np.asarray(edges, dtype=np.float64)
        if edges.ndim != 1 or edges.size < 2 or not np.all(np.diff(edges) > 0):
            raise ValueError(f"edges must be at least two rising numbers, got {edges}")
        values = np.ma.filled(np.ma.asarray(self.labels[name], dtype=np.float64), np.nan)
        inside = (values >= edges[0]) & (values <= edges[-1])
        if not inside.any():
            raise ValueError(f"none of {len(self)} spectra has {name} between {edges[0]:g} and {edges[-1]:g}")
        number = np.clip(np.searchsorted(edges, values[inside], side="right") - 1, 0, edges.size - 2)
        names = np.array([f"{low:g}-{high:g}" for low, high in pairwise(edges)])
        return replace(self.take(inside), group=names[number])

    def _shuffled_stars(self, seed: int) -> list[np.ndarray]:
        """Names of each group's stars in random order; a star of several groups counts in the first."""
        rng = np.random.default_rng(seed)
        shuffled: list[np.ndarray] = []
        seen: set = set()
        for group in np.unique(self.group):
            stars = [s for s in np.unique(self.star[self.group == group]) if s not in seen]
            seen.update(stars)
            shuffled.append(rng.permutation(np.array(stars, dtype=self.star.dtype)))
        return shuffled


def convolve_library(library: Library, lsf: LSF, grid: WavelengthGrid) -> Library:
    """Library convolved with any LSF onto a grid, by `lamost_lsf.convolve`.

    Parameters
    ----------
    library : Library
        Much sharper than the LSF: its own width is not taken out (`Library.degrade` does that for Gaussians).
    lsf : LSF
        Such as ``archive.lsf_for(spectrum)``: then inputs look as that spectrograph, fibre and night make them.
    grid : WavelengthGrid

    Returns
    -------
    Library
        NaN where more than 1e-3 of a pixel's kernel lies beyond a spectrum.
    """
    # what is linear in the flux is done on the few basis vectors, where the library has them
    rows = library._flux if library._basis is None else library._basis
    spectrum = Spectrum(flux=rows * u.one, spectral_axis=library.wavelength * u.AA)
    result = np.asarray(convolve(spectrum, lsf, grid.spectral_axis).flux.value)
    changed = {"flux": result} if library._basis is None else {"basis": result}
    return library._replace(wavelength=grid.wavelength, fwhm=None, **changed)


def prepare_set(
    library: Library,
    *,
    input_grid: WavelengthGrid = INPUT_GRID,
    output_grid: WavelengthGrid = OUTPUT_GRID,
    input_fwhm: float | Callable[[np.ndarray], np.ndarray] | None = None,
    input_lsf: LSF | None = None,
) -> SpectralSet:
    """Make a training set of a library's spectra (Yang et al. 2024, section 2.1).

    Parameters
    ----------
    library : Library
        From `read_library`, or one's own.
    input_grid, output_grid : WavelengthGrid
        The paper's by default. The library has to cover the input grid; beyond its ends the SED is unknown (NaN).
    input_fwhm : float or callable, optional
        FWHM of the inputs, Angstrom, or a function of vacuum wavelength that gives it. By default that of the grid's
        resolving power. A library that is hardly sharper needs its own here:
        ``lambda w: np.maximum(2.5, w / 2000)`` for MILES.
    input_lsf : LSF, optional
        Any LSF instead, such as the real one of LAMOST; see `convolve_library`.

    Returns
    -------
    SpectralSet
        Stars by name, in groups by the first letter of their type.

    Raises
    ------
    ValueError
        Spectra with missing flux in the input range, a SED that is not positive, or a library coarser than the result.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.table import Table, vstack
    >>> from lamost_lsf.sed import Library, WavelengthGrid, prepare_set
    >>> wavelength = np.arange(3800.0, 7400.0, 0.5)
    >>> flux = np.ones((3, wavelength.size))
    >>> flux[:, (wavelength > 4860) & (wavelength < 4865)] = [[0.2], [0.5], [0.8]]
    >>> library = Library("mine", Table({"name": ["a", "b", "c"]}), wavelength, flux)
    >>> spectra = prepare_set(library, output_grid=WavelengthGrid(200, 4000, 7000))
    >>> spectra.flux.shape, spectra.sed.shape
    ((3, 2238), (3, 223))
    """
    if not isinstance(library, Library):
        raise TypeError(f"library must be a Library (read_library gives one), got {type(library).__name__}")
    if input_fwhm is not None and input_lsf is not None:
        raise ValueError("give input_fwhm or input_lsf, not both")
    if input_lsf is not None:
        inputs = convolve_library(library, input_lsf, input_grid)
    elif input_fwhm is not None:
        inputs = library.degrade(input_grid.spectral_axis, fwhm=input_fwhm)
    else:
        inputs = library.degrade(input_grid.spectral_axis, resolving_power=input_grid.resolving_power)
    flux = inputs.flux
    missing = ~np.isfinite(flux).all(axis=1)
    if missing.any():
        w = library.wavelength
        raise ValueError(
            f"{missing.sum()} of {len(library)} spectra (library {library.name}, {w[0]:.0f}-{w[-1]:.0f} A) have no "
            f"flux in part of the input range {input_grid.start:.0f}-{input_grid.stop:.0f} A: choose others"
        )
    sed, reference = scaled_seds(library, output_grid)
    flux = flux / reference[:, None]
    return SpectralSet(
        flux.astype(np.float32), sed.astype(np.float32), same_star(flux, np.asarray(library.table["name"])),
        library.classes, input_grid, output_grid, library.table,
    )  # fmt: skip


def same_star(flux: np.ndarray, name: np.ndarray, *, tolerance: float = 1e-4) -> np.ndarray:
    """Names of stars (n,), with those whose spectra are the same under one name.

    Libraries hold copies: redrock's 1466 archetypes of class A are 216 different spectra. A test star that has a copy
    in the training set tests nothing.

    Parameters
    ----------
    flux : ndarray (n, n_pix)
        Of one scale.
    name : ndarray (n,)
    tolerance : float
        Relative difference, root mean square, below which spectra are the same.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed.preparation import same_star
    >>> print(same_star(np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]]), np.array(["a", "b", "c"])))
    ['a' 'b' 'a']
    """
    relative = flux / flux.mean(axis=0)
    # a few random directions keep distances well enough to find the pairs, which are then compared in full
    directions = np.random.default_rng(0).normal(size=(flux.shape[1], 8)) / np.sqrt(flux.shape[1])
    near = cKDTree(relative @ directions).query_pairs(8.0 * tolerance, output_type="ndarray")
    distance = (
        np.sqrt(np.mean((relative[near[:, 0]] - relative[near[:, 1]]) ** 2, axis=1)) if len(near) else np.empty(0)
    )
    near = near[distance < tolerance]
    links = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(flux), len(flux)))
    _, label = connected_components(links, directed=False)
    by_name = np.unique(name, return_inverse=True)[1]
    # copies under several names, and several spectra under one name, are one star
    both = coo_array((np.ones(len(flux)), (label, by_name)), shape=(label.max() + 1, by_name.max() + 1))
    part = connected_components(bipartite(both), directed=False)[1][label]
    first = np.unique(part, return_index=True)[1]
    return name[first][np.searchsorted(part[first], part)]


def bipartite(matrix: coo_array) -> coo_array:
    """Graph whose nodes are the rows and columns of a matrix."""
    n = matrix.shape[0]
    size = n + matrix.shape[1]
    return coo_array((matrix.data, (matrix.row, n + matrix.col)), shape=(size, size))
