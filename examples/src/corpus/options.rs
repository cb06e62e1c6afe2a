//! The flags that say which text.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, ValueEnum};
use serde_json::{Value, json};

use super::{Origin, is_standard_input};

/// The flags that every program shares which reads a text.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct TextOptions {
    /// The text: files, folders of files, or - for the standard input, in this order; else $MINIGPT_DATA/, data/, a
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
    /// What a run remembers to find its text again: from any folder, and also where a text was found that nobody named.
    pub fn to_json(&self, origin: &Origin) -> Value {
        let data: Vec<PathBuf> = match origin {
            Origin::BuiltIn(_) | Origin::Downloaded(None) => Vec::new(),
            Origin::Downloaded(Some(path)) => vec![path.clone()],
            Origin::Files(paths) if self.data.is_empty() => paths.clone(),
            Origin::Files(_) | Origin::StandardInput => self.data.clone(),
        };
        json!({
            "data": absolute(&data),
            "built_in": matches!(origin, Origin::BuiltIn(_)),
            "newlines": self.newlines.map(Newlines::name),
            "validation": absolute(&self.validation),
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
fn absolute(paths: &[PathBuf]) -> Vec<String> {
    let absolute = |path: &PathBuf| match is_standard_input(path) {
        true => path.clone(),
        false => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
    };
    paths.iter().map(|path| absolute(path).to_string_lossy().into_owned()).collect()
}

/// A path as one word of a command line.
pub fn word(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:\\".contains(c);
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
        let kept = TextOptions::from_json(&options.to_json(&Origin::Files(vec!["x".into()]))).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(kept.data, [here.join("a b.txt"), "/c".into()]);
        assert_eq!((kept.newlines, kept.validation.clone()), (Some(Newlines::Keep), vec![here.join("v")]));
        assert!(kept.flags().contains("a b.txt' /c --newlines keep --validation "), "{}", kept.flags());
        // What nobody named is named from then on.
        let found = TextOptions::default();
        let kept = |origin| TextOptions::from_json(&found.to_json(&origin)).unwrap().flags();
        assert_eq!(kept(Origin::Files(vec!["/found.txt".into()])), "--data /found.txt");
        assert_eq!(kept(Origin::Downloaded(Some("/kept.txt".into()))), "--data /kept.txt");
        assert_eq!(kept(Origin::Downloaded(None)), "");
        assert_eq!(kept(Origin::BuiltIn(1)), "--built-in");
        let piped = TextOptions { data: vec!["-".into()], validation_share: Some(0.2), ..found };
        let kept = TextOptions::from_json(&piped.to_json(&Origin::StandardInput)).unwrap();
        assert_eq!((kept.flags().as_str(), kept), ("--data - --validation-share 0.2", piped));
    }

    #[test]
    fn a_path_survives_a_shell() {
        assert_eq!(word(Path::new("plain/path-1.txt")), "plain/path-1.txt");
        assert_eq!(word(Path::new("it's here")), r"'it'\''s here'");
        assert_eq!(word(Path::new("")), "''");
    }
}
