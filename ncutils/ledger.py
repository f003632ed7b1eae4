"""The former name of :mod:`ncutils.claims`."""

from .claims import MEDIA_TYPE, VERDICTS, Claim, Claims, read_claims

__all__ = ["MEDIA_TYPE", "VERDICTS", "Claim", "Claims", "read_claims"]
