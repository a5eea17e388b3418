"""Solvers: the loop, its step rules, escape moves, starts and checkpoints."""
