"""What Python and kernels exchange: named tuples of arrays and integers, and arrays of one kind.

Named tuples rather than jitclasses: those miss the on-disk cache in every new process. Kernels pass
them on by reference (`struct`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nbqp.kernels.jit import kernel
from nbqp.kernels.struct import reference

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Sides = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]


def kernel_array(array: npt.ArrayLike, dtype: type = np.float64) -> npt.NDArray[Any]:
    """The array in the one layout that kernels are compiled for, copied where it has another.

    Numba would compile an entry once more for arrays that are read-only, unaligned or transposed.
    """
    # np.require says the same, and takes ten times as long.
    found = np.asarray(array, dtype, order="C")
    return found if found.flags.writeable and found.flags.aligned else found.copy()


class Pattern(NamedTuple):
    """Sizes of a QP and the patterns of its matrices, by columns (CSC).

    H is stored whole (both triangles). Row indices ascend within each column.
    """

    n: int
    n_eq: int
    n_in: int
    Hp: Ints
    Hi: Ints
    Ap: Ints
    Ai: Ints
    Cp: Ints
    Ci: Ints


class Data(NamedTuple):
    """The values of one or many QPs of a pattern, in the user's units.

    Each is two-dimensional; its first axis is the batch, or 1 for a datum that all share.
    Absent bounds are +-inf.
    """

    H: Floats
    g: Floats
    A: Floats
    b: Floats
    C: Floats
    l: Floats
    u: Floats
    lb: Floats
    ub: Floats


class Scaling(NamedTuple):
    """D, E, F of `scaling`, each (batch, size), 0 for samples without, or (1, size) where all share their matrices."""

    D: Floats
    E: Floats
    F: Floats


class Point(NamedTuple):
    """Primal-dual points or right-hand sides (batch or 1, size); (0, size) where there is none."""

    x: Floats
    y: Floats
    z: Floats
    z_box: Floats


class Shifts(NamedTuple):
    """Shifts of rows and bounds, or what belongs to them (batch, size)."""

    s_e: Floats
    s_i: Floats
    s_box: Floats


class Output(NamedTuple):
    """What a range of solves writes, a row a sample."""

    x: Floats
    y: Floats
    z: Floats
    z_box: Floats
    s_e: Floats
    s_i: Floats
    s_box: Floats
    status: Ints
    residuals: Floats  # (batch, 3): primal, dual, gap
    iter: Ints
    iter_ext: Ints
    factorizations: Ints
    certificate_x: Floats
    certificate_y: Floats
    certificate_z: Floats
    certificate_z_box: Floats


class Factor(NamedTuple):
    """The symbolic LDL' factorisation of a symmetric N x N matrix, as a sequence of panels.

    Panel J holds the columns `first[J] : first[J+1]` of L; all of them have the rows
    `rows[row_ptr[J] : row_ptr[J+1]]`, of which the first ones are the columns themselves. Its
    values are dense, by columns, from `val_ptr[J]` on. Panel J is updated by the panels
    `update_panel[e]`, e in `update_ptr[J] : update_ptr[J+1]`; their rows
    `update_first[e] : update_last[e]` are columns of J.
    """

    perm: Ints  # perm[k] = original index of the k-th pivot
    position: Ints  # inverse of perm
    first: Ints
    row_ptr: Ints
    rows: Ints
    val_ptr: Ints
    update_ptr: Ints
    update_panel: Ints
    update_first: Ints
    update_last: Ints


class Entries(NamedTuple):
    """Where the entries of the KKT matrix stand among the values of its factor.

    -1 for an entry of H below its diagonal, whose mirror image is stored.
    """

    H: Ints
    A: Ints
    C: Ints
    diagonal: Ints  # by original index: n variables, n_eq equalities, n_in inequalities
    panel: Ints  # which one eliminates it, by original index
    gaps: Ints  # where no entry of H, A or C stands: the begin and the end of each run of values


PatternReference = reference(Pattern)
FactorReference = reference(Factor)
EntriesReference = reference(Entries)


DataReference = reference(Data)
ScalingReference = reference(Scaling)
PointReference = reference(Point)
OutputReference = reference(Output)


@kernel
def shares_matrices(scaling):
    """Whether one scaling serves all samples: these share their matrices then."""
    return len(scaling.D) == 1


@kernel
def sample(values, k):
    """Row k of a datum, or the only row of a shared one."""
    return values[k if len(values) > 1 else 0]


@kernel
def sample_data(data, k):
    """The data of sample k, each one-dimensional."""
    return DataReference(
        sample(data.H, k),
        sample(data.g, k),
        sample(data.A, k),
        sample(data.b, k),
        sample(data.C, k),
        sample(data.l, k),
        sample(data.u, k),
        sample(data.lb, k),
        sample(data.ub, k),
    )
