//! The house is built in one order: a room uses only the rooms above it, so no two of them import each other.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top of the house down. `lib.rs`, the front page, stands outside.
const ROOMS: [&str; 18] = [
    "config",
    "memory",
    "real",
    "rng",
    "tokenizer",
    "data",
    "sample",
    "op",
    "reference",
    "backend",
    "plan",
    "checkpoint",
    "error",
    "probe",
    "model",
    "train",
    "conformance",
    "lib",
];

fn place(room: &str) -> Option<usize> {
    ROOMS.iter().position(|known| *known == room)
}

/// All files of Rust under `folder`.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The lines of `text` that are code of the library, with their numbers: without comments, and without what stands under a
/// `#[cfg(test)]`.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = Vec::new();
    // Of an item for tests: how many braces are open, once it has any.
    let (mut in_tests, mut open) = (false, 0);
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
        if line.starts_with("//") {
            continue;
        }
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test") {
            (in_tests, open) = (true, 0);
        } else if in_tests {
            open += line.matches('{').count();
            in_tests = open > line.matches('}').count() || (open == 0 && !line.ends_with([';', '}']));
            open -= line.matches('}').count();
        } else {
            lines.push((number, line));
        }
    }
    lines
}

/// The rooms that the code of `text` names, each with its line. The file is `depth` modules below the crate's root, so as many
/// `super::` lead there.
fn used(text: &str, depth: usize) -> Vec<(usize, String)> {
    let name =
        |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    let root = "super::".repeat(depth);
    let mut rooms = Vec::new();
    for (number, line) in code(text) {
        // Empty for `crate::{...}` and for a type that the front page exports: they hide where they come from, and so does
        // `crate::some_function`.
        rooms.extend(line.match_indices("crate::").map(|(at, _)| (number, name(&line[at + 7..]))));
        for (at, _) in line.match_indices(&root) {
            let (before, rest) = (&line[..at], &line[at + root.len()..]);
            assert!(!rest.starts_with("super::"), "line {number} leads out of the crate: {line}");
            if !before.ends_with("super::") {
                rooms.push((number, name(rest)));
            }
        }
        for hidden in ["use crate as", "extern crate self", "/*"] {
            assert!(!line.contains(hidden), "line {number} hides where it leads: {line}");
        }
    }
    rooms
}

#[test]
fn every_room_uses_only_the_rooms_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&source, &mut paths);
    let (mut wrong, mut arrows) = (Vec::new(), 0);
    for path in &paths {
        let inside = path.strip_prefix(&source).expect("under the source");
        let room =
            inside.iter().next().expect("a name").to_str().expect("plain names").trim_end_matches(".rs");
        if inside.ends_with("tests.rs") || room == "lib" {
            continue;
        }
        let depth = inside.iter().count() - usize::from(inside.ends_with("mod.rs"));
        for (line, other) in used(&fs::read_to_string(path).expect("a file of text"), depth) {
            arrows += usize::from(other != room);
            let at = format!("{}:{line}: `{room}` uses `crate::{other}`", inside.display());
            match (place(room), place(&other)) {
                (Some(room), Some(other)) if other <= room => {}
                (Some(_), Some(_)) => wrong.push(format!("{at}, which stands below it")),
                _ => wrong.push(format!("{at}, and the list does not have both as rooms")),
            }
        }
    }
    // A search that finds nothing would find nothing wrong.
    assert!(arrows > 100, "{arrows} uses of another room in {} files", paths.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn whatever_leads_to_another_room_is_seen() {
    let seen = |text: &str, depth| used(text, depth).into_iter().map(|(_, room)| room).collect::<Vec<_>>();
    assert_eq!(seen("use crate::train::Trainer;", 1), ["train"]);
    assert_eq!(seen("use super::train::Trainer;", 1), ["train"]);
    assert_eq!(seen("use super::place::Place;\nuse super::super::train::Trainer;", 2), ["train"]);
    assert_eq!(seen("#[cfg(test)]\nmod check;\nuse crate::train::Trainer;", 1), ["train"]);
    assert_eq!(seen("#[cfg(test)]\nuse crate::train::Trainer;\nuse crate::model::Model;", 1), ["model"]);
    let tests = "#[cfg(test)]\nmod tests {\n    use crate::train::Trainer;\n    fn f() { g() }\n}\nuse crate::model::Model;";
    assert_eq!(seen(tests, 1), ["model"]);
    assert_eq!(
        seen("// use crate::train::Trainer;\nlet x = crate::op::scalar::LEN + crate::data::x();", 1),
        ["op", "data"]
    );
    assert_eq!(seen("use crate::{op::Op, train::Trainer};\nuse crate::Trainer;", 1), ["", ""]);
}
