//! A checkpoint in pieces, to be edited and sealed again: the fuzzer's edits get past lengths and checksums.
//!
//! It knows the format from its prose alone (`minigpt_core::checkpoint`), and keeps whatever can be parsed, right or
//! wrong.

use minigpt_core::checkpoint::Checkpoint;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Dtype, Plan};

use super::conf;

pub(super) const CONF: [u8; 4] = *b"CONF";
pub(super) const TOKN: [u8; 4] = *b"TOKN";
pub(super) const TRAN: [u8; 4] = *b"TRAN";
pub(super) const TENS: [u8; 4] = *b"TENS";
const META: [u8; 4] = *b"META";
pub(super) const REQUIRED: u32 = 1;
const ALIGN: usize = 64;

/// The numbers of a record of `TENS`, by place.
const ROLE: usize = 0;
const DTYPE: usize = 1;
const ROWS: usize = 2;
const COLS: usize = 3;
const OFFSET: usize = 4;
const LENGTH: usize = 5;
const CRC: usize = 6;

/// The types of `DTYPE`, by number.
const DTYPES: [Dtype; 7] =
    [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::U32];

/// Changes `bytes[..size]` in place to at most `bytes.len()` bytes, and returns how many: the fuzzer's own edits.
pub(super) type Scramble<'a> = &'a mut dyn FnMut(&mut [u8], usize) -> usize;

#[derive(Debug, Clone, Default)]
struct Section {
    tag: [u8; 4],
    flags: u32,
    body: Vec<u8>,
}

/// A record of `TENS`, and the bytes that it speaks of.
#[derive(Debug, Clone, Default)]
struct Tensor {
    name: Vec<u8>,
    numbers: [u64; 7],
    bytes: Vec<u8>,
}

/// The newest version of the format.
pub(super) const VERSION: u32 = 2;

/// A checkpoint in pieces. The body of the section `TENS` is what `tensors` make, if there are any.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    version: u32,
    sections: Vec<Section>,
    tensors: Vec<Tensor>,
}

/// Appends `value` in base 128, the lowest 7 bits first.
pub(super) fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 128 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
}

pub(super) fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes, 4)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 127) << (7 * place);
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

impl Pieces {
    pub(super) fn new(version: u32) -> Pieces {
        Pieces { version, sections: Vec::new(), tensors: Vec::new() }
    }

    pub(super) fn push(&mut self, tag: [u8; 4], flags: u32, body: Vec<u8>) {
        self.sections.push(Section { tag, flags, body });
    }

    /// What can be made out of `file`; `None` if not even the sections can.
    fn parse(file: &[u8]) -> Option<Pieces> {
        let mut rest = file.strip_prefix(b"MGPT")?;
        let version = take_u32(&mut rest)?;
        let length = take_u32(&mut rest)? as usize;
        let payload = file.get(length.checked_next_multiple_of(ALIGN)?..)?;
        let mut rest = file.get(12..length.checked_sub(4)?)?;
        let mut pieces = Pieces::new(version);
        while !rest.is_empty() {
            let tag = *take(&mut rest, 4)?.first_chunk()?;
            let flags = take_u32(&mut rest)?;
            let length = take_u32(&mut rest)? as usize;
            let body = take(&mut rest, length)?;
            if tag == TENS && pieces.tensors.is_empty() {
                pieces.tensors = parse_index(body, payload).unwrap_or_default();
            }
            pieces.push(tag, flags, body.to_vec());
        }
        Some(pieces)
    }

    fn section(&mut self, tag: [u8; 4]) -> Option<&mut Section> {
        self.sections.iter_mut().find(|section| section.tag == tag)
    }

    /// Gives every tensor the place, length and checksum that its bytes have.
    fn arrange(&mut self) {
        let mut offset = 0;
        for tensor in &mut self.tensors {
            tensor.numbers[OFFSET] = offset as u64;
            tensor.numbers[LENGTH] = tensor.bytes.len() as u64;
            tensor.numbers[CRC] = u64::from(crc32fast::hash(&tensor.bytes));
            offset = (offset + tensor.bytes.len()).next_multiple_of(ALIGN);
        }
    }

    /// The file that the pieces are, its header sealed.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut file = b"MGPT".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend([0; 4]);
        for Section { tag, flags, body } in &self.sections {
            let mut index = Vec::new();
            let body = if *tag == TENS && !self.tensors.is_empty() {
                varint(self.tensors.len() as u64, &mut index);
                for Tensor { name, numbers, .. } in &self.tensors {
                    varint(name.len() as u64, &mut index);
                    index.extend(name);
                    numbers.iter().for_each(|number| varint(*number, &mut index));
                }
                &index
            } else {
                body
            };
            file.extend(tag);
            file.extend(flags.to_le_bytes());
            file.extend((body.len() as u32).to_le_bytes());
            file.extend(body);
        }
        file.extend([0; 4]);
        seal(&mut file);
        file.resize(file.len().next_multiple_of(ALIGN), 0);
        for tensor in &self.tensors {
            file.extend(&tensor.bytes);
            file.resize(file.len().next_multiple_of(ALIGN), 0);
        }
        file
    }

    /// One edit.
    fn edit(&mut self, rng: &mut Rng, scramble: Scramble<'_>) {
        let mut pick = |len: usize| rng.below(len.max(1) as u64) as usize;
        let (section, tensor, other) =
            (pick(self.sections.len()), pick(self.tensors.len()), pick(self.tensors.len()));
        match rng.below(17) {
            0 | 1 => {
                if let Some(section) = self.sections.get_mut(section) {
                    scrambled(&mut section.body, scramble);
                }
            }
            2..6 => {
                let version = self.version;
                if let Some(config) = self.section(CONF)
                    && let Some(body) = conf::with_change(&config.body, version, rng)
                {
                    config.body = body;
                }
                self.refit();
            }
            6 => self.refit(),
            7 | 8 => {
                if let Some(tensor) = self.tensors.get_mut(tensor) {
                    scrambled(&mut tensor.bytes, scramble);
                    tensor.fit();
                }
            }
            9 => {
                if let Some(tensor) = self.tensors.get_mut(tensor) {
                    tensor.numbers[DTYPE] = rng.below(8);
                    tensor.fit();
                }
            }
            10 => {
                if let Some(tensor) = self.tensors.get_mut(tensor) {
                    let number = &mut tensor.numbers[rng.below(7) as usize];
                    *number = near(*number, rng);
                    if rng.below(2) == 0 {
                        tensor.fit();
                    }
                }
            }
            11 => {
                if let Some(tensor) = self.tensors.get_mut(tensor) {
                    scrambled(&mut tensor.name, scramble);
                }
            }
            12 => {
                if !self.tensors.is_empty() {
                    self.tensors.swap(tensor, other);
                }
            }
            13 => {
                if let Some(copy) = self.tensors.get(tensor).cloned() {
                    match rng.below(2) {
                        0 => drop(self.tensors.remove(other)),
                        _ => self.tensors.insert(other, copy),
                    }
                }
            }
            14 => {
                let tags = [CONF, TOKN, TRAN, *b"OPTM", TENS, META, *b"NEWS"];
                let new = Section {
                    tag: tags[rng.below(7) as usize],
                    flags: rng.below(3) as u32,
                    body: vec![0; rng.below(4) as usize],
                };
                match (rng.below(3), self.sections.get_mut(section)) {
                    (0, _) | (_, None) => self.sections.insert(section, new),
                    (1, Some(_)) => drop(self.sections.remove(section)),
                    (_, Some(section)) => section.flags = new.flags,
                }
            }
            15 => {
                if self.version == 1
                    && let Some(config) = self.section(CONF)
                    && let Some(body) = conf::converted(&config.body)
                {
                    config.body = body;
                    self.version = VERSION;
                } else {
                    self.version = rng.below(4) as u32;
                }
            }
            _ => {
                if let Some(last) = self.sections.len().checked_sub(1) {
                    self.sections.swap(section, last);
                }
            }
        }
    }

    /// Makes the tensors those of the config, where it is valid and small: with the bytes and the types that they had.
    fn refit(&mut self) {
        let version = self.version;
        let Some(config) = self.section(CONF) else { return };
        let mut bare = Pieces::new(version);
        bare.push(CONF, REQUIRED, config.body.clone());
        bare.push(TENS, REQUIRED, vec![0]);
        let file = bare.bytes();
        let Ok(checkpoint) = Checkpoint::open(&file) else { return };
        let config = checkpoint.config();
        if config.layers > 4 {
            return;
        }
        let Ok(plan) = Plan::smallest(config, Dtype::F32) else { return };
        if plan.bytes.parameters > 8 << 10 {
            return;
        }
        let prefixes = match self.section(TRAN) {
            Some(_) => &["", "adam.m/", "adam.v/"][..],
            None => &[""],
        };
        let had = core::mem::take(&mut self.tensors);
        for prefix in prefixes {
            for parameter in plan.parameters.list() {
                let name = format!("{prefix}{}", parameter.name).into_bytes();
                let place = had.iter().position(|tensor| tensor.name == name);
                let place = place.unwrap_or(self.tensors.len() % had.len().max(1));
                let mut tensor = had.get(place).cloned().unwrap_or_default();
                tensor.name = name;
                tensor.numbers[ROLE] = u64::from(!prefix.is_empty());
                tensor.numbers[DTYPE] = tensor.numbers[DTYPE].min(DTYPES.len() as u64 - 1);
                tensor.numbers[ROWS] = parameter.rows as u64;
                tensor.numbers[COLS] = parameter.cols as u64;
                tensor.fit();
                self.tensors.push(tensor);
            }
        }
    }
}

impl Tensor {
    /// Gives it as many bytes as its shape and type ask for, unless they are many.
    fn fit(&mut self) {
        let Some(dtype) = DTYPES.get(self.numbers[DTYPE] as usize) else { return };
        let (elements, unit) = dtype.unit();
        let row = self.numbers[COLS].div_ceil(elements as u64).checked_mul(unit as u64);
        let bytes = row.and_then(|row| row.checked_mul(self.numbers[ROWS]));
        if let Some(bytes) = bytes.filter(|bytes| *bytes <= 16 << 10) {
            // Bytes that are 0 again and again would make all products 0.
            let filler = self.bytes.clone();
            let repeated = filler.iter().copied().cycle().chain(core::iter::repeat(61)).take(bytes as usize);
            self.bytes = repeated.collect();
        }
    }
}

/// Sets the header's length and, in its last four bytes, its checksum.
fn seal(header: &mut [u8]) {
    let length = header.len();
    header[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    let crc = crc32fast::hash(&header[..length - 4]);
    header[length - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// A checkpoint of version 2 as one of version 1, if that can tell its model.
pub(super) fn of_version_1(file: &[u8]) -> Option<Vec<u8>> {
    let mut pieces = Pieces::parse(file)?;
    let config = pieces.section(CONF)?;
    config.body = conf::converted_back(&config.body)?;
    pieces.version = 1;
    Some(pieces.bytes())
}

fn parse_index(mut body: &[u8], payload: &[u8]) -> Option<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for _ in 0..take_varint(&mut body)? {
        let length = take_varint(&mut body)?;
        let name = take(&mut body, usize::try_from(length).ok()?)?.to_vec();
        let mut numbers = [0; 7];
        for number in &mut numbers {
            *number = take_varint(&mut body)?;
        }
        let begin = usize::try_from(numbers[OFFSET]).ok()?;
        let end = begin.checked_add(usize::try_from(numbers[LENGTH]).ok()?)?;
        let bytes = payload.get(begin..end).unwrap_or_default().to_vec();
        tensors.push(Tensor { name, numbers, bytes });
    }
    Some(tensors)
}

/// A number that is likely to matter beside `number`.
fn near(number: u64, rng: &mut Rng) -> u64 {
    match rng.below(6) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        2 => rng.below(10),
        3 => u64::from(u32::MAX) - rng.below(2),
        4 => 1 << rng.below(64),
        _ => number ^ 1 << rng.below(64),
    }
}

/// Lets the fuzzer edit `bytes`, which may grow by a few.
fn scrambled(bytes: &mut Vec<u8>, scramble: Scramble<'_>) {
    let size = bytes.len();
    bytes.resize(size + 16, 0);
    let size = scramble(bytes, size);
    bytes.truncate(size);
}

/// Edits the checkpoint `data[..size]` in place, seals it, and returns its new size; `scramble` is the fuzzer's own
/// way to change bytes. What is no checkpoint, or does not fit any more, it scrambles as it is.
pub fn mutate(data: &mut [u8], size: usize, seed: u32, scramble: Scramble<'_>) -> usize {
    let mut rng = Rng::new(u64::from(seed), Stream::User);
    let whole = rng.below(32) == 0;
    let Some(mut pieces) = Pieces::parse(&data[..size]).filter(|_| !whole) else {
        return scramble(data, size);
    };
    for _ in 0..1 + rng.below(3) / 2 {
        pieces.edit(&mut rng, scramble);
    }
    if rng.below(16) > 0 {
        pieces.arrange();
    }
    let file = pieces.bytes();
    match data.get_mut(..file.len()) {
        Some(place) => {
            place.copy_from_slice(&file);
            file.len()
        }
        None => scramble(data, size),
    }
}
