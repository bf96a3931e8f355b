"""What is known of a problem before its numbers, and the problem that it makes of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse

import nbqp
from nbqp.kept import Kept
from nbqp.problem import MATRICES, QP, VECTOR_NAMES
from nbqp.stored_pattern import StoredPattern

OnFailure = Literal["raise", "nan", "keep"]
Array = npt.NDArray[Any]
Arrays = Sequence[Array]
Stored = dict[str, tuple[tuple[int, int], Arrays]]
"""Sparse matrices by name: the shape, and values, indices and indptr of CSC."""

KEPT, BYTES_KEPT = 32, 2**26
"""Problems of the latest calls are kept, so many, whose matrices have so many bytes together at most.

What is kept with them, their values as a key and the analysis of their pattern, takes several times that.
"""


def check_on_failure(value: Any) -> None:
    """Raise `nbqp.SettingsError` unless this is an `OnFailure`."""
    if value not in get_args(OnFailure):
        *others, last = (f'"{known}"' for known in get_args(OnFailure))
        raise nbqp.SettingsError(
            f"on_failure: expected {', '.join(others)} or {last}, got {value!r}."
        )


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a problem before its numbers: hashable, and JSON as an input of the ops.

    Parameters
    ----------
    n
        The number of variables.
    dense
        Names of the data that are tensors, in the order in which they are passed.
    sparse
        Names and shapes of the constant CSC matrices; each is passed as data, indices, indptr.
    patterns
        Names and shapes of the matrices whose tensors are values on a pattern of CSC, which is passed as
        indices, indptr.
    settings, on_failure
        As in `solve_qp`.
    order
        Of the derivative that the linear solve belongs to.
    warm
        Whether a warm start, x, y, z, z_box, follows the data.
    """

    n: int
    dense: tuple[str, ...]
    sparse: tuple[tuple[str, tuple[int, int]], ...]
    settings: nbqp.Settings
    on_failure: OnFailure
    patterns: tuple[tuple[str, tuple[int, int]], ...] = ()
    order: int = 1
    warm: bool = False

    def to_json(self) -> str:
        """A text from which `from_json` makes an equal description."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def from_json(text: bytes) -> Description:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        for key in ("sparse", "patterns"):
            fields[key] = tuple((name, (shape[0], shape[1])) for name, shape in fields[key])
        fields |= {
            "dense": tuple(fields["dense"]),
            "settings": nbqp.Settings(**fields["settings"]),
        }
        return Description(**fields)

    def problem(self, arrays: Arrays, batch: int | None = None) -> QP:
        """The batch of QPs with these data; batch: how many, of an adjoint, which has matrices and no vectors.

        What has been found of matrices without a batch axis serves all calls with the same ones: those of a
        layer with constant matrices, and the gradient's after the solution's.
        """
        given = dict(zip(self.dense, arrays, strict=False))
        parts = iter(arrays[len(self.dense) :])
        stored: Stored = {
            name: (shape, (next(parts), next(parts), next(parts))) for name, shape in self.sparse
        }
        for name, shape in self.patterns:
            stored[name] = shape, (given.pop(name), next(parts), next(parts))
        full = {name: given.pop(name) for name in MATRICES if name in given}
        shapes = {name: matrix.shape for name, matrix in full.items()}
        shapes |= {name: shape for name, (shape, _) in stored.items()}
        if batch is not None:
            given = _zero_vectors((batch, self.n), shapes)
        by_name = {name: given.get(name) for name in VECTOR_NAMES}
        if any(matrix.ndim == 3 for matrix in full.values()) or any(
            values.ndim == 2 for _, (values, *_) in stored.values()
        ):
            return self._new_problem(full, stored, by_name)
        contents: list[Array] = [
            *full.values(),
            *itertools.chain(*(found for _, found in stored.values())),
        ]
        known = problems.find(
            sum(array.nbytes for array in contents),
            lambda: (self.n, *shapes.items(), *(array.tobytes() for array in contents)),
            lambda: self._new_problem(full, stored, _zero_vectors((self.n,), shapes)),
        )
        return known.with_vectors(by_name) if batch is None else known.repeated(batch)

    def _new_problem(
        self, full: dict[str, Array], stored: Stored, vectors: Mapping[str, Array | None]
    ) -> QP:
        matrices: dict[str, Any] = dict(full)
        patterns = dict(self.patterns)
        for name, (shape, (values, indices, indptr)) in stored.items():
            if name in patterns:
                pattern = _pattern(shape, indices.tobytes(), indptr.tobytes())
                matrices[name] = nbqp.Sparse(pattern, values)
            else:
                matrices[name] = scipy.sparse.csc_array((values, indices, indptr), shape=shape)
        return QP(**matrices, **vectors, batch=True)


problems = Kept[QP](KEPT, BYTES_KEPT)


def _zero_vectors(
    shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """The vectors that a problem cannot do without, given the shape of g and those of its matrices."""
    vectors = {"g": np.zeros(shape)}
    return {**vectors, "b": np.zeros(shapes["A"][-2])} if "A" in shapes else vectors


@functools.lru_cache(maxsize=32)
def _pattern(shape: tuple[int, int], indices: bytes, indptr: bytes) -> StoredPattern:
    """A pattern by columns of int64, which takes longer to make than to find again."""
    i, p = (np.frombuffer(part, dtype=np.int64) for part in (indices, indptr))
    return StoredPattern(scipy.sparse.csc_array((np.ones(len(i)), i, p), shape=shape))
