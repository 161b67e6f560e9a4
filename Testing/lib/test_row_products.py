"""Products of many rows: PyTorch's own results and gradients, whichever way the sums are cut."""

import pytest
import torch

from MambaSegLib.networks import row_products
from MambaSegLib.networks.row_products import multiply_rows, weight_gradient


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [40, 64, 67])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("many_rows", [1, 1000])
def test_values_and_gradients_are_those_of_plain_products(monkeypatch, groups, rows, with_bias, many_rows):
    monkeypatch.setattr(row_products, "MANY_ROWS", many_rows)
    monkeypatch.setattr(row_products, "PARTS", 8)
    monkeypatch.setattr(row_products, "SHORTEST_PART", 6)  # 40 rows are not divided, 64 evenly, 67 with a rest
    generator = torch.Generator().manual_seed(0)
    shapes = [(groups, rows, 5), (groups, 5, 4), (groups, 4)][: 3 if with_bias else 2]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    own, plain = ([t.clone().requires_grad_() for t in made] for _ in range(2))
    found = row_products._RowProduct.apply(*own, *([] if with_bias else [None]))
    wanted = plain[0] @ plain[1] + (plain[2][:, None] if with_bias else 0.0)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    found.backward(weights)
    wanted.backward(weights)
    torch.testing.assert_close(found, wanted)
    for leaf, reference in zip(own, plain, strict=True):
        torch.testing.assert_close(leaf.grad, reference.grad, rtol=1e-6, atol=1e-6)


def test_partial_sums_of_half_precision_meet_in_single_precision(monkeypatch):
    monkeypatch.setattr(row_products, "SHORTEST_PART", 4)
    rows = torch.full((1, 128 * 4, 1), 1.0, dtype=torch.bfloat16)
    gradient = torch.full((1, 128 * 4, 1), 1.0078125, dtype=torch.bfloat16)
    # Each part's sum, 4.03125, is a bfloat16; that of all, 516, would be one of 514, 516 and 518 if added in bfloat16.
    assert weight_gradient(rows, gradient).item() == 128 * 4.03125


def test_without_a_gpu_products_are_pytorchs_own():
    rows, weight, bias = torch.randn(2, 7, 3), torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4)
    product = multiply_rows(rows, weight, bias)
    assert "RowProduct" not in type(product.grad_fn).__name__
    torch.testing.assert_close(product, rows @ weight + bias[:, None])
