"""Classes of different sizes: the simple and sharp forms hold as they stand, the paper's say nothing."""

import torch
from heads import seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils.theory import (
    LinearHead,
    every_layer,
    head_certificate,
    proposition_5_1,
    random_head,
    theorem_3_1_nc1,
    theorem_3_1_nc2,
    theorem_3_1_nc3,
    theorem_5_2_posteriori,
)


@st.composite
def uneven_heads(draw):
    """Between 1 and 6 samples a class, at least two sizes."""
    generator = torch.Generator().manual_seed(draw(seeds))
    classes, depth = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    noise = draw(st.sampled_from([0.0, 1e-3, 0.03, 0.3]))
    weights, features, y = random_head(generator, classes, depth, 6, noise=noise)
    counts = [6, *(draw(st.integers(1, 5)) for _ in range(classes - 1))]
    keep = torch.cat([torch.arange(6 * c, 6 * c + count) for c, count in enumerate(counts)])
    return LinearHead(weights, features[keep], y[keep])


@settings(max_examples=200, deadline=None)
@given(uneven_heads())
def test_nothing_is_violated(head):
    checks = [
        statement(head, form)
        for statement in (theorem_3_1_nc1, theorem_3_1_nc2, theorem_3_1_nc3, proposition_5_1)
        for form in ("simple", "sharp")
    ]
    checks += [*every_layer(head), head_certificate(head), theorem_5_2_posteriori(head)]
    assert [str(check) for check in checks if check.violated] == []
    assert theorem_3_1_nc1(head, "paper").silent


def test_the_smallest_class_counts():
    """With √(N/K) for the size of the smallest class, the simple form of NC2 would be wrong."""
    # two classes of 1 and 9: all of the error is in the first, whose mean output is 1 − ε1
    y = torch.tensor([0] + [1] * 9)
    z = torch.eye(2).double()[y]
    z[0, 0] = 0.25
    head = LinearHead([torch.eye(2), torch.eye(2)], z, y)
    check = theorem_3_1_nc2(head, "simple")
    assert check.holds and abs(check.measured - 4.0) < 1e-12
    wrong = float(head.eps1) / (len(y) / 2) ** 0.5
    assert (1 + wrong) / (1 - wrong) < check.measured
