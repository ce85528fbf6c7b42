"""scipy's exact sign-flip test and statsmodels' Holm adjustment.

Makes `values/paired_tests.json`. Differences are of scores, so that equal ones and zeros occur.
"""

from pathlib import Path

import numpy
import scipy
import statsmodels
from layout import layout
from scipy.stats import permutation_test
from statsmodels.stats.multitest import multipletests

numbers = numpy.random.default_rng(3)


def sign_flip(differences):
    """p of `permutation_test` over all ways of changing signs."""
    test = permutation_test(
        (numpy.array(differences),),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        n_resamples=numpy.inf,
        alternative="two-sided",
    )
    return float(test.pvalue)


def differences():
    """Lists of differences: few and many, with ties, zeros and both signs."""
    yield [0.0, 0.0, 0.0]
    yield [0.3, 0.2, 0.1]
    yield [0.3, -0.2, -0.1]
    yield [0.1, 0.1, -0.1, -0.1]
    for n in (2, 3, 4, 5, 6, 8, 10, 12):
        yield (numbers.normal(0.004, 0.01, n)).tolist()
        # Accuracies on 277 rows differ by multiples of 1 / 277.
        yield (numbers.integers(-2, 6, n) / 277).tolist()


def p_values():
    """Lists of p to adjust."""
    yield [0.03]
    yield [0.25, 0.25, 0.25, 0.25]
    yield [0.01, 0.04, 0.03, 0.005]
    yield [1.0, 0.5, 0.001]
    for n in (2, 4, 8, 9):
        yield (2 / 2 ** numbers.integers(1, 10, n)).tolist()
        yield numbers.uniform(0, 0.1, n).tolist()


value = {
    "made_with": {
        "script": "paired_tests.py",
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "statsmodels": statsmodels.__version__,
    },
    "sign_flip": [{"differences": own, "p": sign_flip(own)} for own in differences()],
    "holm": [{"p": p, "adjusted": multipletests(p, method="holm")[1].tolist()} for p in p_values()],
}
path = Path(__file__).parent / "values/paired_tests.json"
path.write_text(layout(value) + "\n", encoding="utf-8")
