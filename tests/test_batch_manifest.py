"""What a survey measures: paths, patterns, manifests; whatever is wrong stops with the number of its line."""

import os
import string

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamost_lsf.batch import find_spectra, read_manifest
from lamost_lsf.errors import FormatError

NAMES = ["b.fits", "a star.fits", "plate/c.fits.gz"]


@pytest.fixture
def folder(tmp_path):
    """Three files."""
    (tmp_path / "plate").mkdir()
    for name in NAMES:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def full(folder, names=NAMES):
    return [str(folder / name) for name in names]


@pytest.mark.parametrize("suffix", [".ecsv", "comma.ecsv", ".csv", ".tsv", ".txt", ".fits", ".parquet"])
def test_all_kinds_of_manifest_say_the_same(folder, suffix):
    path = folder / f"manifest{suffix}"
    table = Table({"obsid": [1, 2, 3], "Path": NAMES, "note": ["x", "", "two words"]})
    if suffix.endswith(".ecsv"):
        table.write(path, format="ascii.ecsv", delimiter="," if "comma" in suffix else " ")
    elif suffix == ".fits":
        table.write(path)
    elif suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({name: list(table[name]) for name in table.colnames}), path)
    elif suffix == ".txt":
        path.write_text("# what was observed\n\n" + "\n".join(NAMES) + "\n")
    else:
        table.write(path, format="ascii.csv", delimiter="," if suffix == ".csv" else "\t")
    assert read_manifest(path).paths == full(folder)


def test_a_manifest_may_name_its_column_folder_and_extensions(folder):
    path = folder / "plate" / "m.csv"
    path.write_text("where,extension\nb.fits,coadd_r\nb.fits,\n")
    spectra = read_manifest(path, column="where", root=folder)
    assert spectra.part(0, 2) == [(str(folder / "b.fits"), "COADD_R"), (str(folder / "b.fits"), "")]
    assert np.unique(spectra.keys()).size == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "path,obsid\nb.fits,1\n,2\n", "line 3: the path is empty"),
        ("m.csv", "path,obsid\nb.fits,1\nplate/c.fits.gz,2,3\n", "line 3: 3 fields, but 2 columns: path, obsid"),
        ("m.csv", "# c\npath,obsid\nb.fits\n", "line 3: 1 fields, but 2 columns"),
        ("m.csv", "name,obsid\nb.fits,1\n", "line 1: no column path, file, filename, filepath; there are name, obsid"),
        ("m.csv", "path\nb.fits\na star.fits\n\n./b.fits\n", "line 5: .*b.fits is also in line 2"),
        ("m.csv", 'path,note\nb.fits,"two\nlines"\n,x\n', "line 4: the path is empty"),
        ("m.csv", 'path,note\nb.fits,"never closed\n', "line 2: unexpected end of data"),
        ("m.csv", "path\n", "no spectrum in it"),
        ("m.csv", "", "no line of column names"),
        ("m.csv", "path\nx.fits\ny.fits\n", "line 2: .*x.fits does not exist, nor do the next 1; root="),
        ("m.txt", "b.fits\n# comment\nb.fits\n", "line 3: .*b.fits is also in line 1"),
        ("m.ecsv", "path\nb.fits\n", "line 1: an ECSV file begins with"),
        ("m.xlsx", "", "a manifest ends in .ecsv"),
        ("m.fits", "no FITS", "not a readable FITS table"),
    ],
)
def test_a_wrong_manifest_says_where(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(FormatError, match=message):
        read_manifest(folder / name)


def test_rows_of_a_wrong_ecsv_are_lines_of_the_file(folder):
    Table({"path": [*NAMES[:2], "", NAMES[2]]}).write(folder / "m.ecsv")
    lines = (folder / "m.ecsv").read_text().splitlines()
    wrong = lines.index('""') + 1
    with pytest.raises(FormatError, match=rf"m\.ecsv, line {wrong}: the path is empty"):
        read_manifest(folder / "m.ecsv")


def test_columns_of_numbers_are_no_paths(folder):
    Table({"path": [1, 2]}).write(folder / "m.fits")
    with pytest.raises(FormatError, match=r"column path holds .*, not text"):
        read_manifest(folder / "m.fits")
    with pytest.raises(FormatError, match=r"no column 'file'; there are path"):
        read_manifest(folder / "m.fits", column="file")
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        read_manifest(folder / "none.csv")


def test_patterns_and_folders_find_each_file_once(folder):
    (folder / "readme.txt").write_text("no spectrum")
    assert find_spectra(folder).paths == sorted(full(folder))
    assert find_spectra([f"{folder}/**/*.gz", folder / "b.fits", f"{folder}/*.fits"]).paths == full(
        folder, ["plate/c.fits.gz", "b.fits", "a star.fits"]
    )
    # a missing file is a row of the results, a pattern that fits nothing a mistake
    assert find_spectra([folder / "none.fits"]).paths == [str(folder / "none.fits")]
    for wrong in (f"{folder}/*.fit", folder / "empty"):
        (folder / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=r"no file fits|holds no FITS file"):
            find_spectra([wrong])
    with pytest.raises(ValueError, match="no spectra"):
        find_spectra([])
    with pytest.raises(ValueError, match="not both"):
        find_spectra(["a.fits"], manifest="m.csv")
    with pytest.raises(ValueError, match="go with a manifest"):
        find_spectra(["a.fits"], column="path")


_TEXT = st.text(string.ascii_letters + string.digits + " ,;'\"éλ#._-", min_size=1, max_size=12).map(str.strip)


@given(names=st.lists(_TEXT.filter(bool), min_size=1, max_size=6, unique=True), fmt=st.sampled_from(["csv", "ecsv"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_survives_a_manifest(tmp_path, names, fmt):
    names = [f"d{os.sep}{name}.fits" for name in names]
    (tmp_path / "d").mkdir(exist_ok=True)
    (tmp_path / names[0]).touch()
    Table({"n": range(len(names)), "path": names}).write(tmp_path / f"m.{fmt}", format=f"ascii.{fmt}", overwrite=True)
    assert read_manifest(tmp_path / f"m.{fmt}").paths == [str(tmp_path / name) for name in names]
