"""The default model: a network for the smooth part, terms for fibres and nights, trained on native pixels.

1. A basis is learned from the pixels (`lamost_lsf.training.basis`) and every line is reduced to its likelihood in it.
2. Surface, night and fibre terms are solved in closed form: a good model already, within seconds.
3. A network (time, fibre, wavelength -> coefficients) is trained on what they leave, then the terms on what it leaves;
   a few rounds.
4. The covariance of the coefficients' errors is learned from the exposures that were held out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lamost_lsf.files import atomic_path
from lamost_lsf.models.expansion import (
    Correlation,
    Expansion,
    exponential,
    fiber_functions,
    kriged,
    line_functions,
    matern,
    night_functions,
    surface_degrees,
    surface_functions,
)
from lamost_lsf.training.basis import ProfileBasis
from lamost_lsf.training.data import Labels, PackedStatistics
from lamost_lsf.training.loop import History, Schedule, train_network
from lamost_lsf.training.neighbours import fit_ratios
from lamost_lsf.training.source import TrainingSource
from lamost_lsf.training.statistics import line_statistics
from lamost_lsf.training.terms import GroupTerm, fit_group_term, newton_system

__all__ = ["ExpandedSettings", "ExpandedTrainer", "krige"]

#: Terms that are solved in closed form.
TERMS = ("surface", "line", "night", "fiber")

#: Turns of line, night and fibre terms.
SWEEPS = 2

#: Correlation lengths that are tried: days; shares of the range of wavelengths.
NIGHT_SCALES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
LINE_SCALES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0)


#: Lines that a neighbour's flux is told from, at most.
_RATIO_LINES = 20_000


@dataclass(frozen=True)
class ExpandedSettings:
    """Settings of the default model.

    Attributes
    ----------
    hidden : int
        Width of the two hidden layers.
    epochs : float
        Passes over the training set of the first network training, at least ``min_steps`` steps; 0 for none.
    refine_epochs : float
        The same for each round after the terms.
    rounds : int
        Rounds of terms and refinement.
    min_steps, batch_size, learning_rate, seed
        Of the training loop.
    outlier : float
        Lines whose chi-square exceeds this many times the median of their fibre, or of their line if that is larger,
        are left out: what is left of cosmic rays.
    """

    hidden: int = 96
    epochs: float = 20.0
    refine_epochs: float = 10.0
    rounds: int = 2
    min_steps: int = 600
    batch_size: int = 2048
    learning_rate: float = 4e-3
    seed: int = 0
    outlier: float = 3.0


class ExpandedTrainer:
    """Trains the default model; see the module's text.

    Parameters
    ----------
    basis : ProfileBasis
    packed : PackedStatistics
        Of all lines, in ``basis``.
    labels : Labels
    scaled : ndarray (n, 3 + m)
        Labels scaled to [-0.5, 0.5].
    train, validation : ndarray of int
        Lines of the two sets; no exposure in both.
    settings : ExpandedSettings
    device : torch.device
    source : TrainingSource, optional
        Where the pixels of lines with neighbours are read anew, once the neighbours' shape is known; without it that
        stays the mean profile.
    """

    def __init__(
        self,
        basis: ProfileBasis,
        packed: PackedStatistics,
        labels: Labels,
        scaled: np.ndarray,
        train: np.ndarray,
        validation: np.ndarray,
        settings: ExpandedSettings,
        device: torch.device,
        source: TrainingSource | None = None,
    ) -> None:
        self.basis, self.packed, self.labels, self.scaled = basis, packed, labels, scaled
        usable = packed.n_pixels > 8
        self.train, self.validation = train[usable[train]], validation[usable[validation]]
        self.settings, self.device, self.source = settings, device, source
        self.fiber_number, self._fiber = np.unique(labels.fiber, return_inverse=True)
        # lines and nights of the training set only: a held-out one has no term of its own, but may have neighbours
        lines = np.unique(labels.line)
        position = np.array([scaled[np.argmax(labels.line == n), 2] for n in lines])
        lines, position = lines[np.argsort(position)], np.sort(position)
        self.line_position = position[np.isin(lines, labels.line[self.train])]
        middle = 0.5 * (self.line_position[1:] + self.line_position[:-1])
        self._line = np.searchsorted(middle, scaled[:, 2])
        self.night_number = np.unique(labels.night[self.train])
        self._all_nights, self._any_night = np.unique(labels.night, return_inverse=True)
        self._night = np.searchsorted(self.night_number, labels.night).clip(max=self.night_number.size - 1)
        # a surface that passes through every line, or every exposure, would swing between them
        self._surface_used = self._supported()
        k = basis.components.shape[0]
        self.surface_term = GroupTerm.zero(1, surface_functions(scaled[:1]).shape[1], k)
        self.fiber_term = GroupTerm.zero(self.fiber_number.size, 3, k)
        self.line_term = GroupTerm.zero(self.line_position.size, 4, k)
        self.night_term = GroupTerm.zero(self.night_number.size, night_functions(scaled[:1]).shape[1], k)
        self._kriged: dict[str, tuple[GroupTerm, tuple[float, np.ndarray]]] = {}
        self._ratio: dict[int, np.ndarray] = {}
        torch.manual_seed(settings.seed)
        h = settings.hidden
        self.network = torch.nn.Sequential(
            torch.nn.Linear(scaled.shape[1], h),
            torch.nn.SiLU(),
            torch.nn.Linear(h, h),
            torch.nn.SiLU(),
            torch.nn.Linear(h, k),
        ).to(device)
        # begins as nothing beside the terms
        torch.nn.init.zeros_(self.network[-1].weight)
        torch.nn.init.zeros_(self.network[-1].bias)
        self._unpack = torch.as_tensor(packed.unpack, device=device)
        self._x = torch.as_tensor(2.0 * scaled, dtype=torch.float32)

    def _supported(self) -> np.ndarray:
        """Which of the surface's functions the training set has exposures, fibres and lines enough for."""
        labels = self.labels[self.train]
        times, fibers, lines = (np.unique(a).size for a in (labels.exposure, labels.fiber, labels.line))
        time, fiber, wavelength, *extra = surface_degrees(labels.extra.shape[1])
        used = (time <= times // 4) & (fiber <= max(fibers - 3, 0)) & (wavelength <= max(lines - 3, 0))
        for degree, values in zip(extra, labels.extra.T, strict=True):
            used &= degree <= np.unique(values).size // 4
        return used

    def _surface(self, scaled: np.ndarray) -> np.ndarray:
        return surface_functions(scaled) * self._surface_used

    # -- prediction ------------------------------------------------------------------------------------

    def network_coefficients(self, index: np.ndarray, chunk: int = 65536) -> np.ndarray:
        """The network's part of the coefficients (n, K)."""
        last = self.network[-1]
        if not (torch.any(last.weight) or torch.any(last.bias)):  # not trained yet
            return np.zeros((index.size, last.out_features))
        parts = []
        with torch.no_grad():
            for start in range(0, index.size, chunk):
                x = self._x[torch.as_tensor(index[start : start + chunk])].to(self.device)
                parts.append(self.network(x).cpu().double().numpy())
        return np.concatenate(parts)

    def particular(self, index: np.ndarray, *, kriging: bool = True) -> np.ndarray:
        """The terms' part of the coefficients (n, K), with or without those of lines and nights."""
        x = self.scaled[index]
        out = self._surface(x) @ self.surface_term.values[0]
        out += self.fiber_term.at(self._fiber[index], fiber_functions(x))
        if kriging and np.any(self.line_term.values):
            scale, weights = self._kriging("line")
            positions, inverse = np.unique(x[:, 2], return_inverse=True)
            mixed = kriged(positions, self.line_position, scale, weights, matern)
            out += np.einsum("nr,nrk->nk", line_functions(x), mixed[inverse])
        if kriging and np.any(self.night_term.values):
            scale, weights = self._kriging("night")
            nights, inverse = np.unique(self._any_night[index], return_inverse=True)
            mixed = kriged(self._all_nights[nights], self.night_number, scale, weights, exponential)
            out += np.einsum("nr,nrk->nk", night_functions(x), mixed[inverse])
        return out

    def _kriging(self, name: str) -> tuple[float, np.ndarray]:
        """Correlation length and weights of the line or night term as it is."""
        term = getattr(self, f"{name}_term")
        known = self._kriged.get(name)
        if known is None or known[0] is not term:
            position, scales, correlation = {
                "line": (self.line_position, LINE_SCALES, matern),
                "night": (self.night_number, NIGHT_SCALES, exponential),
            }[name]
            self._kriged[name] = known = (term, krige(position, term, scales, correlation))
        return known[1]

    def coefficients(self, index: np.ndarray) -> np.ndarray:
        """Coefficients (n, K) of the whole model."""
        return self.network_coefficients(index) + self.particular(index)

    # -- training ----------------------------------------------------------------------------------------

    def run(
        self,
        history: History,
        *,
        work: Path | None = None,
        checkpoint_every: int = 500,
        identity: str = "",
        progress: Callable[[str, int, int, float], None] | None = None,
    ) -> Expansion:
        """Train; returns what belongs beside the network. ``work`` is a folder for checkpoints, taken up if it has
        any.
        """
        options = {"work": work, "checkpoint_every": checkpoint_every, "identity": identity, "progress": progress}
        self._terms("start", work)
        if self._refine_neighbours():
            self._terms("network", work)
        if self.settings.epochs > 0:
            self._phase("network", self.settings.epochs, self.settings.learning_rate, history, **options)
        for number in range(self.settings.rounds):
            name = f"refine-{number + 1}"
            self._refine_neighbours()
            self._terms(name, work)
            if number < self.settings.rounds - 1:
                rate = 0.4 * self.settings.learning_rate
                self._phase(name, self.settings.refine_epochs, rate, history, **options)
        return self._expansion()

    def _terms(self, name: str, work: Path | None) -> None:
        """Fit the terms that go before a phase, or take them from its file."""
        done = None if work is None else work / f"{name}.terms.safetensors"
        if done is not None and done.exists():
            self._load_terms(done)
            return
        self._fit_terms()
        if done is not None:
            self._save_terms(done)

    def _refine_neighbours(self, chunk: int = 20_000) -> bool:
        """Tell neighbours' fluxes by the present model and reduce their lines anew with them; False for none."""
        if self.source is None:
            return False
        near = self.source.neighbours
        for line in np.flatnonzero(np.any(np.isfinite(near), axis=1)):
            index = np.flatnonzero(self.labels.line == line)
            some = self.train[self.labels.line[self.train] == line]
            if not some.size:
                continue
            some = some[:: max(1, some.size // _RATIO_LINES)]
            *native, _ = next(self.source.pixels(some, some.size))
            functions = line_functions(self.scaled[some])
            before = self._ratio.get(line, np.zeros(near.shape[1]))
            ratio, spread = fit_ratios(native, near[line], self.basis, self.coefficients(some), functions, before)
            self._ratio[line] = ratio
            for start in range(0, index.size, chunk):
                part = index[start : start + chunk]
                *native, neighbours = next(self.source.pixels(part, chunk))
                shape = (part.size, ratio.size)
                stats = line_statistics(
                    *native, self.basis.offset, self.basis.functions, neighbours=neighbours,
                    ratio=np.broadcast_to(ratio, shape), spread=np.broadcast_to(spread, shape),
                )  # fmt: skip
                self.packed.put(part, stats)
        return bool(self._ratio)

    def _phase(self, name, epochs, rate, history, *, work, checkpoint_every, identity, progress) -> None:
        finished = None if work is None else work / f"{name}.done.safetensors"
        if finished is not None and finished.exists():
            self.network.load_state_dict(load_file(finished))
            with safe_open(finished, framework="pt") as file:
                history.rows.extend(json.loads(file.metadata()["history"]))
            return
        s = self.settings
        batch = min(s.batch_size, self.train.size)
        steps = max(s.min_steps if name == "network" else s.min_steps // 3, round(epochs * self.train.size / batch))
        schedule = Schedule(steps, batch, rate, seed=s.seed + len(name), validate_every=max(50, steps // 40))
        # what is smooth in time and wavelength is the network's, nights and lines have what is left
        offset = torch.empty((self.train.size, self.basis.components.shape[0]), dtype=torch.float32)
        for start in range(0, self.train.size, 65536):
            part = self.train[start : start + 65536]
            offset[start : start + part.size] = torch.as_tensor(self.particular(part, kriging=False))
        check = self._validation_sample()
        check_offset = self.particular(check, kriging=False)
        check_offset = torch.as_tensor(check_offset, dtype=torch.float32, device=self.device)
        check_rows = torch.as_tensor(self.packed.rows[check], device=self.device)
        check_x = self._x[torch.as_tensor(check)].to(self.device)
        train = torch.as_tensor(self.train)

        def loss(batch_index: torch.Tensor) -> torch.Tensor:
            members = train[batch_index]
            rows = torch.as_tensor(self.packed.rows[members.numpy()]).to(self.device)
            c = self.network(self._x[members].to(self.device)) + offset[batch_index].to(self.device)
            return self._robust(rows, c)

        def validate() -> float:
            return float(self._robust(check_rows, self.network(check_x) + check_offset))

        checkpoint = None if work is None else work / f"{name}.checkpoint.safetensors"
        train_network(
            self.network, loss, self.train.size, schedule, validate=validate, phase=name, history=history,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every, identity=identity, progress=progress,
        )  # fmt: skip
        if finished is not None:
            with atomic_path(finished, overwrite=True) as temporary:
                weights = {k: v.cpu().contiguous() for k, v in self.network.state_dict().items()}
                rows = [row for row in history.rows if row["phase"] == name]
                save_file(weights, temporary, metadata={"history": json.dumps(rows)})
            checkpoint.unlink(missing_ok=True)

    def _validation_sample(self, most: int = 20_000) -> np.ndarray:
        """Lines that are validated on, thinned where there are very many; the training set's where none are held
        out.
        """
        pool = self.validation if self.validation.size else self.train
        return pool[:: max(1, pool.size // most)]

    def _robust(self, rows: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Mean over lines of a robust function of the reduced chi-square (an unnoticed cosmic ray must not lead)."""
        m, t = self.packed.n_functions, rows.shape[1] - self.packed.n_functions - 2
        matrix, vector = rows[:, :t][:, self._unpack], rows[:, t : t + m]
        a = torch.cat([torch.ones(len(c), 1, device=c.device), c], dim=1)
        va = (vector * a).sum(1).clamp(min=0.0)
        chi2 = rows[:, -2] - va**2 / ((matrix * a[:, None, :]).sum(2) * a).sum(1)
        reduced = chi2.clamp(min=0.0) / rows[:, -1]
        return (20.0 * torch.log1p(reduced / 20.0)).mean()

    def _fit_terms(self) -> None:
        # what is smooth is the surface's and the network's: only what they leave is the lines' and the nights'
        first = not np.any(self.surface_term.values)
        pool = self._alone() if first else self.train
        index = pool if first else pool[self._inliers(pool)]
        self.line_term = GroupTerm.zero(*self.line_term.values.shape)
        self.night_term = GroupTerm.zero(*self.night_term.values.shape)
        for _ in range(2 if first else 1):
            # to begin with, a quarter of the lines does, in two steps
            self.surface_term = self._fitted("surface", index[::4] if first else index)
        # each takes what it can of what the others leave; where they overlap it needs a few turns
        for _ in range(SWEEPS):
            # an outlier can only be told by a model that knows the line: of a line fitted for the first time, anew
            index = pool[self._inliers(pool)]
            self.line_term = self._fitted("line", index)
            self.night_term = self._fitted("night", index)
            self.fiber_term = self._fitted("fiber", index)

    def _alone(self) -> np.ndarray:
        """Lines of the training set that no neighbour reaches, where these are at least four of the list, and half.

        What the first terms make of the others' places tells the neighbours' fluxes without their own wings' errors.
        """
        if self.source is None:
            return self.train
        line = self.labels.line[self.train]
        alone = ~np.any(np.isfinite(self.source.neighbours), axis=1)[line]
        kept = np.unique(line[alone]).size
        return self.train[alone] if kept >= max(4, np.unique(line).size / 2) else self.train

    def _fitted(self, name: str, index: np.ndarray) -> GroupTerm:
        group, functions = {
            "surface": (np.zeros(len(self.labels), dtype=np.int8), self._surface),
            "line": (self._line, line_functions),
            "night": (self._night, night_functions),
            "fiber": (self._fiber, fiber_functions),
        }[name]
        return fit_group_term(
            getattr(self, f"{name}_term"), self.packed, index, group, lambda part: functions(self.scaled[part]),
            self.coefficients, own_scale=name == "fiber",
        )  # fmt: skip

    def _inliers(self, index: np.ndarray) -> np.ndarray:
        """Lines whose chi-square is not far above what is usual for their fibre and their line."""
        reduced = np.concatenate(
            [stats.chi2(self.coefficients(part)) / stats.n_pixels for part, stats in self.packed.chunks(index)]
        )
        usual = np.ones(index.size)
        for group in (self._fiber[index], self._line[index]):
            order = np.argsort(group, kind="stable")
            parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
            for part in parts:
                usual[part] = np.maximum(usual[part], np.median(reduced[part]))
        return reduced <= self.settings.outlier * usual

    # -- results -----------------------------------------------------------------------------------------

    def _expansion(self) -> Expansion:
        covariance, scale = self._error_covariance()
        (line_scale, line_weights), (night_scale, night_weights) = self._kriging("line"), self._kriging("night")
        return Expansion(
            mean=self.basis.mean,
            components=self.basis.components,
            surface_values=self.surface_term.values[0],
            fiber_number=self.fiber_number.astype(np.int64),
            fiber_values=self.fiber_term.values,
            line=self.line_position,
            line_values=line_weights,
            line_scale=np.array(line_scale),
            night=self.night_number,
            night_values=night_weights,
            night_scale=np.array(night_scale),
            covariance=covariance,
            fiber_scale=scale,
        )

    def _error_covariance(self, iterations: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """Covariance (K, K) of the coefficients' errors, and a factor for each fibre, from lines not trained on.

        Expectation-maximisation of ``gradient ~ hessian . error + noise`` with a Gaussian error.
        """
        index = self._validation_sample()
        index = index[self._inliers(index)]
        k = self.basis.components.shape[0]
        if index.size < 10 * k:
            return np.zeros((k, k)), np.ones(self.fiber_number.size)
        c = self.coefficients(index)
        gradient, hessian = (np.concatenate(p) for p in zip(*self._systems(index, c), strict=True))
        covariance = np.diag(np.full(k, 1e-3))
        for _ in range(iterations):
            posterior = np.linalg.inv(hessian + np.linalg.inv(covariance + 1e-12 * np.eye(k)))
            error = np.einsum("nij,nj->ni", posterior, gradient)
            second = error[:, :, None] * error[:, None, :] + posterior
            covariance = second.mean(axis=0)
        # each fibre's errors, in units of the population's, drawn to 1 where a fibre has few lines
        scaled = np.einsum("nij,ji->n", second, np.linalg.inv(covariance + 1e-12 * np.eye(k))) / k
        fiber = self._fiber[index]
        count = np.bincount(fiber, minlength=self.fiber_number.size)
        total = np.bincount(fiber, weights=scaled, minlength=self.fiber_number.size)
        return covariance, (total + 10.0) / (count + 10.0)

    def _systems(self, index: np.ndarray, c: np.ndarray):
        position = 0
        for part, stats in self.packed.chunks(index):
            yield newton_system(stats, c[position : position + part.size])
            position += part.size

    def _save_terms(self, path: Path) -> None:
        tensors = {}
        for name in TERMS:
            for key in ("values", "variance", "prior", "scale"):
                value = getattr(getattr(self, f"{name}_term"), key)
                tensors[f"{name}.{key}"] = torch.as_tensor(np.ascontiguousarray(value))
        with atomic_path(path, overwrite=True) as temporary:
            save_file(tensors, temporary)

    def _load_terms(self, path: Path) -> None:
        tensors = {k: v.numpy() for k, v in load_file(path).items()}
        for name in TERMS:
            parts = (tensors[f"{name}.{key}"] for key in ("values", "variance", "prior", "scale"))
            setattr(self, f"{name}_term", GroupTerm(*parts))


def krige(
    position: np.ndarray, term: GroupTerm, scales: tuple[float, ...], correlation: Correlation
) -> tuple[float, np.ndarray]:
    """Correlation length of a term's groups along a coordinate, and their kriging weights (n_group, R, K).

    The term was fitted group by group. Seen as a Gaussian process along ``position``, it comes out as `kriged` at any
    position: groups lean on their neighbours as far as their own noise demands, what lies
    between them or beyond on those near it. The length is that of ``scales`` with the highest likelihood; with fewer
    than four groups, the second.
    """
    n = position.size
    if n == 0:
        return scales[1], term.values
    # a posterior mean shrunk by an independent prior, and its variance, tell what the data alone said
    share = np.clip((term.variance / term.prior).reshape(n, -1), 1e-9, 0.999).T
    values = (term.values / np.sqrt(term.prior)).reshape(n, -1).T / (1.0 - share)
    noise = np.eye(n) * (share / (1.0 - share))[:, :, None]
    lag = np.abs(position[:, None] - position[None]).astype(np.float64)
    best, length = -np.inf, scales[1]
    for candidate in scales if n >= 4 else ():
        covariance = correlation(lag / candidate) + noise
        _, logdet = np.linalg.slogdet(covariance)
        quadratic = np.einsum("ij,ij->", values, np.linalg.solve(covariance, values[:, :, None])[:, :, 0])
        likelihood = -0.5 * (quadratic + logdet.sum())
        if likelihood > best:
            best, length = likelihood, candidate
    weights = np.linalg.solve(correlation(lag / length) + noise, values[:, :, None])[:, :, 0].T
    return float(length), np.ascontiguousarray(weights.reshape(term.values.shape) * np.sqrt(term.prior))
