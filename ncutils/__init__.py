"""Neural collapse in wide networks trained with weight decay: metrics, batched training, theorems as checks.

Companion library of the book; see the README for a five-line tour. Importing it needs torch and numpy only:
what plots, reads tables or integrates stiff equations is imported where it is used.
"""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> the module that defines it. Looked up on first use (PEP 562) so that `import ncutils` stays light.
_HOME = {
    "Classification": "data",
    "load": "data",
    "MLP": "networks",
    "ResNet20": "networks",
    "TrainingConfig": "training",
    "train": "training",
    "measure": "_measure",  # a module of that name would hide the function
    "Claim": "ledger",
    "Claims": "ledger",
    "certify": "theory",
    "Certificate": "theory",
    "Check": "theory",
}
_MODULES = ("data", "experiments", "ledger", "metrics", "networks", "plots", "theory", "training")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ncutils' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
