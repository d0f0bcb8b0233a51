"""Claims about the profile store: it keeps what it was given, survives its writers, and splits honestly."""

import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from astropy.time import Time, TimeDelta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_writer import LINES, START, make_set

from lamost_lsf.errors import FormatError, OutOfRangeError

h5py = pytest.importorskip("h5py")

from lamost_lsf.store import DuplicateExposureError, MixedStoreError, ProfileStore  # noqa: E402
from lamost_lsf.store.locking import folder_lock  # noqa: E402
from lamost_lsf.time import night_number  # noqa: E402

WRITER = Path(__file__).with_name("store_writer.py")
ROWS = (
    "profile",
    "noise",
    "native_offset",
    "native_flux",
    "native_ivar",
    "lmjm",
    "fiber",
    "wavelength",
    "line",
    "flag",
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store of 12 exposures in 5 batches, and the sets that went in; not to be written to."""
    path = tmp_path_factory.mktemp("store") / "01_b_2017.profiles"
    store = ProfileStore(path)
    sets = [make_set(0, 3), make_set(3, 1, n_pixel=31), make_set(4, 5), make_set(9, 1), make_set(10, 2, n_pixel=17)]
    for profiles in sets:
        store.append(profiles)
    return store, sets


def files_of(path):
    return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if p.name != ".lock"}


def good(sets, name):
    return np.concatenate([getattr(s, name)[s.flag == 0] for s in sets])


# -- what goes in comes out --------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["lzf", "gzip", None])
def test_profiles_come_back_bit_by_bit(tmp_path, compression):
    profiles = make_set(0, 2, n_fiber=45)
    ProfileStore(tmp_path / "s", compression=compression).append(profiles)
    store = ProfileStore(tmp_path / "s", "r")
    keep = profiles.flag == 0
    assert 0 < keep.sum() < keep.size  # the test must see both kinds
    assert len(store) == keep.sum()
    loaded = store.load(slice(None))
    assert tuple(loaded) == store.columns
    for name in ROWS:
        assert np.array_equal(loaded[name], getattr(profiles, name)[keep]), name
    assert np.array_equal(loaded["exposure"], profiles.exposure[keep])
    assert loaded["profile"].dtype == np.float32
    assert loaded["lmjm"].dtype == np.float64
    assert np.array_equal(store.offset, profiles.offset)
    store.verify()


def test_exposures_keep_their_provenance(filled):
    store, sets = filled
    table = store.exposures
    assert list(table["file"]) == [f for s in sets for f in s.exposures["file"]]
    for name in sets[0].exposures.colnames:
        assert np.array_equal(table[name], np.concatenate([s.exposures[name] for s in sets])), name
    assert table["n_profiles"].sum() == len(store)
    assert (table["n_profiles"] + table["n_rejected"]).tolist() == [160] * 12
    # every profile leads to its own exposure: its time label is that of the row its number points at
    assert np.array_equal(store.labels["lmjm"], table["lmjm"][store.labels["exposure"]])


def test_labels_are_those_of_the_sets_and_read_only(filled):
    store, sets = filled
    for name in ("lmjm", "fiber", "wavelength", "line", "noise", "flag"):
        assert np.array_equal(store.labels[name], good(sets, name))
        with pytest.raises(ValueError, match="read-only"):
            store.labels[name][0] = 1
    with pytest.raises(TypeError):
        store.labels["fiber"] = 1
    assert "profile" not in store.labels


def test_exposures_with_other_numbers_of_pixels_are_padded_without_weight(filled):
    store, sets = filled
    loaded = store.load(slice(None), ["native_offset", "native_flux", "native_ivar"])
    start = 0
    for profiles in sets:
        keep = profiles.flag == 0
        width, stop = profiles.native_flux.shape[1], start + keep.sum()
        for name, array in loaded.items():
            assert array.shape[1] == 31
            assert np.array_equal(array[start:stop, :width], getattr(profiles, name)[keep])
            assert not array[start:stop, width:].any()
        start = stop


def test_exposures_may_have_times_and_units(tmp_path):
    profiles = make_set(0, 3)
    profiles.exposures["end"] = START + TimeDelta([1 / 3, 2 / 7, 1e-9], format="sec")
    profiles.exposures["temperature"].unit = "deg_C"
    ProfileStore(tmp_path / "s").append(profiles)
    table = ProfileStore(tmp_path / "s", "r").exposures
    assert np.all(table["end"] == profiles.exposures["end"])  # to the last bit of both parts
    assert table["temperature"].unit == "deg_C"


def test_tables_with_other_columns_are_joined_with_gaps(tmp_path):
    store = ProfileStore(tmp_path / "s")
    first, second = make_set(0), make_set(1, 2)
    first.exposures["seeing"] = [np.nan]
    first.exposures["sky"] = [True]
    second.exposures["number"] = [7, 8]
    del second.exposures["temperature"]
    store.append(first)
    store.append(second)
    table = ProfileStore(tmp_path / "s", "r").exposures
    assert np.isnan(table["seeing"][0])
    assert table["seeing"].mask.tolist() == [False, True, True]
    assert table["temperature"].mask.tolist() == [False, True, True]
    assert table["number"].mask.tolist() == [True, False, False]
    assert table["number"][1] == 7
    assert table["sky"][0]


def test_an_exposures_column_may_be_whole_numbers_once_and_fractions_later(tmp_path):
    store = ProfileStore(tmp_path / "s")
    for k, value in enumerate([3, 4.5]):
        profiles = make_set(k)
        profiles.exposures["temperature"] = [value]
        profiles.exposures["temperature"].unit = "deg_C"
        store.append(profiles)
    assert store.exposures["temperature"].tolist() == [3.0, 4.5]


@pytest.mark.parametrize("by", [("fiber", "line"), "exposure", "reason"])
def test_yields_are_those_of_everything_appended(filled, by):
    store, sets = filled
    whole = sets[0].concatenate(*sets[1:])
    assert np.count_nonzero(whole.flag) > 20
    ours, theirs = store.yields(by), whole.yields(by)
    assert ours.colnames == theirs.colnames
    for name in theirs.colnames:
        assert np.array_equal(ours[name], theirs[name]), name


def test_a_store_gives_back_profile_sets(filled):
    store, sets = filled
    whole = sets[0].concatenate(*sets[1:])
    whole = whole.select(whole.good)
    rows = np.array([5, 1700, 3, 900])
    got = store.profile_set(rows)
    for name in ROWS:
        assert np.array_equal(getattr(got, name), getattr(whole, name)[rows]), name
    got.check_compatible(sets[0])
    assert got.exposures.colnames == sets[0].exposures.colnames
    assert got.exposures["file"][got.exposure].tolist() == whole.exposures["file"][whole.exposure[rows]].tolist()
    assert np.all(got.good)


def test_flagged_profiles_can_be_kept_and_yet_are_not_trained_on(tmp_path):
    store = ProfileStore(tmp_path / "s")
    profiles = make_set(0, 4)
    profiles.profile[profiles.flag > 0] = np.nan  # as extraction may leave them
    profiles.noise[profiles.flag > 0] = np.nan
    store.append(profiles, include_flagged=True)
    assert len(store) == profiles.flag.size
    assert np.array_equal(store.load(slice(None), "profile")["profile"], profiles.profile, equal_nan=True)
    train, validation = store.split(0.5)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.flatnonzero(profiles.flag == 0))
    assert sum(len(part["row"]) for part in store.iter_batches(columns="fiber")) == (profiles.flag == 0).sum()
    everything = np.concatenate(store.split(0.5, include_flagged=True))
    assert np.array_equal(np.sort(everything), np.arange(len(store)))
    assert np.array_equal(store.good, profiles.good)
    assert store.yields("line")["n"].tolist() == [160] * 4
    store.verify()


def test_a_set_without_good_profiles_is_counted_but_cannot_be_split(tmp_path):
    store = ProfileStore(tmp_path / "s")
    profiles = make_set(0)
    profiles.flag[:] = 2
    store.append(profiles)
    store = ProfileStore(tmp_path / "s")
    assert len(store) == 0
    assert store
    assert store.yields()["not_single_peaked"].sum() == 160
    assert store.info()["n_rejected"] == 160
    assert list(store.iter_batches()) == []
    with pytest.raises(ValueError, match="no good profiles"):
        store.split()
    store.verify()
    store.append(make_set(1))
    assert np.all(store.labels["exposure"] == 1)


def test_info_is_plain_json(filled):
    store, _ = filled
    info = json.loads(json.dumps(store.info()))
    assert info["n_profiles"] == len(store)
    assert info["n_exposures"] == 12
    assert info["n_nights"] == 4  # 11:32, 17:32, 23:32 UTC of a night; 05:32 UTC is after noon in Beijing: the next
    assert (info["instrument"], info["arm"], info["spectrograph"], info["season"]) == (
        "lamost-lrs-blue",
        "blue",
        1,
        2017,
    )
    assert (info["n_sample"], info["native_width"], info["n_batches"]) == (600, 31, 5)
    assert info["lines"] == LINES.tolist()
    assert store.lines == make_set(0).lines
    assert info["bytes"] > 0
    assert "season 2017" in repr(store)
    assert (store.instrument, store.arm, store.spectrograph, store.season) == ("lamost-lrs-blue", "blue", 1, 2017)


def test_path_is_named_as_the_model_file(tmp_path):
    assert ProfileStore.path_for(tmp_path, 1, "blue", 2017) == tmp_path / "01_b_2017.profiles"
    assert ProfileStore.path_for(tmp_path, np.int16(16), "red", 2020).name == "16_r_2020.profiles"
    for arguments in [(1, "green", 2017), (100, "blue", 2017), (1, "blue", 17)]:
        with pytest.raises(ValueError, match="must be"):
            ProfileStore.path_for(tmp_path, *arguments)
    with pytest.raises(TypeError):
        ProfileStore.path_for(tmp_path, 1.5, "blue", 2017)


# -- reading in parts --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_rows_in_any_order_are_those_of_the_whole(filled, data):
    store, sets = filled
    rows = np.array(data.draw(st.lists(st.integers(0, len(store) - 1), max_size=60)), dtype=int)
    whole = {name: good(sets, name) for name in ("profile", "lmjm", "fiber", "line")}
    loaded = store.load(rows, [*whole, "exposure"])
    for name, array in whole.items():
        assert np.array_equal(loaded[name], array[rows])
    assert np.array_equal(loaded["exposure"], store.labels["exposure"][rows])


def test_a_mask_and_a_slice_select_rows(filled):
    store, sets = filled
    mask = store.labels["line"] == 2
    assert np.array_equal(store.load(mask, "profile")["profile"], good(sets, "profile")[mask])
    assert np.array_equal(store.load(slice(5, 900, 7), "fiber")["fiber"], good(sets, "fiber")[5:900:7])
    assert store.load([], ["profile", "native_ivar"])["profile"].shape == (0, 600)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([0, 10**6], IndexError),
        ([-1], IndexError),
        ([0.5], TypeError),
        ([[1, 2]], TypeError),
        (np.ones(3, bool), ValueError),
        (np.ones(0, bool), ValueError),
        ("all", TypeError),
    ],
)
def test_rows_that_do_not_exist_are_refused(filled, rows, error):
    with pytest.raises(error, match=r"rows|mask"):
        filled[0].load(rows, "fiber")


@pytest.mark.parametrize("columns", [["flux"], [], ["profile", "temperature"]])
def test_unknown_columns_are_refused(filled, columns):
    with pytest.raises(ValueError, match="columns must be of profile"):
        filled[0].load([0], columns)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.integers(60, 700),
    pool=st.integers(1, 3000),
    shuffle=st.booleans(),
    skip=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_a_stream_gives_every_profile_once_and_goes_on_where_it_was_cut(filled, chunk, pool, shuffle, skip, seed):
    store, sets = filled
    rows = np.flatnonzero(store.labels["fiber"] > 3)
    options = {"columns": ["lmjm", "noise"], "chunk": chunk, "pool": pool, "shuffle": shuffle, "seed": seed}
    parts = list(store.iter_batches(rows, **options))
    assert all(len(part["row"]) == chunk for part in parts[:-1])
    order = np.concatenate([part["row"] for part in parts])
    assert np.array_equal(np.sort(order), rows)
    assert np.array_equal(np.concatenate([part["noise"] for part in parts]), good(sets, "noise")[order])
    if not shuffle:
        assert np.array_equal(order, rows)
    rest = list(store.iter_batches(rows, skip=skip, **options))
    assert len(rest) == max(0, len(parts) - skip)
    for part, again in zip(parts[skip:], rest):
        assert np.array_equal(part["row"], again["row"])
        assert np.array_equal(part["noise"], again["noise"])


def test_shuffling_mixes_exposures(filled):
    store, _ = filled
    first = next(iter(store.iter_batches(columns="exposure", chunk=256, shuffle=True, seed=1)))
    assert len(set(first["exposure"])) > 6
    again = next(iter(store.iter_batches(columns="exposure", chunk=256, shuffle=True, seed=2)))
    assert not np.array_equal(first["row"], again["row"])


@pytest.mark.parametrize("options", [{"chunk": 0}, {"pool": 0}, {"skip": -1}])
def test_a_stream_refuses_bad_sizes_at_the_call(filled, options):
    with pytest.raises(ValueError, match="or more"):
        filled[0].iter_batches(**options)


STREAM = """
import resource, sys
import numpy as np
from lamost_lsf.store import ProfileStore  # noqa: E402
store = ProfileStore(sys.argv[1], "r")
store.labels["lmjm"]
train, validation = store.split(0.8)
next(iter(store.iter_batches(train[:256], shuffle=True)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total, n = 0.0, 0
for part in store.iter_batches(train, shuffle=True, seed=1, pool=16384):
    total += float(part["profile"].sum(dtype=np.float64)); n += len(part["row"])
for part in store.iter_batches(validation, columns=["native_flux"]):
    n += len(part["row"])
store.load(np.arange(0, len(store), 100))
assert n == len(store)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(store), total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_store(tmp_path):
    """120,000 profiles, 340 MB of numbers, pass through a third of that."""
    store = ProfileStore(tmp_path / "s", compression="lzf")
    profiles = make_set(0, n_fiber=250, lines=4000.0 + np.arange(40))
    profiles.flag[:] = 0
    for k in range(12):
        when = START.utc.mjd * 1440 + 480 + 60 * k
        profiles.exposures["lmjm"] = when
        profiles.lmjm[:] = when
        store.append(profiles)
    run = subprocess.run([sys.executable, "-c", STREAM, tmp_path / "s"], capture_output=True, text=True, check=True)
    before, after, n, total = (float(word) for word in run.stdout.split())
    assert n == 120_000
    assert total == pytest.approx(10 * profiles.profile.sum(dtype=np.float64), rel=1e-9)
    assert (after - before) / 1024 < 110  # MiB; a pool and the copies of its chunks are 60


# -- writers that die, and several at a time ---------------------------------------------------------------


def start_writer(path, first, count, *rest):
    command = [sys.executable, str(WRITER), str(path), str(first), str(count), *rest]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_writer_leaves_whole_batches_and_appending_goes_on(tmp_path):
    path = tmp_path / "01_b_2017.profiles"
    rng = np.random.default_rng(5)
    cut, first = 0, 0
    for attempt in range(20):
        process = start_writer(path, first, 15)
        time.sleep(rng.uniform(0.005, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        temporaries = list(path.glob(".batch-*"))
        cut += bool(temporaries)
        if path.exists() and (path / "store.json").exists():
            store = ProfileStore(path, "r")
            store.verify()
            done = store.n_exposures
            # whole exposures, in order, nothing of the next one
            table = store.exposures
            assert len(table) == done
            if done:  # killed before its first batch, a store has no columns yet
                assert list(table["file"]) == [f"arc-{k:04d}.fits" for k in range(done)]
                assert (table["n_profiles"] + table["n_rejected"]).tolist() == [1000] * done
                assert len(store) == table["n_profiles"].sum()
            first = done
        if attempt >= 5 and cut >= 3:
            break
    assert cut >= 3  # the test means nothing unless writers died in the middle of a file
    store = ProfileStore(path)
    store.append(make_set(first, n_fiber=250))
    assert list(path.glob(".batch-*")) == []  # the next writer cleans up
    store = ProfileStore(path, "r")
    assert store.n_exposures == first + 1
    wanted = make_set(first, n_fiber=250)
    rows = store.labels["exposure"] == first
    assert np.array_equal(store.load(rows, "profile")["profile"], wanted.profile[wanted.flag == 0])
    store.verify()


def test_every_moment_of_an_append_leaves_a_good_store(tmp_path, monkeypatch):
    """The writer stops before each of its steps in turn, without any clean-up of Python's."""
    import os

    from lamost_lsf.store import batch_file

    class Killed(BaseException):
        pass

    path = tmp_path / "s"
    ProfileStore(path).append(make_set(0))
    untouched = files_of(path)
    original = h5py.Group.create_dataset
    for step in range(16):
        calls = 0

        def create(self, *args, step=step, **kwargs):
            nonlocal calls
            calls += 1
            if calls > step:
                # what stands on disk at this moment is what a kill would leave
                self.file.flush()
                half = next(path.glob(".batch-*"))
                (path / f".batch-000002-left-{step}.h5").write_bytes(half.read_bytes()[: 100 * step])
                raise Killed
            return original(self, *args, **kwargs)

        monkeypatch.setattr(h5py.Group, "create_dataset", create)
        with pytest.raises(Killed):
            ProfileStore(path).append(make_set(1))
        monkeypatch.undo()
        assert len(ProfileStore(path, "r").exposures) == 1

    def fail(*args):
        raise Killed

    # after the rename (the last of these) the batch is there, even though append never returned
    for owner, name, n_exposure in ((os, "fsync", 1), (os, "replace", 1), (batch_file, "sync_folder", 2)):
        monkeypatch.setattr(owner, name, fail)
        with pytest.raises(Killed):
            ProfileStore(path).append(make_set(1))
        monkeypatch.undo()
        assert len(ProfileStore(path, "r").exposures) == n_exposure
    store = ProfileStore(path)
    store.verify()
    assert store.n_exposures == 2
    assert files_of(path).items() >= untouched.items()
    with pytest.raises(DuplicateExposureError):
        store.append(make_set(1))
    store.append(make_set(2))
    assert all(not name.startswith(".") for name in files_of(path))


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "01_b_2017.profiles"
    # two of the three write the same exposures
    processes = [start_writer(path, first, 6, "skip", "wait") for first in (0, 0, 6)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    store = ProfileStore(path, "r")
    store.verify()
    assert sorted(store.exposures["file"]) == [f"arc-{k:04d}.fits" for k in range(12)]
    assert [int(b[6:12]) for b in store.exposures["batch"]] == list(range(1, 13))
    assert list(path.glob(".batch-*")) == []


def test_a_writer_that_waits_too_long_says_so(tmp_path):
    path = tmp_path / "s"
    ProfileStore(path).append(make_set(0))
    before = files_of(path)
    with folder_lock(path / ".lock", 1.0), pytest.raises(TimeoutError, match="another writer"):
        ProfileStore(path, lock_timeout=0.05).append(make_set(1))
    assert files_of(path) == before
    # released while waiting
    held = threading.Event()

    def hold():
        with folder_lock(path / ".lock", 1.0):
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    ProfileStore(path).append(make_set(1))
    thread.join()
    assert ProfileStore(path).n_exposures == 2


def test_a_file_system_without_locks_is_named_and_can_be_used_by_one_writer(tmp_path, monkeypatch):
    import errno

    from lamost_lsf.store import locking

    def acquire(descriptor):
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(locking, "_acquire", acquire)
    with pytest.raises(OSError, match="lock=False"):
        ProfileStore(tmp_path / "s").append(make_set(0))
    ProfileStore(tmp_path / "s", lock=False).append(make_set(0))
    assert ProfileStore(tmp_path / "s").n_exposures == 1


def test_an_open_store_sees_others_batches_when_asked(tmp_path):
    writer, reader = ProfileStore(tmp_path / "s"), ProfileStore(tmp_path / "s")
    writer.append(make_set(0))
    assert len(reader) == 0
    reader.refresh()
    first = reader.labels["noise"].copy()
    identity = reader.id
    writer.append(make_set(1))
    reader.refresh()
    assert np.array_equal(reader.labels["noise"][: first.size], first)  # rows keep their numbers
    assert reader.id == writer.id != identity
    assert len(reader.exposures) == 2


# -- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["lzf", None])
def test_a_flipped_byte_anywhere_is_noticed(tmp_path, compression):
    """Flip one byte at many places of a batch: opening, reading or verify() must refuse, or nothing has changed."""
    path = tmp_path / "s"
    ProfileStore(path, compression=compression).append(make_set(0, n_fiber=8, n_sample=60))
    batch = next(path.glob("batch-*"))
    sound = batch.read_bytes()
    want = ProfileStore(path, "r").load(slice(None))
    rng = np.random.default_rng(0)
    noticed = 0
    places = rng.choice(len(sound), 250, replace=False)
    for place in places:
        broken = bytearray(sound)
        broken[place] ^= 1 << int(rng.integers(8))
        batch.write_bytes(bytes(broken))
        refusal = ""
        try:
            store = ProfileStore(path, "r")
            store.verify()
        except FormatError as error:
            refusal = str(error)
        if refusal:
            assert batch.name in refusal
            noticed += 1
        else:  # padding between the parts of an HDF5 file
            got = store.load(slice(None))
            assert all(np.array_equal(got[name], want[name]) for name in want)
    assert noticed > (0.5 if compression is None else 0.3) * places.size


def test_reading_damaged_profiles_raises_without_verify(tmp_path):
    path = tmp_path / "s"
    profiles = make_set(0)
    ProfileStore(path, compression=None).append(profiles)
    batch = next(path.glob("batch-*"))
    content = batch.read_bytes()
    needle = profiles.profile[profiles.flag == 0][20].tobytes()[:64]
    assert content.count(needle) == 1
    place = content.index(needle)
    batch.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    store = ProfileStore(path, "r")  # opening reads no profiles
    assert store.labels["fiber"].size == len(store)
    with pytest.raises(FormatError, match="damaged in profile"):
        store.load([20], "profile")
    with pytest.raises(FormatError, match="damaged"):
        store.verify()


def test_a_forged_value_with_right_hdf5_checksums_is_found_by_verify(tmp_path):
    for name, row in (("profile", 3), ("exposure", 0), ("rejected_flag", 0), ("native_ivar", 5)):
        path = tmp_path / name
        ProfileStore(path).append(make_set(0, 2))
        with h5py.File(next(path.glob("batch-*")), "r+") as file:
            file[name][row] = file[name][row] * 0 + 1
        with pytest.raises(FormatError, match="does not fit its checksums"):
            ProfileStore(path, "r").verify()


def test_a_manifest_and_a_name_must_fit(tmp_path):
    path = tmp_path / "s"
    ProfileStore(path).append(make_set(0))
    batch = next(path.glob("batch-*"))
    batch.rename(path / "batch-000001-0123456789abcdef.h5")
    with pytest.raises(FormatError, match="does not match its name"):
        ProfileStore(path)


def test_datasets_that_went_missing_or_changed_shape_are_found_on_opening(tmp_path):
    path = tmp_path / "s"
    ProfileStore(path).append(make_set(0))
    batch = next(path.glob("batch-*"))
    shutil.copytree(path, tmp_path / "t")
    with h5py.File(batch, "r+") as file:
        del file["noise"]
    with pytest.raises(FormatError, match="damaged"):
        ProfileStore(path)
    with h5py.File(tmp_path / "t" / batch.name, "r+") as file:
        del file["noise"]
        file["noise"] = np.zeros(3, "f4")
    with pytest.raises(FormatError, match="shapes"):
        ProfileStore(tmp_path / "t")


@pytest.mark.parametrize("length", [0, 100, 5000, -1])
def test_a_truncated_batch_is_found_on_opening(tmp_path, length):
    path = tmp_path / "s"
    ProfileStore(path).append(make_set(0))
    batch = next(path.glob("batch-*"))
    batch.write_bytes(batch.read_bytes()[:length])
    with pytest.raises(FormatError, match=batch.name):
        ProfileStore(path, "r")


def test_a_batch_that_goes_away_under_an_open_store_is_named(filled, tmp_path):
    path = tmp_path / "s"
    shutil.copytree(filled[0].path, path)
    store = ProfileStore(path, "r")
    batch = sorted(path.glob("batch-*"))[1]
    batch.unlink()
    with pytest.raises(FormatError, match="has gone"):
        store.load(slice(None), "fiber")
    assert ProfileStore(path, "r").n_exposures == 11  # taking a file away takes its exposures away, no more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: {**h, "version": 2}, "format version 2"),
        (lambda h: {**h, "format": "something"}, "not the header"),
        (lambda h: {**h, "season": 2018}, "checksum"),
        (lambda h: [1, 2], "not the header"),
        (lambda h: None, "not the header"),
    ],
)
def test_other_versions_and_damaged_headers_are_refused(tmp_path, change, message):
    path = tmp_path / "s"
    ProfileStore(path).append(make_set(0))
    header = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(change(header)))
    before = files_of(path)
    for mode in ("r", "a"):
        with pytest.raises(FormatError, match=message):
            ProfileStore(path, mode)
    assert files_of(path) == before


def test_what_is_no_store_is_refused(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(FileNotFoundError):
        ProfileStore(path, "r")
    with pytest.raises(FileNotFoundError):
        ProfileStore(tmp_path / "no" / "s")
    path.mkdir()
    with pytest.raises(FormatError, match="not a profile store"):
        ProfileStore(path, "r")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match=r"notes\.txt"):
        ProfileStore(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match="is a file"):
        ProfileStore(tmp_path / "file")
    ProfileStore(tmp_path / "t").append(make_set(0))
    (tmp_path / "t" / "store.json").write_bytes(b'{"format": \xff')
    with pytest.raises(FormatError, match="damaged"):
        ProfileStore(tmp_path / "t")
    for options in ({"mode": "w"}, {"compression": "zip"}, {"lock_timeout": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ProfileStore(tmp_path / "u", **options)


def test_batches_of_another_store_and_copies_are_refused(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    ProfileStore(a).append(make_set(0))
    ProfileStore(b).append(make_set(0, spectrograph=2))
    shutil.copy(next(b.glob("batch-*")), a / "batch-000002-x.h5")
    assert ProfileStore(a).n_exposures == 1  # not a name of ours
    foreign = next(b.glob("batch-*"))
    shutil.copy(foreign, a / foreign.name.replace("000001", "000002"))
    with pytest.raises(FormatError, match="belongs to another store"):
        ProfileStore(a)
    (a / foreign.name.replace("000001", "000002")).unlink()
    own = next(a.glob("batch-000001*.h5"))
    shutil.copy(own, a / own.name.replace("000001", "000002"))
    with pytest.raises(FormatError, match="both hold exposure"):
        ProfileStore(a)


def test_a_store_replaced_under_an_open_one_is_noticed(tmp_path):
    store = ProfileStore(tmp_path / "s")
    store.append(make_set(0))
    shutil.rmtree(tmp_path / "s")
    ProfileStore(tmp_path / "s").append(make_set(0, spectrograph=3))
    with pytest.raises(FormatError, match="replaced"):
        store.refresh()


# -- what does not belong together -------------------------------------------------------------------------

NEXT_SEASON = Time(["2017-09-01T12:00:00"])


def with_exposures(**columns):
    profiles = make_set(1)
    for name, values in columns.items():
        profiles.exposures[name] = values
    return profiles


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: make_set(1, instrument="lamost-mrs-blue"),
            "instrument 'lamost-lrs-blue'.*instrument 'lamost-mrs-blue'",
        ),
        (lambda: make_set(1, arm="red"), "arm 'blue'.*arm 'red'"),
        (lambda: make_set(1, spectrograph=2), "spectrograph 1.*spectrograph 2"),
        (lambda: make_set(1, times=NEXT_SEASON), "season 2017.*season 2018"),
        (lambda: with_exposures(time_reference=["mid"]), "time_reference 'start'.*'mid'"),
        (lambda: with_exposures(wavelength_center=["half"]), "wavelength_center 'sersic'.*'half'"),
        (lambda: make_set(1, n_sample=601), "grid of 600"),
        (lambda: make_set(1, offset=np.linspace(-8.335, 9.2500001, 600)), "grid"),
        (lambda: make_set(1, digest="fedcba9876543210"), "another description.*fedcba9876543210"),
        (lambda: make_set(1, lines=LINES - [0, 0, 1.3, 0]), "another description.*4678.158"),
    ],
)
def test_mixtures_are_refused_and_nothing_is_written(tmp_path, other, message):
    path = tmp_path / "s"
    store = ProfileStore(path)
    store.append(make_set(0))
    before = files_of(path)
    with pytest.raises(MixedStoreError, match=message):
        store.append(other())
    with pytest.raises(MixedStoreError, match=message):
        ProfileStore(path).append(other())
    assert files_of(path) == before
    store.append(make_set(1))


def test_two_writers_cannot_begin_a_mixed_store(tmp_path):
    first, second = ProfileStore(tmp_path / "s"), ProfileStore(tmp_path / "s")
    first.append(make_set(0))
    with pytest.raises(MixedStoreError, match="spectrograph"):
        second.append(make_set(0, spectrograph=2))


def test_the_folders_name_is_a_promise(tmp_path):
    for name in ("02_b_2017", "01_r_2017", "01_b_2016"):
        with pytest.raises(MixedStoreError, match="is the name for"):
            ProfileStore(tmp_path / f"{name}.profiles").append(make_set(0))
        assert not (tmp_path / f"{name}.profiles").exists()
    ProfileStore(tmp_path / "01_b_2017.profiles").append(make_set(0))


def test_an_exposure_is_taken_once(tmp_path):
    path = tmp_path / "s"
    store = ProfileStore(path)
    store.append(make_set(0, 2))
    before = files_of(path)
    copied = make_set(1)
    copied.exposures["file"] = ["renamed.fits"]
    copied.exposures["lamp"] = [" hgcd"]
    with pytest.raises(DuplicateExposureError, match="1 of these 1 exposures"):
        store.append(copied)
    assert store.append(copied, duplicates="skip") is None
    assert files_of(path) == before
    # 0 and 1 are known, 2 and 3 are not
    assert store.append(make_set(0, 4), duplicates="skip").startswith("batch-000002-")
    assert list(store.exposures["file"]) == [f"arc-{k:04d}.fits" for k in range(4)]
    want = make_set(2, 2)
    rows = store.labels["exposure"] >= 2
    assert np.array_equal(store.load(rows, "profile")["profile"], want.profile[want.flag == 0])
    # another lamp at the same time is another exposure
    other = make_set(0)
    other.exposures["lamp"] = ["NeAr"]
    store.append(other)
    store.verify()
    with pytest.raises(ValueError, match="duplicates must be"):
        store.append(make_set(9), duplicates="overwrite")
    twice = make_set(5, 2)
    twice.exposures["lmjm"] = twice.exposures["lmjm"][0]
    with pytest.raises(ValueError, match="the same exposure"):
        store.append(twice)


def changed(name, value, rows=slice(3, 4)):
    def change(profiles):
        getattr(profiles, name)[rows] = value

    return change


def replaced(**new):
    def change(profiles):
        for name, value in new.items():  # past the checks of ProfileSet itself
            object.__setattr__(profiles, name, value(profiles) if callable(value) else value)

    return change


def table_changed(**new):
    def change(profiles):
        for name, value in new.items():
            profiles.exposures[name] = value

    return change


BAD_SETS = {
    "fibre 0": (changed("fiber", 0), ValueError, "fiber must be 1"),
    "line -1": (changed("line", -1), ValueError, "line must be 0"),
    "flag -1": (changed("flag", -1), ValueError, "flag must be 0"),
    "exposure 1 of 1": (changed("exposure", 1), ValueError, "exposure must be 0 to 0"),
    "NaN in a good profile": (changed("profile", np.nan), ValueError, "profile is not finite in 1"),
    "NaN noise": (changed("noise", np.nan), ValueError, "noise is not finite"),
    "negative noise": (changed("noise", -1), ValueError, "noise must not be negative"),
    "negative ivar": (changed("native_ivar", -1), ValueError, "native_ivar must be 0"),
    "NaN ivar": (changed("native_ivar", np.nan), ValueError, "native_ivar must be 0"),
    "NaN pixel in use": (
        lambda p: (changed("native_flux", np.nan)(p), changed("native_ivar", 1)(p)),
        ValueError,
        "native_flux must be finite",
    ),
    "NaN time": (changed("lmjm", np.nan), ValueError, "lmjm must be finite"),
    "MJD instead of LMJM": (changed("lmjm", 57685.0), ValueError, "local modified Julian minutes"),
    "wavelength 0": (changed("wavelength", 0), ValueError, "wavelength must be finite and positive"),
    "air wavelength": (changed("wavelength", 4799.912, slice(None)), ValueError, "is not that of line"),
    "line that does not exist": (changed("line", 4), ValueError, "line must be 0 to 3"),
    "fibre 251 of 250": (changed("fiber", 251), OutOfRangeError, "fibre 251 is none of lamost-lrs-blue"),
    "fewer labels": (replaced(fiber=lambda p: p.fiber[:-1]), ValueError, "fiber has"),
    "3-D profile": (replaced(profile=lambda p: p.profile[None]), ValueError, "2 axes"),
    "fractional fibre": (replaced(fiber=lambda p: p.fiber + 0.5), TypeError, "fiber must be integers"),
    "objects": (replaced(profile=lambda p: p.profile.astype(object)), TypeError, "real numbers"),
    "complex": (replaced(noise=lambda p: p.noise * 1j), TypeError, "real numbers"),
    "fibre beyond the type": (
        replaced(fiber=lambda p: p.fiber.astype(int) + 70000),
        ValueError,
        "fiber must be -32768",
    ),
    "pixels of two shapes": (replaced(native_ivar=lambda p: p.native_ivar[:, 1:]), ValueError, "native pixels differ"),
    "grid of another length": (replaced(offset=np.arange(599.0)), ValueError, "600 samples, offset has 599"),
    "grid descending": (replaced(offset=lambda p: p.offset[::-1]), ValueError, "ascending"),
    "instrument None": (replaced(instrument=None), TypeError, "instrument must be text"),
    "arm empty": (replaced(arm=""), TypeError, "arm must be text"),
    "spectrograph by name": (replaced(spectrograph="1"), TypeError, "spectrograph must be an integer"),
    "no exposures": (replaced(exposures=lambda p: p.exposures[:0]), ValueError, "empty"),
    "exposures a list": (replaced(exposures=[1]), TypeError, "astropy Table"),
    "lines a list": (replaced(lines=[4046.5]), TypeError, "LineList"),
    "no time": (lambda p: p.exposures.remove_column("lmjm"), ValueError, "column lmjm"),
    "time as text": (table_changed(lmjm=["2016-10-24"]), ValueError, "one number a row"),
    "time an MJD": (table_changed(lmjm=[57685.0]), ValueError, "not a local modified Julian minute"),
    "time masked": (table_changed(lmjm=np.ma.masked_all(1)), ValueError, "finite"),
    "table of objects": (table_changed(header=np.array([{}], dtype=object)), TypeError, "header"),
    "table of arrays": (table_changed(header=[[1.0, 2.0]]), TypeError, "one value a row"),
    "table of times 2-D": (table_changed(middle=Time([["2016-10-24", "2016-10-24"]])), TypeError, "one value a row"),
    "reserved column": (table_changed(night=[1]), ValueError, "night"),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_bad_sets_are_refused_before_anything_is_written(tmp_path, name):
    change, error, message = BAD_SETS[name]
    profiles = make_set(0)
    profiles.flag[:10] = 0
    change(profiles)
    with pytest.raises(error, match=message):
        ProfileStore(tmp_path / "s").append(profiles)
    assert not (tmp_path / "s").exists()


def test_other_bad_arguments_of_append(tmp_path):
    with pytest.raises(TypeError, match="ProfileSet, got dict without"):
        ProfileStore(tmp_path / "s").append({})
    with pytest.raises(ValueError, match="seasons 2017, 2018"):
        ProfileStore(tmp_path / "s").append(make_set(0, times=Time([START.isot, NEXT_SEASON[0].isot])))
    two = make_set(0, 2)
    two.exposures["wavelength_center"] = ["sersic", "half"]
    with pytest.raises(ValueError, match="wavelength_center 'half', 'sersic'; a store holds one"):
        ProfileStore(tmp_path / "s").append(two)
    times = Time([START.isot, START.isot])
    times[1] = np.ma.masked
    later = make_set(0)
    later.exposures["end"] = times[1:]
    with pytest.raises(ValueError, match="masked times"):
        ProfileStore(tmp_path / "s").append(later)
    store = ProfileStore(tmp_path / "s")
    store.append(make_set(0))
    warm = make_set(1)
    warm.exposures["temperature"] = ["warm"]
    with pytest.raises(ValueError, match="'temperature' is"):
        store.append(warm)
    with pytest.raises(io.UnsupportedOperation, match="mode 'r'"):
        ProfileStore(tmp_path / "s", "r").append(make_set(1))
    with pytest.raises(FileExistsError):
        ProfileStore(tmp_path / "s", "w-")


def test_mode_w_begins_a_store_and_only_begins(tmp_path):
    store, rival = ProfileStore(tmp_path / "s", "w-"), ProfileStore(tmp_path / "s", "w-")
    store.append(make_set(0))
    store.append(make_set(1))
    with pytest.raises(FileExistsError, match="another writer"):
        rival.append(make_set(2))
    assert ProfileStore(tmp_path / "s").n_exposures == 2


def test_a_new_store_is_empty_and_says_so(tmp_path):
    store = ProfileStore(tmp_path / "s")
    assert len(store) == 0
    assert "new" in repr(store)
    assert len(store.exposures) == 0
    assert store.labels["fiber"].size == 0
    assert store.load([], "fiber")["fiber"].size == 0
    for ask in (lambda: store.id, store.info, lambda: store.offset, store.yields, lambda: store.season):
        with pytest.raises(ValueError, match="nothing has been appended"):
            ask()
    with pytest.raises(ValueError, match="no good profiles"):
        store.split()
    assert not (tmp_path / "s").exists()


# -- identity ----------------------------------------------------------------------------------------------


def test_id_is_the_contents_whatever_the_order_the_grouping_and_the_padding(tmp_path):
    plans = {
        "one by one": [(0, 1), (1, 1), (2, 1)],
        "backwards": [(2, 1), (0, 2)],
        "at once": [(0, 3)],
    }
    ids = set()
    for name, plan in plans.items():
        store = ProfileStore(tmp_path / name, compression=None if name == "at once" else "lzf")
        for first, n in plan:
            store.append(make_set(first, n))
        ids.add(store.id)
    store = ProfileStore(tmp_path / "padded")
    padded = make_set(0, 3)
    native = ("native_offset", "native_flux", "native_ivar")
    store.append(
        dataclasses.replace(padded, **{name: np.pad(getattr(padded, name), ((0, 0), (0, 9))) for name in native})
    )
    ids.add(store.id)
    rejected = make_set(3)  # no profile comes of it: the training set is the same
    rejected.flag[:] = 1
    store.append(rejected)
    ids.add(store.id)
    assert len(ids) == 1
    assert len(ids.pop()) == 64


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(5)), cuts=st.sets(st.integers(1, 4)), again=st.integers(0, 4))
def test_exposures_come_back_however_they_were_appended(tmp_path_factory, order, cuts, again):
    path = tmp_path_factory.mktemp("grouped") / "01_b_2017.profiles"
    store = ProfileStore(path)
    sets = [make_set(k, n_fiber=6, n_pixel=20 + k) for k in range(5)]
    for part in np.split(np.array(order), sorted(cuts)):
        first, *others = (sets[k] for k in part)
        store.append(first.concatenate(*others))
    with pytest.raises(DuplicateExposureError):
        store.append(sets[again])
    reopened = ProfileStore(path, "r")
    reopened.verify()
    assert reopened.id == store.id
    assert len(reopened) == sum(np.count_nonzero(s.flag == 0) for s in sets)
    # exposures and profiles keep the order of appending, and every profile its own exposure
    np.testing.assert_allclose(reopened.exposures["temperature"], 4.0 + 0.1 * np.array(order))
    loaded = reopened.load(slice(None))
    for place, k in enumerate(order):
        rows, good = loaded["exposure"] == place, sets[k].flag == 0
        for name in ROWS:
            given = getattr(sets[k], name)[good]
            got = loaded[name][rows]
            np.testing.assert_array_equal(got[:, : given.shape[1]] if given.ndim == 2 else got, given)
    train, validation = reopened.split(0.6, seed=again)
    assert not set(loaded["exposure"][train]) & set(loaded["exposure"][validation])
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(len(reopened)))


@pytest.mark.parametrize("name", [*ROWS[:-1], "exposure"])
def test_id_changes_with_any_value(tmp_path, name):
    ids = []
    for k in range(2):
        profiles = make_set(0, 2)
        profiles.flag[:] = 0
        array = getattr(profiles, name)
        assert profiles.line[8] < 3
        if k:
            array[8] = np.nextafter(array[8], array.dtype.type(np.inf)) if array.dtype.kind == "f" else array[8] + 1
            if name == "line":
                profiles.wavelength[8] = LINES[array[8]]
        store = ProfileStore(tmp_path / str(k))
        store.append(profiles)
        ids.append(store.id)
    assert ids[0] != ids[1]


# -- splits ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 10**6), by=st.sampled_from(["exposure", "night"]))
def test_nothing_is_on_both_sides_of_a_split(filled, fraction, seed, by):
    store, _ = filled
    train, validation = store.split(fraction, by=by, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(store)))
    assert train.size
    assert validation.size
    # the evening of the night in Beijing, by a calendar: noon to noon
    beijing = Time(list(store.exposures["time"])) + TimeDelta((8 - 12) * 3600, format="sec")
    group = store.exposures["file"] if by == "exposure" else np.array([t.isot[:10] for t in beijing])
    sides = [set(group[np.unique(store.labels["exposure"][rows])]) for rows in (train, validation)]
    assert not sides[0] & sides[1]
    n = len(set(group))
    assert len(sides[0]) == min(max(round(fraction * n), 1), n - 1)


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_appending(filled, tmp_path):
    store, sets = filled
    turned = ProfileStore(tmp_path / "s")
    for profiles in sets[::-1]:
        turned.append(profiles)
    assert turned.id == store.id
    for by in ("exposure", "night"):
        files = []
        for which in (store, turned):
            _, validation = which.split(0.75, by=by, seed=3)
            files.append(set(which.exposures["file"][np.unique(which.labels["exposure"][validation])]))
        assert files[0] == files[1]
    draws = {store.split(seed=seed)[1].tobytes() for seed in range(12)}
    assert len(draws) > 4
    assert np.array_equal(store.split()[0], store.split()[0])


def test_lines_and_nights_are_left_out_one_at_a_time(filled):
    store, _ = filled
    lines = list(store.leave_one_line_out())
    assert [line for line, _, _ in lines] == [0, 1, 2, 3]
    for line, train, validation in lines:
        assert set(store.labels["wavelength"][validation]) == {LINES[line]}
        assert LINES[line] not in store.labels["wavelength"][train]
        assert train.size + validation.size == len(store)
    nights = list(store.leave_one_night_out())
    assert [night for night, _, _ in nights] == sorted(set(store.exposures["night"]))
    covered = np.concatenate([validation for _, _, validation in nights])
    assert np.array_equal(np.sort(covered), np.arange(len(store)))
    for _, train, validation in nights:
        assert not set(store.labels["exposure"][train]) & set(store.labels["exposure"][validation])


def test_a_night_runs_from_noon_to_noon_of_the_observatory():
    # MJD 57685 is 2016-10-24; in Beijing 11:59 belongs to the night before, 12:01 to this one
    day = 57685 * 1440.0
    assert night_number(np.array([day + 719, day + 721, day + 1439, day + 1441, day + 1440 + 719])).tolist() == [
        57684, 57685, 57685, 57685, 57685,
    ]  # fmt: skip
    # La Palma: 04:00 UTC is night there, and noon in Beijing
    utc = np.array([3.5, 4.5]) * 60 + day + 480
    assert np.unique(night_number(utc, utc_offset=0.0)).tolist() == [57684]
    assert np.unique(night_number(utc)).size == 2
    with pytest.raises(ValueError, match="utc_offset"):
        night_number(utc, 480.0)


def test_splits_that_cannot_be_made_are_refused(filled, tmp_path):
    store, _ = filled
    for fraction in (0.0, 1.0, -1.0, 8.0, np.nan):
        with pytest.raises(ValueError, match="fraction must be"):
            store.split(fraction)
    with pytest.raises(ValueError, match="by must be"):
        store.split(by="profile")
    single = ProfileStore(tmp_path / "s")
    single.append(make_set(0, lines=LINES[:1]))
    with pytest.raises(ValueError, match="at least 2"):
        single.split()
    with pytest.raises(ValueError, match="one line out"):
        single.leave_one_line_out()
    with pytest.raises(ValueError, match="one night out"):
        single.leave_one_night_out()


def test_no_pickles_and_no_objects_on_disk(filled):
    store, _ = filled
    for path in store.path.glob("batch-*"):
        with h5py.File(path) as file:
            assert {d.dtype.kind for d in file.values()} <= set("iuf")
    for header in [json.loads((store.path / "store.json").read_text())]:
        assert header["version"] == 1


def test_a_qtable_of_exposures_is_as_good_as_a_table(tmp_path):
    from astropy.table import QTable

    profiles = make_set(0)
    profiles.exposures["temperature"].unit = "deg_C"
    store = ProfileStore(tmp_path / "s")
    store.append(dataclasses.replace(profiles, exposures=QTable(profiles.exposures)))
    assert type(store.exposures) is Table
    assert store.exposures["temperature"].unit == "deg_C"
    assert store.exposures["temperature"].tolist() == [4.0]


def test_an_instrument_of_ones_own_has_its_own_fibres(tmp_path):
    profiles = make_set(0, instrument="my-spectrograph")
    profiles.fiber[:] += 1000
    ProfileStore(tmp_path / "s").append(profiles)
    assert ProfileStore(tmp_path / "s").labels["fiber"].max() > 1000


def test_a_simulated_arc_goes_through_extraction_into_a_store(tmp_path):
    from lamost_lsf.arcs import ArcExposure, extract_profiles
    from lamost_lsf.simulation import SimulatedIP, simulate_arc

    store = ProfileStore(ProfileStore.path_for(tmp_path, 1, "blue", 2017))
    for minute in (0, 25):
        when = Time("2017-01-10T15:00") + TimeDelta(minute * 60, format="sec")
        arc = simulate_arc(SimulatedIP("blue"), when, fiber=list(range(1, 13)), dead_fibers=[])
        profiles = extract_profiles(ArcExposure.from_simulation(arc), instrument="lamost-lrs-blue")
        store.append(profiles)
    assert len(store) > 100
    assert store.lines == profiles.lines
    assert np.array_equal(store.offset, profiles.offset)
    last = store.labels["exposure"] == 1
    assert np.array_equal(store.load(last, "profile")["profile"], profiles.profile[profiles.good])
    store.verify()
