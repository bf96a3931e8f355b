"""Solve and differentiate a QP with the package that is installed: `tox -e wheel`."""

from __future__ import annotations

import importlib.metadata
import pathlib

import numpy as np

import nbqp

CHECKOUT = pathlib.Path(__file__).parents[1]

if __name__ == "__main__":
    package = pathlib.Path(nbqp.__file__)
    assert package.parent != CHECKOUT / "nbqp", package
    assert importlib.metadata.version("nbqp") == nbqp.__version__
    assert package.with_name("py.typed").exists()
    assert (package.parents[1] / "tf_layer" / "py.typed").exists()
    sol = nbqp.solve_qp(np.eye(2), np.zeros(2), np.ones((1, 2)), np.ones(1), lb=0.0)
    assert sol.status is nbqp.Status.SOLVED
    assert np.allclose(sol.x, 0.5)
    assert np.allclose(nbqp.vjp(sol, dL_dx=np.array([1.0, 0.0])).dL_db, 0.5)
    print(f"nbqp {nbqp.__version__} of {package.parent} solves and differentiates")
