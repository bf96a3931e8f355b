"""Copies between arrays of doubles and the lanes of arrays of vectors."""

from __future__ import annotations

from nbqp.kernels.jit import kernel
from nbqp.kernels.number import lanes_of
from nbqp.kernels.vector import WIDTH, splat, store


@kernel
def put(values, vectors, lane):
    """Copy doubles to a lane of vectors."""
    lanes = lanes_of(vectors)
    for i in range(len(values)):
        lanes[WIDTH * i + lane] = values[i]


@kernel
def spread(values, vectors):
    """Copy doubles to all lanes of vectors."""
    for i in range(len(values)):
        store(vectors, i, splat(values[i]))


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


@kernel
def put_scales(problem, wide, lane):
    """Copy what takes a scaled problem to the user's units to a lane of eight."""
    put(problem.D, wide.D, lane)
    put(problem.E, wide.E, lane)
    put(problem.F, wide.F, lane)
    put(problem.cost, wide.cost, lane)


@kernel
def spread_scales(problem, wide):
    """`put_scales` to all lanes."""
    spread(problem.D, wide.D)
    spread(problem.E, wide.E)
    spread(problem.F, wide.F)
    spread(problem.cost, wide.cost)


@kernel
def take_scales(wide, lane, problem):
    """The inverse of `put_scales`."""
    take(wide.D, lane, problem.D)
    take(wide.E, lane, problem.E)
    take(wide.F, lane, problem.F)
    take(wide.cost, lane, problem.cost)


@kernel
def move_iterate(it, lane, target, into):
    """Move a point and its products to a lane of another iterate."""
    move(it.x, lane, target.x, into)
    move(it.y, lane, target.y, into)
    move(it.z, lane, target.z, into)
    move(it.Hx, lane, target.Hx, into)
    move(it.dual, lane, target.dual, into)
    move(it.e, lane, target.e, into)
    move(it.v, lane, target.v, into)
