"""Rows of linear models."""

import numpy as np
import pytest
import torch

from skattrib.engine._convex import rows_of


@pytest.mark.parametrize("constant", [None, 2.0])
@pytest.mark.filterwarnings("error")
def test_rows_that_may_not_be_written_to(constant):
    values = np.arange(6.0).reshape(3, 2)
    values.flags.writeable = False  # as those of a data frame
    dense = rows_of(values, constant).dense()
    expected = torch.arange(6, dtype=torch.double).view(3, 2)
    torch.testing.assert_close(dense[:, :2], expected)
    assert bool((dense[:, 2:] == 2).all())
    assert dense.shape[1] == (2 if constant is None else 3)
