"""Layers shared by all learners; what several methods need lives here once."""

from plpm_ray.nn.duals import DualVariables
from plpm_ray.nn.embedding import FieldEmbedding, FieldInputs
from plpm_ray.nn.experts import BranchLinear, BranchMLP, ExpertMixture, MMoE
from plpm_ray.nn.fields import FieldPool
from plpm_ray.nn.groups import Groups
from plpm_ray.nn.mlp import MLP
from plpm_ray.nn.packing import Packing
from plpm_ray.nn.transformer import CausalTransformer, TransformerEncoder

__all__ = [
    "MLP",
    "BranchLinear",
    "BranchMLP",
    "CausalTransformer",
    "DualVariables",
    "ExpertMixture",
    "FieldEmbedding",
    "FieldInputs",
    "FieldPool",
    "Groups",
    "MMoE",
    "Packing",
    "TransformerEncoder",
]
