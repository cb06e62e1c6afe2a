//! Attention over a cache, and what is appended to it.

use super::*;

/// Keys or values of `dtype`.
fn cache(bench: &mut Bench, dtype: Dtype, len: usize) -> Span {
    if dtype == Dtype::F32 {
        return bench.normal(len);
    }
    let bytes: Vec<u8> = (0..len).flat_map(|_| encode_half(bench.rng.normal(), dtype)).collect();
    let span = bench.span(dtype, len);
    bench.cpu.write(span, &bytes).unwrap();
    span
}

/// Attention of rows over a cache of `slot_count` slots of 190 positions: shared heads of 20, others of 68.
pub(super) fn attention_rows(
    bench: &mut Bench,
    rows: &[(u32, u32)],
    slot_count: usize,
    [heads, kv_heads]: [usize; 2],
    dtype: Dtype,
) -> AttentionRows {
    let (d_head, capacity) = (if heads == kv_heads { 68 } else { 20 }, 190);
    let len = slot_count * kv_heads * capacity * d_head;
    let [slots, last] = [|row: &(u32, u32)| row.0, |row: &(u32, u32)| row.1]
        .map(|of| rows.iter().map(of).collect::<Vec<u32>>());
    let (width, gap) = (heads * d_head, rows.len() % 3);
    AttentionRows {
        live: bench.words(&[rows.len() as u32]),
        slots: bench.words(&slots),
        last: bench.words(&last),
        q: bench.normal(rows.len() * (gap + width)).columns(gap, width, gap + width),
        keys: cache(bench, dtype, len),
        values: cache(bench, dtype, len),
        out: bench.poison(rows.len() * width),
        rows: rows.len(),
        slot_count,
        capacity,
        heads,
        kv_heads,
        d_head,
        scale: 0.3,
    }
}

// A big-endian processor leaves caches in fewer bits to the reference itself.
const CACHES: &[Dtype] =
    if Weight::READS_ALL { &[Dtype::F32, Dtype::F16, Dtype::Bf16] } else { &[Dtype::F32] };

#[test]
fn a_long_prompt_behind_a_cache_is_the_references() {
    let rows: Vec<(u32, u32)> = (0..2).flat_map(|slot| (37..187).map(move |at| (slot, at))).collect();
    for (&dtype, heads) in
        CACHES.iter().flat_map(|dtype| [[2, 2], [4, 2], [3, 1]].map(|heads| (dtype, heads)))
    {
        assert_like_the_reference(1e-5, |bench| {
            let op = attention_rows(bench, &rows, 2, heads, dtype);
            (op.into(), [op.out].into())
        });
    }
}

#[test]
fn rows_that_see_the_same_positions_are_the_references() {
    // A prefix that sees itself both ways, and what follows it; few rows that do, and few positions.
    let prompt = |slot, prefix: u32, end: u32| (0..end).map(move |at| (slot, at.max(prefix - 1)));
    let rows: Vec<(u32, u32)> =
        prompt(0, 70, 100).chain(prompt(2, 5, 9)).chain([(1, 2); 12]).chain(prompt(1, 33, 33)).collect();
    for (&dtype, heads) in CACHES.iter().flat_map(|dtype| [[2, 2], [6, 2]].map(|heads| (dtype, heads))) {
        assert_like_the_reference(1e-5, |bench| {
            let op = attention_rows(bench, &rows, 3, heads, dtype);
            (op.into(), [op.out].into())
        });
    }
}

#[test]
fn a_few_rows_over_shared_heads_are_the_references() {
    let rows = [(0, 3), (2, 189), (1, 88), (1, 89), (0, 0)];
    for (&dtype, heads) in CACHES
        .iter()
        .flat_map(|dtype| [[2, 2], [4, 2], [7, 1], [12, 1], [30, 3], [1, 1]].map(|heads| (dtype, heads)))
    {
        for count in [1, 3, 5] {
            assert_like_the_reference(1e-5, |bench| {
                let op = attention_rows(bench, &rows[..count], 3, heads, dtype);
                (op.into(), [op.out].into())
            });
        }
    }
}

/// A shared head gives the bits that a copy of it for each head of queries gives, and numbers in fewer bits those that the same
/// numbers give in f32.
#[test]
fn how_a_cache_is_stored_and_shared_changes_no_bit() {
    let prompt: Vec<(u32, u32)> = (60..130).map(|at| (1, at)).collect();
    let few = [(0, 3), (1, 150), (0, 88)];
    for isa in Isa::available() {
        let heads = [(&few[..], 15), (&few, 3), (&prompt, 15)];
        for (&dtype, (rows, heads)) in CACHES.iter().flat_map(|dtype| heads.map(|heads| (dtype, heads))) {
            let mut bench = Bench::new(isa);
            let shared = attention_rows(&mut bench, rows, 2, [heads, 3], dtype);
            let [keys, values] = [shared.keys, shared.values].map(|span| {
                let mut bytes = std::vec![0; span.bytes().unwrap()];
                bench.cpu.read(span, &mut bytes).unwrap();
                let head = shared.capacity * shared.d_head;
                let from = (0..2 * heads).map(|head| head / heads * 3 + head % heads / (heads / 3));
                let copies: Vec<f32> = from
                    .flat_map(|from| from * head..(from + 1) * head)
                    .map(|at| weight_at(&bytes, dtype, at) as f32)
                    .collect();
                bench.values(&copies)
            });
            let out = bench.poison(shared.out.len);
            let copied = AttentionRows { keys, values, kv_heads: heads, out, ..shared };
            bench.cpu.run(&shared.into()).unwrap();
            bench.cpu.run(&copied.into()).unwrap();
            assert!(bench.read(shared.out) == bench.read(out), "{isa}, {dtype:?}, {} rows", rows.len());
        }
    }
}

#[test]
fn what_is_appended_to_a_cache_has_the_references_bits() {
    for &dtype in CACHES {
        for isa in Isa::available() {
            let (mut fast, mut slow) = (Bench::new(isa), Bench::new(isa));
            let [found, expected] = [&mut fast, &mut slow].map(|bench| {
                let numbers = [0.1, -65519.9, 65520.0, 1e-7, -3e-8, 6e-5, f32::NAN, f32::NEG_INFINITY, 3e38];
                let k: Vec<f32> = (0..3 * 21).map(|i| numbers[i % 9] * (1 + i / 9) as f32).collect();
                let len = 2 * 3 * 11 * 5;
                CacheAppend {
                    live: bench.words(&[2]),
                    slots: bench.words(&[1, 0, 9]),
                    positions: bench.words(&[10, 3, 99]),
                    k: bench.values(&k).columns(2, 15, 21),
                    v: bench.normal(3 * 15).rows(15),
                    keys: cache(bench, dtype, len),
                    values: cache(bench, dtype, len),
                    rows: 3,
                    slot_count: 2,
                    capacity: 11,
                    kv_heads: 3,
                    d_head: 5,
                }
            });
            fast.cpu.run(&found.into()).unwrap();
            assert_eq!(fast.cpu.fallbacks(), 0);
            fall_back(&mut slow.cpu, &expected.into()).unwrap();
            for span in [found.keys, found.values] {
                let [mut a, mut b] = [(); 2].map(|()| std::vec![0; span.bytes().unwrap()]);
                fast.cpu.read(span, &mut a).unwrap();
                slow.cpu.read(span, &mut b).unwrap();
                assert!(a == b, "{isa}, {dtype:?}");
            }
        }
    }
}

/// A prompt in one pass, or in two, at any place among others: by tiles, a query gives the same bits.
#[test]
fn where_a_prompt_is_cut_and_who_stands_beside_it_changes_no_bit() {
    for isa in Isa::available() {
        let mut bench = Bench::new(isa);
        let prompt: Vec<(u32, u32)> = (3..140).map(|at| (1, at)).collect();
        let whole = attention_rows(&mut bench, &prompt, 3, [4, 2], Dtype::F32);
        bench.cpu.run(&whole.into()).unwrap();
        let (expected, width) = (bench.read(whole.out), whole.heads * whole.d_head);
        for cut in [8, 29, 61, 64, 100, 129] {
            let others: Vec<(u32, u32)> = (0..cut as u32 % 7).map(|at| (2 * (at % 2), 5 + 9 * at)).collect();
            let mut out = Vec::new();
            for part in [0..cut, cut..prompt.len()] {
                let (first, count) = (part.start, part.len());
                let rows: Vec<(u32, u32)> = others.iter().chain(&prompt[part]).copied().collect();
                let mut op = attention_rows(&mut bench, &rows, 3, [4, 2], Dtype::F32);
                (op.keys, op.values) = (whole.keys, whole.values);
                for row in 0..count {
                    let from = whole.q.span.slice((first + row) * whole.q.stride, width);
                    let to = op.q.span.slice((others.len() + row) * op.q.stride, width);
                    bench.cpu.copy(from, to).unwrap();
                }
                bench.cpu.run(&op.into()).unwrap();
                out.extend(bench.read(op.out.slice(others.len() * width, count * width)));
            }
            assert_eq!(out, expected, "{isa}, cut at {cut}");
        }
    }
}
