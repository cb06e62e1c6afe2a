//! What is written can be opened, is equal, and is written again as the same bytes.

use core::convert::Infallible;

use arbitrary::{Result, Unstructured};
use minigpt_core::checkpoint::{self, Contents, Limits, Role, SaveError, TensorSpec, TrainState, Training};
use minigpt_core::{AnyTokenizer, ByteTokenizer, CharTokenizer, Checkpoint, Dtype};

use super::draw;

/// The contents of a checkpoint.
pub fn checkpoint_roundtrip(data: &[u8]) {
    let _ = roundtrip(&mut Unstructured::new(data));
}

fn roundtrip(u: &mut Unstructured<'_>) -> Result<()> {
    let config = draw::config(u, |u| Ok(draw::tiny(u)? * if u.ratio(1, 8)? { 97 } else { 1 }))?;
    let tokenizer: Option<AnyTokenizer> = match u.int_in_range(0..=2)? {
        0 => None,
        1 => Some(ByteTokenizer.into()),
        _ => CharTokenizer::from_text(u.arbitrary()?).ok().map(AnyTokenizer::from),
    };
    let training = if u.arbitrary()? {
        let state = TrainState { counters: u.arbitrary()?, windows_drawn: u.arbitrary()? };
        let config = draw::train_config(u)?;
        let frozen = if u.arbitrary()? { u.arbitrary()? } else { Vec::new() };
        Some(Training { config, state, frozen })
    } else {
        None
    };
    let metadata: Vec<(&str, &str)> =
        (0..u.int_in_range(0..=3)?).map(|_| u.arbitrary()).collect::<Result<_>>()?;
    let tensors = (0..u.int_in_range(0..=4)?).map(|_| tensor(u)).collect::<Result<Vec<_>>>()?;
    let contents = Contents {
        config: &config,
        tokenizer: tokenizer.as_ref(),
        training: training.as_ref(),
        metadata: &metadata,
        tensors: &tensors,
    };

    let mut file = Vec::new();
    let made = |tensor: usize, offset: usize, bytes: &mut [u8]| {
        bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (tensor * 31 + (offset + i) * 7) as u8);
        Ok::<(), Infallible>(())
    };
    match checkpoint::write(&mut file, &contents, made) {
        Ok(()) => {}
        Err(SaveError::Invalid(fault)) => {
            assert!(file.is_empty(), "{fault}: what cannot be opened is not begun");
            return Ok(());
        }
        Err(error) => panic!("{error}"),
    }

    let opened = Checkpoint::open_within(&file, &Limits::NONE);
    let opened = opened.unwrap_or_else(|error| panic!("{contents:?}: {error}"));
    assert_eq!(opened.verify(), Ok(()));
    assert_eq!(opened.config(), &config);
    assert_eq!(opened.tokenizer(), tokenizer.as_ref());
    // Compared as text, because settings may be NaN: whoever trains with them checks them.
    assert_eq!(format!("{:?}", opened.training()), format!("{:?}", training.as_ref()));
    assert_eq!(opened.metadata(), metadata);
    let stored: Vec<_> = opened.tensors().collect();
    let specs = stored.iter().map(|t| TensorSpec {
        name: t.name.into(),
        role: t.role,
        dtype: t.dtype,
        rows: t.rows,
        cols: t.cols,
    });
    let specs: Vec<TensorSpec> = specs.collect();
    assert_eq!(specs, tensors);
    for (i, tensor) in stored.iter().enumerate() {
        let mut expected = vec![0; tensor.bytes.len()];
        let Ok(()) = made(i, 0, &mut expected);
        assert_eq!(tensor.bytes, expected);
    }

    let again = Contents {
        config: opened.config(),
        tokenizer: opened.tokenizer(),
        training: opened.training(),
        metadata: opened.metadata(),
        tensors: &specs,
    };
    let mut copy = Vec::new();
    let from_file = |tensor: usize, offset: usize, bytes: &mut [u8]| {
        bytes.copy_from_slice(&stored[tensor].bytes[offset..][..bytes.len()]);
        Ok::<(), Infallible>(())
    };
    checkpoint::write(&mut copy, &again, from_file).expect("it was written before");
    assert!(copy == file, "the same contents are the same bytes");
    Ok(())
}

/// Not always one that can be stored.
fn tensor(u: &mut Unstructured<'_>) -> Result<TensorSpec> {
    let dtypes = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::U32];
    let mut side = || -> Result<usize> {
        Ok(match u.arbitrary::<u8>()? {
            0..=252 => u.int_in_range(0..=40)?,
            253 => u.int_in_range(0..=300)?,
            _ => usize::MAX >> u.int_in_range(0..=63)?,
        })
    };
    let (rows, cols) = (side()?, side()?);
    // What can be counted is written, and a large one would only take time.
    let rows = if rows.saturating_mul(cols) > 20_000 && rows.checked_mul(cols).is_some() { 1 } else { rows };
    let cols = if rows == 1 { cols.min(20_000) } else { cols };
    Ok(TensorSpec {
        name: u.arbitrary()?,
        role: if u.arbitrary()? { Role::Training } else { Role::Parameter },
        dtype: *u.choose(&dtypes)?,
        rows,
        cols,
    })
}
