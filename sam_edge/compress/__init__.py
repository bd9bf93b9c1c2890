"""Pruning through dependency groups, and distillation."""

from sam_edge.verbs import make_callable

make_callable(__name__)
