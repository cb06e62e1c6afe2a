//! Tiny Shakespeare from its public address, held to its hash.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::{Search, sha256};

/// Why a download is of no use.
#[derive(Debug)]
#[non_exhaustive]
pub enum DownloadError {
    /// No answer, or none in time, or it broke off.
    Transfer(String),
    /// The server answered with an error.
    Status(u16),
    /// The body has another length than it should.
    Length {
        /// What it should be, in bytes.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// The body has the right length and the wrong contents.
    Hash(String),
}

impl fmt::Display for DownloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownloadError::Transfer(error) => write!(f, "{error}"),
            DownloadError::Status(status) => write!(f, "the server answers with status {status}"),
            DownloadError::Length { expected, found } if found > expected => {
                write!(f, "it is longer than {expected} bytes")
            }
            DownloadError::Length { expected, found } => {
                write!(f, "it is {found} bytes long and not {expected}")
            }
            DownloadError::Hash(found) => write!(f, "it is not the known text: its SHA-256 is {found}"),
        }
    }
}

impl std::error::Error for DownloadError {}

/// Fetches the text and checks it.
///
/// # Errors
/// If it does not come, in time, or is not the one.
pub fn download(search: &Search) -> Result<String, DownloadError> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(search.connect_timeout))
        .timeout_global(Some(search.timeout))
        .build()
        .into();
    let failed = |error| match error {
        ureq::Error::StatusCode(status) => DownloadError::Status(status),
        ureq::Error::BodyExceedsLimit(_) => {
            DownloadError::Length { expected: search.length, found: search.length.saturating_add(1) }
        }
        other => DownloadError::Transfer(other.to_string()),
    };
    let mut response = agent.get(&search.url).call().map_err(failed)?;
    let body = response.body_mut().with_config().limit(search.length as u64 + 1);
    let bytes = body.read_to_vec().map_err(failed)?;
    if bytes.len() != search.length {
        return Err(DownloadError::Length { expected: search.length, found: bytes.len() });
    }
    let hash = sha256(&bytes);
    if hash != search.sha256 {
        return Err(DownloadError::Hash(hash));
    }
    String::from_utf8(bytes).map_err(|_| DownloadError::Hash(hash))
}

/// Writes the whole file or leaves none: to a temporary name in the same folder, then renamed.
pub(super) fn save(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension(format!("{}.part", std::process::id()));
    let written = fs::File::create(&partial)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&partial);
    }
    written
}
