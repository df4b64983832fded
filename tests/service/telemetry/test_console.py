"""What a person sees of a run."""

from service.telemetry.console import Throughput


def test_speed_is_pictures_and_waiting_over_the_window() -> None:
    speed = Throughput()
    assert speed.rates() == (0.0, 0.0)
    for second in range(40):
        speed.add(float(second), 100 if second < 20 else 200, 0.25)
        if second == 5:
            assert speed.rates() == (100.0, 0.25)
    assert speed.rates() == (200.0, 0.25)  # the last ten seconds alone
