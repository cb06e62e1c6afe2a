"""A second reader of checkpoints, written from the specification in minigpt-core/src/checkpoint/mod.rs alone.

    reader.py FILE TOKENS PREFIX [FILE TOKENS PREFIX ...]

prints one line of JSON for each file: what its header holds, and the logits that its model gives for the tokens
(ids with commas between them; none if TOKENS is empty), position by position, computed in f64. PREFIX is the vectors that
stand before the tokens, a list of lists in JSON; empty if the model has none. An infinite number is null. Needs numpy.
"""

import json
import math
import struct
import sys
import zlib

import numpy as np

DTYPES = ["f64", "f32", "f16", "bf16", "Q8_0", "Q4_0", "u32"]
# Numbers and bytes of the smallest unit.
UNITS = {"f64": (1, 8), "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "u32": (1, 4)}


def check(holds, what):
    if not holds:
        raise SystemExit(f"not a checkpoint of version 1 or 2: {what}")


class Body:
    """The values of a section, one behind the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        check(self.at + length <= len(self.data), "a section ends too early")
        self.at += length
        return self.data[self.at - length : self.at]

    def integer(self, bits=32):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                check(value < 1 << bits, "an integer is too large")
                return value
            check(shift < bits, "an integer is too long")

    def boolean(self):
        value = self.take(1)[0]
        check(value < 2, "a bool is neither 0 nor 1")
        return bool(value)

    def f64(self):
        return struct.unpack("<d", self.take(8))[0]

    def string(self):
        return self.take(self.integer(64)).decode("utf-8")

    def choice(self, names):
        number = self.integer()
        check(number < len(names), "there is no such choice")
        return names[number]

    def end(self):
        check(self.at == len(self.data), "a section is longer than its values")


def read_config(body, version):
    """The config in the words of version 2. An optional value that is not there is null."""
    config = {}

    def integers(*names):
        config.update({name: body.integer() for name in names})

    def booleans(*names):
        config.update({name: body.boolean() for name in names})

    def optional(name):
        config[name] = body.integer() if body.boolean() else None

    def scale_and_residual():
        config["attention_scale"] = body.choice(["inverse_sqrt", "none", "custom"])
        if config["attention_scale"] == "custom":
            config["attention_scale"] = body.f64()
        booleans("residual")

    if version == 1:
        integers("vocab_size", "context", "layers", "heads", "d_model", "d_ff")
        config["position"] = body.choice(["learned", "sinusoidal", "rotary", "none"])
        rotary = {"rotary_base": 10000.0, "rotary_pairing": "adjacent"}
        config["norm_place"] = body.choice(["pre", "post", "none"])
        scale_and_residual()
        config["activation"] = body.choice(["gelu_tanh", "gelu_erf", "relu"])
        bias = body.boolean()
        config.update({"qkv_bias": bias, "linear_bias": bias, "norm_bias": bias})
        config.update({"kv_heads": None, "d_head": None, "prefix": 0, "mask": "causal", "norm": "layer"})
        config.update({"qk_norm": False, "gated": False})
    else:
        integers("vocab_size", "context", "layers", "heads")
        optional("kv_heads")
        integers("d_model")
        optional("d_head")
        integers("d_ff", "prefix")
        config["position"] = body.choice(["learned", "sinusoidal", "rotary", "none"])
        if config["position"] == "rotary":
            rotary = {"rotary_base": body.f64(), "rotary_pairing": body.choice(["adjacent", "halves"])}
        config["mask"] = body.choice(["causal", "prefix", "none"])
        config["norm"] = body.choice(["layer", "rms"])
        config["norm_place"] = body.choice(["pre", "post", "none"])
        booleans("qk_norm")
        scale_and_residual()
        config["activation"] = body.choice(["gelu_tanh", "gelu_erf", "relu", "relu_squared", "silu"])
        booleans("gated", "qkv_bias", "linear_bias", "norm_bias")
    if config["position"] == "rotary":
        config.update(rotary)
    config["dropout"] = body.f64()
    booleans("tied_embeddings")
    config["norm_eps"] = body.f64()
    body.end()
    return config


def read_tokenizer(body):
    kind = body.choice(["bytes", "chars"])
    tokenizer = {"kind": kind, "chars": body.string() if kind == "chars" else None}
    body.end()
    return tokenizer


def read_training(body):
    training = {name: body.integer() for name in ["batch", "time", "accumulation"]}
    training.update({name: body.f64() for name in ["peak", "floor"]})
    training.update({name: body.integer() for name in ["warmup", "steps"]})
    training["decay"] = body.choice(["constant", "linear", "cosine", "stable"])
    if training["decay"] == "stable":
        training["decay_steps"] = body.integer()
    training.update({name: body.f64() for name in ["clip", "beta1", "beta2", "eps", "weight_decay"]})
    training["seed"] = body.integer(64)
    training["counters"] = [body.integer() for _ in range(16)]
    training["windows_drawn"] = body.integer(64)
    if math.isinf(training["clip"]):
        training["clip"] = None
    body.end()
    return training


def read_optimizers(body):
    def group():
        kind = body.choice(["adamw", "sgd", "muon"])
        group = {"optimizer": kind}
        if kind == "adamw":
            group.update({name: body.f64() for name in ["beta1", "beta2", "eps"]})
        else:
            group.update({"momentum": body.f64(), "nesterov": body.boolean()})
        if kind == "muon":
            group["steps"] = body.integer()
        group.update({name: body.f64() for name in ["weight_decay", "rate"]})
        return group

    optimizers = {name: group() for name in ["embeddings", "matrices", "head", "vectors"]}
    optimizers["average"] = body.f64() if body.boolean() else None
    optimizers["frozen"] = [body.string() for _ in range(body.integer())]
    optimizers["precision"] = "f32"
    if body.at < len(body.data):
        optimizers["precision"] = body.choice(["f32", "bf16"])
        check(optimizers["precision"] != "f32", "a precision that is not to be written")
    body.end()
    return optimizers


def read_metadata(body):
    entries = [[body.string(), body.string()] for _ in range(body.integer(64))]
    check(all(key for key, _ in entries), "a key is empty")
    body.end()
    return entries


def read_index(body):
    tensors, offset = [], 0
    for _ in range(body.integer(64)):
        tensor = {"name": body.string(), "role": body.choice([0, 1]), "dtype": body.choice(DTYPES)}
        tensor.update({name: body.integer() for name in ["rows", "cols"]})
        tensor.update({name: body.integer(64) for name in ["offset", "length"]})
        tensor["crc"] = body.integer()
        numbers, size = UNITS[tensor["dtype"]]
        check(tensor["rows"] > 0 and tensor["cols"] > 0, "a tensor is empty")
        check(tensor["length"] == tensor["rows"] * -(-tensor["cols"] // numbers) * size, "a tensor's length")
        check(tensor["offset"] == offset, "a tensor's offset")
        check(not tensors or tensors[-1]["role"] <= tensor["role"], "the order of the tensors")
        offset += -(-tensor["length"] // 64) * 64
        tensors.append(tensor)
    check(len({tensor["name"] for tensor in tensors}) == len(tensors), "a name stands there twice")
    body.end()
    return tensors, offset


def numbers(tensor, data):
    """The numbers of a tensor, in f64: (rows, cols)."""
    rows, cols, dtype = tensor["rows"], tensor["cols"], tensor["dtype"]
    if dtype == "bf16":
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif dtype in ("Q8_0", "Q4_0"):
        blocks = np.frombuffer(data, np.uint8).reshape(-1, UNITS[dtype][1])
        d = blocks[:, :2].copy().view("<f2").astype(np.float64)
        q = blocks[:, 2:]
        if dtype == "Q8_0":
            q = q.view(np.int8).astype(np.float64)
        else:
            q = np.concatenate([q % 16, q // 16], axis=1).astype(np.float64) - 8
        return (d * q).reshape(rows, -1)[:, :cols]
    else:
        values = np.frombuffer(data, {"f64": "<f8", "f32": "<f4", "f16": "<f2", "u32": "<u4"}[dtype])
    return values.astype(np.float64).reshape(rows, cols)


def states(optimizers, parameter):
    """What is kept of a parameter that is trained."""
    if optimizers is None:
        return ["adam.m", "adam.v"]
    matrices = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    if parameter in ("wte.weight", "wpe.weight"):
        group = optimizers["embeddings"]
    elif parameter == "lm_head.weight":
        group = optimizers["head"]
    else:
        group = optimizers["matrices" if parameter.endswith(matrices) else "vectors"]
    own = {"adamw": ["adam.m", "adam.v"], "sgd": ["sgd.momentum"], "muon": ["muon.momentum"]}[group["optimizer"]]
    if group["optimizer"] == "sgd" and group["momentum"] == 0:
        own = []
    return own + (["ema"] if optimizers["average"] is not None else [])


def read(path):
    """The contents of the header, and the tensors of role 0 by name."""
    with open(path, "rb") as file:
        data = file.read()
    check(data[:4] == b"MGPT", "the first four bytes")
    version, length = struct.unpack_from("<II", data, 4)
    check(version in (1, 2), f"it is of version {version}")
    check(16 <= length <= len(data), "the length of the header")
    check(zlib.crc32(data[: length - 4]) == struct.unpack_from("<I", data, length - 4)[0], "the header's checksum")

    sections, at = {}, 12
    while at < length - 4:
        check(at + 12 <= length - 4, "a section does not fit")
        tag, flags, size = struct.unpack_from("<4sII", data, at)
        at += 12 + size
        check(at <= length - 4, "a section does not fit")
        check(flags in (0, 1), "an unknown flag")
        check(tag not in sections, "a section stands there twice")
        known = tag in (b"CONF", b"TOKN", b"TRAN", b"OPTM", b"META", b"TENS")
        check(known or flags == 0, f"it cannot be used without its section {tag}")
        if known:
            sections[tag] = Body(data[at - size : at])
    check(b"CONF" in sections and b"TENS" in sections, "a section is missing")

    payload = -(-length // 64) * 64
    index, payload_length = read_index(sections[b"TENS"])
    check(len(data) == payload + payload_length, "its length")
    check(not any(data[length:payload]), "the padding of the header")
    tensors = {}
    for tensor in index:
        begin = payload + tensor["offset"]
        end = begin + tensor["length"]
        content = data[begin:end]
        check(zlib.crc32(content) == tensor["crc"], f"the checksum of {tensor['name']}")
        check(not any(data[end : -(-end // 64) * 64]), f"the padding of {tensor['name']}")
        if tensor["role"] == 0:
            tensors[tensor["name"]] = numbers(tensor, content)

    def optional(tag, parse):
        return parse(sections[tag]) if tag in sections else None

    names = {tensor["name"] for tensor in index if tensor["role"] == 1}
    optimizers = optional(b"OPTM", read_optimizers)
    if optimizers is None:
        trained = [name for name in tensors if "adam.m/" + name in names]
    else:
        check(all(name in tensors for name in optimizers["frozen"]), "something is frozen that is not there")
        trained = [name for name in tensors if name not in optimizers["frozen"]]
    kept = {f"{state}/{name}" for name in trained for state in states(optimizers, name)}
    check(kept == names, "what is kept is not what the optimizers keep")
    training = optional(b"TRAN", read_training)
    check(training is not None or optimizers is None, "optimizers without a training")
    if training is not None:
        training["optimizers"] = optimizers
    contents = {
        "config": read_config(sections[b"CONF"], version),
        "tokenizer": optional(b"TOKN", read_tokenizer),
        "training": training,
        "metadata": optional(b"META", read_metadata),
        "tensors": [[tensor["name"], tensor["dtype"]] for tensor in index],
        "trained": trained,
    }
    return contents, tensors


def forward(config, tensors, tokens, prefix):
    """The logits of every position, those of the prefix (P, C) too: (T, V)."""
    C, H, P = config["d_model"], config["heads"], config["prefix"]
    K, D = config["kv_heads"] or H, config["d_head"] or C // H
    check(len(prefix) == P, f"{len(prefix)} given vectors for a model that takes {P}")
    T = P + len(tokens)

    def affine(name, y, bias):
        return y + tensors[name + ".bias"][0] if bias else y

    def linear(name, x, bias):
        return affine(name, x @ tensors[name + ".weight"].T, config[bias])

    def norm(name, x):
        if config["norm"] == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        y = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config["norm_eps"]) * tensors[name + ".weight"][0]
        return affine(name, y, config["norm_bias"])

    def activation(z):
        kind = config["activation"]
        if kind == "gelu_tanh":
            return z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        if kind == "gelu_erf":
            return z / 2 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        if kind == "silu":
            return z / (1 + np.exp(-z))
        return np.maximum(z, 0) ** (2 if kind == "relu_squared" else 1)

    p = np.arange(T)[:, None]

    def turned(z):
        """(heads, T, D)"""
        r = p * config["rotary_base"] ** (-2 * np.arange(D // 2) / D)
        halves = config["rotary_pairing"] == "halves"
        first, second = (slice(0, D // 2), slice(D // 2, D)) if halves else (slice(0, D, 2), slice(1, D, 2))
        a, b = z[..., first], z[..., second]
        result = np.empty_like(z)
        result[..., first] = a * np.cos(r) - b * np.sin(r)
        result[..., second] = a * np.sin(r) + b * np.cos(r)
        return result

    scale = {"inverse_sqrt": 1 / math.sqrt(D), "none": 1.0}.get(config["attention_scale"], config["attention_scale"])
    s = np.arange(T)
    seen = {"causal": s <= p, "prefix": (s <= p) | (s < P), "none": np.ones((T, T), bool)}[config["mask"]]

    def attention(name, x):
        qkv = linear(name + ".c_attn", x, "qkv_bias")
        parts = np.split(qkv, [H * D, (H + K) * D], axis=1)
        q, k, v = (part.reshape(T, -1, D).transpose(1, 0, 2) for part in parts)
        if config["qk_norm"]:
            q, k = norm(name + ".q_norm", q), norm(name + ".k_norm", k)
        if config["position"] == "rotary":
            q, k = turned(q), turned(k)
        heads = []
        for h in range(H):
            shared = h // (H // K)
            scores = np.where(seen, scale * (q[h] @ k[shared].T), -np.inf)
            w = np.exp(scores - scores.max(axis=-1, keepdims=True))
            heads.append(w / w.sum(axis=-1, keepdims=True) @ v[shared])
        return linear(name + ".c_proj", np.concatenate(heads, axis=1), "linear_bias")

    def feed_forward(name, x):
        z = linear(name + ".c_fc", x, "linear_bias")
        F = config["d_ff"]
        u = activation(z[:, :F]) * z[:, F:] if config["gated"] else activation(z)
        return linear(name + ".c_proj", u, "linear_bias")

    x = np.concatenate([np.reshape(np.array(prefix, np.float64), (P, C)), tensors["wte.weight"][tokens]])
    if config["position"] == "learned":
        x = x + tensors["wpe.weight"][:T]
    elif config["position"] == "sinusoidal":
        j = np.arange(C)
        a = p / 10000.0 ** (2 * (j // 2) / C)
        x = x + np.where(j % 2 == 0, np.sin(a), np.cos(a))
    for i in range(config["layers"]):
        for sub, name, normed in [(attention, "attn", "ln_1"), (feed_forward, "mlp", "ln_2")]:
            before = norm(f"h.{i}.{normed}", x) if config["norm_place"] == "pre" else x
            y = sub(f"h.{i}.{name}", before)
            x = x + y if config["residual"] else y
            if config["norm_place"] == "post":
                x = norm(f"h.{i}.{normed}", x)
    if config["norm_place"] == "pre":
        x = norm("ln_f", x)
    return x @ tensors["wte.weight" if config["tied_embeddings"] else "lm_head.weight"].T


def main():
    arguments = sys.argv[1:]
    if not arguments or len(arguments) % 3:
        raise SystemExit(__doc__)
    for path, tokens, prefix in zip(arguments[::3], arguments[1::3], arguments[2::3]):
        contents, tensors = read(path)
        if tokens:
            ids = [int(token) for token in tokens.split(",")]
            given = json.loads(prefix) if prefix else []
            contents["logits"] = forward(contents["config"], tensors, ids, given).tolist()
        print(json.dumps(contents))


if __name__ == "__main__":
    main()
