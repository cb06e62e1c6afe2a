//! What the reader and the writer allocate. One test, because it counts what the whole process allocates.

#[path = "support/heap.rs"]
mod heap;
#[path = "support/models.rs"]
#[expect(dead_code, reason = "shared with the golden files")]
mod models;
#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use heap::peak;
use minigpt_core::checkpoint::{self, Checkpoint, Contents, Limits, Read, Role, Stream, TensorSpec, Write};
use minigpt_core::{Dtype, GptConfig, Model, Reference};
use support::*;

struct Nowhere;

impl Write for Nowhere {
    type Error = ();

    fn write_all(&mut self, _: &[u8]) -> Result<(), ()> {
        Ok(())
    }
}

#[test]
fn memory_is_bounded_by_the_header() {
    let small = || conf(4, 0.0, 1e-5);
    let claims = |count: u64| [varint(count), vec![1; 100]].concat();
    let empty_entries = |count: usize| [varint(count as u64), vec![0; 2 * count]].concat();
    let short_entries = |count: usize| [varint(count as u64), [1, b'k', 0].repeat(count)].concat();
    let long_text = [vec![1], varint(u64::from(u32::MAX)), vec![b'a'; 100]].concat();
    let hostile = [
        header(2, &[(b"CONF", 1, small()), (b"TENS", 1, claims(u32::MAX.into()))]),
        header(2, &[(b"CONF", 1, small()), (b"TENS", 1, claims(12))]),
        header(2, &[(b"CONF", 1, small()), (b"TENS", 1, varint(0)), (b"META", 0, claims(u32::MAX.into()))]),
        // Entries that take no byte but those of their lengths: refused before there is room for any.
        header(2, &[(b"CONF", 1, small()), (b"TENS", 1, varint(0)), (b"META", 0, empty_entries(50_000))]),
        // More entries than anybody needs.
        header(2, &[(b"CONF", 1, small()), (b"TENS", 1, varint(0)), (b"META", 0, short_entries(70_000))]),
        header(2, &[(b"CONF", 1, small()), (b"TENS", 1, varint(0)), (b"TOKN", 0, long_text)]),
        header(
            2,
            &[(b"CONF", 1, small()), (b"TENS", 1, [varint(1), record("a", 1, 1 << 30, 0, 1 << 32)].concat())],
        ),
    ];
    for (i, file) in hostile.iter().enumerate() {
        let (bytes, result) = peak(|| Checkpoint::open_verified(file).map(|_| ()));
        assert!(result.is_err(), "{i}");
        assert!(bytes < 4096, "hostile header {i} of {} bytes made the reader take {bytes}", file.len());
    }

    // Four billion layers, and no tensors to back them.
    let file = header(2, &[(b"CONF", 1, conf(u32::MAX.into(), 0.0, 1e-5)), (b"TENS", 1, varint(0))]);
    let (bytes, result) = peak(|| Checkpoint::open_verified(&file).unwrap().parameters().map(|_| ()));
    assert!(result.is_err() && bytes < 4096, "{bytes} bytes, {result:?}");

    // The densest header: as many of the shortest entries as fit.
    let count = 50_000;
    let file =
        header(2, &[(b"CONF", 1, small()), (b"TENS", 1, varint(0)), (b"META", 0, short_entries(count))]);
    let (bytes, result) = peak(|| Checkpoint::open_verified(&file).map(|c| c.metadata().len()));
    assert_eq!(result, Ok(50_000));
    assert!(bytes < 12 * file.len(), "{bytes} bytes for {}", file.len());

    // As many of the shortest names of frozen parameters as fit.
    let training = [vec![1, 1, 1], vec![0; 16], vec![0, 0, 2], vec![0; 40], vec![0; 18]].concat();
    let descent = [vec![1], vec![0; 8], vec![0], vec![0; 16]].concat();
    let frozen = [varint(5_000), string("ln_f.bias").repeat(5_000)].concat();
    let optimizers = [descent.repeat(4), vec![0], frozen].concat();
    let sections =
        [(b"CONF", 1, small()), (b"TRAN", 0, training), (b"OPTM", 0, optimizers), (b"TENS", 1, varint(0))];
    let file = header(2, &sections);
    let (bytes, result) =
        peak(|| Checkpoint::open_verified(&file).map(|c| c.training().unwrap().frozen.len()));
    assert_eq!(result, Ok(5_000));
    assert!(bytes < 12 * file.len(), "{bytes} bytes for {}", file.len());

    // 100 MB of tensors: one chunk to write them, and nothing to open them.
    let config = GptConfig::new(256, 4);
    let tensors: Vec<TensorSpec> = (0..100)
        .map(|i| TensorSpec {
            name: format!("t{i}"),
            role: Role::Training,
            dtype: Dtype::F32,
            rows: 500,
            cols: 500,
        })
        .collect();
    let contents =
        Contents { config: &config, tokenizer: None, training: None, metadata: &[], tensors: &tensors };
    let zeros = |_: usize, _: usize, bytes: &mut [u8]| {
        bytes.fill(0);
        Ok::<(), ()>(())
    };
    let (bytes, result) = peak(|| checkpoint::write(Nowhere, &contents, zeros));
    assert_eq!(result, Ok(()));
    assert!(bytes < 64 << 10, "writing took {bytes} bytes");
    let mut file = Vec::new();
    checkpoint::write(&mut file, &contents, zeros).unwrap();
    let (bytes, tensors) = peak(|| Checkpoint::open(&file).unwrap().tensors().len());
    assert_eq!(tensors, 100);
    assert!(bytes < 16 << 10, "opening took {bytes} bytes");

    what_comes_in_is_never_in_memory_twice();
    a_stream_takes_memory_as_it_comes();
}

/// A model's file is read into the model, by way of a chunk.
fn what_comes_in_is_never_in_memory_twice() {
    let config = GptConfig { layers: 2, heads: 2, d_model: 256, d_ff: 1024, ..GptConfig::new(300, 100) };
    for format in [Dtype::F32, Dtype::F16, Dtype::Q8_0] {
        let file = models::checkpoint_of(&config, format, None, &[]);
        let mut header = Vec::new();
        let (bytes, model) = peak(|| {
            let stream = Stream::open(&file[..], &mut header, &Limits::DEFAULT).unwrap();
            Model::load_from(Reference::<f32>::new(), stream).unwrap()
        });
        assert_eq!(model.config(), &config);
        let most = file.len() + (96 << 10);
        assert!(bytes < most, "{bytes} bytes for a file of {} in {format:?}", file.len());
    }
}

/// Brings the bytes of a file again and again.
struct Endless<'a>(core::iter::Cycle<core::slice::Iter<'a, u8>>);

impl Read for Endless<'_> {
    type Error = ();

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, ()> {
        bytes.iter_mut().zip(&mut self.0).for_each(|(to, from)| *to = *from);
        Ok(bytes.len())
    }
}

fn a_stream_takes_memory_as_it_comes() {
    // It claims a header of 4 GB, and ends.
    let mut file = header(2, &[(b"CONF", 1, conf(4, 0.0, 1e-5)), (b"TENS", 1, varint(0))]);
    file[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut buffer = Vec::new();
    let (bytes, result) = peak(|| Stream::open(&file[..], &mut buffer, &Limits::NONE).map(|_| ()));
    assert!(result.is_err());
    assert!(bytes <= 128 << 10, "{bytes} bytes for a header that did not come");

    // It claims one within the limits, and brings it, but never a right checksum.
    file[8..12].copy_from_slice(&(1u32 << 20).to_le_bytes());
    let mut buffer = Vec::new();
    let limits = Limits { header: 1 << 20, ..Limits::DEFAULT };
    let (bytes, result) =
        peak(|| Stream::open(Endless(file.iter().cycle()), &mut buffer, &limits).map(|_| ()));
    assert!(result.is_err());
    // While a Vec grows, old and new are there.
    assert!(bytes <= 3 << 20, "{bytes} bytes for a header of a mebibyte");

    // It claims more than may be claimed, and nothing is allocated for it.
    let tensors = [varint(1), record("a", 1 << 20, 1 << 20, 0, 4 << 40)].concat();
    let file = header(2, &[(b"CONF", 1, conf(4, 0.0, 1e-5)), (b"TENS", 1, tensors)]);
    let mut buffer = Vec::new();
    let (bytes, result) = peak(|| Stream::open(&file[..], &mut buffer, &Limits::DEFAULT).map(|_| ()));
    assert!(result.unwrap_err().to_string().contains("its payload would be 4398046511104"));
    assert!(bytes <= 128 << 10, "{bytes} bytes");
}
