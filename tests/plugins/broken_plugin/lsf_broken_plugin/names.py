"""Names and objects that cannot be registered, beside some that can."""

from lamost_lsf.plugins import hookimpl


def first_sample(x, profile, *, error=None, mask=None):
    """Position of the first sample."""
    return x[0]


def no_keywords(x, profile):
    """Takes neither error nor mask."""
    return x[0]


@hookimpl
def lamost_lsf_centers():
    """Of nine, three are of use."""
    return {
        "first": first_sample,
        "FIRST": first_sample,
        "": first_sample,
        "a:b": first_sample,
        3: first_sample,
        "number": 42,
        "short": no_keywords,
        "Gauss": first_sample,  # a built-in's name
        "bisector": first_sample,  # another distribution's name
    }
