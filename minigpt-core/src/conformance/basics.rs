//! The seven methods that every backend has.

use alloc::vec;
use alloc::vec::Vec;

use super::{Line, describe};
use crate::backend::{Backend, BackendError, ErrorKind, read_elems, read_u32, write_elems, write_u32};
use crate::memory::{Dtype, Span};
use crate::real::Real;

pub(super) fn check<B: Backend>(backend: &mut B) -> Line {
    let mut line = Line::new("alloc, write, read, copy, fill", 0.0);
    if let Err(error) = moves_memory(backend, &mut line) {
        line.fail(describe(&error));
    }
    refuses_nonsense(backend, &mut line);
    line
}

fn expect(line: &mut Line, claim: &'static str, holds: bool) {
    line.cases += 1;
    if !holds {
        line.fail(claim);
    }
}

fn moves_memory<B: Backend>(backend: &mut B, line: &mut Line) -> Result<(), B::Error> {
    let size = size_of::<B::Elem>();
    let buffer = backend.alloc(100 * size)?;
    let all = Span { buffer, dtype: B::Elem::DTYPE, offset: 0, len: 100 };
    let zeros = read_elems(backend, all)?;
    expect(line, "a new buffer is zero", zeros.iter().all(|x| *x == B::Elem::default()));

    let values: Vec<B::Elem> = (0..100).map(|i| B::Elem::from_f64(f64::from(i) - 50.5)).collect();
    write_elems(backend, all, &values)?;
    expect(line, "what was written is read", read_elems(backend, all)? == values);
    write_elems(backend, all.slice(7, 3), &values[..3])?;
    let patched = read_elems(backend, all)?;
    expect(
        line,
        "a slice is written and nothing beside it",
        patched[7..10] == values[..3] && patched[..7] == values[..7] && patched[10..] == values[10..],
    );

    let other = backend.alloc(100 * size)?;
    let there = Span { buffer: other, ..all };
    backend.copy(all.slice(3, 65), there.slice(31, 65))?;
    let copied = read_elems(backend, there)?;
    expect(
        line,
        "copy moves a slice to another buffer",
        copied[31..96] == patched[3..68]
            && copied[..31].iter().chain(&copied[96..]).all(|x| *x == B::Elem::default()),
    );
    backend.copy(all.slice(0, 10), all.slice(50, 10))?;
    let moved = read_elems(backend, all)?;
    expect(
        line,
        "copy moves a slice within a buffer",
        moved[50..60] == patched[..10] && moved[60..] == patched[60..],
    );

    backend.fill(all.slice(1, 63), -2.5)?;
    let filled = read_elems(backend, all)?;
    let exact = filled[1..64].iter().all(|x| *x == B::Elem::from_f64(-2.5));
    expect(line, "fill sets a slice", exact && filled[0] == moved[0] && filled[64..] == moved[64..]);

    let words = Span { buffer: backend.alloc(64)?, dtype: Dtype::U32, offset: 0, len: 16 };
    write_u32(backend, words.first(3), &[1, u32::MAX, 7])?;
    backend.fill(words.slice(4, 2), 9.0)?;
    let read = read_u32(backend, words)?;
    expect(line, "u32 spans are written, filled and read", read[..7] == [1, u32::MAX, 7, 0, 9, 9, 0]);

    let halves = Span { buffer: backend.alloc(64)?, dtype: Dtype::Bf16, offset: 0, len: 32 };
    let unit = 1.0 / 128.0;
    // The nearest bf16 is above, a tie goes to the even one below, and one to the even one above.
    for (place, value) in [1.0 + 0.6 * unit, 1.0 + 0.5 * unit, -1.0 - 1.5 * unit].into_iter().enumerate() {
        backend.fill(halves.slice(1 + 9 * place, 8), value)?;
    }
    let filled_halves = read_elems(backend, halves)?;
    let due = |place: usize| match place {
        1..=8 => 1.0 + unit,
        10..=17 => 1.0,
        19..=26 => -1.0 - 2.0 * unit,
        _ => 0.0,
    };
    let exact = filled_halves.iter().enumerate().all(|(place, x)| x.to_f64() == due(place));
    expect(line, "bf16 spans are filled with the nearest number", exact);

    backend.sync()?;
    backend.release(other)?;
    expect(line, "other buffers survive a release", read_elems(backend, all)? == filled);
    let again = backend.alloc(100 * size)?;
    let fresh = read_elems(backend, Span { buffer: again, ..all })?;
    expect(
        line,
        "a buffer allocated after a release is zero",
        fresh.iter().all(|x| *x == B::Elem::default()),
    );
    Ok(())
}

fn refuses_nonsense<B: Backend>(backend: &mut B, line: &mut Line) {
    let Ok(buffer) = backend.alloc(64) else { return line.fail("64 bytes do not fit") };
    let span = Span { buffer, dtype: Dtype::U32, offset: 0, len: 16 };
    let beyond = Span { len: 17, ..span };
    let late = Span { offset: 60, len: 2, ..span };
    let huge = Span { len: usize::MAX / 2, ..span };
    let nowhere = Span { buffer: crate::memory::Buffer(u64::MAX), ..span };
    let mut invalid = |claim, result: Result<(), B::Error>| {
        let refused = result.is_err_and(|error| error.kind() == ErrorKind::Invalid);
        expect(line, claim, refused);
    };
    let bytes = vec![0; 68];
    invalid("a write of the wrong length is Invalid", backend.write(span, &bytes[..60]));
    invalid("a write past the end is Invalid", backend.write(beyond, &bytes));
    invalid("a write to no buffer is Invalid", backend.write(nowhere, &bytes[..64]));
    let mut out = [0; 68];
    invalid("a read of the wrong length is Invalid", backend.read(span, &mut out[..60]));
    invalid("a read past the end is Invalid", backend.read(late, &mut out[..8]));
    // A backend that queues may tell at the next sync.
    let result = backend.copy(span.first(4), span.slice(8, 5));
    invalid("a copy between lengths is Invalid", result.and_then(|()| backend.sync()));
    let result = backend.copy(span.first(8), span.slice(4, 8));
    invalid("a copy onto itself is Invalid", result.and_then(|()| backend.sync()));
    let result = backend.fill(huge, 0.0);
    invalid("a fill past the end is Invalid", result.and_then(|()| backend.sync()));
    let refused = backend.alloc(usize::MAX / 2).is_err_and(|error| error.kind() == ErrorKind::OutOfMemory);
    expect(line, "an impossible allocation is OutOfMemory", refused);
    let mut word = [1; 4];
    let usable =
        backend.write(span.first(1), &[5, 0, 0, 0]).and_then(|()| backend.read(span.first(1), &mut word));
    expect(line, "the backend goes on after an error", usable.is_ok() && word == [5, 0, 0, 0]);
}
