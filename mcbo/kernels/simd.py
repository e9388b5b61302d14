"""Sixteen floats at once: a vector type for numba, so that the compiled kernels are vectorized by construction.

Left to itself, the compiler vectorizes such loops only where it can prove that arrays do not overlap, and checks at run time
cost more than short rows save. Arithmetic on ``Lanes`` becomes vector instructions on every processor: one of 512 bits, two of
256, or four of 128. All arrays are float32, contiguous, and indexed flat.
"""

import operator
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

LANES = 16
"""Floats in a vector."""

Floats = NDArray[np.float32]
Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")
Generator = Callable[[Any, Any, Any, Any], Any]

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_BITS = ir.IntType(LANES)
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
_MAY_FUSE = ("contract",)  # a product and a sum may become one rounding
_MAKING_HALVES = threading.Lock()


def compiled(function: Function) -> Function:
    """Compiles a function at its first call, kept on disk for the next run where a folder can be written for that.

    What is kept is made anew when the function's own file changes, not when this one does: then delete ``__pycache__``.
    It runs without Python's lock, so that threads run side by side (``in_threads``). Compiled functions that it calls are
    inlined: left as calls, those of ``correlation.py`` cost 6 % (64³ cells, R = 4, one core, Intel Xeon, 2026-11-27).
    """
    try:
        return cast(Function, njit(nogil=True, forceinline=True, cache=True)(function))
    except RuntimeError:  # no folder for the cache: neither beside this file nor in the home folder, nor NUMBA_CACHE_DIR
        return cast(Function, njit(nogil=True, forceinline=True)(function))


def in_threads(function: Callable[..., None], count: int, *arguments: object) -> None:
    """Calls ``function(*arguments, first, last)`` for parts of ``range(count)`` that together are all of it.

    As many parts run at a time as torch has threads. What is computed may not depend on how the range was cut.
    """
    threads = max(1, min(torch.get_num_threads(), count))
    edges = [count * part // threads for part in range(threads + 1)]
    others = [_pool(threads).submit(function, *arguments, edges[k], edges[k + 1]) for k in range(1, threads)]
    function(*arguments, edges[0], edges[1])
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2 * threads, thread_name_prefix="mcbo")  # enough for both halves of ``side_by_side``


def side_by_side(one: Callable[[], Result], other: Callable[[], Result]) -> tuple[Result, Result]:
    """What two calls return that run at a time, each with its half of torch's threads; in turn where there is one only.

    Two long calls that never wait for each other keep two cores busier than two threads that meet after every short step.
    """
    threads = torch.get_num_threads()
    if threads < 2:
        return one(), other()
    with _MAKING_HALVES:  # two callers at once would take each other's passing number for torch's own
        halves = _halves(threads)
    calls = [half.submit(call) for half, call in zip(halves, (one, other), strict=True)]
    wait(calls)  # for both, also if one fails
    return calls[0].result(), calls[1].result()


@cache
def _halves(threads: int) -> list[ThreadPoolExecutor]:
    """Two threads for which torch has half of the threads each.

    Torch keeps a number for every thread, taken at its first use there from one for all threads that are yet to come. To set
    any is to set that one too, so a passing thread sets it back. A thread that first uses torch just then has too few.
    """
    halves = [ThreadPoolExecutor(1, thread_name_prefix="mcbo") for _ in range(2)]
    with ThreadPoolExecutor(1) as passing:
        number = passing.submit(torch.get_num_threads).result()
        for half, its_threads in zip(halves, (threads - threads // 2, threads // 2), strict=True):
            half.submit(torch.get_num_threads).result()
            half.submit(torch.set_num_threads, its_threads).result()
        passing.submit(torch.set_num_threads, number).result()
    return halves


def aligned_floats(*shape: int) -> Floats:
    """An array that begins on a multiple of 64 bytes, contents undefined."""
    # numpy asks the system for large pages, torch does not: that halves the time of scattered access.
    size = int(np.prod(shape))
    raw = np.empty(size + LANES, dtype=np.float32)
    first = -(raw.ctypes.data // 4) % LANES
    return raw[first : first + size].reshape(shape)


@compiled
def aligned_zeros(size: int) -> Floats:
    """``size`` zeros from a multiple of 64 bytes on, for compiled code."""
    raw = np.zeros(size + LANES, np.float32)
    first = -(raw.ctypes.data // 4) % LANES
    return raw[first : first + size]


def round_up(size: int) -> int:
    """The next multiple of ``LANES``."""
    return -(-size // LANES) * LANES


class LanesType(types.Type):
    """Numba's name for a vector of ``LANES`` floats."""

    def __init__(self) -> None:
        super().__init__(name="mcbo_lanes")


Lanes = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, _VECTOR)  # type: ignore[no-untyped-call]


def _vector(function: Callable[..., Any]) -> Any:
    """Numba's ``intrinsic``: from the types of the arguments, a signature and a generator of instructions."""
    return intrinsic(function)


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


@_vector
def load(_: Any, array: Any, index: Any) -> tuple[Any, Generator]:
    """The ``LANES`` floats of an array from a flat index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments)
        return builder.load(place, align=4)

    return Lanes(array, types.int64), generate


@_vector
def store(_: Any, array: Any, index: Any, value: Any) -> tuple[Any, Generator]:
    """Writes ``LANES`` floats to an array from a flat index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], place, align=4)
        return context.get_dummy_value()

    return types.none(array, types.int64, Lanes), generate


@_vector
def prefetch(_: Any, array: Any, index: Any) -> tuple[Any, Generator]:
    """Asks for the cache line of a flat index, which may lie beyond the array, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(fetch, [place, number(0), number(3), number(1)])  # to read, keep in all caches, data
        return context.get_dummy_value()

    return types.none(array, types.int64), generate


@_vector
def stream(_: Any, array: Any, index: Any, value: Any) -> tuple[Any, Generator]:
    """As ``store``, past the caches, to a multiple of ``LANES`` in an array of ``aligned_floats``; ``settle`` has to follow."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        stored = builder.store(arguments[2], place, align=4 * LANES)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.none(array, types.int64, Lanes), generate


@_vector
def settle(_: Any) -> tuple[Any, Generator]:
    """What was streamed before is seen by every thread after."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _IS_X86:  # LLVM's fence promises nothing for stores past the caches
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.sfence"), [])
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


def _slide(count: int) -> Callable[[Any, Any], Any]:
    """``slide(a, b)``: the lanes of a and then b, without the first ``count``."""

    @_vector
    def slide(_: Any, a: Any, b: Any) -> tuple[Any, Generator]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _slid(builder, arguments[0], arguments[1], count)

        return Lanes(Lanes, Lanes), generate

    return cast(Callable[[Any, Any], Any], slide)


def _slid(builder: Any, a: Any, b: Any, count: int) -> Any:
    numbers = list(range(count, count + LANES))
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), numbers))


slide_1, slide_2, slide_14, slide_15 = (_slide(count) for count in (1, 2, LANES - 2, LANES - 1))


def _squares(count: int) -> Callable[..., None]:
    """``squares(fixed, f, fixed_step, moving, m, moving_step, channels, result, to, step)`` for ``count`` neighboring shifts.

    Sums ``(fixed[f + i] − moving[m + k + i])²`` over channels, which lie ``fixed_step`` and ``moving_step`` apart, for each
    lane i and k < ``count``, and writes the sums of each k to ``result``, ``step`` apart from ``to`` on. Two loads of the
    moving line serve all k; a load for each, most of them across cache lines, takes longer than the arithmetic.
    """

    @_vector
    def squares(
        _: Any,
        fixed: Any,
        f: Any,
        fixed_step: Any,
        moving: Any,
        m: Any,
        moving_step: Any,
        channels: Any,
        result: Any,
        to: Any,
        step: Any,
    ) -> tuple[Any, Generator]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            fixed, f, fixed_step, moving, m, moving_step, channels, result, to, step = arguments

            def place(argument: int, array: Any, index: Any) -> Any:
                return _place(context, builder, signature.args[argument], array, index)

            sums = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None)) for _ in range(count)]
            for one in sums:
                builder.store(ir.Constant(_VECTOR, None), one)
            with cgutils.for_range(builder, channels) as loop:
                at = builder.add(m, builder.mul(loop.index, moving_step))
                a = builder.load(place(0, fixed, builder.add(f, builder.mul(loop.index, fixed_step))), align=4)
                low = builder.load(place(3, moving, at), align=4)
                high = builder.load(place(3, moving, builder.add(at, ir.Constant(at.type, LANES))), align=4)
                for k, one in enumerate(sums):
                    d = builder.fsub(a, _slid(builder, low, high, k), flags=_MAY_FUSE)
                    square = builder.fmul(d, d, flags=_MAY_FUSE)
                    builder.store(builder.fadd(builder.load(one), square, flags=_MAY_FUSE), one)
            for k, one in enumerate(sums):
                at = builder.add(to, builder.mul(step, ir.Constant(step.type, k)))
                builder.store(builder.load(one), place(7, result, at), align=4)
            return context.get_dummy_value()

        i = types.int64
        return types.none(fixed, i, i, moving, i, i, i, result, i, i), generate

    return cast(Callable[..., None], squares)


squares_3, squares_5, squares_9 = (_squares(count) for count in (3, 5, 9))


@_vector
def peek(_: Any, array: Any, index: Any) -> tuple[Any, Generator]:
    """The float of an array at a flat index, which is not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return types.float32(array, types.int64), generate


@_vector
def spread(_: Any, value: Any) -> tuple[Any, Generator]:
    """A number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[0], signature.args[0], types.float32)
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    return Lanes(value), generate


@_vector
def total(_: Any, value: Any) -> tuple[Any, Generator]:
    """The sum over lanes, float32, in an order that the processor likes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(reduce, [ir.Constant(ir.FloatType(), 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(Lanes), generate


def _teach(symbol: Callable[[Any, Any], Any], instruction: str) -> None:
    """Gives ``Lanes`` an arithmetic operator."""

    @_vector
    def operation(_: Any, a: Any, b: Any) -> tuple[Any, Generator]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments, flags=_MAY_FUSE)

        return Lanes(Lanes, Lanes), generate

    @overload(symbol)
    def choose(a: Any, b: Any) -> Any:
        def apply(a: Any, b: Any) -> Any:
            return operation(a, b)

        return apply if isinstance(a, LanesType) and isinstance(b, LanesType) else None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _teach(_symbol, _instruction)


@_vector
def lesser(_: Any, a: Any, b: Any) -> tuple[Any, Generator]:
    """The smaller of each pair; the second where they are equal or not comparable."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *arguments), *arguments)

    return Lanes(Lanes, Lanes), generate


@_vector
def where_less(_: Any, a: Any, b: Any, then: Any, otherwise: Any) -> tuple[Any, Generator]:
    """Per lane ``then`` where a < b, else ``otherwise``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *arguments[:2]), *arguments[2:])

    return Lanes(Lanes, Lanes, Lanes, Lanes), generate


@_vector
def any_at_most(_: Any, a: Any, b: Any) -> tuple[Any, Generator]:
    """Whether a ≤ b in any lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        mask = builder.bitcast(builder.fcmp_ordered("<=", *arguments), _BITS)
        return builder.icmp_unsigned("!=", mask, ir.Constant(_BITS, 0))

    return types.boolean(Lanes, Lanes), generate
