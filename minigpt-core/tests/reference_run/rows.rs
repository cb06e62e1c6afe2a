//! The ops of decoding: live rows, and dead ones that name what there is not.

use minigpt_core::op::*;
use minigpt_core::reference::Rows;
use minigpt_core::reference::attention::*;
use minigpt_core::reference::embedding::*;
use minigpt_core::reference::gate::*;
use minigpt_core::reference::linear::*;
use minigpt_core::reference::norm::*;
use minigpt_core::reference::rotary::*;
use minigpt_core::reference::weights::weight_at;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Activation, Dtype, InvalidOp, Pairing, SampleConfig, Sampler, Span};

use super::memory::Memory;

/// What no row may have.
const NONE: u32 = u32::MAX;

#[test]
fn embedding_takes_the_tokens_and_positions_of_its_rows() {
    let mut memory = Memory::new();
    let (rows, d_model, vocab) = (4, 3, 5);
    let (table_span, table) = memory.random(vocab * d_model);
    let (position_span, positions) = memory.random(7 * d_model);
    let mut op = EmbeddingRows {
        live: memory.put_u32(&[3]),
        tokens: memory.put_u32(&[NONE, 4, 1, NONE, 0]),
        places: memory.put_u32(&[4, 1, 2, NONE]),
        positions: memory.put_u32(&[6, 0, 3, NONE]),
        token_embedding: table_span,
        position_embedding: Some(position_span),
        out: memory.room(rows * d_model),
        rows,
        d_model,
        vocab,
    };
    for with_positions in [true, false] {
        op.position_embedding = with_positions.then_some(position_span);
        let mut out = vec![0.0; 3 * d_model];
        for ((token, position), out) in [(0, 6), (4, 0), (1, 3)].into_iter().zip(out.chunks_mut(d_model)) {
            let position = with_positions.then(|| &positions[position * d_model..][..d_model]);
            embedding_forward(&[token], &table, position, None, out, 1, 1, d_model);
        }
        memory.expect(op, &[(op.out.first(3 * d_model), &out)]);
    }
    op.position_embedding = Some(position_span.first(6 * d_model));
    memory.refuse(op, InvalidOp::Index { operand: "positions", index: 6, count: 6 });
    let bad = EmbeddingRows { position_embedding: None, tokens: op.tokens.first(4), ..op };
    memory.refuse(bad, InvalidOp::Index { operand: "places", index: 4, count: 4 });
    let bad =
        EmbeddingRows { position_embedding: None, vocab: 4, token_embedding: table_span.first(12), ..op };
    memory.refuse(bad, InvalidOp::Token { token: 4, vocab: 4 });
}

#[test]
fn norms_and_layers_are_those_of_the_live_rows() {
    let mut memory = Memory::new();
    let (rows, d_in, d_out, live) = (5, 4, 3, 2);
    let ((x_span, x), (weight_span, weight)) = (memory.random(rows * d_in), memory.random(d_out * d_in));
    let (residual_span, residual) = memory.random(rows * d_out);
    let (norm_span, norm) = memory.random(d_in);
    let linear = LinearForward {
        x: x_span,
        weight: weight_span,
        bias: None,
        activate: None,
        dropout: None,
        residual: Some(residual_span),
        y: memory.room(rows * d_out),
        rows,
        d_in,
        d_out,
    };
    let means = memory.room(rows);
    let normed = NormForward {
        kind: Normalize::Layer { mean: means },
        x: x_span.rows(d_in),
        weight: norm_span,
        bias: None,
        y: memory.room(rows * d_in).rows(d_in),
        rstd: memory.room(rows),
        rows,
        groups: 1,
        width: d_in,
        eps: 1e-5,
    };
    let count = memory.put_u32(&[live as u32]);
    let mut y = vec![0.0; live * d_out];
    linear_forward(&x, &weight, None, None, None, None, Some(&residual), &mut y, live, d_in, d_out);
    memory.expect(LinearRows { live: count, linear }, &[(linear.y.first(y.len()), &y)]);

    let (mut y, mut mean, mut rstd) = (vec![0.0; live * d_in], vec![0.0; live], vec![0.0; live]);
    let of_live = Rows { data: &x, stride: d_in };
    norm_forward(of_live, &norm, None, &mut y, Some(&mut mean), &mut rstd, live, 1, d_in, 1e-5);
    let spans = [normed.y.span.first(y.len()), means.first(live), normed.rstd.first(live)];
    memory.expect(
        NormRows { live: count, norm: normed },
        &[(spans[0], &y), (spans[1], &mean), (spans[2], &rstd)],
    );

    let width = d_in / 2;
    let (y, activation) = (memory.room(rows * width), Activation::Silu);
    let gate = GateForward { x: x_span, y, activation, rows, width };
    let mut y = vec![0.0; live * width];
    gate_forward(&x, activation, &mut y, live, width);
    memory.expect(GateRows { live: count, gate }, &[(gate.y.first(y.len()), &y)]);

    // None at all, and more than there are.
    let none = memory.put_u32(&[0]);
    memory.expect(LinearRows { live: none, linear }, &[]);
    let beyond = memory.put_u32(&[9]);
    let mut y = vec![0.0; rows * d_out];
    linear_forward(&x, &weight, None, None, None, None, Some(&residual), &mut y, rows, d_in, d_out);
    memory.expect(LinearRows { live: beyond, linear }, &[(linear.y, &y)]);
}

#[test]
fn each_row_turns_by_its_own_position() {
    let mut memory = Memory::new();
    let (rows, heads, d_head) = (3, 2, 4);
    let (width, stride) = (heads * d_head, heads * d_head + 5);
    let mut table = vec![0.0; 8 * d_head];
    rotary_table(&mut table, d_head, 10_000.0);
    for pairing in [Pairing::Adjacent, Pairing::Halves] {
        let (span, mut x) = memory.random(rows * stride);
        let op = RotaryRows {
            live: memory.put_u32(&[2]),
            positions: memory.put_u32(&[7, 2, NONE]),
            x: span.columns(1, width, stride),
            table: memory.put(&table),
            pairing,
            rows,
            heads,
            d_head,
        };
        for (row, position) in x.chunks_mut(stride).zip([7, 2]) {
            let (row, turns) = (&mut row[1..], &table[position * d_head..]);
            rotary(row, stride, turns, pairing, false, 1, 1, heads, d_head);
        }
        memory.expect(op, &[(span, &x)]);
        let short = RotaryRows { table: op.table.first(7 * d_head), ..op };
        memory.refuse(short, InvalidOp::Index { operand: "positions", index: 7, count: 7 });
    }
}

#[test]
fn rows_go_to_their_slots_and_see_what_is_there() {
    let mut memory = Memory::new();
    let (rows, slot_count, capacity, heads, kv_heads, d_head, scale) = (4, 3, 5, 4, 2, 3, 0.7);
    let (wide, narrow, size) = (heads * d_head, kv_heads * d_head, kv_heads * capacity * d_head);
    let stride = wide + 2 * narrow;
    let (qkv_span, qkv) = memory.random(rows * stride);
    let [q, k, v] = [(0, wide), (wide, narrow), (wide + narrow, narrow)]
        .map(|(first, width)| qkv_span.columns(first, width, stride));
    let of_row = |row: usize| {
        [0, wide, wide + narrow].map(|first| Rows { data: &qkv[row * stride + first..], stride })
    };
    let (key_span, mut keys) = memory.random(slot_count * size);
    let (value_span, mut values) = memory.random(slot_count * size);
    let (slots, positions) = ([2, 0, 0], [4, 0, 1]);
    let append = CacheAppend {
        live: memory.put_u32(&[3]),
        slots: memory.put_u32(&[2, 0, 0, NONE]),
        positions: memory.put_u32(&[4, 0, 1, NONE]),
        k,
        v,
        keys: key_span,
        values: value_span,
        rows,
        slot_count,
        capacity,
        kv_heads,
        d_head,
    };
    for (row, (slot, position)) in slots.into_iter().zip(positions).enumerate() {
        let [keys, values] = [&mut keys, &mut values].map(|cache| &mut cache[slot * size..][..size]);
        let [_, k, v] = of_row(row);
        cache_append(k, v, &[position], keys, values, capacity, kv_heads, d_head);
    }
    memory.expect(append, &[(key_span, &keys), (value_span, &values)]);

    // The second of the three is of a prefix, and sees the third.
    let last = [4, 1, 1];
    let attend = AttentionRows {
        live: append.live,
        slots: append.slots,
        last: memory.put_u32(&[4, 1, 1, NONE]),
        q,
        keys: key_span,
        values: value_span,
        out: memory.room(rows * wide),
        rows,
        slot_count,
        capacity,
        heads,
        kv_heads,
        d_head,
        scale,
    };
    let (mut out, mut scores) = (vec![0.0; 3 * wide], vec![0.0; capacity]);
    for (row, (slot, last)) in slots.into_iter().zip(last).enumerate() {
        let [keys, values] = [&keys, &values].map(|cache| &cache[slot * size..][..size]);
        let (out, [q, _, _]) = (&mut out[row * wide..][..wide], of_row(row));
        attention_cached(
            q,
            keys,
            values,
            &[last],
            out,
            &mut scores,
            capacity,
            heads,
            kv_heads,
            d_head,
            scale,
        );
    }
    memory.expect(attend, &[(attend.out.first(3 * wide), &out)]);

    let [keys, values] = [key_span, value_span].map(|cache| cache.first(2 * size));
    let slot = InvalidOp::Index { operand: "slots", index: 2, count: 2 };
    memory.refuse(AttentionRows { slot_count: 2, keys, values, ..attend }, slot);
    memory.refuse(CacheAppend { slot_count: 2, keys, values, ..append }, slot);
    let (last, [keys, values]) =
        (memory.put_u32(&[4, 1, 5, NONE]), [key_span, value_span].map(|span| span.first(slot_count * size)));
    let beyond = InvalidOp::Index { operand: "last", index: 5, count: 5 };
    memory.refuse(AttentionRows { last, keys, values, ..attend }, beyond);
    let half = Span { dtype: Dtype::F16, ..key_span };
    let two_ways = InvalidOp::Dtype { operand: "values", expected: Dtype::F16, found: Dtype::F64 };
    memory.refuse(CacheAppend { keys: half, ..append }, two_ways);
    memory.refuse(AttentionRows { keys: half, ..attend }, two_ways);
}

/// The smallest numbers that show which way a tie goes.
#[test]
fn caches_in_fewer_bits_are_rounded_to_the_nearest_and_ties_to_even() {
    for (dtype, step) in [(Dtype::F16, 1.0 / 1024.0), (Dtype::Bf16, 1.0 / 128.0)] {
        let mut memory = Memory::new();
        let given = [1.0 + 0.5 * step, 1.0 + 1.5 * step, -1.0 - 2.5 * step, 1.0 + 0.51 * step];
        let stored = [1.0, 1.0 + 2.0 * step, -1.0 - 2.0 * step, 1.0 + step];
        let (room, d_head) = (memory.put_u32(&[0; 8]), given.len());
        // Two positions of keys, and two of values, of which the first is written.
        let [keys, values] =
            [0, 16].map(|skip| Span { dtype, offset: room.offset + skip, len: 2 * d_head, ..room });
        let append = CacheAppend {
            live: memory.put_u32(&[1]),
            slots: memory.put_u32(&[0]),
            positions: memory.put_u32(&[0]),
            k: memory.put(&given).rows(d_head),
            v: memory.put(&given.map(|x| -x)).rows(d_head),
            keys,
            values,
            rows: 1,
            slot_count: 1,
            capacity: 2,
            kv_heads: 1,
            d_head,
        };
        memory.run(append);
        let words = memory.words(room);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = |index: usize| weight_at(&bytes, dtype, index);
        assert_eq!([0, 1, 2, 3].map(at), stored, "{dtype:?}");
        assert_eq!([8, 9, 10, 11].map(at), stored.map(|x| -x), "{dtype:?}");
        assert_eq!([4, 5, 6, 7, 12, 13, 14, 15].map(at), [0.0; 8], "{dtype:?}");

        let out = memory.room(d_head);
        let attend = AttentionRows {
            live: append.live,
            slots: append.slots,
            last: append.positions,
            q: memory.put(&[1.0; 4]).rows(d_head),
            keys,
            values,
            out,
            rows: 1,
            slot_count: 1,
            capacity: 2,
            heads: 1,
            kv_heads: 1,
            d_head,
            scale: 1.0,
        };
        memory.expect(attend, &[(out, &stored.map(|x| -x))]);
    }
}

#[test]
fn gather_copies_the_wanted_rows() {
    let mut memory = Memory::new();
    let (rows, count, width) = (4, 3, 5);
    let (from, x) = memory.random(rows * width);
    let op = GatherRows {
        live: memory.put_u32(&[2]),
        wanted: memory.put_u32(&[3, 1, NONE]),
        from,
        to: memory.room(count * width),
        rows,
        count,
        width,
    };
    let wanted = [&x[3 * width..][..width], &x[width..][..width]].concat();
    memory.expect(op, &[(op.to.first(2 * width), &wanted)]);
    let few = GatherRows { rows: 3, from: from.first(3 * width), ..op };
    memory.refuse(few, InvalidOp::Index { operand: "wanted", index: 3, count: 3 });
}

#[test]
fn a_token_is_chosen_as_a_sampler_chooses_it() {
    let mut memory = Memory::new();
    let (rows, vocab, ring_len) = (3, 5, 4);
    let (logits_span, logits) = memory.random(rows * vocab);
    let tokens = [3, 1, 4, 1, NONE, 2, 0, NONE];
    let settings =
        SampleConfig { repetition_penalty: Some(1.5), top_k: Some(4), seed: 9, ..SampleConfig::default() };
    let uniform = Rng::new(9, Stream::Sample).uniform();
    let row = |row: u32, place: u32, recent: u32| {
        let ring = row * ring_len;
        SampleRow { next: ring + place, ring, ring_len, recent, uniform, config: settings }
    };
    let choices = [row(0, 1, 3), row(1, 3, 2)];
    let mut words: Vec<u32> = choices.iter().flat_map(SampleRow::words).collect();
    words.resize(rows * SampleRow::WORDS, NONE);
    let op = Sample {
        live: memory.put_u32(&[2]),
        logits: logits_span,
        settings: memory.put_u32(&words),
        tokens: memory.put_u32(&tokens),
        choices: memory.put_u32(&[8, 8, 77]),
        rows,
        vocab,
    };
    let (mut expected, mut side_by_side) = (tokens, vec![]);
    for ((choice, logits), recent) in choices.iter().zip(logits.chunks(vocab)).zip([&[4, 1, 3][..], &[2, 0]])
    {
        let config = SampleConfig { repetition_window: recent.len(), ..settings };
        let token = Sampler::new(config, vocab).unwrap().sample(logits, recent).unwrap();
        expected[choice.next as usize] = token;
        side_by_side.push(token);
    }
    // The row that is not live has none.
    side_by_side.push(77);
    memory.run(op);
    assert_eq!(memory.words(op.tokens), expected);
    assert_eq!(memory.words(op.choices), side_by_side);

    // Without a number there is no choice.
    let broken = memory.put(&[0.0, 1.0, f64::NAN, 0.0, 0.0].repeat(rows));
    memory.run(Sample { logits: broken, ..op });
    assert_eq!([memory.words(op.tokens)[1], memory.words(op.tokens)[7]], [NO_TOKEN; 2]);
    assert_eq!(memory.words(op.choices), [NO_TOKEN, NO_TOKEN, 77]);
    memory.refuse(
        Sample { tokens: op.tokens.first(7), ..op },
        InvalidOp::Index { operand: "settings", index: 8, count: 7 },
    );
}
