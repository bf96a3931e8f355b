"""Copies between arrays of doubles and the lanes of arrays of vectors."""

from __future__ import annotations

from nbqp.kernels.jit import kernel
from nbqp.kernels.number import lanes_of
from nbqp.kernels.vector import WIDTH


@kernel
def put(values, vectors, lane):
    """Copy doubles to a lane of vectors."""
    lanes = lanes_of(vectors)
    for i in range(len(values)):
        lanes[WIDTH * i + lane] = values[i]


@kernel
def take(vectors, lane, values):
    """Copy a lane of vectors to doubles."""
    lanes = lanes_of(vectors)
    for i in range(len(values)):
        values[i] = lanes[WIDTH * i + lane]


@kernel
def move(source, lane, target, into):
    """Copy a lane of vectors to a lane of others."""
    values = lanes_of(source)
    lanes = lanes_of(target)
    for i in range(len(source)):
        lanes[WIDTH * i + into] = values[WIDTH * i + lane]
