"""A second reader of checkpoints, written from the specification in minigpt-core/src/checkpoint/mod.rs alone.

    reader.py FILE TOKENS [FILE TOKENS ...]

prints one line of JSON for each file: what its header holds, and the logits that its model gives for the tokens
(ids with commas between them; none if TOKENS is empty), position by position, computed in f64. An infinite number is
null. Needs numpy.
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
        raise SystemExit(f"not a checkpoint of version 1: {what}")


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


def read_config(body):
    config = {name: body.integer() for name in ["vocab_size", "context", "layers", "heads", "d_model", "d_ff"]}
    config["position"] = body.choice(["learned", "sinusoidal", "rotary", "none"])
    config["norm"] = body.choice(["pre", "post", "none"])
    scale = body.choice(["inverse_sqrt", "none", "custom"])
    config["scale"] = body.f64() if scale == "custom" else scale
    config["residual"] = body.boolean()
    config["activation"] = body.choice(["gelu_tanh", "gelu_erf", "relu"])
    config["bias"] = body.boolean()
    config["dropout"] = body.f64()
    config["tied_embeddings"] = body.boolean()
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
    training["decay"] = body.choice(["constant", "linear", "cosine"])
    training.update({name: body.f64() for name in ["clip", "beta1", "beta2", "eps", "weight_decay"]})
    training["seed"] = body.integer(64)
    training["counters"] = [body.integer() for _ in range(16)]
    training["windows_drawn"] = body.integer(64)
    if math.isinf(training["clip"]):
        training["clip"] = None
    body.end()
    return training


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


def read(path):
    """The contents of the header, and the tensors of role 0 by name."""
    with open(path, "rb") as file:
        data = file.read()
    check(data[:4] == b"MGPT", "the first four bytes")
    version, length = struct.unpack_from("<II", data, 4)
    check(version == 1, f"it is of version {version}")
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
        known = tag in (b"CONF", b"TOKN", b"TRAN", b"META", b"TENS")
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
    trained = [name for name in tensors if "adam.m/" + name in names]
    check(all("adam.v/" + name in names for name in trained), "a first moment without a second")
    check(sum(name.startswith("adam.v/") for name in names) == len(trained), "a second moment without a first")
    check(trained or b"TRAN" not in sections, "a training that trains nothing")
    contents = {
        "config": read_config(sections[b"CONF"]),
        "tokenizer": optional(b"TOKN", read_tokenizer),
        "training": optional(b"TRAN", read_training),
        "metadata": optional(b"META", read_metadata),
        "tensors": [[tensor["name"], tensor["dtype"]] for tensor in index],
        "trained": trained,
    }
    return contents, tensors


def forward(config, tensors, tokens):
    """The logits of every position: (T, V)."""
    C, H = config["d_model"], config["heads"]
    D, T = C // H, len(tokens)

    def linear(name, x):
        y = x @ tensors[name + ".weight"].T
        return y + tensors[name + ".bias"][0] if config["bias"] else y

    def norm(name, x):
        mean = x.mean(axis=-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
        y = (x - mean) / np.sqrt(variance + config["norm_eps"]) * tensors[name + ".weight"][0]
        return y + tensors[name + ".bias"][0] if config["bias"] else y

    def activation(z):
        if config["activation"] == "gelu_tanh":
            return z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        if config["activation"] == "gelu_erf":
            return z / 2 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        return np.maximum(z, 0)

    p = np.arange(T)[:, None]

    def turned(z):
        """(H, T, D)"""
        a = p * 10000.0 ** (-2 * np.arange(D // 2) / D)
        even, odd = z[..., 0::2], z[..., 1::2]
        result = np.empty_like(z)
        result[..., 0::2] = even * np.cos(a) - odd * np.sin(a)
        result[..., 1::2] = even * np.sin(a) + odd * np.cos(a)
        return result

    scale = {"inverse_sqrt": 1 / math.sqrt(D), "none": 1.0}.get(config["scale"], config["scale"])

    def attention(name, x):
        qkv = linear(name + ".c_attn", x)
        q, k, v = (part.reshape(T, H, D).transpose(1, 0, 2) for part in np.split(qkv, 3, axis=1))
        if config["position"] == "rotary":
            q, k = turned(q), turned(k)
        scores = scale * (q @ k.transpose(0, 2, 1))
        scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
        w = np.exp(scores - scores.max(axis=-1, keepdims=True))
        o = w / w.sum(axis=-1, keepdims=True) @ v
        return linear(name + ".c_proj", o.transpose(1, 0, 2).reshape(T, C))

    def feed_forward(name, x):
        return linear(name + ".c_proj", activation(linear(name + ".c_fc", x)))

    x = tensors["wte.weight"][tokens]
    if config["position"] == "learned":
        x = x + tensors["wpe.weight"][:T]
    elif config["position"] == "sinusoidal":
        j = np.arange(C)
        a = p / 10000.0 ** (2 * (j // 2) / C)
        x = x + np.where(j % 2 == 0, np.sin(a), np.cos(a))
    for i in range(config["layers"]):
        for sub, name, normed in [(attention, "attn", "ln_1"), (feed_forward, "mlp", "ln_2")]:
            before = norm(f"h.{i}.{normed}", x) if config["norm"] == "pre" else x
            y = sub(f"h.{i}.{name}", before)
            x = x + y if config["residual"] else y
            if config["norm"] == "post":
                x = norm(f"h.{i}.{normed}", x)
    if config["norm"] == "pre":
        x = norm("ln_f", x)
    return x @ tensors["wte.weight" if config["tied_embeddings"] else "lm_head.weight"].T


def main():
    arguments = sys.argv[1:]
    if not arguments or len(arguments) % 2:
        raise SystemExit(__doc__)
    for path, tokens in zip(arguments[::2], arguments[1::2]):
        contents, tensors = read(path)
        if tokens:
            ids = [int(token) for token in tokens.split(",")]
            contents["logits"] = forward(contents["config"], tensors, ids).tolist()
        print(json.dumps(contents))


if __name__ == "__main__":
    main()
