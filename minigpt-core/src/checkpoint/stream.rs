//! [`Stream`]: a checkpoint that comes in piece by piece.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::crc::Crc;
use super::format::{ALIGN, CHUNK, PREAMBLE, chunk_of};
use super::header::{Entry, Header};
use super::read::check_padding;
use super::{Fault, Limits, LoadError, Read, StreamError, Training};
use crate::config::GptConfig;
use crate::memory::Dtype;
#[cfg(feature = "train")]
use crate::plan::States;
use crate::tokenizer::AnyTokenizer;

/// A checkpoint that is read from a file, a memory card or a socket, and never lies in memory as a whole.
///
/// The header is read when it is opened. [`Model::load_from`](crate::Model::load_from) and
/// [`Trainer::resume_from`](crate::Trainer::resume_from) read the tensors, and put each where the backend has it. In
/// memory there are then the header, the model, and 32 KiB of a tensor.
///
/// ```
/// use minigpt_core::checkpoint::{Limits, Stream};
/// use minigpt_core::{GptConfig, Model, Reference, model::Extras};
///
/// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
/// let mut file = Vec::new();
/// Model::new(Reference::<f32>::new(), config, 1)?.write(&mut file, &Extras::default())?;
///
/// // A slice stands for the file here; `IoReader` makes a reader of any `std::io::Read`.
/// let mut header = Vec::new();
/// let stream = Stream::open(&file[..], &mut header, &Limits::of_length(file.len() as u64))?;
/// assert_eq!(stream.config().vocab_size, 5);
/// let mut model = Model::load_from(Reference::<f32>::new(), stream)?;
/// assert_eq!(model.logits(&[0, 1], 1, 2)?.len(), 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Stream<'h, R> {
    input: Input<R>,
    header: Header<'h>,
}

/// A tensor of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coming {
    /// Its number in the file.
    pub(crate) tensor: usize,
    pub(crate) dtype: Dtype,
    pub(crate) cols: usize,
}

impl<'h, R: Read> Stream<'h, R> {
    /// Reads the header into `header`, whose contents are replaced, and checks it.
    ///
    /// # Errors
    /// If `input` fails, or what it brings is not a checkpoint within the limits.
    pub fn open(input: R, header: &'h mut Vec<u8>, limits: &Limits) -> Result<Self, StreamError<R::Error>> {
        let mut input = Input { input, at: 0 };
        header.clear();
        input.append(header, PREAMBLE)?;
        let length = Header::length(header, limits).map_err(StreamError::Load)?;
        input.append(header, length)?;
        let header = Header::parse(header, limits).map_err(StreamError::Load)?;
        let claimed = limits.check_payload(header.payload_length);
        claimed.map_err(|fault| StreamError::Load(LoadError { offset: input.at, fault }))?;
        let end = header.file_length().map_err(StreamError::Load)?;
        input.skip_zeros(header.payload(), end)?;
        Ok(Stream { input, header })
    }

    /// The model's shape; valid.
    pub fn config(&self) -> &GptConfig {
        &self.header.config
    }

    /// What turns text into the model's tokens, if the checkpoint has it. At most `vocab_size` tokens.
    pub fn tokenizer(&self) -> Option<&AnyTokenizer> {
        self.header.tokenizer.as_ref()
    }

    /// What a run needs to continue, besides what optimizers keep, if the checkpoint has it. Its values are as they
    /// were saved: whoever trains with them checks them.
    pub fn training(&self) -> Option<&Training> {
        self.header.training.as_ref()
    }

    /// The program's own keys and values, as they were saved.
    pub fn metadata(&self) -> &[(&'h str, &'h str)] {
        &self.header.metadata
    }

    /// How many tensors there are.
    pub(crate) fn tensors(&self) -> usize {
        self.header.tensors.len()
    }

    /// [`Checkpoint::parameters`](super::Checkpoint::parameters), of which the bytes are yet to come.
    pub(crate) fn parameters(&self) -> Result<Vec<Coming>, LoadError> {
        Ok(self.header.parameters()?.into_iter().map(|tensor| self.coming(tensor)).collect())
    }

    /// [`Checkpoint::states`](super::Checkpoint::states), of which the bytes are yet to come.
    #[cfg(feature = "train")]
    pub(crate) fn states(&self) -> Result<Vec<Option<States<Coming>>>, LoadError> {
        let coming = |tensor| self.coming(tensor);
        Ok(self.header.states()?.into_iter().map(|states| states.map(|states| states.map(coming))).collect())
    }

    fn coming(&self, tensor: usize) -> Coming {
        let Entry { dtype, cols, .. } = self.header.tensors[tensor];
        Coming { tensor, dtype, cols }
    }

    /// Reads all tensors, from the first to the last, and hands them on in pieces of whole units:
    /// `take(i, offset, bytes)` gets the bytes of tensor `i` from byte `offset` on. Checks every byte.
    pub(crate) fn read_tensors<E: From<LoadError>>(
        mut self,
        mut take: impl FnMut(usize, usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), StreamError<R::Error, E>> {
        let load = |error: LoadError| StreamError::Load(E::from(error));
        let tensors = &self.header.tensors;
        let end = self.header.file_length().map_err(load)?;
        let largest = tensors.iter().map(|entry| entry.length).max().unwrap_or(0).min(CHUNK as u64) as usize;
        let mut chunk = Vec::new();
        let no_room = Fault::OutOfMemory { bytes: largest };
        chunk
            .try_reserve_exact(largest)
            .map_err(|_| load(LoadError { offset: self.input.at, fault: no_room }))?;
        chunk.resize(largest, 0);

        for (i, entry) in tensors.iter().enumerate() {
            let (begin, mut crc) = (self.input.at, Crc::new());
            let mut offset = 0;
            while offset < entry.length {
                let step = (entry.length - offset).min(chunk_of(entry.dtype) as u64) as usize;
                let bytes = &mut chunk[..step];
                self.input.fill(bytes, end).map_err(|error| error.map(E::from))?;
                crc.update(bytes);
                take(i, offset as usize, bytes).map_err(StreamError::Load)?;
                offset += step as u64;
            }
            let (stored, computed) = (entry.crc, crc.finalize());
            if stored != computed {
                let fault = Fault::TensorCrc { name: entry.name.to_string(), stored, computed };
                return Err(load(LoadError { offset: begin, fault }));
            }
            let next = self.input.at.next_multiple_of(ALIGN as u64);
            self.input.skip_zeros(next, end).map_err(|error| error.map(E::from))?;
        }
        self.input.end().map_err(|error| error.map(E::from))
    }
}

/// The reader, and how far it has come.
#[derive(Debug)]
struct Input<R> {
    input: R,
    at: u64,
}

impl<R: Read> Input<R> {
    /// Some bytes; none at the end.
    fn some(&mut self, bytes: &mut [u8]) -> Result<usize, StreamError<R::Error>> {
        let offset = self.at;
        let count = self.input.read(bytes).map_err(|error| StreamError::Read { offset, error })?;
        // A reader that counts more than there was room for is not believed.
        let count = count.min(bytes.len());
        self.at += count as u64;
        Ok(count)
    }

    /// Fills `bytes`; the file must have `needed` in all.
    fn fill(&mut self, bytes: &mut [u8], needed: u64) -> Result<(), StreamError<R::Error>> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.some(&mut bytes[filled..])? {
                0 => return Err(StreamError::Load(LoadError::truncated(needed, self.at))),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Reads on until `bytes` has `length` of them or there are no more. Room is made as they come: what claims to be
    /// long takes no memory before it is.
    fn append(&mut self, bytes: &mut Vec<u8>, length: usize) -> Result<(), StreamError<R::Error>> {
        while bytes.len() < length {
            let (have, more) = (bytes.len(), (length - bytes.len()).min(CHUNK));
            let no_room = LoadError { offset: self.at, fault: Fault::OutOfMemory { bytes: have + more } };
            bytes.try_reserve(more).map_err(|_| StreamError::Load(no_room))?;
            bytes.resize(have + more, 0);
            let count = self.some(&mut bytes[have..])?;
            bytes.truncate(have + count);
            if count == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Reads up to byte `next` of the file, at most 63 on, which must be zeros.
    fn skip_zeros(&mut self, next: u64, needed: u64) -> Result<(), StreamError<R::Error>> {
        let (begin, mut zeros) = (self.at, [0; ALIGN]);
        let zeros = &mut zeros[..(next - begin) as usize];
        self.fill(zeros, needed)?;
        check_padding(zeros, begin).map_err(StreamError::Load)
    }

    /// There must be no more.
    fn end(&mut self) -> Result<(), StreamError<R::Error>> {
        let offset = self.at;
        match self.some(&mut [0; ALIGN])? as u64 {
            0 => Ok(()),
            bytes => Err(StreamError::Load(LoadError { offset, fault: Fault::Trailing { bytes } })),
        }
    }
}
