//! Texts to tokens, piece by piece: beside the tokens nothing is held that grows with the text.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use minigpt_core::tokenizer::CharLearner;
use minigpt_core::{AnyTokenizer, ByteTokenizer, TokenBuf, Tokenizer, TokenizerError};
use sha2::{Digest, Sha256};

use super::text::{Cleaner, Cleaning, Met, whole};
use super::{Corpus, CorpusError, Found, Newlines, Origin, Search, TextOptions, Vocabulary};
use super::{built_in, encoding, files, find, hexadecimal, is_standard_input};
use crate::memory;
use crate::progress::{Progress, Unit};
use crate::training::TRAINING_SHARE;

/// Bytes that are read at once.
const PIECE: usize = 1 << 18;

/// How many of the characters that a model does not know are named.
const NAMED: usize = 10;

/// Reads the text that the flags name, or finds one, and makes tokens of it.
///
/// # Errors
/// If a text that was named or found cannot be used, has characters that a fixed vocabulary has not, or does not fit in
/// memory.
pub fn read(
    search: &Search,
    options: &TextOptions,
    vocabulary: Vocabulary<'_>,
) -> Result<Corpus, CorpusError> {
    let share = options.validation_share.unwrap_or(1.0 - TRAINING_SHARE);
    if !(share > 0.0 && share < 1.0) {
        return Err(CorpusError::Share(share));
    }
    let mut notes = Vec::new();
    let found = match (options.built_in, options.data.is_empty()) {
        (true, _) => Some(built_in()?),
        (false, true) => Some(find(search, &mut notes)?),
        (false, false) => None,
    };
    let training = match &found {
        Some(Found::File(path)) => vec![path.clone()],
        Some(Found::Text(..)) => Vec::new(),
        None => files::files(&options.data, &mut notes)?,
    };
    let validation = files::files(&options.validation, &mut notes)?;
    let piped = training.iter().chain(&validation).filter(|path| is_standard_input(path)).count();
    if piped > 1 {
        return Err(CorpusError::StandardInput);
    }

    let mut reading = Reading::new(vocabulary, options.newlines, &[&training, &validation])?;
    let named = |path: &PathBuf| options.data.contains(path) || options.validation.contains(path);
    match &found {
        Some(Found::Text(text, _)) => reading.read(text.as_bytes(), Path::new("the text"))?,
        _ => reading.read_all(&training, &named)?,
    }
    if let (0, Some(path)) = (reading.texts, training.first()) {
        return Err(CorpusError::Empty(path.clone()));
    }
    let (middle, bytes) = (reading.tokens.len(), reading.bytes);
    // What validates begins at its first character.
    reading.open_end = false;
    reading.read_all(&validation, &named)?;
    notes.append(&mut reading.notes());
    let (more_bytes, sha256) = (reading.bytes - bytes, hexadecimal(std::mem::take(&mut reading.hash)));
    let (text, origin) = match found {
        Some(Found::Text(text, origin)) => (Some(text), origin),
        _ => (None, Origin::of(training)),
    };
    let (tokens, tokenizer) = reading.finish(&origin)?;
    let all = tokens.len() as f64;
    let training_tokens = match (validation.is_empty(), options.validation_share) {
        (false, _) => middle,
        // The share that trains is the exact number that earlier runs were split by.
        (true, None) => (TRAINING_SHARE * all) as usize,
        (true, Some(share)) => ((1.0 - share) * all) as usize,
    };
    Ok(Corpus {
        training: training_tokens,
        tokens,
        tokenizer,
        text: text.filter(|_| matches!(origin, Origin::BuiltIn(_)) && validation.is_empty()),
        origin,
        validated_on: (!validation.is_empty()).then(|| (Origin::of(validation), more_bytes)),
        notes,
        bytes,
        sha256,
    })
}

/// The text of a file, or of `input` for `-`, as a model with this tokenizer would be trained on it: of bytes whatever
/// they are.
///
/// # Errors
/// If it cannot be read, or is not UTF-8.
pub fn read_prompt(
    path: &Path,
    input: &mut impl Read,
    tokenizer: &AnyTokenizer,
) -> Result<Vec<u8>, CorpusError> {
    let mut bytes = Vec::new();
    let read = if is_standard_input(path) {
        input.read_to_end(&mut bytes)
    } else {
        files::open(path)?.read_to_end(&mut bytes)
    };
    read.map_err(|error| CorpusError::Unreadable(path.into(), error))?;
    if matches!(tokenizer, AnyTokenizer::Byte(_)) {
        return Ok(bytes);
    }
    let not_utf8 = |position, encoding| CorpusError::NotUtf8 {
        path: path.into(),
        position,
        encoding,
        bytes: false,
        in_folder: false,
    };
    if let Some(encoding) = encoding::wide(&bytes[..bytes.len().min(1 << 16)]) {
        return Err(not_utf8(0, encoding));
    }
    let unix = tokenizer.encode("\r").is_err();
    let mut cleaner = Cleaner::new(Cleaning { unix, utf8: true });
    let clean = cleaner.push(&bytes, true);
    let clean = clean.map_err(|place| not_utf8(place, encoding::single_byte(&bytes, std::io::empty())))?;
    Ok(std::mem::take(clean))
}

/// Texts on their way to tokens.
struct Reading<'a> {
    encoder: Encoder<'a>,
    tokens: TokenBuf,
    cleaning: Cleaning,
    met: Met,
    hash: Sha256,
    /// Whether a text was read that did not end with a line break.
    open_end: bool,
    /// How many texts were read that are not blank.
    texts: usize,
    bytes: u64,
    /// Bytes of all files, as far as they are known.
    total: u64,
    progress: Option<Progress>,
}

impl<'a> Reading<'a> {
    fn new(
        vocabulary: Vocabulary<'a>,
        newlines: Option<Newlines>,
        paths: &[&[PathBuf]],
    ) -> Result<Self, CorpusError> {
        let encoder = Encoder::new(vocabulary)?;
        let utf8 = !matches!(encoder, Encoder::Bytes);
        let unix = newlines.map_or(utf8, |newlines| newlines == Newlines::Unix);
        let total = paths.iter().map(|paths| files::sizes(paths)).sum();
        let progress = (total > 1 << 25).then(|| Progress::new("reading the text", total, Unit::Bytes));
        let tokens = TokenBuf::with_vocab(encoder.vocab_size());
        let reading = Reading {
            encoder,
            tokens,
            cleaning: Cleaning { unix, utf8 },
            met: Met::default(),
            hash: Sha256::new(),
            open_end: false,
            texts: 0,
            bytes: 0,
            total,
            progress,
        };
        Ok(reading)
    }

    fn no_room(&self, more: usize) -> CorpusError {
        let held = self.tokens.bytes();
        let available = memory::available().map_or(held, |bytes| bytes.saturating_add(held));
        CorpusError::Memory { needed: held.saturating_add(more) as u64, available: available as u64 }
    }

    /// How many tokens are still to come, if what comes is as what was.
    fn coming(&self) -> usize {
        let per_byte = self.tokens.len() as f64 / self.bytes.max(1) as f64;
        (self.total.saturating_sub(self.bytes) as f64 * per_byte) as usize
    }

    /// The bytes of these.
    fn coming_bytes(&self) -> usize {
        let width = self.tokens.bytes().checked_div(self.tokens.len()).unwrap_or(1);
        self.coming().saturating_mul(width)
    }

    /// Refuses what the kernel would end the process for: what is still to be read, and `more` bytes besides.
    fn check_memory(&self, more: usize) -> Result<(), CorpusError> {
        let more = self.coming_bytes().saturating_add(more);
        match memory::available() {
            Some(available) if more > available => Err(self.no_room(more)),
            _ => Ok(()),
        }
    }

    /// Reads files, of which some were named and others are those of a folder.
    fn read_all(&mut self, paths: &[PathBuf], named: &dyn Fn(&PathBuf) -> bool) -> Result<(), CorpusError> {
        for path in paths {
            let read = self.read(files::open(path)?, path);
            read.or_else(|error| match error {
                // A folder may have files without a text.
                CorpusError::Empty(path) if !named(&path) => Ok(()),
                error => Err(error),
            })
            .map_err(|error| match error {
                CorpusError::NotUtf8 { path, position, encoding, bytes, .. } => {
                    let in_folder = !named(&path);
                    CorpusError::NotUtf8 { path, position, encoding, bytes, in_folder }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// Reads one text; between two that are not bytes alone there is a line break.
    fn read(&mut self, mut text: impl Read, path: &Path) -> Result<(), CorpusError> {
        if std::mem::take(&mut self.open_end) {
            self.push(b"\n")?;
        }
        let mut cleaner = Cleaner::new(self.cleaning);
        let mut buffer = vec![0; PIECE];
        let (mut blank, mut last_byte) = (true, b'\n');
        let mut filled = fill(&mut text, &mut buffer).map_err(|e| CorpusError::Unreadable(path.into(), e))?;
        if self.cleaning.utf8
            && let Some(encoding) = encoding::wide(&buffer[..filled.min(1 << 16)])
        {
            return Err(self.not_utf8(path, 0, encoding));
        }
        loop {
            let last = filled < PIECE;
            self.bytes += filled as u64;
            let clean = match cleaner.push(&buffer[..filled], last) {
                Ok(clean) => clean,
                Err(position) => {
                    let encoding = encoding::single_byte(&buffer[..filled], rest_of(text, path));
                    return Err(self.not_utf8(path, position, encoding));
                }
            };
            let whole = if self.cleaning.utf8 { whole(clean).len() } else { clean.len() };
            blank &= clean[..whole].iter().all(|byte| self.cleaning.utf8 && byte.is_ascii_whitespace());
            last_byte = clean[..whole].last().copied().unwrap_or(last_byte);
            self.push(&clean[..whole])?;
            clean.drain(..whole);
            if last {
                break;
            }
            if let Some(progress) = &self.progress {
                progress.at(self.bytes, "");
            }
            filled = fill(&mut text, &mut buffer).map_err(|e| CorpusError::Unreadable(path.into(), e))?;
        }
        if blank {
            return Err(CorpusError::Empty(path.into()));
        }
        self.texts += 1;
        self.open_end = self.cleaning.utf8 && !matches!(last_byte, b'\n' | b'\r');
        let met = cleaner.met();
        self.met.marks += met.marks;
        self.met.breaks += met.breaks;
        self.met.zeros += met.zeros;
        Ok(())
    }

    fn push(&mut self, clean: &[u8]) -> Result<(), CorpusError> {
        self.hash.update(clean);
        let more = self.encoder.widening(clean, &self.tokens) + clean.len();
        self.check_memory(more)?;
        let pushed = self.encoder.push(clean, &mut self.tokens);
        // Room for the rest at once, so that what is there need not be moved time and again.
        let pushed = pushed.and_then(|()| Ok(self.tokens.try_reserve(self.coming())?));
        match pushed {
            Err(TokenizerError::OutOfMemory) => Err(self.no_room(self.coming_bytes().saturating_add(more))),
            pushed => Ok(pushed?),
        }
    }

    fn not_utf8(&self, path: &Path, position: u64, encoding: &'static str) -> CorpusError {
        let bytes = !matches!(self.encoder, Encoder::Fixed { .. });
        CorpusError::NotUtf8 { path: path.into(), position, encoding, bytes, in_folder: false }
    }

    /// What the user should know of the texts.
    fn notes(&self) -> Vec<String> {
        let Met { marks, breaks, zeros } = self.met;
        let mut notes = Vec::new();
        if marks > 0 {
            notes.push("the byte-order mark at the beginning is no part of the text: it is left out".into());
        }
        if breaks > 0 {
            notes.push(format!(
                "{breaks} line breaks of CR LF or CR became LF; --newlines keep leaves them as they are"
            ));
        }
        if zeros > 0 && self.cleaning.utf8 {
            notes.push(format!(
                "the text has {zeros} zero bytes (NUL), each a character of its own: is it a text?"
            ));
        }
        notes
    }

    fn finish(mut self, origin: &Origin) -> Result<(TokenBuf, AnyTokenizer), CorpusError> {
        if let Some(progress) = &self.progress {
            progress.done();
        }
        let tokenizer = self.encoder.finish(&mut self.tokens, origin)?;
        Ok((self.tokens, tokenizer))
    }
}

/// What is still to come of a file; nothing of a pipe, whose writer may keep it waiting.
fn rest_of<'a>(text: impl Read + 'a, path: &Path) -> Box<dyn Read + 'a> {
    if path.is_file() { Box::new(text) } else { Box::new(std::io::empty()) }
}

/// Reads until the buffer is full or the text ends.
fn fill(text: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match text.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What makes tokens.
enum Encoder<'a> {
    Learn(CharLearner),
    Bytes,
    Fixed { tokenizer: &'a AnyTokenizer, ids: Vec<u32>, unknown: HashMap<char, u64> },
}

impl<'a> Encoder<'a> {
    fn new(vocabulary: Vocabulary<'a>) -> Result<Self, CorpusError> {
        Ok(match vocabulary {
            Vocabulary::Char => Encoder::Learn(CharLearner::new()?),
            Vocabulary::Byte | Vocabulary::Fixed(AnyTokenizer::Byte(_)) => Encoder::Bytes,
            Vocabulary::Fixed(tokenizer) => {
                Encoder::Fixed { tokenizer, ids: Vec::new(), unknown: HashMap::new() }
            }
        })
    }

    fn vocab_size(&self) -> usize {
        match self {
            Encoder::Learn(_) => 0,
            Encoder::Bytes => ByteTokenizer::VOCAB_SIZE,
            Encoder::Fixed { tokenizer, .. } => tokenizer.vocab_size(),
        }
    }

    /// Bytes that the tokens take besides for a moment, if those of this piece make them wider.
    fn widening(&self, clean: &[u8], tokens: &TokenBuf) -> usize {
        let Encoder::Learn(learner) = self else { return 0 };
        let (most, wider) = match tokens {
            TokenBuf::U8(_) => (1 << 8, 2),
            TokenBuf::U16(_) => (1 << 16, 4),
            TokenBuf::U32(_) => return 0,
        };
        // ASCII alone has too few characters to matter, and is most of what is read.
        if clean.is_ascii() || learner.vocab_size() + learner.unknown(whole(clean)) <= most {
            return 0;
        }
        wider * tokens.len()
    }

    /// Appends the tokens of whole characters, or of any bytes.
    fn push(&mut self, clean: &[u8], tokens: &mut TokenBuf) -> Result<(), TokenizerError> {
        match self {
            Encoder::Learn(learner) => learner.push(whole(clean), tokens),
            Encoder::Bytes => {
                match tokens {
                    TokenBuf::U8(tokens) => {
                        tokens.try_reserve(clean.len())?;
                        tokens.extend_from_slice(clean);
                    }
                    wider => clean.iter().try_for_each(|&byte| wider.push(byte.into()))?,
                }
                Ok(())
            }
            Encoder::Fixed { tokenizer, ids, unknown } => {
                ids.clear();
                let text = whole(clean);
                match tokenizer.encode_into(text, ids) {
                    Ok(()) => tokens.extend_from(ids)?,
                    // All of them are to be named.
                    Err(TokenizerError::UnknownCharacter { .. }) => {
                        count_unknown(tokenizer, text, unknown);
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            }
        }
    }

    fn finish(self, tokens: &mut TokenBuf, origin: &Origin) -> Result<AnyTokenizer, CorpusError> {
        match self {
            Encoder::Learn(learner) => Ok(learner.finish(tokens)?.into()),
            Encoder::Bytes => Ok(ByteTokenizer.into()),
            Encoder::Fixed { tokenizer, unknown, .. } if unknown.is_empty() => Ok(tokenizer.clone()),
            Encoder::Fixed { tokenizer, unknown, .. } => {
                let different = unknown.len();
                let mut characters: Vec<(char, u64)> = unknown.into_iter().collect();
                characters.sort_unstable_by_key(|&(character, count)| (std::cmp::Reverse(count), character));
                characters.truncate(NAMED);
                Err(CorpusError::Unknown {
                    text: origin.to_string(),
                    characters,
                    different,
                    vocab_size: tokenizer.vocab_size(),
                })
            }
        }
    }
}

/// Counts the characters of `text` that the tokenizer cannot spell.
fn count_unknown(tokenizer: &AnyTokenizer, text: &str, unknown: &mut HashMap<char, u64>) {
    let mut known: HashMap<char, bool> = HashMap::new();
    let (mut utf8, mut ids) = ([0; 4], Vec::new());
    for character in text.chars() {
        let is_known = *known.entry(character).or_insert_with(|| {
            ids.clear();
            tokenizer.encode_into(character.encode_utf8(&mut utf8), &mut ids).is_ok()
        });
        if !is_known {
            *unknown.entry(character).or_default() += 1;
        }
    }
}
