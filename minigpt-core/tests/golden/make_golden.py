"""Golden numbers of small GPTs, computed by PyTorch in float64.

The models are those that minigpt-core's GptConfig describes, written once more with torch.nn.functional, so that
the numbers are PyTorch's own. The twelve of GRID have every pair of the variants of a GPT-2; each model of PIECES has
something more, and is named for it. Those of OPTIMIZERS are one model, trained by others than AdamW alone; their files lie in the folder
optimizers. Sizes are odd on purpose. The Rust tests read the committed files and need no PyTorch.

    python make_golden.py [NAME ...]            writes these files, or all, beside this script
    python make_golden.py --check [NAME ...]    compares the committed files with a fresh computation instead

It needs PyTorch alone (the version is in each file's metadata). The check allows 1e-12 of each tensor's largest
element, because PyTorch picks its kernels by the machine, and 1e-9 after AdamW: the bias of the keys has a gradient
of exactly zero (softmax ignores what shifts all scores of a query), and AdamW divides its rounding error by 1e-8.

Each file is in the safetensors format: u64 length of the header, JSON header, raw little-endian data. It holds

    __metadata__             the config (what it lacks is in DEFAULTS), the training settings and the version of PyTorch
    tokens, targets          U32 (batches, B, n), n = T - P; a target of 2^32 - 1 is ignored
    prefix                   F32 (batches, B, P, C), with P > 0: the given vectors before the tokens; they have no targets
    param.NAME               F32, the initial parameters: every value is exact in f32
    logits, loss, grad.NAME  F64, of batch 0 and the initial parameters: logits (B, T, V), the mean loss over the targets
    grad.prefix              F64 (B, P, C), with P > 0: as grad.NAME; it is no part of grad_norms
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
GRID = [
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
NORM_EPS = {"sinusoidal_pre": 1e-3, "rotary_post": 0.1, "rms_post": 1e-2, "qwen3": 1e-6}
IGNORING = {"learned_post", "rotary_pre", "mask_none", "prefix_rotary"}

# What a file's metadata need not name. `norm` is the place of the norms and `norm_kind` their kind; `bias` is true, false, or
# which of qkv, linear and norm have one, such as "qkv+norm".
DEFAULTS = dict(
    kv_heads=None, d_head=None, prefix=0, mask="causal", rotary_base=10000.0, rotary_pairing="adjacent",
    norm_kind="layer", qk_norm=False, gated=False,
)  # fmt: skip
# A GPT-2 block, which each of PIECES changes.
BLOCK = dict(zip(SIZES, (11, 9, 1, 4, 16, 20))) | dict(
    zip(VARIANTS, ("learned", "pre", "inverse_sqrt", "gelu_tanh", True, True, True))
)
LLAMA = dict(
    position="rotary", rotary_pairing="halves", norm_kind="rms", activation="silu", gated=True, bias=False, kv_heads=2
)  # fmt: skip
# By name: what departs from BLOCK, and the shape of a batch (B, T), in which T has the prefix too.
PIECES = {
    "rms": (dict(norm_kind="rms", d_model=12, heads=3), (2, 7)),
    "rms_post": (dict(norm_kind="rms", norm="post", bias=False, layers=2, position="none"), (2, 6)),
    "rotary_base": (dict(position="rotary", rotary_base=100.0, bias=False, heads=2), (2, 9)),
    "rotary_halves": (dict(position="rotary", rotary_pairing="halves", norm="post", d_model=18, heads=3), (2, 8)),
    "grouped_heads": (dict(kv_heads=2, attention_scale=0.4), (2, 9)),
    "one_kv_head": (dict(kv_heads=1, heads=3, d_model=12, position="rotary", norm="post"), (3, 5)),
    "wide_heads": (dict(d_head=7, heads=2, d_model=9), (2, 7)),
    "narrow_heads": (dict(d_head=2, heads=3, kv_heads=1, position="rotary", bias=False), (2, 8)),
    "mask_none": (dict(mask="none", position="sinusoidal"), (2, 7)),
    # Without rotation, the bias of the keys' norm has a gradient of exactly zero, as that of the keys has.
    "qk_norm": (dict(qk_norm=True, position="rotary"), (2, 9)),
    "qk_norm_rms": (dict(qk_norm=True, norm_kind="rms", kv_heads=2, bias=False, attention_scale=1.7), (2, 7)),
    "relu_squared": (dict(activation="relu_squared", tied_embeddings=False), (2, 7)),
    "silu": (dict(activation="silu", norm="post", bias=False), (2, 7)),
    "gated_silu": (dict(activation="silu", gated=True, d_ff=13), (2, 7)),
    "gated_gelu": (dict(activation="gelu_erf", gated=True, norm="none", bias=False, d_ff=15), (2, 7)),
    "gated_relu": (dict(activation="relu", gated=True, norm="post", bias="linear", d_ff=11), (2, 7)),
    "bias_qkv": (dict(bias="qkv", kv_heads=2, tied_embeddings=False), (2, 7)),
    "bias_linear": (dict(bias="linear", residual=False), (2, 7)),
    "bias_norm": (dict(bias="norm", norm_kind="rms", norm="post"), (2, 7)),
    "bias_linear_norm": (dict(bias="linear+norm", position="none"), (2, 7)),
    "prefix_causal": (dict(prefix=3, bias=False), (2, 9)),
    "prefix_rotary": (LLAMA | dict(prefix=2, mask="prefix", qk_norm=True), (3, 7)),
    "prefix_none": (dict(prefix=1, mask="none", position="sinusoidal", norm="post"), (2, 6)),
    "llama": (LLAMA | dict(rotary_base=500000.0, layers=2, d_ff=22, tied_embeddings=False), (2, 9)),
    "qwen3": (LLAMA | dict(rotary_base=1e6, layers=2, heads=6, d_head=6, d_model=14, qk_norm=True), (2, 8)),
    "prefix": (dict(prefix=4, mask="prefix", layers=2, context=13), (2, 13)),
}

# The model of all optimizers: matrices of queries, keys, values, gates and heads, tall, wide and square.
OPTIMIZED = (BLOCK | dict(gated=True, activation="silu", kv_heads=2, layers=2, d_ff=13, tied_embeddings=False), (2, 8))
SGD = dict(kind="sgd", momentum=0.9, nesterov=False, decay=0.1, rate=30.0)
ADAMW = dict(kind="adamw", decay=0.1, rate=1.0)
# By name: how embeddings, matrices, the head and vectors are trained. The rate is a factor on the learning rate.
OPTIMIZERS = {
    "sgd": [SGD, SGD, SGD, SGD | dict(decay=0.0)],
    "nesterov": [SGD | dict(nesterov=True)] * 4,
    "plain": [SGD | dict(momentum=0.0, rate=100.0)] * 4,
    "groups": [ADAMW | dict(rate=0.25), ADAMW, SGD, ADAMW | dict(decay=0.5, rate=2.0)],
    "muon": [ADAMW, dict(kind="muon", momentum=0.95, nesterov=True, decay=0.005, rate=20.0), ADAMW, ADAMW],
    "muon_straight": [ADAMW, dict(kind="muon", momentum=0.8, nesterov=False, decay=0.0, rate=10.0), ADAMW, ADAMW],
}


def group_of(name):
    """The number of the parameter's group."""
    if name in ("wte.weight", "wpe.weight"):
        return 0
    if name == "lm_head.weight":
        return 2
    return 1 if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else 3


def orthogonalized(matrix):
    """What five iterations of Keller Jordan's make of the singular values, by their decomposition instead of products."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / (torch.linalg.norm(matrix) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


class Muon:
    """Muon over fused matrices, each of which has so many rows."""

    def __init__(self, named, parts, lr, momentum, nesterov, decay):
        self.named, self.parts, self.lr, self.decay = named, parts, lr, decay
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = {name: torch.zeros_like(p) for name, p in named.items()}

    @torch.no_grad()
    def step(self):
        for name, p in self.named.items():
            self.velocity[name].mul_(self.momentum).add_(p.grad)
            d = p.grad + self.momentum * self.velocity[name] if self.nesterov else self.velocity[name]
            p.mul_(1 - self.lr * self.decay)
            rows = self.parts(name, p.shape[0])
            for part, weight in zip(d.split(rows), p.split(rows)):
                scale = max(1, part.shape[0] / part.shape[1]) ** 0.5
                weight.add_(orthogonalized(part), alpha=-self.lr * scale)


class Decayed:
    """Gradient descent of PyTorch's, after a decay that stands apart from it."""

    def __init__(self, parameters, lr, momentum, nesterov, decay):
        self.parameters, self.lr, self.decay = parameters, lr, decay
        self.sgd = torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov)

    @torch.no_grad()
    def step(self):
        for p in self.parameters:
            p.mul_(1 - self.lr * self.decay)
        self.sgd.step()


def optimizers(groups, parameters, config):
    """What trains the parameters, group by group."""
    heads, kv_heads, d_head = heads_of(config)

    def parts(name, rows):
        if name.endswith("c_attn.weight"):
            return [heads * d_head, kv_heads * d_head, kv_heads * d_head]
        if name.endswith("c_fc.weight") and config["gated"]:
            return [rows // 2, rows // 2]
        return [rows]

    found = []
    for number, group in enumerate(groups):
        named = {name: p for name, p in parameters.items() if group_of(name) == number}
        lr, decay = TRAINING["learning_rate"] * group["rate"], group["decay"]
        moving = {key: group[key] for key in ("momentum", "nesterov") if key in group}
        if group["kind"] == "adamw":
            betas = (TRAINING["beta1"], TRAINING["beta2"])
            found.append(torch.optim.AdamW(named.values(), lr=lr, betas=betas, eps=TRAINING["eps"], weight_decay=decay))
        elif group["kind"] == "sgd":
            found.append(Decayed(list(named.values()), lr=lr, decay=decay, **moving))
        else:
            found.append(Muon(named, parts, lr=lr, decay=decay, **moving))
    return found


def configs():
    """Every config by the name of its file, and the shape of its batches."""
    found = {}
    for variants, sizes, shape in GRID:
        config = dict(zip(SIZES, sizes)) | dict(zip(VARIANTS, variants))
        found[f"{config['position']}_{config['norm']}"] = config, shape
    for name, (departures, shape) in PIECES.items():
        found[name] = BLOCK | departures, shape
    for name in OPTIMIZERS:
        config, shape = OPTIMIZED
        found[f"optimizers/{name}"] = dict(config), shape
    for name, (config, _) in found.items():
        config |= dict(dropout=0.0, norm_eps=NORM_EPS.get(name, 1e-5))
    return found


def heads_of(config):
    """H, K and D."""
    heads = config["heads"]
    return heads, config["kv_heads"] or heads, config["d_head"] or config["d_model"] // heads


def has_bias(config, part):
    bias = config["bias"]
    return part in bias.split("+") if isinstance(bias, str) else bias


def shapes(config):
    """Every parameter's shape by name, in the order of the model."""
    width, d_ff = config["d_model"], config["d_ff"]
    heads, kv_heads, d_head = heads_of(config)
    found = {"wte.weight": (config["vocab_size"], width)}

    def linear(name, d_out, d_in, bias="linear"):
        found[f"{name}.weight"] = (d_out, d_in)
        if has_bias(config, bias):
            found[f"{name}.bias"] = (d_out,)

    def norm(name, width=width):
        found[f"{name}.weight"] = (width,)
        if has_bias(config, "norm"):
            found[f"{name}.bias"] = (width,)

    if config["position"] == "learned":
        found["wpe.weight"] = (config["context"], width)
    for i in range(config["layers"]):
        if config["norm"] != "none":
            norm(f"h.{i}.ln_1")
        linear(f"h.{i}.attn.c_attn", (heads + 2 * kv_heads) * d_head, width, "qkv")
        if config["qk_norm"]:
            norm(f"h.{i}.attn.q_norm", d_head)
            norm(f"h.{i}.attn.k_norm", d_head)
        linear(f"h.{i}.attn.c_proj", width, heads * d_head)
        if config["norm"] != "none":
            norm(f"h.{i}.ln_2")
        # The gate's rows above those of what it lets through.
        linear(f"h.{i}.mlp.c_fc", 2 * d_ff if config["gated"] else d_ff, width)
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


def rotate(config, x):
    """Su et al. 2021: turns each pair of elements of x (B, H, T, D) by position * base^(-2i/D)."""
    time, d_head = x.shape[-2:]
    frequency = config["rotary_base"] ** (-torch.arange(0, d_head, 2).double() / d_head)
    angle = torch.arange(time, dtype=torch.float64)[:, None] * frequency
    halves = config["rotary_pairing"] == "halves"
    pairs = x.unflatten(-1, (2, -1)).transpose(-1, -2) if halves else x.unflatten(-1, (-1, 2))
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)
    turned = torch.view_as_real(turned)
    return (turned.transpose(-1, -2) if halves else turned).flatten(-2)


def visible(config, time):
    """How scaled_dot_product_attention is told which keys (columns) a query (row) sees."""
    if config["mask"] == "causal":
        return dict(is_causal=True)
    if config["mask"] == "none":
        return dict()
    seen = torch.ones(time, time, dtype=torch.bool).tril()
    seen[:, : config["prefix"]] = True
    return dict(attn_mask=seen)


def activate(config, h):
    kind = config["activation"]
    if kind == "relu":
        return F.relu(h)
    if kind == "relu_squared":
        return F.relu(h).square()
    if kind == "silu":
        return F.silu(h)
    return F.gelu(h, approximate={"gelu_erf": "none", "gelu_tanh": "tanh"}[kind])


def forward(config, parameters, tokens, prefix):
    """Logits (B, T, V) of given vectors (B, P, C), or None, and tokens (B, T - P)."""
    width = config["d_model"]
    heads, kv_heads, d_head = heads_of(config)

    def linear(name, x):
        return F.linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))

    def norm(name, x):
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        if config["norm_kind"] == "layer":
            return F.layer_norm(x, weight.shape, weight, bias, config["norm_eps"])
        y = F.rms_norm(x, weight.shape, weight, config["norm_eps"])
        return y if bias is None else y + bias

    def attention(name, x):
        parts = linear(f"{name}.c_attn", x).split([n * d_head for n in (heads, kv_heads, kv_heads)], -1)
        q, k, v = (part.unflatten(-1, (-1, d_head)).transpose(1, 2) for part in parts)
        if config["qk_norm"]:
            q, k = norm(f"{name}.q_norm", q), norm(f"{name}.k_norm", k)
        if config["position"] == "rotary":
            q, k = rotate(config, q), rotate(config, k)
        scale = {"inverse_sqrt": None, "none": 1.0}.get(config["attention_scale"], config["attention_scale"])
        # Head h of the queries reads head h / (H / K) of the keys.
        mask = visible(config, x.shape[1])
        y = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=heads != kv_heads, **mask)
        return linear(f"{name}.c_proj", y.transpose(1, 2).flatten(-2))

    def feed_forward(name, x):
        h = linear(f"{name}.c_fc", x)
        if config["gated"]:
            gate, up = h.chunk(2, -1)
            h = activate(config, gate) * up
        else:
            h = activate(config, h)
        return linear(f"{name}.c_proj", h)

    def sub_layer(norm_name, f, name, x):
        y = f(name, norm(norm_name, x) if config["norm"] == "pre" else x)
        if config["residual"]:
            y = x + y
        return norm(norm_name, y) if config["norm"] == "post" else y

    x = F.embedding(tokens, parameters["wte.weight"])
    if prefix is not None:
        x = torch.cat([prefix, x], 1)
    time = x.shape[1]
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


def compute(name, config, shape, seed):
    """The tensors of one file, by name."""
    rng = random.Random(seed)
    batch, text = shape[0], shape[1] - config["prefix"]
    parameters = initial(config, rng)
    draw = [[rng.randrange(config["vocab_size"]) for _ in range(text + 1)] for _ in range(BATCHES * batch)]
    rows = torch.tensor(draw).reshape(BATCHES, batch, text + 1)
    tokens, targets = rows[..., :-1], rows[..., 1:].clone()
    if name in IGNORING:
        # A different number in each batch.
        for i in range(BATCHES):
            targets[i, 0, : i + 1] = IGNORE
    tensors = {"tokens": tokens, "targets": targets}
    prefixes = [None] * BATCHES
    if config["prefix"]:
        width = config["d_model"]
        count = BATCHES * batch * config["prefix"] * width
        # As long as embeddings of tokens are.
        given = torch.tensor([rng.gauss(0.0, width**-0.5) for _ in range(count)], dtype=torch.float32)
        given = given.to(torch.float64).reshape(BATCHES, batch, config["prefix"], width)
        tensors["prefix"] = given
        prefixes = [vectors.clone().requires_grad_() for vectors in given]
    tensors |= {f"param.{name}": p.detach().clone() for name, p in parameters.items()}

    matrices = [p for p in parameters.values() if p.dim() >= 2]
    vectors = [p for p in parameters.values() if p.dim() < 2]
    decay = TRAINING["weight_decay"]
    groups = [dict(params=matrices, weight_decay=decay)]
    if vectors:
        groups.append(dict(params=vectors, weight_decay=0.0))
    betas = (TRAINING["beta1"], TRAINING["beta2"])
    trained = [torch.optim.AdamW(groups, lr=TRAINING["learning_rate"], betas=betas, eps=TRAINING["eps"])]
    if by_others := OPTIMIZERS.get(name.removeprefix("optimizers/")):
        trained = optimizers(by_others, parameters, config)

    losses, norms = [], []
    for step in range(STEPS):
        batch = step % BATCHES
        logits = forward(config, parameters, tokens[batch], prefixes[batch])
        loss = mean_loss(logits[:, config["prefix"] :], targets[batch])
        for p in parameters.values():
            p.grad = None
        loss.backward()
        if step == 0:
            tensors |= {"logits": logits.detach(), "loss": loss.detach()}
            tensors |= {f"grad.{name}": p.grad.clone() for name, p in parameters.items()}
            if config["prefix"]:
                tensors["grad.prefix"] = prefixes[batch].grad.clone()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), TRAINING["clip"]).item())
        for optimizer in trained:
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
    return ("F32", "f", 4) if name.startswith("param.") or name == "prefix" else ("F64", "d", 8)


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
    check = sys.argv[1:2] == ["--check"]
    known = configs()
    names = sys.argv[2 if check else 1 :] or list(known)
    if unknown := set(names) - set(known):
        sys.exit(f"usage: make_golden.py [--check] [NAME ...]; unknown: {' '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    failed = False
    for seed, (name, (config, shape)) in enumerate(known.items(), start=1):
        if name not in names:
            continue
        tensors = compute(name, DEFAULTS | config, shape, seed)
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
