#!/usr/bin/env python3
"""The same model in PyTorch: what the benchmark `summary` is held against.

  torch_baseline.py sgemm  [--threads N]            GFLOP/s of 1024 x 1024 products by torch.mm and numpy
  torch_baseline.py step   --shape S [--mode MODE]  the training step
  torch_baseline.py decode --shape M                one sequence, one token at a time, over a cache
  torch_baseline.py memory --shape M [--mode MODE]  what a training step adds to the memory that the import took
  torch_baseline.py serve  --shape S                answers lines on the standard input, see below

A shape is S, M, or layers,heads,width,context,batch. MODE is eager, fused (AdamW in one kernel) or compile (torch.compile
and fused AdamW). Everything prints one line of JSON for each result. A step is what a training loop does: a batch drawn,
forward, backward, the gradient clipped to norm 1, AdamW, gradients cleared.

`serve` reads commands: "modes" names those that work here, "steps MODE N" runs N training steps and "decode N" generates
N tokens; each is answered by {"seconds": ...}. So a program can take turns with it. It ends with the input.
"""
import argparse
import json
import math
import resource
import statistics
import sys
import time


def resident_mb():
    """Megabytes (2^20) that this process holds now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def peak_mb():
    """The most megabytes that it ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=["sgemm", "step", "decode", "memory", "serve"])
parser.add_argument("--shape", default="S")
parser.add_argument("--vocab", type=int, default=65)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--mode", choices=["eager", "fused", "compile"], default="fused")
parser.add_argument("--seconds", type=float, default=5.0)
parser.add_argument("--tokens", type=int, default=500)
options = parser.parse_args()

try:
    import torch
except ImportError:
    sys.exit("error: there is no torch in this Python; install it, or name another one in PYTHON")
import torch.nn as nn
import torch.nn.functional as F

torch.set_num_threads(options.threads)
torch.manual_seed(1)
after_import = resident_mb()

NAMED = {"S": "4,4,128,64,12", "M": "6,6,384,256,8"}
LAYERS, HEADS, WIDTH, CONTEXT, BATCH = map(int, NAMED.get(options.shape, options.shape).split(","))
VOCAB = options.vocab


class Block(nn.Module):
    """Norm, causal attention, residual; norm, feed-forward, residual."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm2 = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x, cache=None, start=0):
        batch, length, _ = x.shape
        heads = lambda z: z.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
        query, key, value = map(heads, self.qkv(self.norm1(x)).chunk(3, dim=-1))
        if cache is not None:
            end = start + length
            cache[0][:, :, start:end], cache[1][:, :, start:end] = key, value
            key, value = cache[0][:, :, :end], cache[1][:, :, :end]
        # A single query sees all that is cached.
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """GPT-2's shape with learned positions, no biases and a tied head, as GptConfig::new."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(VOCAB, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def hidden(self, tokens, caches=None, start=0):
        positions = torch.arange(start, start + tokens.shape[1])
        x = self.token(tokens) + self.position(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None, start)
        return self.norm(x)

    def forward(self, tokens, targets):
        logits = F.linear(self.hidden(tokens), self.token.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Training:
    """A model, its optimizer and a text of random tokens."""

    def __init__(self, mode):
        self.model = Gpt()
        decayed = [p for p in self.model.parameters() if p.dim() >= 2]
        others = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        fused = None if mode == "eager" else True
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=fused)
        self.loss = torch.compile(self.model) if mode == "compile" else self.model
        self.text = torch.randint(VOCAB, (64 * CONTEXT + 1,))

    def step(self):
        starts = torch.randint(len(self.text) - CONTEXT, (BATCH,)).tolist()
        tokens = torch.stack([self.text[i:i + CONTEXT] for i in starts])
        targets = torch.stack([self.text[i + 1:i + 1 + CONTEXT] for i in starts])
        loss = self.loss(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Decoding:
    """One sequence; when the cache is full it is filled again with the last half of the context."""

    def __init__(self):
        self.model = Gpt().eval()
        self.tokens = [0]
        self.caches, self.cached = None, CONTEXT

    @torch.no_grad()
    def next(self):
        if self.cached >= CONTEXT:
            empty = lambda: torch.empty(1, HEADS, CONTEXT, WIDTH // HEADS)
            self.caches, self.cached = [(empty(), empty()) for _ in range(LAYERS)], 0
            fresh = self.tokens[-(CONTEXT // 2):]
        else:
            fresh = self.tokens[-1:]
        hidden = self.model.hidden(torch.tensor([fresh]), self.caches, self.cached)
        self.cached += len(fresh)
        logits = F.linear(hidden[:, -1], self.model.token.weight) / 0.8
        least = torch.topk(logits, min(200, VOCAB)).values[:, -1:]
        logits[logits < least] = -math.inf
        self.tokens.append(torch.multinomial(F.softmax(logits, -1), 1).item())


def seconds(work, times=1):
    begun = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - begun


def say(**line):
    print(json.dumps(line), flush=True)


def flops():
    """Of a step's matrix products and the causal half of attention."""
    weights = 12 * LAYERS * WIDTH * WIDTH + VOCAB * WIDTH
    return 6 * BATCH * CONTEXT * weights + 12 * LAYERS * BATCH * WIDTH * CONTEXT * (CONTEXT + 1) // 2


def sgemm():
    """The best of several products: the limit is what shows when nothing disturbs it."""
    side, rates = 1024, {}
    a, b, out = torch.rand(side, side), torch.rand(side, side), torch.empty(side, side)
    works = {"torch": lambda: torch.mm(a, b, out=out)}
    try:
        import numpy

        x, y, z = a.numpy(), b.numpy(), out.numpy()
        works["numpy"] = lambda: numpy.dot(x, y, out=z)
    except ImportError:
        pass
    for name, work in works.items():
        seconds(work, 3)
        rates[name] = 2e-9 * side**3 / min(seconds(work) for _ in range(20))
    say(threads=options.threads, side=side, gflops=rates)


def step():
    training = Training(options.mode)
    for _ in range(3):
        training.step()
    times, end = [], time.perf_counter() + options.seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(seconds(training.step))
    median = statistics.median(times)
    say(shape=options.shape, mode=options.mode, threads=options.threads, ms=median * 1e3, steps=len(times),
        tokens_per_s=BATCH * CONTEXT / median, gflops=flops() / median / 1e9)


def decode():
    decoding = Decoding()
    seconds(decoding.next, 16)
    took = seconds(decoding.next, options.tokens)
    say(shape=options.shape, threads=options.threads, tokens=options.tokens, tokens_per_s=options.tokens / took)


def memory():
    training = Training(options.mode)
    for _ in range(4):
        training.step()
    say(shape=options.shape, mode=options.mode, import_mb=after_import, peak_mb=peak_mb(), growth_mb=peak_mb() - after_import)


def serve():
    trainings, decoding = {}, None
    for line in sys.stdin:
        command, *arguments = line.split()
        try:
            if command == "modes":
                say(modes=["eager", "fused", "compile"])
            elif command == "steps":
                mode, count = arguments[0], int(arguments[1])
                if mode not in trainings:
                    trainings[mode] = Training(mode)
                    seconds(trainings[mode].step, 2)
                say(seconds=seconds(trainings[mode].step, count))
            elif command == "decode":
                decoding = decoding or Decoding()
                say(seconds=seconds(decoding.next, int(arguments[0])))
            else:
                say(error=f"unknown command {command}")
        except Exception as error:  # torch.compile fails in many ways where there is no compiler
            say(error=str(error).splitlines()[0] if str(error) else type(error).__name__)


{"sgemm": sgemm, "step": step, "decode": decode, "memory": memory, "serve": serve}[options.what]()
