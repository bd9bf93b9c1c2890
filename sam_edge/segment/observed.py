"""A runtime that keeps account of what it was asked and how long that took."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Embeddings, Prediction, Runtime, State
from sam_edge.segment.scaling import Scaling
from sam_edge.segment.upscaled import Acceleration, Upscaled, acceleration_of


class ObservedRuntime:
    """Another runtime, with the same answers.

    `synchronise` waits for work on a device, so that each call's seconds are its own.
    """

    def __init__(self, runtime: Runtime, synchronise: Callable[[], None] | None = None) -> None:
        self.name, self.config = runtime.name, runtime.config
        self._runtime, self._synchronise = runtime, synchronise or (lambda: None)
        self.reset()

    def reset(self) -> None:
        """Start the account anew."""
        self.encode_seconds = self.decode_seconds = 0.0
        self.decoder_calls = 0
        """Calls of `predict` and `decode`."""
        self.points = 0
        """Prompt sets in them."""
        self.upscaled = 0
        """Masks brought to low-resolution logits one by one."""

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> Embeddings:
        """The runtime's own."""
        embeddings, seconds = self._timed(self._runtime.encode, pixels)
        self.encode_seconds += seconds
        return embeddings

    def host(self, embeddings: Embeddings) -> Float32[np.ndarray, "b c g g"]:
        """The runtime's own."""
        return self._runtime.host(embeddings)

    def decode(
        self, embeddings: Embeddings, prompts: Prompts
    ) -> tuple[Float32[np.ndarray, "b n 4 h w"], Float32[np.ndarray, "b n 4"]]:
        """The runtime's own."""
        return self._decoded(prompts, self._runtime.decode, embeddings, prompts)

    def prepare(self, embeddings: Embeddings) -> State:
        """The runtime's own."""
        return self._decoded(None, self._runtime.prepare, embeddings)

    def predict(self, state: State, prompts: Prompts) -> Prediction:
        """The runtime's own."""
        return self._decoded(prompts, self._runtime.predict, state, prompts)

    def upscale(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"]
    ) -> Float32[np.ndarray, "k h w"]:
        """The runtime's own."""
        self.upscaled += len(sets)
        return self._decoded(None, self._runtime.upscale, prediction, sets, masks)

    @property
    def acceleration(self) -> Acceleration | None:
        """The runtime's own, what it does with masks on this account, too."""
        own = acceleration_of(self._runtime)
        return None if own is None else _ObservedAcceleration(own, self)

    def _decoded(self, prompts: Prompts | None, call: Callable[..., Any], *args: Any) -> Any:
        if prompts is not None:
            self.decoder_calls += 1
            self.points += prompts.labels.shape[1]
        answer, seconds = self._timed(call, *args)
        self.decode_seconds += seconds
        return answer

    def _timed(self, call: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        self._synchronise()
        start = perf_counter()
        answer = call(*args)
        self._synchronise()
        return answer, perf_counter() - start


class _ObservedAcceleration:
    """An acceleration whose up-scaling is counted where a runtime's is."""

    def __init__(self, own: Acceleration, account: ObservedRuntime) -> None:
        self._own, self._account = own, account
        self.pixels, self.stored_bytes, self.suppress = own.pixels, own.stored_bytes, own.suppress

    def upscaled(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"], scaling: Scaling
    ) -> Upscaled:
        """The acceleration's own."""
        self._account.upscaled += len(sets)
        return self._account._decoded(None, self._own.upscaled, prediction, sets, masks, scaling)
