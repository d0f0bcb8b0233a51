"""What training works on: labels of every line and its reduced pixel likelihood, in memory or in a file."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lamost_lsf.time import night_number
from lamost_lsf.training.basis import ProfileBasis
from lamost_lsf.training.statistics import LineStatistics, line_statistics

__all__ = ["FileRows", "Labels", "PackedStatistics"]


@dataclass(frozen=True)
class Labels:
    """Labels of n lines.

    Attributes
    ----------
    lmjm, fiber, wavelength : ndarray (n,)
        Local modified Julian minutes, fibre number, true vacuum wavelength in Angstrom.
    line, exposure : ndarray (n,)
        Number of the line in the instrument's list, and of the exposure.
    extra : ndarray (n, m), optional
        Further labels, from the exposures' headers.
    """

    lmjm: np.ndarray
    fiber: np.ndarray
    wavelength: np.ndarray
    line: np.ndarray
    exposure: np.ndarray
    extra: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.extra is None:
            object.__setattr__(self, "extra", np.empty((self.lmjm.size, 0)))

    def __len__(self) -> int:
        return self.lmjm.size

    def __getitem__(self, item: Any) -> Labels:
        return Labels(*(getattr(self, field.name)[item] for field in fields(self)))

    @property
    def night(self) -> np.ndarray:
        """Local night of each line."""
        return night_number(self.lmjm)


class FileRows:
    """Rows of float32 in a file, read and written by position: unlike those of a mapped file they are never resident.

    Parameters
    ----------
    path : path
        Made anew.
    shape : (int, int)
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._bytes = 4 * shape[1]
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, self._bytes * shape[0])

    def __getitem__(self, item: Any) -> np.ndarray:
        out = np.empty((0, self.shape[1]), dtype=np.float32)
        runs, order = self._runs(item)
        if runs:
            out = np.empty((sum(n for _, n in runs), self.shape[1]), dtype=np.float32)
            view, done = memoryview(out).cast("B"), 0
            for start, n in runs:
                size = n * self._bytes
                if os.preadv(self._file, [view[done : done + size]], start * self._bytes) != size:
                    raise OSError(f"rows {start} to {start + n} could not be read")
                done += size
        if order is None:
            return out
        result = np.empty_like(out)
        result[order] = out
        return result

    def __setitem__(self, item: Any, values: np.ndarray) -> None:
        runs, order = self._runs(item)
        values = np.ascontiguousarray(values if order is None else values[order], dtype=np.float32)
        view, done = memoryview(values).cast("B"), 0
        for start, n in runs:
            size = n * self._bytes
            if os.pwritev(self._file, [view[done : done + size]], start * self._bytes) != size:
                raise OSError(f"rows {start} to {start + n} could not be written")
            done += size

    def _runs(self, item: Any) -> tuple[list[tuple[int, int]], np.ndarray | None]:
        """Stretches of consecutive rows (first, number), and the order that they come in if not as asked for."""
        if isinstance(item, slice):
            start, stop, step = item.indices(self.shape[0])
            if step == 1:
                return [(start, stop - start)] if stop > start else [], None
            item = np.arange(start, stop, step)
        item = np.asarray(item)
        order = None
        if np.any(np.diff(item) < 0):
            order = np.argsort(item, kind="stable")
            item = item[order]
        edges = np.flatnonzero(np.r_[True, np.diff(item) != 1, True])
        return [(int(item[a]), int(b - a)) for a, b in itertools.pairwise(edges)] if item.size else [], order


class PackedStatistics:
    """Reduced normal equations of many lines as rows of float32: upper triangle of M, v, s, number of pixels.

    Parameters
    ----------
    rows : ndarray or FileRows (n, width)
    n_functions : int
        K + 1.

    Attributes
    ----------
    n_pixels : ndarray (n,)
        Good pixels of each line.
    """

    def __init__(self, rows: np.ndarray | FileRows, n_functions: int) -> None:
        self.rows = rows
        self.n_functions = n_functions
        self.n_pixels = np.zeros(rows.shape[0], dtype=np.int32)
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
        """Empty rows, in memory or in a file."""
        shape = (n, cls.width(n_functions))
        return cls(np.empty(shape, dtype=np.float32) if path is None else FileRows(path, shape), n_functions)

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
        self.n_pixels[item] = stats.n_pixels

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
