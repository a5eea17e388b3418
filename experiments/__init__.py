"""Scripts that reproduce and measure; each is run from the root of the repository, as its docstring says."""
