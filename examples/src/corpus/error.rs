//! Why there is no text.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use minigpt_core::TokenizerError;

use super::options::word;
use crate::options::human;

/// Why there is no text.
#[derive(Debug)]
#[non_exhaustive]
pub enum CorpusError {
    /// The file cannot be read.
    Unreadable(PathBuf, io::Error),
    /// A folder has no files.
    NoFiles(PathBuf),
    /// The file has no text.
    Empty(PathBuf),
    /// The file is not UTF-8.
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first byte that is not.
        position: u64,
        /// What it seems to be, as iconv calls it.
        encoding: &'static str,
        /// Whether its bytes could be trained on as they are.
        bytes: bool,
        /// Whether it is one of a folder's, and nobody named it.
        in_folder: bool,
    },
    /// Characters that the model's tokenizer does not know.
    Unknown {
        /// What the text is called.
        text: String,
        /// The most frequent of them, and how often each occurs.
        characters: Vec<(char, u64)>,
        /// How many different ones there are.
        different: usize,
        /// How many tokens the vocabulary has.
        vocab_size: usize,
    },
    /// The text does not fit in memory.
    Memory {
        /// Bytes that its tokens take.
        needed: u64,
        /// Bytes that are available.
        available: u64,
    },
    /// The share that validates leaves nothing to train on, or nothing to validate on.
    Share(f64),
    /// The standard input is named twice.
    StandardInput,
    /// The text of a run came in by the standard input; these flags name it.
    Piped(String),
    /// What is wrong with the text of a run, which was named with these flags.
    OfRun(String, Box<CorpusError>),
    /// The text could not be made tokens.
    Tokenizer(TokenizerError),
    /// The built-in grammar is broken.
    Grammar(String),
}

impl fmt::Display for CorpusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CorpusError::Unreadable(path, error) => {
                write!(f, "cannot read {}: {error}; check the path, and name a text file", path.display())
            }
            CorpusError::NoFiles(path) => {
                write!(
                    f,
                    "there are no files in {}, and folders in it are left alone: name a folder that has some, or a file",
                    path.display()
                )
            }
            CorpusError::Empty(path) if super::is_standard_input(path) => {
                f.write_str("nothing came in by the standard input: pipe a text in, or name a file")
            }
            CorpusError::Empty(path) => {
                write!(f, "{} is empty; name a file with some text in it", path.display())
            }
            CorpusError::NotUtf8 { path, position, encoding, bytes, in_folder } => {
                write!(f, "{} is not UTF-8 text (byte {position}); ", path.display())?;
                if !path.is_file() {
                    write!(f, "pipe it through: iconv -f {encoding} -t UTF-8")?;
                } else {
                    let to = free(path);
                    let (from, to) = (word(path), word(&to));
                    let iconv = format!("iconv -f {encoding} -t UTF-8 {from} > {to}");
                    match in_folder {
                        false => write!(f, "convert it and name the new file: {iconv}")?,
                        true => write!(
                            f,
                            "convert it, and keep the folder to texts in UTF-8: {iconv} && mv {to} {from}"
                        )?,
                    }
                }
                match bytes {
                    true => f.write_str("\nor train on its bytes as they are, with --tokenizer byte"),
                    false => Ok(()),
                }
            }
            CorpusError::Unknown { text, characters, different, vocab_size } => {
                write!(
                    f,
                    "{different} characters of the text ({text}) are not among the {vocab_size} that the model's tokenizer \
                     knows: "
                )?;
                for (i, (character, count)) in characters.iter().enumerate() {
                    let separator = if i > 0 { ", " } else { "" };
                    let times = if *count == 1 { "once".into() } else { format!("{count} times") };
                    write!(f, "{separator}{character:?} (U+{:04X}) {times}", u32::from(*character))?;
                }
                if *different > characters.len() {
                    write!(f, " and {} more", different - characters.len())?;
                }
                f.write_str("; remove or replace them, or train a new model on text that has them")
            }
            CorpusError::Memory { needed, available } => write!(
                f,
                "the text takes {} of memory as tokens, and {} are available: name a shorter one with --data, or train \
                 where there is more memory",
                human(*needed as usize),
                human(*available as usize)
            ),
            CorpusError::Share(share) => write!(
                f,
                "--validation-share {share} is not between 0 and 1: 0.1 is common; --validation names a text of its own"
            ),
            CorpusError::StandardInput => {
                f.write_str("the standard input (-) can be read once: name it once")
            }
            CorpusError::Piped(flags) => write!(
                f,
                "the run was trained with {flags}, where - is what comes in by the standard input: pipe the same text in \
                 again, and name it with {flags}"
            ),
            CorpusError::OfRun(flags, error) => write!(f, "the run was trained with {flags}: {error}"),
            CorpusError::Tokenizer(error) => error.fmt(f),
            CorpusError::Grammar(error) => write!(f, "the built-in grammar is ambiguous: {error}"),
        }
    }
}

/// A name beside the file that nothing has.
fn free(path: &Path) -> PathBuf {
    let names = (1u32..).map(|n| if n == 1 { "utf8.txt".into() } else { format!("utf8-{n}.txt") });
    let mut names = names.map(|name: String| path.with_extension(name));
    names.find(|name| !name.exists()).unwrap_or_else(|| path.with_extension("utf8.txt"))
}

impl std::error::Error for CorpusError {}

impl From<TokenizerError> for CorpusError {
    fn from(error: TokenizerError) -> Self {
        CorpusError::Tokenizer(error)
    }
}
