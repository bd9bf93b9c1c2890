"""The one training loop: optimizer, schedule, gradient averaging, bf16, EMA, progress, checkpoint, exact resume.

A method supplies `loss(batch, step)`; batches must be a function of the step (see `training.stream`), so the state
of a run is the weights, the optimizer, the EMA and the step: killed and started again, it goes on as if nothing
had happened, bit for bit on a CPU.
"""

import ctypes
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sam_edge.errors import TrainingError
from sam_edge.files import atomic_file
from sam_edge.models.checkpoint import read_tensors, save_tensors
from sam_edge.training.processes import agreed, average_gradients, mean_of_all, rank, share

Loss = Callable[[Any, int], tuple[Tensor, dict[str, Tensor]]]
Validate = Callable[[nn.Module], float | dict[str, float]]
"""Score of a model, higher is better; alone, or as `score` among others that are only reported.

Every process calls it; the score of process 0 counts.
"""

MUON_SMALLEST = 16
"""Shortest side of a matrix that Muon orthogonalises; what is narrower (tokens, heads of one output) is AdamW's."""


PATIENCE = 4
"""Validations in a row without a new best score after which `plateau` halves the learning rate (SlimSAM, sec. 4.1)."""


@dataclass(frozen=True)
class LoopOptions:
    """One run of the loop."""

    steps: int
    """Optimizer steps."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw", "muon"] = "adamw"
    """`adam` as in the papers, `adamw`, or `muon` (Jordan et al. 2024) for matrices with `adamw` for all else."""
    rates: tuple[tuple[str, float], ...] = ()
    """Patterns of parameter names and the factor of the learning rate there; of several that match, the last."""
    weight_decay: float = 0.0
    """Weight decay of matrices and kernels, decoupled but under `adam`; vectors are never decayed."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """Course of the learning rate after warm-up; `plateau` halves it when validation stops improving."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    accumulate: int = 1
    """Batches per optimizer step."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    ema_decay: float = 0.0
    """Decay of the weights' moving average, which is what the run returns; 0 keeps the last weights."""
    bf16: bool = False
    """Autocast to bfloat16."""
    checkpoint_seconds: float = 120.0
    """Time between saved states."""
    validate_every: int = 0
    """Steps between validations; the best weights are then kept. 0 validates never."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise TrainingError(f"a run needs steps >= 1 and accumulate >= 1, got {self.steps} and {self.accumulate}.")
        if not self.learning_rate > 0:
            raise TrainingError(f"learning_rate must be positive, got {self.learning_rate}.")
        if not all(0 < factor < math.inf for _, factor in self.rates):
            raise TrainingError(f"a factor of the learning rate must be positive, got {dict(self.rates)}.")
        if not 0 <= self.ema_decay < 1:
            raise TrainingError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")
        if min(self.weight_decay, self.warmup_steps, self.clip_norm, self.validate_every) < 0:
            raise TrainingError("weight_decay, warmup_steps, clip_norm and validate_every cannot be negative.")


@dataclass
class Progress:
    """How far a run has come; saved with the weights."""

    step: int = 0
    seconds: float = 0.0
    """Time spent in steps, over all resumes."""
    data_wait_seconds: float = 0.0
    """Part of it spent waiting for batches."""
    best_score: float | None = None
    stale: int = 0
    """Validations since the best score, or since the last halving under `plateau`."""
    halvings: int = 0
    """Times that `plateau` has halved the learning rate."""
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Callable[[int, int], Iterable[Any]],
    options: LoopOptions,
    *,
    state_file: Path | None = None,
    identity: str = "",
    validate: Validate | None = None,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> Progress:
    """Train `model` in place and leave in it the EMA, or the best validated weights, or the last ones.

    Under `torchrun`, every process starts from the weights of process 0, which alone saves, and ends with the same.

    Args:
        batches: `batches(first, last)` iterates over the batches first..last-1, `accumulate` of them per step.
        state_file: where the run's state is saved and resumed from.
        identity: what the run is (settings, data); a state file of another identity is refused.
        validate: see `Validate`.

    Raises:
        TrainingError: the loss is not finite, or the state file belongs to another run.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise TrainingError("nothing to train: every parameter is frozen.")
    optimizers = _optimizers(trained, options)
    best: dict[str, Tensor] = {}
    statistics = dict(model.named_buffers())
    # running statistics belong to the weights they were taken under: both are averaged, or BatchNorm sees neither's
    averaged: dict[str, Tensor] = {**trained, **{n: b for n, b in statistics.items() if b.is_floating_point()}}
    average = {name: value.detach().clone() for name, value in averaged.items()} if options.ema_decay else {}
    progress = Progress()
    share(model)
    settings = {name: value for name, value in asdict(options).items() if name != "checkpoint_seconds"}
    identity = f"{identity} {json.dumps(settings, sort_keys=True)}"
    if state_file is not None and state_file.exists():
        progress = _restore(state_file, identity, trained, statistics, optimizers, average, best)
    if progress.step != agreed(progress.step):
        raise TrainingError(f"{state_file} is not the same for all processes: --out must be a folder that all see.")
    if next(iter(trained.values())).device.type == "cpu":
        _keep_memory()
    saved_at = perf_counter()
    first, last = progress.step * options.accumulate, options.steps * options.accumulate
    source = iter(batches(first, last))
    model.train()
    while progress.step < options.steps:
        started = perf_counter()
        report, waited = _step(model, trained, optimizers, loss, source, progress, options)
        _update_average(average, averaged, options.ema_decay, progress.step)
        progress.step += 1
        progress.seconds += perf_counter() - started
        progress.data_wait_seconds += waited
        done = progress.step == options.steps
        if validate and options.validate_every and (done or progress.step % options.validate_every == 0):
            report |= _validated(model, averaged, average, validate)
            report["score"] = score = agreed(report["score"])
            progress.stale += 1
            if progress.best_score is None or score > progress.best_score:
                progress.best_score, progress.stale = score, 0
                best = {name: p.detach().clone() for name, p in (statistics | (average or averaged)).items()}
            elif options.schedule == "plateau" and progress.stale == PATIENCE:
                progress.stale, progress.halvings = 0, progress.halvings + 1
        if done or progress.step % max(options.steps // 200, 1) == 0 or "score" in report:
            progress.history.append({"step": progress.step, **report})
        if on_step is not None:
            on_step(progress, report)
        if state_file is not None and (done or perf_counter() - saved_at > options.checkpoint_seconds):
            if rank() == 0:
                _save(state_file, identity, trained, statistics, optimizers, average, best, progress)
            saved_at = perf_counter()
    _load_into(averaged, best or average or averaged)
    if best:
        _load_into(statistics, best)
    share(model)
    model.eval()
    return progress


def _keep_memory() -> None:
    """Have glibc keep what is freed, up to 2 GiB, for what is asked for next.

    By itself it hands the system every large tensor back, whose pages the next one, of the same size, has cleared and
    mapped anew: a third of a step's time where maps are large. Other C libraries are left alone.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(mmap_max, 0)


def _step(
    model: nn.Module,
    trained: dict[str, nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
    loss: Loss,
    source: Any,
    progress: Progress,
    options: LoopOptions,
) -> tuple[dict[str, float], float]:
    """One optimizer step; returns the report and the seconds waited for data."""
    step = progress.step
    device = next(iter(trained.values())).device
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate_at(step, options) * 0.5**progress.halvings
        optimizer.zero_grad(set_to_none=True)
    waited = 0.0
    report: dict[str, float] = {}
    for micro in range(options.accumulate):
        asked = perf_counter()
        batch = next(source)
        waited += perf_counter() - asked
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            value, parts = loss(batch, step * options.accumulate + micro)
        if not torch.isfinite(value):
            raise TrainingError(f"the loss is {value.item()} at step {step}: lower --learning-rate.")
        (value / options.accumulate).backward()
        for name, part in {"loss": value.detach(), **parts}.items():
            report[name] = report.get(name, 0.0) + float(part) / options.accumulate
    average_gradients(trained.values())
    if options.clip_norm:
        nn.utils.clip_grad_norm_(trained.values(), options.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    return mean_of_all(report, device), waited


def learning_rate_at(step: int, options: LoopOptions) -> float:
    """Linear warm-up, then the schedule."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    if options.schedule in ("constant", "plateau"):
        return options.learning_rate
    share = (step - options.warmup_steps) / max(options.steps - options.warmup_steps, 1)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _optimizers(trained: dict[str, nn.Parameter], options: LoopOptions) -> list[torch.optim.Optimizer]:
    matrices: dict[float, list[nn.Parameter]] = {}
    others: dict[tuple[float, float], list[nn.Parameter]] = {}
    unmatched = {pattern for pattern, _ in options.rates}
    for name, p in trained.items():
        matching = [(pattern, factor) for pattern, factor in options.rates if fnmatch(name, pattern)]
        unmatched -= {pattern for pattern, _ in matching}
        factor = matching[-1][1] if matching else 1.0
        if options.optimizer == "muon" and p.ndim == 2 and min(p.shape) >= MUON_SMALLEST:
            matrices.setdefault(factor, []).append(p)
        else:
            others.setdefault((factor, options.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    if unmatched:
        raise TrainingError(f"no trained parameter is called {sorted(unmatched)[0]}: see the names in the checkpoint.")
    optimizers: list[torch.optim.Optimizer] = []
    if others:
        kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
        groups = [{"params": ps, "factor": f, "weight_decay": decay} for (f, decay), ps in others.items()]
        optimizers.append(kind(groups, lr=options.learning_rate, fused=True))
    if matrices:
        # updates of AdamW's size (Liu et al. 2025), so that one learning rate serves both
        optimizers.append(
            torch.optim.Muon(
                [{"params": ps, "factor": factor} for factor, ps in matrices.items()],
                lr=options.learning_rate,
                weight_decay=options.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


@torch.no_grad()
def _update_average(average: dict[str, Tensor], current: dict[str, Tensor], decay: float, step: int) -> None:
    # early on, a long memory would keep the initialisation
    effective = min(decay, (1 + step) / (10 + step))
    for name, mean in average.items():
        mean.lerp_(current[name], 1 - effective)


@torch.no_grad()
def _load_into(trained: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in trained.items():
        parameter.copy_(values[name])


def _validated(
    model: nn.Module, current: dict[str, Tensor], average: dict[str, Tensor], validate: Validate
) -> dict[str, float]:
    """Scores of the averaged weights, with the trained ones put back afterwards."""
    kept = {name: p.detach().clone() for name, p in current.items()} if average else {}
    if average:
        _load_into(current, average)
    model.eval()
    with torch.no_grad():
        found = validate(model)
    model.train()
    if kept:
        _load_into(current, kept)
    return found if isinstance(found, dict) else {"score": found}


def _save(
    path: Path,
    identity: str,
    trained: dict[str, nn.Parameter],
    statistics: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
    best: dict[str, Tensor],
    progress: Progress,
) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in trained.items()}
    tensors |= {f"buffer.{name}": value for name, value in statistics.items()}
    tensors |= {f"ema.{name}": value for name, value in average.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with atomic_file(path) as part:
        save_tensors(tensors, part, metadata={"identity": identity, "progress": json.dumps(asdict(progress))})


def _restore(
    path: Path,
    identity: str,
    trained: dict[str, nn.Parameter],
    statistics: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
    best: dict[str, Tensor],
) -> Progress:
    tensors, metadata = read_tensors(path)
    if metadata.get("identity") != identity:
        raise TrainingError(f"{path} is the state of a run with other settings: choose another --out or delete it.")
    try:
        return _put_back(metadata, tensors, trained, statistics, optimizers, average, best)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise TrainingError(f"{path} is not the state that was saved there: delete it to begin anew.") from error


def _put_back(
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    trained: dict[str, nn.Parameter],
    statistics: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
    best: dict[str, Tensor],
) -> Progress:
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "buffer": {}, "ema": {}, "best": {}, "optimizer": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    device = next(iter(trained.values())).device
    progress = Progress(**json.loads(metadata["progress"]))
    numbers = (progress.seconds, progress.data_wait_seconds, progress.best_score or 0.0, progress.stale)
    if not isinstance(progress.step, int) or not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("progress is told in numbers")
    if not isinstance(progress.history, list):
        raise TypeError("history is a list of reports")
    if any(parts["model"][name].shape != parameter.shape for name, parameter in trained.items()):
        # copies would be spread over them
        raise ValueError("tensors of other shapes")
    _load_into(trained, parts["model"])
    if parts["buffer"]:
        # states of before buffers were saved have none
        _load_into(statistics, parts["buffer"])
    for name, mean in average.items():
        mean.copy_(parts["ema"][name])
    best.update({name: value.to(device) for name, value in parts["best"].items()})
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in parts["optimizer"].items():
        number, index, key = name.split(".")
        states[int(number)].setdefault(int(index), {})[key] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
