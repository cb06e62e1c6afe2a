use super::*;
use crate::error::CpuError;
use crate::executor::Executor;
use crate::memory::Memory;
use minigpt_core::{Buffer, Dtype, InvalidOp, Span, Strided};
use std::vec;

fn span(buffer: Buffer, offset: usize, len: usize) -> Span {
    Span { buffer, dtype: Dtype::F32, offset, len }
}

#[test]
fn views_refuse_whatever_would_conflict() {
    let mut memory = Memory::default();
    let buffer = memory.alloc(64).unwrap();
    let other = memory.alloc(64).unwrap();
    let mut views = Views::new(&mut memory);
    let a = views.f32_mut("a", span(buffer, 0, 4)).unwrap();
    let b = views.f32("b", span(buffer, 16, 4)).unwrap();
    let again = views.f32("again", span(buffer, 24, 4)).unwrap();
    a.fill(1.0);
    assert_eq!((b, again), (&[0.0; 4][..], &[0.0; 4][..]));
    assert!(matches!(views.f32("c", span(buffer, 12, 4)), Err(CpuError::Invalid(InvalidOp::Overlap { .. }))));
    assert!(matches!(
        views.f32_mut("d", span(buffer, 20, 1)),
        Err(CpuError::Invalid(InvalidOp::Overlap { .. }))
    ));
    assert!(views.f32_mut("e", span(other, 12, 4)).is_ok());
}

#[cfg(feature = "bf16")]
#[test]
fn a_block_of_scratch_is_a_buffer_to_those_who_were_lent_it() {
    let mut memory = Memory::default();
    let mut scratch = [0.0; 8];
    let overlaps = |found| matches!(found, Err(CpuError::Invalid(InvalidOp::Overlap { .. })));
    let beyond = |found| matches!(found, Err(CpuError::Invalid(InvalidOp::OutOfBounds { .. })));
    let mut views = Views::with_block(&mut memory, &mut scratch);
    views.f32_mut("a", span(BLOCK, 0, 4)).unwrap().fill(1.0);
    views.f32_mut("b", span(BLOCK, 16, 4)).unwrap().fill(2.0);
    assert!(overlaps(views.f32("c", span(BLOCK, 12, 1)).map(|_| ())));
    assert!(beyond(views.f32("d", span(BLOCK, 16, 5)).map(|_| ())));
    assert!(beyond(Views::new(&mut memory).f32("e", span(BLOCK, 0, 1)).map(|_| ())));
    assert_eq!(scratch, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
}

#[test]
fn views_hand_out_columns_of_one_matrix_side_by_side_and_never_over_each_other() {
    let mut memory = Memory::default();
    let buffer = memory.alloc(64).unwrap();
    // Three rows of five: columns 0 and 1, 2 and 3, and 4.
    let matrix = span(buffer, 0, 15);
    let mut views = Views::new(&mut memory);
    views
        .f32_mut("matrix", matrix)
        .unwrap()
        .copy_from_slice(&core::array::from_fn::<f32, 15, _>(|i| i as f32));
    let mut views = Views::new(&mut memory);
    let x = views.f32_rows("x", matrix.columns(2, 2, 5), 2).unwrap();
    let y = views.f32_rows_mut("y", matrix.columns(0, 2, 5), 2).unwrap();
    let last = views.f32_rows_mut("last", matrix.columns(4, 1, 5), 1).unwrap();
    let mut executor = Executor::team(2).unwrap();
    for_each(&mut executor, (Grid::of_rows(y, 1, 2), Grid::of_rows(last, 1, 1)), |i, (mut y, mut last)| {
        y.row(0).copy_from_slice(x.row(i));
        last.row(0)[0] = -1.0;
    });
    assert_eq!(x.row(2), [12.0, 13.0]);
    let overlaps = |found| matches!(found, Err(CpuError::Invalid(InvalidOp::Overlap { .. })));
    assert!(overlaps(views.f32_rows("over y", matrix.columns(1, 1, 5), 1).map(|_| ())));
    assert!(overlaps(views.f32_rows_mut("over x", matrix.columns(3, 1, 5), 1).map(|_| ())));
    assert!(overlaps(
        views.f32_rows("of another matrix", span(buffer, 0, 12).columns(2, 1, 4), 1).map(|_| ())
    ));
    assert!(overlaps(views.f32("all", matrix).map(|_| ())));
    assert!(views.f32_rows("x again", matrix.columns(3, 1, 5), 1).is_ok());
    let narrow = Strided { span: span(buffer, 60, 1), stride: 1 };
    assert!(matches!(
        views.f32_rows("narrow", narrow, 2).map(|_| ()),
        Err(CpuError::Invalid(InvalidOp::Value { operand: "narrow" }))
    ));
    let all = Views::new(&mut memory).f32("matrix", matrix).unwrap();
    assert_eq!(all, [2.0, 3.0, 2.0, 3.0, -1.0, 7.0, 8.0, 7.0, 8.0, -1.0, 12.0, 13.0, 12.0, 13.0, -1.0]);
}

#[test]
fn columns_of_one_matrix_are_read_and_written_side_by_side() {
    let (rows, stride) = (5, 7);
    let mut memory = Memory::default();
    let matrix = span(memory.alloc(rows * stride * 4).unwrap(), 0, rows * stride);
    for (i, x) in Views::new(&mut memory).f32_mut("all", matrix).unwrap().iter_mut().enumerate() {
        *x = i as f32;
    }
    let mut executor = Executor::team(2).unwrap();
    let mut views = Views::new(&mut memory);
    let from = views.f32_rows("from", matrix.columns(2, 2, stride), 2).unwrap();
    let again = views.f32_rows("again", matrix.columns(3, 1, stride), 1).unwrap();
    let [left, right] = [(0, 2), (5, 2)]
        .map(|(first, width)| views.f32_rows_mut("to", matrix.columns(first, width, stride), width).unwrap());
    let parts = (Grid::of_rows(left, 2, 1), Grid::of_rows(right, 2, 1));
    for_each(&mut executor, parts, |_, (mut left, mut right)| {
        for (i, row) in left.rows().enumerate() {
            left.row(i)[0] = -from.row(row)[0];
            right.row(i)[0] = -again.row(row)[0];
        }
    });
    for (i, &x) in Views::new(&mut memory).f32("all", matrix).unwrap().iter().enumerate() {
        let first = i - i % stride;
        let expected = match i % stride {
            0 | 1 => -((first + 2) as f32),
            5 | 6 => -((first + 3) as f32),
            _ => i as f32,
        };
        assert_eq!(x, expected, "element {i}");
    }
}

#[test]
fn rows_that_would_conflict_or_are_not_there_are_refused() {
    let mut memory = Memory::default();
    let matrix = span(memory.alloc(4 * 6 * 4).unwrap(), 0, 24);
    let mut views = Views::new(&mut memory);
    views.f32_rows_mut("a", matrix.columns(1, 2, 6), 2).unwrap();
    let overlap = |error: CpuError| matches!(error, CpuError::Invalid(InvalidOp::Overlap { .. }));
    // One column too many on either side, another stride, a whole stretch, columns that go on in the next row.
    for (rows, width) in [
        (matrix.columns(0, 2, 6), 2),
        (matrix.columns(2, 2, 6), 2),
        (matrix.columns(3, 1, 8), 1),
        (matrix.slice(3, 4).rows(4), 4),
        (matrix.slice(3, 6 + 5).rows(6), 5),
    ] {
        assert!(views.f32_rows("b", rows, width).is_err_and(overlap), "{rows:?}");
        assert!(views.f32_rows_mut("b", rows, width).is_err_and(overlap), "{rows:?}");
    }
    assert!(views.f32("b", matrix.slice(3, 4)).is_err_and(overlap));
    assert!(
        views.f32("b", matrix.slice(3, 3)).is_err_and(overlap),
        "the stretch from first to last row counts"
    );
    let narrow = Strided { stride: 1, ..matrix.columns(3, 2, 6) };
    assert!(views.f32_rows("c", narrow, 2).is_err());
    let long = Strided { span: span(matrix.buffer, 12, 22), stride: 6 };
    assert!(views.f32_rows("d", long, 3).is_err());
    assert_eq!(views.f32_rows("e", matrix.columns(3, 3, 6), 3).unwrap().row(3), [0.0; 3]);
}

#[test]
#[should_panic(expected = "row 4 of 4")]
fn rows_end_with_the_last() {
    let mut memory = Memory::default();
    let matrix = span(memory.alloc(96).unwrap(), 0, 24);
    Views::new(&mut memory).f32_rows("x", matrix.columns(1, 2, 6), 2).unwrap().row(4);
}

#[test]
fn views_refuse_whatever_is_not_there() {
    let mut memory = Memory::default();
    let buffer = memory.alloc(64).unwrap();
    let gone = memory.alloc(64).unwrap();
    memory.release(gone).unwrap();
    let mut views = Views::new(&mut memory);
    let mut refused = |span: Span| match views.f32_mut("x", span) {
        Err(CpuError::Invalid(error)) => error,
        other => panic!("{other:?}"),
    };
    let past = InvalidOp::OutOfBounds { operand: "x", end: 68, size: 64 };
    assert_eq!(refused(span(buffer, 60, 2)), past);
    assert_eq!(refused(span(gone, 0, 1)), InvalidOp::OutOfBounds { operand: "x", end: 0, size: 0 });
    assert_eq!(refused(span(Buffer(9), 0, 1)), InvalidOp::OutOfBounds { operand: "x", end: 0, size: 0 });
    assert_eq!(refused(span(buffer, 2, 1)), InvalidOp::Misaligned { operand: "x", offset: 2 });
    assert_eq!(refused(span(buffer, usize::MAX, 1)), InvalidOp::Overflow { operand: "x" });
    assert!(matches!(
        refused(Span { dtype: Dtype::U32, ..span(buffer, 0, 1) }),
        InvalidOp::Dtype { expected: Dtype::F32, .. }
    ));
}

// Where bytes lie otherwise, they are copied instead.
#[cfg(target_endian = "little")]
#[test]
fn what_is_borrowed_is_read_and_never_written() {
    let borrowed = [0u32; 4];
    // SAFETY: any u32 are bytes.
    let bytes = unsafe { core::slice::from_raw_parts(borrowed.as_ptr().cast::<u8>(), 16) };
    let mut memory = Memory::default();
    let flash = memory.borrow(bytes).unwrap().unwrap();
    let mut views = Views::new(&mut memory);
    assert!(matches!(
        views.f32_mut("x", span(flash, 0, 1)),
        Err(CpuError::Invalid(InvalidOp::ReadOnly { operand: "x" }))
    ));
    assert_eq!(views.f32("flash", span(flash, 4, 3)).unwrap(), [0.0; 3]);
}

#[test]
fn chunks_cover_a_slice_once() {
    for threads in 1..4 {
        let mut executor = Executor::team(threads).unwrap();
        let mut x = vec![0u32; 103];
        for_each(&mut executor, Chunks::new(&mut x, 10), |i, chunk| {
            chunk.iter_mut().for_each(|x| *x += i as u32 + 1)
        });
        assert!(x.iter().enumerate().all(|(i, &x)| x == i as u32 / 10 + 1));
    }
}

#[test]
fn tiles_cover_a_matrix_once() {
    for threads in 1..4 {
        let mut executor = Executor::team(threads).unwrap();
        let (rows, cols) = (13, 11);
        let mut x = vec![0.0; rows * cols];
        let mut parts = vec![0usize; 12];
        let grid = Grid::new(&mut x, cols, 4, 5);
        assert_eq!(grid.count(), 12);
        for_each(&mut executor, (grid, Chunks::new(&mut parts, 1)), |index, (mut tile, part)| {
            part[0] = tile.rows().len() * tile.cols().len();
            let (first_row, first_col) = (tile.rows().start, tile.cols().start);
            assert_eq!((first_row, first_col), (index / 3 * 4, index % 3 * 5));
            for i in 0..tile.rows().len() {
                for (j, x) in tile.row(i).iter_mut().enumerate() {
                    *x += ((first_row + i) * cols + first_col + j) as f32 + 1.0;
                }
            }
        });
        assert!(x.iter().enumerate().all(|(i, &x)| x == i as f32 + 1.0));
        assert_eq!(parts.iter().sum::<usize>(), rows * cols);

        let grid = Grid::new(&mut x, cols, 4, 5).by_columns();
        for_each(&mut executor, (grid, Chunks::new(&mut parts, 1)), |index, (mut tile, part)| {
            part[0] = tile.rows().len() * tile.cols().len();
            assert_eq!((tile.rows().start, tile.cols().start), (index % 4 * 4, index / 4 * 5));
            (0..tile.rows().len()).for_each(|i| tile.row(i).iter_mut().for_each(|x| *x -= 1.0));
        });
        assert!(x.iter().enumerate().all(|(i, &x)| x == i as f32));
        assert_eq!(parts.iter().sum::<usize>(), rows * cols);
    }
}

#[test]
fn workers_have_scratch_of_their_own() {
    let mut executor = Executor::team(3).unwrap();
    let mut scratch = vec![0.0f32; 3 * 16];
    let mut out = vec![0.0f32; 200];
    let parts = (Chunks::new(&mut out, 1), PerWorker::new(&mut scratch, 16));
    for_each(&mut executor, parts, |i, (out, scratch)| {
        scratch.fill(i as f32);
        std::thread::yield_now();
        out[0] = scratch.iter().sum();
    });
    assert!(out.iter().enumerate().all(|(i, &x)| x == 16.0 * i as f32));
}

#[test]
fn a_chain_gives_out_the_parts_of_both_once() {
    for threads in 1..4 {
        let mut executor = Executor::team(threads).unwrap();
        let (mut a, mut b) = (vec![0u32; 7], vec![0.0f32; 3 * 4]);
        let chain = Chain(Chunks::new(&mut a, 2), Grid::new(&mut b, 4, 2, 3));
        assert_eq!(chain.count(), 4 + 4);
        for_each(&mut executor, chain, |task, part| match part {
            Either::First(a) => a.iter_mut().for_each(|a| *a += task as u32 + 1),
            Either::Second(index, mut tile) => {
                assert_eq!(index, task - 4);
                for i in 0..tile.rows().len() {
                    tile.row(i).iter_mut().for_each(|b| *b += task as f32);
                }
            }
        });
        assert_eq!(a, [1, 1, 2, 2, 3, 3, 4]);
        assert_eq!(b, [4., 4., 4., 5., 4., 4., 4., 5., 6., 6., 6., 7.]);
    }
}

#[test]
fn a_part_of_a_tile_is_where_it_says() {
    let mut x: std::vec::Vec<f32> = (0..30).map(|i| i as f32).collect();
    let mut executor = Executor::single();
    for_each(&mut executor, Grid::new(&mut x, 6, 5, 6), |_, mut tile| {
        let mut part = tile.part(1..4, 2..5);
        let mut part = part.part(1..3, 1..2);
        assert_eq!((part.rows(), part.cols(), part.stride()), (2..4, 3..4, 6));
        assert_eq!((part.row(0).to_vec(), part.row(1).to_vec()), (vec![15.0], vec![21.0]));
        let start = part.start();
        assert_eq!(part.row(0).as_mut_ptr(), start);
    });
}
