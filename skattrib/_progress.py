"""Progress bars, imported when the first is shown: notebooks have one of their own."""

import warnings
from functools import cache


@cache
def _kind():
    # once: whoever changes filters makes warnings that were shown be shown again
    with warnings.catch_warnings():
        # it says that ipywidgets is missing, and takes the text bar
        warnings.filterwarnings("ignore", message=".*IProgress not found")
        from tqdm.auto import tqdm as kind
    return kind


def tqdm(*args, **options):
    """Return a bar of tqdm; the text bar in a notebook without ipywidgets."""
    return _kind()(*args, **options)
