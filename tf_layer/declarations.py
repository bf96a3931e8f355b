"""How a datum of a `QPLayer` is declared: absent, constant, `Learned` or `Input`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np
import scipy.sparse

import nbqp
from nbqp.problem import MATRICES, ROUNDINGS
from nbqp.sparse import to_pattern
from nbqp.stored_pattern import StoredPattern, with_order

PACKAGE = "nbqp"
INDICES = {"csc": ("indices", "indptr"), "csr": ("indices", "indptr"), "coo": ("row", "col")}
"""Index arrays of the formats that are kept."""


def _stored(name: str, pattern: Any) -> StoredPattern | None:
    """The pattern of a scipy.sparse matrix, None for anything else."""
    return to_pattern(name, pattern) if scipy.sparse.issparse(pattern) else None


@keras.saving.register_keras_serializable(package=PACKAGE)
class Input:
    """A datum that is given when the layer is called.

    Parameters
    ----------
    pattern
        For H, A and C: a scipy.sparse matrix whose entries' places are known, if only their values are
        given: (batch, nnz) in the order of its `data`.

    Attributes
    ----------
    pattern : StoredPattern or None

    Raises
    ------
    nbqp.ShapeError
        The pattern is no matrix of scipy.sparse, or has an entry twice.

    Examples
    --------
    >>> import numpy as np
    >>> from tf_layer import Input, QPLayer
    >>> layer = QPLayer(H=[[1.0]], C=[[1.0]], u=Input())
    >>> layer({"g": np.array([[-2.0]]), "u": np.array([[1.0]])}).numpy().round(4)
    array([[1.]], dtype=float32)
    """

    def __init__(self, pattern: Any = None) -> None:
        self.pattern = _stored("Input.pattern", pattern)
        if self.pattern is None and pattern is not None:
            raise nbqp.ShapeError(
                f"Input.pattern: expected None or a scipy.sparse matrix, got {_described(pattern)}."
            )

    def get_config(self) -> dict[str, Any]:
        """The arguments, as Keras saves them."""
        return {"pattern": _serialised(self.pattern)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Input:
        """A declaration as it was saved."""
        return cls(deserialise(config["pattern"]))


@keras.saving.register_keras_serializable(package=PACKAGE)
class Learned:
    """A datum that is a trainable weight of the layer.

    A learned H of shape (n, n) is H = L'L + eps I with the weight L, so that no step makes it
    indefinite.

    Parameters
    ----------
    shape
        Of the datum; for H, of the factor L: (rank, n). Or, for H, A and C, a scipy.sparse matrix: the
        weight (nnz,) has the values at its entries, in the order of its `data`.
    initializer, regularizer, constraint
        As in `keras.layers.Layer.add_weight`; without an initializer a dense weight starts at
        "glorot_uniform", a sparse one at the values of the matrix.
    eps
        For H only: the least eigenvalue.

    Attributes
    ----------
    shape : tuple of int
        Of the datum, or of L.
    pattern : StoredPattern or None

    Raises
    ------
    nbqp.ShapeError
        The shape is not one of positive integers, and no matrix of scipy.sparse with each entry once.
    nbqp.SettingsError
        eps is not a number of at least 0.
    """

    def __init__(
        self,
        shape: Any,
        initializer: Any = None,
        regularizer: Any = None,
        constraint: Any = None,
        eps: float = 1e-4,
    ) -> None:
        if not is_weight(eps):
            raise nbqp.SettingsError(f"Learned.eps: expected a number of at least 0, got {eps!r}.")
        self.pattern = _stored("Learned.shape", shape)
        if self.pattern is not None:
            self.shape: tuple[int, ...] = self.pattern.shape
            values = np.array(with_order(shape).data, dtype=np.float64)
            default: Any = keras.initializers.Constant(values)
        else:
            self.shape = _sizes(shape)
            default = "glorot_uniform"
        self.initializer = keras.initializers.get(default if initializer is None else initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)
        self.eps = float(eps)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.shape if self.pattern is None else (self.pattern.size,)

    def get_config(self) -> dict[str, Any]:
        """The arguments, as Keras saves them."""
        return {
            "shape": list(self.shape) if self.pattern is None else _serialised(self.pattern),
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
            "eps": self.eps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Learned:
        """A declaration as it was saved."""
        return cls(**{**config, "shape": deserialise(config["shape"])})


def _sizes(shape: Any) -> tuple[int, ...]:
    sizes: tuple[Any, ...] = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if not all(isinstance(s, Integral) and not isinstance(s, bool) and int(s) > 0 for s in sizes):
        raise nbqp.ShapeError(f"Learned.shape: expected positive integers, got {shape!r}.")
    return tuple(int(s) for s in sizes)


def _serialised(pattern: StoredPattern | None) -> Any:
    """A pattern, in its format and order, as JSON."""
    return None if pattern is None else serialise(pattern.with_values(np.ones(pattern.size)))


def is_weight(value: Any) -> bool:
    """Whether this is a finite number of at least 0, and not True or False."""
    return (
        isinstance(value, Real) and not isinstance(value, bool) and 0.0 <= float(value) < math.inf
    )


def serialise(value: Any) -> Any:
    """A declaration as JSON: None, a number, an array, a sparse matrix, `Learned` or `Input`."""
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, (Input, Learned)):
        return keras.saving.serialize_keras_object(value)
    if scipy.sparse.issparse(value):
        kept = with_order(value)
        parts = {k: getattr(kept, k).tolist() for k in ("data", *INDICES[kept.format])}
        return {"sparse": parts, "format": kept.format, "shape": list(kept.shape)}
    return {"dense": value.tolist()}


def deserialise(config: Any) -> Any:
    """The inverse of `serialise`."""
    if not isinstance(config, dict):
        return config
    if "sparse" in config:
        parts, form = config["sparse"], config["format"]
        data, *index = (np.array(parts[k]) for k in ("data", *INDICES[form]))
        where = (tuple(index),) if form == "coo" else index
        make = getattr(scipy.sparse, f"{form}_array")
        return make((data.astype(np.float64), *where), shape=tuple(config["shape"]))
    if "dense" in config:
        return np.array(config["dense"], dtype=np.float64)
    return keras.saving.deserialize_keras_object(config)


def in_double_precision(H: Any) -> Any:
    """A copy of H, symmetrised where it is symmetric to within the rounding of its own dtype.

    An H that is not stays as it is, for the solver to refuse.
    """
    double = H.astype(np.float64)
    if (
        H.dtype.kind != "f"
        or H.dtype.itemsize >= double.dtype.itemsize
        or H.shape[-1] != H.shape[-2]
    ):
        return double
    mirrored = double.T if scipy.sparse.issparse(H) else np.swapaxes(double, -1, -2)
    skew, size = abs(double - mirrored).max(), abs(double).max()
    return 0.5 * (double + mirrored) if skew <= ROUNDINGS * np.finfo(H.dtype).eps * size else double


def require_sparse(name: str, value: Any) -> None:
    """Refuse sparse vectors, and numbers that a cast would change without a word."""
    if name not in MATRICES:
        raise nbqp.ShapeError(f"{name}: expected a dense vector, got {type(value).__name__}.")
    if value.dtype.kind not in "fiub":
        raise nbqp.ShapeError(f"{name}: expected real numbers, got dtype {value.dtype}.")


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{type(value).__name__} of dtype {dtype}"


def declare(name: str, value: Any) -> Any:
    """What the user gave for a datum, in one of the forms that `serialise` knows; arrays copied."""
    if value is None or isinstance(value, (Input, Learned)):
        return value
    if value is Input:
        return Input()
    if scipy.sparse.issparse(value):
        require_sparse(name, value)
        return in_double_precision(value) if name == "H" else value.copy()
    try:
        given = np.asarray(value)
        # Complex numbers would lose a part, with a warning only.
        array = np.array(given, dtype=np.float64) if given.dtype.kind != "c" else None
        if name == "H" and given.dtype.kind == "f" and given.ndim > 1:
            array = in_double_precision(given)
    except (TypeError, ValueError):
        array = None
    if array is None:
        raise nbqp.ShapeError(
            f"{name}: expected None, real numbers, Learned or Input, got {_described(value)}."
        )
    return float(array) if array.ndim == 0 else array
