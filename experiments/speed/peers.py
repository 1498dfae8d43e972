"""The peers, at their best settings: diffusers' UNet2DModel and denoising-diffusion-pytorch's sampler, in PyTorch."""

import sys
import types
from collections.abc import Callable
from typing import Any

import torch

DDPM_CIFAR10 = {  # the configuration of google/ddpm-cifar10-32
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,  # one head
    "downsample_padding": 0,
    "act_fn": "silu",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "dropout": 0.1,
}

DIGITS_UNET = {"dim": 32, "dim_mults": (1, 2), "channels": 1, "full_attn": (False, True)}
"""The widths of our digits network and attention where it has it: 0.83 M parameters, where ours has 0.70 M."""


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def cifar10_unet(device: str, channels_last: bool) -> torch.nn.Module:
    from diffusers import UNet2DModel

    model = UNet2DModel(**DDPM_CIFAR10)
    if count(model) != 35_746_307:
        raise ValueError(f"diffusers' UNet2DModel has {count(model):,} parameters, expected DDPM's 35,746,307.")
    return model.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def train_step(
    batch_size: int, *, channels_last: bool, device: str = "cpu", bfloat16: bool = False, compiled: bool = False
) -> Callable[[], None]:
    """One step of the published recipe, with the fused Adam and a batched (foreach) EMA."""
    model = cifar10_unet(device, channels_last).train()
    call = torch.compile(model) if compiled else model
    params = list(model.parameters())
    ema = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, lr=2e-4, fused=True)
    images = _images(batch_size, device, channels_last)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float().to(device)

    def program() -> None:
        t = torch.randint(0, 1000, (batch_size,), device=device)
        noise = torch.randn_like(images)
        kept = alpha_bar[t][:, None, None, None]
        noisy = kept.sqrt() * images + (1 - kept).sqrt() * noise
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            output = call(noisy, t).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - 0.9999)
        _wait(device)

    return program


def forward(
    batch_size: int, *, channels_last: bool, device: str = "cpu", bfloat16: bool = False, compiled: bool = False
) -> Callable[[], None]:
    """One evaluation of the network, no dropout, no gradient."""
    model = cifar10_unet(device, channels_last).eval()
    call = torch.compile(model) if compiled else model
    images = _images(batch_size, device, channels_last)
    t = torch.full((batch_size,), 500, device=device)

    @torch.inference_mode()
    def program() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            call(images, t)
        _wait(device)

    return program


def sampling(num_samples: int, num_steps: int, *, channels_last: bool, device: str = "cpu") -> Callable[[], None]:
    """The first num_steps of GaussianDiffusion's 1000 ancestral steps with `Unet`, without its progress bar."""
    module = _denoising_diffusion_pytorch()
    model = module.Unet(**DIGITS_UNET).eval()
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    diffusion = module.GaussianDiffusion(
        model, image_size=8, timesteps=1000, objective="pred_noise", beta_schedule="linear"
    ).to(device)

    def program() -> None:
        module.tqdm = lambda steps, **_: list(steps)[:num_steps]
        diffusion.sample(num_samples)
        _wait(device)

    return program


def _denoising_diffusion_pytorch() -> Any:
    """The peer's module. It imports torchvision, which it needs for training only; where that is missing, or made
    for another build of PyTorch, empty modules stand in for it."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        names = ("torchvision", "torchvision.models", "torchvision.transforms", "torchvision.utils")
        stubs = {name: types.ModuleType(name) for name in names}
        sys.modules.update(stubs)
        for name in names[1:]:
            setattr(stubs["torchvision"], name.split(".")[1], stubs[name])
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch

    return denoising_diffusion_pytorch


def _images(batch_size: int, device: str, channels_last: bool) -> torch.Tensor:
    images = torch.rand(batch_size, 3, 32, 32, device=device) * 2 - 1
    return images.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
