"""Archives of IP models: what is found, what is missing, and the LSF of a real LAMOST spectrum from its header."""

import shutil
from datetime import datetime

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time
from numpy.testing import assert_allclose, assert_array_equal
from published_weights import WINDOWS, evaluate, lmjm, random_arrays, season_minutes, write_published
from scipy.integrate import trapezoid
from scipy.interpolate import CubicSpline
from specutils import Spectrum, SpectrumList

from lamost_lsf import IPArchive, JoinedLSF, NeuralIP
from lamost_lsf.errors import FormatError, ModelNotFoundError, OutOfRangeError
from lamost_lsf.models.neural import parse_model_name
from lamost_lsf.units import air_to_vacuum

TIME = Time("2017-01-05T14:00")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Spectrographs 1 and 3, seasons 2016-2018; 01_r of 2016 and all of 2017 of spectrograph 3 are missing."""
    root = tmp_path_factory.mktemp("models")
    (root / "deeper").mkdir()
    seed = 0
    for spectrograph in (1, 3):
        for season in (2016, 2017, 2018):
            for arm in ("blue", "red"):
                seed += 1
                if (spectrograph, season) == (3, 2017) or (spectrograph, season, arm) == (1, 2016, "red"):
                    continue
                where = root / "deeper" if season == 2018 else root
                path, _ = write_published(where, seed, spectrograph, arm, season)
                if (spectrograph, season) == (1, 2018):
                    name = f"01_{arm[0]}_2018.safetensors"
                    NeuralIP.from_pylamostip(path).write(where / name)
                    path.unlink()
    (root / "README.txt").write_text("not a model")
    (root / "other.npz").write_bytes(b"not a model either")
    return root


@pytest.fixture(scope="module")
def archive(folder):
    return IPArchive(folder)


def arrays_of(folder, spectrograph, arm, season):
    path = next(folder.rglob(f"NN_normalized_spectra_{spectrograph:02d}_{arm[0]}_{season}.npz"))
    with np.load(path) as npz:
        return {name: npz[name] for name in npz.files}


# -- what is there -------------------------------------------------------------------------------------------


def test_both_names_are_found_at_any_depth(archive, folder):
    table = archive.table()
    assert len(archive) == len(table) == 9
    assert table.colnames == ["season", "spectrograph", "arm", "file"]
    assert list(table["season"]) == sorted(table["season"])
    row = table[(table["season"] == 2018) & (table["spectrograph"] == 1) & (table["arm"] == "red")]
    assert row["file"][0] == "deeper/01_r_2018.safetensors"
    assert repr(archive) == f"<IPArchive {folder}: 9 models, seasons 2016-2018>"


def test_gaps_are_what_the_covered_seasons_and_spectrographs_lack(archive, tmp_path):
    rows = {tuple(row) for row in archive.gaps()}
    assert rows == {(2016, 1, "red"), (2017, 3, "blue"), (2017, 3, "red")}
    for arm in ("blue", "red"):
        write_published(tmp_path, 0, 5, arm, 2017)
    assert len(IPArchive(tmp_path).gaps()) == 0
    write_published(tmp_path, 0, 5, "blue", 2020)
    gaps = IPArchive(tmp_path).gaps()
    assert sorted(set(gaps["season"])) == [2018, 2019, 2020]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NN_normalized_spectra_01_b_2017.npz", (1, "blue", 2017)),
        ("16_r_2023.safetensors", (16, "red", 2023)),
        ("some/where/02_b_2014.npz", (2, "blue", 2014)),
        ("1_b_2017.npz", None),
        ("01_g_2017.npz", None),
        ("01_b_17.npz", None),
        ("old_01_b_2017.npz", None),
        ("01_b_2017_old.npz", None),
    ],
)
def test_names(name, key):
    found = parse_model_name(name)
    assert (found and (found["spectrograph"], found["arm"], found["season"])) == key


def test_our_own_format_is_preferred_and_rivals_are_refused_when_used(tmp_path):
    path, _ = write_published(tmp_path, 1, 1, "blue", 2017)
    NeuralIP.from_pylamostip(path).write(tmp_path / "01_b_2017.safetensors")
    write_published(tmp_path, 2, 2, "blue", 2017)
    archive = IPArchive(tmp_path)
    assert list(archive.table()["file"]) == [
        "01_b_2017.safetensors",
        "NN_normalized_spectra_02_b_2017.npz",
    ]
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "01_b_2017.safetensors", tmp_path / "copy")
    doubled = IPArchive(tmp_path)
    assert len(doubled) == 2
    with pytest.raises(ValueError, match=r"several models of season 2017, spectrograph 1, blue arm: .*keep one"):
        doubled.model(spectrograph=1, arm="blue", season=2017)
    assert doubled.model(spectrograph=2, arm="blue", season=2017).meta["spectrograph"] == 2


def test_empty_or_missing_folders_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="holds no IP model; expected names such as"):
        IPArchive(tmp_path)
    with pytest.raises(NotADirectoryError, match="not a folder"):
        IPArchive(tmp_path / "nowhere")
    (tmp_path / "01_b_2017.npz").mkdir()
    with pytest.raises(ModelNotFoundError):
        IPArchive(tmp_path)


def test_a_damaged_model_spoils_only_its_own_set(tmp_path):
    write_published(tmp_path, 1, 1, "blue", 2017)
    (tmp_path / "NN_normalized_spectra_01_r_2017.npz").write_bytes(b"PK")
    archive = IPArchive(tmp_path)
    assert archive.model(spectrograph=1, arm="blue", season=2017)
    with pytest.raises(FormatError, match="01_r_2017"):
        archive.lsf(spectrograph=1, time=TIME, fiber=1)


# -- models --------------------------------------------------------------------------------------------------


def test_a_model_is_read_once(archive):
    first = archive.model(spectrograph=1, arm="blue", season=2017)
    assert archive.model(spectrograph=1, arm="blue", season=2017) is first
    assert first.meta["season"] == 2017


@pytest.mark.parametrize(
    ("key", "error", "match"),
    [
        ((7, "blue", 2017), ModelNotFoundError, "no model of spectrograph 7; the archive has spectrographs 1, 3"),
        ((1, "red", 2016), ModelNotFoundError, "season 2016 for spectrograph 1, red arm; seasons there: 2017-2018"),
        ((3, "red", 2017), ModelNotFoundError, "seasons there: 2016, 2018"),
        ((1, "blue", 2030), ModelNotFoundError, "seasons there: 2016-2018"),
        ((1, "green", 2017), ValueError, "'blue' or 'red'"),
    ],
)
def test_what_is_missing_is_named_with_what_is_there(archive, key, error, match):
    with pytest.raises(error, match=match):
        archive.model(spectrograph=key[0], arm=key[1], season=key[2])


# -- profiles ------------------------------------------------------------------------------------------------


def test_season_and_arm_follow_from_time_and_wavelength(archive, folder):
    when = datetime(2016, 12, 24, 15, 7)
    for arm, air in (("blue", 5790.0), ("red", 5944.9)):
        ip = archive.profile(spectrograph=1, time=Time(when), fiber=200, wavelength=air * u.AA, medium="air")
        truth = evaluate(arrays_of(folder, 1, arm, 2017), lmjm(when), 199, air)
        assert ip.shape == ()
        assert_allclose(ip.flux, truth, atol=1e-6)
        assert ip.offset[0].to_value(u.AA) == WINDOWS[arm][0]
        assert ip.meta["season"] == 2017


def test_a_wavelength_belongs_to_the_blue_arm_up_to_5800_in_air(archive):
    # 5801.608 A in vacuum
    for wavelength, medium, arm in (
        (5799.9, "air", "blue"),
        (5800.1, "air", "red"),
        (5801.5, "vacuum", "blue"),
        (5801.7, "vacuum", "red"),
    ):
        where = {"wavelength": wavelength * u.AA, "medium": medium, "extrapolate": True}
        assert archive.profile(spectrograph=1, time=TIME, fiber=5, **where).meta["arm"] == arm


@pytest.mark.parametrize(
    ("utc", "season"),
    [
        (datetime(2017, 8, 31, 15, 59), 2017),  # 23:59 of 31 August in Beijing
        (datetime(2017, 8, 31, 16, 0), 2018),  # midnight, 1 September
        (datetime(2017, 1, 1), 2017),
        (datetime(2016, 12, 31, 23, 59), 2017),
    ],
)
def test_the_season_turns_at_midnight_in_beijing(archive, utc, season):
    ip = archive.profile(spectrograph=1, time=Time(utc), fiber=5, wavelength=5000 * u.AA)
    assert ip.meta["season"] == season
    assert archive.lsf(spectrograph=1, time=Time(utc), fiber=5, arm="blue").meta["season"] == season


def test_times_of_several_seasons_broadcast(archive, folder):
    whens = [datetime(2015, 12, 1, 12), datetime(2016, 12, 1, 12), datetime(2016, 2, 1, 12)]
    air = np.array([[4500.0], [5500.0]])
    ip = archive.profile(spectrograph=1, time=Time(whens), fiber=9, wavelength=air * u.AA, medium="air")
    assert ip.shape == (2, 3)
    for j, (when, season) in enumerate(zip(whens, (2016, 2017, 2016), strict=True)):
        truth = evaluate(arrays_of(folder, 1, "blue", season), lmjm(when), 8, 5500.0)
        assert_allclose(ip.flux[1, j], truth, atol=1e-6)
    assert "season" not in ip.meta
    assert ip.meta["arm"] == "blue"


def test_bad_requests_for_profiles_are_named(archive):
    good = {"spectrograph": 1, "time": TIME, "fiber": 5, "wavelength": 5000 * u.AA}
    for bad, error, match in (
        ({"wavelength": [5000, 7000] * u.AA}, ValueError, "both arms"),
        ({"time": 5}, TypeError, "astropy Time"),
        ({"time": Time(["2017-01-01", "2017-01-02"]), "fiber": [1, 2, 3]}, ValueError, "do not broadcast"),
        ({"fiber": []}, ValueError, "nothing to evaluate"),
        ({"fiber": 251}, OutOfRangeError, "1-250"),
        ({"wavelength": 3900 * u.AA}, OutOfRangeError, "extrapolate=True"),
    ):
        with pytest.raises(error, match=match):
            archive.profile(**(good | bad))
    assert archive.profile(**(good | {"wavelength": 3900 * u.AA}), extrapolate=True).shape == ()


# -- LSF of both arms ----------------------------------------------------------------------------------------


def test_arms_are_joined_at_5800_in_air(archive, folder):
    lsf = archive.lsf(spectrograph=1, time=TIME, fiber=33, extrapolate=True)
    assert isinstance(lsf, JoinedLSF)
    join = lsf.segments()[0].high
    assert_allclose(join, 5801.61, atol=0.01)  # 5800 A in air is 5801.608 A in vacuum
    minute = lmjm(datetime(2017, 1, 5, 14))
    for air, arm in ((5799.9, "blue"), (5800.1, "red"), (4500.0, "blue"), (8000.0, "red")):
        ip = lsf.profile(air * u.AA, medium="air")
        flux = evaluate(arrays_of(folder, 1, arm, 2017), minute, 32, air)
        x = np.linspace(*WINDOWS[arm], 600)
        area = trapezoid(flux, x)
        t = np.linspace(-6, 6, 100)
        assert_allclose(ip(t * u.AA), np.interp(t, x, flux / area), atol=2e-4)
    # 5801 A in vacuum is 5799.39 A in air, so blue
    boundary = lsf.profile([5801.0, 5802.0] * u.AA)
    assert np.max(np.abs(boundary.flux[0] - boundary.flux[1])) > 1e-3
    assert lsf.meta["season"] == 2017
    assert "arm" not in lsf.meta


def test_without_extrapolation_the_lsf_ends_where_the_lines_do(archive):
    lsf = archive.lsf(spectrograph=1, time=TIME, fiber=33)
    assert lsf.profile([4050, 5000, 5791, 5950, 8400] * u.AA).shape == (5,)
    for wavelength in (4000, 5795, 5900, 8600):
        with pytest.raises(OutOfRangeError, match="extrapolate=True"):
            lsf.profile(wavelength * u.AA)


def test_a_missing_arm_is_an_error_where_it_is_asked_for_even_when_extrapolating(archive):
    lsf = archive.lsf(spectrograph=1, time=Time("2016-01-05T14:00"), fiber=3, extrapolate=True)
    assert lsf.profile(3800 * u.AA).shape == ()
    with pytest.raises(OutOfRangeError, match="no model of season 2016 for spectrograph 1, red arm"):
        lsf.profile(6500 * u.AA)
    with pytest.raises(OutOfRangeError, match="no model of season 2016"):
        lsf.shifted(1.0001).profile(6500 * u.AA)
    with pytest.raises(ModelNotFoundError, match="red arm"):
        archive.lsf(spectrograph=1, time=Time("2016-01-05T14:00"), fiber=3, arm="red")
    with pytest.raises(ModelNotFoundError, match="spectrograph 3, blue arm; seasons there: 2016, 2018"):
        archive.lsf(spectrograph=3, time=TIME, fiber=3)


def test_bad_requests_for_lsfs_are_named(archive):
    good = {"spectrograph": 1, "time": TIME, "fiber": 5}
    for bad, error, match in (
        ({"time": Time(["2017-08-31T15:00", "2017-08-31T17:00"])}, ValueError, r"several seasons: \[2017, 2018\]"),
        ({"time": Time([TIME])[:0]}, ValueError, "empty"),
        ({"time": "2017-01-01"}, TypeError, "astropy Time"),
        ({"fiber": [1, 2]}, ValueError, "one fibre"),
        ({"arm": "both"}, ValueError, "'blue' or 'red'"),
    ):
        with pytest.raises(error, match=match):
            archive.lsf(**(good | bad))


# -- real spectra --------------------------------------------------------------------------------------------


def archive_for(header, folder):
    """Both arms of a real header's spectrograph and season, and what evaluates them without the package."""
    minutes = [int(m) for m in str(header["LMJMLIST"]).split("-")]
    season = parse_season(minutes[0])
    arrays = {arm: random_arrays(seed, arm, season) for seed, arm in enumerate(("blue", "red"))}
    for arm, a in arrays.items():
        np.savez(folder / f"NN_normalized_spectra_{header['SPID']:02d}_{arm[0]}_{season}.npz", **a)
    # a neighbour in every label, which must not be taken
    write_published(folder, 77, header["SPID"] % 16 + 1, "blue", season)
    write_published(folder, 78, header["SPID"], "blue", season + 1)
    return IPArchive(folder), arrays, minutes


@pytest.mark.parametrize(
    "name",
    [
        "lrs_repeats_dr8/spec-55859-F5902_sp15-091.fits.gz",  # co-add of several exposures
        "lrs_repeats_dr8/spec-57304-EG025335S013827V01_sp09-082.fits.gz",  # one exposure
    ],
)
@pytest.mark.parametrize("air", [4358.335, 6402.248])
def test_the_lsf_of_a_real_spectrum_is_that_of_its_header(data_dir, tmp_path, name, air):
    path = data_dir / "lamost" / name
    header = fits.getheader(path)
    archive, arrays, minutes = archive_for(header, tmp_path)
    lsf = archive.lsf_for(Spectrum.read(path))
    arm = "blue" if air < 5800 else "red"
    x = np.linspace(*WINDOWS[arm], 600)

    def detector(air=air, minutes=minutes, fiber=header["FIBERID"]):
        """Mean unit-area profile of the exposures where the detector saw a line of this air wavelength."""
        rows = [evaluate(arrays[arm], m, fiber - 1, air) for m in minutes]
        return np.mean([row / CubicSpline(x, row).integrate(x[0], x[-1]) for row in rows], axis=0)

    # HELIO_RV is minus the correction: a wavelength w of the file was at w (1 + HELIO_RV / c) on the detector
    factor = 1 + header["HELIO_RV"] / 299792.458
    segment = next(g.lsf for g in lsf.segments() if g.low <= air_to_vacuum(air) / factor < g.high)
    assert_allclose(segment.offset * factor, x, atol=1e-9)
    seen = segment.sample(air_to_vacuum([air]) / factor)[0] / factor
    assert_allclose(seen, detector(), atol=1e-6)
    # the joined LSF interpolates between the arms' grids
    t = np.linspace(-7, 7, 200)
    joined = lsf.profile(air_to_vacuum(air) / factor * u.AA)(t / factor * u.AA) / factor
    assert_allclose(joined, CubicSpline(x, detector())(t), atol=1e-5)
    mistakes = {
        "sign of HELIO_RV": detector(air=air / factor**2),
        "no frame": detector(air=air / factor),
        "fibre": detector(fiber=header["FIBERID"] + 1),
        "LMJD for LMJM": detector(minutes=[header["LMJD"] * 1440]),
    }
    if len(minutes) > 1:
        mistakes["first exposure only"] = detector(minutes=minutes[:1])
    for mistake, flux in mistakes.items():
        assert np.max(np.abs(flux - detector())) > 1e-7, mistake


def test_every_exposure_of_a_real_coadd_counts(data_dir, tmp_path):
    path = data_dir / "lamost" / "lrs_repeats_dr8" / "spec-55859-F5902_sp15-091.fits.gz"
    archive, _, minutes = archive_for(fits.getheader(path), tmp_path)
    assert len(minutes) > 1
    assert archive.lsf_for(Spectrum.read(path)).segments()[0].lsf.meta["n_exposures"] == len(minutes)


def test_the_centre_is_the_wavelength_scales(data_dir, tmp_path):
    path = data_dir / "lamost" / "lrs_repeats_dr8" / "spec-57304-EG025335S013827V01_sp09-082.fits.gz"
    archive, _, _ = archive_for(fits.getheader(path), tmp_path)
    spectrum = Spectrum.read(path)
    lsf = archive.lsf_for(spectrum)
    assert lsf.center == "sersic"
    assert [s.lsf.center for s in lsf.segments()] == ["sersic", "sersic"]
    again = archive.lsf_for(dict(spectrum.meta))
    assert_array_equal(again.sample(np.array([5000.0])), lsf.sample(np.array([5000.0])))
    topocentric = archive.lsf_for(dict(spectrum.meta) | {"frame": "topocentric"})
    factor = 1 + spectrum.meta["helio_rv"].to_value(u.km / u.s) / 299792.458
    assert_allclose(topocentric.segments()[0].high / factor, lsf.segments()[0].high, rtol=1e-14)


@pytest.mark.parametrize("missing", ["spectrograph", "fiber", "time", "frame", "helio_rv"])
def test_a_spectrum_that_does_not_say_where_it_comes_from_is_refused(data_dir, tmp_path, missing):
    path = data_dir / "lamost" / "lrs_repeats_dr8" / "spec-57304-EG025335S013827V01_sp09-082.fits.gz"
    archive, _, _ = archive_for(fits.getheader(path), tmp_path)
    meta = dict(Spectrum.read(path).meta)
    for spoilt in (meta | {missing: None}, {k: v for k, v in meta.items() if k != missing}):
        with pytest.raises(ValueError, match=missing):
            archive.lsf_for(spoilt)


def test_a_season_without_a_model_is_named(data_dir, archive):
    path = data_dir / "lamost" / "lrs_repeats_dr8" / "spec-55859-F5902_sp15-091.fits.gz"
    with pytest.raises(ModelNotFoundError, match="no model of spectrograph 15"):
        archive.lsf_for(Spectrum.read(path))
    meta = dict(Spectrum.read(path).meta) | {"spectrograph": 1}
    with pytest.raises(ModelNotFoundError, match="no model of season 2012"):
        archive.lsf_for(meta)


def test_models_of_the_low_resolution_survey_are_not_used_for_the_medium(data_dir, tmp_path):
    path = next((data_dir / "lamost" / "mrs_multi_epoch").glob("*.fits.gz"))
    spectrum = SpectrumList.read(path)[0]
    season = parse_season(spectrum.meta["lmjm"][0])
    for arm in ("blue", "red"):
        write_published(tmp_path, 1, spectrum.meta["spectrograph"], arm, season)
    with pytest.raises(ValueError, match="taken with lamost-mrs, the archive's model is of lamost-lrs-blue"):
        IPArchive(tmp_path).lsf_for(spectrum)


def parse_season(minute):
    return next(s for s in range(2009, 2030) if season_minutes(s)[0] <= minute <= season_minutes(s)[1])


# -- extra labels ------------------------------------------------------------------------------------------------


@pytest.fixture
def warm(tmp_path):
    """Archive of one arm whose lines are wider by 0.01 A a degree, from -10 to 20."""
    x = np.linspace(*WINDOWS["blue"], 600)
    wide, narrow = (np.exp(-0.5 * (x / sigma) ** 2) for sigma in (1.35, 1.05))
    model = NeuralIP(
        [np.stack([*np.zeros((3, 600)), wide - narrow], axis=1)], [0.5 * (wide + narrow)], offset=x,
        extra_labels={"temperature": 5.0}, label_min=[82_820_000, 0, 4046.565, -10],
        label_max=[83_190_000, 249, 5790.670, 20],
    )  # fmt: skip
    model.write(tmp_path / "01_b_2017.safetensors")
    return IPArchive(tmp_path), x, {-10: narrow, 20: wide, 5: 0.5 * (narrow + wide)}


def test_labels_go_through_an_archive(warm):
    archive, x, truth = warm
    where = {"spectrograph": 1, "time": Time("2017-01-05T14:00"), "fiber": 12}
    meta = {**where, "frame": "topocentric", "arm": "blue"}
    for labels, t in (({"temperature": -10}, -10), ({"temperature": 20}, 20), ("median", 5)):
        flux = archive.profile(**where, wavelength=5000 * u.AA, labels=labels).flux
        assert_allclose(flux, truth[t], atol=1e-6)
        unit = truth[t] / CubicSpline(x, truth[t]).integrate(x[0], x[-1])
        one = archive.lsf(**where, labels=labels)
        two = archive.lsf_for(meta, labels=labels)
        three = archive.lsf_for({**meta, "labels": labels})
        (four,) = archive.lsfs_for([{**meta, "labels": labels}])
        for lsf in (one, two, three, four):
            assert_allclose(lsf.sample(np.array([5000.0]))[0], unit, atol=1e-6)
    for ask in (lambda: archive.lsf(**where), lambda: archive.lsf_for(meta)):
        with pytest.raises(ValueError, match="depends on temperature"):
            ask()
    (error,) = archive.lsfs_for([meta])
    assert isinstance(error, ValueError)
    # a co-add of a cold and a warm exposure
    times = where["time"] + [0, 1] * u.h
    lsf = archive.lsf_for({**meta, "time": times}, labels={"temperature": [-10, 20]})
    units = [truth[t] / CubicSpline(x, truth[t]).integrate(x[0], x[-1]) for t in (-10, 20)]
    assert_allclose(lsf.sample(np.array([5000.0]))[0], np.mean(units, axis=0), atol=1e-6)
