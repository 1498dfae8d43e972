"""Ours against PyTorch peers, side by side in one process. See README.md for how to run it and what came out."""

import argparse
import os
from collections.abc import Callable

from allocator import keep_freed_memory

FORWARD_FLOPS = 11.67e9
"""Of the CIFAR-10 U-Net for one image, a multiply-add counted as two; a training step has 3 times as many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rows", default="train,forward,sampling", help="any of train, forward, sampling")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2, help="for both sides, on the CPU")
    parser.add_argument("--sampling_steps", type=int, default=1000, help="fewer for a quick look")
    parser.add_argument("--batch_sizes", default="128,512,1024", help="on the GPU")
    parser.add_argument(
        "--as_installed",
        action="store_true",
        help="CPU: no tuning: the peer's own memory layout, glibc's allocator as it is",
    )
    args = parser.parse_args()

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory too
    if args.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        if hasattr(os, "sched_setaffinity"):  # XLA makes as many threads as it may use cores
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        kept = not args.as_installed and keep_freed_memory()
        print(f"freed memory is {'kept' if kept else 'given back to the system'}, for both sides")
    rows = args.rows.split(",")
    print(on_cpu(args, rows) if args.device == "cpu" else on_gpu(args, rows), flush=True)


def on_cpu(args: argparse.Namespace, rows: list[str]) -> str:
    import ours
    import peers
    import torch
    from timing import compare, table

    from diffusion import devices

    devices.one_per_core()  # as `main.py --mode=sample` does
    torch.set_num_threads(args.threads)
    steps, measured = args.sampling_steps, []
    layout = better_layout if not args.as_installed else lambda *_: False
    if "train" in rows:
        peer = peers.train_step(8, channels_last=layout(peers.train_step, 8))
        measured.append(compare("CIFAR-10 train step, batch 8", ours.train_step(8), peer, turns=args.turns))
    if "forward" in rows:
        peer = peers.forward(8, channels_last=layout(peers.forward, 8))
        measured.append(compare("CIFAR-10 forward, batch 8", ours.forward(8), peer, turns=args.turns, repeats=2))
    if "sampling" in rows:
        peer = peers.sampling(256, steps, channels_last=layout(peers.sampling, 256, 20))
        turns = max(args.turns * 100 // steps, 3)
        measured.append(compare(f"256 digits, {steps} ancestral steps", ours.sampling(256, steps), peer, turns=turns))
    return table(measured)


def better_layout(make: Callable[..., Callable[[], None]], *sizes: int) -> bool:
    """Whether the peer is faster with channels last, so that it is measured at its best."""
    from timing import compare

    row = compare("", make(*sizes, channels_last=False), make(*sizes, channels_last=True), turns=5)
    print(f"peer's {make.__name__}: channels last takes {row.peer / row.ours:.2f} of the time of channels first")
    return row.peer < row.ours


def on_gpu(args: argparse.Namespace, rows: list[str]) -> str:
    import ours
    import peers
    from timing import compare, table

    settings = {"channels_last": True, "device": "cuda", "bfloat16": True, "compiled": True}
    rate, lines, measured = ours.matrix_rate(), [], []
    for batch_size in map(int, args.batch_sizes.split(",")):
        for name, passes in (("train_step", 3), ("forward", 1)):
            if name.removesuffix("_step") not in rows:
                continue
            mine, peer = getattr(ours, name)(batch_size, "bfloat16"), getattr(peers, name)(batch_size, **settings)
            row = compare(f"{name}, batch {batch_size}", mine, peer, turns=args.turns, repeats=5)
            measured.append(row)
            flops = passes * FORWARD_FLOPS * batch_size
            per_second, share = (batch_size / t for t in row[1:3]), (flops / t / rate for t in row[1:3])
            lines.append("| {} | {:.0f} | {:.0f} | {:.1%} | {:.1%} |".format(row.name, *per_second, *share))
    if "sampling" in rows:
        name = f"256 digits, {args.sampling_steps} ancestral steps (float32)"
        peer = peers.sampling(256, args.sampling_steps, channels_last=True, device="cuda")
        measured.append(compare(name, ours.sampling(256, args.sampling_steps), peer, turns=3))
    head = [
        f"\nmeasured bfloat16 matrix rate: {rate / 1e12:.0f} TFLOP/s\n",
        "| row | ours, images/s | peer, images/s | ours, share of that rate | peer, share |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([table(measured), *head, *lines])


if __name__ == "__main__":
    main()
