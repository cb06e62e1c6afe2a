//! The text that a model goes on from.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use minigpt_core::{AnyTokenizer, Checkpoint, Tokenizer, TokenizerError};

use crate::{Outcome, corpus};

/// The flags that name a prompt.
#[derive(Debug, Clone, Default, Args)]
pub struct PromptOptions {
    /// The text to go on from, taken as it is; else a line break, or what the model knows in its place. Of a text longer
    /// than the context the model sees the end, as much as the context holds; when it has written past the context, it
    /// goes on from the last half of it.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The text to go on from is in this file; -: comes from the standard input. A byte-order mark is left out, and of
    /// line breaks only those kinds stay that the model knows.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", allow_hyphen_values = true)]
    pub prompt_file: Option<PathBuf>,
    /// In --prompt, --stop and what is typed, \n is a line break, \t a tab, \r a carriage return, \\ a backslash, and \u{1F980}
    /// the character of that number.
    #[arg(short, long)]
    pub escapes: bool,
}

/// A text to go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What the user gave; of a byte model it may be any bytes.
    pub text: Vec<u8>,
    /// Its tokens, or those that begin a text where the user gave none.
    pub tokens: Vec<u32>,
}

impl PromptOptions {
    /// The prompt in tokens; it is `start` where the user gave none. `input` is the standard input.
    ///
    /// # Errors
    /// If it cannot be read, has an escape without meaning, or has a character that the model does not know.
    pub fn read(&self, tokenizer: &AnyTokenizer, start: u32, input: &mut impl Read) -> Outcome<Prompt> {
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => self.unescaped(text)?.into_bytes(),
            (None, Some(path)) => {
                corpus::read_prompt(path, input, tokenizer).map_err(|error| format!("the prompt: {error}"))?
            }
            (None, None) => Vec::new(),
        };
        let tokens = match (text.is_empty(), tokenizer) {
            (true, _) => vec![start],
            (false, AnyTokenizer::Byte(_)) => text.iter().map(|&byte| byte.into()).collect(),
            (false, _) => self.encode("the prompt", str::from_utf8(&text)?, tokenizer)?,
        };
        Ok(Prompt { text, tokens })
    }

    /// A text of the command line, with what its escapes stand for if it has any.
    ///
    /// # Errors
    /// If an escape has no meaning.
    pub fn unescaped(&self, text: &str) -> Outcome<String> {
        if self.escapes { unescape(text) } else { Ok(text.into()) }
    }

    /// The tokens of `text`, which errors call `what`.
    ///
    /// # Errors
    /// If it has a character that the model does not know.
    pub fn encode(&self, what: &str, text: &str, tokenizer: &AnyTokenizer) -> Outcome<Vec<u32>> {
        tokenizer.encode(text).map_err(|error| match error {
            TokenizerError::UnknownCharacter { character: '\\', .. }
                if !self.escapes && text.contains("\\n") =>
            {
                format!("{what}: {error}; if \\n is to be a line break, add --escapes").into()
            }
            error => format!("{what}: {error}").into(),
        })
    }
}

/// The text with what its escapes stand for.
fn unescape(text: &str) -> Outcome<String> {
    const KNOWN: &str =
        "known are \\n, \\t, \\r, \\\\ and \\u{1F980}; without --escapes a text is taken as it is";
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once('\\') {
        plain += before;
        let mut characters = escape.chars();
        let character = match characters.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('\\') => '\\',
            Some('u') => {
                let number = escape[1..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
                let character = number.and_then(|(number, rest)| {
                    characters = rest.chars();
                    char::from_u32(u32::from_str_radix(number, 16).ok()?)
                });
                character.ok_or_else(|| {
                    format!("\\u without the number of a character, as in \\u{{E9}}: {KNOWN}")
                })?
            }
            Some(other) => return Err(format!("\\{other} is no escape: {KNOWN}").into()),
            None => return Err(format!("a backslash at the end is no escape: {KNOWN}").into()),
        };
        plain.push(character);
        rest = characters.as_str();
    }
    Ok(plain + rest)
}

/// The token that texts of this model begin behind: the one that its training chose, or a line break; else, in a model that
/// knows none, another character that parts texts; else any token.
pub fn default_start(checkpoint: &Checkpoint<'_>, tokenizer: &AnyTokenizer) -> u32 {
    let chosen = checkpoint.metadata().iter().find(|(name, _)| *name == START);
    let chosen =
        chosen.and_then(|(_, id)| id.parse().ok()).filter(|&id: &u32| (id as usize) < tokenizer.vocab_size());
    let mut usual = ["\n", "\r", " "].iter().filter_map(|text| tokenizer.encode(text).ok()?.first().copied());
    chosen.or_else(|| usual.next()).unwrap_or(0)
}

/// The entry of a checkpoint's metadata with the token that [`default_start`] gives.
pub const START: &str = "start_token";

/// What of a prompt the model does not see, in words; `None` if it sees it all.
pub fn cut(tokens: usize, context: usize) -> Option<String> {
    let over = tokens.checked_sub(context).filter(|&over| over > 0)?;
    Some(format!(
        "the prompt has {tokens} tokens, {over} more than the context of {context}: the model sees the last {context}"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use minigpt_core::model::Extras;
    use minigpt_core::{ByteTokenizer, CharTokenizer, GptConfig, Model, Reference};

    use super::*;

    fn tokenizer(text: &str) -> AnyTokenizer {
        CharTokenizer::from_text(text).unwrap().into()
    }

    fn prompt(text: &str, escapes: bool) -> PromptOptions {
        PromptOptions { prompt: Some(text.into()), escapes, ..PromptOptions::default() }
    }

    #[test]
    fn a_prompt_is_taken_as_it_is_and_escapes_on_request() {
        let read = |text: &str, escapes| prompt(text, escapes).read(&ByteTokenizer.into(), 7, &mut &b""[..]);
        assert_eq!(read(r"C:\new\t", false).unwrap().text, br"C:\new\t");
        assert_eq!(
            read(r"a\nb\tc\rd\\n\u{e9}\u{1F980}.", true).unwrap().text,
            "a\nb\tc\rd\\né🦀.".as_bytes()
        );
        for wrong in [r"\q", r"\", r"a\u12", r"\u{}", r"\u{D800}", r"\u{12"] {
            let error = read(wrong, true).unwrap_err().to_string();
            assert!(error.contains("known are") && error.contains("without --escapes"), "{error}");
            // Without, as it says.
            assert_eq!(read(wrong, false).unwrap().text, wrong.as_bytes());
        }
    }

    #[test]
    fn a_backslash_that_a_model_does_not_know_is_explained_and_the_advice_works() {
        let letters = tokenizer("some\ntext");
        let error = prompt(r"some\ntext", false).read(&letters, 0, &mut &b""[..]).unwrap_err().to_string();
        assert!(error.ends_with("if \\n is to be a line break, add --escapes"), "{error}");
        assert_eq!(prompt(r"some\ntext", true).read(&letters, 0, &mut &b""[..]).unwrap().text, b"some\ntext");
    }

    #[test]
    fn a_text_without_line_breaks_has_another_beginning() {
        let begins = |text: &str, metadata: &[(&str, &str)]| {
            let tokenizer = tokenizer(text);
            let config = GptConfig {
                layers: 1,
                heads: 1,
                d_model: 2,
                d_ff: 2,
                ..GptConfig::new(tokenizer.vocab_size(), 2)
            };
            let mut file = Vec::new();
            let model = Model::new(Reference::<f32>::new(), config, 1).unwrap();
            model.write(&mut file, &Extras { tokenizer: Some(&tokenizer), metadata }).unwrap();
            tokenizer.decode(&[default_start(&Checkpoint::open(&file).unwrap(), &tokenizer)]).unwrap()
        };
        assert_eq!(begins("a line\nand another\r", &[]), "\n");
        assert_eq!(begins("a line\rand another", &[]), "\r");
        assert_eq!(begins("one line", &[]), " ");
        assert_eq!(begins("word", &[]), "d");
        // What the training chose, if the vocabulary has it.
        assert_eq!(begins("one line", &[(START, "1")]), "e");
        assert_eq!(begins("one line", &[(START, "99")]), " ");
        let prompt = PromptOptions::default().read(&tokenizer("one line"), 3, &mut &b""[..]).unwrap();
        assert_eq!((prompt.text, prompt.tokens), (Vec::new(), vec![3]));
    }

    #[test]
    fn a_prompt_comes_from_a_file_or_from_the_standard_input() {
        let scratch = crate::testing::Scratch::new();
        let path = scratch.path("prompt.txt");
        fs::write(&path, "from a file\n").unwrap();
        let read = |path: PathBuf| {
            let options = PromptOptions { prompt_file: Some(path), ..PromptOptions::default() };
            options.read(&ByteTokenizer.into(), 0, &mut &b"piped in"[..])
        };
        assert_eq!(read(path).unwrap().text, b"from a file\n");
        assert_eq!(read("-".into()).unwrap().text, b"piped in");
        let error = read(scratch.path("missing")).unwrap_err().to_string();
        assert!(error.starts_with("the prompt: cannot read "), "{error}");
    }

    #[test]
    fn what_is_cut_is_said() {
        assert_eq!(cut(64, 64), None);
        assert_eq!(cut(0, 64), None);
        assert_eq!(
            cut(70, 64).unwrap(),
            "the prompt has 70 tokens, 6 more than the context of 64: the model sees the last 64"
        );
    }

    #[test]
    fn a_file_of_a_prompt_is_cleaned_as_a_text_to_train_on_is() {
        let scratch = crate::testing::Scratch::new();
        let path = scratch.path("prompt.txt");
        let read = |bytes: &[u8], tokenizer: &AnyTokenizer| {
            fs::write(&path, bytes).unwrap();
            let options = PromptOptions { prompt_file: Some(path.clone()), ..PromptOptions::default() };
            options.read(tokenizer, 0, &mut &b""[..])
        };
        let from_windows = "\u{FEFF}one\r\ntwo\rone".as_bytes();
        assert_eq!(read(from_windows, &tokenizer("one\ntwo")).unwrap().text, b"one\ntwo\none");
        // A model that knows these line breaks gets them.
        assert_eq!(read(from_windows, &tokenizer("one\r\ntwo")).unwrap().text, b"one\r\ntwo\rone");
        // And a model of bytes takes any.
        for bytes in [from_windows, b"caf\xe9"] {
            let prompt = read(bytes, &ByteTokenizer.into()).unwrap();
            assert!(
                prompt.text == bytes
                    && prompt.tokens.iter().copied().eq(bytes.iter().map(|&byte| u32::from(byte)))
            );
        }
        let error = read(b"caf\xe9", &tokenizer("café")).unwrap_err().to_string();
        assert!(error.contains("iconv -f ISO-8859-1 -t UTF-8 "), "{error}");
    }
}
