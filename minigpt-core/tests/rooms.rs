//! The house is built in one order: a room uses only the rooms above it, so no two of them import each other.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top of the house down. `lib.rs`, the front page, stands outside.
const ROOMS: [&str; 17] = [
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

/// The rooms that the code of `text` names, each with its line; comments and unit tests aside.
fn used(text: &str) -> Vec<(usize, String)> {
    let mut rooms = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim_start())) {
        if line == "#[cfg(test)]" {
            break;
        }
        if line.starts_with("//") {
            continue;
        }
        for (at, _) in line.match_indices("crate::") {
            let name: String =
                line[at + 7..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            // Empty for `crate::{...}` and for a type that the front page exports: they hide where they come from, and so
            // does `crate::some_function`.
            rooms.push((number, name));
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
        if inside.ends_with("tests.rs") {
            continue;
        }
        for (line, other) in used(&fs::read_to_string(path).expect("a file of text")) {
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
