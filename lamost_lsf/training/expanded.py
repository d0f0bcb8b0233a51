"""The default model: a network for the smooth part, terms for fibres and nights, trained on native pixels.

1. A basis is learned from the pixels (`lamost_lsf.training.basis`) and every line is reduced to its likelihood in it.
2. A network (time, fibre, wavelength -> coefficients) is trained on that likelihood.
3. Surface, fibre and night terms are solved in closed form on what the network leaves, and the network is trained
on what they
   leave; a few rounds.
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
from lamost_lsf.models.expansion import Expansion, fiber_functions, night_functions, surface_functions
from lamost_lsf.training.basis import ProfileBasis
from lamost_lsf.training.data import Labels, PackedStatistics
from lamost_lsf.training.loop import History, Schedule, train_network
from lamost_lsf.training.terms import GroupTerm, fit_group_term, newton_system

__all__ = ["ExpandedSettings", "ExpandedTrainer"]


@dataclass(frozen=True)
class ExpandedSettings:
    """Settings of the default model.

    Attributes
    ----------
    hidden : int
        Width of the two hidden layers.
    epochs : float
        Passes over the training set of the first network training; at least ``min_steps`` steps.
    refine_epochs : float
        The same for each round after the terms.
    rounds : int
        Rounds of terms and refinement.
    min_steps, batch_size, learning_rate, seed
        Of the training loop.
    outlier : float
        Lines whose chi-square exceeds this many times their fibre's median are left out from the first round on.
    """

    hidden: int = 96
    epochs: float = 40.0
    refine_epochs: float = 15.0
    rounds: int = 3
    min_steps: int = 600
    batch_size: int = 2048
    learning_rate: float = 4e-3
    seed: int = 0
    outlier: float = 6.0


class ExpandedTrainer:
    """Trains the default model; see the module's text.

    Parameters
    ----------
    basis : ProfileBasis
    packed : PackedStatistics
        Of all lines, in ``basis``.
    labels : Labels
    scaled : ndarray (n, 3)
        Labels scaled to [-0.5, 0.5].
    train, validation : ndarray of int
        Lines of the two sets; no exposure in both.
    settings : ExpandedSettings
    device : torch.device
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
    ) -> None:
        self.basis, self.packed, self.labels, self.scaled = basis, packed, labels, scaled
        usable = packed.rows[:, -1] > 8
        self.train, self.validation = train[usable[train]], validation[usable[validation]]
        self.settings, self.device = settings, device
        self.fiber_number, self._fiber = np.unique(labels.fiber, return_inverse=True)
        # nights of the training set only: a held-out night has no term of its own
        self.night_number = np.unique(labels.night[self.train])
        position = np.searchsorted(self.night_number, labels.night).clip(max=self.night_number.size - 1)
        self._night = position
        self._night_known = self.night_number[position] == labels.night
        k = basis.components.shape[0]
        self.surface_term = GroupTerm.zero(1, surface_functions(scaled[:1]).shape[1], k)
        self.fiber_term = GroupTerm.zero(self.fiber_number.size, 3, k)
        self.night_term = GroupTerm.zero(self.night_number.size, 6, k)
        torch.manual_seed(settings.seed)
        h = settings.hidden
        self.network = torch.nn.Sequential(
            torch.nn.Linear(3, h), torch.nn.SiLU(), torch.nn.Linear(h, h), torch.nn.SiLU(), torch.nn.Linear(h, k)
        ).to(device)
        self._unpack = torch.as_tensor(packed.unpack, device=device)
        self._x = torch.as_tensor(2.0 * scaled, dtype=torch.float32)

    # -- prediction ------------------------------------------------------------------------------------

    def network_coefficients(self, index: np.ndarray, chunk: int = 65536) -> np.ndarray:
        """The network's part of the coefficients (n, K)."""
        parts = []
        with torch.no_grad():
            for start in range(0, index.size, chunk):
                x = self._x[torch.as_tensor(index[start : start + chunk])].to(self.device)
                parts.append(self.network(x).cpu().double().numpy())
        return np.concatenate(parts)

    def particular(self, index: np.ndarray) -> np.ndarray:
        """The terms' part of the coefficients (n, K)."""
        x = self.scaled[index]
        night = self.night_term.at(self._night[index], night_functions(x)) * self._night_known[index, None]
        surface = surface_functions(x) @ self.surface_term.values[0]
        return surface + self.fiber_term.at(self._fiber[index], fiber_functions(x)) + night

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
        self._phase("network", self.settings.epochs, self.settings.learning_rate, history, **options)
        for number in range(self.settings.rounds):
            name = f"refine-{number + 1}"
            done = None if work is None else work / f"{name}.terms.safetensors"
            if done is not None and done.exists():
                self._load_terms(done)
            else:
                self._fit_terms(drop_outliers=number > 0)
                if done is not None:
                    self._save_terms(done)
            if number < self.settings.rounds - 1:
                rate = 0.4 * self.settings.learning_rate
                self._phase(name, self.settings.refine_epochs, rate, history, **options)
        return self._expansion()

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
        offset = torch.as_tensor(self.particular(self.train), dtype=torch.float32)
        check = self._validation_sample()
        check_offset = torch.as_tensor(self.particular(check), dtype=torch.float32, device=self.device)
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

    def _fit_terms(self, *, drop_outliers: bool) -> None:
        index = self.train
        if drop_outliers:
            index = index[self._inliers(index)]
        scaled = self.scaled[index]
        self.surface_term = fit_group_term(
            self.surface_term,
            self.packed,
            index,
            np.zeros(index.size, dtype=np.int64),
            surface_functions(scaled),
            self.coefficients(index),
            own_scale=False,
            newton_steps=2,
        )
        self.night_term = fit_group_term(
            self.night_term, self.packed, index, self._night[index], night_functions(scaled), self.coefficients(index),
            own_scale=False,
        )  # fmt: skip
        self.fiber_term = fit_group_term(
            self.fiber_term, self.packed, index, self._fiber[index], fiber_functions(scaled), self.coefficients(index),
            own_scale=True,
        )  # fmt: skip

    def _inliers(self, index: np.ndarray) -> np.ndarray:
        c = self.coefficients(index)
        reduced = np.empty(index.size)
        position = 0
        for part, stats in self.packed.chunks(index):
            here = slice(position, position + part.size)
            reduced[here] = stats.chi2(c[here]) / stats.n_pixels
            position += part.size
        usual = np.ones(self.fiber_number.size)
        order = np.argsort(self._fiber[index], kind="stable")
        groups = np.split(reduced[order], np.flatnonzero(np.diff(self._fiber[index][order])) + 1)
        usual[np.unique(self._fiber[index])] = [np.median(g) for g in groups]
        return reduced <= self.settings.outlier * np.maximum(usual[self._fiber[index]], 1.0)

    # -- results -----------------------------------------------------------------------------------------

    def _expansion(self) -> Expansion:
        covariance, scale = self._error_covariance()
        tau, weights = krige_nights(self.night_number, self.night_term)
        return Expansion(
            mean=self.basis.mean,
            components=self.basis.components,
            surface_values=self.surface_term.values[0],
            fiber_number=self.fiber_number.astype(np.int64),
            fiber_values=self.fiber_term.values,
            night=self.night_number,
            night_values=weights,
            night_scale=np.array(tau),
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
        for name, term in (("surface", self.surface_term), ("fiber", self.fiber_term), ("night", self.night_term)):
            for key in ("values", "variance", "prior", "scale"):
                tensors[f"{name}.{key}"] = torch.as_tensor(np.ascontiguousarray(getattr(term, key)))
        with atomic_path(path, overwrite=True) as temporary:
            save_file(tensors, temporary)

    def _load_terms(self, path: Path) -> None:
        tensors = {k: v.numpy() for k, v in load_file(path).items()}
        names = ("values", "variance", "prior", "scale")
        self.surface_term = GroupTerm(*(tensors[f"surface.{k}"] for k in names))
        self.fiber_term = GroupTerm(*(tensors[f"fiber.{k}"] for k in names))
        self.night_term = GroupTerm(*(tensors[f"night.{k}"] for k in names))


def krige_nights(night: np.ndarray, term: GroupTerm) -> tuple[float, np.ndarray]:
    """Correlation time (days) of the nights' terms and their kriging weights (n_night, R, K).

    The exponential kernel's time is the one of highest likelihood among half a day to a season; with fewer than four
    nights it is one day.
    """
    n = night.size
    if n == 0:
        return 1.0, term.values
    values = (term.values / np.sqrt(term.prior)).reshape(n, -1)
    noise = (term.variance / term.prior).reshape(n, -1).mean(axis=1)
    lag = np.abs(night[:, None] - night[None]).astype(np.float64)
    best, tau = -np.inf, 1.0
    for candidate in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0) if n >= 4 else ():
        covariance = np.exp(-lag / candidate) + np.diag(noise + 1e-6)
        _, logdet = np.linalg.slogdet(covariance)
        quadratic = np.einsum("ni,ni->", values, np.linalg.solve(covariance, values))
        likelihood = -0.5 * (quadratic + values.shape[1] * logdet)
        if likelihood > best:
            best, tau = likelihood, candidate
    correlation = np.exp(-lag / tau) + 1e-6 * np.eye(n)
    weights = np.linalg.solve(correlation, term.values.reshape(n, -1))
    return float(tau), weights.reshape(term.values.shape)
