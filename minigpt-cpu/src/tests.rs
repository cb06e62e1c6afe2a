use super::*;
use minigpt_core::Activation;
use minigpt_core::backend::{BackendError, ErrorKind, read_elems, read_u32, write_elems, write_u32};
use minigpt_core::op::{
    ActivationForward, AttentionBackward, AttentionForward, AttentionRows, AttentionScores, AttentionShape,
    CrossEntropy, Dropout, LinearBackward, LinearForward, NextDraw, NormBackward, Normalize, SquaredNorm,
    counter, scalar,
};
use std::string::ToString;
use std::vec::Vec;

fn span(buffer: Buffer, dtype: Dtype, offset: usize, len: usize) -> Span {
    Span { buffer, dtype, offset, len }
}

#[test]
fn what_is_written_is_read_back() {
    let mut cpu = Cpu::new().unwrap();
    let buffer = cpu.alloc(100).unwrap();
    let all = span(buffer, Dtype::F32, 0, 25);
    assert_eq!(read_elems(&mut cpu, all).unwrap(), [0.0; 25]);
    write_elems(&mut cpu, all.slice(3, 2), &[1.5, -2.0]).unwrap();
    cpu.copy(all.slice(3, 2), all.slice(10, 2)).unwrap();
    cpu.fill(all.slice(20, 5), 0.25).unwrap();
    cpu.sync().unwrap();
    let mut expected = [0.0; 25];
    expected[3..5].copy_from_slice(&[1.5, -2.0]);
    expected[10..12].copy_from_slice(&[1.5, -2.0]);
    expected[20..].fill(0.25);
    assert_eq!(read_elems(&mut cpu, all).unwrap(), expected);

    let tokens = span(buffer, Dtype::U32, 8, 3);
    write_u32(&mut cpu, tokens, &[1, u32::MAX, 3]).unwrap();
    assert_eq!(read_u32(&mut cpu, tokens).unwrap(), [1, u32::MAX, 3]);
    cpu.fill(tokens, 7.0).unwrap();
    assert_eq!(read_u32(&mut cpu, tokens).unwrap(), [7; 3]);

    let halves = span(buffer, Dtype::F16, 2, 3);
    cpu.write(halves, &[1, 2, 3, 4, 5, 6]).unwrap();
    let mut bytes = [0; 6];
    cpu.read(halves, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6]);
    cpu.copy(halves, span(buffer, Dtype::F16, 40, 3)).unwrap();
    cpu.read(span(buffer, Dtype::F16, 42, 2), &mut bytes[..4]).unwrap();
    assert_eq!(bytes[..4], [3, 4, 5, 6]);

    let doubles = span(buffer, Dtype::F64, 0, 12);
    cpu.fill(doubles, core::f64::consts::PI).unwrap();
    let mut bytes = [0; 96];
    cpu.read(doubles, &mut bytes).unwrap();
    assert_eq!(bytes[88..], core::f64::consts::PI.to_le_bytes());
}

#[test]
fn wrong_transfers_are_errors() {
    let mut cpu = Cpu::new().unwrap();
    let buffer = cpu.alloc(64).unwrap();
    let x = span(buffer, Dtype::F32, 0, 4);
    let kinds = [
        cpu.write(x, &[0; 15]).unwrap_err(),
        cpu.read(x, &mut [0; 17]).unwrap_err(),
        cpu.write(span(buffer, Dtype::F32, 60, 4), &[0; 16]).unwrap_err(),
        cpu.copy(x, x.slice(2, 2)).unwrap_err(),
        cpu.copy(x, span(buffer, Dtype::F32, 8, 4)).unwrap_err(),
        cpu.copy(x, span(buffer, Dtype::U32, 32, 4)).unwrap_err(),
        cpu.fill(span(buffer, Dtype::F16, 0, 4), 0.0).unwrap_err(),
        cpu.release(Buffer(5)).unwrap_err(),
    ]
    .map(|error| error.kind());
    assert_eq!(kinds, [ErrorKind::Invalid; 8]);
    cpu.release(buffer).unwrap();
    assert_eq!(cpu.fill(x, 0.0).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn an_allocation_that_does_not_fit_is_an_error_that_says_how_much() {
    let mut cpu = Cpu::new().unwrap();
    let asked = isize::MAX as usize - 64;
    let error = cpu.alloc(asked).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains(&asked.to_string()), "{error}");
    assert_eq!(cpu.alloc(usize::MAX).unwrap_err().kind(), ErrorKind::OutOfMemory);
}

#[test]
fn imported_bytes_read_alike_whether_borrowed_or_copied() {
    let words: [f32; 5] = [1.0, -2.0, 3.5, 0.0, 9.0];
    let mut bytes = std::vec![0u8; 32];
    let aligned = bytes.as_ptr().align_offset(4);
    for skip in [aligned, aligned + 1] {
        for (i, word) in words.iter().enumerate() {
            bytes[skip + 4 * i..][..4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[skip + 20] = 77;
        let mut cpu = Cpu::new().unwrap();
        let imported = cpu.import(&bytes[skip..skip + 21]).unwrap();
        let x = span(imported.buffer(), Dtype::F32, 0, 5);
        assert_eq!(read_elems(&mut cpu, x).unwrap(), words);
        let written = cpu.fill(x, 0.0);
        let usable = skip == aligned && cfg!(target_endian = "little");
        assert_eq!(matches!(imported, Imported::Borrowed(_)), usable);
        if usable {
            assert_eq!(written.unwrap_err().kind(), ErrorKind::Unsupported);
        } else {
            assert!(written.is_ok());
        }
    }
}

#[test]
fn every_instruction_set_can_be_forced_and_an_absent_one_is_an_error() {
    for &isa in Isa::ALL {
        match Cpu::builder().isa(isa).build() {
            Ok(cpu) => assert_eq!(cpu.isa(), isa),
            Err(error) => {
                assert!(!Isa::available().any(|there| there == isa));
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                assert!(error.to_string().contains("this machine has portable"), "{error}");
            }
        }
    }
}

#[cfg(feature = "std")]
#[test]
fn there_are_as_many_threads_as_were_asked_for() {
    for (asked, threads) in [(0, 1), (1, 1), (2, 2), (5, 5)] {
        assert_eq!(Cpu::builder().threads(asked).build().unwrap().threads(), threads);
    }
}

#[cfg(feature = "std")]
#[test]
fn a_backend_and_its_team_may_move_to_another_thread() {
    use minigpt_core::op::{SquaredNorm, scalar};

    let mut cpu = Cpu::builder().threads(3).build().unwrap();
    let buffer = cpu.alloc(4 << 16).unwrap();
    let x = span(buffer, Dtype::F32, 0, 1 << 16);
    let scalars = cpu.alloc(4 * scalar::LEN).unwrap();
    let scalars = span(scalars, Dtype::F32, 0, scalar::LEN);
    cpu.fill(x, 2.0).unwrap();
    let op: Op = SquaredNorm { x, scalars }.into();
    cpu.run(&op).unwrap();
    let moved = std::thread::spawn(move || {
        cpu.fill(x, 1.0).unwrap();
        cpu.run(&op).unwrap();
        cpu
    });
    let mut cpu = moved.join().unwrap();
    let sums = read_elems(&mut cpu, scalars).unwrap();
    assert_eq!(sums[scalar::GRAD_SQUARED], 65536.0);
}

#[test]
fn ops_that_are_left_to_the_reference_are_counted() {
    let mut cpu = Cpu::new().unwrap();
    let buffer = cpu.alloc(1024).unwrap();
    let shape = AttentionShape { batch: 1, time: 2, heads: 1, kv_heads: 1, d_head: 2, scale: 1.0, prefix: 0 };
    let scores = AttentionScores {
        q: span(buffer, Dtype::F32, 0, 4).rows(2),
        k: span(buffer, Dtype::F32, 16, 4).rows(2),
        scores: span(buffer, Dtype::F32, 64, 4),
        softmax: true,
        shape,
    };
    cpu.run(&scores.into()).unwrap();
    assert_eq!(cpu.fallbacks(), 0);
    // Without a width there is nothing to be fast at.
    let nothing = scores.q.span.first(0);
    let activation = Activation::Relu;
    let empty = ActivationForward { x: nothing, y: nothing, activation, rows: 2, width: 0 };
    cpu.run(&empty.into()).unwrap();
    assert_eq!(cpu.fallbacks(), 1);
    assert_eq!(cpu.fallbacks_of(OpKind::ActivationForward), 1);
    assert_eq!(cpu.fallbacks_of(OpKind::AdamW), 0);
    let short = AttentionScores { shape: AttentionShape { time: 3, ..shape }, ..scores };
    assert_eq!(cpu.run(&short.into()).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn the_draw_number_carries_into_its_high_word() {
    let mut cpu = Cpu::new().unwrap();
    let buffer = cpu.alloc(64).unwrap();
    let counters = span(buffer, Dtype::U32, 0, counter::LEN);
    write_u32(&mut cpu, counters.slice(counter::DRAW, 2), &[u32::MAX - 1, 5]).unwrap();
    for expected in [[u32::MAX, 5], [0, 6], [1, 6]] {
        cpu.run(&NextDraw { counters }.into()).unwrap();
        assert_eq!(read_u32(&mut cpu, counters.slice(counter::DRAW, 2)).unwrap(), expected);
    }
    assert_eq!(cpu.fallbacks(), 0);
}

#[test]
fn what_an_op_says_of_its_scratch_is_what_it_takes() {
    let (rows, time, heads, d_head) = (20, 10, 3, 8);
    for isa in Isa::available() {
        let mut cpu = Cpu::builder().isa(isa).build().unwrap();
        let buffer = cpu.alloc(1 << 20).unwrap();
        let mut end = 64;
        let mut place = |len: usize| {
            let place = span(buffer, Dtype::F32, end, len);
            end += (4 * len).next_multiple_of(64);
            place
        };
        let dropout = Some(Dropout {
            probability: 0.1,
            site: 0,
            first: 0,
            counters: span(buffer, Dtype::U32, 0, counter::LEN),
        });
        let mut ops: Vec<Op> = Vec::new();
        for (d_out, d_in, dropout) in [(72, 24, None), (24, 24, dropout), (520, 24, None), (24, 520, dropout)]
        {
            let (x, weight, y) = (place(rows * d_in), place(d_out * d_in), place(rows * d_out));
            let forward = LinearForward {
                x,
                weight,
                bias: None,
                activate: None,
                dropout,
                residual: Some(y),
                y,
                rows,
                d_in,
                d_out,
            };
            let [d_x, d_weight] = [place(rows * d_in), place(d_out * d_in)];
            let backward = LinearBackward {
                x,
                weight,
                d_y: y,
                dropout,
                d_x: Some(d_x),
                accumulate: false,
                activate: None,
                d_weight: Some(d_weight),
                d_bias: None,
                rows,
                d_in,
                d_out,
            };
            let one =
                LinearForward { rows: 1, x: x.first(d_in), y: y.first(d_out), residual: None, ..forward };
            ops.extend([Op::from(forward), one.into(), backward.into()]);
        }
        let width = heads * d_head;
        let [qkv, d_qkv] = [(); 2].map(|()| place(rows * 3 * width));
        let [q, k, v] = [0, 1, 2].map(|part| qkv.columns(part * width, width, 3 * width));
        let [d_q, d_k, d_v] = [0, 1, 2].map(|part| d_qkv.columns(part * width, width, 3 * width));
        let [out, d_out, keys, values] = [(); 4].map(|()| place(rows * width));
        let (lse, batch, scale) = (place(rows * heads), 2, 0.3);
        let words = Span { dtype: Dtype::U32, ..place(rows) };
        let live = words.first(1);
        let shape = AttentionShape { batch, time, heads, kv_heads: heads, d_head, scale, prefix: 0 };
        let many = AttentionRows {
            live,
            slots: words.first(rows),
            last: words.first(rows),
            q,
            keys,
            values,
            out,
            rows,
            slot_count: batch,
            capacity: time,
            heads,
            kv_heads: heads,
            d_head,
            scale,
        };
        let few = AttentionRows {
            slots: words.first(2),
            last: words.first(2),
            q: q.first_rows(2, width),
            out: out.first(2 * width),
            rows: 2,
            ..many
        };
        let shared = |op: AttentionRows, dtype| {
            let [keys, values] =
                [op.keys, op.values].map(|cache| Span { dtype, ..cache.first(rows * d_head) });
            AttentionRows { kv_heads: 1, keys, values, ..op }
        };
        let of_one = AttentionShape { kv_heads: 1, ..shape };
        let [k1, v1, d_k1, d_v1] = [k, v, d_k, d_v].map(|part| part.part(0, d_head, width));
        ops.extend::<[Op; 8]>([
            AttentionForward { q, k, v, out, lse, shape, dropout }.into(),
            AttentionBackward { q, k, v, out, lse, d_out, d_q, d_k, d_v, shape, dropout }.into(),
            AttentionForward { q, k: k1, v: v1, out, lse, shape: of_one, dropout }.into(),
            AttentionBackward {
                q,
                k: k1,
                v: v1,
                out,
                lse,
                d_out,
                d_q,
                d_k: d_k1,
                d_v: d_v1,
                shape: of_one,
                dropout,
            }
            .into(),
            many.into(),
            few.into(),
            shared(many, Dtype::F32).into(),
            shared(few, Dtype::F32).into(),
        ]);
        if cfg!(target_endian = "little") {
            ops.extend([many, few].map(|op| Op::from(shared(op, Dtype::F16))));
        }
        let [weight, d_weight] = [(); 2].map(|()| place(width));
        let [mean, rstd] = [(); 2].map(|()| place(rows));
        ops.push(
            NormBackward {
                kind: Normalize::Layer { mean },
                x: out.rows(width),
                weight,
                rstd,
                d_y: d_out.rows(width),
                d_x: d_out.rows(width),
                accumulate: false,
                d_weight: Some(d_weight),
                d_bias: None,
                rows,
                groups: 1,
                width,
            }
            .into(),
        );
        let (targets, scalars) = (Span { dtype: Dtype::U32, ..place(rows) }, place(scalar::LEN));
        let (logits, losses) = (place(rows * 5), None);
        ops.push(CrossEntropy { logits, targets, d_logits: None, losses, scalars, rows, vocab: 5 }.into());
        ops.push(SquaredNorm { x: qkv, scalars }.into());

        let mut enough = Cpu::builder().isa(isa).build().unwrap();
        let whole = enough.workspace_bytes(&ops);
        enough.reserve(whole).unwrap();
        assert_eq!(enough.scratch.bytes(), whole);
        enough.alloc(1 << 20).unwrap();
        for op in &ops {
            let said = cpu.workspace_bytes(core::slice::from_ref(op));
            let mut fresh = Cpu::builder().isa(isa).build().unwrap();
            fresh.alloc(1 << 20).unwrap();
            fresh.run(op).unwrap();
            assert_eq!((fresh.scratch.bytes(), fresh.fallbacks()), (said, 0), "{isa} {op:?}");
            enough.run(op).unwrap();
            assert_eq!(enough.scratch.bytes(), whole, "{isa} {op:?}");
        }
    }
}

#[test]
fn who_lacks_the_feature_is_told_what_to_do() {
    let refused = CpuError::WithoutBf16;
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let said = refused.to_string();
    assert!(said.contains("feature `bf16` of minigpt-cpu") && said.contains("Precision::F32"), "{said}");
}
