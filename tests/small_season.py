"""Small simulated seasons that training can be tried on: the profiles of one blue arm, and stores of them."""

from functools import cache

from lamost_lsf.arcs import ArcExposure, extract_profiles
from lamost_lsf.simulation import SimulatedIP, simulate_season
from lamost_lsf.store import ProfileStore

#: With the defective fibre of the simulated instrument.
FIBERS = list(range(146, 170))
N_EXPOSURES = 10
#: Quick, and bad: what is tested is what becomes of a training, not how good it is.
QUICK = {"min_steps": 90, "epochs": 1.0, "rounds": 1, "hidden": 16}


@cache
def profiles(season=2017, n=N_EXPOSURES):
    """Good and rejected profiles of a season's exposures, as a tuple of ProfileSets."""
    arcs = simulate_season(SimulatedIP("blue"), season, n, max(1, n // 2), fiber=FIBERS, dead_fibers=[150])
    return tuple(extract_profiles(ArcExposure.from_simulation(arc, instrument="lamost-lrs-blue")) for arc in arcs)


def fill(folder, season=2017, n=N_EXPOSURES):
    """Store of a season in a folder."""
    store = ProfileStore(ProfileStore.path_for(folder, 1, "blue", season))
    sets = profiles(season)[:n]
    store.append(sets[0].concatenate(*sets[1:]))
    return store
