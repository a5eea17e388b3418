"""Figures of the field and of this package, one script each, beside the pictures that they draw."""
