"""Parts that several docstrings have in common, written once."""

import re
import textwrap
from collections.abc import Callable, Mapping
from typing import TypeVar

_Documented = TypeVar("_Documented")
# A line of its own.
_PLACE = re.compile(r"^( *)%\((\w+)\)s$", re.MULTILINE)


def fill_in(parts: Mapping[str, str]) -> Callable[[_Documented], _Documented]:
    """Return a decorator that puts parts into the places of a docstring.

    A place is a line ``%(name)s``, and the part is indented as the place is. Other
    percent signs mean nothing.
    """

    def part(place: re.Match[str]) -> str:
        text = textwrap.dedent(parts[place[2]]).strip("\n")
        return textwrap.indent(text, place[1])

    def filled(documented: _Documented) -> _Documented:
        if documented.__doc__ is not None:  # as it is with python -OO
            documented.__doc__ = _PLACE.sub(part, documented.__doc__)
        return documented

    return filled
