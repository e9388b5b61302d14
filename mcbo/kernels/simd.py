"""A vector of 16 floats for numba: by itself, the compiler vectorizes only loops whose arrays provably do not overlap.

Arithmetic on ``Lanes`` is one instruction of 512 bits, two of 256 or four of 128. Arrays are float32, contiguous, indexed flat.
"""

import inspect
import math
import operator
import platform
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import binding, ir
from numba import __version__ as numba_version
from numba import njit, types
from numba.core import caching, cgutils, config
from numba.core.serialize import dumps
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

from mcbo.kernels.caches import KernelFiles, complain, kernel_folder, stamp_of
from mcbo.kernels.levels import level_of, shipped_folder

LANES = 16
"""Floats in a vector."""
MOST_PLACES = 2**31
"""Elements of an array that has none left for ``Places`` to point at: what is larger is left to plain torch."""

Floats = NDArray[np.float32]
Function = TypeVar("Function", bound=Callable[..., Any])
Generator = Callable[[Any, Any, Any, Any], Any]

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_PAIRS = ir.VectorType(ir.IntType(64), LANES)
_BITS = ir.IntType(LANES)
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
_MAY_FUSE = ("contract",)  # a product and a sum may become one rounding
_LEVEL = level_of(binding.get_host_cpu_features())
_SHIPPED = shipped_folder(_LEVEL)

_settings: Any = config
if _SHIPPED and _settings.CPU_NAME is None:
    _settings.CPU_NAME, _settings.CPU_FEATURES = _LEVEL, ""  # as what is there was compiled


def compiled(function: Function) -> Function:
    """Compiles a function at its first call and caches it on disk if a folder is writable; runs without Python's lock.

    Compiled functions that it calls are inlined: as calls, those of ``correlation.py`` cost 6 % (one core, Intel Xeon,
    2026-11-27).
    """
    return _compiled(function)


def inlined(function: Function) -> Function:
    """As ``compiled``, for what compiled functions call in their inner loops. It may not make or return an array.

    So it does not count references to arrays, which takes longer than what is done with 16 voxels.
    """
    return _compiled(function, _nrt=False)


def _compiled(function: Function, **options: bool) -> Function:
    compiler: Any = njit  # whose types do not know `_nrt`
    dispatcher = compiler(nogil=True, forceinline=True, **options)(function)
    try:
        folder = kernel_folder(Path(inspect.getfile(function)).parent, _settings.CACHE_DIR)
        if folder or _SHIPPED:
            dispatcher._cache = _Cache(function, folder)
    except Exception as error:  # of another numba, or of its settings
        complain("make", "compiled kernels are not kept, so that every run compiles anew what it needs: %s", error)
    return cast(Function, dispatcher)


class _Beside(caching.InTreeCacheLocator):
    """Numba's finder of a function's cache, which is known already (``caches.py``)."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file)

    def ensure_cache_path(self) -> None:
        """It is there."""


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes: list[type[object]] = [_Beside]  # noqa: RUF012 (as numba declares it)


class _Cache(caching.FunctionCache):
    """Numba's cache of a function in a folder; what goes wrong with it costs a compilation."""

    _impl_class = _Implementation

    def __init__(self, function: Any, folder: Path | None) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        source = Path(inspect.getfile(function))
        version = (numba_version, stamp_of(Path(__file__).parent), stamp_of(source.parent))
        name = f"mcbo-{source.parent.name}-{self._impl.filename_base}"  # numba's own files may lie there, too
        self._cache_path = folder or _SHIPPED
        self._cache_file: Any = KernelFiles(folder, name, repr(version), dumps, shipped=_SHIPPED)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception as error:  # of any kind, since it is unpickled
            complain("load", "%s: a compiled kernel cannot be loaded, and is compiled anew: %s", self._cache_path, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except Exception as error:
            complain("save", "%s: compiled kernels cannot be kept: %s", self._cache_path, error)


def aligned_floats(*shape: int) -> Floats:
    """An array that begins on a multiple of 64 bytes, contents undefined.

    numpy asks the system for large pages, torch does not: that halves the time of scattered access.
    """
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


@compiled
def round_up(size: int) -> int:
    """The next multiple of ``LANES``."""
    return -(-size // LANES) * LANES


class LanesType(types.Type):
    """Numba's name for a vector of ``LANES`` floats."""

    def __init__(self) -> None:
        super().__init__(name="mcbo_lanes")


class PlacesType(types.Type):
    """The same for integers of 32 bits: flat indices of arrays that have fewer than 2³¹ elements."""

    def __init__(self) -> None:
        super().__init__(name="mcbo_places")


Lanes, Places = LanesType(), PlacesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, _VECTOR)  # type: ignore[no-untyped-call]


@register_model(PlacesType)
class _PlacesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, _INTEGERS)  # type: ignore[no-untyped-call]


def _instruction(result: Any, *kinds: Any) -> Callable[[Generator], Any]:
    """Makes a generator of LLVM instructions a numba ``intrinsic`` of these types; None stands for the type that is passed."""
    named = [inspect.Parameter(f"_{k}", inspect.Parameter.POSITIONAL_OR_KEYWORD) for k in range(len(kinds) + 1)]

    def decorate(generate: Generator) -> Any:
        @wraps(generate)
        def define(_: Any, *passed: Any) -> tuple[Any, Generator]:
            return result(*(one if kind is None else kind for kind, one in zip(kinds, passed, strict=True))), generate

        define.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]  # where numba counts the arguments
        return intrinsic(define)

    return decorate


def _data_of(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def _data(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(_data_of(context, builder, array_type, array), [index])


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    if array_type.dtype != types.float32:
        raise TypeError(f"expected an array of float32, got {array_type.dtype}")
    return builder.bitcast(_data(context, builder, array_type, array, index), _VECTOR.as_pointer())


@_instruction(Lanes, None, types.int64)
def load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``load(array, index)``: the ``LANES`` floats of an array from a flat index on."""
    return builder.load(_place(context, builder, signature.args[0], *arguments), align=4)


@_instruction(types.none, None, types.int64, Lanes)
def store(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``store(array, index, value)``: writes ``LANES`` floats to an array from a flat index on."""
    builder.store(arguments[2], _place(context, builder, signature.args[0], *arguments[:2]), align=4)
    return context.get_dummy_value()


@_instruction(types.none, None, types.int64)
def prefetch(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``prefetch(array, index)``: requests the cache line of a flat index, which may lie beyond the array, without waiting."""
    place = builder.bitcast(_data(context, builder, signature.args[0], *arguments), ir.IntType(8).as_pointer())
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(fetch, [place, number(0), number(3), number(1)])  # to read, keep in all caches, data
    return context.get_dummy_value()


@_instruction(types.none, None, types.int64, Lanes)
def stream(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """As ``store``, past the caches, to a multiple of ``LANES`` in an array of ``aligned_floats``; ``settle`` has to follow."""
    stored = builder.store(arguments[2], _place(context, builder, signature.args[0], *arguments[:2]), align=4 * LANES)
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
    return context.get_dummy_value()


@_instruction(types.none)
def settle(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``settle()``: makes what was streamed before visible to every thread after."""
    if _IS_X86:  # LLVM's fence promises nothing for stores past the caches
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.sfence"), [])
    else:
        builder.fence("seq_cst")
    return context.get_dummy_value()


def _slide(count: int) -> Any:
    """``slide(a, b)``: the lanes of a and then b, without the first ``count``."""

    @_instruction(Lanes, Lanes, Lanes)
    def slide(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _slid(builder, arguments, count)

    return slide


def _slid(builder: Any, pair: Any, count: int) -> Any:
    numbers = list(range(count, count + LANES))
    return builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), LANES), numbers))


slide_1, slide_2, slide_14, slide_15 = (_slide(count) for count in (1, 2, LANES - 2, LANES - 1))


def _squares(count: int) -> Any:
    """``squares(fixed, f, fixed_step, moving, m, moving_step, channels, result, to, step)`` for ``count`` neighboring shifts.

    Sums ``(fixed[f + i] − moving[m + k + i])²`` over channels, which lie ``fixed_step`` and ``moving_step`` apart, for each
    lane i and k < ``count``, and writes the sums of each k to ``result``, ``step`` apart from ``to`` on. Two loads of the
    moving line serve all k; a load for each, most of them across cache lines, takes longer than the arithmetic.
    """
    i = types.int64

    @_instruction(types.none, None, i, i, None, i, i, i, None, i, i)
    def squares(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
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
                d = builder.fsub(a, _slid(builder, (low, high), k), flags=_MAY_FUSE)
                square = builder.fmul(d, d, flags=_MAY_FUSE)
                builder.store(builder.fadd(builder.load(one), square, flags=_MAY_FUSE), one)
        for k, one in enumerate(sums):
            at = builder.add(to, builder.mul(step, ir.Constant(step.type, k)))
            builder.store(builder.load(one), place(7, result, at), align=4)
        return context.get_dummy_value()

    return squares


squares_3, squares_5, squares_9 = (_squares(count) for count in (3, 5, 9))


@_instruction(types.float32, None, types.int64)
def peek(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``peek(array, index)``: the float of an array at a flat index, which is not checked."""
    return builder.load(_data(context, builder, signature.args[0], *arguments))


@_instruction(Lanes, None)
def spread(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``spread(value)``: a number in every lane."""
    return _in_every_lane(builder, context.cast(builder, arguments[0], signature.args[0], types.float32), _VECTOR)


def _in_every_lane(builder: Any, number: Any, vector: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTEGERS, [0] * LANES))


@_instruction(types.float32, Lanes)
def total(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``total(value)``: the sum over lanes, float32, in whichever order is fastest on the processor."""
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR])
    reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(reduce, [ir.Constant(ir.FloatType(), 0.0), arguments[0]], fastmath=("reassoc",))


@_instruction(Lanes, Lanes)
def exponential(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``exponential(value)``: eˣ of each lane, x from −87 to 0, to 2 units in the last place: 2ⁿ times a polynomial."""

    def spread_of(number: float) -> Any:
        return ir.Constant(_VECTOR, [number] * LANES)

    def horner(x: Any, coefficients: Sequence[float]) -> Any:
        value = spread_of(coefficients[0])
        for coefficient in coefficients[1:]:
            value = builder.fadd(builder.fmul(value, x, flags=_MAY_FUSE), spread_of(coefficient), flags=_MAY_FUSE)
        return value

    least = spread_of(-87.0)
    x = builder.select(builder.fcmp_ordered(">", arguments[0], least), arguments[0], least)
    kind = ir.FunctionType(_VECTOR, [_VECTOR])
    to_whole = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32")
    whole = builder.call(to_whole, [builder.fmul(x, spread_of(1 / math.log(2)))])
    for part in (0.693359375, math.log(2) - 0.693359375):  # log 2: the first has so few bits that the product is exact
        x = builder.fsub(x, builder.fmul(whole, spread_of(part), flags=_MAY_FUSE), flags=_MAY_FUSE)
    value = horner(x, [1 / math.factorial(n) for n in range(7, -1, -1)])
    bits = builder.shl(builder.fptosi(whole, _INTEGERS), ir.Constant(_INTEGERS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(value, _INTEGERS), bits), _VECTOR)


def _define(symbol: Callable[[Any, Any], Any], kind: Any, instruction: str, flags: Sequence[str] = ()) -> None:
    """Defines an arithmetic operator of ``Lanes`` or ``Places``."""

    @_instruction(kind, kind, kind)
    def operation(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments, flags=flags)

    @overload(symbol)
    def choose(a: Any, b: Any) -> Any:
        def apply(a: Any, b: Any) -> Any:
            return operation(a, b)

        return apply if a == kind and b == kind else None


_define(operator.add, Lanes, "fadd", _MAY_FUSE)
_define(operator.sub, Lanes, "fsub", _MAY_FUSE)
_define(operator.mul, Lanes, "fmul", _MAY_FUSE)
_define(operator.truediv, Lanes, "fdiv", _MAY_FUSE)
_define(operator.add, Places, "add")
_define(operator.mul, Places, "mul")


@_instruction(Places, types.int64)
def places(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``places(index)``: an index in every lane."""
    return _in_every_lane(builder, builder.trunc(arguments[0], ir.IntType(32)), _INTEGERS)


@_instruction(Places, Lanes)
def floor_of(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``floor_of(value)``: the whole part of each lane, which is from 0 to below 2³¹."""
    return builder.fptosi(arguments[0], _INTEGERS)


@_instruction(Lanes, Places)
def floats_of(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``floats_of(places)``: as floats, rounded beyond 2²⁴."""
    return builder.sitofp(arguments[0], _VECTOR)


@_instruction(Lanes, None, Places)
def gather(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``gather(array, places)``: the numbers at these flat indices, which are not checked, of an array of float32.

    Or of bytes, three of which follow the last that is asked for: as floats.
    """
    dtype = signature.args[0].dtype
    base = _data_of(context, builder, signature.args[0], arguments[0])
    if dtype == types.float32:
        return _gathered(builder, base, arguments[1], ir.FloatType(), _VECTOR)
    if dtype != types.uint8:
        raise TypeError(f"expected an array of float32 or uint8, got {dtype}")
    fours = _gathered(builder, base, arguments[1], ir.IntType(8), _INTEGERS)
    return builder.sitofp(builder.and_(fours, ir.Constant(_INTEGERS, [255] * LANES)), _VECTOR)


@_instruction(types.UniTuple(Lanes, 2), None, Places)
def gather_pairs(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``gather_pairs(array, places)``: the numbers at these flat indices of an array of float32, and those that follow them.

    Half as many reads as two calls of ``gather``: these are what it takes.
    """
    if signature.args[0].dtype != types.float32:
        raise TypeError(f"expected an array of float32, got {signature.args[0].dtype}")
    base = _data_of(context, builder, signature.args[0], arguments[0])
    pairs = builder.bitcast(
        _gathered(builder, base, arguments[1], ir.FloatType(), _PAIRS), ir.VectorType(ir.FloatType(), 2 * LANES)
    )
    first, second = (
        builder.shuffle_vector(pairs, pairs, ir.Constant(_INTEGERS, list(range(begin, 2 * LANES, 2)))) for begin in (0, 1)
    )
    return context.make_tuple(builder, signature.return_type, [first, second])


def _stored_as(bits: int) -> Any:
    """``store_…(array, index, places)``: writes the lowest bits of each lane to an array of such integers from an index on."""
    kind = ir.VectorType(ir.IntType(bits), LANES)

    @_instruction(types.none, None, types.int64, Places)
    def store_places(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to = builder.bitcast(_data(context, builder, signature.args[0], *arguments[:2]), kind.as_pointer())
        builder.store(arguments[2] if bits == 32 else builder.trunc(arguments[2], kind), to, align=1)
        return context.get_dummy_value()

    return store_places


store_bytes, store_places = _stored_as(8), _stored_as(32)


def _gathered(builder: Any, base: Any, numbers: Any, step: Any, result: Any) -> Any:
    """A vector of what begins at these multiples of a type's size from ``base`` on."""
    pointers = builder.gep(base, [numbers], source_etype=step)
    pointers.type = ir.VectorType(base.type, LANES)  # of several indices, which llvmlite does not know
    flags = ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(result, [pointers.type, flags, result])
    name = f"llvm.masked.gather.v{LANES}{'f32' if result is _VECTOR else result.element}.v{LANES}p0"
    read = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(read, [pointers, ir.Constant(flags, [1] * LANES), ir.Constant(result, ir.Undefined)])


@_instruction(Lanes, Lanes, Lanes)
def lesser(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``lesser(a, b)``: the smaller of each pair; the second where they are equal or not comparable."""
    return builder.select(builder.fcmp_ordered("<", *arguments), *arguments)


@_instruction(Lanes, Lanes, Lanes, Lanes, Lanes)
def where_less(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``where_less(a, b, then, otherwise)``: per lane ``then`` where a < b, else ``otherwise``."""
    return builder.select(builder.fcmp_ordered("<", *arguments[:2]), *arguments[2:])


@_instruction(Lanes, Lanes, Lanes)
def greater(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``greater(a, b)``: the larger of each pair; the second where they are equal or not comparable."""
    return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)


@_instruction(types.boolean, Lanes, Lanes)
def any_at_most(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """``any_at_most(a, b)``: whether a ≤ b in any lane."""
    mask = builder.bitcast(builder.fcmp_ordered("<=", *arguments), _BITS)
    return builder.icmp_unsigned("!=", mask, ir.Constant(_BITS, 0))
