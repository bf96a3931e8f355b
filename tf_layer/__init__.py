"""A differentiable QP for TensorFlow, and the Keras layer on it."""

from tf_layer.declarations import Input, Learned
from tf_layer.layer import QPLayer
from tf_layer.op import QPOutput, solve_qp

__all__ = ["Input", "Learned", "QPLayer", "QPOutput", "solve_qp"]
