"""The flow of Theorem 4.4 beyond a few hundred parameters, and at weight decays below rounding (ours).

Gradient flow on C_λ is θ' = −JᵀE − λθ with E = f(θ) − Y and J the Jacobian of the NK outputs. An implicit step has to
solve with aI + hγ(JᵀJ + ΣE∇²f), which is p × p; but JᵀJ has rank NK, so the same step can be solved in the tangent
kernel JJᵀ, which is NK × NK (Woodbury), and ΣE∇²f is small enough for an accelerated fixed-point iteration.

E is carried as an unknown of its own, with f(θ) − Y = E as its equation. On the slide E = λΛ with Λ of the size of θ/J,
and JᵀE balances λθ: computed as f(θ) − Y it would drown in rounding for λ below 1e-10 or so; as an unknown it does not.

:func:`slide` integrates; :func:`whitened_start` is a start for which real digits are as good as orthogonal inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from ncutils._arguments import checked, integer, many, number, positive
from ncutils.theory.simulate import Objective, Trajectory, op_norm, pack, unpack

__all__ = ["output_kernel", "slide", "whitened_start"]

GAMMA = 1 - 1 / math.sqrt(2)  # of the L-stable two-stage SDIRK method of order 2
MEMORY = 6  # differences that the fixed-point iteration remembers
ITERATIONS = 40
# The accuracy of a stage, relative to the state: far below the method's own error.
ACCURACY = 1e-12


class _Point:
    """The network at one state: outputs, and J applied to vectors."""

    def __init__(self, objective: Objective, state: np.ndarray, shapes: Sequence[tuple[int, int]]):
        self.nonlinear, self.samples, self.shapes = objective.num_nonlinear, objective.num_samples, shapes
        self.weights = unpack(state, shapes)
        pre, self.post = objective.features(self.weights)
        self.slopes = [objective.slope(h) for h in pre[: self.nonlinear]]
        self.residual = self.post[-1] - objective.one_hot

    def push(self, direction: np.ndarray) -> np.ndarray:
        """Jv, ``(N, K)``."""
        change = np.zeros_like(self.post[0])
        for layer, (w, u) in enumerate(zip(self.weights, unpack(direction, self.shapes), strict=True)):
            change = self.post[layer] @ u.T + (change @ w.T if layer else 0)
            if layer < self.nonlinear:
                change = change * self.slopes[layer]
        return change

    def pull(self, error: np.ndarray) -> np.ndarray:
        """JᵀE, flat."""
        out = []
        for layer in reversed(range(len(self.weights))):
            if layer < self.nonlinear:
                error = error * self.slopes[layer]
            out.append(error.T @ self.post[layer])
            if layer:
                error = error @ self.weights[layer]
        return pack(out[::-1])

    def kernel(self) -> np.ndarray:
        """JJᵀ, ``(NK, NK)``, sample by sample."""
        classes = len(self.weights[-1])
        total = np.zeros((self.samples, classes, self.samples, classes))
        after = np.eye(classes)  # d output/d H_layer: one matrix for all samples while the layers above are linear
        for layer in reversed(range(len(self.weights))):
            if layer < self.nonlinear:
                after = after * self.slopes[layer][:, None, :]
            gram = self.post[layer] @ self.post[layer].T
            if after.ndim == 2:
                total += gram[:, None, :, None] * (after @ after.T)[None, :, None, :]
            else:
                flat = after.reshape(self.samples * classes, -1)
                total += gram[:, None, :, None] * (flat @ flat.T).reshape(total.shape)
            if layer:
                after = after @ self.weights[layer]
        return total.reshape(self.samples * classes, -1)


@checked()
def output_kernel(objective: Objective, weights: Sequence) -> np.ndarray:
    """The tangent kernel JJᵀ of the NK outputs, ``(NK, NK)``, in closed form; rows run over samples, then classes.

    >>> import numpy as np
    >>> objective = Objective(np.eye(2), np.arange(2), 1, 0.0, activation="identity")
    >>> output_kernel(objective, [np.eye(2), np.eye(2)]).diagonal().tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    return _Point(objective, pack(objective.arrays(weights)), objective.shapes(weights)).kernel()


def _stage(objective, shapes, base, weight, solve, state, error):
    """Solve θ = base − weight(JᵀE + λθ), f(θ) − Y = E from (state, error); None if the iteration does not settle."""
    scale, dim = np.linalg.norm(base), base.size
    a, classes = 1 + weight * objective.weight_decay, error.shape[1]
    points, steps = [], []
    z = np.concatenate([state, error.ravel()])
    size = math.inf
    for _ in range(ITERATIONS):
        point = _Point(objective, z[:dim], shapes)
        error = z[dim:].reshape(-1, classes)
        first = z[:dim] - base + weight * (point.pull(error) + objective.weight_decay * z[:dim])
        second = point.residual - error
        d_error = solve((second - point.push(first) / a).ravel())
        d_state = -(first + weight * point.pull(d_error.reshape(-1, classes))) / a
        step, size = np.concatenate([d_state, d_error]), float(np.linalg.norm(d_state))
        if not math.isfinite(size) or size > scale:
            return None
        if size < ACCURACY * scale:
            return z + step
        points.append(z)
        steps.append(step)
        z = z + step
        if len(steps) > 1:  # Anderson acceleration, judged on θ alone
            dz = np.diff(np.array(points[-MEMORY - 1 :]), axis=0)
            df = np.diff(np.array(steps[-MEMORY - 1 :]), axis=0)
            mix = np.linalg.lstsq(df[:, :dim].T, step[:dim], rcond=1e-10)[0]
            z = z - mix @ (dz + df)
    return None


@checked(
    times=many(number(least=0, finite=True), least=2),
    first=positive,
    growth=number(least=1e-3, finite=True),
    largest=number(least=1e-6, finite=True),
)
def slide(
    objective: Objective,
    weights: Sequence,
    times: Sequence[float] | np.ndarray,
    *,
    first: float = 0.01,
    growth: float = 0.08,
    largest: float = 0.02,
) -> Trajectory:
    """Gradient flow θ' = −∇C_λ by an implicit method of order 2 that solves in the NK × NK tangent kernel.

    For the same result as :func:`~ncutils.theory.simulate.flow` where p is in the thousands (a step costs (NK)³ and
    NKp, not p³), or λ too small for f(θ) − Y to be computed as a difference. There is no error control: steps are
    ``first/‖JJᵀ‖`` at the start, ``growth`` times the time so far, and at most ``largest/λ``; halve them and compare.
    A step whose equations the iteration does not solve is halved. The path is the quadrature of the speed.

    Args:
        objective: C_λ with λ > 0.
        weights: θ_0.
        times: increasing, at least two, from 0; where to record.
        first, growth, largest: the step sizes, see above.

    Raises:
        ValueError: times that do not increase from 0; λ = 0; step sizes that are not positive.
        RuntimeError: a step had to be halved more than 40 times.
    """
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2 or times[0] != 0 or not (np.diff(times) > 0).all():
        raise ValueError(f"times must be at least two, increasing from 0; got {times}")
    if not objective.weight_decay > 0:
        raise ValueError(f"objective.weight_decay must be positive; got {objective.weight_decay}")
    shapes, decay = objective.shapes(weights), objective.weight_decay
    state = pack(objective.arrays(weights))
    point = _Point(objective, state, shapes)
    error = point.residual
    least = first / np.linalg.eigvalsh(point.kernel())[-1]
    states, paths, path, now = [state], [0.0], 0.0, 0.0
    for stop in times[1:]:
        while now < stop:
            h, halvings = min(max(least, growth * now), largest / decay), 0
            h = stop - now if now + 1.001 * h >= stop else h
            kernel = _Point(objective, state, shapes).kernel()
            while True:
                advanced = _advance(objective, shapes, state, error, kernel, h)
                if advanced is not None:
                    break
                h, halvings = h / 2, halvings + 1
                if halvings > 40:
                    raise RuntimeError(f"the step at t = {now:.3g} of {times[-1]:.3g} has no solution")
            state, error, length = advanced
            path += length
            now = stop if math.isclose(now + h, stop, rel_tol=1e-12) else now + h
        states.append(state)
        paths.append(path)
    return Trajectory(objective, shapes, times, np.array(states), np.array(paths))


def _advance(objective, shapes, state, error, kernel, h):
    """One step: (state, error, length), or None."""
    weight = h * GAMMA
    system = weight / (1 + weight * objective.weight_decay) * kernel
    system[np.diag_indices_from(system)] += 1
    factor = linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)

    def solve(b):
        return linalg.cho_solve(factor, b, check_finite=False)

    middle = _stage(objective, shapes, state, weight, solve, state, error)
    if middle is None:
        return None
    slope = (middle[: state.size] - state) / weight
    base = state + h * (1 - GAMMA) * slope
    guess = middle[state.size :].reshape(error.shape)
    end = _stage(objective, shapes, base, weight, solve, middle[: state.size], guess)
    if end is None:
        return None
    last = (end[: state.size] - base) / weight
    length = h * ((1 - GAMMA) * np.linalg.norm(slope) + GAMMA * np.linalg.norm(last))
    return end[: state.size], end[state.size :].reshape(error.shape), length


@checked(
    widths=many(integer(least=1, most=10**5), least=2),
    scale=positive,
    head=positive,
    size=number(least=0, finite=True),
    seed=integer(least=0, most=2**32 - 1),
)
def whitened_start(
    objective: Objective, widths: Sequence[int], scale: float, *, head: float = 2.0, size: float = 0.3, seed: int = 0
) -> list[Tensor]:
    """A start with Z_1 = μ‖X‖I, W_p = ``head``·μ times orthonormal rows, and Z_2 hidden in the kernel of W_{L:3}.

    With W_1 = cX⁺ the first layer undoes the correlations of the inputs, so Assumption 4.3 is met at a far smaller ‖θ‖
    than with an orthonormal W_1 when X is badly conditioned. f(X) = 0 exactly.

    Args:
        objective: its inputs, of rank N, and activation; at most 2 layers with an activation.
        widths: n_1..n_L; n_1 ≥ N.
        scale: μ.
        head: s_min(W_p) in units of μ.
        size: ‖Z_2‖ in units of μ‖Z_1‖; 0 for W_2 = 0.
        seed: of the random draws.

    Raises:
        ValueError: n_1 < N, inputs of rank below N, or what :func:`~ncutils.theory.dichotomy.hidden_start` raises.
    """
    from scipy.optimize import brentq

    from ncutils.theory.dichotomy import hide

    samples = objective.num_samples
    if widths[0] < samples:
        raise ValueError(f"widths must be at least N = {samples}; got n_1 = {widths[0]}")
    if np.linalg.matrix_rank(objective.x) < samples:
        raise ValueError(f"objective.x must have rank N = {samples}; got {np.linalg.matrix_rank(objective.x)}")
    target = scale * op_norm(objective.x)
    c = brentq(lambda h: float(objective.sigma(np.array(h))) - target, 0.0, 2 * target / objective.gamma)
    generator = np.random.default_rng(seed)
    first = np.zeros((widths[0], objective.x.shape[1]))
    first[:samples] = c * np.linalg.pinv(objective.x).T
    weights = [first, np.zeros((widths[1], widths[0]))]
    for fan_in, fan_out in itertools.pairwise(widths[1:]):
        q = np.linalg.qr(generator.standard_normal((max(fan_in, fan_out), min(fan_in, fan_out))))[0]
        weights.append(head * scale * (q if fan_out >= fan_in else q.T))
    objective.shapes(weights)
    hide(objective, weights, size * scale, seed)
    return [torch.from_numpy(np.ascontiguousarray(w)) for w in weights]
