"""Attributions, their sizes and intervals from models that were really retrained."""
