"""GELU onto a grid of 8 bits, where a quantized layer follows: x Phi(x) (Hendrycks and Gimpel 2016), then
round(y / step) + zero, ties to even, within 0 to 255.

Behind a quantized layer too it is one of 256 values for each of 256 (csrc/gelu.h): two bytes read and written per
element, and no arithmetic. Behind a float one it is computed and rounded while in registers: five bytes and some 25
operations, where three passes move 21.
"""

import ctypes
from dataclasses import dataclass
from math import erf

import numpy as np
from jaxtyping import Float, Float32, UInt8

from sam_edge.kernels.library import loaded


@dataclass(frozen=True)
class Grid:
    """A grid of 8 bits: the integer i stands for (i - zero) step."""

    step: float
    zero: int

    def rounded(self, x: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n"]:
        """The nearest integers."""
        return np.clip(np.rint(x / self.step) + self.zero, 0, 255).astype(np.uint8)

    def values(self, x: UInt8[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """What integers stand for."""
        return (x.astype(np.float64) - self.zero) * self.step


def reference(x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """GELU in NumPy, in the precision of what is given."""
    return x * 0.5 * (1 + np.vectorize(erf, otypes=[x.dtype])(x * 0.5**0.5))


def gelu_of_integers(x: UInt8[np.ndarray, "*n"], grid: Grid, to: Grid) -> UInt8[np.ndarray, "*n"]:
    """The kernel from grid to grid: `to.rounded(reference(grid.values(x)))`, computed in float32.

    Raises:
        BackendUnavailableError: no kernels here.
    """
    kernels, _ = loaded(None)
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    grids = (ctypes.byref(_Grid(one.step, one.zero)) for one in (grid, to))
    kernels.sam_edge_gelu_of_integers(*grids, _pointer(x), _pointer(y), ctypes.c_int64(x.size))
    return y


def gelu_to_integers(
    x: Float32[np.ndarray, "*rows c"], bias: Float32[np.ndarray, "c"], to: Grid, *, level: str | None = None
) -> UInt8[np.ndarray, "*rows c"]:
    """The kernel behind a float layer and its bias: `to.rounded(reference(x + bias))`, to 1e-6 before it is rounded.

    Raises:
        BackendUnavailableError: no kernels here, or not this level. ValueError: a bias of other channels.
    """
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"the bias must have as many channels as x, got {bias.shape} and {x.shape}")
    kernels, number = loaded(level)
    x, bias = np.ascontiguousarray(x), np.ascontiguousarray(bias)
    y = np.empty(x.shape, np.uint8)
    rows = x.size // max(len(bias), 1)
    kernels.sam_edge_gelu_to_integers(
        *(_pointer(x), _pointer(bias), ctypes.byref(_Grid(to.step, to.zero)), _pointer(y)),
        *(ctypes.c_int64(rows), ctypes.c_int64(len(bias)), number),
    )
    return y


def _pointer(x: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.ctypes.data)


class _Grid(ctypes.Structure):
    """csrc/gelu.h's."""

    _fields_ = (("step", ctypes.c_float), ("zero", ctypes.c_uint8))
