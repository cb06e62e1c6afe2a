//! Writing: the header in one piece, the tensors in chunks.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use postcard::ser_flavors::Flavor;
use serde::Serialize;

use super::crc::{Crc, crc32};
use super::format::{
    ALIGN, CHUNK, CONF, CRC, MAGIC, META, OPTM, PREAMBLE, REQUIRED, TENS, TOKN, TRAN, VERSION, WireConfig,
    WireGroup, WirePrecision, WireTensor, WireTokenizer, WireTraining, chunk_of, has_optimizers,
    tensor_bytes,
};
use super::header::Header;
use super::{Fault, Limits, Role, SaveError, Training, Write};
use crate::config::{GptConfig, Groups, Precision};
use crate::memory::Dtype;
use crate::plan::Plan;
use crate::tokenizer::AnyTokenizer;

/// A tensor that is to be written: what the index says of it. Its bytes are read when they are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, 1 to 255 bytes, its own in the checkpoint.
    pub name: String,
    /// What it is for. Parameters come before what only training needs.
    pub role: Role,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Rows; 1 for a vector. At least 1.
    pub rows: usize,
    /// Columns, without the padding of quantised types. At least 1.
    pub cols: usize,
}

impl TensorSpec {
    /// The parameters of a model, in the order of `plan.parameters.list()`.
    pub fn parameters(plan: &Plan) -> Vec<TensorSpec> {
        let spec = |tensor: &crate::plan::Tensor| TensorSpec {
            name: tensor.name.clone(),
            role: Role::Parameter,
            dtype: plan.elem,
            rows: tensor.rows,
            cols: tensor.cols,
        };
        plan.parameters.list().into_iter().map(spec).collect()
    }

    /// The parameters of a model, then what is kept of those that are [trained](Plan::trained), one kind after the other: with
    /// AdamW the first moments and then the second ones. Each in the order of `plan.parameters.list()`.
    pub fn training(plan: &Plan) -> Vec<TensorSpec> {
        let mut all = TensorSpec::parameters(plan);
        all.extend(plan.kept().map(|(state, tensor, _)| TensorSpec {
            name: format!("{state}/{}", tensor.name),
            role: Role::Training,
            dtype: plan.elem,
            rows: tensor.rows,
            cols: tensor.cols,
        }));
        all
    }
}

/// All of a checkpoint but the bytes of its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents<'a> {
    /// The model's shape.
    pub config: &'a GptConfig,
    /// What turns text into the model's tokens.
    pub tokenizer: Option<&'a AnyTokenizer>,
    /// What a run needs to continue.
    pub training: Option<&'a Training>,
    /// Keys and values for the program's own use, in any order. Keys are not empty.
    pub metadata: &'a [(&'a str, &'a str)],
    /// The tensors, in the order in which they are written.
    pub tensors: &'a [TensorSpec],
}

/// Writes a checkpoint to `out`.
///
/// `read(i, offset, bytes)` must fill `bytes` with the little-endian bytes of tensor `i` of
/// `contents.tensors`, from byte `offset` of the tensor on. It is asked for whole elements (whole blocks of a
/// quantised type), from the first to the last, at most 32 KiB at once. **Each tensor is read twice**: its
/// checksum stands in the header, before the payload, so that a reader can check a tensor while it comes in.
/// The first pass makes the checksums, the second one writes and makes them again.
///
/// The same contents write the same bytes. Beside the header, one chunk is kept in memory.
///
/// # Errors
/// [`SaveError::Invalid`], before anything is written, if [`Checkpoint::open`](super::Checkpoint::open) would
/// refuse the result whatever its [`Limits`]; else if `read` or `out` fails, a tensor changes between the passes, or
/// memory is short.
///
/// ```
/// use minigpt_core::checkpoint::{self, Checkpoint, Contents, Role, TensorSpec};
/// use minigpt_core::{ByteTokenizer, Dtype, GptConfig};
///
/// let config = GptConfig::new(256, 8);
/// let tensors = [TensorSpec {
///     name: "note".into(), role: Role::Training, dtype: Dtype::U32, rows: 1, cols: 2,
/// }];
/// let contents = Contents {
///     config: &config,
///     tokenizer: Some(&ByteTokenizer.into()),
///     training: None,
///     metadata: &[("corpus", "plays")],
///     tensors: &tensors,
/// };
/// let stored = [7, 0, 0, 0, 9, 0, 0, 0];
/// let mut file = Vec::new();
/// checkpoint::write(&mut file, &contents, |_, offset, bytes| {
///     bytes.copy_from_slice(&stored[offset..][..bytes.len()]);
///     Ok::<(), core::convert::Infallible>(())
/// })?;
///
/// let checkpoint = Checkpoint::open_verified(&file)?;
/// assert_eq!(checkpoint.config(), &config);
/// assert_eq!(checkpoint.metadata(), [("corpus", "plays")]);
/// assert_eq!(checkpoint.tensor("note").unwrap().bytes, stored);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write<W: Write, R>(
    mut out: W,
    contents: &Contents<'_>,
    mut read: impl FnMut(usize, usize, &mut [u8]) -> Result<(), R>,
) -> Result<(), SaveError<R, W::Error>> {
    let places = lay_out(contents.tensors)?;
    let mut chunk = Vec::new();
    let largest = places.iter().map(|place| place.length).max().unwrap_or(0).min(CHUNK);
    chunk.try_reserve_exact(largest).map_err(|_| SaveError::OutOfMemory { bytes: largest })?;
    chunk.resize(largest, 0);

    let mut crcs = Vec::new();
    let bytes = places.len() * size_of::<u32>();
    crcs.try_reserve_exact(places.len()).map_err(|_| SaveError::OutOfMemory { bytes })?;
    crcs.resize(places.len(), 0);
    // One set of rules for both directions: what cannot be opened is not written. No rule depends on the
    // checksums, which are still zero here.
    Header::parse(&header(contents, &places, &crcs)?, &Limits::NONE).map_err(|error| error.fault)?;

    for (i, spec) in contents.tensors.iter().enumerate() {
        crcs[i] = stream(spec, i, places[i].length, &mut chunk, &mut read, |_| Ok(()))?;
    }
    let header = header(contents, &places, &crcs)?;
    out.write_all(&header).map_err(SaveError::Write)?;
    pad(&mut out, header.len())?;
    for (i, spec) in contents.tensors.iter().enumerate() {
        let length = places[i].length;
        let crc = stream(spec, i, length, &mut chunk, &mut read, |bytes| out.write_all(bytes))?;
        if crc != crcs[i] {
            return Err(SaveError::Changed { tensor: spec.name.clone() });
        }
        pad(&mut out, length)?;
    }
    Ok(())
}

/// Where a tensor lies in the payload.
struct Place {
    offset: u64,
    length: usize,
}

fn lay_out(tensors: &[TensorSpec]) -> Result<Vec<Place>, Fault> {
    let bytes = tensors.len().saturating_mul(size_of::<Place>());
    let mut places = Vec::new();
    places.try_reserve_exact(tensors.len()).map_err(|_| Fault::OutOfMemory { bytes })?;
    let mut offset = 0u64;
    for spec in tensors {
        let too_large = || Fault::TensorSize { name: spec.name.clone() };
        let length = tensor_bytes(spec.dtype, spec.rows as u64, spec.cols as u64).ok_or_else(too_large)?;
        let end = offset.checked_add(length).and_then(|end| end.checked_next_multiple_of(ALIGN as u64));
        let place = Place { offset, length: usize::try_from(length).map_err(|_| too_large())? };
        offset = end.ok_or_else(too_large)?;
        places.push(place);
    }
    Ok(places)
}

/// Reads tensor `i` chunk by chunk, passes each on to `sink`, and returns the checksum of all.
fn stream<R, E>(
    spec: &TensorSpec,
    i: usize,
    length: usize,
    chunk: &mut [u8],
    read: &mut impl FnMut(usize, usize, &mut [u8]) -> Result<(), R>,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<u32, SaveError<R, E>> {
    let step = chunk_of(spec.dtype);
    let mut crc = Crc::new();
    let mut offset = 0;
    while offset < length {
        let bytes = &mut chunk[..step.min(length - offset)];
        read(i, offset, bytes).map_err(|error| SaveError::Read { tensor: spec.name.clone(), error })?;
        crc.update(bytes);
        sink(bytes).map_err(SaveError::Write)?;
        offset += bytes.len();
    }
    Ok(crc.finalize())
}

/// Fills up with zeros what is `length` bytes long.
fn pad<W: Write, R>(out: &mut W, length: usize) -> Result<(), SaveError<R, W::Error>> {
    let zeros = length.wrapping_neg() % ALIGN;
    out.write_all(&[0; ALIGN][..zeros]).map_err(SaveError::Write)
}

fn header(contents: &Contents<'_>, places: &[Place], crcs: &[u32]) -> Result<Vec<u8>, Fault> {
    let mut header = Bytes(Vec::new());
    header.put(&MAGIC)?;
    header.put(&VERSION.to_le_bytes())?;
    header.put(&[0; 4])?;

    header.section(CONF, REQUIRED, |section| section.encode(&WireConfig::try_from(contents.config)?))?;
    if let Some(tokenizer) = contents.tokenizer {
        header.section(TOKN, 0, |section| section.encode_tokenizer(tokenizer))?;
    }
    if let Some(training) = contents.training {
        header.section(TRAN, 0, |section| section.encode(&WireTraining::try_from(training)?))?;
        if has_optimizers(training) {
            header.section(OPTM, 0, |section| {
                let Groups { embeddings, matrices, head, vectors } = &training.config.groups;
                for group in [embeddings, matrices, head, vectors] {
                    section.encode(&WireGroup::from(group))?;
                }
                section.encode(&training.config.average)?;
                section.encode(&training.frozen.len())?;
                training.frozen.iter().try_for_each(|name| section.encode(name))?;
                match training.config.precision {
                    Precision::F32 => Ok(()),
                    other => section.encode(&WirePrecision::from(other)),
                }
            })?;
        }
    }
    if !contents.metadata.is_empty() {
        header.section(META, 0, |section| {
            section.encode(&contents.metadata.len())?;
            contents.metadata.iter().try_for_each(|entry| section.encode(entry))
        })?;
    }
    header.section(TENS, REQUIRED, |section| {
        section.encode(&contents.tensors.len())?;
        for ((spec, place), &crc) in contents.tensors.iter().zip(places).zip(crcs) {
            let too_large = |_| Fault::TensorSize { name: spec.name.clone() };
            section.encode(&WireTensor {
                name: &spec.name,
                role: spec.role.into(),
                dtype: spec.dtype.into(),
                rows: u32::try_from(spec.rows).map_err(too_large)?,
                cols: u32::try_from(spec.cols).map_err(too_large)?,
                offset: place.offset,
                length: place.length as u64,
                crc,
            })?;
        }
        Ok(())
    })?;

    let length = u32::try_from(header.0.len() + CRC).map_err(|_| Fault::HeaderLength { found: u32::MAX })?;
    header.0[PREAMBLE - 4..PREAMBLE].copy_from_slice(&length.to_le_bytes());
    let crc = crc32(&header.0);
    header.put(&crc.to_le_bytes())?;
    Ok(header.0)
}

/// Grows without aborting when memory is short.
struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.0.write_all(bytes).map_err(|_| Fault::OutOfMemory { bytes: self.0.len() + bytes.len() })
    }

    fn encode<T: Serialize>(&mut self, value: &T) -> Result<(), Fault> {
        let bytes = self.0.len();
        // The wire structs always encode; only the room for their bytes can be missing.
        postcard::serialize_with_flavor(value, Growing(&mut self.0)).map_err(|_| Fault::OutOfMemory { bytes })
    }

    fn encode_tokenizer(&mut self, tokenizer: &AnyTokenizer) -> Result<(), Fault> {
        let mut text = String::new();
        let wire = match tokenizer {
            AnyTokenizer::Byte(_) => WireTokenizer::Bytes,
            AnyTokenizer::Char(tokenizer) => {
                let chars = tokenizer.chars();
                let bytes = chars.iter().map(|character| character.len_utf8()).sum();
                text.try_reserve_exact(bytes).map_err(|_| Fault::OutOfMemory { bytes })?;
                text.extend(chars);
                WireTokenizer::Chars(&text)
            }
        };
        self.encode(&wire)
    }

    fn section(
        &mut self,
        tag: [u8; 4],
        flags: u32,
        fill: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.put(&tag)?;
        self.put(&flags.to_le_bytes())?;
        self.put(&[0; 4])?;
        let begin = self.0.len();
        fill(self)?;
        let length = u32::try_from(self.0.len() - begin).map_err(|_| Fault::SectionLength { tag })?;
        self.0[begin - 4..begin].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }
}

/// Postcard's output, appended to a `Vec`.
struct Growing<'a>(&'a mut Vec<u8>);

impl Flavor for Growing<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.write_all(bytes).map_err(|_| postcard::Error::SerializeBufferFull)
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
