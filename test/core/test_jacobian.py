import numpy as np
import torch
from helpers import TOLERANCE, random_tensor

from evaluation.metrics import regularity
from mcbo.core.field import determinants


def test_a_linear_map_has_its_determinant_everywhere() -> None:
    matrix = torch.tensor([[0.1, 0.3, -0.2], [0.05, -0.4, 0.1], [0.2, 0.0, 0.25]], dtype=torch.float64)
    positions = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (5, 7, 6)), indexing="ij"))
    displacement = torch.einsum("ab,bijk->aijk", matrix, positions)[None]
    expected = torch.linalg.det(matrix + torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(determinants(displacement), expected.expand(1, 1, 5, 7, 6))


def test_folds_are_those_that_the_judge_counts() -> None:
    displacement = 3 * random_tensor(1, 3, 9, 12, 10, seed=3)
    inner = determinants(displacement)[0, 0, 2:-2, 2:-2, 2:-2]
    judged = regularity(displacement[0].movedim(0, -1).numpy())
    assert int((inner <= 0).sum()) == judged.folded_voxels > 0
    spread = np.log(np.clip(inner.numpy() + 3, 1e-9, None)).std()
    assert abs(float(spread) - judged.sd_log_jacobian) < TOLERANCE["rounding"]
