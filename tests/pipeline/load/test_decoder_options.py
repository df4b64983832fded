"""What the GPU's decoder is told, by DALI's own list of what it takes; it cannot be run without a GPU."""

import pytest
from nvidia.dali import backend

from pipeline.command import InputError
from pipeline.load.config import PLACE_AND_SPEED, DataConfig
from pipeline.load.graph import GraphConfig, decoding_threads, gpu_decoder_options


def told(**options: float) -> dict[str, float]:
    shape = {"batch_size": 1, "size": 256, "crop": 224}
    return gpu_decoder_options(
        GraphConfig(**shape, output="uint8", decoder="gpu", device="gpu", **options)  # pyright: ignore[reportArgumentType]
    )


def test_dali_takes_what_the_decoder_is_told() -> None:
    assert told() == {}  # DALI's own choice
    options = told(hw_decoder_load=0.0, decoder_hint=256, decoder_padding=3)
    assert options == {
        "hw_decoder_load": 0.0,
        "preallocate_width_hint": 256,
        "preallocate_height_hint": 256,
        "device_memory_padding": 3_000_000,
        "host_memory_padding": 3_000_000,
    }
    assert told(decoder_padding=0) == {"device_memory_padding": 0, "host_memory_padding": 0}
    schema = backend.GetSchema("decoders__Image")  # pyright: ignore[reportAttributeAccessIssue]
    assert all(schema.HasArgument(name) for name in options)


def test_decoder_options_change_no_picture() -> None:
    assert {"hw_decoder_load", "decoder_hint", "decoder_padding"} < set(PLACE_AND_SPEED)


@pytest.mark.parametrize("wrong", [{"decoder_hint": -1}, {"decoder_padding": 2001}])
def test_what_dali_cannot_take_is_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} is .* expected 0 to .*--data.decoder-"):
        DataConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_the_loop_has_cores_beside_a_gpus_decoder() -> None:
    assert [decoding_threads(cores, "gpu") for cores in (1, 2, 3, 16)] == [1, 1, 1, 14]
    assert [decoding_threads(cores, "cpu") for cores in (1, 2, 3, 16)] == [1, 2, 3, 16]
