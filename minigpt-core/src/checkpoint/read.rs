//! Reading: any bytes give a checkpoint or an error, in time and memory linear in their length.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use serde::Deserialize;

use super::format::{
    ALIGN, CONF, CRC, FIRST_MOMENT, MAGIC, MAX_NAME, META, PREFIX, REQUIRED, SECOND_MOMENT, SECTION_HEAD,
    TENS, TOKN, TRAN, VERSION, WireConfig, WireTensor, WireTokenizer, WireTraining, crc32, tensor_bytes,
};
use super::{Fault, LoadError, Role, Training};
use crate::backend::Dtype;
use crate::config::GptConfig;
use crate::plan::{Logits, Plan};
use crate::tokenizer::{AnyTokenizer, ByteTokenizer, CharTokenizer, Tokenizer};

/// A tensor of a checkpoint, in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Its name; a parameter's is that of [`crate::plan::Tensor`].
    pub name: &'a str,
    /// What it is for.
    pub role: Role,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns, without the padding of quantised types.
    pub cols: usize,
    /// Where it begins in the file; a multiple of 64.
    pub offset: usize,
    /// Its numbers, row by row, little-endian.
    pub bytes: &'a [u8],
}

/// A checkpoint, opened where it lies: in a `Vec`, in flash, in a mapped file.
///
/// [`open`](Checkpoint::open) reads the header and no tensor; [`verify`](Checkpoint::verify) reads all the
/// rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint<'a> {
    bytes: &'a [u8],
    /// Where the payload begins.
    payload: usize,
    header: Header<'a>,
}

impl<'a> Checkpoint<'a> {
    /// Opens a checkpoint, after checking its structure and the checksum of its header.
    ///
    /// # Errors
    /// If `bytes` are not a checkpoint that this version reads.
    pub fn open(bytes: &'a [u8]) -> Result<Self, LoadError> {
        let header = Header::parse(bytes)?;
        let truncated =
            |needed: u64| LoadError::new(bytes.len(), Fault::Truncated { needed, found: bytes.len() as u64 });
        // At most u32::MAX + 63.
        let payload = (header.length as u64).next_multiple_of(ALIGN as u64);
        let end = payload.checked_add(header.payload_length).ok_or_else(|| truncated(u64::MAX))?;
        let found = bytes.len() as u64;
        if found < end {
            return Err(truncated(end));
        }
        // Both fit in usize, being at most the length of the bytes.
        let (payload, end) = (payload as usize, end as usize);
        if found > end as u64 {
            return Err(LoadError::new(end, Fault::Trailing { bytes: found - end as u64 }));
        }
        check_padding(bytes, header.length, payload)?;
        Ok(Checkpoint { bytes, payload, header })
    }

    /// Opens a checkpoint and checks every byte of it.
    ///
    /// # Errors
    /// If `bytes` are not a checkpoint, whole and undamaged.
    pub fn open_verified(bytes: &'a [u8]) -> Result<Self, LoadError> {
        let checkpoint = Checkpoint::open(bytes)?;
        checkpoint.verify()?;
        Ok(checkpoint)
    }

    /// Checks each tensor's checksum, and that the bytes between tensors are zero.
    ///
    /// # Errors
    /// The first damage.
    pub fn verify(&self) -> Result<(), LoadError> {
        for (entry, tensor) in self.header.tensors.iter().zip(self.tensors()) {
            let computed = crc32(tensor.bytes);
            if computed != entry.crc {
                let fault = Fault::TensorCrc { name: entry.name.to_string(), stored: entry.crc, computed };
                return Err(LoadError::new(tensor.offset, fault));
            }
            let end = tensor.offset + tensor.bytes.len();
            check_padding(self.bytes, end, end.next_multiple_of(ALIGN))?;
        }
        Ok(())
    }

    /// The model's shape; valid.
    pub fn config(&self) -> &GptConfig {
        &self.header.config
    }

    /// What turns text into the model's tokens, if the checkpoint has it. At most `vocab_size` tokens.
    pub fn tokenizer(&self) -> Option<&AnyTokenizer> {
        self.header.tokenizer.as_ref()
    }

    /// What a run needs to continue, besides the moments, if the checkpoint has it. Its values are as they
    /// were saved: whoever trains with them checks them.
    pub fn training(&self) -> Option<&Training> {
        self.header.training.as_ref()
    }

    /// The program's own keys and values, as they were saved.
    pub fn metadata(&self) -> &[(&'a str, &'a str)] {
        &self.header.metadata
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'a>> + '_ {
        self.header.tensors.iter().map(|entry| self.view(entry))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'a>> {
        self.header.find(name).map(|entry| self.view(entry))
    }

    /// The model's parameters, in the order of [`Plan::parameters`]`.list()`, each with the shape that the
    /// config gives it.
    ///
    /// Only after this has succeeded is the number of layers known to be backed by tensors: a config alone
    /// may ask for billions, and a [`Plan`] of it would take memory to match.
    ///
    /// # Errors
    /// If one is missing, there are others, or a shape is wrong.
    pub fn parameters(&self) -> Result<Vec<TensorView<'a>>, LoadError> {
        let plan = self.plan()?;
        let parameters = self.belonging_to(&plan, "")?;
        let known = sorted_names(&plan)?;
        self.refuse_others(Role::Parameter, |name| known.binary_search(&name).is_ok())?;
        Ok(parameters)
    }

    /// AdamW's first and second moments of the parameters, each in the order of
    /// [`Plan::parameters`]`.list()`.
    ///
    /// # Errors
    /// If one is missing, there are other tensors for training, or a shape is wrong.
    pub fn moments(&self) -> Result<[Vec<TensorView<'a>>; 2], LoadError> {
        let plan = self.plan()?;
        let moments = [self.belonging_to(&plan, FIRST_MOMENT)?, self.belonging_to(&plan, SECOND_MOMENT)?];
        let known = sorted_names(&plan)?;
        self.refuse_others(Role::Training, |name| {
            let parameter = name.strip_prefix(FIRST_MOMENT).or_else(|| name.strip_prefix(SECOND_MOMENT));
            parameter.is_some_and(|name| known.binary_search(&name).is_ok())
        })?;
        Ok(moments)
    }

    fn view(&self, entry: &Entry<'a>) -> TensorView<'a> {
        // `open` has compared the end of the last tensor with the length of the bytes.
        let offset = self.payload + entry.start as usize;
        TensorView {
            name: entry.name,
            role: entry.role,
            dtype: entry.dtype,
            rows: entry.rows,
            cols: entry.cols,
            offset,
            bytes: &self.bytes[offset..offset + entry.length as usize],
        }
    }

    /// A plan whose size the file justifies.
    fn plan(&self) -> Result<Plan, LoadError> {
        let Header { config, config_offset, tensors, .. } = &self.header;
        let error = |fault| LoadError::new(*config_offset, fault);
        let parameters = tensors.iter().filter(|entry| entry.role == Role::Parameter).count();
        // A block has four matrices at least.
        if config.layers > parameters / 4 {
            return Err(error(Fault::Layers { layers: config.layers, tensors: parameters }));
        }
        Plan::inference(config, Dtype::F32, 1, 1, Logits::Last, 0).map_err(|e| error(Fault::Config(e)))
    }

    /// The tensors that are named after the plan's parameters, with the same shapes.
    fn belonging_to(&self, plan: &Plan, prefix: &str) -> Result<Vec<TensorView<'a>>, LoadError> {
        let role = if prefix.is_empty() { Role::Parameter } else { Role::Training };
        let parameters = plan.parameters.list();
        let mut found = reserve(parameters.len(), 0)?;
        for parameter in parameters {
            let name = format!("{prefix}{}", parameter.name);
            let Some(entry) = self.header.find(&name).filter(|entry| entry.role == role) else {
                return Err(LoadError::new(self.header.index_offset, Fault::MissingTensor { name }));
            };
            let expected = (parameter.rows, parameter.cols);
            if (entry.rows, entry.cols) != expected {
                let fault = Fault::TensorShape { name, expected, found: (entry.rows, entry.cols) };
                return Err(LoadError::new(entry.record, fault));
            }
            found.push(self.view(entry));
        }
        Ok(found)
    }

    fn refuse_others(&self, role: Role, known: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        match self.header.tensors.iter().find(|entry| entry.role == role && !known(entry.name)) {
            None => Ok(()),
            Some(other) => {
                Err(LoadError::new(other.record, Fault::UnknownTensor { name: other.name.to_string() }))
            }
        }
    }
}

fn sorted_names(plan: &Plan) -> Result<Vec<&str>, LoadError> {
    let parameters = plan.parameters.list();
    let mut names: Vec<&str> = reserve(parameters.len(), 0)?;
    names.extend(parameters.into_iter().map(|parameter| parameter.name.as_str()));
    names.sort_unstable();
    Ok(names)
}

/// One line of the index.
#[derive(Debug, Clone, PartialEq)]
struct Entry<'a> {
    name: &'a str,
    role: Role,
    dtype: Dtype,
    rows: usize,
    cols: usize,
    /// In the payload.
    start: u64,
    length: u64,
    crc: u32,
    /// Where its record stands in the file, for errors.
    record: usize,
}

/// All that stands before the payload.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header<'a> {
    /// In bytes, with its checksum and without the padding behind it.
    length: usize,
    payload_length: u64,
    config: GptConfig,
    config_offset: usize,
    tokenizer: Option<AnyTokenizer>,
    training: Option<Training>,
    metadata: Vec<(&'a str, &'a str)>,
    tensors: Vec<Entry<'a>>,
    index_offset: usize,
    /// The tensors' numbers, sorted by name.
    by_name: Vec<u32>,
}

impl<'a> Header<'a> {
    /// Reads the header that `bytes` begin with.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, LoadError> {
        let error = LoadError::new;
        let truncated =
            |needed: u64| error(bytes.len(), Fault::Truncated { needed, found: bytes.len() as u64 });
        let word = |at: usize| -> Result<u32, LoadError> {
            let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
            word.map(|word| u32::from_le_bytes(*word)).ok_or_else(|| truncated(at as u64 + 4))
        };

        if !bytes.starts_with(&MAGIC) {
            return Err(match MAGIC.starts_with(bytes) {
                true => truncated(PREFIX as u64),
                false => error(0, Fault::Magic),
            });
        }
        let version = word(4)?;
        if version != VERSION {
            return Err(error(4, Fault::Version { found: version }));
        }
        let length = word(8)?;
        let sections_end = (length as usize).checked_sub(CRC).filter(|end| *end >= PREFIX);
        let sections_end = sections_end.ok_or_else(|| error(8, Fault::HeaderLength { found: length }))?;
        if bytes.len() < length as usize {
            return Err(truncated(u64::from(length)));
        }
        let (stored, computed) = (word(sections_end)?, crc32(&bytes[..sections_end]));
        if stored != computed {
            return Err(error(sections_end, Fault::HeaderCrc { stored, computed }));
        }

        let known = [CONF, TOKN, TENS, TRAN, META];
        let mut sections: [Option<Section<'a>>; 5] = [None; 5];
        let mut at = PREFIX;
        while at < sections_end {
            let (tag, flags, section) = Section::at(&bytes[..sections_end], at)?;
            if flags & !REQUIRED != 0 {
                return Err(error(at + 4, Fault::SectionFlags { tag, flags }));
            }
            match known.iter().position(|known| *known == tag) {
                Some(i) if sections[i].is_some() => return Err(error(at, Fault::RepeatedSection { tag })),
                Some(i) => sections[i] = Some(section),
                None if flags & REQUIRED != 0 => return Err(error(at, Fault::UnknownSection { tag })),
                None => {}
            }
            at = section.offset + section.bytes.len();
        }

        let missing = |tag| error(sections_end, Fault::MissingSection { tag });
        let [config, tokenizer, tensors, training, metadata] = sections;
        let config_section = config.ok_or_else(|| missing(CONF))?;
        let index = tensors.ok_or_else(|| missing(TENS))?;
        let index_offset = index.offset;

        let config = read_config(config_section)?;
        let tokenizer = tokenizer.map(|section| read_tokenizer(section, &config)).transpose()?;
        let training = training.map(read_training).transpose()?;
        let metadata = metadata.map(read_metadata).transpose()?.unwrap_or_default();
        let (tensors, payload_length) = read_index(index)?;
        let by_name = sort_by_name(&tensors)?;
        Ok(Header {
            length: length as usize,
            payload_length,
            config,
            config_offset: config_section.offset,
            tokenizer,
            training,
            metadata,
            tensors,
            index_offset,
            by_name,
        })
    }

    fn find(&self, name: &str) -> Option<&Entry<'a>> {
        let entry = |i: &u32| &self.tensors[*i as usize];
        let found = self.by_name.binary_search_by(|i| entry(i).name.cmp(name)).ok()?;
        Some(entry(&self.by_name[found]))
    }
}

/// What is left to read of a section.
#[derive(Clone, Copy)]
struct Section<'a> {
    tag: [u8; 4],
    /// Where `bytes` begin in the file.
    offset: usize,
    bytes: &'a [u8],
}

impl<'a> Section<'a> {
    /// The tag, flags and body of the section that begins at `at`.
    fn at(header: &'a [u8], at: usize) -> Result<([u8; 4], u32, Self), LoadError> {
        let rest = &header[at..];
        let [t0, t1, t2, t3, f0, f1, f2, f3, l0, l1, l2, l3] = *rest
            .first_chunk::<SECTION_HEAD>()
            .ok_or_else(|| LoadError::new(at, Fault::SectionLength { tag: *b"????" }))?;
        let tag = [t0, t1, t2, t3];
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let bytes = rest[SECTION_HEAD..].get(..length);
        let bytes = bytes.ok_or_else(|| LoadError::new(at + 8, Fault::SectionLength { tag }))?;
        Ok((tag, u32::from_le_bytes([f0, f1, f2, f3]), Section { tag, offset: at + SECTION_HEAD, bytes }))
    }

    fn error(&self, fault: Fault) -> LoadError {
        LoadError::new(self.offset, fault)
    }

    /// One postcard value. Lists are read value by value: serde would reserve up to a mebibyte for one whose
    /// elements are not there.
    fn next<T: Deserialize<'a>>(&mut self) -> Result<T, LoadError> {
        let (value, rest) = postcard::take_from_bytes(self.bytes)
            .map_err(|_| self.error(Fault::Malformed { tag: self.tag }))?;
        self.offset += self.bytes.len() - rest.len();
        self.bytes = rest;
        Ok(value)
    }

    /// The length of a list whose elements take at least `min_bytes` each, and room for it.
    fn list<T>(&mut self, min_bytes: usize) -> Result<(usize, Vec<T>), LoadError> {
        let begin = *self;
        let count: u32 = self.next()?;
        if count as usize > self.bytes.len() / min_bytes {
            return Err(begin.error(Fault::SectionLength { tag: self.tag }));
        }
        Ok((count as usize, reserve(count as usize, begin.offset)?))
    }

    fn end(self) -> Result<(), LoadError> {
        match self.bytes {
            [] => Ok(()),
            _ => Err(self.error(Fault::SectionLength { tag: self.tag })),
        }
    }
}

fn reserve<T>(count: usize, offset: usize) -> Result<Vec<T>, LoadError> {
    let mut list = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    list.try_reserve_exact(count).map_err(|_| LoadError::new(offset, Fault::OutOfMemory { bytes }))?;
    Ok(list)
}

fn read_config(mut section: Section<'_>) -> Result<GptConfig, LoadError> {
    let begin = section;
    let config = GptConfig::try_from(section.next::<WireConfig>()?).map_err(|fault| begin.error(fault))?;
    section.end()?;
    Ok(config)
}

fn read_tokenizer(mut section: Section<'_>, config: &GptConfig) -> Result<AnyTokenizer, LoadError> {
    let begin = section;
    let tokenizer: AnyTokenizer = match section.next()? {
        WireTokenizer::Bytes => ByteTokenizer.into(),
        WireTokenizer::Chars(text) => {
            let mut chars = reserve(text.chars().count(), begin.offset)?;
            chars.extend(text.chars());
            CharTokenizer::from_chars(chars).map_err(|e| begin.error(Fault::Tokenizer(e)))?.into()
        }
    };
    section.end()?;
    let (tokens, vocab_size) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > vocab_size {
        return Err(begin.error(Fault::Vocabulary { tokens, vocab_size }));
    }
    Ok(tokenizer)
}

fn read_training(mut section: Section<'_>) -> Result<Training, LoadError> {
    let begin = section;
    let training = Training::try_from(section.next::<WireTraining>()?).map_err(|fault| begin.error(fault))?;
    section.end()?;
    Ok(training)
}

fn read_metadata<'a>(mut section: Section<'a>) -> Result<Vec<(&'a str, &'a str)>, LoadError> {
    // The shortest entry: a key and a value, of which only the length is there.
    let (count, mut entries) = section.list(2)?;
    for _ in 0..count {
        let begin = section;
        let entry: (&'a str, &'a str) = section.next()?;
        if entry.0.is_empty() {
            return Err(begin.error(Fault::EmptyKey));
        }
        entries.push(entry);
    }
    section.end()?;
    Ok(entries)
}

/// The tensors, and the length of the payload that they make.
fn read_index(mut section: Section<'_>) -> Result<(Vec<Entry<'_>>, u64), LoadError> {
    let (count, mut entries) = section.list::<Entry<'_>>(WireTensor::MIN_BYTES)?;
    let mut payload = 0u64;
    for _ in 0..count {
        let begin = section;
        let wire: WireTensor<'_> = section.next()?;
        if wire.name.is_empty() || wire.name.len() > MAX_NAME {
            return Err(begin.error(Fault::NameLength { bytes: wire.name.len() }));
        }
        let name = || wire.name.to_string();
        let too_large = || begin.error(Fault::TensorSize { name: name() });
        let dtype = Dtype::from(wire.dtype);
        let role = Role::from(wire.role);

        let expected = tensor_bytes(dtype, u64::from(wire.rows), u64::from(wire.cols));
        let expected = expected.filter(|bytes| *bytes > 0).ok_or_else(too_large)?;
        if wire.length != expected {
            let fault = Fault::TensorLength { name: name(), expected, found: wire.length };
            return Err(begin.error(fault));
        }
        if wire.offset != payload {
            let fault = Fault::TensorOffset { name: name(), expected: payload, found: wire.offset };
            return Err(begin.error(fault));
        }
        let last = entries.last();
        if role == Role::Parameter && last.is_some_and(|last| last.role == Role::Training) {
            return Err(begin.error(Fault::TensorOrder { name: name() }));
        }
        let end = wire.offset.checked_add(wire.length);
        payload = end.and_then(|end| end.checked_next_multiple_of(ALIGN as u64)).ok_or_else(too_large)?;
        entries.push(Entry {
            name: wire.name,
            role,
            dtype,
            rows: usize::try_from(wire.rows).map_err(|_| too_large())?,
            cols: usize::try_from(wire.cols).map_err(|_| too_large())?,
            start: wire.offset,
            length: wire.length,
            crc: wire.crc,
            record: begin.offset,
        });
    }
    section.end()?;
    Ok((entries, payload))
}

/// Refuses names that stand there twice.
fn sort_by_name(tensors: &[Entry<'_>]) -> Result<Vec<u32>, LoadError> {
    let mut by_name = reserve(tensors.len(), 0)?;
    by_name.extend(0..tensors.len() as u32);
    let name = |i: u32| tensors[i as usize].name;
    // The number decides between equal names, so that the error does not depend on the sort.
    by_name.sort_unstable_by(|&a, &b| name(a).cmp(name(b)).then(a.cmp(&b)));
    match by_name.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        None => Ok(by_name),
        Some(pair) => {
            let fault = Fault::RepeatedTensor { name: name(pair[1]).to_string() };
            Err(LoadError::new(tensors[pair[1] as usize].record, fault))
        }
    }
}

/// `bytes[begin..end]` must be zero.
fn check_padding(bytes: &[u8], begin: usize, end: usize) -> Result<(), LoadError> {
    match bytes[begin..end].iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(i) => Err(LoadError::new(begin + i, Fault::Padding)),
    }
}
