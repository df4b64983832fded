"""What benchmarks/on_paper/costs.py finds in a piece of generated code, against sums by hand."""

import sys
from typing import NamedTuple

import torch

from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # which no package holds

from on_paper.costs import Call, Collective, Rates, calls_of, collectives_of, least_seconds


class Buffer(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


F32, BF16 = torch.float32, torch.bfloat16
CODE = """
triton_poi_update_0 = async_compile.triton('triton_poi_update_0', '''
@triton.jit
def triton_poi_update_0(in_out_ptr0, in_ptr0, in_ptr1, out_ptr0, xnumel, XBLOCK : tl.constexpr):
''', device_str='cuda')
pool_forward_1 = async_compile.triton('pool_forward', '''
def pool_forward(
    x, y, outputs,
):
''')

class Runner:
    def call(self, args):
        arg0_1, arg1_1, arg2_1 = args
        with torch.cuda._DeviceGuard(0):
            buf0 = extern_kernels.convolution(arg0_1, arg1_1, stride=(1, 1), padding=(0, 0), groups=1, bias=None)
            assert_size_stride(buf0, (2, 4, 5, 5), (100, 1, 20, 4), 'torch.ops.aten.convolution.default')
            pool_forward_1.run(buf0, reinterpret_tensor(buf1, (2, 4, 2, 2), (16, 1, 8, 4), 0), 32, stream=raw_stream0)
            # Topologically Sorted Source Nodes: [], Original ATen: []
            torch.ops._c10d_functional.all_reduce_.default(buf1, 'sum', '0')
            extern_kernels.mm(reinterpret_tensor(buf1, (2, 16), (16, 1), 0), arg2_1, out=buf2)
            triton_poi_update_0.run(buf2, arg2_1, buf1, arg2_1, 6, stream=raw_stream0)
            torch.ops._c10d_functional.wait_tensor.default(buf1)
            buf3 = torch.ops.aten.convolution_backward.default(buf0, arg0_1, arg1_1, [0], (1, 1), [True, True, False])
            buf4 = buf3[0]
            buf5 = buf3[1]
            buf6 = torch.ops._c10d_functional.all_gather_into_tensor.default(buf5, 2, '1')
            torch.ops._c10d_functional.wait_tensor.default(buf6)
"""
BUFFERS = {
    "arg0_1": Buffer((2, 3, 5, 5), BF16),  # 300 bytes
    "arg1_1": Buffer((4, 3, 1, 1), BF16),  # 24
    "arg2_1": Buffer((16, 3), F32),  # 192
    "buf0": Buffer((2, 4, 5, 5), BF16),  # 400
    "buf1": Buffer((2, 2, 2, 4), F32),  # 128
    "buf2": Buffer((2, 3), F32),  # 24
    "buf4": Buffer((2, 3, 5, 5), BF16),
    "buf5": Buffer((4, 3, 1, 1), BF16),
    "buf6": Buffer((8, 3, 1, 1), BF16),
}
CONVOLUTION = 2.0 * 2 * 5 * 5 * 4 * 3  # flop: of each output number 3 products and sums


def test_each_call_moves_what_it_names_once_and_what_it_updates_twice():
    assert calls_of(CODE, BUFFERS) == [
        Call("extern_kernels.convolution", 300 + 24 + 400, CONVOLUTION, BF16),
        Call("pool_forward_1", 400 + 128, 0.0, None),
        Call("extern_kernels.mm", 128 + 192 + 24, 2.0 * 2 * 16 * 3, F32),
        Call("triton_poi_update_0", 2 * 24 + 2 * 192 + 128, 0.0, None),
        Call("torch.ops.aten.convolution_backward.default", 400 + 2 * (300 + 24), 2 * CONVOLUTION, BF16),
    ]


def test_a_collective_is_followed_to_its_wait():
    assert collectives_of(CODE, BUFFERS) == [
        Collective("all_reduce", 128, F32, between=1),
        Collective("all_gather_into_tensor", 24, BF16, between=0),
    ]


def test_a_call_takes_the_longer_of_its_bytes_and_its_arithmetic():
    rates = Rates(100.0, {("convolution", BF16): 10.0, ("product", F32): 1.0})
    assert least_seconds(Call("extern_kernels.convolution", 1000, 20.0, BF16), rates) == 10.0
    assert least_seconds(Call("extern_kernels.mm", 1000, 20.0, F32), rates) == 20.0
    assert least_seconds(Call("pool_forward_1", 500, 0.0, None), rates) == 5.0
