"""Progress bars, imported when the first is shown: notebooks have one of their own."""

import warnings


def tqdm(*args, **options):
    """Return a bar of tqdm; the text bar in a notebook without ipywidgets."""
    with warnings.catch_warnings():
        # which says that ipywidgets is missing, and takes the text bar
        warnings.filterwarnings("ignore", message=".*IProgress not found")
        from tqdm.auto import tqdm as bar
    return bar(*args, **options)
