"""Derived randomness is a function of seed and purpose, and the same in every version."""

import torch

from vggexp.rng import generator, seed_step, sub_seed

PURPOSES = [(), ("order",), ("order", 0), ("order", 1), ("init",), ("order", 0, 1), ("order", "0")]


def test_sub_seeds_are_pinned():
    assert sub_seed(0, "order", 3) == 8483304753239185838


def test_sub_seeds_differ():
    seeds = [sub_seed(seed, *keys) for seed in (0, 1, 2**63 - 1) for keys in PURPOSES]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_draws_depend_on_the_purpose_alone():
    before = torch.get_rng_state()
    first = generator(5, "order")
    torch.rand(9, generator=generator(5, "split"))
    repeated = torch.rand(4, generator=generator(5, "order"))
    assert torch.equal(torch.rand(4, generator=first), repeated)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_of_a_step():
    draws = []
    for batch in (3, 3, 4):
        seed_step(1, "step", 2, batch)
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_step_has_the_state_of_torchs_own_seeding():
    seed_step(1, "step", 2, 3)
    state = torch.get_rng_state()
    torch.manual_seed(sub_seed(1, "step", 2, 3))
    assert torch.equal(torch.get_rng_state(), state)
