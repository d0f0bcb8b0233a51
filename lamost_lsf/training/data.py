"""What training works on: labels of every line and its reduced pixel likelihood, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamost_lsf.time import night_number
from lamost_lsf.training.basis import ProfileBasis
from lamost_lsf.training.statistics import LineStatistics, line_statistics

__all__ = ["Labels", "PackedStatistics"]


@dataclass(frozen=True)
class Labels:
    """Labels of n lines.

    Attributes
    ----------
    lmjm, fiber, wavelength : ndarray (n,)
        Local modified Julian minutes, fibre number, true vacuum wavelength in Angstrom.
    line, exposure : ndarray (n,)
        Number of the line in the instrument's list, and of the exposure.
    """

    lmjm: np.ndarray
    fiber: np.ndarray
    wavelength: np.ndarray
    line: np.ndarray
    exposure: np.ndarray

    def __len__(self) -> int:
        return self.lmjm.size

    def __getitem__(self, item: Any) -> Labels:
        return Labels(*(getattr(self, name)[item] for name in ("lmjm", "fiber", "wavelength", "line", "exposure")))

    @property
    def night(self) -> np.ndarray:
        """Local night of each line."""
        return night_number(self.lmjm)


class PackedStatistics:
    """Reduced normal equations of many lines as rows of float32: upper triangle of M, v, s, number of pixels.

    Parameters
    ----------
    rows : ndarray or memmap (n, width)
    n_functions : int
        K + 1.
    """

    def __init__(self, rows: np.ndarray, n_functions: int) -> None:
        self.rows = rows
        self.n_functions = n_functions
        self._upper = np.triu_indices(n_functions)
        index = np.zeros((n_functions, n_functions), dtype=np.int64)
        index[self._upper] = np.arange(self._upper[0].size)
        #: element of a row for each element of M
        self.unpack = np.maximum(index, index.T)

    @staticmethod
    def width(n_functions: int) -> int:
        """Numbers in a row."""
        return n_functions * (n_functions + 1) // 2 + n_functions + 2

    @classmethod
    def allocate(cls, n: int, n_functions: int, path: Path | None = None) -> PackedStatistics:
        """Empty rows, in memory or in a file that is mapped."""
        shape = (n, cls.width(n_functions))
        if path is None:
            return cls(np.empty(shape, dtype=np.float32), n_functions)
        return cls(np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape), n_functions)

    def __len__(self) -> int:
        return self.rows.shape[0]

    def put(self, item: Any, stats: LineStatistics) -> None:
        """Write the statistics of some lines: a slice, or their numbers."""
        block = np.empty((len(stats), self.rows.shape[1]), dtype=np.float32)
        t = self._upper[0].size
        block[:, :t] = stats.matrix[:, self._upper[0], self._upper[1]]
        block[:, t : t + self.n_functions] = stats.vector
        block[:, -2] = stats.scalar
        block[:, -1] = stats.n_pixels
        self.rows[item] = block

    def get(self, item: Any) -> LineStatistics:
        """Statistics of some lines, as float64."""
        block = np.asarray(self.rows[item], dtype=np.float64)
        t = self._upper[0].size
        return LineStatistics(
            block[:, self.unpack], block[:, t : t + self.n_functions], block[:, -2], block[:, -1].astype(np.int64),
            np.ones(block.shape[0]),
        )  # fmt: skip

    def chunks(self, index: np.ndarray, size: int = 16384) -> Iterator[tuple[np.ndarray, LineStatistics]]:
        """Lines of ``index`` in chunks: their numbers and statistics."""
        for start in range(0, index.size, size):
            part = index[start : start + size]
            yield part, self.get(part)

    @classmethod
    def from_pixels(
        cls, pixels: Iterator[tuple[np.ndarray, ...]], n: int, basis: ProfileBasis, path: Path | None = None
    ) -> PackedStatistics:
        """Reduce native pixels (offset, flux, ivar, neighbours), given batch by batch, in a basis."""
        packed = cls.allocate(n, basis.functions.shape[0], path)
        start = 0
        for offset, flux, ivar, neighbours in pixels:
            stats = line_statistics(offset, flux, ivar, basis.offset, basis.functions, neighbours=neighbours)
            packed.put(slice(start, start + len(stats)), stats)
            start += len(stats)
        if start != n:
            raise ValueError(f"{start} lines were given, {n} announced")
        return packed
