"""What a certificate is made of: its records (records.py), from trees of ReLU splits (trees.py), and of input splits (inputs.py)."""

from verification.evidence.records import (
    STEPS,
    CellEvidence,
    InnerSlopes,
    RivalEvidence,
    Split,
    WitnessEvidence,
    floats,
    hexes,
    inner_slopes,
    norm_record,
    part_record,
    plain,
    rival_record,
    witness_record,
)

__all__ = [
    "STEPS", "CellEvidence", "InnerSlopes", "RivalEvidence", "Split", "WitnessEvidence",
    "floats", "hexes", "inner_slopes", "norm_record", "part_record", "plain", "rival_record", "witness_record",
]  # fmt: skip
