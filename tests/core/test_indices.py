"""Compiled code takes indices as they are: a negative one does not count from the end (`nbqp.kernels.jit`)."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import pytest

from nbqp.kernels.jit import entry


def read(a, i):
    return a[i]


def write(a, i):
    a[i] = 1.0


def read_plane(a, i):
    return a.reshape(2, 2)[0, i]


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="Python counts from the end")
@pytest.mark.parametrize("access", [read, write, read_plane])
def test_a_negative_index_is_out_of_bounds(
    access: Callable[[np.ndarray, int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1)
    compiled = entry(access)
    compiled(np.zeros(4), 1)
    with pytest.raises(IndexError):
        compiled(np.zeros(4), -1)
