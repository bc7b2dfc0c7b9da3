"""A tensor in huge pages is the same tensor."""

from __future__ import annotations

import pytest
import torch

from model.inference.huge_pages import HUGE_PAGE, in_huge_pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_copy_in_huge_pages_has_the_same_values(dtype):
    tensor = (100 * torch.randn(1500, 1501)).to(dtype)
    moved = in_huge_pages(tensor)
    assert moved.dtype == dtype and torch.equal(moved, tensor)
    if tensor.nbytes >= HUGE_PAGE and moved is not tensor:
        assert moved.data_ptr() % HUGE_PAGE == 0


def test_a_small_tensor_stays_where_it_is():
    tensor = torch.randn(10)
    assert in_huge_pages(tensor) is tensor
