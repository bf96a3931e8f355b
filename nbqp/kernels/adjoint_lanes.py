"""The systems of `adjoint` eight at once, each in a lane of vectors: regular ones, without shifts."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.adjoint import (
    ACCEPTED,
    KEPT,
    REFINED,
    REFINEMENTS,
    REGULAR,
    add_shift_gradients,
    any_open,
    factor_kkt,
    find_null_vector,
    scale_for_adjoint,
    set_active_weights,
    set_right_side,
    write_solution,
)
from nbqp.kernels.jit import entry
from nbqp.kernels.kkt import refine_unregularised
from nbqp.kernels.lanes import put, put_scales, spread, spread_scales, take, take_scales
from nbqp.kernels.state import new_iterate, new_problem, new_system
from nbqp.kernels.structure import (
    EntriesReference,
    FactorReference,
    PatternReference,
    sample,
    sample_data,
    shares_matrices,
)
from nbqp.kernels.vector import WIDTH, splat, store


@entry
def solve_kkt_lanes_range(
    pattern_values,
    factor_values,
    entries_values,
    data,
    scaling,
    side,
    side_box,
    r,
    r_s,
    closest,
    abort,
    begin,
    end,
    solution,
    code,
):
    """Solve the systems of those of the samples begin..end-1 that have a regular matrix.

    Arguments as those of `adjoint.solve_kkt_range`, without `adjoint` and b4; the others stay OPEN for it.
    Codes of a sample are OPEN for all its right-hand sides or for none.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    m = pattern.n_in + pattern.n
    problem = new_problem(0.0, pattern)
    point = new_iterate(0.0, pattern)
    wide = new_problem(splat(0.0), pattern)
    system = new_system(splat(0.0), pattern, factor, abort)
    w = np.empty(m)
    r1 = np.empty((WIDTH, pattern.n))
    r2 = np.empty((WIDTH, pattern.n_eq))
    r3 = np.empty((WIDTH, m))
    members = np.empty(WIDTH, dtype=np.int64)
    replaced = np.empty(WIDTH)
    before = np.empty(WIDTH)
    after = np.empty(WIDTH)
    error = np.empty(WIDTH)
    # An empty batch has no first sample.
    if begin < end and shares_matrices(scaling):
        scale_for_adjoint(pattern, scaling, 0, sample_data(data, 0), abort, problem)
        spread(problem.H, wide.H)
        spread(problem.A, wide.A)
        spread(problem.C, wide.C)
        spread_scales(problem, wide)
    following = begin
    while following < end and abort[0] == 0:
        count = 0
        while count < WIDTH and following < end:
            k = following
            following += 1
            if closest[k] or not any_open(code[k]):
                continue
            if not shares_matrices(scaling):
                scale_for_adjoint(pattern, scaling, k, sample_data(data, k), abort, problem)
                put(problem.H, wide.H, count)
                put(problem.A, wide.A, count)
                put(problem.C, wide.C, count)
                put_scales(problem, wide, count)
            set_active_weights(side[k], side_box[k], w)
            put(w, system.w, count)
            members[count] = k
            count += 1
        if count == 0:
            break
        store(replaced, 0, factor_kkt(pattern, factor, entries, wide, system))
        previous, size = find_null_vector(pattern, factor, system)
        store(before, 0, previous)
        store(after, 0, size)
        # What fills lanes without a QP is done with at once.
        r1[count:] = 0.0
        r2[count:] = 0.0
        r3[count:] = 0.0
        for i in range(code.shape[1]):
            if abort[0] != 0:
                return
            for lane in range(count):
                k = members[lane]
                take_scales(wide, lane, problem)
                set_right_side(
                    pattern,
                    problem,
                    sample(data.A, k),
                    sample(data.C, k),
                    side[k],
                    side_box[k],
                    r,
                    r_s,
                    k * code.shape[1] + i,
                    r1[lane],
                    r2[lane],
                    r3[lane],
                )
            for lane in range(WIDTH):
                put(r1[lane], system.r1, lane)
                put(r2[lane], system.r2, lane)
                put(r3[lane], system.r3, lane)
            relative = refine_unregularised(
                pattern, factor, wide.H, wide.A, wide.C, system, REFINED, REFINEMENTS
            )
            store(error, 0, relative)
            for lane in range(count):
                k = members[lane]
                has_null = after[lane] > KEPT * before[lane]
                if replaced[lane] > 0.0 or has_null or not error[lane] <= ACCEPTED:
                    continue
                code[k, i] = REGULAR
                row = k * code.shape[1] + i
                take_scales(wide, lane, problem)
                take(system.dx, lane, point.x)
                take(system.dy, lane, point.y)
                take(system.dz, lane, point.z)
                write_solution(pattern, problem, side_box[k], r3[lane], point, solution, row)
                add_shift_gradients(side[k], side_box[k], r_s, solution, row)
