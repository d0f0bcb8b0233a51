"""Marginal likelihood of many wavelengths: from the outputs' scalar products against scikit-learn's own.

One evaluation of value and gradient, 200 stars of 3 labels and 200 or 600 wavelengths. Ends with a non-zero status
where the two disagree, or where the ratio falls below 5.
"""

import sys
import time

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from lamost_lsf.sed.gaussian_process import MarginalLikelihood

LEAST = 5.0


def best(call, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    kernel = ConstantKernel(1.0) * RBF(1.5) + WhiteKernel(0.05)
    status = 0
    for n_wave in (200, 600):
        y = rng.standard_normal((200, n_wave))
        y -= y.mean(axis=0)
        theirs = GaussianProcessRegressor(kernel, optimizer=None).fit(x, y)
        ours = MarginalLikelihood(kernel, x, y)
        value, gradient = theirs.log_marginal_likelihood(kernel.theta, eval_gradient=True)
        mine, slope = ours(kernel.theta)
        agree = np.isclose(-mine, value, rtol=1e-9) and np.allclose(-slope, gradient, rtol=1e-6)
        slow = best(lambda: theirs.log_marginal_likelihood(kernel.theta, eval_gradient=True))  # noqa: B023
        fast = best(lambda: ours(kernel.theta))  # noqa: B023
        print(
            f"{n_wave:4d} wavelengths: {slow / fast:6.1f} x scikit-learn's rate, {'same' if agree else 'OTHER'} result"
        )
        status |= int(not agree or slow / fast < LEAST)
    return status


if __name__ == "__main__":
    sys.exit(main())
