"""Theorem 4.4 without a wide first layer and without a pyramid: NK ≤ p is enough (ours, not the paper's).

**Theorem.** Let σ be twice differentiable with σ(0) = 0, 0 ≤ σ' ≤ 1, |σ''| ≤ c, J(θ) the Jacobian of the NK outputs and
s = s_min(J(θ_0)) > 0, its NK-th singular value. Let H bound ‖∇²f‖ on the ball of radius r_0 ≤ s/(2H) around θ_0. If

    s r_0 − H r_0²/2 ≥ c' √C_0(θ_0),   c' = 2/√(2(1−κ)) for the flow, twice that for descent,

then every conclusion of Theorem 4.4 holds with √α(t) = s − Ht in place of the pyramid's: α = (s − Hr_0)² ≥ s²/4.

*Proof.* ½‖∇C_0‖² = ½‖JᵀE‖² ≥ s_min(J)²C_0, and J moves by at most H‖θ − θ_0‖ on the ball, so s_min(J(θ)) ≥ s − Ht at
distance t. From there on the proof of Theorem 4.4 never asks where α(t) came from. ∎

**H.** Let a_ℓ ≥ ‖W_ℓ‖ and z_ℓ ≥ ‖Z_ℓ‖ on the ball. Move layer i by U_i with ‖U_i‖_F = u_i. Two layers i < j moved
together change f at second order by at most u_iu_j z_{i−1}Π_{i<k<j}a_k Π_{k>j}a_k; the activation of layer j by at most
c Π_{k>j}a_k (d_j·u)² with (d_j)_i = z_{i−1}Π_{i<k≤j}a_k for i ≤ j, as ‖h∘h‖_F ≤ ‖h‖_F². In all ‖∇²f[U,U]‖ ≤ uᵀMu, and
H = λ_max(M) bounds the mixed form too, because w·∇²f is symmetric for every w. ∎

The technique, a Jacobian that hardly moves, is that of Oymak & Soltanolkotabi (2019) and Liu, Zhu & Belkin (2022); the
step taken here is that with weight decay it gives collapse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ncutils._arguments import anything, checked, integer, many, number, positive, shown
from ncutils.networks import MLP
from ncutils.theory.checks import Hypothesis
from ncutils.theory.simulate import Objective, op_norm
from ncutils.theory.slide import output_kernel
from ncutils.theory.theorem_4_4 import TwoPhase, assumption_4_2

__all__ = ["KernelPhase", "certify_start", "doubled_start", "output_curvature"]


@checked(radius=number(least=0, most=1e9))
def output_curvature(objective: Objective, weights: Sequence, radius: float) -> float:
    """H ≥ ‖∇²f(θ)‖ for all ‖θ − θ_0‖ ≤ ``radius``: how fast the Jacobian of the outputs can turn there.

    Args:
        objective: inputs and activation, smooth or the identity.
        weights: θ_0.
        radius: of the ball.
    """
    if objective.activation == "relu":
        raise ValueError("objective.activation must be twice differentiable; got 'relu'")
    weights = objective.arrays(weights)
    depth = len(weights)
    post = objective.features(weights)[1]
    a = [op_norm(w) + radius for w in weights]
    z, drift = [op_norm(post[0])], 0.0
    for layer in range(depth):
        drift = a[layer] * drift + radius * op_norm(post[layer])
        z.append(op_norm(post[layer + 1]) + drift)
    after = [math.prod(a[layer + 1 :]) for layer in range(depth)]
    form = np.zeros((depth, depth))
    for i, j in itertools.combinations(range(depth), 2):
        form[i, j] = form[j, i] = z[i] * math.prod(a[i + 1 : j]) * after[j]
    bend = (1 - objective.gamma) / 2 if objective.activation == "smooth" else 0.0
    for j in range(objective.num_nonlinear):
        d = np.array([z[i] * math.prod(a[i + 1 : j + 1]) if i <= j else 0.0 for i in range(depth)])
        form += bend * after[j] * np.outer(d, d)
    return float(np.linalg.eigvalsh(form)[-1])


@dataclass(frozen=True)
class KernelPhase(TwoPhase):
    """The constants of Theorem 4.4 from the tangent kernel at θ_0; make one with :func:`certify_start`.

    It takes the place of :class:`~ncutils.theory.theorem_4_4.TwoPhase` in every ``theorem_4_4`` function.

    Attributes:
        jacobian_min: s, the NK-th singular value of J(θ_0).
        turning: H on the ball.
        ball: r_0.
    """

    jacobian_min: float = 0.0
    turning: float = 1.0
    ball: float = 0.0

    @property
    def r0(self) -> float:
        """r_0, the largest radius with r_0 ≤ s/(2H(r_0))."""
        return self.ball

    @property
    def alpha(self) -> float:
        """α = (s − Hr_0)²."""
        return (self.jacobian_min - self.turning * self.ball) ** 2

    @property
    def budget(self) -> float:
        """∫_0^{r_0}√α = s r_0 − Hr_0²/2."""
        return self.ball * (self.jacobian_min - self.turning * self.ball / 2)

    def travelled(self, need: float) -> float:
        """The p with ∫_0^p √α(t)dt = ``need``; infinite where that is more than :attr:`budget`."""
        if need > self.budget * (1 + 1e-9):
            return math.inf
        return 2 * need / (self.jacobian_min + math.sqrt(self.jacobian_min**2 - 2 * self.turning * need))

    def assumption_4_3(self, form: str = "sharp", dynamics: str = "flow") -> Hypothesis:
        """s r_0 − Hr_0²/2 ≥ c√C_0, in place of Assumption 4.3; one form."""
        if form != "sharp":
            raise ValueError(f"form must be 'sharp'; got {form!r}")
        need = self._need(dynamics)
        name = f"kernel form of 4.3, {dynamics}: ∫√α ds ≥ {need:.3g}√C_0"
        return Hypothesis(name, self.budget, need * math.sqrt(self.data_cost), ">=")


@checked(
    network=anything,
    x=anything,
    y=anything,
    num_nonlinear=integer(least=0),
    weight_decay=number(least=0, finite=True),
    run=integer(least=0),
)
def certify_start(
    network: MLP | Sequence, x, y, *, num_nonlinear: int | None = None, weight_decay: float = 0.0, run: int = 0
) -> KernelPhase:
    """Is collapse certain from this start? The constants of the theorem above; ask ``hypotheses()`` and the rest.

    Args:
        network: an :class:`~ncutils.networks.MLP` with the smooth or no activation, or weights ``(out, in)``.
        x: inputs ``(N, d)``.
        y: labels ``(N,)``, every class equally often.
        num_nonlinear: L1, for weights; an MLP knows its own.
        weight_decay: λ of the sum over samples; 0 takes the largest that the theorem allows.
        run: which of the MLP's networks.

    Raises:
        ValueError: a network that is neither, p < NK, or what :class:`~ncutils.theory.simulate.Objective` raises.

    >>> from ncutils.theory import general_position
    >>> x, y = general_position(6, 8), np.arange(6) % 2
    >>> objective = Objective(x, y, 1, 0.0)
    >>> phase = certify_start(doubled_start(objective, [4, 4, 2], 6.0), x, y, num_nonlinear=1)
    >>> all(h.holds for h in phase.hypotheses()), phase.weight_decay > 0
    (True, True)
    """
    activation, gamma = "smooth", Objective.gamma
    if isinstance(network, MLP):
        if run >= network.num_runs:
            raise ValueError(f"run must be below the {network.num_runs} of the network; got {run}")
        weights = [w.detach()[run] for w in network.weights]
        num_nonlinear, activation, gamma = network.num_nonlinear, network.activation, network.gamma
    else:
        if not isinstance(network, Sequence):
            raise TypeError(f"network must be an MLP or a list of weights; got {shown(network)}")
        weights = list(network)
    if num_nonlinear is None:
        raise ValueError("num_nonlinear must be given with weights; got None")
    objective = Objective(x, y, num_nonlinear, weight_decay, activation=activation, gamma=gamma)
    arrays = objective.arrays(weights)
    size, outputs = sum(w.size for w in arrays), objective.num_samples * objective.num_classes
    if size < outputs:
        raise ValueError(f"network must have at least NK = {outputs} parameters; got {size}")
    kernel = np.linalg.eigvalsh(output_kernel(objective, arrays))
    # below the rounding of the kernel its least eigenvalue says nothing
    least = math.sqrt(max(kernel[0] - 1e-13 * outputs * kernel[-1], 0.0))
    low, high = 0.0, least / (2 * output_curvature(objective, arrays, 0.0))
    for _ in range(60):
        middle = (low + high) / 2
        if 2 * middle * output_curvature(objective, arrays, middle) <= least:
            low = middle
        else:
            high = middle
    start = TwoPhase.at(objective, arrays)
    values = {f.name: getattr(start, f.name) for f in fields(TwoPhase)}
    smooth = tuple(h for h in assumption_4_2(objective) if "least slope" not in h.name)
    rank = Hypothesis("s_min(J(θ_0)) > 0", least, 0.0, ">")
    values |= {"checks": (*smooth, rank), "descent_checks": (*smooth, rank)}
    turning = output_curvature(objective, arrays, low)
    phase = KernelPhase(**values, jacobian_min=least, turning=turning, ball=low)
    if weight_decay == 0 and phase.alpha > 0:
        values["weight_decay"] = phase.largest_weight_decay
    return KernelPhase(**values, jacobian_min=least, turning=turning, ball=low)


@checked(
    widths=many(integer(least=1, most=10**5), least=1),
    scale=positive,
    seed=integer(least=0, most=2**32 - 1),
)
def doubled_start(objective: Objective, widths: Sequence[int], scale: float, seed: int = 0) -> list[Tensor]:
    """Two copies of one network side by side, with last layers V and −V: f(X) = 0 exactly, J of full rank.

    Args:
        objective: for its inputs.
        widths: n_1..n_L of the pair, all even but the last.
        scale: all layers are ``scale`` times random orthonormal rows or columns.
        seed: of the random draws.

    Raises:
        ValueError: an odd width.
    """
    if any(n % 2 for n in widths[:-1]):
        raise ValueError(f"widths must be even up to the last; got {list(widths)}")
    generator = np.random.default_rng(seed)
    sizes = [objective.x.shape[1], *[n // 2 for n in widths[:-1]], widths[-1]]
    copies = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        q = np.linalg.qr(generator.standard_normal((max(fan_in, fan_out), min(fan_in, fan_out))))[0]
        copies.append(scale * (q if fan_out >= fan_in else q.T))
    first, *middle, last = copies
    weights = [np.vstack([first, first]), *(np.kron(np.eye(2), w) for w in middle), np.hstack([last, -last])]
    objective.shapes(weights)
    return [torch.from_numpy(np.ascontiguousarray(w)) for w in weights]
