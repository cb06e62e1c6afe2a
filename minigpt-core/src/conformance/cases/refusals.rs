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
        (numbers, memory.span(2, Fill::Words(vec![1, 4])), memory.span(scalar::LEN, Fill::Normal(0.0)))
    };
    let mut recording = Recording::new(rng.clone());
    ask(&mut recording);
    let placed = Placed::new(backend, &recording.asked, false, &mut rng).and_then(|placed| {
        placed.fill(backend, false)?;
        Ok(placed)
    });
    let ([x, weight, y], tokens, scalars) = match placed {
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
        qkv: x.first(6),
        keys: y.first(5),
        values: weight.first(5),
        rows: 2,
        slot_count: 5,
        capacity: 1,
        heads: 1,
        d_head: 1,
    };
    let targets =
        CrossEntropy { logits: x, targets: tokens, d_logits: None, losses: None, scalars, rows: 2, vocab: 6 };
    let nowhere = Span { buffer: Buffer(u64::MAX), ..x };
    let beyond = Span { offset: 64 * 1024, ..x };
    let wrong: [(&str, Op); 11] = [
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
    ];
    for (what, op) in wrong {
        line.cases += 1;
        let result = backend.run(&op).and_then(|()| backend.sync());
        if !result.is_err_and(|error| error.kind() == ErrorKind::Invalid) {
            line.fail(format!("{what} is not refused as Invalid"));
        }
    }
    line.cases += 1;
    if backend.run(&good.into()).and_then(|()| backend.sync()).is_err() {
        line.fail("the backend does not go on after it refused an op");
    }
    line
}
