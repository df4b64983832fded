"""The update rule in plain floats, and every schedule as a table or in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.optim import (
    LearningRates,
    MomentumSGD,
    OptimConfig,
    averaging_rate,
    changes_each_step,
    plateau_drops,
    rates_at,
)

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


@pytest.mark.parametrize("config", [OptimConfig(), OptimConfig(trust_ratio=0.001, average_decay=0.9)])
def test_an_unhealthy_step_changes_nothing_not_even_with_nan(config: OptimConfig) -> None:
    optimizer = MomentumSGD(config, parameters())
    rates = torch.tensor([0.01, 0.01, 0.5], dtype=torch.float64)
    optimizer.update([torch.ones_like(w) for w in optimizer.parameters.values()], rates, YES)
    state = [
        each for kept in (optimizer.parameters, optimizer.velocities, optimizer.averages) for each in kept.values()
    ]
    before = [each.clone() for each in state]
    assert len(before) == (12 if config.average_decay else 8)
    optimizer.update([torch.full_like(w, float("nan")) for w in optimizer.parameters.values()], rates, NO)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


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


def test_layer_wise_rates_are_those_of_lars() -> None:
    """You et al. 2017, algorithm 1, for weights; a bias has the plain rule."""
    config = OptimConfig(trust_ratio=0.02, weight_decay=0.1)
    found = run_updates(config, LearningRates(2.0, 2.0), GRADIENTS)
    for column, (name, start) in enumerate(parameters().items()):
        w = start.numpy().copy()
        v = np.zeros_like(w)
        for step in GRADIENTS:
            g = np.array(step[column])
            trust = 0.02 * np.linalg.norm(w) / (np.linalg.norm(g) + 0.1 * np.linalg.norm(w))
            v = 0.9 * v - 2.0 * (1.0 if name.endswith("bias") else trust) * (g + 0.1 * w)
            w = w + v
        assert found[name] == pytest.approx(w, rel=1e-13)


def test_under_lars_weights_of_zeros_and_gradients_of_zeros_are_moved_by_the_plain_rule() -> None:
    config = OptimConfig(trust_ratio=0.02, weight_decay=0.1)
    parameters = {"a.weight": torch.zeros(2), "b.weight": torch.ones(2)}
    optimizer = MomentumSGD(config, parameters)
    optimizer.update([torch.ones(2), torch.zeros(2)], torch.tensor([0.5, 0.5]), YES)
    assert parameters["a.weight"].tolist() == [-0.5, -0.5]
    assert parameters["b.weight"].tolist() == pytest.approx([0.95, 0.95])


def test_averages_are_the_exponential_moving_average_whose_decay_warms_up() -> None:
    config, steps = OptimConfig(average_decay=0.5), 12
    optimizer = MomentumSGD(config, parameters())
    expected = {name: w.numpy().copy() for name, w in parameters().items()}
    decays = []
    for step in range(steps):
        averaging = averaging_rate(config, step)
        gradients = [torch.tensor(g, dtype=torch.float64) for g in GRADIENTS[step % 3]]
        optimizer.update(gradients, torch.tensor([0.1, 0.1, averaging], dtype=torch.float64), YES)
        decays.append(min(0.5, (1 + step) / (10 + step)))
        for name, w in optimizer.parameters.items():
            expected[name] = decays[-1] * expected[name] + (1 - decays[-1]) * w.numpy()
    assert decays[0] == 0.1 and decays[7] < 0.5 and decays[8] == decays[-1] == 0.5
    for name, average in optimizer.averages.items():
        assert average.numpy() == pytest.approx(expected[name], rel=1e-13)
    assert not MomentumSGD(OptimConfig(), parameters()).averages


def test_schedules_cosine_and_one_cycle_rise_in_a_line_and_fall_to_the_last_rate_with_the_last_epoch() -> None:
    epochs = np.linspace(0, 30, 601)
    rise = np.minimum(epochs / 5, 1)
    share = np.clip((epochs - 5) / 25, 0, 1)
    falls = {"cosine": 0.5 + 0.5 * np.cos(np.pi * share), "one-cycle": 1 - share}
    for schedule, fall in falls.items():
        config = OptimConfig(lr=0.4, final_lr=0.004, schedule=schedule, warmup_epochs=5)  # pyright: ignore[reportArgumentType]
        found = [rates_at(config, epoch, [0.5] * int(epoch), 30) for epoch in epochs]
        np.testing.assert_allclose([each.base for each in found], (0.004 + 0.396 * fall) * rise, rtol=1e-12)
        assert all(each.conv1 == each.base for each in found)
        assert rates_at(config, 30.5, [], 30).base == pytest.approx(0.004)  # the last batch may reach beyond
        assert rates_at(config, 15, [], 30) != rates_at(config, 15, [], 40)
        assert all(changes_each_step(config, epoch) for epoch in epochs)
    assert rates_at(OptimConfig(schedule="cosine"), 0, [], 30).base == 0.01


def test_any_schedule_may_warm_up_and_is_itself_from_then_on() -> None:
    for plain in (OptimConfig(), OptimConfig(schedule="steps", drop_epochs=(1, 3)), OptimConfig(schedule="manual")):
        warm = replace(plain, warmup_epochs=2)
        for epoch in (0.0, 0.5, 1.5, 2.0, 2.5, 4.0):
            errors = [0.5] * int(epoch)
            expected = rates_at(plain, epoch, errors, 90).base * min(epoch / 2, 1)
            assert rates_at(warm, epoch, errors, 90).base == pytest.approx(expected, rel=1e-15)
            assert changes_each_step(warm, epoch) == (epoch < 2) and not changes_each_step(plain, epoch)
        assert rates_at(warm, 4.0, [0.5] * 4, 90) == rates_at(plain, 4.0, [0.5] * 4, 1)  # the epochs do not matter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr -1"),
        ({"warmup_epochs": -1}, "warmup_epochs -1"),
        ({"final_lr": float("nan")}, "final_lr nan"),
        ({"trust_ratio": -1}, "trust_ratio is -1"),
        ({"label_smoothing": 1.5}, r"label_smoothing 1\.5"),
        ({"average_decay": 1.0}, r"average_decay 1\.0"),
    ],
)
def test_wrong_options_say_what_is_expected(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)  # pyright: ignore[reportArgumentType]
