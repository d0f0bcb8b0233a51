"""Whatever rows a survey has, and however its input is cut: they come back, once, in the input's order."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pyarrow", reason="surveys are written as Parquet files")

from lamost_lsf.batch import SpectrumList, read_survey
from lamost_lsf.batch.manifest import item_key
from lamost_lsf.batch.output import Part, Survey, part_name, settings_digest, write_part, write_settings
from lamost_lsf.batch.run import _jobs
from lamost_lsf.rv.rows import blank_row

SETTINGS = {"windows": ["a"], "degree": 3}
CONFIG = settings_digest(SETTINGS)
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
_ROW = st.tuples(st.floats(), st.integers(0, 2**20), _TEXT)


def rows_of(items, values, each):
    return [
        {**blank_row(), "file": path, "rv": v, "flags": flags, "message": text, "window": f"w{k}"}
        for (path, _), (v, flags, text) in zip(items, values, strict=True)
        for k in range(each)
    ]


@given(st.lists(st.tuples(_ROW, st.sampled_from(["", "COADD_B"])), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_rows_survive_their_file(cases, each):
    values = [row for row, _ in cases]
    items = [(f"/data/{k}.fits", extension) for k, (_, extension) in enumerate(cases)]
    keys = [item_key(*item) for item in items]
    with tempfile.TemporaryDirectory() as name:
        path = write_part(Path(name), CONFIG, keys, [e for _, e in items], rows_of(items, values, each))
        assert path.name == part_name(CONFIG, keys)
        part = Part.read(path)
        table = part.table()
        assert list(Path(name).iterdir()) == [path]  # and nothing half-written
    assert (part.config, part.rows, part.keys.size) == (CONFIG, each, len(items))
    assert part.flagged == sum(flags != 0 for _, flags, _ in values)
    np.testing.assert_array_equal(table["rv"], np.repeat([v for v, _, _ in values], each))
    assert table["flags"].tolist() == [f for _, f, _ in values for _ in range(each)]
    assert table["message"].tolist() == [t for _, _, t in values for _ in range(each)]
    assert table["extension"].tolist() == [e for _, e in items for _ in range(each)]
    assert part_name(CONFIG, keys) != part_name("other", keys)
    assert len(keys) < 2 or part_name(CONFIG, keys) != part_name(CONFIG, keys[::-1])


@given(st.integers(1, 25), st.integers(1, 7), st.integers(1, 2), st.data())
@settings(max_examples=25, deadline=None)
def test_a_survey_is_its_input_however_it_was_cut(n, chunk, each, data):
    """Parts in any order, some of them missing, read back in any order of the spectra."""
    spectra = SpectrumList([f"/data/{k}.fits" for k in range(n)])
    keys = spectra.keys()
    done = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_settings(folder, SETTINGS)
        jobs = list(_jobs(spectra, done, chunk))
        for items in data.draw(st.permutations(jobs)):
            values = [(float(path[6:-5]), 0, "") for path, _ in items]
            write_part(folder, CONFIG, [item_key(*i) for i in items], ["" for _ in items], rows_of(items, values, each))
        survey = Survey.open(folder)
        assert sorted(survey.keys()) == sorted(keys[done])
        # what is left to do is what is not done, whatever the size of its chunks
        other = data.draw(st.integers(1, 9))
        left = [item for items in _jobs(spectra, ~np.isin(keys, survey.keys()), other) for item in items]
        assert left == [(path, "") for path, there in zip(spectra.paths, done, strict=True) if not there]
        order = np.array(data.draw(st.permutations(range(n))))
        tables = list(survey.tables(keys[order]))
        number = np.concatenate([t["spectrum"] for t in tables]) if tables else np.empty(0, int)
        velocity = np.concatenate([t["rv"] for t in tables]) if tables else np.empty(0)
        assert number.tolist() == np.repeat(np.flatnonzero(done[order]), each).tolist()
        assert velocity.tolist() == np.repeat(order[done[order]], each).tolist()
        if done.any():
            assert len(read_survey(folder)) == done.sum() * each


@given(
    st.lists(st.tuples(_TEXT.filter(bool), st.sampled_from(["", "COADD_B", "COADD_R"])), max_size=8), st.integers(0, 8)
)
def test_spectra_are_told_apart_by_path_and_extension(items, cut):
    spectra = SpectrumList([p for p, _ in items], [e for _, e in items])
    keys = spectra.keys()
    assert len(spectra) == keys.size == len(items)
    assert np.unique(keys).size == len(set(items))
    assert spectra.part(0, cut) + spectra.part(cut, len(items)) == items
