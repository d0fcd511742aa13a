"""Layers shared by all learners; what several methods need lives here once."""

from plpm_ray.nn.embedding import FieldEmbedding
from plpm_ray.nn.mlp import MLP
from plpm_ray.nn.mmoe import MMoE

__all__ = ["MLP", "FieldEmbedding", "MMoE"]
