"""Values on the wire come out as they went in, or not at all."""

import hashlib
import os
import pickle
import sys
import threading
import types
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from macluster.engine import codec, transfer
from macluster.engine.client import Reply
from macluster.engine.errors import TransferError
from macluster.engine.world import World

NOBODY = cast("World", None)  # for calls that fail before they need a world


def sent(value: Any) -> Any:
    """The value after a trip through a message: JSON content and read-only buffers."""
    spec, buffers = codec.encode(value)
    return codec.decode(spec, [memoryview(bytes(part)) for part in buffers])


DTYPES = [
    *("?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"),
    *("<c8", "<c16", ">i2", ">i4", ">i8", ">f4", ">f8", ">c16", "<M8[ns]", "<m8[s]"),
    *("S5", "<U5", ">U5", "V3"),
]
SHAPES: list[tuple[int, ...]] = [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (0, 3), (3, 0, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_arrays_keep_dtype_shape_and_bits(dtype: str, shape: tuple[int, ...]) -> None:
    kind = np.dtype(dtype)
    count = int(np.prod(shape)) * kind.itemsize
    # Every value has a 0 at its end, so that texts stay within Unicode's range.
    pattern = b"a\0\0\0" if kind.kind == "U" and kind.str[0] == "<" else b"\0\0\0a"
    raw = pattern * (count // 4 + 1) if kind.kind == "U" else bytes(i % 2 for i in range(count))
    array = np.frombuffer(raw[:count], dtype=kind).reshape(shape)
    back = sent(array)
    assert type(back) is np.ndarray
    assert (back.dtype.str, back.shape) == (kind.str, shape)
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24).reshape(2, 3, 4).T,
        np.arange(24)[::3],
        np.arange(24)[::-1],
        np.arange(24).reshape(4, 6)[1:3, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.arange(3), (4, 3)),
    ],
    ids=["transposed", "every third", "reversed", "a window", "Fortran order", "broadcast"],
)
def test_arrays_that_are_not_contiguous_keep_their_values(array: np.ndarray) -> None:
    back = sent(array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_a_numpy_array_that_arrived_can_be_changed() -> None:
    back = sent(np.zeros(3))
    back[0] = 1
    assert back.tolist() == [1, 0, 0]


def test_a_numpy_array_is_sent_without_a_copy() -> None:
    array = np.arange(10)
    _, [buffer] = codec.encode(array)
    assert np.shares_memory(np.frombuffer(buffer, dtype=array.dtype), array)


def test_a_structured_array_keeps_its_fields() -> None:
    array = np.array([(1, 0.5), (2, 1.5)], dtype=[("count", "<i4"), ("share", "<f8")])
    back = sent(array)
    assert back.dtype == array.dtype
    assert back["share"].tolist() == [0.5, 1.5]


def test_a_masked_array_keeps_its_mask() -> None:
    back = sent(np.ma.array([1, 2, 3], mask=[False, True, False]))
    assert back.tolist() == [1, None, 3]


def test_an_array_of_python_objects_is_pickled() -> None:
    array = np.array([None, "a", 3], dtype=object)
    assert codec.encode(array)[0]["kind"] == "pickle"
    assert sent(array).tolist() == [None, "a", 3]


# -- mlx ------------------------------------------------------------------------------------------

MLX_DTYPES = [
    value for name in dir(mx) if isinstance(value := getattr(mx, name), mx.Dtype) and name != "bool"
]


def test_all_of_the_types_of_mlx_are_tried() -> None:
    assert {str(dtype) for dtype in MLX_DTYPES} >= {
        f"mlx.core.{name}" for name in ("bool", "bfloat16", "float16", "complex64", "uint64")
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", MLX_DTYPES, ids=str)
def test_mlx_arrays_keep_dtype_shape_and_values(dtype: mx.Dtype, shape: tuple[int, ...]) -> None:
    # float64 exists on the CPU only.
    with mx.stream(mx.cpu):
        array = (mx.arange(int(np.prod(shape))).reshape(shape) * 3 + 1).astype(dtype)
        back = sent(array)
        assert isinstance(back, mx.array)
        assert (back.dtype, back.shape) == (dtype, shape)
        assert back.tolist() == array.tolist()


def test_bfloat16_keeps_every_bit_pattern() -> None:
    bits = mx.arange(2**16, dtype=mx.uint32).astype(mx.uint16)
    back = sent(bits.view(mx.bfloat16))
    assert back.dtype == mx.bfloat16
    # As bits, because a NaN is not equal to itself.
    assert mx.array_equal(back.view(mx.uint16), bits).item()


@pytest.mark.parametrize(
    ("dtype", "values"),
    [("uint64", [0, 2**63 + 1, 2**64 - 1]), ("int64", [-(2**63), 2**53 + 1])],
)
def test_integers_beyond_floats_are_kept(dtype: str, values: list[int]) -> None:
    assert sent(mx.array(np.array(values, dtype=dtype))).tolist() == values


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.complex64], ids=str)
def test_mlx_views_keep_their_values(dtype: mx.Dtype) -> None:
    whole = mx.arange(24).reshape(2, 3, 4).astype(dtype)
    for view in (
        whole.transpose(2, 0, 1),
        whole[:, ::2, 1:3],
        mx.broadcast_to(whole[0, 0], (2, 4)),
    ):
        back = sent(view)
        assert (back.dtype, back.shape) == (dtype, view.shape)
        assert back.tolist() == view.tolist()


# -- everything else ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**80,
        1.5,
        "é\n\0",
        b"\0\xff",
        [1, [2, {"a": (3,)}]],
        {"x": {1, 2}},
        range(3),
        Decimal("0.1"),
        np.float32(0.1),
        Path("/a/b"),
        ValueError,
    ],
    ids=repr,
)
def test_plain_values_are_pickled_and_equal(value: Any) -> None:
    spec, buffers = codec.encode(value)
    assert spec == {"kind": "pickle", "sha256": hashlib.sha256(buffers[0]).hexdigest()}
    back = sent(value)
    assert type(back) is type(value)
    assert back == value


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_an_altered_value_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "sprung"
    genuine, _ = codec.encode([1, 2, 3])
    trap, [payload] = codec.encode(Trap(folder))
    with pytest.raises(TransferError) as caught:
        codec.decode(genuine, [memoryview(payload)])
    assert caught.value.why
    assert caught.value.do
    assert not folder.exists()
    # The trap is a real one.
    codec.decode(trap, [memoryview(payload)])
    assert folder.exists()


@pytest.mark.parametrize("index", [0, 1, -1])
def test_one_altered_byte_is_enough_to_refuse(index: int) -> None:
    spec, [payload] = codec.encode({"lr": 0.1})
    altered = bytearray(payload)
    altered[index] ^= 1
    with pytest.raises(TransferError):
        codec.decode(spec, [memoryview(altered)])
    with pytest.raises(TransferError):
        codec.decode(spec, [memoryview(payload)[:-1]])


class Stubborn:
    def __reduce__(self) -> str:
        raise RuntimeError("not me")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda: None, "function"),
        ((n for n in range(3)), "generator"),
        (threading.Lock(), "lock"),
        (memoryview(b"abc"), "memoryview"),
        (Stubborn(), "Stubborn"),
        ([1, {"a": lambda: None}], "list"),
    ],
    ids=["lambda", "generator", "lock", "memoryview", "stubborn", "list with a lambda"],
)
def test_a_value_that_cannot_be_sent_is_named_by_its_type(value: Any, kind: str) -> None:
    with pytest.raises(TransferError) as caught:
        codec.encode(value)
    assert f"A {kind} cannot be sent" in caught.value.what
    assert caught.value.why
    assert caught.value.do


def test_the_reason_of_a_failed_pickle_is_told() -> None:
    with pytest.raises(TransferError, match="not me"):
        codec.encode(Stubborn())
    assert pickle.loads(codec.encode([1])[1][0]) == [1]


NOTEBOOK = """
import dataclasses, enum, functools, collections
def f(): pass
@functools.cache
def cached(): pass
class C: pass
@dataclasses.dataclass
class Data:
    n: int = 1
Pair = collections.namedtuple("Pair", "a b")
class Colour(enum.Enum):
    RED = 1
c, data, pair, red, method = C(), Data(), Pair(1, 2), Colour.RED, C().__init__
deep = [1, {"a": (Data(),)}]
partial = functools.partial(f)
"""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of a notebook, whose functions and classes are those of `__main__`."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(NOTEBOOK, vars(module))
    return vars(module)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("f", "is a function"),
        ("cached", "is a function"),
        ("C", "is a class"),
        ("c", "is an instance of C, a class"),
        ("data", "is an instance of Data, a class"),
        ("pair", "is an instance of Pair, a class"),
        ("red", "is an instance of Colour, a class"),
        ("deep", "holds Data, a class"),
        ("partial", "holds f, a function"),
    ],
)
def test_what_a_notebook_defines_is_refused_before_it_is_sent(
    notebook: dict[str, Any], name: str, what: str
) -> None:
    with pytest.raises(TransferError) as caught:
        transfer.push(NOBODY, {name: notebook[name]})
    assert caught.value.what == f"{name!r} {what} defined in this notebook."
    assert "a rank cannot import" in caught.value.why
    assert "%%distributed" in caught.value.do


@pytest.mark.parametrize(
    "value", ["__main__", ["text with __main__ in it", Path], {"__main__": Decimal(1)}], ids=repr
)
def test_a_text_that_reads_main_is_sent(value: Any) -> None:
    content, _ = transfer._packed({"x": value})
    assert content["values"][0]["spec"]["kind"] == "pickle"
    assert sent(value) == value


def test_a_value_whose_class_is_not_there_is_told_in_words(notebook: dict[str, Any]) -> None:
    spec, [payload] = codec.encode(notebook["data"])
    del notebook["Data"]
    with pytest.raises(TransferError, match="Data") as caught:
        codec.decode(spec, [memoryview(payload)])
    assert caught.value.why
    assert "module" in caught.value.do


# -- descriptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "shape", "dtype", "size"),
    [
        (mx.zeros((2, 3)), "mx.array", [2, 3], "float32", 24),
        (mx.zeros((4,), dtype=mx.bfloat16), "mx.array", [4], "bfloat16", 8),
        (mx.array(True), "mx.array", [], "bool", 1),
        (mx.zeros((0, 3)), "mx.array", [0, 3], "float32", 0),
        (np.zeros((2, 3)), "ndarray", [2, 3], "float64", 48),
        (np.zeros(3, dtype=">i2"), "ndarray", [3], ">i2", 6),
        (np.array(1j), "ndarray", [], "complex128", 16),
        ("abc", "str", None, None, 3),
        (b"abc", "bytes", None, None, 3),
        (bytearray(5), "bytearray", None, None, 5),
        (memoryview(b"abcd"), "memoryview", None, None, 4),
        ([1, 2], "list", None, None, None),
        (None, "NoneType", None, None, None),
        (np.float32(1), "float32", None, None, None),
        (np.array([None]), "ndarray", None, None, None),
    ],
)
def test_a_value_is_described(
    value: Any, kind: str, shape: list[int] | None, dtype: str | None, size: int | None
) -> None:
    expected = {"type": kind, "shape": shape, "dtype": dtype, "bytes": size}
    assert codec.describe(value) == expected


def test_the_size_of_a_text_or_a_memoryview_is_in_bytes() -> None:
    assert codec.describe(memoryview(np.zeros(4, dtype=np.int32).data))["bytes"] == 16
    assert codec.describe("é" * 10)["bytes"] == 20


def test_a_lazy_array_is_described_without_computing_it() -> None:
    # No machine has the memory to evaluate it.
    lazy = mx.zeros((2**20, 2**20, 2**4)) + 1
    assert codec.describe(lazy)["bytes"] == 2**46


# -- several values in one message ----------------------------------------------------------------


def test_values_of_all_kinds_travel_in_one_message() -> None:
    values = {"a": np.arange(3), "b": [1, 2], "c": mx.array([1.5]), "d": None}
    content, buffers = transfer._packed(values)
    assert [row["name"] for row in content["values"]] == list(values)
    reply = Reply(0, content, [memoryview(bytes(part)) for part in buffers])
    a, b, c, d = transfer._unpacked(reply)
    assert a.tolist() == [0, 1, 2]
    assert (b, c.tolist(), d) == ([1, 2], [1.5], None)


@pytest.mark.parametrize("value", [3, None, np.array(1.0), {1, 2}, {"a": 1, "b": 2}], ids=repr)
def test_a_value_without_a_first_axis_cannot_be_scattered(value: Any) -> None:
    ranks: Sequence[int] = [0, 1]
    with pytest.raises(TransferError) as caught:
        transfer.scatter(NOBODY, "x", value, ranks)
    assert "'x'" in caught.value.what
    assert type(value).__name__ in caught.value.what
    assert caught.value.why
    assert "%push" in caught.value.do
