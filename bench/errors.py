"""The error of measurements that cannot be made."""

from sam_edge.errors import SamEdgeError


class BenchError(SamEdgeError):
    """A measurement asked for with impossible settings, or a measured command that failed."""
