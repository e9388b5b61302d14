import pytest
import torch
from helpers import constant_field, random_tensor
from torch import Tensor

from mcbo.steps.fusion import fuse_levels, fuse_modalities

SHAPE = (2, 3, 4)


def test_modalities_fuse_by_the_signed_maximum_of_each_component() -> None:
    a, b = constant_field((-6, 2, 0), SHAPE), constant_field((-1, -3, 0), SHAPE)
    assert torch.equal(fuse_modalities([a, b]), constant_field((-1, 2, 0), SHAPE))


def test_order_and_repetition_of_modalities_do_not_matter() -> None:
    a, b = random_tensor(1, 3, *SHAPE, seed=1), random_tensor(1, 3, *SHAPE, seed=2)
    assert torch.equal(fuse_modalities([a, b]), fuse_modalities([b, a, b]))
    assert torch.equal(fuse_modalities([a]), a)
    assert torch.equal(fuse_modalities([a, a]), a)


def test_levels_fuse_by_their_weights() -> None:
    fields: list[Tensor] = [constant_field((1, 0, 0), SHAPE), constant_field((0, 10, 0), SHAPE)]
    assert torch.allclose(fuse_levels(fields, [0.36, 0.64]), constant_field((0.36, 6.4, 0), SHAPE))
    with pytest.raises(ValueError, match="shorter"):
        fuse_levels(fields, [1.0])
