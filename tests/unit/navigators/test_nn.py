from __future__ import annotations

import pytest
import torch

from plpm_ray.nn import MLP, BranchMLP, ExpertMixture, FieldEmbedding, FieldPool, Groups, MMoE


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


def test_branches_are_networks_of_their_own():
    towers = BranchMLP(3, 4, (5,), 2)
    x = torch.randn(6, 3, 4)
    found = towers(x)
    assert found.shape == (6, 3, 2)
    for r in range(3):
        (w0, b0), (w1, b1) = ((layer.weight[r], layer.bias[r]) for layer in towers.layers)
        torch.testing.assert_close(found[:, r], (x[:, r] @ w0 + b0).relu() @ w1 + b1)
    alike = torch.randn(6, 4)
    torch.testing.assert_close(towers(alike), towers(alike.unsqueeze(1).expand(6, 3, 4)))


def test_inputs_that_all_rows_share_may_be_given_once():
    mixture = ExpertMixture(branches=3, width_in=6, hidden=5, width_out=2, experts=4)
    x, shared = torch.randn(7, 3, 4), torch.randn(3, 2)
    whole = torch.cat([x, shared.expand(7, 3, 2)], dim=2)
    torch.testing.assert_close(mixture(x, shared), mixture(whole))


def test_mmoe_weighs_shared_experts_by_task():
    mmoe = MMoE(width_in=4, hidden=5, width_out=3, experts=2, tasks=6)
    x = torch.randn(7, 4)
    hidden = mmoe.first(x).relu().view(7, 2, 5)
    experts = torch.stack([hidden[:, m] @ mmoe.second.weight[m] + mmoe.second.bias[m] for m in range(2)], 1)
    gates = mmoe.gates(x)
    torch.testing.assert_close(gates.sum(2), torch.ones(7, 6))
    wanted = (gates.unsqueeze(3) * experts.unsqueeze(1)).sum(2)
    torch.testing.assert_close(mmoe(x), wanted)


def test_groups_hold_every_row_once():
    group = torch.tensor([2, 0, -1, 2, 2, 5, 0])
    groups = Groups.of(group, 4)
    assert groups.rows.shape == (4, 3)
    assert [groups.rows[g][groups.kept[g]].tolist() for g in range(4)] == [[1, 6], [], [0, 3, 4], []]
    x = torch.arange(14.0).view(7, 2)
    assert torch.equal(groups.take(x)[2], x[[0, 3, 4]])
    assert Groups.of(group - 10, 4).take(x).shape == (4, 0, 2)
    assert Groups.of(group[:0], 4).take(x[:0]).shape == (4, 0, 2)


@pytest.mark.parametrize("numeric", ["both", "bins", "linear"])
def test_pooled_fields_are_weighted_sums_with_their_gradients(numeric):
    torch.manual_seed(0)
    pool = FieldPool([3, 4], [2, 6], 5, numeric)
    torch.nn.init.normal_(pool.fields.table.weight)  # type: ignore[union-attr]
    sizes = [2, 6] if numeric == "linear" else [3, 4, 2, 6]
    codes = torch.stack([torch.randint(size, (8,)) for size in sizes], dim=1)
    dense, weight = torch.randn(8, 2), torch.rand(3, 4, requires_grad=True)
    wanted = torch.einsum("sf,bfd->bsd", weight, pool.embedded(codes, dense))
    found = pool(codes, dense, weight)
    torch.testing.assert_close(found, wanted)
    out = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(y, [weight, *pool.parameters()], out) for y in (wanted, found)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    rows = torch.tensor([[0, 1], [4, 4], [7, 2]])
    grouped = pool.grouped(codes[rows], dense[rows], weight)
    for g in range(3):
        torch.testing.assert_close(grouped[g], wanted[rows[g], g])
