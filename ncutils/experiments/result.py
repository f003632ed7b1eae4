"""What a run gives back, and what the figures read from it."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ncutils import training
from ncutils._arguments import checked, table
from ncutils.experiments.specification import step_sizes

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Result:
    """A tidy frame with what it is: ``label`` for titles, ``provenance`` to know where it came from.

    One row of ``frame`` per (network, run, split, step, layer). Where a data frame is expected the result serves as
    one: indexing, ``len`` and every attribute it has not itself are the frame's. Frames made from it carry both in
    their ``attrs``, as long as pandas keeps those: :func:`pandas.concat` of different results does not.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> one = load_archive("1", "cores")
        >>> one.label
        'what two cores can: 60,000 digits of 28x28, 5 seeds, 20 epochs, float32, CPU'
        >>> one.provenance["seeds"], len(one) == len(one.frame)
        ([0, 1, 2, 3, 4], True)
    """

    frame: pd.DataFrame
    label: str
    provenance: dict

    def __post_init__(self) -> None:
        self.frame.attrs = {"label": self.label, "provenance": self.provenance}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "frame":  # copying and pickling ask before there is a frame
            raise AttributeError(name)
        return getattr(self.frame, name)

    def __getitem__(self, key):
        return self.frame[key]

    def __contains__(self, key) -> bool:
        return key in self.frame

    def __iter__(self):
        return iter(self.frame)

    def __len__(self) -> int:
        return len(self.frame)

    def _repr_html_(self) -> str:
        return self.frame._repr_html_()

    def final(self, split: str = "train"):
        """The rows at the end of training, of the runs that did not diverge."""
        return final(self.frame, split)

    def flow_time(self):
        """Flow time at each row: the sum of effective step sizes lr / (1 - momentum) up to its step."""
        return flow_time(self.frame)

    def head_ends(self, split: str = "train"):
        """One row a run: NC1, NC2 at the two ends of the linear head, and NC3. See :func:`head_ends`."""
        return head_ends(self.frame, split)

    def nonlinear_head(self, split: str = "train"):
        """One row a run: balancedness and negativity of the head's non-linear layers. See :func:`nonlinear_head`."""
        return nonlinear_head(self.frame, split)

    def class_grams(self, seed: int = 0) -> dict[int, object]:
        """Inner products of the class means at the end, layer -> (K, K) array. See :func:`class_grams`."""
        return class_grams(self.frame, seed)


def about_result(result, name: str):
    """``label`` or ``provenance`` of a result, or of a frame made from one.

    Raises:
        ValueError: a frame that carries neither.
    """
    attributes = vars(result) if isinstance(result, Result) else getattr(result, "attrs", {})
    if name not in attributes:
        raise ValueError(f"result must be a Result, or a frame that still carries its {name} (pd.concat may drop it)")
    return attributes[name]


def label(result) -> str:
    """Size, seeds and device of a result in one line.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> label(load_archive("1", "cores"))
        'what two cores can: 60,000 digits of 28x28, 5 seeds, 20 epochs, float32, CPU'
    """
    return about_result(result, "label")


@checked(frame=table("step", "diverged", "split"))
def final(frame, split: str = "train"):
    """The rows at the end of training, of the runs that did not diverge; warns of those that did.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> final(load_archive("1", "cores").frame)["step"].unique().tolist()
        [9360]
    """
    names = [name for name in ("setup", "depth", "run", "seed") if name in frame]
    if names and frame["diverged"].any():
        gone = frame.groupby(names)["diverged"].any()
        warnings.warn(f"{gone.sum()} of {len(gone)} runs diverged and are left out", stacklevel=3)
    return frame[(frame["step"] == frame["step"].max()) & ~frame["diverged"] & (frame["split"] == split)]


@checked(frame=table("lr", "step"))
def flow_time(frame):
    """Flow time at each row: the sum of effective step sizes lr / (1 - momentum) up to its step.

    Example:
        >>> from ncutils.experiments import load_archive, specification
        >>> bool(flow_time(load_archive("1", "cores")).max() == specification("1", "cores").flow_time)
        True
    """
    about = about_result(frame, "provenance")
    stored, samples = about["specification"], about["samples"]
    if stored.get("optimizer"):
        raise ValueError(f"frame must come from SGD, whose flow this is the time of; got {stored['optimizer']}")
    options = ("momentum", "warmup_steps", "drop_at", "drop_factor")
    known = {"steps": stored.get("steps")} | {name: stored[name] for name in options if name in stored}
    if "epochs" in stored and stored["epochs"] is not None:
        known["steps"] = stored["epochs"] * (samples // (stored["batch_size"] or samples))
    swept = [name for name in options if name in frame.columns]

    @functools.cache
    def times(*values):
        """Flow time before each step in units of lr, for these values of what was swept."""
        config = training.TrainingConfig(**known | dict(zip(swept, values, strict=True)))
        return step_sizes(config) / (1 - config.momentum)

    return frame["lr"] * [times(*values)[step] for step, *values in frame[["step", *swept]].itertuples(index=False)]


@checked(frame=table("depth", "layer", "nc1", "nc2", "nc3"))
def head_ends(frame, split: str = "train"):
    """One row a run: NC1 and NC2 at the two ends of the linear head (Figures 2 and 5), and NC3.

    The *last* layer is read as Z_{L-1}, what W_L reads, and the *first* as Z_{L1}, what the head reads: with one linear
    layer they are the same. (Z_L itself is the network's output, nearly the one-hot labels whatever the head does; its
    NC1 is given as ``nc1_output``.)

    Example:
        >>> from ncutils.experiments import load_archive
        >>> head_ends(load_archive("2-mlp", "cores").frame).groupby("depth")["run"].count().to_dict()
        {1: 6, 2: 6, 3: 6, 4: 6, 5: 6, 6: 6}
    """
    end = final(frame, split)
    runs = ["depth", "setup", "run", "seed", "lr", "weight_decay", "accuracy", "error"]
    layers = {
        "last": end["num_nonlinear"] + end["num_linear"] - 1,
        "first": end["num_nonlinear"],
        "output": end["num_nonlinear"] + end["num_linear"],
    }
    at = {name: end[end["layer"] == layer].set_index(["depth", "run"]) for name, layer in layers.items()}
    table = at["last"].reset_index()[[*runs, "nc1", "nc2", "nc3"]].set_index(["depth", "run"])
    table = table.rename(columns={"nc1": "nc1_last", "nc2": "nc2_last"})
    table["nc1_first"], table["nc2_first"] = at["first"]["nc1"], at["first"]["nc2"]
    table["nc1_output"] = at["output"]["nc1"]
    return table.reset_index()


@checked(frame=table("depth", "layer", "negativity", "balancedness"))
def nonlinear_head(frame, split: str = "train"):
    """One row a run: least and mean balancedness and negativity over the non-linear layers of the head (Figure 3).

    The head of an MLP is everything behind its first two layers: layers 3..L1 for negativity, their pairs (l, l+1) for
    balancedness, in both forms.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> nonlinear_head(load_archive("3", "cores").frame).groupby("depth")["run"].count().to_dict()
        {4: 6, 6: 6, 8: 6, 10: 6, 12: 6}
    """
    end = final(frame, split)
    inner = end[(end["layer"] >= 3) & (end["layer"] <= end["num_nonlinear"])]
    pairs = inner[inner["layer"] < inner["num_nonlinear"]]
    runs = ["depth", "setup", "run", "seed", "lr", "weight_decay", "accuracy"]
    table = inner.groupby(runs, as_index=False).agg(
        negativity_min=("negativity", "min"), negativity_mean=("negativity", "mean")
    )
    balance = pairs.groupby(["depth", "run"], as_index=False).agg(
        balancedness_min=("balancedness_relative", "min"),
        balancedness_mean=("balancedness_relative", "mean"),
        balancedness_op_min=("balancedness", "min"),
        balancedness_op_mean=("balancedness", "mean"),
    )
    return table.merge(balance, on=["depth", "run"])


@checked(frame=table("step", "seed"))
def class_grams(frame, seed: int = 0) -> dict[int, object]:
    """Inner products of the class means at the end, before any activation: layer -> (K, K) array, of one run.

    Raises:
        ValueError: the figure keeps none (those over training do), or has no such seed.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> grams = class_grams(load_archive("1", "cores").frame)
        >>> sorted(grams), grams[9].shape
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], (10, 10))
    """
    import numpy as np

    if "class_gram" not in frame:
        raise ValueError(f"figure {frame['figure'].iloc[0]} keeps no class means; expected one with class_means=True")
    rows = final(frame)
    rows = rows[(rows["seed"] == seed) & rows["class_gram"].notna()]
    if rows.empty:
        raise ValueError(f"seed must be one of {sorted(frame['seed'].unique().tolist())}; got {seed}")
    grams = {int(row.layer): np.asarray(row.class_gram, dtype=float) for row in rows.itertuples()}
    return {layer: gram.reshape(round(len(gram) ** 0.5), -1) for layer, gram in grams.items()}


class_means = class_grams  # the name it had
