"""Values to bytes and back: msgpack, with what a crawl's messages may hold and hard limits on both ways.

Kept exactly: None, bool, int of any size, float, str (lone surrogates too), bytes, list, tuple, set, dict with any
hashable of these as key, datetime, date, Decimal. Nothing else, and no subclass: what comes out is what went in.
But for text: a subclass of str, as lxml's strings and Scrapy's link texts are, comes out as the equal str.
Nothing read here names code.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import msgpack

from bus.errors import CodecError, OverLimit

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "SCHEMA", "pack", "pack_array", "unpack"]

SCHEMA = 1  # the version of every message this code writes; it reads all up to it
MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 64
MAX_VALUES = 100_000

_TUPLE, _SET, _INT, _DATETIME, _DATE, _DECIMAL = range(1, 7)
_CONTAINERS = frozenset({dict, list, tuple, set})
_SCALARS = frozenset({type(None), bool, int, float, str, bytes, datetime, date, Decimal})


def pack(value: Any) -> bytes:
    """The bytes of a value. Raises `CodecError` with the path of what may not travel, `OverLimit` past a limit."""
    try:
        data: bytes = _packb(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _explain(value, error) from None
    if len(data) > MAX_BYTES:
        raise OverLimit(f"{len(data):,} bytes, {MAX_BYTES:,} are allowed")
    _check_shape(value)
    return data


def unpack(data: bytes) -> Any:
    """The value of bytes that `pack` wrote. Raises `CodecError` for anything else, `OverLimit` past a limit."""
    if len(data) > MAX_BYTES:
        raise OverLimit(f"{len(data):,} bytes, {MAX_BYTES:,} are allowed")
    try:
        value = _unpackb(data)
    except CodecError:
        raise
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        RecursionError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise CodecError(f"not a message: {type(error).__name__}") from None
    _check_shape(value)
    return value


def pack_array(packed: list[bytes]) -> bytes:
    """One array out of values that are packed already."""
    header: bytes = msgpack.Packer().pack_array_header(len(packed))
    return header + b"".join(packed)


def _packb(value: Any) -> bytes:
    data: bytes = msgpack.packb(value, strict_types=True, default=_extend, unicode_errors="surrogatepass")
    return data


def _unpackb(data: bytes) -> Any:
    return msgpack.unpackb(
        data, strict_map_key=False, ext_hook=_restore, unicode_errors="surrogatepass", max_ext_len=MAX_BYTES
    )


def _extend(value: Any) -> msgpack.ExtType | str:
    kind = type(value)
    if isinstance(value, str):
        return str.__str__(value)
    if kind is tuple:
        return msgpack.ExtType(_TUPLE, _packb(list(value)))
    if kind is set:
        return msgpack.ExtType(_SET, _packb(list(value)))
    if kind is int:
        return msgpack.ExtType(_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if kind is datetime:
        return msgpack.ExtType(_DATETIME, _datetime_text(value).encode())
    if kind is date:
        return msgpack.ExtType(_DATE, value.isoformat().encode())
    if kind is Decimal:
        return msgpack.ExtType(_DECIMAL, str(value).encode())
    raise TypeError(f"a value of type {kind.__name__} cannot travel")


def _datetime_text(value: datetime) -> str:
    offset = value.utcoffset()
    if value.tzinfo is not None and offset is None:
        raise TypeError("a datetime whose zone gives no offset cannot travel")
    return value.isoformat() + (";1" if value.fold else "")


def _restore(code: int, data: bytes) -> Any:
    if code == _TUPLE:
        return tuple(_array(data))
    if code == _SET:
        return set(_array(data))
    if code == _INT:
        return int.from_bytes(data, "big", signed=True)
    if code == _DATETIME:
        text, _, fold = data.decode().partition(";")
        return datetime.fromisoformat(text).replace(fold=1 if fold else 0)
    if code == _DATE:
        return date.fromisoformat(data.decode())
    if code == _DECIMAL:
        return Decimal(data.decode())
    raise CodecError(f"unknown kind of value {code}")


def _array(data: bytes) -> list[Any]:
    value = _unpackb(data)
    if not isinstance(value, list):
        raise CodecError("a tuple or set that holds no array")
    return value


def _check_shape(value: Any) -> None:
    """Depth and number of values; only containers are walked."""
    if type(value) not in _CONTAINERS:
        return
    count, depth, level = 1, 1, [value]
    while level:
        below: list[Any] = []
        for container in level:
            is_map = type(container) is dict
            count += len(container) * (2 if is_map else 1)
            if count > MAX_VALUES:
                raise OverLimit(f"more than {MAX_VALUES:,} values")
            below += container  # of a map: its keys
            if is_map:
                below += container.values()
        level = [child for child in below if type(child) in _CONTAINERS]
        depth += 1
        if level and depth > MAX_DEPTH:
            raise OverLimit(f"deeper than {MAX_DEPTH}")


def _explain(value: Any, error: Exception) -> CodecError:
    """The path of the first value that cannot travel, found only once packing has failed."""
    try:
        _check_shape(value)
    except OverLimit as over:
        return over
    found = _first_bad(value, "")
    return found or CodecError(str(error) or type(error).__name__)


def _first_bad(value: Any, path: str) -> CodecError | None:
    walk: Callable[[Any, str], CodecError | None] = _first_bad
    kind = type(value)
    if kind is dict:
        for key, child in value.items():
            below = f"{path}.{key}" if path else str(key)
            if (bad := walk(key, f"key {below}") or walk(child, below)) is not None:
                return bad
        return None
    if kind in _CONTAINERS:
        return next((bad for i, child in enumerate(value) if (bad := walk(child, f"{path}[{i}]"))), None)
    if kind in _SCALARS or isinstance(value, str):
        try:
            _packb(value)
        except (TypeError, ValueError, OverflowError) as error:
            return CodecError(str(error), path)
        return None
    return CodecError(f"a value of type {kind.__module__}.{kind.__qualname__} cannot travel", path)
