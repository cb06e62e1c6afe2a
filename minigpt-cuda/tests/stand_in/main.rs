//! The backend through cust on the stand-in driver, which keeps device memory on the host and runs streams as late as
//! it may. Nothing here needs or touches a GPU.

mod child;
mod model;

use child::{DRIVER, Driver, in_child};
use minigpt_core::backend::{Reference, read_elems, read_u32, write_elems};
use minigpt_core::conformance::crosses_threads;
use minigpt_core::op::{LinearForward, Op};
use minigpt_core::{Backend, BackendError, Buffer, Dtype, ErrorKind, Import, Span};
use minigpt_cuda::{Cuda, CudaError};

const _: () = crosses_threads::<Cuda>();

fn span(buffer: Buffer, dtype: Dtype, offset: usize, len: usize) -> Span {
    Span { buffer, dtype, offset, len }
}

fn words(buffer: Buffer, len: usize) -> Span {
    span(buffer, Dtype::U32, 0, len)
}

/// Bytes that differ from their neighbours.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn new_memory_is_zero() {
    in_child("new_memory_is_zero", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        for len in [1, 7, 4096] {
            let buffer = cuda.alloc(4 * len).unwrap();
            assert_eq!(read_u32(&mut cuda, words(buffer, len)).unwrap(), vec![0; len]);
        }
        cuda.alloc(0).unwrap();
    });
}

#[test]
fn a_read_returns_what_was_written_and_the_source_may_be_reused_at_once() {
    in_child(
        "a_read_returns_what_was_written_and_the_source_may_be_reused_at_once",
        Driver::StandIn,
        &[],
        || {
            let mut cuda = Cuda::new(0).unwrap();
            // The last is larger than the buffer that transfers pass through, and not a multiple of it.
            for (offset, len) in [(0, 1), (4, 33), (12, 1 << 10), (8, (9 << 20) / 4 + 1)] {
                let buffer = cuda.alloc(offset + 4 * len + 4).unwrap();
                let part = span(buffer, Dtype::U32, offset, len);
                let mut bytes = pattern(4 * len);
                cuda.write(part, &bytes).unwrap();
                bytes.fill(0xEE);
                let mut back = vec![0; 4 * len];
                cuda.read(part, &mut back).unwrap();
                assert!(back == pattern(4 * len), "{len} words at byte {offset}");
                let rest = span(buffer, Dtype::U32, offset + 4 * len, 1);
                assert_eq!(read_u32(&mut cuda, rest).unwrap(), [0], "the word behind it is untouched");
            }
        },
    );
}

#[test]
fn work_runs_in_the_order_in_which_it_was_given() {
    in_child("work_runs_in_the_order_in_which_it_was_given", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        let (a, b) = (cuda.alloc(64).unwrap(), cuda.alloc(64).unwrap());
        cuda.fill(words(a, 16), 7.0).unwrap();
        cuda.copy(words(a, 16), words(b, 16)).unwrap();
        cuda.fill(span(a, Dtype::F32, 8, 2), -1.5).unwrap();
        cuda.write(span(b, Dtype::U32, 4, 1), &9u32.to_le_bytes()).unwrap();
        cuda.copy(span(b, Dtype::U32, 0, 2), span(b, Dtype::U32, 8, 2)).unwrap();
        cuda.sync().unwrap();
        let half = (-1.5f32).to_bits();
        assert_eq!(read_u32(&mut cuda, words(a, 5)).unwrap(), [7, 7, half, half, 7]);
        assert_eq!(read_u32(&mut cuda, words(b, 5)).unwrap(), [7, 9, 7, 9, 7]);
    });
}

#[test]
fn quantised_spans_and_odd_lengths_are_carried_byte_by_byte() {
    in_child("quantised_spans_and_odd_lengths_are_carried_byte_by_byte", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        let buffer = cuda.alloc(200).unwrap();
        for (dtype, len) in [(Dtype::Q8_0, 64), (Dtype::Q4_0, 96), (Dtype::Bf16, 5), (Dtype::F64, 3)] {
            let part = span(buffer, dtype, 8, len);
            let bytes = pattern(part.bytes().unwrap());
            cuda.write(part, &bytes).unwrap();
            let mut back = vec![0; bytes.len()];
            cuda.read(part, &mut back).unwrap();
            assert_eq!(back, bytes, "{dtype:?}");
        }
        let imported = cuda.import(b"seven b").unwrap().buffer();
        let mut back = [0; 8];
        cuda.read(words(imported, 2), &mut back).unwrap();
        assert_eq!(&back, b"seven b\0");
    });
}

#[test]
fn an_op_falls_back_to_the_reference_bit_for_bit_and_is_counted() {
    fn product<B: Backend<Elem = f32>>(backend: &mut B) -> Result<Vec<f32>, B::Error> {
        let (rows, d_in, d_out) = (5, 7, 3);
        let buffer = backend.alloc(1024)?;
        let at = |offset, len| span(buffer, Dtype::F32, offset, len);
        let (x, weight, y) = (at(0, rows * d_in), at(256, d_out * d_in), at(512, rows * d_out));
        let numbers: Vec<f32> = (0..x.len).map(|i| (i as f32 + 0.3).sqrt() - 3.0).collect();
        write_elems(backend, x, &numbers)?;
        write_elems(backend, weight, &numbers[..weight.len])?;
        let (bias, activate, dropout, residual) = (None, None, None, None);
        let op = LinearForward { x, weight, bias, activate, dropout, residual, y, rows, d_in, d_out };
        backend.run(&Op::LinearForward(op))?;
        read_elems(backend, y)
    }
    in_child("an_op_falls_back_to_the_reference_bit_for_bit_and_is_counted", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        let (found, expected) = (product(&mut cuda).unwrap(), product(&mut Reference::new()).unwrap());
        assert!(expected.iter().all(|&y| y != 0.0));
        assert_eq!(found, expected);
        assert_eq!(cuda.fallbacks(), 1);
    });
}

#[test]
fn what_cannot_be_filled_is_refused() {
    in_child("what_cannot_be_filled_is_refused", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        let buffer = cuda.alloc(64).unwrap();
        let error = cuda.fill(span(buffer, Dtype::F64, 0, 4), 1.0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("F32, Bf16 and U32"), "{error}");
        for value in [0.5, -1.0, 4_294_967_296.0, f64::NAN] {
            assert_eq!(cuda.fill(words(buffer, 4), value).unwrap_err().kind(), ErrorKind::Invalid, "{value}");
        }
    });
}

#[test]
fn spans_outside_their_buffer_are_invalid() {
    in_child("spans_outside_their_buffer_are_invalid", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        let (buffer, odd, gone) = (cuda.alloc(64).unwrap(), cuda.alloc(63).unwrap(), cuda.alloc(64).unwrap());
        cuda.release(gone).unwrap();
        assert_ne!(cuda.alloc(64).unwrap(), gone, "a number comes once");
        let inside = words(buffer, 4);
        for bad in [
            words(buffer, 17),
            words(odd, 16),
            span(buffer, Dtype::U32, 52, 4),
            span(buffer, Dtype::U32, usize::MAX - 3, 4),
            span(buffer, Dtype::U32, 0, usize::MAX),
            span(buffer, Dtype::U32, 2, 4),
            words(gone, 4),
            words(Buffer(u64::MAX), 4),
        ] {
            let invalid = |result: Result<(), CudaError>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
            };
            let mut bytes = vec![0; bad.bytes().filter(|&bytes| bytes < 100).unwrap_or(0)];
            invalid(cuda.write(bad, &bytes));
            invalid(cuda.read(bad, &mut bytes));
            invalid(cuda.fill(bad, 0.0));
            invalid(cuda.copy(bad, inside));
            invalid(cuda.copy(inside, bad));
        }
        let kind = |result: Result<(), CudaError>| result.unwrap_err().kind();
        assert_eq!(kind(cuda.write(inside, &[0; 15])), ErrorKind::Invalid);
        assert_eq!(kind(cuda.read(inside, &mut [0; 17])), ErrorKind::Invalid);
        assert_eq!(kind(cuda.copy(inside, span(buffer, Dtype::U32, 12, 4))), ErrorKind::Invalid);
        assert_eq!(kind(cuda.copy(inside, span(buffer, Dtype::F32, 32, 4))), ErrorKind::Invalid);
        assert_eq!(kind(cuda.copy(inside, span(buffer, Dtype::U32, 32, 3))), ErrorKind::Invalid);
        assert_eq!(kind(cuda.release(gone)), ErrorKind::Invalid);
    });
}

#[test]
fn an_allocation_that_does_not_fit_is_out_of_memory_and_breaks_nothing() {
    let small = [("MINIGPT_STAND_IN_MEMORY", "1000000")];
    in_child(
        "an_allocation_that_does_not_fit_is_out_of_memory_and_breaks_nothing",
        Driver::StandIn,
        &small,
        || {
            let mut cuda = Cuda::new(0).unwrap();
            let kept = cuda.alloc(400_000).unwrap();
            cuda.fill(words(kept, 100_000), 3.0).unwrap();
            let error = cuda.alloc(600_001).unwrap_err();
            assert_eq!(error, CudaError::OutOfMemory { bytes: 600_001, free: 600_000 });
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            assert!(error.to_string().contains("smaller batch"), "{error}");
            assert!(read_u32(&mut cuda, words(kept, 100_000)).unwrap().iter().all(|&word| word == 3));
            cuda.release(kept).unwrap();
            assert_eq!(cuda.free_bytes().unwrap(), 1_000_000);
            cuda.alloc(600_001).unwrap();
        },
    );
}

#[test]
fn memory_is_given_back_only_when_the_work_on_it_is_done() {
    in_child("memory_is_given_back_only_when_the_work_on_it_is_done", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        let buffer = cuda.alloc(64).unwrap();
        cuda.fill(words(buffer, 16), 1.0).unwrap();
        cuda.release(buffer).unwrap();
        cuda.sync().unwrap();
    });
}

#[test]
fn a_backend_may_move_between_threads_and_outlive_another() {
    in_child("a_backend_may_move_between_threads_and_outlive_another", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        let other = Cuda::new(0).unwrap();
        let buffer = cuda.alloc(4).unwrap();
        let mut cuda = std::thread::spawn(move || {
            cuda.fill(words(buffer, 1), 5.0).unwrap();
            cuda
        })
        .join()
        .unwrap();
        drop(other);
        assert_eq!(read_u32(&mut cuda, words(buffer, 1)).unwrap(), [5]);
        std::thread::spawn(move || drop(cuda)).join().unwrap();
        Cuda::new(0).unwrap().alloc(4).unwrap();
    });
}

#[test]
fn a_launch_on_the_stand_in_is_refused_with_a_reason() {
    in_child("a_launch_on_the_stand_in_is_refused_with_a_reason", Driver::StandIn, &[], || {
        let mut cuda = Cuda::new(0).unwrap();
        assert!(cuda.name().contains("no device"), "{}", cuda.name());
        let error = cuda.check_launch().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("stand-in"), "{error}");
        cuda.sync().unwrap();
    });
}

#[test]
fn without_a_driver_it_is_unavailable_and_says_what_to_do() {
    let nowhere = Driver::At("/nonexistent/libcuda.so.1");
    in_child("without_a_driver_it_is_unavailable_and_says_what_to_do", nowhere, &[], || {
        let error = Cuda::new(0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let message = error.to_string();
        for part in ["/nonexistent/libcuda.so.1", "install NVIDIA's driver", DRIVER] {
            assert!(message.contains(part), "{message}");
        }
    });
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn a_library_that_is_no_driver_is_unavailable() {
    in_child("a_library_that_is_no_driver_is_unavailable", Driver::At("libc.so.6"), &[], || {
        let error = Cuda::new(0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("cuInit"), "{error}");
    });
}

#[test]
fn a_device_that_is_not_there_is_unavailable() {
    in_child("a_device_that_is_not_there_is_unavailable", Driver::StandIn, &[], || {
        let error = Cuda::new(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("no device 1, the driver sees 1"), "{error}");
    });
}

#[test]
fn a_driver_without_devices_is_unavailable() {
    let fail = [("MINIGPT_STAND_IN_FAIL", "cuInit=100")];
    in_child("a_driver_without_devices_is_unavailable", Driver::StandIn, &fail, || {
        let error = Cuda::new(0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("the driver sees 0"), "{error}");
    });
}

#[test]
fn a_driver_that_does_not_start_is_unavailable_and_its_answer_is_told() {
    let fail = [("MINIGPT_STAND_IN_FAIL", "cuInit=803")];
    in_child(
        "a_driver_that_does_not_start_is_unavailable_and_its_answer_is_told",
        Driver::StandIn,
        &fail,
        || {
            let error = Cuda::new(0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"), "{error}");
        },
    );
}

#[test]
fn a_failure_of_the_driver_is_a_device_error() {
    let fail = [("MINIGPT_STAND_IN_FAIL", "cuStreamSynchronize=700")];
    in_child("a_failure_of_the_driver_is_a_device_error", Driver::StandIn, &fail, || {
        let mut cuda = Cuda::new(0).unwrap();
        let error = cuda.sync().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(matches!(error, CudaError::Driver { code: 700, .. }), "{error}");
        let buffer = cuda.alloc(4).unwrap();
        let empty = cuda.read(words(buffer, 0), &mut []).unwrap_err();
        assert_eq!(empty, error, "reading nothing waits too");
        assert!(
            error.to_string().contains("finish the work that was queued: IllegalAddress (700)"),
            "{error}"
        );
    });
}

#[test]
fn a_code_that_cust_does_not_know_is_told_as_unknown() {
    // 912 came with CUDA 12.
    let fail = [("MINIGPT_STAND_IN_FAIL", "cuStreamSynchronize=912")];
    in_child("a_code_that_cust_does_not_know_is_told_as_unknown", Driver::StandIn, &fail, || {
        let error = Cuda::new(0).unwrap().sync().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(matches!(error, CudaError::Driver { code: 999, .. }), "{error}");
    });
}
