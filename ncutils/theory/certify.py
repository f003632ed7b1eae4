"""``certify``: everything the theory says about one trained network, in one table."""

from __future__ import annotations

import copy
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ncutils.theory.checks import Check, _number, to_frame
from ncutils.theory.head import LinearHead
from ncutils.theory.tangent_kernel import proposition_5_3_floor
from ncutils.theory.theorem_3_1 import (
    theorem_3_1_conditioning,
    theorem_3_1_nc1,
    theorem_3_1_nc2,
    theorem_3_1_nc3,
)
from ncutils.theory.theorem_5_2 import proposition_5_1, theorem_5_2_posteriori

__all__ = ["Certificate", "certify", "linear_head"]

QUANTITIES = {
    "nc1": "NC1 at Z_{L−1}",
    "kappa_W_L": "κ of the last layer",
    "nc2": "NC2 at Z_{L−1}",
    "nc3": "NC3 at Z_{L−1}",
    "kappa_head": "κ of the linear head",
    "ntk": "‖NTK of the linear layers‖",
}
FORMS = ("paper", "simple", "sharp")


@dataclass(frozen=True, repr=False)
class Certificate:
    """What :func:`certify` returns: one check per quantity and form, and the few numbers they rest on.

    Attributes:
        checks: the checks, grouped by quantity in the order ``nc1, kappa_W_L, nc2, nc3, kappa_head, ntk``, each in the
            forms ``paper``, ``simple``, ``sharp``. ``paper`` uses only the paper's ingredients; its constants are the
            paper's for NC1 (up to an inferred factor 2) and reconstructed elsewhere.
        head: the linear head they were evaluated on, for further statements.
        layers: names of the head's layers in the model.
    """

    checks: tuple[Check, ...]
    head: LinearHead
    layers: tuple[str, ...]

    def check(self, quantity: str, form: str = "sharp") -> Check:
        """The check of one quantity in one form."""
        for c in self.checks:
            if (c.quantity, c.form) == (quantity, form):
                return c
        raise ValueError(
            f"quantity, form: got {quantity!r}, {form!r}, expected one of {tuple(QUANTITIES)} and one of {FORMS}"
        )

    def best(self, quantity: str) -> Check:
        """The form with the strongest bound among those whose hypotheses are met; the sharp one if none is."""
        sharp = self.check(quantity, "sharp")
        met = [c for c in self.checks if c.quantity == quantity and c.hypotheses_met]
        strongest = max if sharp.sense == ">=" else min
        return strongest(met, key=lambda c: c.bound) if met else sharp

    @property
    def holds(self) -> bool:
        """Whether no check is violated (a check whose hypotheses fail says nothing and does not count)."""
        return all(c.holds is not False for c in self.checks)

    def to_frame(self):
        """One row per quantity and form: statement, quantity, form, measured, bound, sense, hypotheses_met, holds."""
        return to_frame(self.checks)

    def _summary(self) -> dict[str, str]:
        head = self.head
        return {
            "samples N": str(head.num_samples),
            "classes K": str(head.num_classes),
            "linear layers L2": f"{head.depth} ({', '.join(self.layers)})",
            "error ε1 = ‖f(X) − Y‖_F": f"{_number(float(head.eps1))} (s_K(Y) = {_number(head.label_scale)})",
            "imbalance ε2 = max ‖D_ℓ‖": _number(float(head.eps2)),
            "one radius r": _number(float(head.radius)),
        }

    def __repr__(self) -> str:
        lines = ["Certificate"] + [f"  {name}: {value}" for name, value in self._summary().items()]
        for quantity, title in QUANTITIES.items():
            sharp = self.check(quantity)
            cells = "  ".join(f"{f} {_cell(self.check(quantity, f))}" for f in FORMS)
            lines.append(f"  {title}: {_number(sharp.measured)} {'≥' if sharp.sense == '>=' else '≤'}  {cells}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        summary = "; ".join(
            f"{html.escape(name)}: <b>{html.escape(value)}</b>" for name, value in self._summary().items()
        )
        rows = []
        for quantity, title in QUANTITIES.items():
            sharp = self.check(quantity)
            best = self.best(quantity)
            cells = []
            for form in FORMS:
                c = self.check(quantity, form)
                why = "; ".join(str(h) for h in c.hypotheses if not h.holds) or c.statement
                text = html.escape(_cell(c))
                text = f"<b>{text}</b>" if c is best and c.hypotheses_met else text
                cells.append(f"<td title='{html.escape(why, quote=True)}'>{text}</td>")
            sense = "≥" if sharp.sense == ">=" else "≤"
            rows.append(
                f"<tr><td {left}>{html.escape(title)}</td><td><code>{quantity}</code></td>"
                f"<td>{_number(sharp.measured)}</td><td>{sense}</td>{''.join(cells)}</tr>"
            )
        heads = "".join(f"<th>{h}</th>" for h in ("", "quantity", "measured", "", *FORMS))
        unmet = []
        for c in self.checks:
            unmet += [f"{c.quantity}, {c.form}: {h}" for h in c.hypotheses if not h.holds]
        notes = "".join(f"<li>{html.escape(line)}</li>" for line in unmet)
        notes = f"<p {left}>Hypotheses not met, where a form says nothing:</p><ul>{notes}</ul>" if notes else ""
        verdict = "no bound is violated" if self.holds else "a bound is VIOLATED (✗)"
        return (
            f"<div><p {left}>{summary}</p><table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"<p {left}>Bounds by form, the strongest in bold; {verdict}.</p>{notes}</div>"
        )


def _cell(check: Check) -> str:
    return {None: "–", True: f"{_number(check.bound)} ✓", False: f"{_number(check.bound)} ✗"}[check.holds]


def certify(model, x: Tensor, y: Tensor, *, batch_size: int = 2000) -> Certificate:
    """Evaluate the main statements on a network ending in at least two bias-free linear layers.

    These are the four parts of Theorem 3.1, Proposition 5.1 and the floors of Proposition 5.3, in all their forms; the
    sharp bound of κ(W_L) is that of Theorem 3.1 or of Theorem 5.2, whichever is lower here.

    Args:
        model: any ``nn.Module`` from inputs ``(N, …)`` to outputs ``(N, K)`` whose last modules are bias-free
            ``nn.Linear`` layers with nothing between them (the head is found by itself; a network of
            :mod:`ncutils.networks` must hold one run), or a pair ``(weights, features)``: the linear layers' weights,
            first to last, and the features entering them.
        x: inputs ``(N, …)``; for a pair, the features are taken from the pair and x is only counted (None is fine).
        y: labels ``(N,)``, integers 0..K−1, every class equally often.
        batch_size: samples a forward pass.

    Returns:
        The certificate. The model is copied, put in float64 and evaluation mode; the one given stays as it is.

    Raises:
        ValueError: the last layer has a bias, fewer than two linear layers, an activation or dropout between them,
            labels that do not match, classes that are not balanced, NaN in the weights or outputs.
    """
    if isinstance(model, (tuple, list)):
        weights, features, names = _from_pair(model, x)
    else:
        weights, features, names = linear_head(model, x, y, batch_size=batch_size)
    head = LinearHead(weights, features, torch.as_tensor(y).to(features.device))
    checks = []
    for statement in (theorem_3_1_nc1, _kappa_last, theorem_3_1_nc2, theorem_3_1_nc3, proposition_5_1):
        checks += [statement(head, form) for form in FORMS]
    checks += [proposition_5_3_floor(head, form) for form in FORMS]
    return Certificate(tuple(checks), head, tuple(names))


def _kappa_last(head: LinearHead, form: str) -> Check:
    """Two statements have a sharp form for κ(W_L); the one that says more here."""
    check = theorem_3_1_conditioning(head, form)
    if form != "sharp":
        return check
    other = theorem_5_2_posteriori(head)
    return check if check.hypotheses_met and not check.bound >= other.bound else other


def _from_pair(pair, x) -> tuple[list[Tensor], Tensor, list[str]]:
    if len(pair) != 2 or isinstance(pair[0], Tensor):
        raise ValueError("model: got a sequence, expected a pair (weights, features) with a list of weight matrices")
    weights = [torch.as_tensor(w).detach() for w in pair[0]]
    features = torch.as_tensor(pair[1]).detach()
    if x is not None and len(x) != len(features):
        raise ValueError(f"x: got {len(x)} samples, but the features have {len(features)}")
    return weights, features, [f"W_{i + 1}" for i in range(len(weights))]


def linear_head(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 2000):
    """Find the linear head of a model and the features entering it.

    Returns:
        ``(weights, features, names)``: float64 weights, first to last, the features ``(N, n)`` and the layers' names.

    Raises:
        ValueError: as :func:`certify`.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: got {type(model).__name__}, expected an nn.Module or a pair (weights, features)")
    if hasattr(model, "num_runs") and hasattr(model, "sequential"):
        if model.num_runs != 1:
            raise ValueError(f"model: got {model.num_runs} runs, expected one network: pass model.run(r)")
        model = model.sequential(0)
    x, labels = torch.as_tensor(x), torch.as_tensor(y)
    if labels.ndim != 1 or len(labels) != len(x):
        raise ValueError(f"y: got shape {tuple(labels.shape)} for {len(x)} samples, expected ({len(x)},)")
    if len(x) == 0:
        raise ValueError("x: got no samples")
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ValueError(f"model: got NaN or infinite entries in {', '.join(broken)}")
    model = copy.deepcopy(model).double().eval()
    first = next(model.parameters(), None)
    if first is not None:
        x = x.to(first.device)
    if x.is_floating_point():
        x = x.double()
        if not torch.isfinite(x).all():
            raise ValueError("x: got NaN or infinite entries, expected finite numbers")
    with torch.no_grad():
        names = _find_head(model, x[: min(len(x), 16)])
        linears = [model.get_submodule(name) for name in names]
        collected = []
        handle = linears[0].register_forward_pre_hook(lambda module, args: collected.append(args[0].clone()))
        outputs = torch.cat([model(chunk) for chunk in x.split(batch_size)])
        handle.remove()
        if not torch.isfinite(outputs).all():
            raise ValueError("model: got NaN or infinite outputs on x")
        return [linear.weight.clone() for linear in linears], torch.cat(collected), names


def _find_head(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the trailing linear layers, in order, from the order in which modules are called."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = tuple(f"{name}." for name in linears)  # parametrisations of a linear layer are part of it
    calls: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():
        if name.startswith(inside) if inside else False:
            continue
        if isinstance(module, nn.Linear) or not list(module.children()):
            handles.append(
                module.register_forward_hook(lambda m, args, out, name=name: calls.append((name, _copy(out))))
            )
    output = model(x)
    for handle in handles:
        handle.remove()
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(x):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: got an output of shape {shape}, expected (N, K) = ({len(x)}, K)")
    called = [i for i, (name, _) in enumerate(calls) if name in linears]
    if not called:
        raise ValueError("model: got no nn.Linear layer, expected at least two bias-free ones at the end")
    last, after = calls[called[-1]], calls[called[-1] + 1 :]
    after = [name for name, _ in after if not isinstance(model.get_submodule(name), nn.Identity)]
    if after or not torch.equal(last[1], output):
        what = f"'{after[-1]}' ({type(model.get_submodule(after[-1])).__name__})" if after else "an operation"
        raise ValueError(
            f"model: {what} stands after the last linear layer '{last[0]}', expected the model to end there"
        )
    if model.get_submodule(last[0]).bias is not None:
        raise ValueError(f"model: the last linear layer '{last[0]}' has a bias, expected nn.Linear(…, bias=False)")

    head, reason = [last[0]], "it is the only linear layer"
    for later, earlier in zip(called[::-1], called[::-1][1:], strict=False):
        name, between = calls[earlier][0], [n for n, _ in calls[earlier + 1 : later]]
        between = [n for n in between if not isinstance(model.get_submodule(n), nn.Identity)]
        reason = None
        if between:
            kinds = ", ".join(f"'{n}' ({type(model.get_submodule(n)).__name__})" for n in between)
            reason = f"{kinds} stands between '{name}' and '{head[0]}'"
        elif model.get_submodule(name).bias is not None:
            reason = f"'{name}' has a bias"
        elif [n for n, _ in calls].count(name) > 1 or name in head:
            reason = f"'{name}' is used more than once"
        elif not _linear_after(model, x, name, head):
            reason = f"an operation that is not a module stands between '{name}' and '{head[0]}'"
        if reason:
            break
        head.insert(0, name)
    if len(head) < 2:
        raise ValueError(f"model: got one bias-free linear layer at the end, expected at least two: {reason}")
    return head


def _linear_after(model: nn.Module, x: Tensor, name: str, head: Sequence[str]) -> bool:
    """Whether the model, the output of ``name`` replaced by noise of both signs, is the head applied to that."""
    noise = []

    def replace(module, args, out):
        generator = torch.Generator().manual_seed(0)
        noise.append(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out))
        return noise[-1]

    handle = model.get_submodule(name).register_forward_hook(replace)
    try:
        output = model(x)
    finally:
        handle.remove()
    expected = noise[0]
    for layer in head:
        weight = model.get_submodule(layer).weight
        if expected.shape[-1] != weight.shape[1]:
            return False
        expected = expected @ weight.T
    scale = float(expected.abs().max())
    return math.isfinite(scale) and torch.allclose(output, expected, rtol=0, atol=1e-9 * max(scale, 1e-300))


def _copy(output):
    return output.detach().clone() if isinstance(output, Tensor) else output
