"""The head that points at a cell: it finds a planted direction wherever the object is, and layers are told apart."""

import torch

from evaluation.backbones.contract import Features
from evaluation.permanence.pointing import inside, point

CELLS, D = 36, 12


def planted(count: int, seed: int, strength: float) -> tuple[Features, torch.Tensor]:
    """Two layers of random tokens (count, 64, D); in the second, feature 3 of the object's token is `strength`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, count, 64, D, generator=generator)
    cells = torch.randint(CELLS, (count,), generator=generator)
    place = (cells // 6 + 1) * 8 + cells % 6 + 1
    tokens[1, torch.arange(count), place, 3] += strength
    return Features([0, 4], tokens.mean(2), tokens.half()), cells


def test_cells_are_in_the_order_of_their_numbers():
    tokens = torch.arange(64.0)[None, :, None]
    assert inside(tokens)[0, :, 0].tolist() == [8 * (c // 6 + 1) + c % 6 + 1 for c in range(CELLS)]


def test_a_planted_direction_is_found_where_it_is():
    (train, a), (validation, b), (test, c) = (planted(n, seed, 8.0) for seed, n in enumerate((120, 40, 80)))
    found = point([train, validation, test], [a, b, c])
    accuracy = (found.test_predictions[:, 0] == c).float().mean(1)
    assert accuracy[0] < 0.15 and accuracy[1] > 0.97
    assert found.rank(0, 0) < 0.2 < 0.95 < found.rank(1, 0)
    assert found.test_probabilities.shape == (2, 1, 80, CELLS)
    assert torch.allclose(found.test_probabilities.sum(-1), torch.ones(2, 1, 80))


def test_a_clip_is_predicted_alike_whatever_is_tested_with_it():
    """Tokens are standardised by the moments of the training clips."""
    (train, a), (validation, b), (test, c) = (planted(n, seed, 3.0) for seed, n in enumerate((40, 20, 30)))
    far = Features([0, 4], test.pooled, 50 + 9 * test.tokens)
    both = Features([0, 4], torch.cat([test.pooled, far.pooled], 1), torch.cat([test.tokens, far.tokens], 1))
    alone = point([train, validation, test], [a, b, c]).test_probabilities
    together = point([train, validation, both], [a, b, torch.cat([c, c])]).test_probabilities
    torch.testing.assert_close(together[:, :, :30], alone)


def test_the_penalty_is_chosen_on_validation():
    """With few noisy clips a strong penalty is better; test labels change nothing."""
    (train, a), (validation, b), (test, c) = (planted(n, seed, 3.0) for seed, n in enumerate((20, 300, 50)))
    found = point([train, validation, test], [a, b, c])
    other = point([train, validation, test], [a, b, c.flip(0)])
    assert torch.equal(found.test_predictions, other.test_predictions)
    alone = point([train, train, test], [a, a, c])  # validated on its own training clips, it takes the weakest
    assert found.val_accuracy[1] < alone.val_accuracy[1]
    assert not torch.equal(found.test_probabilities[1], alone.test_probabilities[1])
