"""The update rule in plain floats, and every schedule as a table."""

import pytest
import torch

from model.optim import LearningRates, MomentumSGD, OptimConfig, plateau_drops, rates_at

YES, NO = torch.tensor(True), torch.tensor(False)


def parameters() -> dict[str, torch.Tensor]:
    return {
        "towers.0.conv1.weight": torch.tensor([1.0, -2.0], dtype=torch.float64),
        "towers.0.conv1.bias": torch.tensor([0.5], dtype=torch.float64),
        "towers.1.fc6.weight": torch.tensor([3.0], dtype=torch.float64),
        "towers.1.fc6.bias": torch.tensor([1.0], dtype=torch.float64),
    }


def run_updates(
    config: OptimConfig, rates: LearningRates, gradients: list[list[list[float]]]
) -> dict[str, list[float]]:
    optimizer = MomentumSGD(config, parameters())
    for step in gradients:
        tensors = [torch.tensor(g, dtype=torch.float64) for g in step]
        optimizer.update(tensors, torch.tensor([rates.base, rates.conv1], dtype=torch.float64), YES)
    return {name: w.tolist() for name, w in optimizer.parameters.items()}


def by_hand(w: float, gradients: list[float], lr: float, decay: float) -> float:
    """Section 5: v <- 0.9 v - decay * lr * w - lr * g; w <- w + v."""
    v = 0.0
    for g in gradients:
        v = 0.9 * v - decay * lr * w - lr * g
        w = w + v
    return w


GRADIENTS = [[[0.1, 0.2], [0.3], [-0.4], [0.5]], [[-0.6, 0.7], [0.8], [0.9], [-1.0]], [[0.2, 0.1], [0.1], [0.3], [0.2]]]


def test_the_papers_rule() -> None:
    found = run_updates(OptimConfig(), LearningRates(0.01, 0.01), GRADIENTS)
    for column, (name, start) in enumerate(parameters().items()):
        for i, w in enumerate(start.tolist()):
            expected = by_hand(w, [step[column][i] for step in GRADIENTS], 0.01, 0.0005)
            assert found[name][i] == pytest.approx(expected, rel=1e-14)


def test_the_sources_biases_learn_twice_as_fast_undecayed_and_conv1_has_its_own_rate() -> None:
    config = OptimConfig(bias_lr_factor=2.0, decay_biases=False)
    found = run_updates(config, LearningRates(0.01, 0.002), GRADIENTS)
    rate = {"towers.0.conv1.weight": 0.002, "towers.0.conv1.bias": 0.004}
    rate |= {"towers.1.fc6.weight": 0.01, "towers.1.fc6.bias": 0.02}
    for column, (name, start) in enumerate(parameters().items()):
        decay = 0.0 if name.endswith("bias") else 0.0005
        expected = by_hand(start.tolist()[0], [step[column][0] for step in GRADIENTS], rate[name], decay)
        assert found[name][0] == pytest.approx(expected, rel=1e-14)


def test_an_unhealthy_step_changes_nothing_not_even_with_nan() -> None:
    optimizer = MomentumSGD(OptimConfig(), parameters())
    rates = torch.tensor([0.01, 0.01], dtype=torch.float64)
    optimizer.update([torch.ones_like(w) for w in optimizer.parameters.values()], rates, YES)
    before = [t.clone() for t in (*optimizer.parameters.values(), *optimizer.velocities.values())]
    optimizer.update([torch.full_like(w, float("nan")) for w in optimizer.parameters.values()], rates, NO)
    after = [*optimizer.parameters.values(), *optimizer.velocities.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_schedule_steps_is_that_of_run_145() -> None:
    config = OptimConfig(schedule="steps", drop_epochs=(23, 51, 78), conv1_lr=((68, 1e-5), (72, 0.0)))
    table = [
        (0, 0.01, 0.01),
        (22.999, 0.01, 0.01),
        (23, 0.001, 0.001),
        (51, 0.0001, 0.0001),
        (68, 0.0001, 0.00001),
        (72, 0.0001, 0.0),
        (78, 0.00001, 0.0),
        (92.9, 0.00001, 0.0),
    ]
    for epoch, base, conv1 in table:
        rates = rates_at(config, epoch, [], 93)
        assert (rates.base, rates.conv1) == (pytest.approx(base, rel=1e-12), pytest.approx(conv1, rel=1e-12))


def test_schedule_plateau_drops_when_the_error_stops_improving_at_most_three_times() -> None:
    errors = [0.9, 0.8, 0.8, 0.7999, 0.81, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, *[0.6] * 30]
    drops = [plateau_drops(errors[:n], patience=3, min_improvement=0.001, max_drops=3) for n in range(len(errors) + 1)]
    # epochs 3 to 5 and 7 to 9 and 10 to 12 bring nothing new
    assert drops[:14] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert drops[-1] == 3
    assert rates_at(OptimConfig(), 5.0, errors[:5], 90) == LearningRates(0.001, 0.001)


def test_schedule_manual_keeps_its_rate() -> None:
    assert rates_at(OptimConfig(schedule="manual", lr=0.3), 80.0, [0.5] * 80, 90) == LearningRates(0.3, 0.3)


def test_wrong_options_say_what_is_expected() -> None:
    with pytest.raises(ValueError, match="lr -1"):
        OptimConfig(lr=-1)
