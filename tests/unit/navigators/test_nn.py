from __future__ import annotations

import torch

from plpm_ray.nn import MLP, FieldEmbedding


def test_fields_share_a_table_without_overlap():
    embedding = FieldEmbedding([2, 3], 4)
    assert embedding.out_features == 8
    codes = torch.tensor([[0, 0], [1, 2]])
    found = embedding(codes)
    assert embedding.table is not None
    assert torch.equal(found[0], embedding.table.weight[[0, 2]].flatten())
    assert torch.equal(found[1], embedding.table.weight[[1, 4]].flatten())
    assert list(embedding.state_dict()) == ["table.weight"]


def test_no_fields_give_no_columns():
    embedding = FieldEmbedding([], 4)
    assert embedding(torch.empty(5, 0, dtype=torch.int64)).shape == (5, 0)
    assert not list(embedding.parameters())


def test_mlp_without_hidden_layers_is_linear():
    mlp = MLP(3, (), 2)
    x = torch.randn(4, 3)
    torch.testing.assert_close(mlp(2 * x) - mlp(x), mlp(x) - mlp(torch.zeros_like(x)))
    assert MLP(3, (5, 6), 2)(x).shape == (4, 2)
