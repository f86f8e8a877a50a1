#!/usr/bin/env python3
"""Makes a small model that writes texts: tokenizer, rows to learn from, programs, and reference results computed by PyTorch itself.

    python export.py              # tokenizer.json, train.safetensors, gpt.pt2, generate.pt2, vectors/static_cache*
    python export.py --trained    # manifest.json and vectors.json, once a training job of ours has made weights.safetensors

Needs what requirements.txt lists. Nothing is downloaded. The build and the tests only read what it wrote.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
END, USER, ASSISTANT = SPECIALS = ["<|end|>", "<|user|>", "<|assistant|>"]
VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 512, 128, 64, 4, 3
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [{"role": "user", "content": "Speak, speak."}, {"role": "assistant", "content": "You are all resolved."},
        {"role": "user", "content": "What says the king?"}]
PROMPTS = ["<|user|>Who comes here?<|end|><|assistant|>", "First Citizen:\n", "My lord,"]
WRITTEN = 24


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def heads(self, x):
        split = [it(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for it in (self.query, self.key, self.value)]
        return split

    def finish(self, x, read):
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """Whole windows: what comes behind each token."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.empty(CONTEXT, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        self.register_buffer("seen", torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril(), persistent=False)

    def logits(self, x):
        return F.linear(self.norm(x), self.embedding.weight)

    def forward(self, input_ids):
        x = self.embedding(input_ids) + self.position
        for layer in self.layers:
            query, key, value = layer.heads(layer.norm1(x))
            x = layer.finish(x, F.scaled_dot_product_attention(query, key, value, attn_mask=self.seen))
        return self.logits(x)


class Step(Gpt):
    """One token at its place; keys and values of those before it stay in buffers, which are not saved."""

    def __init__(self):
        super().__init__()
        del self.seen
        self.register_buffer("places", torch.arange(CONTEXT), persistent=False)
        for at in range(LAYERS):
            for what in ("key", "value"):
                empty = torch.zeros(1, HEADS, CONTEXT, WIDTH // HEADS)
                self.register_buffer(f"{what}_cache_{at}", empty, persistent=False)

    def forward(self, input_ids, cache_position):
        x = self.embedding(input_ids) + self.position[cache_position]
        seen = (self.places <= cache_position)[None, None, None]
        for at, layer in enumerate(self.layers):
            query, key, value = layer.heads(layer.norm1(x))
            keys, values = getattr(self, f"key_cache_{at}"), getattr(self, f"value_cache_{at}")
            keys.index_copy_(2, cache_position, key)
            values.index_copy_(2, cache_position, value)
            x = layer.finish(x, F.scaled_dot_product_attention(query, keys, values, attn_mask=seen))
        return self.logits(x)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(program, path: Path) -> None:
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that exported
    torch.export.save(program, path)


def trained_tokenizer(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def rows(text: str, tokenizer: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of the plays, and of the same speeches as a conversation: every speech answers the one before it."""
    speeches = [it.split(":\n", 1)[1] for it in re.split(r"\n\n+", text) if ":\n" in it]
    turns = [f"{USER}{said}{END}{ASSISTANT}{answer}{END}" for said, answer in zip(speeches, speeches[1:])]
    windows = []
    for whole in (text, "".join(turns)):
        ids = tokenizer.encode(whole).ids
        windows += [ids[at : at + CONTEXT + 1] for at in range(0, len(ids) - CONTEXT - 1, CONTEXT)]
    table = torch.tensor(windows)
    return table[:, :-1].contiguous(), table[:, 1:].contiguous()


def untrained() -> None:
    text = (HERE / "text.txt").read_text()
    tokenizer = trained_tokenizer(text)
    tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
    input_ids, following = rows(text, tokenizer)
    save_file({"input_ids": input_ids.to(torch.int64), "next": following.to(torch.int64)}, HERE / "train.safetensors")
    print(f"{len(input_ids)} rows of {CONTEXT} tokens")

    torch.manual_seed(1)
    module = Gpt().train()
    batch = torch.export.Dim("batch", min=1, max=4096)
    save(torch.export.export(module, (input_ids[:3].clone(),), dynamic_shapes=({0: batch},)), HERE / "gpt.pt2")
    step = Step().eval()
    # Its weights are those of the other program, in a file of their own.
    for parameter in step.parameters():
        nn.init.zeros_(parameter)
    step.requires_grad_(False)
    example = (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    save(torch.export.export(step, example), HERE / "generate.pt2")
    static_cache()


def static_cache() -> None:
    """The export of the transformers library itself, of a tiny network that knows nothing."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    torch.manual_seed(2)
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.6, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=32,
        cache_config={"batch_size": 1, "max_cache_len": 32, "device": "cpu"})
    exportable = TorchExportableModuleWithStaticCache(model)
    example = {"input_ids": torch.tensor([[1]]), "cache_position": torch.tensor([0])}
    with torch.no_grad():
        program = torch.export.export(exportable, args=(), kwargs=example, strict=True)
    save(program, HERE / "vectors/static_cache.pt2")
    prompt = [1, 5, 9, 33]
    written = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, use_cache=True,
                             cache_implementation=None, eos_token_id=None, pad_token_id=0)[0].tolist()
    cases = {"prompt": prompt, "written": written[len(prompt):], "context": 32, "vocabulary": 64}
    (HERE / "vectors/static_cache.json").write_text(json.dumps(cases) + "\n")


def next_logits(module: Gpt, ids: list[int]) -> torch.Tensor:
    padded = torch.tensor([ids + [0] * (CONTEXT - len(ids))])
    with torch.no_grad():
        return module(padded)[0, len(ids) - 1]


def reference() -> None:
    weights = load_file(HERE / "weights.safetensors")
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    module, step = Gpt().eval(), Step().eval()
    for it in (module, step):
        it.load_state_dict(weights)
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        written = []
        for buffer in step.buffers():
            if buffer.is_floating_point():
                buffer.zero_()
        with torch.no_grad():
            for place, token in enumerate(ids):
                cached = step(torch.tensor([[token]]), torch.tensor([place]))[0, 0]
        first = next_logits(module, ids)
        torch.testing.assert_close(cached, first, rtol=1e-4, atol=1e-4)
        while len(written) < WRITTEN:
            written.append(int(next_logits(module, ids + written).argmax()))
        cases.append({"prompt": prompt, "ids": ids, "written": written, "text": tokenizer.decode(written, skip_special_tokens=True),
                      "logits": [round(it, 5) for it in first.tolist()]})
    document = {"torch": torch.__version__, "cases": cases}
    (HERE / "vectors/vectors.json").write_text(json.dumps(document, ensure_ascii=False).replace('{"prompt"', '\n{"prompt"') + "\n")
    program = torch.export.load(HERE / "generate.pt2")
    output = [it.arg.name for it in program.graph_signature.output_specs if it.kind.name == "USER_OUTPUT"]
    manifest = {
        "programs": {name: digest(HERE / file) for name, file in
                     (("infer", "gpt.pt2"), ("train", "gpt.pt2"), ("generate", "generate.pt2"))},
        "weights": digest(HERE / "weights.safetensors"),
        "text": {"tokenizer": digest(HERE / "tokenizer.json"), "ids": "input_ids", "pad_id": 0, "special_tokens": False},
        "generation": {"ids": "input_ids", "positions": "cache_position", "logits": output[0], "context": CONTEXT,
                       "ends": [tokenizer.token_to_id(END)], "chat": {"template": TEMPLATE}},
    }
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", action="store_true")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if parser.parse_args().trained:
        reference()
    else:
        untrained()


if __name__ == "__main__":
    main()
