"""Dask clusters: the import that may be missing, and a client of one's own or another's scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["cluster_client", "import_distributed"]


def import_distributed(what: str) -> Any:
    """The module `distributed`.

    Raises
    ------
    ImportError
        It is not installed; the message says that ``what``, such as "a survey", needs it.
    """
    try:
        from dask import distributed
    except ImportError:
        raise ImportError(f"{what} on a cluster needs dask: pip install 'lamost-lsf[dask]'") from None
    return distributed


@contextmanager
def cluster_client(distributed: Any, scheduler: Any, workers: int | None) -> Iterator[Any]:
    """A Dask client: ``scheduler`` if it is one, else one of that scheduler, else one of a local cluster of processes.

    What is made here is closed at the end; what was given is left alone.
    """
    if isinstance(scheduler, distributed.Client):
        yield scheduler
    elif scheduler is not None:
        with distributed.Client(scheduler, set_as_default=False) as client:
            yield client
    else:
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            yield client
