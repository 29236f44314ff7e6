"""Derived randomness is a function of the seed and the purpose, and the same in every version."""

import torch

from vggexp.rng import generator, seed_step, sub_seed


def test_sub_seeds_are_pinned_and_differ():
    assert sub_seed(0, "order", 3) == 8483304753239185838
    purposes = [
        (),
        ("order",),
        ("order", 0),
        ("order", 1),
        ("init",),
        ("order", 0, 1),
        ("order", "0"),
    ]
    seeds = [sub_seed(seed, *words) for seed in (0, 1, 2**63 - 1) for words in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_depend_on_the_purpose_alone():
    before = torch.get_rng_state()
    first, second = generator(5, "order"), generator(5, "split")
    torch.rand(9, generator=second)
    assert torch.equal(
        torch.rand(4, generator=first), torch.rand(4, generator=generator(5, "order"))
    )
    assert torch.equal(torch.get_rng_state(), before)
    draws = []
    for batch in (3, 3, 4):
        seed_step(1, "step", 2, batch)
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
