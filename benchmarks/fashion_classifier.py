"""Train the judge of the demo: a small residual network on the 60,000 training images of Fashion-MNIST.

    python benchmarks/fashion_classifier.py --out build/fashion_classifier.safetensors

The demo trains its diffusion model on the vendored 10,000 test images, so the judge has seen none of them: its
accuracy there is an honest one, and its agreement with the class that was asked of a sample has that accuracy beside
it. The penultimate activations (``features``) are the second set of named features of ``fashion_metrics``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.training.precision import compute_dtype

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def read_idx(path: Path) -> np.ndarray:
    """An IDX file (gzip) as a uint8 array; the header is two zeros, the type 8, the rank, then big-endian sizes."""
    raw = gzip.decompress(Path(path).read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    sizes = np.frombuffer(raw, ">u4", count=raw[3], offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and labels (N,) of ``split``, "train" or "t10k"."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    return images, read_idx(folder / f"{split}-labels-idx1-ubyte.gz").astype(np.int64)


def conv(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Classifier(nn.Module):
    """(B, 1, 28, 28) in [0, 255] -> (B, 10) logits; ``features`` gives the (B, 256) penultimate activations."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(1, 32), conv(32, 64, 2), Residual(64),
            conv(64, 128, 2), Residual(128), conv(128, 256),
        )  # fmt: skip
        self.head = nn.Linear(256, 10)

    def features(self, x: Tensor) -> Tensor:
        x = ((x.float() - 72.9) / 90.0).contiguous(memory_format=torch.channels_last)
        return self.body(x).mean((2, 3)).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    @torch.no_grad()
    def judge(self, images: np.ndarray, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, 28, 28) uint8 -> the probabilities (N, 10) and the features (N, 256), in float32."""
        self.eval()
        x = torch.as_tensor(images.copy()).reshape(-1, 1, 28, 28)
        # the mean over an image and its mirror image, as in training
        features = torch.cat([(self.features(part) + self.features(part.flip(3))) / 2 for part in x.split(batch)])
        return self.head(features).softmax(1).numpy(), features.numpy()


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """A mirror image for one half, and a shift of up to one pixel, one for the batch."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    x = torch.where(flip, x.flip(3), x)
    dy, dx = (int(v) for v in torch.randint(0, 3, (2,), generator=generator))
    return F.pad(x, (1, 1, 1, 1))[:, :, dy : dy + 28, dx : dx + 28]


def train(images: np.ndarray, labels: np.ndarray, epochs: float, seed: int, batch: int = 128) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier().to(memory_format=torch.channels_last)
    x, y = torch.as_tensor(images.copy()).unsqueeze(1), torch.as_tensor(labels)
    steps = int(epochs * len(x) / batch)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}],
        lr=0.2, momentum=0.9, nesterov=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.2, total_steps=steps, pct_start=0.2, anneal_strategy="linear", final_div_factor=1e3
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    start = time.perf_counter()
    model.train()
    half = compute_dtype("auto", torch.device("cpu")) == torch.bfloat16
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(x), generator=generator)])
        pick, order = order[:batch], order[batch:]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):  # much slower where the processor has no bfloat16
            features = model.features(augment(x[pick].float(), generator))
        loss = F.cross_entropy(model.head(features), y[pick], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            rate = (step + 1) * batch / (time.perf_counter() - start)
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {rate:.0f} img/s", flush=True)
    return model


def load(path: Path) -> Classifier:
    model = Classifier()
    model.load_state_dict(load_file(str(path)))
    return model.to(memory_format=torch.channels_last).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/fashion_classifier.safetensors"))
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder of the four Fashion-MNIST .gz files")
    parser.add_argument("--epochs", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model = train(*read_split(args.data, "train"), epochs=args.epochs, seed=args.seed)
    seconds = time.perf_counter() - start
    images, labels = read_split(args.data, "t10k")
    probabilities, _ = model.judge(images)
    accuracy = float((probabilities.argmax(1) == labels).mean())
    facts = {"accuracy_t10k": accuracy, "epochs": args.epochs, "seed": args.seed, "seconds": round(seconds, 1)}
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(args.out), metadata={"facts": json.dumps(facts)})
    print(f"accuracy on the 10,000 images it never saw: {accuracy:.2%}  ({seconds:.0f} s)  -> {args.out}")


if __name__ == "__main__":
    main()
