"""Records of arrays that compiled code passes by reference.

A named tuple of arrays is passed by value: seven numbers and a reference count for each array at
each call, which multiplied the time to compile. Numba's `structref` passes one pointer. Such records
live and die inside an entry; what crosses from Python stays a named tuple, whose dispatch is faster.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core import types
from numba.experimental import structref


def struct(cls: type) -> Any:
    """Make a class of annotated fields constructible and readable in kernels.

    Under NUMBA_DISABLE_JIT it becomes a plain Python class with the same fields.
    """
    fields = list(cls.__annotations__)
    if numba.config.DISABLE_JIT:

        def __init__(self: Any, *values: Any) -> None:
            for field, value in zip(fields, values, strict=True):
                setattr(self, field, value)

        cls.__init__ = __init__  # type: ignore[misc]
        return cls

    @structref.register
    class Type(types.StructRef):  # type: ignore[misc]
        def preprocess_fields(self, fields: Any) -> Any:
            return tuple((name, types.unliteral(kind)) for name, kind in fields)

    Type.__name__ = Type.__qualname__ = f"{cls.__name__}Type"
    Type.__module__ = cls.__module__
    proxy = type(cls.__name__, (structref.StructRefProxy,), {"__doc__": cls.__doc__})
    proxy.__module__ = cls.__module__
    structref.define_proxy(proxy, Type, fields)
    return proxy


def reference(cls: type) -> Any:
    """The record with the fields of a named tuple, for passing it on by reference."""
    return struct(
        type(
            f"{cls.__name__}Reference",
            (),
            {
                "__annotations__": dict(cls.__annotations__),
                "__module__": cls.__module__,
                "__doc__": cls.__doc__,
            },
        )
    )
