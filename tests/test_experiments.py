"""The experiments on centres and velocities: against the true profiles' own centres, Monte Carlo and bad manifests."""

import json
import re
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.time import Time
from numpy.testing import assert_allclose

from lamost_lsf.arcs import ArcExposure
from lamost_lsf.errors import FitWarning, PluginLookupError
from lamost_lsf.experiments import (
    CENTERS,
    ManifestError,
    center_stability,
    read_manifest,
    rv_epochs,
    simulate_epochs,
    simulate_profiles,
    velocity_bound,
)
from lamost_lsf.experiments.figures import plot_centers, plot_jumps, plot_rv_epochs
from lamost_lsf.experiments.kept import KeptLSF
from lamost_lsf.simulation import Observatory, SimulatedIP, simulate_arc, simulate_star, synthetic_template
from lamost_lsf.units import SPEED_OF_LIGHT

KMS = u.km / u.s
LINE = 4359.56
FIBER = 100
VELOCITY = 31.93


@pytest.fixture(scope="module")
def observatory():
    return Observatory()


@pytest.fixture(scope="module")
def star():
    # the segment, with room for velocities and the profile's wings
    return synthetic_template(6200, wavelength_range=(4100, 4650) * u.AA)


@pytest.fixture(scope="module")
def noiseless_visits(star, observatory):
    return simulate_epochs(
        star, observatory, n_exposures=8, n_nights=4, arcs_per_night=1, noise=False, drift=0.2 * u.AA, fiber=FIBER
    )


@pytest.fixture(scope="module")
def noiseless(noiseless_visits, star, observatory):
    return rv_epochs(noiseless_visits, star, observatory, window=LINE * u.AA, mixing=True)


def row(result, method, kernel=""):
    table = result.summary()
    keep = (table["method"] == method) & (table["kernel_center"] == kernel)
    assert np.count_nonzero(keep) == 1
    return table[keep][0]


# --- without noise: what the methods themselves do -------------------------------------------------------------------


@pytest.mark.parametrize("center", CENTERS)
def test_same_centre_in_arc_and_kernel_leaves_no_jump(noiseless, center):
    result = row(noiseless, "ip+recalibration", center)
    assert result["n"] == 8
    # the promise is 0.5 km/s with noise
    assert abs(result["jump"]) < 0.3 * KMS
    assert abs(result["bias"]) < 0.3 * KMS
    assert result["scatter"] < 0.3 * KMS


def test_mixed_centres_jump_by_the_distance_that_the_true_profiles_centres_move(
    noiseless, noiseless_visits, observatory
):
    # A scale by centre X has lines at c_X too blue, a kernel zeroed at Y expects them c_Y too blue: the star seems to
    # recede by c_Y - c_X. The profiles are the simulator's own, at the arc's line in the middle of the segment and its
    # two neighbours, which the segment lies between.
    ip = observatory.ip(1, "blue")
    waves = np.array([4250.0, LINE, 4470.0])
    velocity = {}
    for center in CENTERS:
        value = [
            np.mean(ip.profile(time=v.time, fiber=FIBER, wavelength=waves * u.AA).center(center).to_value(u.AA) / waves)
            for v in noiseless_visits
        ]
        after = np.array([v.epoch == "after" for v in noiseless_visits])
        velocity[center] = (np.mean(np.array(value)[after]) - np.mean(np.array(value)[~after])) * SPEED_OF_LIGHT
    expected = np.array([[velocity[kernel] - velocity[scale] for kernel in CENTERS] for scale in CENTERS])
    measured = noiseless.jumps()
    assert np.max(np.abs(expected)) > 4.0
    assert_allclose(measured, expected, atol=0.45)


def test_ip_on_published_wavelengths_mixes_with_the_pipelines_centre(noiseless):
    # the pipeline's centre is Sersic's: the same centre is the recalibrated result, another is the mixed one
    assert_allclose(
        row(noiseless, "ip", "sersic")["mean"].value,
        row(noiseless, "ip+recalibration", "sersic")["mean"].value,
        atol=1e-6,
    )
    k = CENTERS.index("sersic")
    for center in CENTERS:
        assert_allclose(
            row(noiseless, "ip", center)["jump"].value, noiseless.jumps()[k, CENTERS.index(center)], atol=1e-6
        )


def test_gaussian_kernel_jumps_by_itself(noiseless):
    gaussian = row(noiseless, "gaussian")
    assert abs(gaussian["jump"]) > 0.6 * KMS
    assert abs(gaussian["jump"]) > 5 * abs(row(noiseless, "ip+recalibration", "sersic")["jump"])


def test_pipeline_with_another_centre_gives_other_published_wavelengths(star, observatory):
    options = {"n_exposures": 4, "n_nights": 4, "arcs_per_night": 1, "noise": False, "fiber": FIBER}
    visits = simulate_epochs(star, observatory, pipeline_center="centroid", **options)
    result = rv_epochs(visits, star, observatory, window=LINE * u.AA, centers=["centroid", "half"])
    assert abs(row(result, "ip", "centroid")["jump"]) < 0.2 * KMS
    assert abs(row(result, "ip", "half")["jump"]) > 1.5 * KMS
    assert set(result.table["scale_center"]) == {"centroid", "half"}


def test_flexure_between_arc_and_star_stays_in(star, observatory):
    visits = simulate_epochs(
        star, observatory, n_exposures=12, n_nights=4, arcs_per_night=1, noise=False, flexure=8 * KMS, seed=2
    )
    result = rv_epochs(visits, star, observatory, window=LINE * u.AA, centers=["half"])
    assert 4.0 < row(result, "ip+recalibration", "half")["scatter"].value < 14.0


def test_earths_motion_is_taken_out(noiseless_visits, noiseless):
    # were it not, or taken twice, or with the wrong sign, velocities would follow it
    helio = np.array([v.helio_rv for v in noiseless_visits])
    assert np.ptp(helio) > 10
    rv = noiseless.select("ip+recalibration", "half")["rv"].value
    assert np.ptp(rv) < 0.1


def test_kept_lsf_is_the_lsf(observatory):
    lsf = observatory.lsf(spectrograph=1, time=Time("2017-01-10T15:00"), fiber=31, arm="blue").shifted(1.00005)
    kept = KeptLSF.of(lsf, 4200.0, 4500.0)
    w = np.linspace(4205.3, 4495.1, 23)
    assert_allclose(kept.sample(w), lsf.sample(w), atol=1e-6)
    for center in CENTERS:
        assert_allclose(kept.zero_point(w, center), lsf.zero_point(w, center), atol=2e-4)
    beyond = np.array([4190.0, 4300.0])
    assert_allclose(kept.sample(beyond), lsf.sample(beyond), rtol=1e-12)
    joined = observatory.lsf(spectrograph=1, time=Time("2017-01-10T15:00"), fiber=31)
    assert KeptLSF.of(joined, 5700.0, 5900.0) is joined


# --- with noise ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(star, observatory):
    visits = simulate_epochs(star, observatory, n_exposures=64, n_nights=16, arcs_per_night=2, seed=5)
    return rv_epochs(visits, star, observatory, window=LINE * u.AA, centers=["half", "gauss"])


def test_scatter_is_what_photons_allow(noisy):
    for center in ("half", "gauss"):
        result = row(noisy, "ip+recalibration", center)
        # 64 velocities: the rms is known to 9 %
        assert 0.75 < result["ratio"] < 1.2 + 0.18
        assert abs(result["jump"]) < 0.3 * KMS + 3 * result["jump_err"]
        assert abs(result["bias"]) < 0.2 * KMS + 3 * result["bound"] / np.sqrt(64)


def test_reported_errors_are_the_bound(noisy):
    table = noisy.select("ip+recalibration", "half")
    assert_allclose(np.median(table["rv_err"] / table["bound"]), 1.0, atol=0.05)


def test_bound_is_the_scatter_of_a_linear_fit():
    # Monte Carlo of the fit itself: velocity and three coefficients of the continuum by least squares
    rng = np.random.default_rng(1)
    x = np.linspace(-1, 1, 300)
    wavelength = 5000 + 40 * x
    flux = 1 - 0.6 * np.exp(-0.5 * (x / 0.1) ** 2)
    slope = np.gradient(flux, wavelength) * -5000 / SPEED_OF_LIGHT
    sigma = 0.02 + 0.01 * x**2
    bound = velocity_bound(wavelength, flux, slope, 1 / sigma**2, degree=2)
    design = np.column_stack([slope, flux, flux * x, flux * x**2]) / sigma[:, None]
    noise = rng.normal(size=(300, 4000))
    velocity = np.linalg.lstsq(design, noise, rcond=None)[0][0]
    assert_allclose(np.std(velocity), bound, rtol=0.04)
    # a slope that a continuum explains says nothing of the velocity
    assert velocity_bound(wavelength, np.ones(300), 1e-3 * x, 1 / sigma**2, degree=2) > 1e6
    with pytest.raises(ValueError, match="one length"):
        velocity_bound(wavelength, flux[:-1], slope, sigma, degree=2)


def test_failed_visits_are_rows_with_reasons(noiseless_visits, star, observatory):
    class Broken(type(noiseless_visits[0])):
        def published(self):
            raise ValueError("no light")

    first = noiseless_visits[0]
    bad = Broken("bad", first.spectrum, first.arcs, epoch="before")
    with pytest.warns(FitWarning, match="3 of 9 velocities were not measured, gaussian of visit bad .*no light"):
        result = rv_epochs([first, bad, noiseless_visits[-1]], star, observatory, window=LINE * u.AA, centers=["half"])
    failed = result.table[result.table["visit"] == "bad"]
    assert len(failed) == 3
    assert np.all(np.isnan(failed["rv"]))
    assert all("no light" in reason for reason in failed["reason"])
    assert np.all(np.isfinite(result.table["rv"][result.table["visit"] != "bad"]))


def test_wrong_arguments_are_refused(noiseless_visits, star, observatory):
    options = {"window": LINE * u.AA}
    with pytest.raises(ValueError, match="no visits"):
        rv_epochs([], star, observatory, **options)
    with pytest.raises(ValueError, match='"zero" is none'):
        rv_epochs(noiseless_visits, star, observatory, centers=["zero"], **options)
    with pytest.raises(PluginLookupError):
        rv_epochs(noiseless_visits, star, observatory, centers=["middle"], **options)
    with pytest.raises(ValueError, match="at least 4 nights"):
        simulate_epochs(star, n_exposures=4, n_nights=2)
    with pytest.raises(ValueError, match="not on the blue detector"):
        simulate_epochs(star, n_exposures=4, n_nights=4, wavelength=6000 * u.AA)
    with pytest.raises(ValueError, match="snr"):
        simulate_epochs(star, n_exposures=4, n_nights=4, snr=(40, 20))


# --- centres ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profiles():
    return simulate_profiles(SimulatedIP("blue"), 2017, n_exposures=40, fiber=60, seed=3)


def test_maximum_is_the_least_stable_centre_of_measured_profiles(profiles):
    table = center_stability(profiles, SimulatedIP("blue"), wavelength=LINE * u.AA).summary()
    noise = dict(zip(table["center"], table["noise"].value, strict=True))
    assert np.all(table["n"] == 40)
    assert noise["max"] > 2 * max(v for k, v in noise.items() if k != "max")
    # prediction has no noise; where that is large, predicted centres wander less
    assert table["std_predicted"][0] < 0.5 * table["std_observed"][0]
    # extraction and truth agree in the mean
    assert_allclose(table["mean_observed"].value, table["mean_predicted"].value, atol=0.5)


def test_centres_without_a_model_and_wrong_choices(profiles):
    result = center_stability(profiles, wavelength=LINE * u.AA, centers=["half"])
    assert result.predicted == {}
    table = result.summary()
    assert np.isnan(table["noise"][0])
    assert table["std_observed"][0] > 0
    with pytest.raises(ValueError, match="7 lines"):
        center_stability(profiles)
    with pytest.raises(ValueError, match="no line within 5 A"):
        center_stability(profiles, wavelength=4500 * u.AA)
    with pytest.raises(ValueError, match="no good profile of fibre 3"):
        center_stability(profiles, fiber=3, wavelength=LINE * u.AA)


# --- manifests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory, observatory):
    """Two arcs and two exposures of a star, in pixels, as files."""
    folder = tmp_path_factory.mktemp("star")
    ip = observatory.ip(1, "blue")
    template = synthetic_template(6200, wavelength_range=(3600, 6050) * u.AA)
    for i, day in enumerate(("2017-01-10", "2022-01-12")):
        arc = simulate_arc(ip, Time(f"{day}T15:00"), fiber=[FIBER, FIBER + 1], dead_fibers=0, seed=i)
        arc = ArcExposure.from_simulation(arc, instrument="lamost-lrs-blue")
        arc.write(folder / f"arc{i}.fits")
        time = Time(f"{day}T15:20")
        light = simulate_star(
            template, observatory, time=time, fiber=FIBER, arm="blue", velocity=25 * KMS, snr=80,
            wavelength=arc.wavelength[0] * u.AA, seed=i,
        )  # fmt: skip
        flux = np.vstack([light.flux.value, np.ones(light.flux.size)])
        ivar = np.vstack([light.uncertainty.array, np.ones(light.flux.size)])
        ArcExposure.from_arrays(
            flux, ivar, arc.wavelength * u.AA, medium="vacuum", time=time, fiber=[FIBER, FIBER + 1], spectrograph=1,
            arm="blue", lamp="star", instrument="lamost-lrs-blue",
        ).write(folder / f"star{i}.fits")  # fmt: skip
    return folder


def write(folder, text, name="manifest.csv"):
    path = folder / name
    path.write_text(text)
    return path


GOOD = f"""# my star
spectrum, arc, fiber, epoch, name
star0.fits, arc0.fits, {FIBER}, before, first

star1.fits, arc0.fits;arc1.fits, {FIBER}, after, second
"""


def test_manifest_of_pixel_spectra(files, observatory, star):
    visits = read_manifest(write(files, GOOD))
    assert [(v.name, v.epoch) for v in visits] == [("first", "before"), ("second", "after")]
    result = rv_epochs(visits, star, observatory, window=LINE * u.AA, centers=["half"])
    rows = result.select("ip+recalibration", "half")
    assert np.all(np.abs(rows["rv"] - 25 * KMS) < 5 * rows["rv_err"])
    assert np.all(np.isnan(rows["bound"]))
    # of the two arcs of the second line, the nearest in time was taken
    new = visits[1].recalibrated("half")
    assert [arc["time"][:10] for arc in new.meta["recalibration"]["arcs"]] == ["2022-01-12"]


def test_published_spectra_shift_from_the_pipelines_centre(observatory, star, files):
    # a LAMOST-like file without arcs: the profile tells where another centre would have put the wavelengths
    from lamost_lsf.experiments import PublishedVisit

    template = synthetic_template(6200, wavelength_range=(3600, 6050) * u.AA)
    visits = [
        PublishedVisit(
            str(i),
            simulate_star(
                template, observatory, time=Time(day), fiber=FIBER, arm="blue", velocity=-12 * KMS, noise=False,
                center="sersic", helio_rv=20 * KMS,
            ),
        )
        for i, day in enumerate(("2017-01-10T15:00", "2017-01-11T15:00", "2022-01-12T15:00", "2022-01-13T15:00"))
    ]  # fmt: skip
    result = rv_epochs(
        visits, star, observatory, window=LINE * u.AA, centers=["centroid", "sersic"], change=Time("2020-08-31")
    )
    for center in ("centroid", "sersic"):
        rows = result.select("ip+recalibration", center)
        assert_allclose(rows["rv"].value, -12.0, atol=0.05)
    assert abs(row(result, "ip", "centroid")["jump"]) > 3 * KMS
    assert list(result.table["epoch"][[0, -1]]) == ["before", "after"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "no exposure"),
        ("spectrum,fibre\nstar0.fits,3\n", 1, "must name columns of spectrum, arc"),
        ("arc\narc0.fits\n", 1, "must name columns"),
        ("spectrum,arc,fiber\nstar0.fits,arc0.fits,100\nstar1.fits,arc0.fits\n", 3, "2 cells, the header has 3"),
        ("spectrum,arc,fiber\n# c\n\nlost.fits,arc0.fits,100\n", 4, "no such file: .*lost.fits"),
        ("spectrum,arc,fiber\nstar0.fits,arc9.fits,100\n", 2, "no such file: .*arc9.fits"),
        ("spectrum,arc,fiber\nstar0.fits,arc0.fits,\n", 2, "needs its fiber"),
        ("spectrum,arc,fiber\nstar0.fits,arc0.fits,251\n", 2, "fiber must be 1-250"),
        ("spectrum,arc,fiber\nstar0.fits,arc0.fits,7\n", 2, "no fibre 7"),
        ("spectrum,arc,fiber,time\nstar0.fits,arc0.fits,100,noon\n", 2, "time must be"),
        ("spectrum,arc,fiber,helio_rv\nstar0.fits,arc0.fits,100,fast\n", 2, "helio_rv must be a number"),
        ("spectrum,arc,fiber,helio_rv\nstar0.fits,arc0.fits,100,300\n", 2, "helio_rv must be within"),
        ("spectrum,arc,fiber,epoch\nstar0.fits,arc0.fits,100,later\n", 2, "epoch must be before or after"),
        ("spectrum,arc,fiber\nstar0.fits,arc0.fits,100\nstar0.fits,arc0.fits,100\n", 3, "already on line 2"),
        ("spectrum\nmanifest.csv\n", 2, "no spectrum that specutils can read"),
    ],
)
def test_a_wrong_manifest_stops_with_its_line(files, text, line, message):
    path = write(files, text)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_the_last_line_is_checked_before_the_first_file_is_opened(files, monkeypatch):
    path = write(files, GOOD.replace("after", "later"))
    monkeypatch.setattr(ArcExposure, "read", lambda *a, **k: pytest.fail("a file was opened"))
    with pytest.raises(ManifestError, match=":5: epoch"):
        read_manifest(path)


# --- command and figures ---------------------------------------------------------------------------------------------


def command(*argv):
    import argparse

    from lamost_lsf.cli import experiment

    parser = argparse.ArgumentParser()
    experiment.add_parser(parser.add_subparsers(dest="command"))
    return experiment.run(parser.parse_args(["experiment", *map(str, argv)]))


def test_command_prints_json_and_writes_files(tmp_path, capsys):
    out, figure, jumps = (tmp_path / name for name in ("rv.ecsv", "rv.png", "mixing.png"))
    small = ["--exposures", 4, "--nights", 4, "--arcs", 1, "--noiseless", "--centers", "half", "centroid"]
    options = ["--mixing", "-o", out, "--plot", figure, "--plot-mixing", jumps, "--json"]
    assert command("rv-epochs", *small, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["velocity"] == VELOCITY
    assert [r["method"] for r in found["summary"]].count("mixed") == 2
    assert all(path.stat().st_size > 1000 for path in (out, figure, jumps))
    from lamost_lsf.cli._common import CommandError

    with pytest.raises(CommandError, match="exists"):
        command("rv-epochs", *small, "-o", out)


def test_command_for_centres(tmp_path, capsys):
    figure = tmp_path / "centers.png"
    assert command("centers", "--exposures", 6, "--centers", "half", "max", "--plot", figure, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["center"] for r in found["centers"]] == ["half", "max"]
    assert found["fiber"] == 1
    assert abs(found["wavelength"] - LINE) < 0.01
    assert figure.stat().st_size > 1000


def test_command_refuses_before_any_work(tmp_path, files):
    from lamost_lsf.cli._common import CommandError

    for argv, message in (
        (["rv-epochs", "--plot-mixing", tmp_path / "m.png"], "goes with --mixing"),
        (["rv-epochs", "--change", "2020-01-01"], "goes with --manifest"),
        (["rv-epochs", "--manifest", write(files, GOOD)], "needs templates"),
        (["rv-epochs", "--window", 4000, 5000, "--exposures", 4], "within"),
        (["centers", "--centers", "zero"], "no centre of a line"),
    ):
        with pytest.raises(CommandError, match=message):
            command(*argv)


def test_figures_show_what_was_measured(noiseless, profiles):
    figure = plot_rv_epochs(noiseless)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert len(panels) == 6
    for ax, center in zip(panels, CENTERS, strict=True):
        texts = [t.get_text() for t in ax.get_legend().get_texts()]
        jump = row(noiseless, "ip+recalibration", center)["jump"].value
        assert re.search(rf"recalibration: .*jump {jump:+.2f}".replace("+", r"\+"), texts[-1])
    image = plot_jumps(noiseless).images[0].get_array()
    assert_allclose(image, noiseless.jumps())
    figure = plot_centers(center_stability(profiles, SimulatedIP("blue"), wavelength=LINE * u.AA))
    assert figure.axes[0].get_title() == "maximum"


def test_nothing_warns_and_two_wavelengths_make_a_window(noiseless_visits, star, observatory):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = rv_epochs(noiseless_visits[:1], [star], observatory.lsf_for, window=(4300, 4500) * u.AA,
                           centers=["half"])  # fmt: skip
    assert result.window == (4300.0, 4500.0)
    assert np.isnan(result.summary()["jump"][0])
