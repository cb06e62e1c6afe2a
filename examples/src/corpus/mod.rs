//! The text to train on: files, tiny Shakespeare, or else the built-in plays; as tokens, read in pieces.
//!
//! `options` are the flags, `files` the files that they name, `download` fetches tiny Shakespeare, `text` makes clean
//! text of bytes as they come, `encoding` tells what else they might be, `reading` makes tokens of it all, and `remembered`
//! is where the text of a run lies.

mod download;
mod encoding;
mod error;
mod files;
mod options;
mod reading;
mod remembered;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minigpt_core::{AnyTokenizer, TokenBuf, Tokenizer, Tokens};
use sha2::{Digest, Sha256};

use crate::play::Play;

pub use download::{DownloadError, download};
pub use error::CorpusError;
pub use options::{Newlines, TextOptions, word};
pub use reading::{read, read_prompt};
pub use remembered::{path_in, read_of_checkpoint, read_of_run, remember, remembered};

/// Where tiny Shakespeare is found.
pub const URL: &str =
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt";

/// The variable that names another address, for a mirror or a test.
pub const URL_VARIABLE: &str = "MINIGPT_CORPUS_URL";

/// The variable that names a folder with the text.
pub const FOLDER_VARIABLE: &str = "MINIGPT_DATA";

/// What the text is called in a folder, the name that a download gets first.
pub const NAMES: [&str; 2] = ["tiny_shakespeare.txt", "input.txt"];

/// Where to look if the user names no text, and how long.
#[derive(Debug, Clone)]
pub struct Search {
    /// The folder of [`FOLDER_VARIABLE`].
    pub folder: Option<PathBuf>,
    /// The folder to look in next, and to keep a download in.
    pub local: PathBuf,
    /// Where to download from.
    pub url: String,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long to wait for it all.
    pub timeout: Duration,
    /// The length of the right text in bytes.
    pub length: usize,
    /// The SHA-256 of the right text, in hexadecimal.
    pub sha256: String,
}

impl Search {
    /// As the environment says.
    pub fn from_environment() -> Self {
        Search {
            folder: std::env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from),
            local: PathBuf::from("data"),
            url: std::env::var(URL_VARIABLE).unwrap_or_else(|_| URL.into()),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            length: 1_115_394,
            sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed".into(),
        }
    }
}

/// Where a text came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It was there, in one file or several.
    Files(Vec<PathBuf>),
    /// It came in.
    StandardInput,
    /// It was downloaded, and can be found here the next time, if it could be saved.
    Downloaded(Option<PathBuf>),
    /// It was written by the built-in generator, from this seed.
    BuiltIn(u64),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Files(paths) => match paths.as_slice() {
                [] => f.write_str("no files"),
                [path] => path.display().fmt(f),
                [first, .., last] => {
                    write!(f, "{} files, from {} to {}", paths.len(), first.display(), last.display())
                }
            },
            Origin::StandardInput => f.write_str("the standard input"),
            Origin::Downloaded(Some(path)) => write!(f, "downloaded to {}", path.display()),
            Origin::Downloaded(None) => f.write_str("downloaded"),
            Origin::BuiltIn(seed) => write!(f, "built-in plays, seed {seed}"),
        }
    }
}

/// What a text is turned into tokens by.
#[derive(Debug, Clone, Copy)]
pub enum Vocabulary<'a> {
    /// A tokenizer of its own characters.
    Char,
    /// Its bytes, whatever they are.
    Byte,
    /// The tokenizer of a model.
    Fixed(&'a AnyTokenizer),
}

/// A text as tokens, and its story.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// The tokens that train, and behind them those that validate.
    pub tokens: TokenBuf,
    /// How many tokens train.
    pub training: usize,
    /// What they are tokens of.
    pub tokenizer: AnyTokenizer,
    /// Where the text came from.
    pub origin: Origin,
    /// What the user should know of the search and of the text, a line each.
    pub notes: Vec<String>,
    /// Bytes that were read of it.
    pub bytes: u64,
    /// The text of its own that validates, if there is one, and its bytes.
    pub validated_on: Option<(Origin, u64)>,
    /// The SHA-256 of the text as it is trained and validated on: of one file that is taken as it is, that of the file.
    pub sha256: String,
    /// The text itself, of the built-in plays only where they also validate.
    pub text: Option<String>,
}

impl Corpus {
    /// The tokens that train.
    pub fn training(&self) -> Tokens<'_> {
        self.tokens.as_tokens().split_at(self.training).0
    }

    /// The token that texts of this kind begin behind, where nobody says another: a line break, or what parts texts in its
    /// place, if there is one in the text; else the first of it.
    pub fn start(&self) -> u32 {
        let tokens = self.tokens.as_tokens();
        let parts = ["\n", "\r", " "].iter().filter_map(|text| self.tokenizer.encode(text).ok());
        let mut parts = parts.filter_map(|ids| ids.first().copied());
        parts.find(|&id| tokens.iter().any(|token| token == id)).or_else(|| tokens.iter().next()).unwrap_or(0)
    }

    /// The tokens that validate.
    pub fn validation(&self) -> Tokens<'_> {
        self.tokens.as_tokens().split_at(self.training).1
    }
}

impl Origin {
    /// Of a text in these files.
    fn of(files: Vec<PathBuf>) -> Origin {
        match files.as_slice() {
            [one] if is_standard_input(one) => Origin::StandardInput,
            _ => Origin::Files(files),
        }
    }
}

/// A text that was found where the user named none.
enum Found {
    File(PathBuf),
    Text(String, Origin),
}

/// The plays of one seed, about as long as tiny Shakespeare.
fn built_in() -> Result<Found, CorpusError> {
    let play = Play::new().map_err(CorpusError::Grammar)?;
    Ok(Found::Text(play.generate(Play::SEED, Play::LENGTH), Origin::BuiltIn(Play::SEED)))
}

/// Finds a text: in the folder of the environment; else in the local folder; else by download; else it is the built-in
/// plays.
fn find(search: &Search, notes: &mut Vec<String>) -> Result<Found, CorpusError> {
    for folder in search.folder.iter().chain([&search.local]) {
        if let Some(path) = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
            return Ok(Found::File(path));
        }
        if search.folder.as_ref() == Some(folder) {
            notes.push(format!(
                "{FOLDER_VARIABLE}: {} has neither {} nor {}; looking elsewhere",
                folder.display(),
                NAMES[0],
                NAMES[1]
            ));
        }
    }
    match download(search) {
        Ok(text) => {
            let path = search.local.join(NAMES[0]);
            let saved = download::save(&path, &text);
            if let Err(error) = &saved {
                notes.push(format!("cannot keep the download in {}: {error}", path.display()));
            }
            Ok(Found::Text(text, Origin::Downloaded(saved.ok().map(|()| path))))
        }
        Err(error) => {
            notes.push(format!(
                "cannot download tiny Shakespeare ({error}): training on the built-in plays instead; to train on \
                 another text, name it with --data"
            ));
            built_in()
        }
    }
}

/// The SHA-256 of `bytes`, in hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes))
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a path stands for the standard input.
fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}
