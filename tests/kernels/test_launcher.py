"""sam_edge.kernels.launcher and driver: kernels through either package, on a double that does nothing too early."""

import gc
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sam_edge.errors import BackendUnavailableError
from sam_edge.kernels import launcher, preprocess, unpack
from sam_edge.kernels.driver import BindingsDriver, Driver, DriverError, PycudaDriver, open_driver
from sam_edge.kernels.gpu import DeviceArray
from sam_edge.kernels.launcher import Gpu, rounded
from sam_edge.runtimes.cuda import cuda_devices
from tests.cuda_double import CUBIN, GARBAGE, Bindings, Fault, Machine, pycuda
from tests.kernels.emulated import COMPILER

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

PACKAGES: dict[str, Callable[[Machine], Driver]] = {
    "bindings": lambda machine: BindingsDriver(Bindings(machine)),
    "pycuda": lambda machine: PycudaDriver(pycuda(machine)),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A device whose machine code is emulated."""
    monkeypatch.setattr(launcher, "cubin_of", lambda source, target: CUBIN + source.label.encode())
    return Machine()


@pytest.fixture(params=PACKAGES.values(), ids=PACKAGES)
def gpu(request: pytest.FixtureRequest, machine: Machine) -> Gpu:
    """The device through either package."""
    return Gpu(request.param(machine))


def bindings_gpu(machine: Machine) -> Gpu:
    return Gpu(BindingsDriver(Bindings(machine)))


def test_the_target_is_the_devices(gpu: Gpu) -> None:
    assert gpu.target == "sm89"


@pytest.mark.parametrize(
    "values",
    [np.arange(1000, dtype=np.float32).reshape(10, 100), np.zeros((0, 3)), np.int8([7]), np.float32(3.5).reshape(())],
    ids=str,
)
def test_arrays_come_back_as_they_were_put(values: np.ndarray, gpu: Gpu) -> None:
    found = gpu.get(gpu.put(values))
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_views_are_put_in_rows(gpu: Gpu) -> None:
    values = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(gpu.get(gpu.put(values[::2, ::-1])), values[::2, ::-1])
    np.testing.assert_array_equal(gpu.get(gpu.put(values)[2]), values[2])


def test_what_was_put_may_change_at_once(gpu: Gpu) -> None:
    values = np.arange(300)
    arrays = []
    for turn in range(5):
        values[:] = turn
        arrays.append(gpu.put(values))
    values[:] = 99
    for turn, array in enumerate(arrays):
        assert (gpu.get(array) == turn).all()


def test_zeros_are_zeros_where_something_lay(gpu: Gpu) -> None:
    first = gpu.put(np.full(500, 7.0))
    address = first.address
    del first
    again = gpu.zeros((500,), np.float64)
    assert again.address == address
    assert not gpu.get(again).any()


def test_memory_goes_from_one_piece_of_work_to_the_next(gpu: Gpu, machine: Machine) -> None:
    """Without waiting: a kernel's operands are given up while it has yet to run, and taken by the next."""
    integers = [np.random.default_rng(turn).integers(-32, 32, 4000).astype(np.int8) for turn in range(6)]
    found = [unpack.unpack(gpu, gpu.put(unpack.pack(some)), 4000) for some in integers]
    assert sum(block.kind == "device" for block in machine.blocks) < 2 * len(found)
    assert not any(block.freed for block in machine.blocks)
    for array, some in zip(found, integers, strict=True):
        np.testing.assert_array_equal(gpu.get(array), some)


def test_kernels_through_a_driver_are_the_reference(gpu: Gpu) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    given = (picture, (37, 64), 64, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    found = preprocess.preprocess(gpu, *given, "float16")
    np.testing.assert_array_equal(gpu.get(found), preprocess.reference(*given, "float16"))


def test_a_module_is_loaded_once(machine: Machine) -> None:
    gpu = bindings_gpu(machine)
    for _ in range(3):
        unpack.unpack(gpu, gpu.put(np.zeros(3, np.uint8)), 4)
    assert len(gpu.driver._modules) == 1


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_everything_is_given_back_at_the_end(package: Callable[[Machine], Driver], machine: Machine) -> None:
    gpu = Gpu(package(machine))
    # even if it has not been waited for
    unpack.unpack(gpu, gpu.put(np.zeros(3, np.uint8)), 4)
    del gpu
    gc.collect()
    assert "unpack_int8" in machine.log
    assert all(block.freed for block in machine.blocks)


def test_writing_another_shape_is_refused(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match=r"\(4,\) float64 cannot take \(3,\) float64"):
        gpu.write(gpu.empty((4,), np.float64), np.zeros(3))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 4096, 4097, 10**6, 123456789])
def test_pieces_are_an_eighth_larger_at_most(size: int) -> None:
    assert size <= rounded(size) <= size + max(255, size // 8)
    assert rounded(size) % 256 == 0
    assert rounded(rounded(size)) == rounded(size)


# what a program can do wrong, done


def unpacked(gpu: Gpu) -> np.ndarray:
    """A piece of work of all that there is: memory in, a kernel, memory out."""
    return gpu.get(unpack.unpack(gpu, gpu.put(unpack.pack(np.arange(-8, 8, dtype=np.int8))), 16))


def freed_at_once(gpu: Gpu) -> None:
    allocate = gpu.driver.allocate
    gpu._pool._free.clear()
    gpu.driver.allocate = lambda size: (allocate(size)[0], None)


def freed_while_in_use(gpu: Gpu) -> None:
    gpu._pool.take_back = lambda size, address, memory: None
    gpu.driver._release_memory = gpu.driver._release


def freed_twice(gpu: Gpu) -> None:
    release = gpu.driver._release

    def twice(name: str, handle: Any) -> None:
        release(name, handle)
        release(name, handle)

    gpu.driver._release = twice
    array = gpu.driver.allocate(256)
    # where an error is raised at all, for one in __del__ is only printed
    array[1]._release()


def another_stream(gpu: Gpu) -> None:
    launch, other = gpu.driver.launch, gpu.driver.stream()
    gpu.driver.launch = lambda f, grid, block, shared, stream, given: launch(f, grid, block, shared, other, given)


def pageable_memory(gpu: Gpu) -> None:
    gpu._staging._free.clear()
    gpu.driver.pinned = lambda size: np.empty(size, np.uint8)


def staging_used_too_soon(gpu: Gpu) -> None:
    gpu.driver.passed = lambda event: True
    for turn in range(2):
        gpu.put(np.full(16, turn))


def too_long_a_copy(gpu: Gpu) -> None:
    lease = gpu._pool.lease
    gpu._pool.lease = lambda size: lease(size // 1000 + 1)
    gpu.put(np.zeros(5000))


def no_such_stream(gpu: Gpu) -> None:
    gpu.driver._release("cuStreamDestroy", gpu.stream.handle)


def waited_for_while_recording(gpu: Gpu) -> None:
    gpu.driver.begin_capture(gpu.stream)


def allocated_while_recording(gpu: Gpu) -> None:
    gpu.driver.begin_capture(gpu.stream)
    gpu.empty((99999,), np.int8)


def graph_of_freed_memory(gpu: Gpu) -> None:
    address, memory = gpu.driver.allocate(256)
    gpu.driver.begin_capture(gpu.stream)
    gpu.driver.fill_zeros(address, 256, gpu.stream)
    graph = gpu.driver.end_capture(gpu.stream)
    del memory
    gpu.driver.replay(graph, gpu.stream)


def too_much_shared_memory(gpu: Gpu) -> None:
    launch = gpu.driver.launch
    gpu.driver.launch = lambda f, grid, block, shared, *rest: launch(f, grid, block, 64 << 10, *rest)


FAULTS: dict[Callable[[Gpu], None], str] = {
    freed_at_once: "was given back",
    freed_while_in_use: "is given back while .* has not used it yet",
    freed_twice: "given back twice",
    another_stream: "on another stream, which was not waited for",
    pageable_memory: "is in no pinned allocation",
    staging_used_too_soon: "pinned memory was changed before copy in had read it",
    too_long_a_copy: "more than the allocation has",
    no_such_stream: "there is no stream",
    waited_for_while_recording: "waited for while it records|allocation of .* while a stream records",
    allocated_while_recording: "an allocation of device memory while a stream records",
    graph_of_freed_memory: "was given back",
    too_much_shared_memory: "asks for 65536 bytes of shared memory",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_double_rejects(fault: Callable[[Gpu], None], machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[str] = []
    # give-backs happen in __del__, out of which nothing is raised
    monkeypatch.setattr(sys, "unraisablehook", lambda told: raised.append(str(told.exc_value)))
    gpu = bindings_gpu(machine)
    unpacked(gpu)
    try:
        fault(gpu)
        unpacked(gpu)
    except Fault as error:
        raised.append(str(error))
    assert any(re.search(FAULTS[fault], told) for told in raised), raised
    machine.over = True


def test_without_waiting_what_is_read_is_garbage(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = bindings_gpu(machine)
    monkeypatch.setattr(gpu, "synchronise", lambda: None)
    assert (unpacked(gpu).view(np.uint8) == GARBAGE).all()
    machine.over = True


# the packages themselves


def test_a_call_that_fails_is_one_line(machine: Machine) -> None:
    cuda = Bindings(machine)
    gpu = Gpu(BindingsDriver(cuda))
    cuda.errors["cuMemAlloc"] = 2
    with pytest.raises(DriverError, match=r"^cuMemAlloc fails: 2\.$"):
        gpu.empty((9,), np.int8)


def test_without_a_device_the_error_names_another_runtime(machine: Machine) -> None:
    cuda = Bindings(machine)
    cuda.errors["cuInit"] = 100
    with pytest.raises(BackendUnavailableError, match=r"no CUDA device here .*--runtime onnxruntime") as refused:
        BindingsDriver(cuda)
    assert "\n" not in str(refused.value)


def test_without_either_package_the_error_says_how_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendUnavailableError, match=r"cuda\.bindings or pycuda: pip install"):
        open_driver()


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a CUDA device")
def test_the_real_bindings_say_that_there_is_no_device() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda.bindings is not installed")
    with pytest.raises(BackendUnavailableError, match="no CUDA device here"):
        BindingsDriver(driver)


def test_the_double_has_the_real_bindings_functions() -> None:
    """Names, numbers of arguments and of the enumerations."""
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda.bindings is not installed")
    names = [name for name, _ in inspect.getmembers(Bindings, callable) if re.match("cu[A-Z]", name)]
    assert len(names) > 25
    for name in names:
        first = (getattr(real, name).__doc__ or "").partition("Parameters\n")[0].replace("\n", " ")
        (signature,) = re.findall(rf"^{name}\((.*?)\)", first)
        arguments = [part for part in signature.split(",") if part.strip()]
        ours = list(inspect.signature(getattr(Bindings, name)).parameters)[1:]
        assert len(ours) == len(arguments), name
    for group in ("CUstream_flags", "CUresult", "CUdevice_attribute", "CUstreamCaptureMode"):
        for name, value in vars(getattr(Bindings, group)).items():
            assert int(getattr(getattr(real, group), name)) == value


def test_both_drivers_have_the_same_verbs() -> None:
    wanted = {name for name in vars(Driver) if not name.startswith("_")}
    for driver in (BindingsDriver, PycudaDriver):
        assert wanted <= {name for name in dir(driver) if not name.startswith("_")}


def test_an_index_beyond_the_array_ends_a_loop() -> None:
    array = DeviceArray((2, 3), np.dtype(np.int8), 256, None)
    assert [part.address for part in array] == [256, 259]
