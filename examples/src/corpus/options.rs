//! The flags that say which text.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, ValueEnum};
use serde_json::{Value, json};

use super::{Origin, is_standard_input};

/// The flags that every program shares which reads a text.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct TextOptions {
    /// The text: files, folders (of which the .txt files, or all if there are none), or - for the standard input, in this
    /// order. Else that of the run that goes on, or of the run whose checkpoint it is; else $MINIGPT_DATA/, data/, a
    /// download of tiny Shakespeare, or the built-in plays.
    #[arg(long, value_name = "PATH", num_args = 1.., action = ArgAction::Append)]
    pub data: Vec<PathBuf>,
    /// Take the built-in plays, whose true entropy is known.
    #[arg(long, conflicts_with = "data")]
    pub built_in: bool,
    /// What ends a line: as it is, or LF everywhere, also for CR LF and CR (unix; of bytes: keep).
    #[arg(long, value_enum)]
    pub newlines: Option<Newlines>,
    /// A text of its own to validate on, named as --data names one.
    #[arg(long, value_name = "PATH", num_args = 1.., action = ArgAction::Append)]
    pub validation: Vec<PathBuf>,
    /// The share of the text, at its end, that validates and does not train (0.1).
    #[arg(long, value_name = "SHARE", conflicts_with = "validation", allow_negative_numbers = true)]
    pub validation_share: Option<f64>,
}

/// What becomes of line breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Newlines {
    /// They stay as they are.
    Keep,
    /// CR LF and CR become LF.
    Unix,
}

impl Newlines {
    fn name(self) -> &'static str {
        match self {
            Newlines::Keep => "keep",
            Newlines::Unix => "unix",
        }
    }
}

impl TextOptions {
    /// The flags that find the text again, from any folder, which came from `origin`: also where nobody named it.
    pub fn to_find(&self, origin: &Origin) -> TextOptions {
        let data = match origin {
            Origin::BuiltIn(_) | Origin::Downloaded(None) => &Vec::new(),
            Origin::Downloaded(Some(path)) => &vec![path.clone()],
            Origin::Files(paths) if self.data.is_empty() => paths,
            Origin::Files(_) | Origin::StandardInput => &self.data,
        };
        TextOptions {
            data: absolute(data),
            built_in: matches!(origin, Origin::BuiltIn(_)),
            validation: absolute(&self.validation),
            ..*self
        }
    }

    /// These, and for what they leave open, those of `other`.
    pub fn or(&self, other: TextOptions) -> TextOptions {
        let named = !self.data.is_empty() || self.built_in;
        let validation = !self.validation.is_empty() || self.validation_share.is_some();
        let (of_data, of_validation) =
            (if named { self } else { &other }, if validation { self } else { &other });
        TextOptions {
            data: of_data.data.clone(),
            built_in: of_data.built_in,
            newlines: self.newlines.or(other.newlines),
            validation: of_validation.validation.clone(),
            validation_share: of_validation.validation_share,
        }
    }

    /// For [`from_json`](TextOptions::from_json).
    pub fn to_json(&self) -> Value {
        // As far as a name is UTF-8: another one is lost, and asked for again.
        let names = |paths: &[PathBuf]| -> Vec<String> {
            paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
        };
        json!({
            "data": names(&self.data),
            "built_in": self.built_in,
            "newlines": self.newlines.map(Newlines::name),
            "validation": names(&self.validation),
            "validation_share": self.validation_share,
        })
    }

    /// What [`to_json`](TextOptions::to_json) gave.
    pub fn from_json(value: &Value) -> Option<TextOptions> {
        let paths = |name: &str| -> Option<Vec<PathBuf>> {
            value.get(name)?.as_array()?.iter().map(|path| path.as_str().map(PathBuf::from)).collect()
        };
        let newlines = value.get("newlines").and_then(Value::as_str);
        Some(TextOptions {
            data: paths("data")?,
            built_in: value.get("built_in")?.as_bool()?,
            newlines: newlines.map(|name| Newlines::from_str(name, false)).transpose().ok()?,
            validation: paths("validation")?,
            validation_share: value.get("validation_share").and_then(Value::as_f64),
        })
    }

    /// Whether the text comes in by the standard input.
    pub fn is_piped(&self) -> bool {
        self.data.iter().chain(&self.validation).any(|path| is_standard_input(path))
    }

    /// The flags, as words of a command line.
    pub fn flags(&self) -> String {
        let mut flags = Vec::new();
        let paths = |paths: &[PathBuf]| paths.iter().map(|path| word(path)).collect::<Vec<_>>().join(" ");
        if !self.data.is_empty() {
            flags.push(format!("--data {}", paths(&self.data)));
        }
        if self.built_in {
            flags.push("--built-in".into());
        }
        if let Some(newlines) = self.newlines {
            flags.push(format!("--newlines {}", newlines.name()));
        }
        if !self.validation.is_empty() {
            flags.push(format!("--validation {}", paths(&self.validation)));
        }
        if let Some(share) = self.validation_share {
            flags.push(format!("--validation-share {share}"));
        }
        flags.join(" ")
    }
}

/// The paths, as they are from any folder.
fn absolute(paths: &[PathBuf]) -> Vec<PathBuf> {
    let absolute = |path: &PathBuf| match is_standard_input(path) {
        true => path.clone(),
        false => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
    };
    paths.iter().map(absolute).collect()
}

/// A path as one word of a command line, and not as a flag.
pub fn word(path: &Path) -> String {
    let is_flag = path.to_string_lossy().starts_with('-') && !is_standard_input(path);
    let path = if is_flag { Path::new(".").join(path) } else { path.to_path_buf() }.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:".contains(c) || cfg!(windows) && c == '\\';
    if !path.is_empty() && path.chars().all(plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_finds_its_text_again_from_any_folder() {
        let options = TextOptions {
            data: vec!["a b.txt".into(), "/c".into()],
            newlines: Some(Newlines::Keep),
            validation: vec!["v".into()],
            ..TextOptions::default()
        };
        let kept = |options: &TextOptions, origin| {
            let named = options.to_find(&origin);
            assert_eq!(TextOptions::from_json(&named.to_json()).as_ref(), Some(&named));
            named
        };
        let named = kept(&options, Origin::Files(vec!["x".into()]));
        let here = std::env::current_dir().unwrap();
        assert_eq!(named.data, [here.join("a b.txt"), "/c".into()]);
        assert_eq!((named.newlines, named.validation.clone()), (Some(Newlines::Keep), vec![here.join("v")]));
        assert!(named.flags().contains("a b.txt' /c --newlines keep --validation "), "{}", named.flags());
        // What nobody named is named from then on.
        let found = |origin| kept(&TextOptions::default(), origin).flags();
        assert_eq!(found(Origin::Files(vec!["/found.txt".into()])), "--data /found.txt");
        assert_eq!(found(Origin::Downloaded(Some("/kept.txt".into()))), "--data /kept.txt");
        assert_eq!(found(Origin::Downloaded(None)), "");
        assert_eq!(found(Origin::BuiltIn(1)), "--built-in");
        let piped =
            TextOptions { data: vec!["-".into()], validation_share: Some(0.2), ..TextOptions::default() };
        assert_eq!(kept(&piped, Origin::StandardInput).flags(), "--data - --validation-share 0.2");
    }

    #[test]
    fn what_is_not_named_is_as_it_was() {
        let kept = TextOptions {
            data: vec!["kept".into()],
            newlines: Some(Newlines::Keep),
            validation: vec!["own".into()],
            ..TextOptions::default()
        };
        assert_eq!(TextOptions::default().or(kept.clone()), kept);
        let moved = TextOptions { data: vec!["moved".into()], ..TextOptions::default() };
        assert_eq!(moved.or(kept.clone()), TextOptions { data: vec!["moved".into()], ..kept.clone() });
        let share = TextOptions { validation_share: Some(0.2), built_in: true, ..TextOptions::default() };
        assert_eq!(share.or(kept), TextOptions { newlines: Some(Newlines::Keep), ..share });
    }

    #[cfg(unix)]
    #[test]
    fn a_path_survives_a_shell() {
        for path in ["plain/path-1.txt", "it's here", "", "a\\b", "$HOME *", "-"] {
            let echo = format!("printf %s {}", word(Path::new(path)));
            let output = std::process::Command::new("sh").args(["-c", &echo]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
        }
        assert_eq!(word(Path::new("plain/path-1.txt")), "plain/path-1.txt");
        assert_eq!(word(Path::new("-x")), "./-x");
    }
}
