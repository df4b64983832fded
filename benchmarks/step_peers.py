"""The steps that ours is measured against: the same network written plainly, and torchvision's AlexNet."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.alexnet import AlexNet, ModelConfig, Tower
from model.step import StepInputs

Work = Callable[[], Tensor]


def plain(examples: StepInputs, device: str) -> Work:
    """The same network in plain eager fp32."""
    model = AlexNet(ModelConfig(precision="float32")).to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()

    def half(t: Tower, x: Tensor) -> Tensor:
        for conv in (t.conv1, t.conv2):
            x = F.max_pool2d(F.local_response_norm(F.relu(conv(x)), 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2)
        return x

    def tail(t: Tower, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(t.conv5(F.relu(t.conv4(F.relu(t.conv3(x)))))), 3, 2).flatten(1)

    def loss_of() -> Tensor:
        towers = list(model.held().values())
        x = examples.pictures.permute(0, 3, 1, 2).float().contiguous() - 110.0
        x = torch.cat([half(t, x) for t in towers], 1)
        x = torch.cat([tail(t, x) for t in towers], 1)
        x = F.dropout(torch.cat([F.relu(t.fc6(x)) for t in towers], 1))
        x = F.dropout(torch.cat([F.relu(t.fc7(x)) for t in towers], 1))
        return F.cross_entropy(torch.cat([t.fc8(x) for t in towers], 1), examples.labels)

    return trained(loss_of, model, fused=False)


def torchvision(examples: StepInputs, device: str, compiled: bool) -> Work:
    """torchvision.models.alexnet's layers (0.20 and many before), bfloat16 by autocast, channels-last."""
    convolutions = (
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    )
    layers: list[nn.Module] = []
    for i, (into, out, kernel, stride, padding) in enumerate(convolutions):
        layers += [nn.Conv2d(into, out, kernel, stride, padding), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(3, 2)] if i in (0, 1, 4) else []
    layers += [nn.AdaptiveAvgPool2d(6), nn.Flatten()]
    for into, out in ((9216, 4096), (4096, 4096)):
        layers += [nn.Dropout(), nn.Linear(into, out), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.Linear(4096, 1000)).to(device)
    nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)

    def loss_of() -> Tensor:
        x = (examples.pictures.permute(0, 3, 1, 2).float() - 110.0) / 58.0
        with torch.autocast(device, torch.bfloat16):
            logits = model(x)
        return F.cross_entropy(logits.float(), examples.labels)

    return trained(torch.compile(loss_of, fullgraph=True, dynamic=False) if compiled else loss_of, model, fused=True)


def trained(loss_of: Work, model: nn.Module, fused: bool) -> Work:
    """A step of plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=0.0005, fused=fused)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
