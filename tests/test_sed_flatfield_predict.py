"""What `predict` returns is what `StandardStars.from_predictions` takes."""

import astropy.units as u
import numpy as np
import pytest
import sed_stars
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum

torch = pytest.importorskip("torch")

from lamost_lsf import sed  # noqa: E402
from lamost_lsf.errors import FitWarning  # noqa: E402

torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore::lamost_lsf.errors.CoverageWarning")
def test_predictions_become_standard_stars_where_their_light_arrives():
    """At wavelengths moved by the star's velocity, the prediction is that at rest; a failed star costs only itself."""
    architecture = sed.Architecture(
        n_input=len(sed_stars.INPUT), n_output=len(sed_stars.OUTPUT), units=((4, 3, 2), (8, 3, 2)), hidden=(32,),
        noise_width=4, error_width=16,
    )  # fmt: skip
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    domain = sed.Domain.fit(rng.normal(1, 0.1, (10, len(sed_stars.INPUT))), n_components=3)
    model = sed.SEDModel([sed.UaRANet(architecture)], sed_stars.INPUT, sed_stars.OUTPUT, domain, snr_range=(20, 40))
    z = np.array([1e-3, 1e-3, -5e-4])
    wavelength = sed_stars.INPUT.wavelength
    axis = np.arange(0.98 * wavelength[0], 1.02 * wavelength[-1], 1.0)
    flux = rng.normal(1, 0.05, (3, axis.size))
    error = StdDevUncertainty(np.full(axis.size, 0.05))
    spectra = [
        Spectrum(flux=f * u.one, spectral_axis=axis * u.AA, uncertainty=error, meta={"z": v})
        for f, v in zip(flux, z, strict=True)
    ]
    spectra[1].uncertainty = None
    with pytest.warns(FitWarning, match="1 of 3 spectra"):
        result = sed.predict(model, spectra)
    # the relativistic factor of the velocity c z is 1 + z to 1e-6
    arriving = sed_stars.OUTPUT.wavelength[5:-5] * (1 + z[0])
    seen = Spectrum(
        flux=np.ones((3, arriving.size)) * u.ct, spectral_axis=arriving * u.AA,
        uncertainty=StdDevUncertainty(np.full((3, arriving.size), 0.01)),
    )  # fmt: skip
    stars = sed.StandardStars.from_predictions(result, seen, [1, 2, 3], [1, 2, 3])
    scale = np.ptp(result.flux.value[0])
    np.testing.assert_allclose(stars.predicted[0], result.flux.value[0, 5:-5], atol=1e-4 * scale)
    np.testing.assert_allclose(stars.predicted_error[0], result.uncertainty.array[0, 5:-5], rtol=1e-3)
    assert np.isnan(stars.predicted[1]).all()
    assert np.abs(stars.predicted[2] - result.flux.value[2, 5:-5]).max() > 0.05 * np.ptp(result.flux.value[2])
    kept = stars[(result.meta["flags"] & int(sed.SEDFlag.FAILED)) == 0]
    np.testing.assert_array_equal(kept.x, [1, 3])
