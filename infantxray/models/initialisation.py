"""Initialisation: random parameters without compiling the whole network.

`model.init` under `jax.jit` becomes one program in which every parameter is drawn by a piece of
its own, HRNet's 325 convolutions by 325 pieces; it compiles for longer than the training step.
`initialise` traces `model.init` and then draws one parameter at a time, by a small program for
each kind and shape of parameter. The numbers are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

_PROGRAMS: dict[str, Callable[..., list[jax.Array]]] = {}  # By their text, for all models.


def initialise(init: Callable[..., Any], key: jax.Array, *arguments: Any) -> Any:
    """`init(key, *arguments)` without the forward pass.

    It compiles its own programs, so call it outside `jax.jit`.

    Args:
      init: such as `functools.partial(model.init, train=False)`, whose result depends on the key
        alone.
      key: a typed key, `jax.random.key(seed)`.
      arguments: of `init`; `jax.ShapeDtypeStruct` stands for an array.

    Raises:
      ValueError: the initial variables depend on the values of `arguments`.
    """
    closed, shapes = jax.make_jaxpr(init, return_shape=True)(key, *arguments)
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values[closed.jaxpr.invars[0]] = key
    draw = _Draw(closed.jaxpr, values)
    return jax.tree.map(draw, jax.tree.unflatten(jax.tree.structure(shapes), closed.jaxpr.outvars))


class _Draw:
    """Computes variables of a traced program from those that are known."""

    def __init__(self, jaxpr: Jaxpr, values: dict[Var, Any]):
        self._jaxpr, self._equations = jaxpr, jaxpr.eqns
        self._producer = {v: n for n, equation in enumerate(jaxpr.eqns) for v in equation.outvars}
        self._values = values

    def __call__(self, output: Var | Literal) -> Any:
        if isinstance(output, Literal):
            return jnp.asarray(output.val)
        if output in self._values:
            return self._values[output]
        if output not in self._producer:
            raise ValueError("the model's initial variables depend on its input")
        # The operations behind the output, back to what is known and to random keys.
        needed: set[int] = set()
        inputs: list[Var] = []
        stack: list[Var | Literal] = [output]
        while stack:
            variable = stack.pop()
            if isinstance(variable, Literal) or variable in inputs:
                continue
            known = variable in self._values or variable not in self._producer
            if known or (variable is not output and _is_key(variable)):
                inputs.append(variable)
            elif self._producer[variable] not in needed:
                needed.add(self._producer[variable])
                stack.extend(self._equations[self._producer[variable]].invars)
        equations = [self._equations[n] for n in sorted(needed)]
        part = self._jaxpr.replace(constvars=[], invars=inputs, outvars=[output], eqns=equations)
        arguments = [self(variable) for variable in inputs]
        if _is_key(output):  # by JAX's own operations: each has another constant
            (self._values[output],) = jaxpr_as_fun(ClosedJaxpr(part, []))(*arguments)
        else:
            text = str(part)
            if text not in _PROGRAMS:
                _PROGRAMS[text] = jax.jit(jaxpr_as_fun(ClosedJaxpr(part, [])))
            (self._values[output],) = _PROGRAMS[text](*arguments)
        return self._values[output]


def _is_key(variable: Var) -> bool:
    dtype: Any = getattr(variable.aval, "dtype", None)
    return bool(jnp.issubdtype(dtype, jax.dtypes.prng_key))
