"""The error tree: everything sam-edge raises on purpose, each a single line that names the remedy.

The command line prints a `SamEdgeError` as one line and exits with 1; anything else is a bug.
"""


class SamEdgeError(Exception):
    """Base of every error that a user can cause and mend."""


class DataError(SamEdgeError):
    """An image or annotation that is missing, empty, broken or of an unknown kind."""


class ModelError(SamEdgeError):
    """An unknown model name, or a configuration that describes no buildable model."""


class CheckpointError(SamEdgeError):
    """A checkpoint that is missing, unreadable, of the wrong layout, or unsafe to load."""


class PromptError(SamEdgeError):
    """A point, box or mask prompt of the wrong shape, or outside the image."""


class EverythingError(SamEdgeError):
    """An everything-mode setting that cannot work, or a model that is not calibrated for it."""


class TrainingError(SamEdgeError):
    """A training or distillation setting that cannot work, or a run that diverged."""


class CompressionError(SamEdgeError):
    """A pruning request that the model cannot satisfy."""


class QuantizationError(SamEdgeError):
    """A bit width, metric or layer that cannot be quantized."""


class ExportError(SamEdgeError):
    """A graph that could not be written, built, or that disagrees with torch."""


class BackendUnavailableError(SamEdgeError):
    """An optional runtime or device that is not there; the message says how to get it."""


class RecipeError(SamEdgeError):
    """A recipe with unknown or contradictory entries."""


class BenchError(SamEdgeError):
    """A measurement asked for with impossible settings, or a measured command that failed."""
