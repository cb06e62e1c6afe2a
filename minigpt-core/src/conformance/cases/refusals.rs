//! Ops that no backend may run.

use alloc::format;
use alloc::vec;

use super::{Fill, Memory, Placed, Recording};
use crate::backend::{Backend, BackendError, ErrorKind};
use crate::conformance::{Line, describe};
use crate::memory::{Buffer, Dtype, Span};
use crate::op::*;
use crate::rng::{Rng, Stream};

/// Ops that are described wrongly, or that name a token outside the vocabulary, are refused and not run.
pub(in crate::conformance) fn check<B: Backend>(backend: &mut B) -> Line {
    let mut line = Line::new("invalid ops are refused", 0.0);
    let mut rng = Rng::new(1, Stream::User);
    let ask = |memory: &mut dyn Memory| {
        let numbers = [12, 12, 9].map(|len| memory.span(len, Fill::Normal(1.0)));
        let words = [vec![1, 4], vec![1, 1]].map(|words| memory.span(2, Fill::Words(words)));
        (numbers, words, memory.span(scalar::LEN, Fill::Normal(0.0)))
    };
    let mut recording = Recording::new(rng.clone());
    ask(&mut recording);
    let placed = Placed::new(backend, &recording.asked, false, &mut rng).and_then(|placed| {
        placed.fill(backend, false)?;
        Ok(placed)
    });
    let ([x, weight, y], [tokens, ones], scalars) = match placed {
        Ok(mut placed) => ask(&mut placed),
        Err(error) => {
            line.fail(describe(&error));
            return line;
        }
    };
    let good = LinearForward {
        x,
        weight,
        bias: None,
        activate: None,
        dropout: None,
        residual: None,
        y,
        rows: 3,
        d_in: 4,
        d_out: 3,
    };
    let embedding = EmbeddingForward {
        tokens,
        token_embedding: weight,
        position_embedding: None,
        out: y.first(6),
        batch: 1,
        time: 2,
        d_model: 3,
        vocab: 4,
        dropout: None,
    };
    // Two rows, of which the second names a row that does not exist.
    let gather = GatherRows {
        live: tokens.slice(1, 1),
        wanted: tokens,
        from: x,
        to: y.first(6),
        rows: 4,
        count: 2,
        width: 3,
    };
    let slots = CacheAppend {
        live: tokens.slice(1, 1),
        slots: tokens,
        positions: tokens,
        k: x.columns(0, 1, 2).first_rows(2, 1),
        v: x.columns(1, 1, 2).first_rows(2, 1),
        keys: y.first(5),
        values: weight.first(5),
        rows: 2,
        slot_count: 5,
        capacity: 1,
        kv_heads: 1,
        d_head: 1,
    };
    // Two rows, of which the second sees up to position 4.
    let seen = AttentionRows {
        live: tokens.slice(1, 1),
        slots: ones,
        last: tokens,
        q: x.columns(0, 2, 3).first_rows(2, 2),
        keys: weight.first(10),
        values: x.slice(2, 10),
        out: y.first(4),
        rows: 2,
        slot_count: 2,
        capacity: 5,
        heads: 2,
        kv_heads: 1,
        d_head: 1,
        scale: 1.0,
    };
    // Three rows, of columns 0 and 1 of a matrix, 2, and 3, and the gradients likewise.
    let shape = AttentionShape { batch: 1, time: 3, heads: 2, kv_heads: 1, d_head: 1, scale: 1.0, prefix: 0 };
    let [q, k, v] = [(0, 2), (2, 1), (3, 1)].map(|(first, width)| x.columns(first, width, 4));
    let forward = AttentionForward { q, k, v, out: y.first(6), lse: weight.first(6), shape, dropout: None };
    let gradients = AttentionBackward {
        q,
        k,
        v,
        out: y.first(6),
        lse: scalars.first(6),
        d_out: scalars.first(6),
        d_q: weight.columns(0, 2, 4),
        d_k: weight.columns(2, 1, 4),
        d_v: weight.columns(3, 1, 4),
        shape,
        dropout: None,
    };
    let half = |span: Span| Span { dtype: Dtype::F16, ..span };
    let three = AttentionShape { heads: 3, kv_heads: 2, time: 1, ..shape };
    let [q3, kv2] = [x.first(3).rows(3), x.first(2).rows(2)];
    let targets =
        CrossEntropy { logits: x, targets: tokens, d_logits: None, losses: None, scalars, rows: 2, vocab: 6 };
    let nowhere = Span { buffer: Buffer(u64::MAX), ..x };
    let beyond = Span { offset: 64 * 1024, ..x };
    let update = Momentum {
        grads: x.first(9),
        velocity: weight.first(9),
        direction: y,
        scalars,
        momentum: 0.5,
        nesterov: false,
    };
    let bf16 = |span: Span| Span { dtype: Dtype::Bf16, ..span };
    let wrong: [(&str, Op); 25] = [
        ("a span too short for the dimensions", LinearForward { rows: 4, ..good }.into()),
        ("dimensions that overflow", LinearForward { rows: usize::MAX / 2, ..good }.into()),
        ("a result over an operand", LinearForward { y: x.first(9), ..good }.into()),
        ("numbers of the wrong type", LinearForward { x: Span { dtype: Dtype::U32, ..x }, ..good }.into()),
        ("a span of no buffer", LinearForward { x: nowhere, ..good }.into()),
        ("a span past the end of its buffer", LinearForward { x: beyond, ..good }.into()),
        ("a token outside the vocabulary", embedding.into()),
        ("a row that there is not", gather.into()),
        ("a position beyond the cache", slots.into()),
        ("a slot that there is not", CacheAppend { slot_count: 1, capacity: 5, ..slots }.into()),
        ("a target outside the vocabulary", CrossEntropy { logits: x.first(8), vocab: 4, ..targets }.into()),
        (
            "a last position beyond the cache",
            AttentionRows { capacity: 4, keys: weight.first(8), values: x.first(8), ..seen }.into(),
        ),
        (
            "rows that lie closer together than they are wide",
            AttentionForward { q: x.first(4).rows(1), ..forward }.into(),
        ),
        (
            "rows that end before the last",
            AttentionForward { k: x.columns(2, 1, 4).first_rows(2, 1), ..forward }.into(),
        ),
        (
            "heads that cannot be shared alike",
            AttentionForward {
                q: q3,
                k: kv2,
                v: kv2,
                out: y.first(3),
                lse: weight.first(3),
                shape: three,
                ..forward
            }
            .into(),
        ),
        (
            "keys and values stored in two ways",
            CacheAppend { keys: half(y.first(5)), capacity: 5, slot_count: 1, ..slots }.into(),
        ),
        (
            "gradients in columns that both have",
            AttentionBackward { d_k: weight.columns(1, 1, 4), ..gradients }.into(),
        ),
        ("a direction over the velocity", Momentum { direction: weight.first(9), ..update }.into()),
        ("a direction over the gradient", Momentum { direction: x.first(9), ..update }.into()),
        ("a matrix of other sides", NewtonSchulz { x, rows: 3, cols: 5, steps: 1 }.into()),
        ("activations of two precisions", LinearForward { x: bf16(x), ..good }.into()),
        (
            "a residual of another precision",
            LinearForward { y: bf16(y), x: bf16(x), residual: Some(scalars.first(9)), ..good }.into(),
        ),
        ("activations in f16", LinearForward { y: half(y), x: half(x), ..good }.into()),
        ("numbers that are narrowed to as many bits", Narrow { from: x, to: weight }.into()),
        ("gradients over what is read", AttentionBackward { d_k: x.columns(2, 1, 4), ..gradients }.into()),
    ];
    for (what, op) in wrong {
        line.cases += 1;
        let result = backend.run(&op).and_then(|()| backend.sync());
        if !result.is_err_and(|error| error.kind() == ErrorKind::Invalid) {
            line.fail(format!("{what} is not refused as Invalid"));
        }
    }
    for (what, op) in
        [("a layer", good.into()), ("attention", seen.into()), ("gradients side by side", gradients.into())]
    {
        line.cases += 1;
        if backend.run(&op).and_then(|()| backend.sync()).is_err() {
            line.fail(format!("the backend does not go on after it refused an op: not with {what}"));
        }
    }
    line
}
