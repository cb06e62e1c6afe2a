//! What is read, what is refused, and that the advice of a refusal works.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use minigpt_core::{CharTokenizer, Tokenizer};

use super::*;
use crate::options::{load_which, open};
use crate::testing::Scratch;

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
        folder: None,
        local: scratch.path("data"),
        url,
        connect_timeout: Duration::from_millis(500),
        timeout: Duration::from_millis(500),
        length: TEXT.len(),
        sha256: sha256(TEXT.as_bytes()),
    }
}

/// What is found where the user names no text.
fn found(search: &Search) -> Corpus {
    read(search, &TextOptions::default(), Vocabulary::Char).unwrap()
}

/// The text of all tokens.
fn text(corpus: &Corpus) -> String {
    let tokens: Vec<u32> = corpus.tokens.as_tokens().iter().collect();
    corpus.tokenizer.decode(&tokens).unwrap()
}

/// Downloads what `answer` serves and expects the built-in plays instead, a note that says why, and no file.
fn refused(answer: String, pause: Duration, why: &str) {
    let scratch = Scratch::new();
    let (url, server) = serve(answer, pause);
    let corpus = found(&search(&scratch, url));
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
    let corpus = found(&search);
    server.join().unwrap();
    assert_eq!((text(&corpus).as_str(), &corpus.origin), (TEXT, &Origin::Downloaded(Some(kept.clone()))));
    assert_eq!(fs::read_dir(scratch.path("data")).unwrap().count(), 1, "no partial file is left");
    // The server is gone: the second time the file is used.
    assert_eq!(found(&search).origin, Origin::Files(vec![kept]));
}

#[test]
fn wrong_contents_are_refused() {
    refused(ok(&TEXT.to_uppercase(), TEXT.len()), Duration::ZERO, "it is not the known text: its SHA-256 is");
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
    let corpus = found(&search(&scratch, format!("http://{address}/")));
    assert_eq!(corpus.origin, Origin::BuiltIn(Play::SEED));
    assert!(corpus.text.unwrap().len() >= Play::LENGTH);
    assert!(corpus.tokens.len() >= Play::LENGTH);
}

#[test]
fn folders_are_searched_in_order_and_by_both_names() {
    let scratch = Scratch::new();
    let folder = scratch.path("elsewhere");
    let mut search = search(&scratch, "http://127.0.0.1:1/".into());
    search.folder = Some(folder.clone());
    fs::create_dir(&search.local).unwrap();
    fs::write(search.local.join("tiny_shakespeare.txt"), "local").unwrap();
    let corpus = found(&search);
    assert_eq!(text(&corpus), "local");
    assert!(corpus.notes[0].contains("elsewhere"), "{}", corpus.notes[0]);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("input.txt"), "by the second name").unwrap();
    assert_eq!(text(&found(&search)), "by the second name");
    fs::write(folder.join("tiny_shakespeare.txt"), "by the first name").unwrap();
    assert_eq!(text(&found(&search)), "by the first name");
}

/// The options of a text with these bytes, in a file of `scratch`.
fn file(scratch: &Scratch, name: &str, bytes: &[u8]) -> TextOptions {
    let path = scratch.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    TextOptions { data: vec![path], ..TextOptions::default() }
}

fn read_as(options: &TextOptions, vocabulary: Vocabulary<'_>) -> Result<Corpus, CorpusError> {
    read(&Search::from_environment(), options, vocabulary)
}

fn read_text(options: &TextOptions) -> Corpus {
    read_as(options, Vocabulary::Char).unwrap()
}

fn refused_as(options: &TextOptions, vocabulary: Vocabulary<'_>) -> String {
    read_as(options, vocabulary).unwrap_err().to_string()
}

#[test]
fn a_file_that_cannot_be_used_is_an_error_that_says_what_to_do() {
    let scratch = Scratch::new();
    for (contents, message) in
        [(&b""[..], "is empty"), (b" \n\n", "is empty"), (b"abc\xff", "is not UTF-8 text (byte 3)")]
    {
        let error = refused_as(&file(&scratch, "corpus.txt", contents), Vocabulary::Char);
        assert!(error.contains(message) && error.contains("corpus.txt"), "{error}");
    }
    let missing = TextOptions { data: vec![scratch.path("missing")], ..TextOptions::default() };
    let error = refused_as(&missing, Vocabulary::Char);
    assert!(
        error.contains("cannot read") && error.ends_with("check the path, and name a text file"),
        "{error}"
    );
    read_text(&file(&scratch, "missing", b"here now"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_text_beyond_memory_is_refused_before_it_is_read_and_a_shorter_one_is_not() {
    let scratch = Scratch::new();
    let options = file(&scratch, "long.txt", b"the beginning of a long text");
    let long = fs::File::options().write(true).open(&options.data[0]).unwrap();
    // Zeros that take no room on the disk.
    long.set_len(1 << 42).unwrap();
    for vocabulary in [Vocabulary::Char, Vocabulary::Byte] {
        let message = refused_as(&options, vocabulary);
        assert!(message.starts_with("the text takes 4.4 TB of memory as tokens, and "), "{message}");
        assert!(message.contains("name a shorter one with --data"), "{message}");
    }
    long.set_len(28).unwrap();
    assert_eq!(text(&read_text(&options)), "the beginning of a long text");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let scratch = Scratch::new();
    let corpus = read_text(&file(&scratch, "bom.txt", "\u{FEFF}dog the \u{FEFF}".as_bytes()));
    // Only the one at the beginning is a mark.
    assert_eq!(text(&corpus), "dog the \u{FEFF}");
    assert!(corpus.notes[0].contains("byte-order mark") && corpus.notes.len() == 1, "{:?}", corpus.notes);
}

#[test]
fn line_breaks_become_one_kind_unless_they_are_to_stay() {
    let scratch = Scratch::new();
    for (name, contents, unix) in [
        ("bomcrlf.txt", "\u{FEFF}dog\r\n the\r\n", "dog\n the\n"),
        ("cr.txt", "dog\r the\r\rbarn", "dog\n the\n\nbarn"),
    ] {
        let options = file(&scratch, name, contents.as_bytes());
        let corpus = read_text(&options);
        assert_eq!(text(&corpus), unix);
        assert!(corpus.notes.iter().any(|note| note.contains("--newlines keep")), "{:?}", corpus.notes);
        // As the note says.
        let kept = read_text(&TextOptions { newlines: Some(Newlines::Keep), ..options });
        assert_eq!(text(&kept), contents.trim_start_matches('\u{FEFF}'));
        assert!(!kept.notes.iter().any(|note| note.contains("line breaks")));
    }
}

#[test]
fn zero_bytes_are_said() {
    let scratch = Scratch::new();
    let corpus = read_text(&file(&scratch, "nul.txt", b"some text\0 and\0 more"));
    assert_eq!(text(&corpus), "some text\0 and\0 more");
    assert!(corpus.notes[0].contains("2 zero bytes"), "{:?}", corpus.notes);
}

#[test]
fn any_bytes_at_all_are_a_text_of_the_byte_tokenizer() {
    let scratch = Scratch::new();
    let all: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let utf16: Vec<u8> = "\u{FEFF}dog".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [&all[..], &utf16, "\u{FEFF}a\r\nb\rc".as_bytes(), b"caf\xe9", &[0; 40]] {
        let options = file(&scratch, "bytes", bytes);
        let corpus = read_as(&options, Vocabulary::Byte).unwrap();
        assert_eq!(corpus.tokens, TokenBuf::U8(bytes.to_vec()));
        assert_eq!((corpus.sha256.clone(), corpus.notes.len()), (sha256(bytes), 0));
    }
    let options = file(&scratch, "bytes", b"a\r\nb\xff\rc");
    let unix = TextOptions { newlines: Some(Newlines::Unix), ..options };
    assert_eq!(read_as(&unix, Vocabulary::Byte).unwrap().tokens, TokenBuf::U8(b"a\nb\xff\nc".to_vec()));
}

/// Runs the command that the message advises in a shell, and reads the file that it names.
#[cfg(target_os = "linux")]
fn converted(message: &str) -> Corpus {
    let command = message.split_once("iconv").unwrap().1.lines().next().unwrap();
    let status = Command::new("sh").args(["-c", &format!("iconv{command}")]).status().unwrap();
    assert!(status.success(), "iconv{command}");
    let name = command.split_once(" > ").unwrap().1.trim_matches('\'');
    read_text(&TextOptions { data: vec![name.into()], ..TextOptions::default() })
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_of_a_folder_is_converted_in_its_place() {
    let scratch = Scratch::new();
    let mut options = file(&scratch, "folder/a.txt", b"caf\xe9");
    file(&scratch, "folder/b.txt", b" et th\xe9");
    // A name that is taken is not written over.
    file(&scratch, "folder/a.utf8.txt", b"");
    options.data = vec![scratch.path("folder")];
    for _ in 0..2 {
        let message = refused_as(&options, Vocabulary::Char);
        let command = message.split_once("iconv").unwrap().1.lines().next().unwrap();
        assert!(command.contains(" && mv "), "{message}");
        assert!(Command::new("sh").args(["-c", &format!("iconv{command}")]).status().unwrap().success());
    }
    assert_eq!(text(&read_text(&options)), "café\n et thé");
    assert!(scratch.path("folder/a.utf8.txt").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn another_encoding_is_told_and_the_advice_converts_it() {
    let scratch = Scratch::new();
    let pairs = |order: fn(u16) -> [u8; 2], mark: &str| -> Vec<u8> {
        format!("{mark}dog the café").encode_utf16().flat_map(order).collect()
    };
    for (name, bytes, expected) in [
        ("latin1.txt", b"caf\xe9 caf\xe9".to_vec(), "café café"),
        ("windows.txt", b"\x93caf\xe9\x94 \x80".to_vec(), "“café” €"),
        ("latin c1.txt", b"caf\xe9\x81".to_vec(), "café\u{81}"),
        ("utf16.txt", pairs(u16::to_le_bytes, "\u{FEFF}"), "dog the café"),
        ("utf16be.txt", pairs(u16::to_be_bytes, "\u{FEFF}"), "dog the café"),
        ("no mark.txt", pairs(u16::to_le_bytes, ""), "dog the café"),
        ("no mark be.txt", pairs(u16::to_be_bytes, ""), "dog the café"),
        ("utf32.txt", "\u{FEFF}dog".chars().map(u32::from).flat_map(u32::to_le_bytes).collect(), "dog"),
    ] {
        let options = file(&scratch, name, &bytes);
        let message = refused_as(&options, Vocabulary::Char);
        assert!(message.contains(name) && message.contains("--tokenizer byte"), "{message}");
        assert_eq!(text(&converted(&message)), expected, "{message}");
        // The other advice.
        assert_eq!(read_as(&options, Vocabulary::Byte).unwrap().tokens.len(), bytes.len());
    }
}

#[test]
fn several_files_and_folders_are_one_text_in_order() {
    let scratch = Scratch::new();
    let mut options = file(&scratch, "folder/b.txt", b"second\n");
    file(&scratch, "folder/a.txt", b"first");
    file(&scratch, "folder/notes.md", b"not a text");
    file(&scratch, "folder/deeper/c.txt", b"too deep");
    file(&scratch, "single", b"third");
    options.data = vec![scratch.path("folder"), scratch.path("single")];
    let corpus = read_text(&options);
    assert_eq!(text(&corpus), "first\nsecond\nthird");
    assert_eq!(corpus.origin.to_string().split(' ').next(), Some("3"));
    // Files without a text are no reason to refuse the others, nor are hidden ones, nor bytes that are no text.
    file(&scratch, "folder/blank.txt", b" \n");
    file(&scratch, "folder/empty.txt", b"");
    file(&scratch, "folder/.hidden.txt", b"\xff");
    let corpus = read_text(&options);
    assert_eq!(text(&corpus), "first\nsecond\n \nthird");
    assert!(corpus.notes[0].contains("3 of 4 files"), "{:?}", corpus.notes);
    // Bytes are joined as they are.
    let bytes = read_as(&options, Vocabulary::Byte).unwrap();
    assert_eq!(bytes.tokens, TokenBuf::U8(b"firstsecond\n \nthird".to_vec()));
    // A folder without texts by name has them all.
    file(&scratch, "others/one", b"one");
    options.data = vec![scratch.path("others")];
    assert_eq!(text(&read_text(&options)), "one");
    fs::create_dir(scratch.path("empty")).unwrap();
    options.data = vec![scratch.path("empty")];
    let message = refused_as(&options, Vocabulary::Char);
    assert!(
        message.contains("there are no files in")
            && message.ends_with("name a folder that has some, or a file")
    );
    file(&scratch, "empty/one", b"no longer");
    assert_eq!(text(&read_text(&options)), "no longer");
    options.data = vec!["-".into(), "-".into()];
    assert!(refused_as(&options, Vocabulary::Char).contains("can be read once"));
}

#[test]
fn a_text_is_split_by_the_share_or_has_another_one_to_validate_on() {
    let scratch = Scratch::new();
    let options = file(&scratch, "text.txt", "0123456789".repeat(10).as_bytes());
    let parts = |options: &TextOptions| {
        let corpus = read_text(options);
        (corpus.training().len(), corpus.validation().len())
    };
    assert_eq!(parts(&options), (90, 10));
    assert_eq!(parts(&TextOptions { validation_share: Some(0.25), ..options.clone() }), (75, 25));
    file(&scratch, "own.txt", b"5a");
    let own = TextOptions { validation: vec![scratch.path("own.txt")], ..options.clone() };
    // Its characters are in the vocabulary too.
    assert_eq!(parts(&own), (100, 2));
    assert_ne!(read_text(&own).sha256, read_text(&options).sha256);
    for share in [0.0, 1.0, -0.1, f64::NAN] {
        let error =
            refused_as(&TextOptions { validation_share: Some(share), ..options.clone() }, Vocabulary::Char);
        assert!(error.contains("--validation-share") && error.contains("0.1 is common"), "{error}");
    }
    assert_eq!(parts(&TextOptions { validation_share: Some(0.1), ..options }), (90, 10));
}

#[test]
fn characters_that_a_model_does_not_know_are_named_with_their_number() {
    let scratch = Scratch::new();
    let tokenizer = CharTokenizer::from_text("abc ").unwrap().into();
    let options = file(&scratch, "text.txt", "a é b é c ☃ é a".as_bytes());
    let message = refused_as(&options, Vocabulary::Fixed(&tokenizer));
    let path = scratch.path("text.txt");
    let expected = format!(
        "2 characters of the text ({}) are not among the 4 that the model's tokenizer knows: 'é' (U+00E9) 3 times, '☃' \
         (U+2603) once; remove or replace them, or train a new model on text that has them",
        path.display()
    );
    assert_eq!(message, expected);
    // As it says.
    let mended = file(&scratch, "text.txt", "a  b  c a".as_bytes());
    assert_eq!(read_as(&mended, Vocabulary::Fixed(&tokenizer)).unwrap().tokenizer, tokenizer);
    let many: String = ('à'..'ø').collect();
    let message = refused_as(&file(&scratch, "text.txt", many.as_bytes()), Vocabulary::Fixed(&tokenizer));
    assert!(message.starts_with("24 characters") && message.contains(" and 14 more; remove"), "{message}");
}

#[test]
fn a_checkpoint_is_held_against_the_text_of_its_run_unless_another_is_named() {
    let scratch = Scratch::new();
    let summary =
        scratch.trained(&"the quick fox; ".repeat(40), "--iterations 2 --validation-share 0.2").unwrap();
    let mut search = search(&scratch, "http://127.0.0.1:1/".into());
    search.folder = Some(scratch.path("elsewhere"));
    file(&scratch, "elsewhere/input.txt", b"ANOTHER TEXT");
    let read = |checkpoint: &Path, options: &TextOptions| {
        let loaded = load_which(checkpoint, None).unwrap();
        let tokenizer = open(&loaded.bytes).unwrap().tokenizer().unwrap().clone();
        read_of_checkpoint(&search, options, &loaded, Vocabulary::Fixed(&tokenizer))
            .map_err(|error| error.to_string())
    };
    let none = TextOptions::default();
    let of_run = read(&summary.checkpoint, &none).unwrap();
    assert_eq!((of_run.tokens.len(), of_run.training, of_run.notes.len()), (600, 480, 0));
    // What else is given changes that alone.
    let share = TextOptions { validation_share: Some(0.5), ..none.clone() };
    assert_eq!(read(&summary.checkpoint, &share).unwrap().training, 300);
    // A checkpoint that was given away says what to do, and it works.
    let given = scratch.path("given.mgpt");
    fs::copy(&summary.checkpoint, &given).unwrap();
    let message = read(&given, &none).unwrap_err();
    assert!(message.contains("input.txt") && message.contains("are not among the"), "{message}");
    assert!(
        message.ends_with("if the model was trained on another text: name it with --data, or --built-in"),
        "{message}"
    );
    let named = TextOptions { data: vec![scratch.path("text.txt")], ..none.clone() };
    assert_eq!(read(&given, &named).unwrap().tokens.len(), 600);
    // A text that has changed is not taken for what it was.
    fs::write(scratch.path("text.txt"), "the quick fox; ".repeat(41)).unwrap();
    let notes = read(&summary.checkpoint, &none).unwrap().notes;
    assert!(notes[0].contains("not the one that the model was trained on"), "{notes:?}");
}

#[test]
fn a_text_in_many_pieces_is_read_as_a_whole() {
    let scratch = Scratch::new();
    // Characters of one to four bytes, so that pieces end inside of them.
    let long = "naïve café — 🦀 end\r\n".repeat(40_000);
    let mut output = fs::File::create(scratch.path("long.txt")).unwrap();
    output.write_all(long.as_bytes()).unwrap();
    let options = TextOptions { data: vec![scratch.path("long.txt")], ..TextOptions::default() };
    assert!(text(&read_text(&options)) == long.replace("\r\n", "\n"));
    let kept = TextOptions { newlines: Some(Newlines::Keep), ..options };
    let corpus = read_text(&kept);
    assert_eq!(corpus.sha256, sha256(long.as_bytes()));
    let tokenizer = corpus.tokenizer;
    assert!(text(&read_as(&kept, Vocabulary::Fixed(&tokenizer)).unwrap()) == long);
}
