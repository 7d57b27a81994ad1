"""A package of somebody else: a loss, an optimizer, a model and an attributor.

Each is one file, registered by one line of its own. They import public names only.
"""
