//! The header: its structure, its rules, and the tensors that a model finds in it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Deserialize;

use super::crc::crc32;
use super::format::{
    ALIGN, CONF, CRC, MAGIC, MAX_NAME, META, OPTM, PREAMBLE, REQUIRED, SECTION_HEAD, TENS, TOKN, TRAN,
    VERSION, WireConfig, WireConfig1, WireGroup, WirePrecision, WireTensor, WireTokenizer, WireTraining,
    tensor_bytes,
};
use super::{Fault, Limits, LoadError, Role, Training};
use crate::config::{GptConfig, Group, Precision, TrainConfig};
use crate::memory::Dtype;
use crate::plan::{AVERAGE, Plan, States, Tensor};
use crate::tokenizer::{AnyTokenizer, ByteTokenizer, CharTokenizer, Tokenizer};

/// One line of the index.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) role: Role,
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// In the payload.
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) crc: u32,
    /// Where its record stands in the file, for errors.
    record: usize,
}

/// All that stands before the payload.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header<'a> {
    /// In bytes, with its checksum and without the padding behind it.
    pub(super) length: usize,
    pub(super) payload_length: u64,
    pub(super) config: GptConfig,
    config_offset: usize,
    pub(super) tokenizer: Option<AnyTokenizer>,
    pub(super) training: Option<Training>,
    training_offset: usize,
    /// Where OPTM begins, if there is one.
    optimizers_offset: Option<usize>,
    pub(super) metadata: Vec<(&'a str, &'a str)>,
    pub(super) tensors: Vec<Entry<'a>>,
    index_offset: usize,
    /// The tensors' numbers, sorted by name.
    by_name: Vec<u32>,
    limits: Limits,
}

impl<'a> Header<'a> {
    /// The length that a header has, from its first [`PREAMBLE`] bytes; fewer are an error.
    pub(super) fn length(bytes: &[u8], limits: &Limits) -> Result<usize, LoadError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(match MAGIC.starts_with(bytes) {
                true => LoadError::truncated(PREAMBLE as u64, bytes.len() as u64),
                false => LoadError::new(0, Fault::Magic),
            });
        }
        let version = word(bytes, 4)?;
        if !(1..=VERSION).contains(&version) {
            return Err(LoadError::new(4, Fault::Version { found: version }));
        }
        let found = word(bytes, 8)?;
        limits.check_header(u64::from(found)).map_err(|fault| LoadError::new(8, fault))?;
        match usize::try_from(found) {
            Ok(length) if length >= PREAMBLE + CRC => Ok(length),
            _ => Err(LoadError::new(8, Fault::HeaderLength { found })),
        }
    }

    /// Reads the header that `bytes` begin with.
    pub(super) fn parse(bytes: &'a [u8], limits: &Limits) -> Result<Self, LoadError> {
        let error = LoadError::new;
        let length = Header::length(bytes, limits)?;
        let sections_end = length - CRC;
        if bytes.len() < length {
            return Err(LoadError::truncated(length as u64, bytes.len() as u64));
        }
        let (stored, computed) = (word(bytes, sections_end)?, crc32(&bytes[..sections_end]));
        if stored != computed {
            return Err(error(sections_end, Fault::HeaderCrc { stored, computed }));
        }

        let known = [CONF, TOKN, TENS, TRAN, OPTM, META];
        let mut sections: [Option<Section<'a>>; 6] = [None; 6];
        let mut at = PREAMBLE;
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
        let [config, tokenizer, tensors, training, optimizers, metadata] = sections;
        let config_section = config.ok_or_else(|| missing(CONF))?;
        let index = tensors.ok_or_else(|| missing(TENS))?;
        let index_offset = index.offset;

        let config = read_config(config_section, word(bytes, 4)?, limits)?;
        let tokenizer = tokenizer.map(|section| read_tokenizer(section, &config)).transpose()?;
        let training_offset = training.map_or(0, |section| section.offset);
        let mut training = training.map(read_training).transpose()?;
        let optimizers_offset = optimizers.map(|section| section.offset);
        match (optimizers, &mut training) {
            (Some(section), Some(training)) => read_optimizers(section, training, limits)?,
            (Some(_), None) => return Err(missing(TRAN)),
            (None, _) => {}
        }
        let metadata =
            metadata.map(|section| read_metadata(section, limits)).transpose()?.unwrap_or_default();
        let (tensors, payload_length) = read_index(index, limits)?;
        let by_name = sort_by_name(&tensors)?;
        Ok(Header {
            length,
            payload_length,
            config,
            config_offset: config_section.offset,
            tokenizer,
            training,
            training_offset,
            optimizers_offset,
            metadata,
            tensors,
            index_offset,
            by_name,
            limits: *limits,
        })
    }

    /// Where the payload begins.
    pub(super) fn payload(&self) -> u64 {
        // At most u32::MAX + 63.
        (self.length as u64).next_multiple_of(ALIGN as u64)
    }

    /// How long the file is.
    pub(super) fn file_length(&self) -> Result<u64, LoadError> {
        let end = self.payload().checked_add(self.payload_length);
        end.ok_or_else(|| LoadError::truncated(u64::MAX, self.payload()))
    }

    /// The numbers of the tensors that are the model's parameters, in the order of `plan.parameters.list()`.
    pub(super) fn parameters(&self) -> Result<Vec<usize>, LoadError> {
        let plan = self.plan()?;
        let tensors = plan.parameters.list();
        let mut parameters = reserve(tensors.len(), 0)?;
        for parameter in tensors {
            parameters.push(self.belonging(parameter, "")?.map_err(|name| self.missing(name))?);
        }
        let known = sorted_names(&plan)?;
        let is_known = |entry: &&Entry<'_>| known.binary_search(&entry.name).is_ok();
        let all = self.tensors.iter().filter(|entry| entry.role == Role::Parameter);
        match all.clone().find(|entry| !is_known(entry)) {
            None => Ok(parameters),
            Some(entry) => Err(unknown(entry)),
        }
    }

    /// The numbers of the tensors that a training keeps of each parameter, in the same order; `None` of a parameter that is
    /// frozen.
    pub(super) fn states(&self) -> Result<Vec<Option<States<usize>>>, LoadError> {
        if let Some(training) = &self.training {
            let allowed = self.limits.check_training(&self.config, &training.config);
            allowed.map_err(|fault| LoadError::new(self.training_offset, fault))?;
        }
        let plan = self.plan()?;
        let parameters = plan.parameters.list();
        let frozen = self.frozen(&plan)?;
        let usual = TrainConfig::constant(0.0);
        let config = self.training.as_ref().map_or(&usual, |training| &training.config);
        let mut states = reserve(parameters.len(), 0)?;
        let mut known = reserve(self.tensors.len(), 0)?;
        known.resize(self.tensors.len(), false);
        for (i, parameter) in parameters.iter().enumerate() {
            let group = config.groups.of(parameter.kind);
            let found = match &frozen {
                Some(frozen) if frozen[i] => None,
                Some(_) => Some(
                    self.kept(parameter, group, config.average.is_some())?
                        .map_err(|name| self.missing(name))?,
                ),
                None => self.kept_or_none(parameter, group)?,
            };
            if let Some(found) = &found {
                found.named(group).for_each(|(_, &tensor)| known[tensor] = true);
            }
            states.push(found);
        }
        // A training that trains nothing is of the vectors before the tokens, by whoever makes them. Where the file says that all
        // is frozen, none is missing, and the trainer refuses it.
        let trains_nothing =
            frozen.is_none() && states.iter().all(Option::is_none) && self.config.prefix == 0;
        if let (Some(parameter), true) = (parameters.first(), trains_nothing) {
            let state = config.groups.of(parameter.kind).optimizer.states().first();
            return Err(self.missing(format!("{}/{}", state.unwrap_or(&AVERAGE), parameter.name)));
        }
        let stray =
            self.tensors.iter().zip(known).find(|(entry, known)| entry.role == Role::Training && !known);
        match stray {
            None => Ok(states),
            Some((entry, _)) => Err(unknown(entry)),
        }
    }

    /// Which parameters are frozen, in the order of `plan.parameters.list()`, if the file says so.
    fn frozen(&self, plan: &Plan) -> Result<Option<Vec<bool>>, LoadError> {
        let Some(offset) = self.optimizers_offset else { return Ok(None) };
        let parameters = plan.parameters.list();
        let mut names: Vec<&str> = reserve(self.frozen_names().len(), offset)?;
        names.extend(self.frozen_names().iter().map(String::as_str));
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(LoadError::new(offset, Fault::RepeatedTensor { name: twice[0].to_string() }));
        }
        let mut frozen = reserve(parameters.len(), offset)?;
        frozen
            .extend(parameters.iter().map(|parameter| names.binary_search(&parameter.name.as_str()).is_ok()));
        let known = sorted_names(plan)?;
        match names.into_iter().find(|name| known.binary_search(name).is_err()) {
            None => Ok(Some(frozen)),
            Some(name) => Err(LoadError::new(offset, Fault::UnknownTensor { name: name.to_string() })),
        }
    }

    fn frozen_names(&self) -> &[String] {
        self.training.as_ref().map_or(&[], |training| &training.frozen)
    }

    /// The tensors that are kept of a parameter of this group; the name of one that is not there.
    fn kept(
        &self,
        parameter: &Tensor,
        group: &Group,
        average: bool,
    ) -> Result<Result<States<usize>, String>, LoadError> {
        let mut found = States::default();
        for (place, state) in found.optimizer.iter_mut().zip(group.optimizer.states()) {
            match self.belonging(parameter, state)? {
                Ok(tensor) => *place = Some(tensor),
                Err(name) => return Ok(Err(name)),
            }
        }
        if average {
            match self.belonging(parameter, AVERAGE)? {
                Ok(tensor) => found.average = Some(tensor),
                Err(name) => return Ok(Err(name)),
            }
        }
        Ok(Ok(found))
    }

    /// The same where the file does not say what is frozen: that has none of them, and everything else has all.
    fn kept_or_none(&self, parameter: &Tensor, group: &Group) -> Result<Option<States<usize>>, LoadError> {
        let missing = match self.kept(parameter, group, false)? {
            Ok(found) => return Ok(Some(found)),
            Err(name) => name,
        };
        for state in group.optimizer.states() {
            if self.belonging(parameter, state)?.is_ok() {
                // One without the other.
                return Err(self.missing(missing));
            }
        }
        Ok(None)
    }

    /// A plan whose size the file justifies.
    fn plan(&self) -> Result<Plan, LoadError> {
        let Header { config, tensors, .. } = self;
        let error = |fault| LoadError::new(self.config_offset, fault);
        let parameters = tensors.iter().filter(|entry| entry.role == Role::Parameter).count();
        // A block has four matrices at least.
        if config.layers > parameters / 4 {
            return Err(error(Fault::Layers { layers: config.layers, tensors: parameters }));
        }
        self.limits.check_cache(config, self.payload_length).map_err(error)?;
        Plan::smallest(config, Dtype::F32).map_err(|e| error(Fault::Config(e)))
    }

    /// The number of the tensor that is `parameter`, or the `state` that is kept of it, and has its shape; the name if there is
    /// none.
    fn belonging(&self, parameter: &Tensor, state: &str) -> Result<Result<usize, String>, LoadError> {
        let (role, name) = match state {
            "" => (Role::Parameter, parameter.name.clone()),
            state => (Role::Training, format!("{state}/{}", parameter.name)),
        };
        let Some(i) = self.find(&name).filter(|i| self.tensors[*i].role == role) else {
            return Ok(Err(name));
        };
        let entry = &self.tensors[i];
        let expected = (parameter.rows, parameter.cols);
        if (entry.rows, entry.cols) != expected {
            let fault = Fault::TensorShape { name, expected, found: (entry.rows, entry.cols) };
            return Err(LoadError::new(entry.record, fault));
        }
        Ok(Ok(i))
    }

    fn missing(&self, name: String) -> LoadError {
        LoadError::new(self.index_offset, Fault::MissingTensor { name })
    }

    /// The number of the tensor of that name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|i| self.tensors[*i as usize].name.cmp(name)).ok()?;
        Some(self.by_name[found] as usize)
    }
}

/// A tensor that the model has no place for.
fn unknown(entry: &Entry<'_>) -> LoadError {
    LoadError::new(entry.record, Fault::UnknownTensor { name: entry.name.to_string() })
}

fn word(bytes: &[u8], at: usize) -> Result<u32, LoadError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    let truncated = || LoadError::truncated(at as u64 + 4, bytes.len() as u64);
    word.map(|word| u32::from_le_bytes(*word)).ok_or_else(truncated)
}

fn sorted_names(plan: &Plan) -> Result<Vec<&str>, LoadError> {
    let parameters = plan.parameters.list();
    let mut names: Vec<&str> = reserve(parameters.len(), 0)?;
    names.extend(parameters.into_iter().map(|parameter| parameter.name.as_str()));
    names.sort_unstable();
    Ok(names)
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

    /// The length of a list whose elements take at least `min_bytes` each, and room for it if `allow` has nothing
    /// against the length.
    fn list<T>(
        &mut self,
        min_bytes: usize,
        allow: impl FnOnce(u64) -> Result<(), Fault>,
    ) -> Result<(usize, Vec<T>), LoadError> {
        let begin = *self;
        let count: u32 = self.next()?;
        if count as usize > self.bytes.len() / min_bytes {
            return Err(begin.error(Fault::SectionLength { tag: self.tag }));
        }
        allow(u64::from(count)).map_err(|fault| begin.error(fault))?;
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

fn read_config(mut section: Section<'_>, version: u32, limits: &Limits) -> Result<GptConfig, LoadError> {
    let begin = section;
    let wire = match version {
        1 => section.next::<WireConfig1>()?.into(),
        _ => section.next::<WireConfig>()?,
    };
    let config = GptConfig::try_from(wire).map_err(|fault| begin.error(fault))?;
    limits.check_config(&config).map_err(|fault| begin.error(fault))?;
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

/// Puts what OPTM says into a training as TRAN has it.
fn read_optimizers(
    mut section: Section<'_>,
    training: &mut Training,
    limits: &Limits,
) -> Result<(), LoadError> {
    let TrainConfig { groups, average, .. } = &mut training.config;
    for group in [&mut groups.embeddings, &mut groups.matrices, &mut groups.head, &mut groups.vectors] {
        *group = section.next::<WireGroup>()?.into();
    }
    *average = section.next()?;
    // The shortest: a length, and the name of a parameter. So a file of so many bytes is no reason for many times as many.
    let shortest = 1 + "ln_f.bias".len();
    let (count, mut frozen) = section.list::<String>(shortest, |count| limits.check_tensors(count))?;
    for _ in 0..count {
        let begin = section;
        let name: &str = section.next()?;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(begin.error(Fault::NameLength { bytes: name.len() }));
        }
        let mut owned = String::new();
        let no_room = |_| begin.error(Fault::OutOfMemory { bytes: name.len() });
        owned.try_reserve_exact(name.len()).map_err(no_room)?;
        owned.push_str(name);
        frozen.push(owned);
    }
    let begin = section;
    if !section.bytes.is_empty() {
        training.config.precision = section.next::<WirePrecision>()?.into();
    }
    // There is one way to say each.
    if training.config.precision == Precision::F32 {
        begin.end()?
    } else {
        section.end()?
    }
    training.frozen = frozen;
    Ok(())
}

fn read_metadata<'a>(
    mut section: Section<'a>,
    limits: &Limits,
) -> Result<Vec<(&'a str, &'a str)>, LoadError> {
    // The shortest entry: the lengths of a key and a value, and a key of one byte.
    let (count, mut entries) = section.list(3, |count| limits.check_metadata(count))?;
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
fn read_index<'a>(mut section: Section<'a>, limits: &Limits) -> Result<(Vec<Entry<'a>>, u64), LoadError> {
    let allow = |count| limits.check_tensors(count);
    let (count, mut entries) = section.list::<Entry<'_>>(WireTensor::MIN_BYTES, allow)?;
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
