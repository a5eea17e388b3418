"""Figures of results; nothing here solves, verifies, or opens a window."""
