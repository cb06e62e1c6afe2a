//! The text to train on: a file, tiny Shakespeare, or else the built-in plays.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::play::Play;

/// Where tiny Shakespeare is found.
pub const URL: &str =
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt";

/// The variable that names another address, for a mirror or a test.
pub const URL_VARIABLE: &str = "MINIGPT_CORPUS_URL";

/// The variable that names a folder with the text.
pub const FOLDER_VARIABLE: &str = "MINIGPT_DATA";

/// What the text is called in a folder, the name that a download gets first.
pub const NAMES: [&str; 2] = ["tiny_shakespeare.txt", "input.txt"];

/// Where to look, and how long.
#[derive(Debug, Clone)]
pub struct Search {
    /// The file that the user asked for; nothing else will do.
    pub file: Option<PathBuf>,
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
    /// As the environment says, for the file that the user named, if any.
    pub fn from_environment(file: Option<PathBuf>) -> Self {
        Search {
            file,
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
    /// It was there.
    File(PathBuf),
    /// It was downloaded, and can be found here the next time, if it could be saved.
    Downloaded(Option<PathBuf>),
    /// It was written by the built-in generator, from this seed.
    BuiltIn(u64),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Downloaded(Some(path)) => write!(f, "downloaded to {}", path.display()),
            Origin::Downloaded(None) => write!(f, "downloaded"),
            Origin::BuiltIn(seed) => write!(f, "built-in plays, seed {seed}"),
        }
    }
}

/// A text and its story.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// The text.
    pub text: String,
    /// Where it came from.
    pub origin: Origin,
    /// What the user should know of the search, a line each.
    pub notes: Vec<String>,
}

/// Why there is no text.
#[derive(Debug)]
#[non_exhaustive]
pub enum CorpusError {
    /// The file cannot be read.
    Unreadable(PathBuf, io::Error),
    /// The file has no text.
    Empty(PathBuf),
    /// The file is not UTF-8, from this byte on.
    NotUtf8(PathBuf, usize),
    /// The built-in grammar is broken.
    Grammar(String),
}

impl fmt::Display for CorpusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CorpusError::Unreadable(path, error) => write!(
                f,
                "cannot read {}: {error}; name a text file with --data, or leave --data out",
                path.display()
            ),
            CorpusError::Empty(path) => {
                write!(f, "{} is empty; name a file with some text in it with --data", path.display())
            }
            CorpusError::NotUtf8(path, position) => write!(
                f,
                "{} is not UTF-8 text (byte {position}); convert it first, for example with iconv -t UTF-8",
                path.display()
            ),
            CorpusError::Grammar(error) => write!(f, "the built-in grammar is ambiguous: {error}"),
        }
    }
}

impl std::error::Error for CorpusError {}

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

/// The built-in corpus: the plays of one seed, about as long as tiny Shakespeare.
///
/// # Errors
/// If the grammar is ambiguous, which a test excludes.
pub fn built_in() -> Result<Corpus, CorpusError> {
    let play = Play::new().map_err(CorpusError::Grammar)?;
    let text = play.generate(Play::SEED, Play::LENGTH);
    Ok(Corpus { text, origin: Origin::BuiltIn(Play::SEED), notes: Vec::new() })
}

/// Finds the text: the file asked for; else the folder of the environment; else the local folder; else by download;
/// else the built-in plays.
///
/// # Errors
/// If a file that was named or found cannot be used.
pub fn find(search: &Search) -> Result<Corpus, CorpusError> {
    if let Some(path) = &search.file {
        return Ok(Corpus { text: read(path)?, origin: Origin::File(path.clone()), notes: Vec::new() });
    }
    let mut notes = Vec::new();
    for folder in search.folder.iter().chain([&search.local]) {
        if let Some(path) = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
            return Ok(Corpus { text: read(&path)?, origin: Origin::File(path), notes });
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
            let saved = save(&path, &text);
            if let Err(error) = &saved {
                notes.push(format!("cannot keep the download in {}: {error}", path.display()));
            }
            Ok(Corpus { text, origin: Origin::Downloaded(saved.ok().map(|()| path)), notes })
        }
        Err(error) => {
            notes.push(format!(
                "cannot download tiny Shakespeare ({error}): training on the built-in plays instead; to train on \
                 another text, name it with --data"
            ));
            Ok(Corpus { notes, ..built_in()? })
        }
    }
}

fn read(path: &Path) -> Result<String, CorpusError> {
    let bytes = fs::read(path).map_err(|error| CorpusError::Unreadable(path.into(), error))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| CorpusError::NotUtf8(path.into(), error.utf8_error().valid_up_to()))?;
    if text.trim().is_empty() { Err(CorpusError::Empty(path.into())) } else { Ok(text) }
}

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

/// The SHA-256 of `bytes`, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the whole file or leaves none: to a temporary name in the same folder, then renamed.
fn save(path: &Path, text: &str) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};
    use std::time::Instant;

    use super::*;
    use crate::scratch::Scratch;

    const TEXT: &str = "To train, or not to train.\n";

    /// A server on the loopback interface that answers one request with `answer` and then waits for `pause`.
    fn serve(answer: String, pause: Duration) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
            stream.flush().unwrap();
            thread::sleep(pause);
        });
        (format!("http://{address}/input.txt"), server)
    }

    fn ok(body: &str, length: usize) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    }

    fn search(scratch: &Scratch, url: String) -> Search {
        Search {
            file: None,
            folder: None,
            local: scratch.path("data"),
            url,
            connect_timeout: Duration::from_millis(500),
            timeout: Duration::from_millis(500),
            length: TEXT.len(),
            sha256: sha256(TEXT.as_bytes()),
        }
    }

    /// Downloads what `answer` serves and expects the built-in plays instead, a note that says why, and no file.
    fn refused(answer: String, pause: Duration, why: &str) {
        let scratch = Scratch::new();
        let (url, server) = serve(answer, pause);
        let corpus = find(&search(&scratch, url)).unwrap();
        assert_eq!(corpus.origin, Origin::BuiltIn(Play::SEED));
        assert_eq!(corpus.notes.len(), 1);
        let note = &corpus.notes[0];
        assert!(note.contains(why), "{note}");
        assert!(!note.contains('\n') && note.contains("--data"), "{note}");
        assert!(!scratch.path("data").exists());
        server.join().unwrap();
    }

    #[test]
    fn the_right_text_is_downloaded_once_and_kept() {
        let scratch = Scratch::new();
        let (url, server) = serve(ok(TEXT, TEXT.len()), Duration::ZERO);
        let search = search(&scratch, url);
        let kept = scratch.path("data").join("tiny_shakespeare.txt");
        let corpus = find(&search).unwrap();
        server.join().unwrap();
        assert_eq!((corpus.text.as_str(), corpus.origin), (TEXT, Origin::Downloaded(Some(kept.clone()))));
        assert_eq!(fs::read_dir(scratch.path("data")).unwrap().count(), 1, "no partial file is left");
        // The server is gone: the second time the file is used.
        assert_eq!(find(&search).unwrap().origin, Origin::File(kept));
    }

    #[test]
    fn wrong_contents_are_refused() {
        refused(
            ok(&TEXT.to_uppercase(), TEXT.len()),
            Duration::ZERO,
            "it is not the known text: its SHA-256 is",
        );
    }

    #[test]
    fn a_short_text_is_refused() {
        refused(ok(&TEXT[..9], 9), Duration::ZERO, "it is 9 bytes long and not 27");
    }

    #[test]
    fn a_body_that_breaks_off_is_refused() {
        refused(ok(&TEXT[..9], TEXT.len()), Duration::ZERO, "cannot download tiny Shakespeare");
    }

    #[test]
    fn a_long_text_is_refused_without_reading_it_all() {
        refused(ok(&TEXT.repeat(2), TEXT.len() * 2), Duration::ZERO, "it is longer than 27 bytes");
    }

    #[test]
    fn an_error_of_the_server_is_named() {
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        refused(answer.into(), Duration::ZERO, "status 404");
    }

    #[test]
    fn a_server_that_hangs_costs_no_more_than_the_timeout() {
        let started = Instant::now();
        refused(String::new(), Duration::from_millis(1500), "timeout");
        refused(ok(&TEXT[..9], TEXT.len()), Duration::from_millis(1500), "timeout");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn no_network_means_the_built_in_plays() {
        let scratch = Scratch::new();
        // Bound and dropped: nobody listens there.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let corpus = find(&search(&scratch, format!("http://{address}/"))).unwrap();
        assert_eq!(corpus.origin, Origin::BuiltIn(Play::SEED));
        assert!(corpus.text.len() >= Play::LENGTH);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_an_error_that_says_what_to_do() {
        let scratch = Scratch::new();
        let nowhere = || search(&scratch, "http://127.0.0.1:1/".into());
        for (contents, message) in [
            (None, "cannot read"),
            (Some(&b""[..]), "is empty"),
            (Some(b" \n\n"), "is empty"),
            (Some(b"abc\xff"), "is not UTF-8 text (byte 3)"),
        ] {
            let path = scratch.path("corpus.txt");
            if let Some(contents) = contents {
                fs::write(&path, contents).unwrap();
            }
            let error = find(&Search { file: Some(path), ..nowhere() }).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("corpus.txt"), "{error}");
        }
    }

    #[test]
    fn folders_are_searched_in_order_and_by_both_names() {
        let scratch = Scratch::new();
        let folder = scratch.path("elsewhere");
        let mut search = search(&scratch, "http://127.0.0.1:1/".into());
        search.folder = Some(folder.clone());
        fs::create_dir(&search.local).unwrap();
        fs::write(search.local.join("tiny_shakespeare.txt"), "local").unwrap();
        let corpus = find(&search).unwrap();
        assert_eq!(corpus.text, "local");
        assert!(corpus.notes[0].contains("elsewhere"), "{}", corpus.notes[0]);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("input.txt"), "by the second name").unwrap();
        assert_eq!(find(&search).unwrap().text, "by the second name");
        fs::write(folder.join("tiny_shakespeare.txt"), "by the first name").unwrap();
        assert_eq!(find(&search).unwrap().text, "by the first name");
    }
}
