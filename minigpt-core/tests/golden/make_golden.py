"""Golden numbers of small GPTs, computed by PyTorch in float64.

The models are those that minigpt-core's GptConfig describes, written once more with torch.nn.functional, so that
the numbers are PyTorch's own. The twelve configs cover every pair of the config's variants; sizes are odd on
purpose. The Rust tests read the committed files and need no PyTorch.

    python make_golden.py            writes the files beside this script
    python make_golden.py --check    compares the committed files with a fresh computation instead

It needs PyTorch alone (the version is in each file's metadata). The check allows 1e-12 of each tensor's largest
element, because PyTorch picks its kernels by the machine, and 1e-9 after AdamW: the bias of the keys has a gradient
of exactly zero (softmax ignores what shifts all scores of a query), and AdamW divides its rounding error by 1e-8.

Each file is in the safetensors format: u64 length of the header, JSON header, raw little-endian data. It holds

    __metadata__             the config, the training settings and the version of PyTorch
    tokens, targets          U32 (batches, B, T); a target of 2^32 - 1 is ignored
    param.NAME               F32, the initial parameters: every value is exact in f32
    logits, loss, grad.NAME  F64, of batch 0 and the initial parameters; the loss is the mean over the targets
    losses, grad_norms       F64 (50): step i trains on batch i mod batches; the norm is before clipping
    after10.NAME             F64, the parameters after 10 of these steps
"""

import json
import random
import struct
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

FOLDER = Path(__file__).resolve().parent
IGNORE = 2**32 - 1
BATCHES = 3
STEPS = 50
TRAINING = dict(
    learning_rate=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, clip=1.0, steps=STEPS, after=10
)

VARIANTS = ["position", "norm", "attention_scale", "activation", "residual", "bias", "tied_embeddings"]
SIZES = ["vocab_size", "context", "layers", "heads", "d_model", "d_ff"]
# The variants, the sizes, then the shape of a batch (B, T).
CONFIGS = [
    (("learned", "pre", "inverse_sqrt", "gelu_erf", True, True, True), (97, 33, 1, 5, 60, 64), (2, 33)),
    (("learned", "post", "none", "gelu_tanh", False, False, False), (11, 9, 2, 3, 12, 20), (2, 7)),
    (("learned", "none", 0.3, "relu", True, False, True), (13, 8, 2, 1, 9, 17), (3, 8)),
    (("sinusoidal", "pre", "none", "relu", False, False, True), (11, 7, 2, 3, 12, 48), (2, 7)),
    (("sinusoidal", "post", 0.7, "gelu_erf", False, True, True), (17, 12, 1, 2, 10, 7), (3, 5)),
    (("sinusoidal", "none", "inverse_sqrt", "gelu_tanh", True, False, False), (7, 6, 3, 3, 15, 21), (2, 6)),
    (("rotary", "pre", 0.3, "gelu_tanh", True, True, False), (11, 9, 2, 3, 12, 20), (2, 9)),
    (("rotary", "post", "inverse_sqrt", "relu", True, True, True), (19, 16, 2, 2, 20, 33), (1, 13)),
    (("rotary", "none", "none", "gelu_erf", False, False, False), (5, 7, 2, 1, 6, 9), (4, 3)),
    (("none", "pre", "inverse_sqrt", "gelu_tanh", False, False, True), (23, 10, 2, 4, 16, 40), (2, 10)),
    (("none", "post", "none", "relu", True, True, False), (8, 7, 2, 1, 7, 15), (2, 7)),
    (("none", "none", 0.9, "gelu_erf", False, True, False), (11, 5, 1, 11, 11, 30), (5, 2)),
]
# What departs from the defaults besides: norm's epsilon, and batches in which some targets are ignored.
NORM_EPS = {"sinusoidal_pre": 1e-3, "rotary_post": 0.1}
IGNORING = {"learned_post", "rotary_pre"}


def name_of(config):
    return f"{config['position']}_{config['norm']}"


def shapes(config):
    """Every parameter's shape by name, in the order of the model."""
    width, d_ff = config["d_model"], config["d_ff"]
    found = {"wte.weight": (config["vocab_size"], width)}

    def linear(name, d_out, d_in):
        found[f"{name}.weight"] = (d_out, d_in)
        if config["bias"]:
            found[f"{name}.bias"] = (d_out,)

    def norm(name):
        found[f"{name}.weight"] = (width,)
        if config["bias"]:
            found[f"{name}.bias"] = (width,)

    if config["position"] == "learned":
        found["wpe.weight"] = (config["context"], width)
    for i in range(config["layers"]):
        if config["norm"] != "none":
            norm(f"h.{i}.ln_1")
        linear(f"h.{i}.attn.c_attn", 3 * width, width)
        linear(f"h.{i}.attn.c_proj", width, width)
        if config["norm"] != "none":
            norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.c_fc", d_ff, width)
        linear(f"h.{i}.mlp.c_proj", width, d_ff)
    if config["norm"] == "pre":
        norm("ln_f")
    if not config["tied_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], width)
    return found


def initial(config, rng):
    """Larger weights than a model would begin with, and biases and norms that are not 0 and 1, so that every one of
    them matters."""
    # With neither norm nor residual connections, the signal would fade from layer to layer.
    gain = 1.0 if config["residual"] or config["norm"] != "none" else 1.2
    parameters = {}
    for name, shape in shapes(config).items():
        if len(shape) == 2:
            mean, std = 0.0, gain / config["d_model"] ** 0.5
        elif name.endswith("weight"):
            mean, std = 1.0, 0.1
        else:
            mean, std = 0.0, 0.05
        count = torch.Size(shape).numel()
        values = torch.tensor([rng.gauss(mean, std) for _ in range(count)], dtype=torch.float32)
        parameters[name] = values.to(torch.float64).reshape(shape).requires_grad_()
    return parameters


def sinusoids(time, width):
    """Vaswani et al. 2017, section 3.5."""
    index = torch.arange(width)
    angle = torch.arange(time, dtype=torch.float64)[:, None] / 10000.0 ** ((index - index % 2).double() / width)
    return torch.where(index % 2 == 0, angle.sin(), angle.cos())


def rotate(x):
    """Su et al. 2021: turns each pair of neighbours of x (B, H, T, D) by position * 10000^(-2i/D)."""
    time, d_head = x.shape[-2:]
    frequency = 10000.0 ** (-torch.arange(0, d_head, 2).double() / d_head)
    angle = torch.arange(time, dtype=torch.float64)[:, None] * frequency
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def forward(config, parameters, tokens):
    """Logits (B, T, V) of tokens (B, T)."""
    batch, time = tokens.shape
    width, heads = config["d_model"], config["heads"]

    def linear(name, x):
        return F.linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))

    def norm(name, x):
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        return F.layer_norm(x, (width,), weight, bias, config["norm_eps"])

    def attention(name, x):
        q, k, v = (
            part.reshape(batch, time, heads, -1).transpose(1, 2)
            for part in linear(f"{name}.c_attn", x).split(width, -1)
        )
        if config["position"] == "rotary":
            q, k = rotate(q), rotate(k)
        scale = {"inverse_sqrt": None, "none": 1.0}.get(config["attention_scale"], config["attention_scale"])
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return linear(f"{name}.c_proj", y.transpose(1, 2).reshape(batch, time, width))

    def feed_forward(name, x):
        h = linear(f"{name}.c_fc", x)
        if config["activation"] == "relu":
            h = F.relu(h)
        else:
            h = F.gelu(h, approximate={"gelu_erf": "none", "gelu_tanh": "tanh"}[config["activation"]])
        return linear(f"{name}.c_proj", h)

    def sub_layer(norm_name, f, name, x):
        y = f(name, norm(norm_name, x) if config["norm"] == "pre" else x)
        if config["residual"]:
            y = x + y
        return norm(norm_name, y) if config["norm"] == "post" else y

    x = F.embedding(tokens, parameters["wte.weight"])
    if config["position"] == "learned":
        x = x + parameters["wpe.weight"][:time]
    elif config["position"] == "sinusoidal":
        x = x + sinusoids(time, width)
    for i in range(config["layers"]):
        x = sub_layer(f"h.{i}.ln_1", attention, f"h.{i}.attn", x)
        x = sub_layer(f"h.{i}.ln_2", feed_forward, f"h.{i}.mlp", x)
    if config["norm"] == "pre":
        x = norm("ln_f", x)
    return F.linear(x, parameters["wte.weight" if config["tied_embeddings"] else "lm_head.weight"])


def mean_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def compute(config, shape, seed):
    """The tensors of one file, by name."""
    rng = random.Random(seed)
    parameters = initial(config, rng)
    draw = [[rng.randrange(config["vocab_size"]) for _ in range(shape[1] + 1)] for _ in range(BATCHES * shape[0])]
    rows = torch.tensor(draw).reshape(BATCHES, shape[0], shape[1] + 1)
    tokens, targets = rows[..., :-1], rows[..., 1:].clone()
    if name_of(config) in IGNORING:
        # A different number in each batch.
        for i in range(BATCHES):
            targets[i, 0, : i + 1] = IGNORE
    tensors = {"tokens": tokens, "targets": targets}
    tensors |= {f"param.{name}": p.detach().clone() for name, p in parameters.items()}

    matrices = [p for p in parameters.values() if p.dim() >= 2]
    vectors = [p for p in parameters.values() if p.dim() < 2]
    decay = TRAINING["weight_decay"]
    groups = [dict(params=matrices, weight_decay=decay)]
    if vectors:
        groups.append(dict(params=vectors, weight_decay=0.0))
    betas = (TRAINING["beta1"], TRAINING["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=TRAINING["learning_rate"], betas=betas, eps=TRAINING["eps"])

    losses, norms = [], []
    for step in range(STEPS):
        batch = step % BATCHES
        logits = forward(config, parameters, tokens[batch])
        loss = mean_loss(logits, targets[batch])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            tensors |= {"logits": logits.detach(), "loss": loss.detach()}
            tensors |= {f"grad.{name}": p.grad.clone() for name, p in parameters.items()}
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), TRAINING["clip"]).item())
        optimizer.step()
        if step + 1 == TRAINING["after"]:
            tensors |= {f"after10.{name}": p.detach().clone() for name, p in parameters.items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors["grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    return tensors


def dtype_of(name):
    """The type in which a tensor is stored, and its code for struct."""
    if name in ("tokens", "targets"):
        return "U32", "I", 4
    return ("F32", "f", 4) if name.startswith("param.") else ("F64", "d", 8)


def encode(metadata, tensors):
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in tensors.items():
        dtype, code, _ = dtype_of(name)
        raw = struct.pack(f"<{tensor.numel()}{code}", *tensor.flatten().tolist())
        header[name] = dict(dtype=dtype, shape=list(tensor.shape), data_offsets=[len(data), len(data) + len(raw)])
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of 8.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def decode(content):
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        _, code, size = dtype_of(name)
        begin, end = entry["data_offsets"]
        values = struct.unpack_from(f"<{(end - begin) // size}{code}", content, 8 + length + begin)
        tensors[name] = torch.tensor(values, dtype=torch.float64).reshape(entry["shape"])
    return metadata, tensors


def difference(name, metadata, tensors, path):
    """What keeps the committed file from being these numbers, or None."""
    if not path.exists():
        return "is missing"
    found_metadata, found = decode(path.read_bytes())
    ignoring_version = {**found_metadata, "torch": metadata["torch"]}
    if ignoring_version != metadata:
        return f"has the metadata {found_metadata} instead of {metadata}"
    if list(found) != list(tensors):
        return "has other tensors"
    for key, expected in tensors.items():
        expected = expected.to(torch.float64)
        if found[key].shape != expected.shape:
            return f"{key} has the shape {list(found[key].shape)} instead of {list(expected.shape)}"
        error = (found[key] - expected).abs().max().item() / max(expected.abs().max().item(), 1e-300)
        if not error <= (1e-9 if key.startswith("after10.") else 1e-12):
            return f"{key} differs by {error:.1e} of its largest element"
    return None


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit("usage: make_golden.py [--check]")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    failed = False
    for seed, (variants, sizes, shape) in enumerate(CONFIGS, start=1):
        config = dict(zip(SIZES, sizes)) | dict(zip(VARIANTS, variants))
        name = name_of(config)
        config |= dict(dropout=0.0, norm_eps=NORM_EPS.get(name, 1e-5))
        tensors = compute(config, shape, seed)
        metadata = {key: json.dumps(value).strip('"') for key, value in (config | TRAINING).items()}
        metadata["torch"] = torch.__version__
        path = FOLDER / f"{name}.safetensors"
        if check:
            wrong = difference(name, metadata, tensors, path)
            failed |= wrong is not None
            print(f"{path.name}: {wrong or 'agrees'}")
        else:
            path.write_bytes(encode(metadata, tensors))
            clipped = int((tensors["grad_norms"] > TRAINING["clip"]).sum())
            first, last = tensors["losses"][0].item(), tensors["losses"][-1].item()
            print(f"{path.name}: {path.stat().st_size} bytes, loss {first:.3f} to {last:.3f}, {clipped} steps clipped")
    sys.exit("the golden files are not these numbers" if failed else 0)


if __name__ == "__main__":
    main()
