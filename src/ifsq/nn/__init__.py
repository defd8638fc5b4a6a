"""Layers with two or more users: attention, MLPs, position tables, and the eval-mode guard. Imports torch only."""
