"""Ports."""

import pytest

from pipeline.command import InputError
from service.web.listener import listen


def test_port_0_is_a_free_one_and_a_taken_one_is_refused() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            listen("127.0.0.1", port)
