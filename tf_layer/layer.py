"""`QPLayer`: a Keras layer whose output is the solution of a QP."""

from __future__ import annotations

import dataclasses
import math
from numbers import Integral
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import nbqp
from nbqp.problem import MATRICES, NAMES
from nbqp.settings import to_settings
from tf_layer.declarations import (
    PACKAGE,
    Input,
    Learned,
    declare,
    deserialise,
    is_weight,
    serialise,
)
from tf_layer.description import OnFailure, check_on_failure
from tf_layer.op import QPOutput, solve_for_x, solve_qp
from tf_layer.patterns import gram, product

INDEX = "index"
"""The input that tells which samples these are, for a warm start."""


@keras.saving.register_keras_serializable(package=PACKAGE)
class QPLayer(keras.layers.Layer):  # type: ignore[misc]
    """x = argmin 1/2 x'Hx + g'x  subject to  Ax = b,  l <= Cx <= u,  lb <= x <= ub.

    Each datum is absent (None), constant (numbers, an array, a scipy.sparse matrix, which stays
    sparse), `Learned`, or an `Input` of the layer; g is an input unless said otherwise.

    Parameters
    ----------
    H, g, A, b, C, l, u, lb, ub
        Declarations. A learned H has the factor L: H = L'L + eps I. `Learned` and `Input` may have a
        sparse pattern, and values that learn or vary on it.
    feasible
        Make the QP feasible whatever its matrices (Bambade et al. 2024, section 4): with a
        trainable z0 = exp(log_z0) > 0, b = A z0, and u = C z0 + exp(log_slack). Then b, l and u
        must be absent, and lb <= 0 and ub absent, so that z0 keeps them.
    settings
        See `nbqp.Settings`.
    on_failure
        About a sample that is not solved: "raise" (names it and its status); "nan"; "keep": its
        best iterate, without a gradient.
    return_solution
        Return a `QPOutput` (x, y, z, z_box, s_e, s_i, s_box, status, newton_steps) instead of x.
    warm_start
        Number of samples that the layer remembers the last solution of, to start there the next time:
        where an epoch moves the data by less than a few per cent it then takes fewer Newton steps. The layer has
        a further input "index" (batch,), integers from 0, -1 for samples that it does not know. It
        remembers in training; the solutions, in its variable dtype, are saved with its weights.
    violation
        Weight of the loss that the layer adds, the mean over the batch of |s_e| + |s_i| + |s_box| in
        the l2 norm (Bambade et al. 2024): it draws the constraints towards feasible ones. Needs
        `Settings(primal_infeasibility_solving=True)`.

    Raises
    ------
    nbqp.QPError
        A declaration does not fit the others; the first line names it.

    Notes
    -----
    Input shape: (batch, n) for g; several inputs as a dict {"g": ..., "b": ...}, each with a
    leading batch axis. Output shape: (batch, n).

    Weights have the layer's variable dtype, the QP is solved in double precision, and the output
    has the compute dtype. The layer does not run under XLA (`supports_jit` is False).

    References
    ----------
    Bambade, Schramm, Taylor, Carpentier, *Leveraging augmented-Lagrangian techniques for
    differentiating over infeasible quadratic programs in machine learning*, ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from tf_layer import Learned, QPLayer
    >>> layer = QPLayer(H=np.eye(3), A=Learned((1, 3), "ones"), lb=0.0, feasible=True)
    >>> layer(np.array([[-1.0, 0.0, 1.0]])).numpy().round(4)
    array([[2., 1., 0.]], dtype=float32)
    """

    def __init__(
        self,
        H: Any = None,
        g: Any = Input,
        A: Any = None,
        b: Any = None,
        C: Any = None,
        l: Any = None,
        u: Any = None,
        lb: Any = None,
        ub: Any = None,
        *,
        feasible: bool = False,
        settings: nbqp.Settings | None = None,
        on_failure: OnFailure = "raise",
        return_solution: bool = False,
        violation: float = 0.0,
        warm_start: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        given = {"H": H, "g": g, "A": A, "b": b, "C": C, "l": l, "u": u, "lb": lb, "ub": ub}
        self.data = {name: declare(name, value) for name, value in given.items()}
        self.feasible = feasible
        self.settings = to_settings(settings)
        self.on_failure = on_failure
        self.return_solution = return_solution
        self.violation = violation
        self.warm_start = warm_start
        self.memory: list[Any] = []
        self.learned: dict[str, Any] = {}
        self._check()

    def _check(self) -> None:
        data = self.data
        if data["g"] is None:
            raise nbqp.ShapeError("g: expected Input, Learned or an array, got None.")
        if not self._inputs():
            raise nbqp.ShapeError("g: expected an Input where no other datum is one, got none.")
        check_on_failure(self.on_failure)
        for name in ("feasible", "return_solution"):
            if not isinstance(getattr(self, name), bool):
                raise nbqp.SettingsError(
                    f"{name}: expected True or False, got {getattr(self, name)!r}."
                )
        if not is_weight(self.violation) or (
            self.violation > 0.0 and not self.settings.primal_infeasibility_solving
        ):
            raise nbqp.SettingsError(
                "violation: expected 0, or a positive weight with "
                f"primal_infeasibility_solving=True, got {self.violation!r}."
            )
        samples = self.warm_start
        if samples is not None and (
            isinstance(samples, bool) or not isinstance(samples, Integral) or samples < 1
        ):
            raise nbqp.SettingsError(
                f"warm_start: expected None or a number of samples of at least 1, got {samples!r}."
            )
        for matrix, sides in (("A", "b"), ("C", "lu")):
            for side in sides:
                if data[side] is not None and data[matrix] is None:
                    raise nbqp.ShapeError(f"{matrix}: expected a matrix, as {side} is given.")
                if self.feasible and data[side] is not None:
                    raise nbqp.SettingsError(
                        f"{side}: expected None, as feasible=True makes the sides of {matrix}."
                    )
        if data["A"] is not None and data["b"] is None and not self.feasible:
            raise nbqp.ShapeError("b: expected a vector, as A is given, got None.")
        if self.feasible and isinstance(data["C"], Input):
            raise nbqp.SettingsError(
                "C: expected Learned or an array, as feasible=True makes u for its rows, got Input."
            )
        if self.feasible and (
            data["ub"] is not None
            or isinstance(data["lb"], (Input, Learned))
            or (data["lb"] is not None and np.max(data["lb"]) > 0.0)
        ):
            raise nbqp.SettingsError(
                "lb, ub: expected lb <= 0 and no ub, as feasible=True has a point z0 > 0 only."
            )

    def _inputs(self) -> list[str]:
        names = [name for name in NAMES if isinstance(self.data[name], Input)]
        return [*names, INDEX] if names and self.warm_start else names

    def _named(self, inputs: Any) -> dict[str, Any]:
        """The inputs, or their shapes, by name: from a dict or from a single input without one."""
        expected = self._inputs()
        if isinstance(inputs, dict):
            if sorted(inputs) != sorted(expected):
                raise nbqp.ShapeError(f"inputs: expected {expected}, got {sorted(inputs)}.")
            return inputs
        if len(expected) > 1:
            raise nbqp.ShapeError(
                f"inputs: expected a dict with the names {expected}, as there are several Inputs, "
                f"got {_described(inputs)}."
            )
        if not _is_shape(getattr(inputs, "shape", inputs)):
            raise nbqp.ShapeError(
                f"inputs: expected one tensor, {expected[0]}, got {_described(inputs)}."
            )
        return {expected[0]: inputs}

    def _size(self, shapes: dict[str, Any]) -> int:
        """n, from the first datum that tells, an input before others."""
        for name in (*(name for name in shapes if name != INDEX), *NAMES):
            shape = self._shape(name, shapes)
            if name not in ("b", "l", "u") and len(shape) > 0 and shape[-1] is not None:
                return int(shape[-1])
        raise nbqp.ShapeError(f"g: expected a known last dimension, got {shapes.get('g')}.")

    def _shape(self, name: str, shapes: dict[str, Any]) -> Any:
        """The shape of a datum, or that of its pattern; () where there is none."""
        declared = self.data[name]
        pattern = getattr(declared, "pattern", None)
        if pattern is not None:
            return pattern.shape
        return shapes.get(name, getattr(declared, "shape", ()))

    def _check_shapes(self, n: int) -> None:
        """Ranks of all declared data, and the last dimension of those that it tells n of."""
        for name, declared in self.data.items():
            shape = self._shape(name, {})
            if not shape:
                continue
            if getattr(declared, "pattern", None) is not None and name not in MATRICES:
                raise nbqp.ShapeError(f"{name}: expected a dense vector, got a sparse pattern.")
            rank = 2 if name in MATRICES else 1
            across = name not in ("b", "l", "u")
            if len(shape) not in (rank, rank + 1) or (across and shape[-1] != n):
                expected = f"(..., {n})" if across else "(...)"
                raise nbqp.ShapeError(
                    f"{name}: expected rank {rank} and shape {expected}, got {tuple(shape)}."
                )

    def build(self, input_shape: Any) -> None:
        """Make the weights of learned data, and z0 and the slack where `feasible`."""
        n = self._size(self._named(input_shape))
        self._check_shapes(n)
        for name, declared in self.data.items():
            if isinstance(declared, Learned):
                weight = self.add_weight(
                    name=name,
                    shape=declared.weight_shape,
                    initializer=declared.initializer,
                    regularizer=declared.regularizer,
                    constraint=declared.constraint,
                )
                self.learned[name] = weight
                # A tf.train.Checkpoint saves attributes, and passes over what collections hold.
                setattr(self, f"learned_{name}", weight)
        if self.feasible:
            self.log_z0 = self.add_weight(name="log_z0", shape=(n,), initializer="zeros")
            if self.data["C"] is not None:
                rows = self.data["C"].shape[-2]
                self.log_slack = self.add_weight(
                    name="log_slack", shape=(rows,), initializer="zeros"
                )
        if self.warm_start:
            sizes = (n, *self._rows(self._named(input_shape), n), n)
            for part, size in zip(QPOutput._fields, sizes, strict=False):
                weight = self.add_weight(
                    name="memory",
                    shape=(self.warm_start, size),
                    initializer=keras.initializers.Constant(math.nan),
                    trainable=False,
                    autocast=False,
                )
                self.memory.append(weight)
                setattr(self, f"memory_{part}", weight)
        super().build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Solve the QPs of a batch; a layer that remembers solutions learns new ones in training."""
        named = self._named(inputs)
        data: dict[str, Any] = {}
        for name, declared in self.data.items():
            if name in named:
                data[name] = named[name]
            elif name in self.learned:
                data[name] = keras.ops.cast(self.learned[name], "float64")
            else:
                data[name] = declared
            pattern = getattr(declared, "pattern", None)
            if pattern is not None:
                data[name] = nbqp.Sparse(pattern, data[name])
        if isinstance(self.data["H"], Learned):
            data["H"] = gram(data["H"], self.data["H"].eps)
        if self.feasible:
            z0 = tf.exp(keras.ops.cast(self.log_z0, "float64"))
            if data["A"] is not None:
                data["b"] = product(data["A"], z0)
            if data["C"] is not None:
                slack = tf.exp(keras.ops.cast(self.log_slack, "float64"))
                data["u"] = product(data["C"], z0) + slack
        index = self._index(named[INDEX]) if self.warm_start else None
        start = None if index is None else self._recall(index)
        if not (self.return_solution or self.violation > 0.0 or (index is not None and training)):
            return solve_for_x(data, self.settings, self.on_failure, start, self.compute_dtype)
        solution = solve_qp(
            **data, settings=self.settings, on_failure=self.on_failure, warm_start=start
        )
        if index is not None and training:
            self._remember(index, solution)
        if self.violation > 0.0:
            norms = [_norms(s) for s in (solution.s_e, solution.s_i, solution.s_box)]
            violation = self.violation * tf.reduce_mean(tf.add_n(norms))
            # Keras adds up losses in its own float type, whatever that of the layer.
            self.add_loss(tf.cast(violation, keras.config.floatx()))
        solution = solution.astype(self.compute_dtype)
        return solution if self.return_solution else solution.x

    def _index(self, index: Any) -> Any:
        """The indices of the samples (batch,), which have to be below `warm_start`."""
        index = tf.convert_to_tensor(index)
        if not index.dtype.is_integer or index.shape.rank != 1:
            raise nbqp.ShapeError(
                "index: expected integers of shape (batch,), got "
                f"{index.dtype.name} of shape {tuple(index.shape)}."
            )
        index = tf.cast(index, tf.int64)
        message = f"index: expected integers below warm_start={self.warm_start}."
        below = tf.debugging.assert_less(
            index, tf.constant(self.warm_start, tf.int64), message=message
        )
        with tf.control_dependencies([] if below is None else [below]):
            return tf.identity(index)

    def _recall(self, index: Any) -> list[Any]:
        """The remembered solutions of these samples, NaN where there is none."""
        known = [
            tf.gather(part.value, tf.maximum(index, tf.zeros_like(index))) for part in self.memory
        ]
        return [tf.where(index[:, tf.newaxis] < 0, part * math.nan, part) for part in known]

    def _remember(self, index: Any, solution: QPOutput) -> None:
        known = tf.where(index >= 0)[:, 0]
        places = tf.gather(index, known)[:, tf.newaxis]
        for part, values in zip(self.memory, solution, strict=False):
            # Where Keras traces a model to build it, a weight has a value that nothing can be assigned to.
            if part.shape[1] > 0 and hasattr(part.value, "scatter_nd_update"):
                values = tf.cast(tf.stop_gradient(tf.gather(values, known)), part.dtype)
                part.value.scatter_nd_update(places, values)

    def _rows(self, shapes: dict[str, Any], n: int) -> list[int]:
        """The numbers of rows of A and C."""
        return [(self._shape(name, shapes) or (0, n))[-2] for name in ("A", "C")]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """(batch, n), or a `QPOutput` of shapes."""
        shapes = self._named(input_shape)
        batch = next(iter(shapes.values()))[0]
        n = self._size(shapes)
        if not self.return_solution:
            return (batch, n)
        rows = self._rows(shapes, n)
        sizes = (n, *rows, n, *rows, n)
        return QPOutput._make([*((batch, size) for size in sizes), (batch,), (batch,)])

    def get_config(self) -> dict[str, Any]:
        """The arguments, as Keras saves them."""
        return {
            **super().get_config(),
            **{name: serialise(value) for name, value in self.data.items()},
            "feasible": self.feasible,
            "settings": dataclasses.asdict(self.settings),
            "on_failure": self.on_failure,
            "return_solution": self.return_solution,
            "violation": self.violation,
            "warm_start": None if self.warm_start is None else int(self.warm_start),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QPLayer:
        """A layer as it was saved."""
        config = {k: deserialise(v) if k in NAMES else v for k, v in config.items()}
        config["settings"] = nbqp.Settings(**config["settings"])
        return cls(**config)


def _is_shape(value: Any) -> bool:
    """Whether this is a shape, with None where a size is unknown."""
    if isinstance(value, tf.TensorShape):
        return True
    return isinstance(value, (tuple, list)) and all(
        size is None or isinstance(size, Integral) for size in value
    )


def _described(inputs: Any) -> str:
    """What came as inputs, or as their shapes, in words."""
    shape = getattr(inputs, "shape", inputs)
    if _is_shape(shape):
        return f"one tensor of shape {tuple(shape)}"
    if isinstance(inputs, (tuple, list)):
        return f"{len(inputs)} tensors without names"
    return type(inputs).__name__


def _norms(s: Any) -> Any:
    """The l2 norm of each row, with the gradient 0 where it is 0."""
    squares = tf.reduce_sum(s * s, axis=1)
    zero = tf.equal(squares, 0.0)
    # Like the squares: in a graph, Keras types a bare number as its own float32.
    roots = tf.sqrt(tf.where(zero, tf.ones_like(squares), squares))
    return tf.where(zero, tf.zeros_like(squares), roots)
