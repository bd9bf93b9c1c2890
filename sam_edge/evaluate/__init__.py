"""Accuracy on labelled pictures."""

from sam_edge.verbs import make_callable

make_callable(__name__)
