"""Section 4: gradient descent with weight decay fits the data, balances the linear layers, and then collapses.

Every statement of that section of arXiv:2410.04887 as a function that returns a :class:`~ncutils.theory.checks.Check`:

* Assumptions 4.1 to 4.3: :func:`assumption_4_1`, :func:`assumption_4_2`, :meth:`TwoPhase.assumption_4_3`;
* the pyramid PL lemma (:func:`pyramid_pl`) and Proposition 4.5 (:func:`proposition_4_5`);
* Theorem 4.4: its constants (:class:`TwoPhase`), its conclusions along a trajectory of
  :mod:`ncutils.theory.simulate` (``theorem_4_4_*``).

Form ``"simple"`` is this project's explicit constants, ``"sharp"`` the same argument with less thrown away,
``"paper"`` what is recalled of the paper (second-hand for Assumption 4.3 and Proposition 4.5). Everything is float64;
rows are samples, weights are ``(out, in)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ncutils._arguments import checked, integer, many, number, one_of, pair, text
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.simulate import (
    DESCENT_ROUNDING,
    Objective,
    Trajectory,
    imbalances,
    initialise,
    norm2,
    op_norm,
    smallest,
)

__all__ = [
    "TwoPhase",
    "assumption_4_1",
    "assumption_4_2",
    "assumption_4_2_descent",
    "proposition_4_5",
    "pyramid_pl",
    "smallest_scale",
    "theorem_4_4",
    "theorem_4_4_balancing",
    "theorem_4_4_error",
    "theorem_4_4_fitting",
    "theorem_4_4_nc1",
    "theorem_4_4_norm",
    "theorem_4_4_path",
]

ROUNDING = 1e-14
# κ of Proposition 4.5's sharp form, wherever it is used: small, because λ is far smaller than α there.
YOUNG = 0.1
# "To three digits", for a trajectory that a solver has integrated.
THREE_DIGITS = 1e-3


# --- Assumptions


@checked(widths=many(integer(least=1, most=10**6), least=1), num_samples=integer(least=1))
def assumption_4_1(widths: Sequence[int], num_samples: int) -> tuple[Hypothesis, ...]:
    """Assumption 4.1: n_1 ≥ N and n_2 ≥ n_3 ≥ … ≥ n_L, for ``widths`` n_1..n_L.

    Example:
        >>> [hypothesis.holds for hypothesis in assumption_4_1([8, 4, 3], num_samples=8)]
        [True, True]
    """
    drops = [a - b for a, b in itertools.pairwise(widths[1:])]
    return (
        Hypothesis("4.1 wide first layer: n_1 ≥ N", widths[0], num_samples, ">="),
        Hypothesis("4.1 pyramid: least n_ℓ − n_{ℓ+1} for ℓ ≥ 2", min(drops, default=0), 0, ">="),
    )


@checked()
def assumption_4_2(objective: Objective) -> tuple[Hypothesis, ...]:
    """Assumption 4.2: σ(0) = 0, γ ≤ σ' ≤ 1 with γ > 0, |σ(h)| ≤ |h|, σ' Lipschitz; evaluated on a fine grid.

    Example:
        >>> from ncutils.theory import general_position
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> all(hypothesis.holds for hypothesis in assumption_4_2(objective))
        True
    """
    grid = np.concatenate([np.linspace(-50, 50, 20001), [0.0]])
    value, slope = objective.sigma(grid), objective.slope(grid)
    jump = float((np.abs(np.diff(slope[:-1])) / np.diff(grid[:-1])).max())
    return (
        Hypothesis("4.2 |σ(0)|", abs(float(value[-1])), 0.0, "<="),
        Hypothesis("4.2 least slope", float(slope.min()), 0.0, ">"),
        Hypothesis("4.2 least slope ≥ γ", float(slope.min()), objective.gamma, ">="),
        Hypothesis("4.2 largest slope", float(slope.max()), 1.0, "<="),
        Hypothesis("4.2 |σ(h)| − |h|, largest", float((np.abs(value) - np.abs(grid)).max()), 1e-15, "<="),
        Hypothesis("4.2 Lipschitz constant of σ'", jump, (1 - objective.gamma) / 2 + 1e-9, "<="),
    )


def assumption_4_2_descent(objective: Objective) -> tuple[Hypothesis, ...]:
    """What descent with a checked descent inequality needs of Assumption 4.2 (ours).

    Smoothness enters Theorem 4.4 for descent through that inequality only, and γ through α, where its power is L1 − 1:
    with one nonlinear layer σ(0) = 0, 0 ≤ σ' ≤ 1 and |σ(h)| ≤ |h| are enough, so plain ReLU is allowed.
    """
    checks = assumption_4_2(objective)
    if objective.num_nonlinear > 1:
        return checks
    grid = np.linspace(-50, 50, 20001)
    least = float(objective.slope(grid).min())
    return checks[0], Hypothesis("4.2 for descent, L1 = 1: least slope", least, 0.0, ">="), checks[3], checks[4]


# --- the PL inequality and its shift


@checked()
def pyramid_pl(objective: Objective, weights: Sequence) -> Check:
    """Pyramid PL lemma (Nguyen & Mondelli 2020): ½‖∇_{W_2}C_0‖² ≥ α(θ)C_0.

    α(θ) = s_min(Z_1)² γ^{2(L1−1)} Π_{p≥3} s_min(W_p)², with s_min the N-th singular value of Z_1 and the n_p-th of W_p.

    Example:
        >>> from ncutils.theory import general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> check = pyramid_pl(objective, weights)
        >>> check.statement, check.holds
        ('Pyramid PL lemma', True)
    """
    weights = objective.arrays(weights)
    gradient = objective.data_gradients(weights)[1]
    measured = 0.5 * float(np.sum(gradient**2))
    bound = pl_constant(objective, weights) * objective.data_cost(weights)
    hypotheses = assumption_4_1([len(w) for w in weights], objective.num_samples)
    hypotheses += assumption_4_2(objective)
    return Check("Pyramid PL lemma", "gradient", "simple", hypotheses, measured, bound, ">=")


def _least_slope(objective: Objective) -> float:
    """inf σ'; where there is one nonlinear layer it has no part in α."""
    return {"smooth": objective.gamma, "relu": 0.0, "identity": 1.0}[objective.activation]


@checked()
def pl_constant(objective: Objective, weights: Sequence) -> float:
    """α(θ) of :func:`pyramid_pl`."""
    weights = objective.arrays(weights)
    root = smallest(objective.features(weights)[1][1]) if len(weights[0]) >= objective.num_samples else 0.0
    root *= _least_slope(objective) ** (objective.num_nonlinear - 1)
    for w in weights[2:]:
        root *= smallest(w)
    return root**2


@checked(alpha=number(above=0, finite=True), radius=number(above=0, finite=True), young=number(above=0, below=1))
def proposition_4_5(
    objective: Objective, weights: Sequence, alpha: float, radius: float, form: str = "sharp", young: float = YOUNG
) -> Check:
    """Proposition 4.5: a PL inequality for C_0 survives weight decay, up to a shift of the cost.

    * sharp: ½‖∇C_λ‖² ≥ (1−κ)α(C_λ − λm), m = ½R²(1 + λ/(κα)), for every 0 < κ < 1;
    * simple: the same with κ = ½;
    * paper (recalled): ½‖∇C_λ‖² ≥ (α/4)(C_λ − λm), m = (1 + √(4λ/α))²R².

    Args:
        objective: C_λ.
        weights: θ.
        alpha: α with ½‖∇C_0(θ)‖² ≥ αC_0(θ), which is checked as a hypothesis.
        radius: R ≥ ‖θ‖, likewise.
        form: ``"sharp"``, ``"simple"`` or ``"paper"``.
        young: κ of the sharp form.

    Example:
        >>> from ncutils.theory import general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> check = proposition_4_5(objective, weights, pl_constant(objective, weights), radius=10.0)
        >>> check.statement, check.holds
        ('Proposition 4.5', True)
    """
    weights = objective.arrays(weights)
    decay, cost = objective.weight_decay, objective.data_cost(weights)
    if form == "paper":
        factor, m = alpha / 4, (1 + math.sqrt(4 * decay / alpha)) ** 2 * radius**2
    elif form in ("simple", "sharp"):
        kappa = 0.5 if form == "simple" else young
        if not 0 < kappa < 1:
            raise ValueError(f"young must be above 0 and below 1; got {young}")
        factor, m = (1 - kappa) * alpha, 0.5 * radius**2 * (1 + decay / (kappa * alpha))
    else:
        raise ValueError(f"form must be 'sharp', 'simple' or 'paper'; got {form!r}")
    measured = 0.5 * norm2(objective.gradients(weights))
    bound = factor * (objective.cost(weights) - decay * m)
    slack = 1 + 1e-12
    hypotheses = (
        Hypothesis("½‖∇C_0‖² ≥ αC_0", 0.5 * norm2(objective.data_gradients(weights)) * slack, alpha * cost, ">="),
        Hypothesis("‖θ‖ ≤ R", math.sqrt(norm2(weights)), radius * slack, "<="),
        Hypothesis("α > 0", alpha, 0.0, ">"),
    )
    return Check("Proposition 4.5", "gradient", form, hypotheses, measured, bound, ">=")


# --- Theorem 4.4: constants


@dataclass(frozen=True)
class TwoPhase:
    """The constants of Theorem 4.4, all known before training starts; make one with :meth:`at`.

    Attributes:
        weight_decay: λ.
        target_error: ε1, the error the first phase is to reach.
        lambda_F: λ_F = s_min(σ(W_1⁰X)).
        lambdas: λ_p = s_min(W_p⁰), p = 3..L.
        norm: ‖θ_0‖.
        data_cost: C_0(θ_0).
        imbalances: ‖D_ℓ(0)‖_op, ℓ = L1+1..L−1.
        input_op, input_frobenius: ‖X‖_op and ‖X‖_F.
        input_scatter: Σ‖x_ci − x̄_c‖².
        gamma, num_nonlinear, num_samples, num_classes: γ, L1, N, K.
        last_width: n_{L−1}.
        checks: Assumptions 4.1 and 4.2, evaluated.
        descent_checks: the same for descent, see :func:`assumption_4_2_descent`.
        young: κ of Proposition 4.5; ½ is the simple form.

    Example:
        >>> from ncutils.theory import general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.001)
        >>> weights = initialise(objective, [4, 3, 2], smallest_scale(objective, [4, 3, 2]))
        >>> phase = TwoPhase.at(objective, weights)
        >>> phase.alpha > 0, phase.largest_weight_decay > 0
        (True, True)
    """

    weight_decay: float
    target_error: float
    lambda_F: float
    lambdas: tuple[float, ...]
    norm: float
    data_cost: float
    imbalances: tuple[float, ...]
    input_op: float
    input_frobenius: float
    input_scatter: float
    gamma: float
    num_nonlinear: int
    num_samples: int
    num_classes: int
    last_width: int
    checks: tuple[Hypothesis, ...] = field(default=(), repr=False)
    young: float = YOUNG
    descent_checks: tuple[Hypothesis, ...] = field(default=(), repr=False)

    @classmethod
    @checked(target_error=number(above=0, finite=True), weight_decay=number(least=0, finite=True))
    def at(
        cls,
        objective: Objective,
        weights: Sequence,
        target_error: float | None = None,
        weight_decay: float | None = None,
    ) -> TwoPhase:
        """Evaluate the constants at an initialisation.

        Args:
            objective: C_λ; its weight decay is used unless the next two say otherwise.
            weights: θ_0.
            target_error: ε1; default the largest for which Theorem 3.1 says something, ½√((K−1)N/K).
            weight_decay: λ; default the objective's. See :meth:`largest_weight_decay`.
        """
        weights = objective.arrays(weights)
        if len(weights) < 3:
            raise ValueError(f"weights must be at least 3; got {len(weights)} layers")
        if objective.activation == "relu" and objective.num_nonlinear > 1:
            raise ValueError("objective.activation must have a slope above 0 where num_nonlinear > 1; got 'relu'")
        samples, classes = objective.num_samples, objective.num_classes
        if target_error is None:
            target_error = math.sqrt((classes - 1) * samples / (4 * classes))
        means = objective.one_hot.T @ objective.x * (classes / samples)
        wide = len(weights[0]) >= samples
        shape = assumption_4_1([len(w) for w in weights], samples)
        return cls(
            weight_decay=objective.weight_decay if weight_decay is None else weight_decay,
            target_error=target_error,
            lambda_F=smallest(objective.features(weights)[1][1]) if wide else 0.0,
            lambdas=tuple(smallest(w) for w in weights[2:]),
            norm=math.sqrt(norm2(weights)),
            data_cost=objective.data_cost(weights),
            imbalances=tuple(op_norm(d) for d in imbalances(weights, objective.num_nonlinear)),
            input_op=op_norm(objective.x),
            input_frobenius=float(np.linalg.norm(objective.x)),
            input_scatter=float(np.sum((objective.x - means[objective.y]) ** 2)),
            gamma=objective.gamma if objective.activation == "smooth" else 1.0,
            num_nonlinear=objective.num_nonlinear,
            num_samples=samples,
            num_classes=classes,
            last_width=len(weights[-2]),
            checks=shape + assumption_4_2(objective),
            descent_checks=shape + assumption_4_2_descent(objective),
        )

    # --- the ball

    @property
    def depth(self) -> int:
        """L."""
        return len(self.lambdas) + 2

    @property
    def scale(self) -> float:
        """μ = min(λ_F/‖X‖_op, min_p λ_p): how far the layers may move before one of them loses rank."""
        return min(self.lambda_F / self.input_op, *self.lambdas)

    @property
    def root_alpha_0(self) -> float:
        """√α(θ_0) = γ^{L1−1}λ_FΠλ_p."""
        return self.gamma ** (self.num_nonlinear - 1) * self.lambda_F * math.prod(self.lambdas)

    @property
    def r0(self) -> float:
        """r_0 = μ√(L−1)/L: on the ball of that radius every one of the L−1 factors keeps (1−1/L) on average."""
        return self.scale * math.sqrt(self.depth - 1) / self.depth

    @property
    def alpha(self) -> float:
        """α: ½‖∇C_0‖² ≥ αC_0 on B(θ_0, r_0); √α = (1−1/L)^{L−1}√α(θ_0)."""
        return (self.root_alpha_0 * (1 - 1 / self.depth) ** (self.depth - 1)) ** 2

    def check_start(self, objective: Objective, weights: Sequence) -> None:
        """Raise ValueError unless these are constants of this start."""
        start = TwoPhase.at(objective, weights, weight_decay=self.weight_decay)
        for name in ("norm", "data_cost", "gamma", "num_nonlinear", "input_frobenius", "lambda_F", "lambdas"):
            ours, theirs = (np.atleast_1d(getattr(phase, name)) for phase in (self, start))
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-6, atol=1e-12):
                raise ValueError(
                    f"phase must be of this start, {name} = {theirs}; got constants of another start, {name} = {ours}"
                )

    @property
    def budget(self) -> float:
        """∫_0^{r_0}√α(s)ds = (μ√(L−1)/L)√α(θ_0)(1 − (1−1/L)^L), what the path integral may use up."""
        return self.r0 * self.root_alpha_0 * (1 - (1 - 1 / self.depth) ** self.depth)

    @property
    def R(self) -> float:
        """R = ‖θ_0‖ + r_0."""
        return self.norm + self.r0

    @property
    def m(self) -> float:
        """m = ½R²(1 + λ/(κα)): the cost λm is reached, and ‖θ‖² ≤ 2m for ever."""
        return 0.5 * self.R**2 * (1 + self.weight_decay / (self.young * self.alpha))

    @property
    def rate(self) -> float:
        """2(1−κ)α: the rate at which the flow brings C_λ down to λm."""
        return 2 * (1 - self.young) * self.alpha

    @property
    def radius(self) -> float:
        """√(2m), the a-priori bound on ‖θ‖."""
        return math.sqrt(2 * self.m)

    @property
    def excess(self) -> float:
        """V_0 = C_λ(θ_0) − λm, at most C_0(θ_0)."""
        return self.data_cost + self.weight_decay * (0.5 * self.norm**2 - self.m)

    # --- hypotheses

    @checked()
    def assumption_4_3(self, form: str = "sharp", dynamics: str = "flow") -> Hypothesis:
        """Assumption 4.3, the initial condition.

        * sharp: ∫_0^{r_0}√α(s)ds ≥ c√C_0 with c = 2/√(2(1−κ)) (flow) or twice that (descent);
        * simple: the same argument with r_0 = μ/L, √α frozen at its least value on the ball, and κ = ½;
        * paper (second-hand): λ_Fλ_{3→L} min(λ_F, min_p λ_p) ≥ 8γ(2/γ)^{L/2}√C_0.

        Ours and the paper's do not imply one another: ours carry ‖X‖_op, the paper's another power of 2.
        """
        if dynamics not in ("flow", "descent"):
            raise ValueError(f"dynamics must be 'flow' or 'descent'; got {dynamics!r}")
        root = math.sqrt(self.data_cost)
        if form == "sharp":
            need = self._need(dynamics)
            return Hypothesis(f"4.3 sharp, {dynamics}: ∫√α ds ≥ {need:.3g}√C_0", self.budget, need * root, ">=")
        if form == "simple":
            need = {"flow": 2, "descent": 4}[dynamics]
            left = self.scale / self.depth * math.sqrt(self.alpha)
            return Hypothesis(f"4.3 simple, {dynamics}: r_0√α ≥ {need}√C_0", left, need * root, ">=")
        if form == "paper":
            left = self.lambda_F * math.prod(self.lambdas) * min(self.lambda_F, *self.lambdas)
            right = 8 * self.gamma * (2 / self.gamma) ** (self.depth / 2) * root
            return Hypothesis("4.3 paper (second-hand): λ_Fλ_{3→L}min ≥ 8γ(2/γ)^{L/2}√C_0", left, right, ">=")
        raise ValueError(f"form must be 'sharp', 'simple' or 'paper'; got {form!r}")

    def _need(self, dynamics: str) -> float:
        """c with ∫√α ds ≤ c√V_0 along the path: 2/√(2(1−κ)) for the flow, twice that for descent."""
        return {"flow": 2, "descent": 4}[dynamics] / math.sqrt(2 * (1 - self.young))

    @property
    def largest_weight_decay(self) -> float:
        """min(κα, ε1²/(4R²)): the largest λ the theorem allows for this ε1."""
        return min(self.young * self.alpha, self.target_error**2 / (4 * self.R**2))

    @checked(step_size=number(above=0, most=1e9))
    def hypotheses(self, dynamics: str = "flow", step_size: float | None = None) -> tuple[Hypothesis, ...]:
        """Everything Theorem 4.4 asks for at initialisation; for descent also a step size.

        The step of the descent statement is certified a priori, from constants alone. A run may take a larger one:
        see :func:`descend`, which checks at each step the one inequality that the smoothness is needed for.
        """
        reduced = dynamics == "descent" and step_size is None and self.descent_checks
        tests = [*(self.descent_checks if reduced else self.checks), self.assumption_4_3("sharp", dynamics)]
        tests.append(Hypothesis("λ > 0", self.weight_decay, 0.0, ">"))
        tests.append(
            Hypothesis("λ ≤ min(κα, ε1²/4R²)", self.weight_decay, self.largest_weight_decay * (1 + 1e-12), "<=")
        )
        if step_size is not None:
            tests.append(Hypothesis("η ≤ min(1/β, 1/G)", step_size, self.a_priori_step, "<="))
        return tuple(tests)

    # --- phase 1

    @property
    def t1(self) -> float:
        """From t_1 = max(0, ln(V_0/(λm))/(2(1−κ)α)) on, C_λ ≤ 2λm and ‖E‖_F ≤ 2√(λm) ≤ ε1."""
        return max(0.0, math.log(max(self.excess, 1e-300) / (self.weight_decay * self.m)) / self.rate)

    @checked(time=number(least=0))
    def slack(self, time: float) -> float:
        """δ(t) = e^{−2(1−κ)αt}V_0/(λm), at most 1 after t_1: C_λ ≤ (1+δ)λm from t on."""
        return math.exp(-self.rate * time) * max(self.excess, 0.0) / (self.weight_decay * self.m)

    @checked(steps=integer(least=0, most=2**62), step_size=number(above=0, most=1e9))
    def slack_after(self, steps: int, step_size: float) -> float:
        """The same for descent: (1−η(1−κ)α)^k V_0/(λm), at most 1 after k_1 steps."""
        return math.exp(-self.rate_per_step(step_size) * steps) * max(self.excess, 0.0) / (self.weight_decay * self.m)

    @checked(slack=number(least=0))
    def fitted_error(self, slack: float = 1.0) -> float:
        """√(2(1+δ)λm), what ‖E‖_F cannot exceed once C_λ ≤ (1+δ)λm; with δ = 1 at most ε1."""
        return math.sqrt(2 * (1 + slack) * self.weight_decay * self.m)

    @checked(dynamics=one_of("flow", "descent"))
    def path_bound(self, dynamics: str = "flow") -> float:
        """The radius p with ∫_0^p √α(s)ds = c√V_0, c as in Assumption 4.3: no path can be longer while V > 0."""
        return self.travelled(self._need(dynamics) * math.sqrt(max(self.excess, 0.0)))

    def travelled(self, need: float) -> float:
        """The p with ∫_0^p √α(s)ds = ``need``; infinite where that is more than :attr:`budget`, so p > r_0."""
        if need > self.budget * (1 + 1e-9):
            return math.inf
        reach = self.scale * math.sqrt(self.depth - 1)
        rest = 1 - need * self.depth / (reach * self.root_alpha_0)
        return reach * (1 - rest ** (1 / self.depth))

    # --- phase 2

    @checked(epsilon2=number(above=0, finite=True))
    def t2(self, epsilon2: float) -> float:
        """max_ℓ‖D_ℓ‖_op ≤ ε2 from t_2 = max(0, ln(max‖D_ℓ(0)‖/ε2)/(2λ)) on."""
        return max(0.0, math.log(max(self.imbalances) / epsilon2) / (2 * self.weight_decay))

    # --- what NC1 is bounded by, before training

    def a_priori_radius(self) -> float:
        """r: no ‖W_ℓ‖_op, ‖Z_{L−1}‖_op or ‖Z_{L−2}‖_op ever exceeds it; ‖Z_j‖_F ≤ ‖X‖_F(‖θ‖²/j)^{j/2}, ‖θ‖² ≤ 2m."""
        features = [self.input_frobenius * (2 * self.m / j) ** (j / 2) for j in (self.depth - 2, self.depth - 1)]
        return max(self.radius, *features)

    @checked(imbalance=number(least=0), slack=number(least=0))
    def nc1_bound(self, imbalance: float, form: str = "sharp", slack: float = 1.0) -> float:
        """An upper bound of NC1(Z_{L−1}), from constants of the initialisation, once C_λ ≤ (1+δ)λm.

        * paper, simple: Theorem 3.1 with ε1 = √(2(1+δ)λm) and the a-priori r;
        * sharp: [λ‖X‖_F²(2(1+δ)m/(L+1))^{L+1}/(s_K(Y)−ε1)² + S_X(2m/(L−1))^{L−1}‖D_{L−1}‖] / [N(√((K−1)/K) − ε1/√N)²].

        Args:
            imbalance: max_ℓ‖D_ℓ‖_op at the moment in question, e^{−2λt}‖D(0)‖ (sharp needs ℓ = L−1 only).
            form: ``"paper"``, ``"simple"`` or ``"sharp"``.
            slack: δ, see :meth:`slack`.

        Returns:
            The bound; infinite where ε1 is too large for it.
        """
        if form not in ("paper", "simple", "sharp"):
            raise ValueError(f"form must be 'paper', 'simple' or 'sharp'; got {form!r}")
        n, k = self.num_samples, self.num_classes
        error = self.fitted_error(slack)
        gap = math.sqrt(n / k) - error
        between = math.sqrt((k - 1) / k) - (2 if form == "paper" else 1) * error / math.sqrt(n)
        if gap <= 0 or between <= 0:
            return math.inf
        if form != "sharp":
            r = self.a_priori_radius()
            psi = r * (error / gap + math.sqrt(self.last_width * imbalance))
            return r**2 / n * psi**2 / between**2
        depth, square = self.depth, 2 * self.m
        inside = self.weight_decay * self.input_frobenius**2 * (square * (1 + slack) / (depth + 1)) ** (depth + 1)
        outside = self.input_scatter * (square / (depth - 1)) ** (depth - 1) * imbalance
        return (inside / gap**2 + outside) / n / between**2

    @checked(bound=number(above=0, most=1e9), slack=number(above=0, most=1e9))
    def non_vacuous(self, bound: float = 0.9, form: str = "sharp", slack: float = 0.01) -> tuple[TwoPhase, float]:
        """The largest λ, and the time, for which NC1 ≤ ``bound`` is known before training starts.

        Returns:
            These constants with that λ (half of the bound spent on the error), and the time t from which it holds.
        """
        from scipy.optimize import brentq

        def error_part(log_decay: float) -> float:
            value = replace(self, weight_decay=math.exp(log_decay)).nc1_bound(0.0, form, slack)
            return min(math.log(2 * value / bound), 50.0)

        top = math.log(self.largest_weight_decay)
        decay = math.exp(top if error_part(top) < 0 else brentq(error_part, -500.0, top, xtol=1e-12))
        phase = replace(self, weight_decay=decay * (1 - 1e-9))

        def whole(log_imbalance: float) -> float:
            return math.log(phase.nc1_bound(math.exp(log_imbalance), form, slack) / bound)

        imbalance = math.exp(brentq(whole, -500.0, 50.0, xtol=1e-12))
        fitted = math.log(max(phase.excess, 1e-300) / (slack * phase.weight_decay * phase.m)) / phase.rate
        return phase, max(fitted, phase.t2(imbalance))

    # --- discrete time

    @checked(radius=number(least=0, most=1e9))
    def smoothness(self, radius: float | None = None) -> float:
        """β: an upper bound of ‖∇²C_λ‖_op on ‖θ‖ ≤ ``radius`` (default √(2m) + 1), from constants alone."""
        rho2 = (self.radius + 1) ** 2 if radius is None else radius**2
        l, x = self.depth, self.input_frobenius
        error = self._label_norm + x * (rho2 / l) ** (l / 2)
        first = x**2 * l * (rho2 / l) ** (l - 1)
        second = x * math.sqrt(l * (l - 1)) * (rho2 / l) ** ((l - 2) / 2)
        for j in range(1, self.num_nonlinear + 1):
            second += (1 - self.gamma) / 2 * x**2 * j * (rho2 / j) ** (j - 1) * (rho2 / (l - j)) ** ((l - j) / 2)
        return self.weight_decay + first + error * second

    def gradient_bound(self) -> float:
        """G: an upper bound of ‖∇C_λ‖ on ‖θ‖ ≤ √(2m)."""
        l, x, rho2 = self.depth, self.input_frobenius, 2 * self.m
        error = self._label_norm + x * (rho2 / l) ** (l / 2)
        return error * x * math.sqrt(l) * (rho2 / l) ** ((l - 1) / 2) + self.weight_decay * self.radius

    @property
    def _label_norm(self) -> float:
        return math.sqrt(self.num_samples)

    @property
    def a_priori_step(self) -> float:
        """min(1/β, 1/G)."""
        return 1 / max(self.smoothness(), self.gradient_bound())

    @checked(step_size=number(above=0, most=1e9))
    def rate_per_step(self, step_size: float) -> float:
        """−ln(1 − η(1−κ)α), the rate of the fitting phase of descent."""
        return -math.log1p(-min(step_size * self.rate / 2, 1 - 1e-16))

    @checked(step_size=number(above=0, most=1e9))
    def k1(self, step_size: float) -> int:
        """Steps after which C_λ ≤ 2λm: ln(V_0/(λm))/(−ln(1 − η(1−κ)α))."""
        ratio = max(self.excess, 1e-300) / (self.weight_decay * self.m)
        return max(0, math.ceil(math.log(ratio) / self.rate_per_step(step_size)))

    @checked(steps=integer(least=0, most=2**62), step_size=number(above=0, most=1e9))
    def descent_imbalance(self, steps: int, step_size: float) -> float:
        """Bound of max‖D_ℓ‖_op after ``steps`` ≥ k_1 steps of descent.

        (1−ηλ)^{2(k−k_1)}(‖D(0)‖ + 4ηC_λ(θ_0) + 4ηλm) + 12ηλm.
        """
        eta, decay, m = step_size, self.weight_decay, self.m
        start = max(self.imbalances) + 4 * eta * (self.data_cost + 0.5 * decay * self.norm**2) + 4 * eta * decay * m
        return (1 - eta * decay) ** (2 * max(0, steps - self.k1(eta))) * start + 12 * eta * decay * m


@checked(
    widths=many(integer(least=1, most=10**6), least=1),
    forms=many(pair(text), least=1),
    small=number(above=0, most=1.0),
    seed=integer(least=0),
    margin=number(least=1, finite=True),
)
def smallest_scale(
    objective: Objective,
    widths: Sequence[int],
    forms: Sequence[tuple[str, str]] = (("sharp", "flow"),),
    *,
    small: float = 1e-3,
    seed: int = 0,
    margin: float = 1.01,
) -> float:
    """The least ``scale`` of :func:`initialise` at which Assumption 4.3 holds in all ``forms``, times ``margin``.

    Args:
        forms: pairs (form, dynamics) as in :meth:`TwoPhase.assumption_4_3`.

    Example:
        >>> from ncutils.theory import general_position
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> smallest_scale(objective, [4, 3, 2]) > 1
        True
    """
    from scipy.optimize import brentq

    if not 0 < margin < math.inf:
        raise ValueError(f"margin must be positive and finite; got {margin}")

    def gap(log_scale: float) -> float:
        weights = initialise(objective, widths, math.exp(log_scale), small=small, seed=seed)
        phase = TwoPhase.at(objective, weights)
        tests = [phase.assumption_4_3(*form) for form in forms]
        return math.log(min(t.value / t.threshold for t in tests))

    return margin * math.exp(brentq(gap, -6.0, 6.0, xtol=1e-6))


# --- Theorem 4.4: conclusions


@checked()
def theorem_4_4(phase: TwoPhase, trajectory: Trajectory) -> list[Check]:
    """Every conclusion of Theorem 4.4 on one trajectory: fitting, path, error, norm, balancing, and NC1 a priori.

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.001)
        >>> weights = initialise(objective, [4, 3, 2], smallest_scale(objective, [4, 3, 2]))
        >>> phase = TwoPhase.at(objective, weights)
        >>> [check.quantity for check in theorem_4_4(phase, flow(objective, weights, [0.0, 0.5, 1.0]))]
        ['rate', 'path', 'error', 'norm', 'imbalance', 'nc1']
    """
    return [
        theorem_4_4_fitting(phase, trajectory),
        theorem_4_4_path(phase, trajectory),
        theorem_4_4_error(phase, trajectory),
        theorem_4_4_norm(phase, trajectory),
        theorem_4_4_balancing(phase, trajectory),
        theorem_4_4_nc1(phase, trajectory),
    ]


@checked()
def theorem_4_4_fitting(phase: TwoPhase, trajectory: Trajectory) -> Check:
    """Fitting: C_λ − λm, while positive, shrinks at the rate 2(1−κ)α (flow) or −ln(1−η(1−κ)α)/η (descent) at least.

    Measured: the slowest average rate ln(V_0/V(t))/t over recorded times t > 0 with V = C_λ − λm > 0.

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.001)
        >>> weights = initialise(objective, [4, 3, 2], smallest_scale(objective, [4, 3, 2]))
        >>> phase = TwoPhase.at(objective, weights)
        >>> check = theorem_4_4_fitting(phase, flow(objective, weights, [0.0, 0.05, 0.1]))
        >>> check.statement, check.holds
        ('Theorem 4.4 (fitting)', True)
    """
    hypotheses, excess = _along(phase, trajectory)
    seen = np.flatnonzero((excess > 0) & (trajectory.times > 0))
    hypotheses += (Hypothesis("recorded times t > 0 with V > 0", len(seen), 1, ">="),)
    rates = np.log(phase.excess / excess[seen]) / trajectory.times[seen]
    eta = trajectory.step_size
    bound = phase.rate if eta is None else phase.rate_per_step(eta) / eta
    measured = float(rates.min()) if len(seen) else math.inf
    tolerance = 1e-6 if eta is None else 1e-9
    return Check("Theorem 4.4 (fitting)", "rate", "sharp", hypotheses, measured, bound, ">=", tolerance)


@checked()
def theorem_4_4_path(phase: TwoPhase, trajectory: Trajectory) -> Check:
    """Fitting: the path up to the last recorded time with C_λ > λm is no longer than :meth:`TwoPhase.path_bound`.

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.001)
        >>> weights = initialise(objective, [4, 3, 2], smallest_scale(objective, [4, 3, 2]))
        >>> phase = TwoPhase.at(objective, weights)
        >>> check = theorem_4_4_path(phase, flow(objective, weights, [0.0, 0.5, 1.0]))
        >>> check.statement, check.holds
        ('Theorem 4.4 (path)', True)
    """
    hypotheses, excess = _along(phase, trajectory)
    seen = np.flatnonzero(excess > 0)
    hypotheses += (Hypothesis("recorded times with V > 0", len(seen), 1, ">="),)
    measured = float(trajectory.path[seen].max(initial=0.0))
    bound = phase.path_bound("flow" if trajectory.step_size is None else "descent")
    return Check("Theorem 4.4 (path)", "path", "sharp", hypotheses, measured, bound, "<=", 1e-6)


@checked()
def theorem_4_4_error(phase: TwoPhase, trajectory: Trajectory) -> Check:
    """Fitting: ‖E‖_F ≤ 2√(λm) ≤ ε1 for ever after t_1 (k_1 steps).

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.001)
        >>> weights = initialise(objective, [4, 3, 2], smallest_scale(objective, [4, 3, 2]))
        >>> phase = TwoPhase.at(objective, weights)
        >>> check = theorem_4_4_error(phase, flow(objective, weights, [0.0, 0.5, 1.0]))
        >>> check.statement, check.holds
        ('Theorem 4.4 (error)', True)
    """
    hypotheses, _ = _along(phase, trajectory)
    late = _after_fitting(phase, trajectory)
    hypotheses += (_fitted(phase, trajectory),)
    measured = float(trajectory.errors[late].max(initial=0.0))
    return Check("Theorem 4.4 (error)", "error", "simple", hypotheses, measured, phase.fitted_error(), "<=", 1e-6)


@checked()
def theorem_4_4_norm(phase: TwoPhase, trajectory: Trajectory) -> Check:
    """Throughout: ‖θ‖ ≤ √(2m).

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.001)
        >>> weights = initialise(objective, [4, 3, 2], smallest_scale(objective, [4, 3, 2]))
        >>> phase = TwoPhase.at(objective, weights)
        >>> check = theorem_4_4_norm(phase, flow(objective, weights, [0.0, 0.5, 1.0]))
        >>> check.statement, check.holds
        ('Theorem 4.4 (norm)', True)
    """
    hypotheses, _ = _along(phase, trajectory)
    measured = float(np.linalg.norm(trajectory.states, axis=1).max())
    return Check("Theorem 4.4 (norm)", "norm", "simple", hypotheses, measured, phase.radius, "<=", 1e-6)


@checked()
def theorem_4_4_balancing(phase: TwoPhase, trajectory: Trajectory) -> Check:
    """Balancing: max‖D_ℓ‖_op against e^{−2λt}max‖D_ℓ(0)‖ (flow, an equality for the worst layer) or, after k_1 steps,
    against :meth:`TwoPhase.descent_imbalance`; the recorded time at which the ratio is largest.

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.001)
        >>> weights = initialise(objective, [4, 3, 2], smallest_scale(objective, [4, 3, 2]))
        >>> phase = TwoPhase.at(objective, weights)
        >>> check = theorem_4_4_balancing(phase, flow(objective, weights, [0.0, 0.5, 1.0]))
        >>> check.statement, check.holds
        ('Theorem 4.4 (balancing)', True)
    """
    hypotheses, _ = _along(phase, trajectory)
    eta, steps = trajectory.step_size, trajectory.steps
    if eta is None or steps is None:
        late = np.arange(len(trajectory))
        bounds = max(phase.imbalances) * np.exp(-2 * phase.weight_decay * trajectory.times)
    else:
        late = _after_fitting(phase, trajectory)
        hypotheses += (_fitted(phase, trajectory),)
        bounds = np.array([phase.descent_imbalance(int(k), eta) for k in steps])
    if not len(late):
        return Check("Theorem 4.4 (balancing)", "imbalance", "simple", hypotheses, math.nan, math.nan, "<=")
    # Layers that start balanced stay so up to the accuracy of the trajectory, which is relative to the weights: no
    # time is judged at which that is more than a thousandth of the bound, if there are others.
    rounding = (1e-8 if eta is None else ROUNDING) * float(np.max(np.sum(trajectory.states**2, axis=1)))
    resolved = late[bounds[late] > 1e3 * rounding]
    late = resolved if len(resolved) else late
    worst = max(late, key=lambda i: float(trajectory.imbalances[i]) / max(float(bounds[i]), 1e-300))
    measured, bound = float(trajectory.imbalances[worst]), float(bounds[worst])
    tolerance = THREE_DIGITS if eta is None else 1e-9
    return Check(
        "Theorem 4.4 (balancing)", "imbalance", "simple", hypotheses, measured, bound, "<=", tolerance, rounding
    )


@checked()
def theorem_4_4_nc1(phase: TwoPhase, trajectory: Trajectory, form: str = "sharp") -> Check:
    """Conclusion: NC1(Z_{L−1}) at the last time against :meth:`TwoPhase.nc1_bound`, which knows θ_0, λ and t only.

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.001)
        >>> weights = initialise(objective, [4, 3, 2], smallest_scale(objective, [4, 3, 2]))
        >>> phase = TwoPhase.at(objective, weights)
        >>> check = theorem_4_4_nc1(phase, flow(objective, weights, [0.0, 0.5, 1.0]))
        >>> check.statement, check.holds
        ('Theorem 4.4 (NC1, a priori)', True)
    """
    hypotheses, _ = _along(phase, trajectory)
    eta, marks = trajectory.step_size, trajectory.steps
    if eta is None or marks is None:
        time = float(trajectory.times[-1])
        slack, imbalance = phase.slack(time), max(phase.imbalances) * math.exp(-2 * phase.weight_decay * time)
    else:
        steps = int(marks[-1])
        slack, imbalance = phase.slack_after(steps, eta), phase.descent_imbalance(steps, eta)
    bound = phase.nc1_bound(imbalance, form, slack)
    measured = float(trajectory.nc1[-1])
    hypotheses += (_fitted(phase, trajectory),)
    return Check("Theorem 4.4 (NC1, a priori)", "nc1", form, hypotheses, measured, bound, "<=")


def _along(phase: TwoPhase, trajectory: Trajectory) -> tuple[tuple[Hypothesis, ...], np.ndarray]:
    """The hypotheses of the theorem for this trajectory, and C_λ − λm along it."""
    decay = trajectory.objective.weight_decay
    if not math.isclose(phase.weight_decay, decay, rel_tol=1e-6):
        raise ValueError(f"phase must be {decay:g}, the trajectory's; got constants for λ = {phase.weight_decay:g}")
    if broken := len(trajectory) - int(np.isfinite(trajectory.states).all(axis=1).sum()):
        raise ValueError(
            f"trajectory must have finite states; got NaN or infinite entries in {broken} of {len(trajectory)}: "
            "did the descent diverge?"
        )
    phase.check_start(trajectory.objective, trajectory.weights(0))
    if trajectory.step_size is None:
        hypotheses = phase.hypotheses("flow")
    else:
        hypotheses = (
            *phase.hypotheses("descent"),
            Hypothesis("ηλ ≤ 1", trajectory.step_size * decay, 1.0, "<="),
            Hypothesis("descent inequality: largest violation", trajectory.descent_gap, DESCENT_ROUNDING, "<="),
        )
    return hypotheses, trajectory.costs - decay * phase.m


def _fitted(phase: TwoPhase, trajectory: Trajectory) -> Hypothesis:
    """The run lasts beyond the fitting phase."""
    if trajectory.step_size is None or trajectory.steps is None:
        return Hypothesis("t ≥ t_1", float(trajectory.times[-1]), phase.t1, ">=")
    return Hypothesis("k ≥ k_1", float(trajectory.steps[-1]), float(phase.k1(trajectory.step_size)), ">=")


def _after_fitting(phase: TwoPhase, trajectory: Trajectory) -> np.ndarray:
    if trajectory.step_size is None or trajectory.steps is None:
        return np.flatnonzero(trajectory.times >= phase.t1)
    return np.flatnonzero(trajectory.steps >= phase.k1(trajectory.step_size))
