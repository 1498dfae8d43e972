"""Products of two arrays whose gradients have formulas of their own."""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

Product = Callable[[Any, Any], Any]


def bilinear(product: Product, of_left: Product, of_right: Product) -> Product:
    """product(left, right), linear in each, with the gradients that the formulas compute.

    of_left(grad, right), of_right(left, grad): the product's transposes in its left and in its right argument.

    Forward mode needs the product itself along each tangent. It is had by transposing the formula, which reverse mode
    transposes once more, and so gets the formula back as it was written: both modes work, in any order, and under vmap.
    (A rule for reverse mode alone, `jax.custom_vjp`, would refuse forward mode.) Derivatives of these gradients are
    those of the formulas and of the product as they are written, as JAX finds them.
    """

    def along(values: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
        left, right = values
        out = product(left, right)  # itself, not the rule again, into which a policy of `jax.checkpoint` does not look
        formulas = (lambda grad: of_left(grad, right), lambda grad: of_right(left, grad))
        parts = [
            jax.linear_transpose(formula, out)(tangent)[0]
            for formula, tangent in zip(formulas, tangents, strict=True)
            if not isinstance(tangent, SymbolicZero)  # of an argument that nobody asks about
        ]
        return out, sum(parts[1:], start=parts[0])

    differentiable = jax.custom_jvp(product)
    differentiable.defjvp(along, symbolic_zeros=True)
    return differentiable
