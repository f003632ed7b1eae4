"""``certify``: everything the theory says about one trained network, in one table.

The theory is that of arXiv:2410.04887, Theorems 3.1 and 5.2 and Propositions 5.1 and 5.3.
"""

from __future__ import annotations

import copy
import html
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ncutils._arguments import anything, as_tensor, checked, integer, shown
from ncutils.theory.certificates import certificate_of_last_layer, head_certificate
from ncutils.theory.checks import Check, Tally, _number, bound_text, tally, to_frame
from ncutils.theory.every_layer import every_layer_nc1, every_layer_nc2, every_layer_nc3
from ncutils.theory.head import LinearHead
from ncutils.theory.inheritance import inheritance
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
# How far, relative to the outputs, float64 products in another order may be apart: far above rounding, far below
# what any adapter, hook or activation does.
SAME = 1e-9
HARMLESS = (nn.Identity, nn.Flatten, nn.Dropout, nn.AdaptiveAvgPool2d, nn.AvgPool2d)


@dataclass(frozen=True, repr=False)
class Certificate:
    """What :func:`certify` returns: one check per quantity and form, and the few numbers they rest on.

    Attributes:
        checks: the checks, grouped by quantity in the order ``nc1, kappa_W_L, nc2, nc3, kappa_head, ntk``, each in the
            forms ``paper``, ``simple``, ``sharp``. ``paper`` uses only the paper's ingredients; its constants are the
            paper's for NC1 (up to an inferred factor 2) and reconstructed elsewhere.
        head: the linear head they were evaluated on, for further statements.
        layers: names of the head's layers in the model.
        further: statements of this project that have one form only: inheritance of NC1 (whatever the loss), the joint
            certificate of κ(A), the certificate of κ(W_L) and, for three linear layers or more, NC1, NC2 and NC3 at
            every linear layer before Z_{L−1}.

    Example:
        >>> model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Linear(8, 3, bias=False))
        >>> certificate = certify(model, torch.randn(60, 5), torch.arange(60) % 3)
        >>> certificate.check("nc1").statement
        'Theorem 3.1 (NC1)'
    """

    checks: tuple[Check, ...]
    head: LinearHead
    layers: tuple[str, ...]
    further: tuple[Check, ...] = ()

    def check(self, quantity: str, form: str = "sharp") -> Check:
        """The check of one quantity in one form."""
        for c in self.checks:
            if (c.quantity, c.form) == (quantity, form):
                return c
        raise ValueError(
            f"quantity, form must be one of {tuple(QUANTITIES)} and one of {FORMS}; got {quantity!r}, {form!r}"
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
        return all(c.holds is not False for c in self.checks + self.further)

    @property
    def tally(self) -> Tally:
        """How many checks spoke, were silent, were vacuous, were violated."""
        return tally(self.checks + self.further)

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
            lines.append(f"  {title}: {bound_text(sharp.measured)} {'≥' if sharp.sense == '>=' else '≤'}  {cells}")
        lines += [f"  {title}: {measured} {sense} {cell}" for title, measured, sense, cell in self._further()]
        return "\n".join([*lines, f"  {self.tally}", *(f"  – {note}" for note in self._unmet())])

    def _further(self) -> list[tuple[str, str, str, str]]:
        """Title, measured value, sign and bound of the checks that have one form."""
        return [(_title(c), bound_text(c.measured), "≥" if c.sense == ">=" else "≤", _cell(c)) for c in self.further]

    def _unmet(self) -> list[str]:
        """Why forms are silent, one line a hypothesis, with the forms that it silences."""
        silenced: dict[str, list[str]] = {}
        for c in self.checks + self.further:
            for h in c.hypotheses:
                if not h.holds:
                    silenced.setdefault(str(h), []).append(f"{c.quantity} {c.form}")
        return [f"{hypothesis}: {', '.join(forms)}" for hypothesis, forms in silenced.items()]

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
        for title, measured, sense, cell in self._further():
            rows.append(
                f"<tr><td {left}>{html.escape(title)}</td><td></td><td>{measured}</td><td>{sense}</td>"
                f"<td></td><td></td><td>{html.escape(cell)}</td></tr>"
            )
        heads = "".join(f"<th>{h}</th>" for h in ("", "quantity", "measured", "", *FORMS))
        notes = "".join(f"<li>{html.escape(line)}</li>" for line in self._unmet())
        notes = f"<p {left}>Hypotheses not met, where a form says nothing:</p><ul>{notes}</ul>" if notes else ""
        verdict = str(self.tally) if self.holds else f"a bound is VIOLATED (✗): {self.tally}"
        return (
            f"<div><p {left}>{summary}</p><table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"<p {left}>Bounds by form, the strongest in bold; {verdict}.</p>{notes}</div>"
        )


def _cell(check: Check) -> str:
    if check.silent:
        return "–"
    return f"{bound_text(check.bound)} {'✗' if check.violated else '(vacuous)' if check.vacuous else '✓'}"


def _title(check: Check) -> str:
    name, _, layer = check.quantity.rpartition("_")
    if layer.isdigit():
        return f"{name.upper()} at Z_{{L1+{layer}}}"
    return {"nc1": "NC1 at Z_{L−1}, inherited", "log_kappa_head": "ln κ of the linear head"}.get(
        check.quantity, "ln κ of the last layer"
    )


@checked(batch_size=integer(least=1), y=anything)
def certify(model, x, y: Tensor | None = None, *, batch_size: int = 2000) -> Certificate:
    """Evaluate the main statements on a network ending in at least two bias-free linear layers.

    These are the four parts of Theorem 3.1, Proposition 5.1 and the floors of Proposition 5.3 (arXiv:2410.04887), in
    all their forms; the sharp bound of κ(W_L) is that of Theorem 3.1 or of Theorem 5.2, whichever is lower here. Then
    ``further`` statements of this project; the first, inheritance, speaks whatever loss the network was trained on.

    Args:
        model: any ``nn.Module`` from inputs ``(N, …)`` to outputs ``(N, K)`` that ends in bias-free ``nn.Linear``
            layers (or 1×1 convolutions before average pooling) with nothing between them that acts in evaluation
            mode. The head is found by itself, and what it computes is compared with the model's outputs. A network of
            :mod:`ncutils.networks` must hold one run. Or a pair ``(weights, features)``: the linear layers' weights,
            first to last, and the features entering them.
        x: inputs ``(N, …)``; or, without ``y``, a ``DataLoader`` or ``Dataset`` of ``(inputs, labels)``, a pair
            ``(x, y)`` or a data set with ``x`` and ``y``. Beside a pair ``(weights, features)``, x is only counted
            (None is fine).
        y: labels ``(N,)``, integers 0..K−1, every class present. The ``paper`` forms ask for classes of one size.
        batch_size: samples a forward pass; a loader has its own.

    Returns:
        The certificate. The model is copied, put in float64 and evaluation mode; the one given stays as it is. Of a
        loader only the features that enter the head are kept, ``(N, n)`` in float64.

    Raises:
        ValueError: the last layer has a bias, fewer than two linear layers, something between or after them, outputs
            that are not those of the head, a model that torch cannot copy or evaluate in float64 (naming the layer),
            labels that do not match, NaN in the weights, inputs or outputs.

    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> head = (nn.Linear(5, 5, bias=False), nn.Linear(5, 3, bias=False))
    >>> model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), *head)
    >>> certificate = certify(model, torch.randn(12, 4), torch.arange(12) % 3)
    >>> certificate.layers, certificate.holds, str(certificate.tally)
    (('2', '3'), True, '0 violated of 6 that speak (13 silent, 2 vacuous)')
    """
    if isinstance(model, (tuple, list)):
        weights, features, names = _from_pair(model, x)
        if y is None:
            raise ValueError("y must be given with a pair (weights, features); got None")
        labels = torch.as_tensor(y)
    else:
        weights, features, labels, names = extract(model, x, y, batch_size)
    head = LinearHead(weights, features, labels.to(features.device))
    checks = []
    with torch.enable_grad():  # some statements differentiate, whatever the caller has switched off
        for statement in STATEMENTS:
            checks += [statement(head, form) for form in FORMS]
        further = [inheritance(head), head_certificate(head), certificate_of_last_layer(head)]
        for layer in range(1, head.depth - 1):  # at the last of them Theorem 3.1 itself stands above
            further += [statement(head, layer) for statement in (every_layer_nc1, every_layer_nc2, every_layer_nc3)]
    return Certificate(tuple(checks), head, tuple(names), tuple(further))


def _kappa_last(head: LinearHead, form: str) -> Check:
    """Two statements have a sharp form for κ(W_L); the one that says more here."""
    check = theorem_3_1_conditioning(head, form)
    if form != "sharp":
        return check
    other = theorem_5_2_posteriori(head)
    return check if check.hypotheses_met and not check.bound >= other.bound else other


STATEMENTS = (
    theorem_3_1_nc1,
    _kappa_last,
    theorem_3_1_nc2,
    theorem_3_1_nc3,
    proposition_5_1,
    proposition_5_3_floor,
)


def _from_pair(pair, x) -> tuple[list[Tensor], Tensor, list[str]]:
    if len(pair) != 2 or isinstance(pair[0], Tensor):
        raise ValueError("model must be a module or a pair (list of weights, features); got another sequence")
    if not isinstance(pair[0], (list, tuple)):
        raise TypeError(f"model must be a module or a pair (list of weights, features); got {shown(pair[0])} first")
    weights = [as_tensor("weights", w).detach() for w in pair[0]]
    features = as_tensor("features", pair[1]).detach()
    if x is not None and len(x) != len(features):
        raise ValueError(f"x must hold the {len(features)} samples of the features; got {len(x)}")
    return weights, features, [f"W_{i + 1}" for i in range(len(weights))]


@checked(batch_size=integer(least=1), y=anything)
def linear_head(model: nn.Module, x, y: Tensor | None = None, *, batch_size: int = 2000):
    """Find the linear head of a model and the features entering it.

    Returns:
        ``(weights, features, names)``: float64 weights, first to last, the features ``(N, n)`` and the layers' names.

    Raises:
        ValueError: as :func:`certify`.

    Example:
        >>> model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Linear(8, 3, bias=False))
        >>> weights, features, names = linear_head(model, torch.randn(60, 5), torch.arange(60) % 3)
        >>> names, tuple(features.shape)
        (['2', '3'], (60, 8))
    """
    weights, features, _, names = extract(model, x, y, batch_size)
    return weights, features, names


def extract(model: nn.Module, x, y, batch_size: int = 2000) -> tuple[list[Tensor], Tensor, Tensor, list[str]]:
    """:func:`linear_head` with the labels, which a loader brings along: ``(weights, features, y, names)``."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model must be an eager nn.Module; got a TorchScript module, which takes no hooks")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module or a pair (weights, features); got {type(model).__name__}")
    if hasattr(model, "num_runs") and callable(sequential := getattr(model, "sequential", None)):
        if model.num_runs != 1:
            raise ValueError(f"model must hold one network; got {model.num_runs} runs: pass model.run(r)")
        model = sequential(0)
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ValueError(f"model must have finite weights; got NaN or infinite entries in {', '.join(broken)}")
    for name, module in model.named_modules():
        if any(isinstance(value, Tensor) and value.grad_fn is not None for value in vars(module).values()):
            raise ValueError(
                f"model must keep its weights as parameters; got a computed tensor in {_Call(name, module)}: "
                "use torch.nn.utils.parametrizations in place of the old weight_norm or spectral_norm"
            )
    model = copy.deepcopy(model).double().eval()
    device = next((p.device for p in model.parameters()), None)
    batches = _batches(x, y, batch_size, device)
    first = next(batches, None)
    if first is None:
        raise ValueError("x must hold at least one sample; got no samples")
    with torch.no_grad():
        names = _find_head(model, first[0][:16])
        collected, outputs, labels = [], [], []
        handle = model.get_submodule(names[0]).register_forward_pre_hook(
            lambda module, args, kwargs: collected.append(_pooled(_argument(args, kwargs)).clone()), with_kwargs=True
        )
        for inputs, classes in itertools.chain([first], batches):
            outputs.append(_forward(model, inputs))
            labels.append(classes)
        handle.remove()
        features, whole = torch.cat(collected), torch.cat(outputs)
        if not torch.isfinite(whole).all():
            raise ValueError("model must have finite outputs on x; got NaN or infinite ones")
        weights = [_weight(model.get_submodule(name)).clone() for name in names]
        rebuilt, scale = _apply(weights, features), float(whole.abs().max())
        gap = math.inf if rebuilt is None else float((rebuilt - whole).abs().max())
        if not gap <= SAME * max(scale, 1e-300):
            raise ValueError(
                f"model must compute W_L…W_1 z from the input z of '{names[0]}'; got outputs up to {scale:.3g} "
                f"that differ from that by {gap:.3g}"
            )
        return weights, features, torch.cat(labels), names


def _batches(x, y, batch_size: int, device):
    """(inputs, labels) in float64 on the model's device, from tensors, from a data set of ours or from a loader."""
    if y is None and hasattr(x, "x") and hasattr(x, "y"):
        x, y = x.x, x.y
    elif y is None and isinstance(x, (tuple, list)) and len(x) == 2 and all(hasattr(part, "shape") for part in x):
        x, y = x
    elif y is None and isinstance(x, torch.utils.data.Dataset):
        x = torch.utils.data.DataLoader(x, batch_size=batch_size)
    if y is None:
        pairs = iter(x) if hasattr(x, "__iter__") and not isinstance(x, (Tensor, str)) else None
        if pairs is None:
            raise ValueError(
                f"x must be a loader, Dataset or pair of (inputs, labels) without y; got {type(x).__name__}"
            )
    else:
        x, y = as_tensor("x", x), as_tensor("y", y)
        if x.ndim < 2:
            raise ValueError(f"x must be (N, ...), one sample a row; got shape {tuple(x.shape)}")
        if y.ndim != 1 or len(y) != len(x):
            raise ValueError(f"y must be labels of shape ({len(x)},), one a sample; got shape {tuple(y.shape)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        pairs = zip(x.split(batch_size), y.split(batch_size), strict=True) if len(x) else iter(())
    for batch in pairs:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"x must yield pairs (inputs, labels); got {type(batch).__name__}")
        inputs, labels = (torch.as_tensor(part) for part in batch)
        if len(inputs) != len(labels):
            raise ValueError(
                f"x must yield as many labels as inputs; got {len(inputs)} inputs and {len(labels)} labels"
            )
        inputs = inputs if device is None else inputs.to(device)
        if inputs.is_floating_point():
            inputs = inputs.double()
            if not torch.isfinite(inputs).all():
                raise ValueError("x must be finite; got NaN or infinite entries")
        yield inputs, labels


# --- the head, found by looking at what the model does


class _Call(NamedTuple):
    name: str
    module: nn.Module

    def __str__(self) -> str:
        return f"'{self.name}' ({type(self.module).__name__})"


def _find_head(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the trailing linear layers, in order: back from the last, as long as the model is linear from there.

    Whether it is, is tried and not read off the modules: what enters a layer is replaced by noise and by its
    negative, and the model must return the product of the weights times that noise.
    """
    calls, output = _calls(model, x)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(x):
        seen = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model must have an output of shape (N, K) = ({len(x)}, K); got an output of {seen}")
    used = Counter(call.name for call in calls)
    head: list[str] = []
    reason = "no nn.Linear layer"
    passed: list = []
    for call in reversed(calls):
        if _matrix(call.module) is None:
            passed.insert(0, call)
            continue
        where = f"stands between '{call.name}' and '{head[0]}'" if head else f"stands after '{call.name}'"
        blocking = [c for c in passed if not isinstance(c.module, HARMLESS)]
        if _is_head(model, x, [call.name, *head], used[call.name]):
            head.insert(0, call.name)
            reason, passed = "it is the only linear layer", []
            continue
        if blocking:
            reason = f"{', '.join(map(str, blocking))} {where}"
        elif call.module.bias is not None:
            reason = f"'{call.name}' has a bias"
        elif used[call.name] > 1:
            reason = f"'{call.name}' is used more than once"
        elif not _computes_its_weight(call.module, x):
            reason = f"{call} does not compute z ↦ Wz with its weight W: a hook, an adapter or a subclass?"
        else:
            reason = f"an operation that is not a module {where}"
        break
    else:
        if head and passed:
            reason = f"{passed[-1]} stands before '{head[0]}'"
    if len(head) < 2:
        got = f"one, '{head[0]}'" if head else "none"
        raise ValueError(f"model must end in at least two bias-free linear layers; got {got}: {reason}")
    return head


def _calls(model: nn.Module, x: Tensor) -> tuple[list[_Call], Tensor]:
    """The layers in the order in which they finish, and the output. Containers only pass on what their parts do."""
    calls, handles = [], []
    linears = tuple(f"{name}." for name, module in model.named_modules() if _matrix(module) is not None and name)
    for name, module in model.named_modules():
        if linears and name.startswith(linears):  # parametrisations of a linear layer are part of it
            continue
        if _matrix(module) is not None or not list(module.children()):
            handles.append(module.register_forward_hook(lambda m, args, out, name=name: calls.append(_Call(name, m))))
    try:
        output = _forward(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    """model(x); what torch says against it is raised again with the name of the layer that it happened in."""
    inside, handles = [], []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, args, name=name: inside.append(_Call(name, m))))
        handles.append(module.register_forward_hook(lambda m, args, out: inside.remove(inside[-1])))
    try:
        return model(x)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        where = inside[-1] if inside and inside[-1].name else type(model).__name__
        what = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model must evaluate on x in float64; got an error at {where} for x of {x.dtype}, {tuple(x.shape)}: {what}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _is_head(model: nn.Module, x: Tensor, names: list[str], uses: int) -> bool:
    """Whether the model is the product of these layers' weights, whatever enters the first one."""
    layers = [model.get_submodule(name) for name in names]
    if uses > 1 or layers[0].bias is not None:
        return False
    entered: list[Tensor] = []

    def replace(module, args, kwargs):
        entered.append((-1) ** len(entered) * _noise(_argument(args, kwargs)))
        return (entered[-1], *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}

    handle = layers[0].register_forward_pre_hook(replace, with_kwargs=True)
    try:
        # both signs: of a single sample all units of a ReLU layer may be active, not of its negative too
        outputs = [_forward(model, x) for _ in range(2)]
    finally:
        handle.remove()
    weights = [_weight(layer) for layer in layers]
    return all(_same(out, _apply(weights, _pooled(z))) for out, z in zip(outputs, entered, strict=True))


def _computes_its_weight(layer: nn.Module, x: Tensor) -> bool:
    weight = _weight(layer)
    shape = (4, weight.shape[1]) if isinstance(layer, nn.Linear) else (4, weight.shape[1], 2, 2)
    noise = _noise(weight.new_zeros(shape))
    return _same(_pooled(layer(noise)), _apply([weight], _pooled(noise)))


def _matrix(module: nn.Module) -> Tensor | None:
    """The weight as a matrix, of a linear layer or of a convolution that is one at every pixel; else None."""
    if isinstance(module, nn.Linear):
        return module.weight
    if isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride, module.groups) == ((1, 1), (1, 1), 1):
        return module.weight.flatten(1) if module.padding in (0, (0, 0), "valid", "same") else None
    return None


def _weight(layer: nn.Module) -> Tensor:
    """:func:`_matrix` of a layer that is known to have one."""
    matrix = _matrix(layer)
    assert matrix is not None, layer
    return matrix


def _pooled(z: Tensor) -> Tensor:
    """Averages over pixels, which 1×1 convolutions commute with."""
    return z.mean((2, 3)) if z.ndim == 4 else z


def _apply(weights: Sequence[Tensor], z: Tensor) -> Tensor | None:
    for weight in weights:
        if z.ndim != 2 or z.shape[1] != weight.shape[1]:
            return None
        z = z @ weight.T
    return z


def _same(output: Tensor, expected: Tensor | None) -> bool:
    if expected is None or output.shape != expected.shape:
        return False
    scale = float(expected.abs().max())
    return math.isfinite(scale) and float((output - expected).abs().max()) <= SAME * max(scale, 1e-300)


def _noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)


def _argument(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["input"]
