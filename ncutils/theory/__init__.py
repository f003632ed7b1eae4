"""Every numbered statement of the theory as a function that returns a :class:`Check`, in float64."""

from ncutils.theory.attack import Attack, attack, attack_heads, random_head
from ncutils.theory.certificate import Certificate, certify, linear_head
from ncutils.theory.checks import Check, Hypothesis, to_frame
from ncutils.theory.conditioning import (
    excess,
    layer_conditioning,
    linear_ntk_norm,
    ntk_block,
    ntk_block_norms,
    ntk_norm,
    optimal_scale,
    proposition_5_1,
    proposition_5_3,
    proposition_5_3_floor,
    schatten,
    theorem_5_2_a_priori,
    theorem_5_2_posteriori,
)
from ncutils.theory.sufficient import (
    LinearHead,
    telescoping,
    theorem_3_1_conditioning,
    theorem_3_1_nc1,
    theorem_3_1_nc2,
    theorem_3_1_nc3,
)

__all__ = [
    "Attack",
    "Certificate",
    "Check",
    "Hypothesis",
    "LinearHead",
    "attack",
    "attack_heads",
    "certify",
    "excess",
    "layer_conditioning",
    "linear_head",
    "linear_ntk_norm",
    "ntk_block",
    "ntk_block_norms",
    "ntk_norm",
    "optimal_scale",
    "proposition_5_1",
    "proposition_5_3",
    "proposition_5_3_floor",
    "random_head",
    "schatten",
    "telescoping",
    "theorem_3_1_conditioning",
    "theorem_3_1_nc1",
    "theorem_3_1_nc2",
    "theorem_3_1_nc3",
    "theorem_5_2_a_priori",
    "theorem_5_2_posteriori",
    "to_frame",
]
