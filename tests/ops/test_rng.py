import torch

from unified_lift.ops.rng import StepRng

CPU = torch.device("cpu")


def draw(streams, step):
    return torch.rand(4, generator=streams.at(step, CPU)).tolist()


def test_a_step_draws_the_same_whatever_was_drawn_before():
    streams = StepRng(3)
    first = [draw(streams, step) for step in range(5)]
    assert [draw(streams, step) for step in reversed(range(5))] == first[::-1]
    assert draw(StepRng(3), 4) == first[4]


def test_steps_and_seeds_differ():
    draws = [tuple(draw(StepRng(seed), step)) for seed in range(20) for step in range(20)]
    assert len(set(draws)) == 400
    assert 0.47 < torch.tensor(draws).mean() < 0.53
