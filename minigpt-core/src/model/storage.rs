//! A model from a checkpoint, and a checkpoint from a model.

use alloc::vec::Vec;

use super::place::{Place, Places, nowhere, read_into, write_tensor};
use super::{Laid, Model, Weights};
use crate::backend::{Allocation, Backend, Device, Import, Imported};
use crate::checkpoint::{
    self, Checkpoint, Contents, Read, SaveError, Stream, StreamError, TensorSpec, TensorView, Training, Write,
};
use crate::config::{ConfigError, GptConfig, Precision};
use crate::error::{Error, out_of_memory};
#[cfg(target_has_atomic = "ptr")]
use crate::memory::SharedBytes;
use crate::memory::{Buffer, Dtype, InvalidOp, Span, zeros};
use crate::plan::{Parameters, Plan, Tensor};
use crate::real::Real;
use crate::reference::weights::decode_weight;
use crate::tokenizer::AnyTokenizer;

/// What a checkpoint carries besides the model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// What turns text into the model's tokens.
    pub tokenizer: Option<&'a AnyTokenizer>,
    /// Keys and values of the program's own.
    pub metadata: &'a [(&'a str, &'a str)],
}

/// What is saved of a model or of a run: tensors that lie on a backend.
pub(crate) struct Saved {
    pub(crate) config: GptConfig,
    pub(crate) training: Option<Training>,
    pub(crate) tensors: Vec<TensorSpec>,
    /// Where they lie, in the same order.
    pub(crate) spans: Vec<Span>,
}

impl Saved {
    fn contents<'s>(&'s self, extras: &Extras<'s>) -> Contents<'s> {
        Contents {
            config: &self.config,
            tokenizer: extras.tokenizer,
            training: self.training.as_ref(),
            metadata: extras.metadata,
            tensors: &self.tensors,
        }
    }

    /// Streams it to `out`.
    pub(crate) fn write<B: Backend, W: Write>(
        &self,
        device: &Device<B>,
        out: W,
        extras: &Extras<'_>,
    ) -> Result<(), SaveError<Error<B::Error>, W::Error>> {
        checkpoint::write(out, &self.contents(extras), |tensor, offset, bytes| {
            read_tensor(&mut *device.lock(), self.spans[tensor], offset, bytes)
        })
    }

    /// Replaces the file at `path` by it.
    #[cfg(feature = "std")]
    pub(crate) fn save<B: Backend>(
        &self,
        device: &Device<B>,
        path: &std::path::Path,
        extras: &Extras<'_>,
    ) -> Result<(), SaveError<Error<B::Error>, checkpoint::FileError>> {
        checkpoint::save(path, &self.contents(extras), |tensor, offset, bytes| {
            read_tensor(&mut *device.lock(), self.spans[tensor], offset, bytes)
        })
    }
}

/// Reads `bytes` of what `span` stores, from byte `offset` on; whole elements.
fn read_tensor<B: Backend>(
    backend: &mut B,
    span: Span,
    offset: usize,
    bytes: &mut [u8],
) -> Result<(), Error<B::Error>> {
    let (elements, unit) = span.dtype.unit();
    let piece = Span { offset: span.offset + offset, len: bytes.len() / unit * elements, ..span };
    backend.read(piece, bytes).map_err(Error::Backend)
}

/// Whether a matrix stored like this takes fewer bits than an f32.
fn is_narrow(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::Bf16 | Dtype::Q8_0 | Dtype::Q4_0)
}

/// Whether the ops read this parameter as it is stored: matrices also in fewer bits than the backend's numbers have.
fn is_readable<E: Real>(plan: &Plan, parameter: &Tensor, dtype: Dtype) -> bool {
    let added = Some(parameter) == plan.parameters.position_embedding.as_ref() || !parameter.is_matrix();
    dtype == E::DTYPE || is_narrow(dtype) && !added
}

/// `spans`, of which there are as many as the plan has parameters, in its order.
fn in_order(plan: &Plan, spans: Vec<Span>) -> Parameters<Span> {
    let mut next = spans.into_iter();
    let nowhere = Span { buffer: Buffer(u64::MAX), dtype: Dtype::U32, offset: 0, len: 0 };
    plan.parameters.map(|_| next.next().unwrap_or(nowhere))
}

/// A copy of a parameter on a device, stored as `dtype`. Row by row: blocks never straddle rows.
fn convert<B: Backend>(
    source: &Device<B>,
    tensor: &Tensor,
    from: Span,
    target: &Device<B>,
    dtype: Dtype,
) -> Result<(Span, Allocation<B>), Error<B::Error>> {
    let too_large = InvalidOp::Overflow { operand: "weight" };
    let row_bytes = |dtype: Dtype| dtype.bytes(dtype.padded(tensor.cols)).ok_or(too_large);
    let (mut stored, mut bytes) =
        (zeros("row", row_bytes(from.dtype)?)?, zeros::<u8>("row", row_bytes(dtype)?)?);
    let mut row: Vec<f64> = zeros("row", tensor.cols)?;
    let needed = bytes.len().checked_mul(tensor.rows).ok_or(too_large)?;
    let allocation = target.alloc(needed).map_err(|error| out_of_memory(needed, error))?;
    let padded = dtype.padded(tensor.cols);
    let to = allocation.span(dtype, tensor.rows * padded);
    for i in 0..tensor.rows {
        read_tensor(&mut *source.lock(), from, i * stored.len(), &mut stored)?;
        decode_weight(&stored, from.dtype, &mut row, 1, tensor.cols);
        checkpoint::encode_row(&row, dtype, &mut bytes).map_err(|col| Error::Unfit {
            tensor: tensor.name.clone(),
            row: i,
            col,
            dtype,
        })?;
        let row = Span { offset: i * bytes.len(), len: padded, ..to };
        target.lock().write(row, &bytes).map_err(Error::Backend)?;
    }
    Ok((to, allocation))
}

impl<B: Backend> Model<B> {
    /// A model with the weights of a checkpoint, copied to the backend in its own number type and ready to be trained
    /// further. Every byte is checked.
    ///
    /// # Errors
    /// If the checkpoint is damaged or its tensors do not fit its config, or memory does not suffice.
    pub fn load(device: impl Into<Device<B>>, checkpoint: &Checkpoint<'_>) -> Result<Self, Error<B::Error>> {
        checkpoint.verify()?;
        let tensors = checkpoint.parameters()?;
        let model = Self::empty(&device.into(), checkpoint.config().clone())?;
        for (tensor, (_, span)) in tensors.iter().zip(model.spans()) {
            write_tensor(model.device(), tensor, span)?;
        }
        Ok(model)
    }

    /// A model with the weights of a checkpoint that comes in tensor by tensor, each in the format that it is stored
    /// in, so that the model takes as much memory as its file has parameters. Every byte is checked.
    ///
    /// If all are stored in the backend's own number type, the model can be trained further; else it can only run.
    /// What no op reads as it is stored (vectors and learned positions in fewer bits) becomes the backend's type.
    ///
    /// # Errors
    /// If the stream ends early, is damaged or does not fit its config, or memory does not suffice.
    pub fn load_from<R: Read>(
        device: impl Into<Device<B>>,
        stream: Stream<'_, R>,
    ) -> Result<Self, StreamError<R::Error, Error<B::Error>>> {
        let (model, places) = Self::awaiting(&device.into(), &stream).map_err(StreamError::Load)?;
        read_into(stream, model.device(), &places)?;
        Ok(model)
    }

    /// A model without weights, and the places that those of `stream` have in it.
    fn awaiting<R: Read>(
        device: &Device<B>,
        stream: &Stream<'_, R>,
    ) -> Result<(Self, Places), Error<B::Error>> {
        let parameters = stream.parameters()?;
        let mut places = nowhere(stream.tensors())?;
        let model = if parameters.iter().all(|coming| coming.dtype == B::Elem::DTYPE) {
            Self::empty(device, stream.config().clone())?
        } else {
            let plan = Plan::smallest(stream.config(), B::Elem::DTYPE)?;
            let (mut spans, mut owned) =
                (Vec::with_capacity(parameters.len()), Vec::with_capacity(parameters.len()));
            for (coming, parameter) in parameters.iter().zip(plan.parameters.list()) {
                let kept = is_readable::<B::Elem>(&plan, parameter, coming.dtype);
                let dtype = if kept { coming.dtype } else { B::Elem::DTYPE };
                let len = parameter.rows * dtype.padded(parameter.cols);
                let bytes = dtype.bytes(len).ok_or(ConfigError::TooLarge { field: "parameters" })?;
                let allocation = device.alloc(bytes).map_err(|error| out_of_memory(bytes, error))?;
                spans.push(allocation.span(dtype, len));
                owned.push(allocation);
            }
            let spans = in_order(&plan, spans);
            Self::over(device, Laid { plan, spans, owned, trainable: None, copied: 0 })?
        };
        for (coming, (_, to)) in parameters.iter().zip(model.spans()) {
            places[coming.tensor] = Some(Place { to, dtype: coming.dtype, cols: coming.cols });
        }
        Ok((model, places))
    }

    /// A model that runs on the checkpoint's own bytes, in flash, in a mapped file or in a constant, if the backend can
    /// borrow them; else they are copied, and [`copied_bytes`](Model::copied_bytes) says how many. It cannot be
    /// trained. The weights are not read here, so they are not checked either: call [`Checkpoint::verify`] once on
    /// files that may be damaged.
    ///
    /// Any number of models can borrow the same bytes, on one device or each on its own; and any number of
    /// [`Decoder`](crate::Decoder)s can take turns on one model.
    ///
    /// Vectors (biases and the weights of norms) and learned positions must be stored in the backend's number type, other
    /// matrices in that or in fewer bits.
    ///
    /// # Errors
    /// If the tensors do not fit the config or are of other types, or the backend fails.
    ///
    /// ```
    /// use minigpt_core::{Checkpoint, Decoder, Model, Reference, SampleConfig, Sampler, Tokenizer};
    ///
    /// #[repr(align(64))] // So that numbers are aligned, and a CPU backend can read them where they lie.
    /// struct Aligned<T: ?Sized>(T);
    /// static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../tests/embed/model.mgpt"));
    ///
    /// let checkpoint = Checkpoint::open_verified(&MODEL.0)?;
    /// let tokenizer = checkpoint.tokenizer().ok_or("no tokenizer")?;
    /// let model = Model::borrow(Reference::<f32>::new(), &checkpoint)?;
    /// let mut decoder = Decoder::new(&model, 16)?;
    /// decoder.feed(&tokenizer.encode("a small model")?)?;
    /// let mut sampler = Sampler::new(SampleConfig::greedy(), tokenizer.vocab_size())?;
    /// let tokens: Vec<u32> = decoder.generate(&mut sampler).take(19).collect::<Result<_, _>>()?;
    /// assert_eq!(tokenizer.decode(&tokens)?, " speaks from flash.");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn borrow<'a>(
        device: impl Into<Device<B>>,
        checkpoint: &Checkpoint<'a>,
    ) -> Result<Self, Error<B::Error>>
    where
        B: Import<'a>,
    {
        Self::lent(&device.into(), checkpoint, |backend, tensor| backend.import(tensor.bytes))
    }

    /// As [`borrow`](Model::borrow), from bytes that the model keeps: so it may outlive whoever opened the file, and stand in a
    /// struct of its own. The file is let go with the last handle on the model.
    ///
    /// # Errors
    /// As [`borrow`](Model::borrow), or if the bytes are not a checkpoint.
    ///
    /// ```
    /// use minigpt_core::{Model, Reference, SharedBytes};
    /// fn open(file: Vec<u8>) -> Result<Model<Reference<f32>>, Box<dyn std::error::Error>> {
    ///     // Or a mapped file, which costs no memory.
    ///     Ok(Model::share(Reference::new(), &SharedBytes::new(file))?)
    /// }
    /// # assert!(open(std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/embed/model.mgpt"))?).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(target_has_atomic = "ptr")]
    pub fn share(device: impl Into<Device<B>>, file: &SharedBytes) -> Result<Self, Error<B::Error>> {
        let checkpoint = Checkpoint::open(file)?;
        Self::lent(&device.into(), &checkpoint, |backend, tensor| {
            backend.import_shared(file.slice(tensor.offset..tensor.offset + tensor.bytes.len()))
        })
    }

    fn lent<'a>(
        device: &Device<B>,
        checkpoint: &Checkpoint<'a>,
        mut import: impl FnMut(&mut B, &TensorView<'a>) -> Result<Imported, B::Error>,
    ) -> Result<Self, Error<B::Error>> {
        let tensors = checkpoint.parameters()?;
        let plan = Plan::smallest(checkpoint.config(), B::Elem::DTYPE)?;
        let (mut spans, mut owned) = (Vec::with_capacity(tensors.len()), Vec::with_capacity(tensors.len()));
        let mut copied = 0;
        for (tensor, parameter) in tensors.iter().zip(plan.parameters.list()) {
            if !is_readable::<B::Elem>(&plan, parameter, tensor.dtype) {
                let operand =
                    if is_narrow(tensor.dtype) { "a vector or learned positions" } else { "a matrix" };
                let (expected, found) = (B::Elem::DTYPE, tensor.dtype);
                return Err(InvalidOp::Dtype { operand, expected, found }.into());
            }
            let imported = import(&mut device.lock(), tensor).map_err(Error::Backend)?;
            if let Imported::Copied(_) = imported {
                copied += tensor.bytes.len();
            }
            let allocation = device.own(imported.buffer());
            spans.push(allocation.span(tensor.dtype, tensor.rows * tensor.dtype.padded(tensor.cols)));
            owned.push(allocation);
        }
        let spans = in_order(&plan, spans);
        Self::over(device, Laid { plan, spans, owned, trainable: None, copied })
    }

    /// The same model on a device, its own or another, with its matrices stored as `dtype`: F16, Bf16, Q8_0, Q4_0, or the
    /// backend's own number type. To be run or [written](Model::write), not trained. Vectors (biases and the weights of
    /// norms) and learned positions stay in the backend's number type. A row that does not fill its last block of 32 is
    /// padded.
    ///
    /// How numbers are rounded: [`encode_row`](checkpoint::encode_row). Of a model [in bf16](Model::in_precision) it is the
    /// weights themselves that are converted, and passes of the result round nothing.
    ///
    /// # Errors
    /// [`Error::Unfit`] if a weight is not finite or too large for the format; if a backend fails or `dtype` is not one
    /// of those.
    ///
    /// ```
    /// use minigpt_core::{Dtype, GptConfig, Model, Reference};
    /// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
    /// let model = Model::new(Reference::<f32>::new(), config, 1)?;
    /// let small = model.quantized(model.device(), Dtype::Q8_0)?;
    /// let (exact, near) = (model.logits(&[0, 1, 2], 1, 3)?, small.logits(&[0, 1, 2], 1, 3)?);
    /// assert!(exact.iter().zip(&near).all(|(a, b)| (a - b).abs() < 0.01));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn quantized(&self, device: impl Into<Device<B>>, dtype: Dtype) -> Result<Self, Error<B::Error>> {
        let (device, elem) = (device.into(), B::Elem::DTYPE);
        if !is_narrow(dtype) && dtype != elem {
            return Err(InvalidOp::Dtype { operand: "a matrix", expected: elem, found: dtype }.into());
        }
        let plan = Plan::smallest(self.config(), elem)?;
        let kept = |tensor: &Tensor| {
            !tensor.is_matrix() || Some(tensor) == plan.parameters.position_embedding.as_ref()
        };
        let (mut spans, mut owned) = (Vec::new(), Vec::new());
        for (tensor, from) in self.source().spans() {
            let dtype = if kept(tensor) { elem } else { dtype };
            let (span, allocation) = convert(self.device(), tensor, from, &device, dtype)?;
            spans.push(span);
            owned.push(allocation);
        }
        let spans = in_order(&plan, spans);
        Self::over(&device, Laid { plan, spans, owned, trainable: None, copied: 0 })
    }

    /// The model that one in another precision was made of, which has the weights themselves; or itself.
    fn source(&self) -> &Self {
        self.0.base.as_ref().unwrap_or(self)
    }

    /// What passes under this precision read. The memory of copies goes to `owned`.
    pub(super) fn weights_in(
        &self,
        precision: Precision,
        owned: &mut Vec<Allocation<B>>,
    ) -> Result<Weights, Error<B::Error>> {
        let mut spans = Vec::new();
        let added = self.0.tensors.position_embedding.as_ref();
        for (tensor, from) in self.spans() {
            let read_whole = precision == Precision::F32 || !tensor.is_matrix() || Some(tensor) == added;
            if read_whole || is_narrow(from.dtype) {
                spans.push(from);
                continue;
            }
            let (span, allocation) = convert(self.device(), tensor, from, self.device(), Dtype::Bf16)?;
            spans.push(span);
            owned.push(allocation);
        }
        let mut next = spans.into_iter();
        let parameters = self.weights().parameters.map(|own| next.next().unwrap_or(*own));
        Ok(Weights { parameters, position_table: self.weights().position_table })
    }

    /// Writes a checkpoint of the weights, for inference.
    ///
    /// # Errors
    /// If the backend or `out` fails, the extras do not fit the model, or another handle trains it meanwhile.
    pub fn write<W: Write>(
        &self,
        out: W,
        extras: &Extras<'_>,
    ) -> Result<(), SaveError<Error<B::Error>, W::Error>> {
        self.saved().write(self.device(), out, extras)
    }

    /// [`write`](Model::write) to a file, atomically: see [`checkpoint::save`].
    ///
    /// # Errors
    /// If the backend or the disk fails; what was at `path` is still there then.
    #[cfg(feature = "std")]
    pub fn save(
        &self,
        path: impl AsRef<std::path::Path>,
        extras: &Extras<'_>,
    ) -> Result<(), SaveError<Error<B::Error>, checkpoint::FileError>> {
        self.saved().save(self.device(), path.as_ref(), extras)
    }

    fn saved(&self) -> Saved {
        let (tensors, spans) = self
            .source()
            .spans()
            .map(|(tensor, span)| {
                let role = checkpoint::Role::Parameter;
                let (name, rows, cols) = (tensor.name.clone(), tensor.rows, tensor.cols);
                (TensorSpec { name, role, dtype: span.dtype, rows, cols }, span)
            })
            .unzip();
        Saved { config: self.config().clone(), training: None, tensors, spans }
    }
}
