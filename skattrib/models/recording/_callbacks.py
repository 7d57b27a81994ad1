"""Recorders that are callbacks of a library, which is imported when one is made."""

import functools


@functools.cache
def with_base(cls, base):
    """Return a recorder's class that is one of a library's callbacks, too."""
    if issubclass(cls, base):
        return cls
    names = {"__qualname__": cls.__qualname__, "_is_made": True}
    for name in ("__module__", "__doc__"):
        names[name] = getattr(cls, name)
    return type(cls.__name__, (cls, base), names)


def written_class(recorder):
    """Return the class of a recorder that has a place in a module."""
    kind = type(recorder)
    return kind.__mro__[1] if kind._is_made else kind
