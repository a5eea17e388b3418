"""The optimisation problem: what is minimised, at which level, in which coordinates, on which devices."""
