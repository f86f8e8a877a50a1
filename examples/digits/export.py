#!/usr/bin/env python3
"""Makes everything in this folder: data, programs, and reference results computed by PyTorch itself.

    python export.py            # writes beside this file

Needs torch 2.13, numpy, safetensors and scikit-learn (whose wheel carries the images). Nothing is downloaded.
The build and the tests only read what it wrote.
"""

import copy
import hashlib
import json
import math
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
VECTORS = HERE / "vectors"
SPLIT_SEED = 20261122
TRAIN_ROWS = 1437
MASK = (1 << 64) - 1


def shuffled(rows: int, seed: int, epoch: int) -> list[int]:
    """The row order of an epoch: domain/src/shuffle.rs, written a second time."""
    digest = hashlib.sha256(struct.pack("<QQ", seed, epoch)).digest()
    state = int.from_bytes(digest[:8], "little")

    def next_u64() -> int:
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(bound: int) -> int:
        rejected = (1 << 64) % bound
        while True:
            value = next_u64()
            if value >= rejected:
                return value % bound

    order = list(range(rows))
    for i in range(rows - 1, 0, -1):
        j = below(i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def learning_rate(schedule: dict, base: float, epoch: int, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps` in all."""
    match schedule["type"]:
        case "constant":
            return base
        case "step":
            return base * schedule["gamma"] ** (epoch // schedule["every_epochs"])
        case "cosine":
            low = schedule["min_learning_rate"]
            return low + (base - low) * (1 + math.cos(math.pi * step / steps)) / 2
        case "linear_warmup":
            return base * min(1.0, (step + 1) / schedule["steps"])
    raise ValueError(schedule)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 96)
        self.inner = nn.Linear(96, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(torch.tanh(self.inner(torch.relu(self.hidden(x)))))


class ConvNet(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        return self.head(self.dropout(x.flatten(1)))


class Encoder(nn.Module):
    """Predicts the next of 16 pixels. Embedding and head are one tensor; the causal mask is not in the state dict."""

    def __init__(self, dropout):
        super().__init__()
        self.embedding = nn.Embedding(17, 32)
        self.position = nn.Parameter(torch.randn(16, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, 17)
        self.head.weight = self.embedding.weight
        mask = torch.full((16, 16), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        return self.head(self.encoder(x, mask=self.mask, is_causal=False))


def export(name: str, module: nn.Module, example: torch.Tensor) -> None:
    module.train()
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.export.export(module, (example.clone(),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that exported
    torch.export.save(program, HERE / f"{name}.pt2")


def multiply_adds(module: nn.Module, row: torch.Tensor) -> int:
    """PyTorch's own count for one row; it counts 2 operations for each multiply-add."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        copy.deepcopy(module).train()(row)  # eval would take a fused path that the counter does not know
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers; a tied tensor stands under each of its names."""
    return {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}


def train(module: nn.Module, inputs, target, spec: dict) -> tuple[list[float], list[float]]:
    """Runs a training job as a worker does; returns the loss of each step and the mean of each epoch, by rows."""
    options = dict(spec["optimizer"])
    kind, base = options.pop("type"), options["learning_rate"]
    rate = {"lr": options.pop("learning_rate")}
    match kind:
        case "sgd":
            optimizer = torch.optim.SGD(module.parameters(), **rate, **options, foreach=False)
        case "adam" | "adamw":
            betas = (options.pop("beta1"), options.pop("beta2"))
            make = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
            optimizer = make(module.parameters(), **rate, betas=betas, eps=options.pop("epsilon"), **options, foreach=False)
    module.train()
    rows, size = len(inputs), spec["batch_size"]
    steps_per_epoch = -(-rows // size)
    losses, means, step = [], [], 0
    for epoch in range(spec["epochs"]):
        order = torch.tensor(shuffled(rows, spec["seed"], epoch))
        weighted = 0.0
        for start in range(0, rows, size):
            at = order[start : start + size]
            rate = learning_rate(spec["schedule"], base, epoch, step, steps_per_epoch * spec["epochs"])
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            output = module(inputs[at])
            if spec["loss"] == "cross_entropy":
                loss = F.cross_entropy(output.reshape(-1, output.shape[-1]), target[at].reshape(-1))
            else:
                loss = F.mse_loss(output, target[at])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            weighted += loss.item() * len(at)
            step += 1
        means.append(weighted / rows)
    return losses, means


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    VECTORS.mkdir(exist_ok=True)

    raw = load_digits()
    order = shuffled(len(raw.target), SPLIT_SEED, 0)
    pixels = torch.from_numpy(raw.data.astype(np.float32))[order]
    labels = torch.from_numpy(raw.target.astype(np.int64))[order]
    images = (pixels / 16).reshape(-1, 1, 8, 8).contiguous()
    note = {"source": "UCI Optical Recognition of Handwritten Digits (test set), as shipped by scikit-learn", "licence": "CC BY 4.0"}
    train_x, train_y = images[:TRAIN_ROWS].clone(), labels[:TRAIN_ROWS].clone()
    test_x, test_y = images[TRAIN_ROWS:].clone(), labels[TRAIN_ROWS:].clone()
    save_file({"images": train_x, "labels": train_y}, HERE / "train.safetensors", note)
    save_file({"images": test_x, "labels": test_y}, HERE / "test.safetensors", note)

    centre = pixels.reshape(-1, 8, 8)[:256, 2:6, 1:6].reshape(256, 20)[:, :17].to(torch.int64)
    tokens, following = centre[:, :16].contiguous(), centre[:, 1:].contiguous()
    save_file({"tokens": tokens, "next": following}, HERE / "tokens.safetensors", note)

    torch.manual_seed(1)
    mlp = Mlp()
    export("mlp", mlp, train_x[:4])
    save_file(state(mlp), VECTORS / "mlp_start.safetensors")
    torch.manual_seed(2)
    convnet = ConvNet(0.1)
    export("convnet", convnet, train_x[:4])
    torch.manual_seed(3)
    encoder = Encoder(0.1)
    export("encoder", encoder, tokens[:4])

    # The same networks without dropout: their training does not depend on a random generator.
    still_convnet, still_encoder = copy.deepcopy(convnet), copy.deepcopy(encoder)
    for still in (still_convnet, still_encoder):
        for module in still.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
    export("vectors/convnet_still", still_convnet, train_x[:4])
    export("vectors/encoder_still", still_encoder, tokens[:4])

    cases = []

    def inference(name: str, program: str, module: nn.Module, data: str, column: str, inputs, weights=None) -> None:
        module.eval()
        with torch.no_grad():
            output = module(inputs)
        save_file({"output": output.contiguous()}, VECTORS / f"{name}.safetensors")
        (user_input,) = {"encoder": ["tokens"]}.get(program, ["x"])
        cases.append({
            "kind": "inference", "name": name, "program": f"{program}.pt2", "weights": weights, "data": data,
            "inputs": {user_input: column}, "rows": len(inputs), "expected": f"vectors/{name}.safetensors",
        })

    inference("mlp_inference", "mlp", mlp, "test.safetensors", "images", test_x[:37])
    inference("convnet_inference", "convnet", convnet, "test.safetensors", "images", test_x[:37])
    inference("encoder_inference", "encoder", encoder, "tokens.safetensors", "tokens", tokens[:37])

    def training(name, program, module, data, columns, inputs, target, spec) -> None:
        trained = copy.deepcopy(module)
        losses, means = train(trained, inputs, target, spec)
        save_file(state(trained), VECTORS / f"{name}.safetensors")
        cases.append({
            "kind": "training", "name": name, "program": f"{program}.pt2", "data": data, "inputs": {columns[0]: columns[1]},
            "target": columns[2], "rows": len(inputs), "spec": spec, "losses": losses, "epoch_losses": means,
            "expected": f"vectors/{name}.safetensors",
        })

    sgd = {"type": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.0005, "nesterov": False}
    adam = {"type": "adam", "learning_rate": 0.002, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0}
    adamw = dict(adam, type="adamw", weight_decay=0.01)
    constant = {"type": "constant"}
    base = {"loss": "cross_entropy", "optimizer": sgd, "schedule": constant, "epochs": 2, "batch_size": 32, "seed": 7}
    image_columns = ("x", "images", "labels")
    small_x, small_y = train_x[:150], train_y[:150]

    def mlp_case(name, **changes):
        training(name, "mlp", mlp, "train.safetensors", image_columns, small_x, small_y, {**base, **changes})

    mlp_case("mlp_sgd")
    mlp_case("mlp_sgd_nesterov", optimizer={**sgd, "nesterov": True}, schedule={"type": "linear_warmup", "steps": 4})
    mlp_case("mlp_adam", optimizer=adam, schedule={"type": "step", "every_epochs": 1, "gamma": 0.5})
    mlp_case("mlp_adamw", optimizer=adamw, schedule={"type": "cosine", "min_learning_rate": 0.0001})

    one_hot = F.one_hot(small_y, 10).to(torch.float32)
    save_file({"images": small_x.clone(), "one_hot": one_hot}, VECTORS / "one_hot_data.safetensors")
    training("mlp_mse", "mlp", mlp, "vectors/one_hot_data.safetensors", ("x", "images", "one_hot"), small_x, one_hot,
             {**base, "loss": "mse", "optimizer": adam})
    training("convnet_adam", "vectors/convnet_still", still_convnet, "train.safetensors", image_columns, small_x, small_y,
             {**base, "optimizer": adam})
    training("encoder_adamw", "vectors/encoder_still", still_encoder, "tokens.safetensors", ("tokens", "tokens", "next"),
             tokens[:96], following[:96], {**base, "optimizer": adamw})

    # What the example promises: the convolutional net learns the digits within a few epochs, dropout included.
    torch.manual_seed(4)
    trained = copy.deepcopy(convnet)
    promise = {**base, "optimizer": {**adam, "learning_rate": 0.003}, "epochs": 5, "batch_size": 32}
    _, means = train(trained, train_x, train_y, promise)
    save_file(state(trained), VECTORS / "convnet_trained.safetensors")
    inference("convnet_trained_inference", "convnet", trained, "test.safetensors", "images", test_x, "vectors/convnet_trained.safetensors")
    accuracy = (trained(test_x).argmax(1) == test_y).double().mean().item()
    assert accuracy >= 0.95, accuracy

    document = {
        "torch": torch.__version__,
        "rule": "rows of epoch e: shuffled(rows, seed, e); steps take batch_size rows in that order, the last what is left",
        "trained": {"spec": promise, "epoch_losses": means, "test_accuracy": accuracy},
        "multiply_adds_per_row": {
            "mlp": multiply_adds(mlp, train_x[:1]),
            "convnet": multiply_adds(convnet, train_x[:1]),
            "encoder": multiply_adds(encoder, tokens[:1]),
        },
        "shuffles": [{"rows": n, "seed": s, "epoch": e, "order": shuffled(n, s, e)} for n, s, e in
                     ((1, 0, 0), (10, 7, 0), (10, 7, 1), (33, (1 << 53) - 1, 3))],
        "cases": cases,
    }
    (VECTORS / "vectors.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"torch {torch.__version__}, test accuracy {accuracy:.4f}, epoch losses {[round(m, 4) for m in means]}")


if __name__ == "__main__":
    main()
