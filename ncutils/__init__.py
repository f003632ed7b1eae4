"""Neural collapse in wide networks trained with weight decay: metrics, batched training, theorems as checks.

Companion library of the book on Jacot, Súkeník, Wang & Mondelli (ICLR 2025, arXiv:2410.04887); see the README for a
five-line tour. Importing it needs torch and numpy only: what plots, reads tables or integrates stiff equations is
imported where it is used.
"""

__version__ = "0.1.0"

from ncutils import claims, data, experiments, ledger, metrics, networks, plots, theory, training
from ncutils._measure import measure  # a module of that name would hide the function
from ncutils.claims import Claim, Claims
from ncutils.data import Classification, Dataset, load
from ncutils.networks import MLP, ResNet20
from ncutils.theory import Certificate, Check, certify
from ncutils.training import TrainingConfig, train

__all__ = [
    "MLP",
    "Certificate",
    "Check",
    "Claim",
    "Claims",
    "Classification",
    "Dataset",
    "ResNet20",
    "TrainingConfig",
    "certify",
    "claims",
    "data",
    "experiments",
    "ledger",
    "load",
    "measure",
    "metrics",
    "networks",
    "plots",
    "theory",
    "train",
    "training",
]
