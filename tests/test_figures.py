"""Figures show what is true: the right numbers at the right places, not mirrored, not shuffled."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from astropy.time import Time
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from lamost_lsf import GaussianIP, figures
from lamost_lsf.arcs import ArcExposure, extract_profiles
from lamost_lsf.lines import LineList
from lamost_lsf.simulation import SimulatedIP, simulate_arc, simulate_sky
from lamost_lsf.units import vacuum_to_air

TIME = Time("2017-01-10T15:00")
FIBERS = list(range(146, 166))


@pytest.fixture(scope="module")
def truth():
    return SimulatedIP("blue")


@pytest.fixture(scope="module")
def arc(truth):
    seen = simulate_arc(truth, TIME, fiber=FIBERS, dead_fibers=[150], seed=3)
    return ArcExposure.from_simulation(seen, instrument="lamost-lrs-blue")


@pytest.fixture(scope="module")
def profiles(arc):
    return extract_profiles(arc)


@pytest.fixture(scope="module")
def evaluation(truth, profiles):
    """Residuals of the true profile: noise and nothing else."""
    pytest.importorskip("torch", reason="lamost_lsf.training needs torch")
    from lamost_lsf.training import evaluate

    return evaluate(truth, profiles)


def drawn(figure):
    """Whatever is wrong with text or layout shows when it is drawn."""
    figure.canvas.draw()
    return figure


# -- maps -----------------------------------------------------------------------------------------------------


def test_maps_have_each_fibre_and_wavelength_in_its_place(truth):
    fibers, wavelength = np.arange(150, 161), np.array([4100.0, 4700.0, 5000.0, 5700.0])
    figure = drawn(figures.plot_maps(truth, TIME, fiber=fibers, wavelength=wavelength * u.AA))
    skewness = figure.axes[1]
    mesh = skewness.collections[0]
    corners = mesh.get_coordinates()
    for i, j in ((5, 0), (0, 3), (10, 2)):
        x, y = corners[i : i + 2, j : j + 2].reshape(-1, 2).mean(axis=0)
        assert y == fibers[i]
        assert corners[i, j, 0] < wavelength[j] < corners[i, j + 1, 0]
        assert abs(x - wavelength[j]) <= 100
        own = truth.profile(time=TIME, fiber=int(fibers[i]), wavelength=wavelength[j] * u.AA)
        for ax, value in zip(figure.axes[:3], (own.fwhm.to_value(u.AA), own.skewness, own.kurtosis), strict=True):
            assert ax.collections[0].get_array().reshape(11, 4)[i, j] == pytest.approx(value, rel=1e-9)
    # the colour of skewness tells the sign
    assert mesh.norm.vmin == -mesh.norm.vmax


def test_maps_in_air_are_shifted_by_the_index_of_air(truth):
    ends = {}
    for medium in ("vacuum", "air"):
        figure = figures.plot_maps(truth, TIME, fiber=[1, 2], wavelength=[5000, 5010] * u.AA, medium=medium)
        assert medium in figure.axes[0].get_xlabel()
        coordinates = figure.axes[0].collections[0].get_coordinates()
        ends[medium] = coordinates[0, :, 0]
        values = figure.axes[0].collections[0].get_array().reshape(2, 2)
        # 5000 A means 5000 A of that medium
        own = truth.profile(time=TIME, fiber=1, wavelength=5000 * u.AA, medium=medium)
        assert values[0, 0] == pytest.approx(own.fwhm.to_value(u.AA))
    assert_allclose(ends["vacuum"], ends["air"], atol=0.01)


def test_a_model_without_labels_makes_a_map_too():
    figure = drawn(figures.plot_maps(GaussianIP(1800), fiber=[1, 2], wavelength=[4000, 5000, 6000] * u.AA))
    values = figure.axes[0].collections[0].get_array().reshape(2, 3)
    assert_allclose(values, np.array([4000, 5000, 6000]) / 1800 * np.ones((2, 1)), rtol=2e-3)
    everywhere = GaussianIP(1800)
    everywhere.wavelength_range = (0.0, np.inf)
    with pytest.raises(ValueError, match="wavelength="):
        figures.plot_maps(everywhere, fiber=[1, 2])


def test_maps_need_two_of_each(truth):
    with pytest.raises(ValueError, match="two fibres"):
        figures.plot_maps(truth, TIME, fiber=[3], wavelength=[4000, 5000] * u.AA)
    with pytest.raises(ValueError, match="medium"):
        figures.plot_maps(truth, TIME, medium="water")


# -- the arc --------------------------------------------------------------------------------------------------


def test_marks_of_the_lamp_stand_on_the_lines_peaks(arc):
    ax = figures.plot_lamp(arc, fiber=160)
    drawn(ax.figure)
    spectrum, *marks = ax.lines
    x, y = spectrum.get_data()
    row = FIBERS.index(160)
    assert_array_equal(x, arc.wavelength[row])
    assert len(marks) == 7
    for mark in marks:
        position = mark.get_xdata()[0]
        near = np.abs(x - position) < 6
        # air and vacuum differ by 1.1 to 1.6 A: the peak is within a pixel of the vacuum wavelength
        assert abs(x[near][np.argmax(y[near])] - position) < 0.6
        assert mark.get_ydata()[0] > y[near].max()
    assert ax.texts[0].get_text().strip() == "Hg I 4046.57"
    assert "fibre 160" in ax.get_title()


def test_the_lamp_of_a_fibre_that_is_not_there_is_refused(arc):
    with pytest.raises(ValueError, match="no fibre 7"):
        figures.plot_lamp(arc, fiber=7)
    with pytest.raises(ValueError, match="instrument="):
        figures.plot_lamp(ArcExposure.from_simulation(simulate_arc(SimulatedIP("blue"), TIME, fiber=[1])))


def test_the_fibre_drawn_by_default_is_neither_dead_nor_masked(arc):
    assert "fibre 150" not in figures.plot_lamp(arc).get_title()


def test_the_slit_shows_the_dead_fibre_and_the_marked_one(arc):
    figure = drawn(figures.plot_slit(arc, defective=[155]))
    picture, graph = figure.axes
    lines = {line.get_label(): line for line in graph.lines}
    assert_array_equal(lines["low"].get_xdata(), [150])
    assert_array_equal(lines["stands out"].get_xdata(), [155])
    # flux follows the throughput that the simulator gave the fibres
    truth = simulate_arc(SimulatedIP("blue"), TIME, fiber=FIBERS, dead_fibers=[150], seed=3).meta["truth"]
    points = next(line for line in graph.lines if len(line.get_xdata()) == len(FIBERS))
    assert_array_equal(points.get_xdata(), FIBERS)
    relative = truth["throughput"] / np.median(truth["throughput"])
    assert_allclose(points.get_ydata(), relative, atol=0.03)
    # the image is fibre by fibre along x; the dead one is dark, 150 being the fifth
    image = picture.collections[0].get_array().reshape(81, len(FIBERS))
    assert np.argmin(image.max(axis=0)) == FIBERS.index(150)
    # offsets increase upwards, and light is in the middle
    assert abs(np.argmax(image.mean(axis=1)) - 40) <= 4


def test_a_gap_between_fibres_stays_a_gap(truth):
    seen = simulate_arc(truth, TIME, fiber=[10, 11, 14, 13], dead_fibers=[], seed=3)
    figure = drawn(figures.plot_slit(ArcExposure.from_simulation(seen), line=1, instrument="lamost-lrs-blue"))
    image = np.ma.filled(figure.axes[0].collections[0].get_array().reshape(81, 5), np.nan)
    assert_array_equal(np.isfinite(image).all(axis=0), [True, True, False, True, True])
    assert "4359.56" in figure.axes[0].get_title()


def test_slit_lines_can_be_wavelengths_and_must_be_there(arc):
    assert "5462.27" in figures.plot_slit(arc, line=5462.268 * u.AA).axes[0].get_title()
    with pytest.raises(ValueError, match="0 to 6"):
        figures.plot_slit(arc, line=7)
    with pytest.raises(ValueError, match="not wholly on the detector"):
        figures.plot_slit(arc, line=3500 * u.AA)


# -- training and residuals -----------------------------------------------------------------------------------


def history():
    phases = ["network"] * 4 + ["refine-1"] * 3
    validation = [5.0, 3.0, 2.0, 2.5, 1.4, 1.1, 1.2]
    return Table(
        {
            "phase": phases,
            "step": [100, 200, 300, 400, 50, 100, 150],
            "train_loss": [6.0, 3.1, 2.1, 1.9, 1.3, 1.0, 0.9],
            "validation_loss": validation,
        }
    )


def test_losses_follow_one_another_and_the_kept_weights_are_marked():
    ax = figures.plot_losses(history())
    drawn(ax.figure)
    kept = next(line for line in ax.lines if str(line.get_label()).startswith("kept"))
    assert (kept.get_xdata()[0], kept.get_ydata()[0]) == (500, 1.1)
    curve = next(line for line in ax.lines if line.get_label() == "validation")
    assert_array_equal(curve.get_xdata(), [100, 200, 300, 400])
    assert [t.get_text().strip() for t in ax.texts] == ["network", "refine-1"]
    with pytest.raises(ValueError, match="empty"):
        figures.plot_losses(history()[:0])


def test_an_ax_that_is_given_is_drawn_on():
    ax = Figure().subplots()
    assert figures.plot_losses(history(), ax) is ax


def test_residuals_are_counted_as_numpy_counts_them(evaluation):
    figure = drawn(figures.plot_residual_distributions(evaluation, bins=20))
    dispersion = figure.axes[1]
    seen, noise = (patch.get_data() for patch in dispersion.patches)
    for data, column in ((seen, "dispersion"), (noise, "noise")):
        counts, _ = np.histogram(evaluation.table[column], data.edges)
        assert_allclose(data.values, counts / counts.max())
        assert counts.sum() > 0.98 * np.count_nonzero(np.isfinite(evaluation.table[column]))
    median = np.nanmedian(evaluation.table["dispersion"])
    assert f"{median:.2g}" in dispersion.get_legend().get_texts()[0].get_text()
    assert "construction" in figure.axes[0].texts[0].get_text()


def test_two_arms_share_the_bins(evaluation):
    figure = drawn(figures.plot_residual_distributions({"blue": evaluation, "red": evaluation}))
    edges = [patch.get_data().edges for patch in figure.axes[0].patches]
    assert_array_equal(*edges)
    assert figure.axes[0].get_legend().get_texts()[1].get_text().startswith("red")
    with pytest.raises(ValueError, match="no evaluation"):
        figures.plot_residual_distributions({})


def test_an_evaluation_without_residuals_is_refused(evaluation):
    from lamost_lsf.training import Evaluation

    table = evaluation.table.copy()
    for name in ("mean", "dispersion", "noise"):
        table[name] = np.nan
    with pytest.raises(ValueError, match="finite"):
        figures.plot_residual_distributions(Evaluation(table, "resampled", "x"))


# -- profiles -------------------------------------------------------------------------------------------------


def residuals(ax):
    """Offsets, residuals and errors drawn on an axis."""
    container = ax.containers[0]
    x, y = container.lines[0].get_data()
    segments = np.array(container.lines[2][0].get_segments())
    return x, y, 0.5 * (segments[:, 1, 1] - segments[:, 0, 1])


def test_residuals_of_the_true_profile_are_noise_of_the_size_drawn(truth, profiles):
    figure = drawn(figures.plot_fibers(truth, profiles, (154, 155, 156), line=4))
    assert [ax.get_title() for ax in figure.axes[:3]] == ["fibre 154", "fibre 155", "fibre 156"]
    chi2, pixels = 0.0, 0
    for ax in figure.axes[3:]:
        _, y, error = residuals(ax)
        chi2, pixels = chi2 + np.sum((y / error) ** 2), pixels + y.size - 3
    assert 0.6 < chi2 / pixels < 1.5
    # what is drawn of a fibre is that fibre: 155 is by far the widest
    widths = []
    for ax in figure.axes[:3]:
        x, y, _ = residuals(ax)
        widths.append(np.sum(y * x**2) / np.sum(y) - (np.sum(y * x) / np.sum(y)) ** 2)
    assert widths[1] > 1.2 * max(widths[0], widths[2])
    assert "5085.822" in figure.get_suptitle()


def test_residuals_are_observed_minus_predicted(profiles):
    # a narrow model leaves light beside the peak: positive residuals in the wings
    figure = figures.plot_fibers(GaussianIP(2600), profiles, (160,), line=4)
    x, y, _ = residuals(figure.axes[1])
    assert np.mean(y[(np.abs(x) > 1.5) & (np.abs(x) < 2.5)]) > 0.02


def test_fibres_without_a_common_good_line_are_refused(truth, profiles):
    with pytest.raises(ValueError, match="fibres 150, 151"):
        figures.plot_fibers(truth, profiles, (150, 151))
    with pytest.raises(ValueError, match="no fibre"):
        figures.plot_fibers(truth, profiles, ())
    with pytest.raises(ValueError, match="all have"):
        figures.plot_fibers(truth, profiles, (154,), exposure=3)


def test_a_line_that_was_held_out(truth):
    pytest.importorskip("torch", reason="lamost_lsf.training needs torch")
    from lamost_lsf.training import evaluate

    sky = ArcExposure.from_simulation(simulate_sky(truth, TIME, fiber=FIBERS, seed=2), instrument="lamost-lrs-blue")
    line = LineList.from_wavelengths([5577.338] * u.AA, medium="air", species="[O I]")
    profiles = extract_profiles(sky, lines=line)
    seen = evaluate(truth, profiles)
    figure = drawn(figures.plot_held_out_line(truth, profiles, seen))
    fiber = int(figure.axes[0].get_title().rsplit(" ", 1)[1])
    # the fibre drawn is a typical one
    dispersion = np.asarray(seen.table["dispersion"])
    own = float(dispersion[np.asarray(seen.table["fiber"]) == fiber][0])
    assert np.mean(dispersion < own) == pytest.approx(0.5, abs=0.1)
    _, y, error = residuals(figure.axes[1])
    assert np.std(y, ddof=1) == pytest.approx(own, rel=0.02)
    assert np.sum((y / error) ** 2) / (y.size - 3) < 3
    assert "5577.338" in figure.axes[0].get_title()
    with pytest.raises(ValueError, match="fibre 9"):
        figures.plot_held_out_line(truth, profiles, seen, fiber=9)


# -- epochs ---------------------------------------------------------------------------------------------------


def test_later_minus_earlier_whatever_the_order(truth):
    times = Time(["2020-01-10T15:00", "2021-01-10T15:00"])
    labels = {"fiber": [20, 120], "wavelength": [4360, 5700] * u.AA}
    grey = {}
    for name, models, when in (
        ("in order", truth, times),
        ("turned", truth, times[::-1]),
        ("two models", [truth, SimulatedIP("blue")], times),
    ):
        figure = drawn(figures.plot_epochs(models, when, **labels))
        assert len(figure.axes) == 4
        ax = figure.axes[2]  # second fibre, first wavelength
        assert ax.get_ylabel().startswith("fibre 120")
        earlier, later, difference = (line.get_ydata() for line in ax.lines[:3])
        assert ax.lines[0].get_label().startswith("2020-01-10")
        own = truth.profile(time=times[1], fiber=120, wavelength=4360 * u.AA).normalized("peak").flux
        assert_allclose(later, own, atol=1e-12)
        assert_allclose(difference / np.max(np.abs(difference)), (later - earlier) / np.max(np.abs(later - earlier)))
        grey[name] = difference
    assert_array_equal(grey["in order"], grey["turned"])
    assert_array_equal(grey["in order"], grey["two models"])


def test_wavelengths_of_epochs_are_in_their_medium(truth):
    times = Time(["2020-01-10T15:00", "2021-01-10T15:00"])
    figure = figures.plot_epochs(truth, times, fiber=[3], wavelength=[5000] * u.AA, medium="air")
    assert figure.axes[0].get_title().startswith("5000.0")
    assert "air" in figure.axes[0].get_title()
    vacuum = figures.plot_epochs(truth, times, fiber=[3], wavelength=[5001.394] * u.AA)
    assert vacuum_to_air(5001.394) == pytest.approx(5000, abs=0.01)
    first, second = (f.axes[0].lines[0].get_ydata() for f in (figure, vacuum))
    assert_allclose(first, second, atol=1e-5)


def test_epochs_of_gaussians_have_no_difference():
    times = Time(["2020-01-10T15:00", "2021-01-10T15:00"])
    figure = drawn(figures.plot_epochs(GaussianIP(1800), times, fiber=[1, 2], wavelength=[5000] * u.AA))
    assert np.all(figure.axes[1].lines[2].get_ydata() == 0)


def test_epochs_are_two(truth):
    labels = {"fiber": [20], "wavelength": 4360 * u.AA}
    with pytest.raises(ValueError, match="two"):
        figures.plot_epochs(truth, Time(["2020-01-10T15:00"]), **labels)
    with pytest.raises(ValueError, match="one model or two"):
        figures.plot_epochs([truth] * 3, Time(["2020-01-10T15:00", "2021-01-10T15:00"]), **labels)
    with pytest.raises(TypeError, match="Time"):
        figures.plot_epochs(truth, ["2020-01-10", "2021-01-10"], **labels)
    with pytest.raises(ValueError, match="no profile"):
        figures.plot_epochs(truth, Time(["2020-01-10", "2021-01-10"]), fiber=[], wavelength=4360 * u.AA)
