"""Settings of an index: parameters of RISEValuator, checked together."""

from numbers import Integral, Real

_CHANNELS, _FACTORS = ("rh", "gh", "h"), ("r", "g", "h")
#: Settings published by the authors of the method.
PRESETS = {
    "paper": {
        "n_components": {"r": 128, "g": 64, "h": 128},
        "sketch": "factor",
        "channels": ("rh", "gh"),
        "channel_weights": {"rh": 1.0, "gh": 0.3},
        "top_k": 256,
        "temperature": 0.1,
        "normalize": "token",
    }
}
_SETTINGS = (
    "n_components",
    "sketch",
    "channels",
    "top_k",
    "temperature",
    "normalize",
    "n_sketches",
)


def resolve(valuator):
    """Return the settings of a valuator, and channel weights; a preset comes first.

    Raises
    ------
    ValueError
        If they do not fit together.
    """
    settings = {name: getattr(valuator, name) for name in _SETTINGS}
    weights = valuator.channel_weights
    if valuator.preset is not None:
        preset = dict(PRESETS[valuator.preset])
        weights = preset.pop("channel_weights")
        settings.update(preset)

    if isinstance(settings["channels"], str):
        raise ValueError(
            f"channels={settings['channels']!r} must be a tuple: one channel is "
            f"({settings['channels']!r},)."
        )

    settings["channels"] = channels = tuple(settings["channels"])
    # plain numbers: an index on disk keeps them as JSON
    for name, kind in [("top_k", int), ("n_sketches", int), ("temperature", float)]:
        settings[name] = None if settings[name] is None else kind(settings[name])
    if settings["normalize"] != "token":
        settings["normalize"] = bool(settings["normalize"])
    unknown = [c for c in channels if c not in _CHANNELS]

    if unknown or not channels or len(set(channels)) < len(channels):
        raise ValueError(
            f"channels={channels!r} must be one or more of {_CHANNELS}, each once."
        )

    settings["n_components"] = _checked_sizes(
        settings["n_components"], settings["sketch"]
    )
    return settings, _checked_weights(weights, channels)


def _checked_weights(weights, channels):
    weights = dict.fromkeys(channels, 1.0) if weights is None else dict(weights)
    if set(weights) != set(channels) or not all(
        isinstance(w, Real) and w > 0 for w in weights.values()
    ):
        raise ValueError(
            f"channel_weights={weights!r} must have a number above 0 for each of the "
            f"channels {channels}, and no other keys."
        )
    return weights


def _checked_sizes(sizes, sketch):
    if sketch != "factor":
        if not isinstance(sizes, Integral):
            raise ValueError(
                f"n_components={sizes!r} must be a whole number with "
                f"sketch={sketch!r}; a dict of factor widths is for sketch='factor'."
            )
        return int(sizes)
    if isinstance(sizes, Integral):
        side = max(1, round(sizes**0.5))
        return dict.fromkeys(_FACTORS, side)

    if set(sizes) != set(_FACTORS) or not all(
        isinstance(s, Integral) and s > 0 for s in sizes.values()
    ):
        raise ValueError(
            f"n_components={dict(sizes)!r} must have a whole number above 0 for each "
            f"of {_FACTORS}."
        )
    return {name: int(sizes[name]) for name in _FACTORS}
