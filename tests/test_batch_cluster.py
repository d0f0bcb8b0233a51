"""Surveys on a cluster: workers die, runs die; every spectrum has its row, once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from survey_files import OBSERVATORY, TEMPLATE, write_stars

pytest.importorskip("pyarrow", reason="surveys need pyarrow")
distributed = pytest.importorskip("distributed", reason="a cluster needs dask")

import astropy.units as u  # noqa: E402

from lamost_lsf.batch import measure_survey, read_survey  # noqa: E402

OPTIONS = {"windows": (5000, 5300) * u.AA, "velocity_range": (-300.0, 300.0)}
DISTINCT, COPIES = 60, 5
# clusters are closed while their workers still start, of which dask complains
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder of some hundred names of some files, all names, and the velocity of each."""
    folder = tmp_path_factory.mktemp("files")
    paths, velocities = write_stars(folder, DISTINCT, fibers=2)
    names = []
    for i in range(COPIES):
        (folder / f"plate{i}").mkdir()
        for path in paths:
            os.link(path, folder / f"plate{i}" / path.name)
            names.append(str(folder / f"plate{i}" / path.name))
    for path in paths:
        path.unlink()
    return folder, names, np.tile(velocities, COPIES)


def assert_each_once(output, names, velocities):
    table = read_survey(output)
    assert list(table["file"]) == sorted(names)
    pull = (table["rv"] - velocities) / table["rv_err"]
    # copies have the same noise
    assert np.sum(pull**2) / COPIES < DISTINCT + 5 * np.sqrt(2 * DISTINCT)
    return table


@pytest.fixture(scope="module")
def cluster():
    """Two workers."""
    from dask import config

    with (
        config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        yield cluster


def test_a_killed_worker_loses_and_doubles_nothing(files, cluster, tmp_path):
    folder, names, velocities = files
    killed = []
    with distributed.Client(cluster, set_as_default=False) as client:
        pids = list(client.run(os.getpid).values())

        def progress(done, total, flagged):
            if not killed and done >= total / 4:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(done)

        summary = measure_survey(
            folder, tmp_path / "rv", TEMPLATE, OBSERVATORY, scheduler=client, chunk=20, progress=progress, **OPTIONS
        )
    assert killed
    assert killed[0] < len(names)
    assert (summary.n_measured, summary.n_flagged) == (len(names), 0)
    assert_each_once(tmp_path / "rv", names, velocities)


class Deadly:
    """LSF of a spectrum; one kills the worker that asks for it."""

    identity = "deadly"

    def __init__(self, obsid):
        self.obsid = obsid

    def __call__(self, meta):
        if meta["obsid"] == self.obsid:
            os._exit(1)
        return OBSERVATORY.lsf_for(meta)


def test_a_spectrum_that_kills_workers_is_a_row_and_takes_nobody_along(files, cluster, tmp_path):
    names = files[1][:4]
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
        summary = measure_survey(
            names, tmp_path / "rv", TEMPLATE, Deadly(1000002), scheduler=client, chunk=4, **OPTIONS
        )
    table = read_survey(tmp_path / "rv")
    assert list(table["file"]) == names
    assert summary.n_flagged == 1
    assert list(table["reasons"]) == ["", "", "failed", ""]
    assert table["message"][2] == "workers died over it"


SCRIPT = """
import sys
import astropy.units as u
from lamost_lsf.batch import measure_survey
from lamost_lsf.simulation import Observatory, synthetic_template
if __name__ == "__main__":
    summary = measure_survey(
        sys.argv[1], sys.argv[2], synthetic_template(6000), Observatory(), workers=1, chunk=20,
        windows=(5000, 5300) * u.AA, velocity_range=(-300.0, 300.0),
    )
    print(summary.n_before, summary.n_measured)
"""


def test_a_killed_run_is_taken_up_and_adds_only_what_is_missing(files, tmp_path):
    folder, names, velocities = files
    output = tmp_path / "rv"
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), str(folder), str(output)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while len(list(output.glob("part-*.parquet"))) < 3:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    time.sleep(1.0)  # its worker ends when it sees that
    before = {path.name: path.read_bytes() for path in output.glob("part-*.parquet")}
    assert len(before) < len(names) / 20
    summary = measure_survey(folder, output, TEMPLATE, OBSERVATORY, chunk=20, **OPTIONS)
    assert (summary.n_before, summary.n_measured) == (20 * len(before), len(names) - 20 * len(before))
    assert all((Path(output) / name).read_bytes() == content for name, content in before.items())
    assert_each_once(output, names, velocities)
