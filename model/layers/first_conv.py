"""The first convolution, on whole rows of pixels in bfloat16 on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FirstConv(nn.Conv2d):
    """(B, 3, H, W) -> (B, kernels, (H - 7) // 4 + 1, (W - 7) // 4 + 1): 11 x 11 kernels, 4 pixels apart, padding 2.

    In bfloat16 on a CPU four neighbouring pixels of a row are taken as one of 12 channels, and the kernel as 11 x 3 of
    those: the same products and some zeros, but faster: 3 channels leave most of a vector instruction empty. CUDA gains
    nothing by it: 24 bytes a pixel are no alignment for its convolutions, and the copies cost a map each way.
    """

    def __init__(self, kernels: int, *, bias: bool = True):
        super().__init__(3, kernels, 11, stride=4, padding=2, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda or not torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        return F.conv2d(
            _group_pixels_by_four(input, 2),
            _group_pixels_by_four(self.weight, 0),
            self.bias,
            stride=(4, 1),
            padding=(2, 0),
        )


def _group_pixels_by_four(x: Tensor, left: int) -> Tensor:
    """(N, 3, H, W) -> (N, 12, H, ceil((left + W) / 4)) bfloat16, `left` columns of zeros before and the rest after.

    Only whole rows of pixels are copied: in channels-last memory, four pixels of 3 channels are one of 12.
    """
    number, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(number, height, width * channels).bfloat16()
    sides = [rows.new_zeros(number, height, zeros * channels) for zeros in (left, -(left + width) % 4)]
    rows = torch.cat([sides[0], rows, sides[1]], dim=2)
    return rows.view(number, height, -1, 4 * channels).permute(0, 3, 1, 2)
