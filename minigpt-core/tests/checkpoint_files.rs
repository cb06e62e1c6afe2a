//! Checkpoints on disk: replaced as one or not at all.
#![cfg(feature = "std")]

#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use minigpt_core::checkpoint::{self, Checkpoint, FileError, LoadFileError, SaveError};
use support::*;

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("minigpt-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn save(path: impl AsRef<Path>) -> Result<(), SaveError<std::convert::Infallible, FileError>> {
    with_small_contents(|contents| checkpoint::save(path, contents, fill))
}

#[test]
fn a_file_comes_back_and_nothing_else_is_left() {
    let folder = Folder::new("round-trip");
    let path = folder.0.join("model.mgpt");
    save(&path).unwrap();
    assert_eq!(checkpoint::load(&path).unwrap(), small_checkpoint());
    fs::write(&path, "something older").unwrap();
    save(&path).unwrap();
    assert_eq!(checkpoint::load(&path).unwrap(), small_checkpoint());
    assert_eq!(folder.names(), ["model.mgpt"]);
}

#[test]
fn a_failed_save_leaves_the_old_file_and_no_other() {
    let folder = Folder::new("failure");
    let path = folder.0.join("model.mgpt");
    for old in [None, Some("the old file")] {
        if let Some(old) = old {
            fs::write(&path, old).unwrap();
        }
        // 60 reads: in the first pass, at the first byte of the second, in the middle, and at the end.
        for fail_at in [1, 30, 31, 45, 60] {
            let mut reads = 0;
            let result = with_small_contents(|contents| {
                checkpoint::save(&path, contents, |_, _, bytes| {
                    bytes.fill(0);
                    reads += 1;
                    if reads == fail_at { Err("device lost") } else { Ok(()) }
                })
            });
            assert!(matches!(result, Err(SaveError::Read { error: "device lost", .. })), "{result:?}");
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), old);
            assert_eq!(folder.names().len(), usize::from(old.is_some()));
        }
    }
}

#[test]
fn a_panic_while_saving_leaves_the_old_file_and_no_other() {
    let folder = Folder::new("panic");
    let path = folder.0.join("model.mgpt");
    fs::write(&path, "the old file").unwrap();
    let result = std::panic::catch_unwind(|| {
        let mut reads = 0;
        with_small_contents(|contents| {
            checkpoint::save(&path, contents, |i, offset, bytes| {
                reads += 1;
                assert!(reads < 40, "on purpose");
                fill(i, offset, bytes)
            })
        })
    });
    assert!(result.is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "the old file");
    assert_eq!(folder.names(), ["model.mgpt"]);
}

#[test]
fn several_savers_of_one_path_leave_one_whole_file() {
    let folder = Folder::new("several");
    let path = folder.0.join("model.mgpt");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| save(&path).unwrap()));
        }
    });
    assert_eq!(checkpoint::load(&path).unwrap(), small_checkpoint());
    assert_eq!(folder.names(), ["model.mgpt"]);
}

#[test]
fn a_path_that_cannot_be_is_named_with_advice() {
    let folder = Folder::new("paths");
    fs::write(folder.0.join("file"), "").unwrap();
    for (path, advice) in [
        (folder.0.join("file/model.mgpt"), "choose another path"),
        (folder.0.join("nowhere/model.mgpt"), "make its folder"),
        (folder.0.clone(), "name a file in it"),
        (folder.0.join(".."), "name a file in it"),
        (PathBuf::new(), "name a file in it"),
    ] {
        let message = save(&path).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()) && message.contains(advice), "{message}");
        let message = checkpoint::load(&path).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()), "{message}");
    }
    assert_eq!(folder.names(), ["file"]);
    assert_eq!(fs::read_to_string(folder.0.join("file")).unwrap(), "");
}

#[test]
fn a_file_in_the_current_folder_needs_no_folder_in_its_path() {
    let name = format!("minigpt-here-{}.mgpt", std::process::id());
    save(&name).unwrap();
    let read = checkpoint::load(&name);
    fs::remove_file(&name).unwrap();
    assert_eq!(read.unwrap(), small_checkpoint());
}

#[test]
fn damage_on_disk_is_found_at_load() {
    let folder = Folder::new("damage");
    let path = folder.0.join("model.mgpt");
    let mut bytes = small_checkpoint();
    let last = Checkpoint::open(&bytes).unwrap().tensors().last().unwrap().offset;
    bytes[last] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let error = checkpoint::load(&path).unwrap_err();
    assert!(matches!(error, LoadFileError::Checkpoint { .. }));
    assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("adam.v/lm_head.weight"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_link_is_followed_and_permissions_stay() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = Folder::new("link");
    fs::create_dir(folder.0.join("real")).unwrap();
    let target = folder.0.join("real/model.mgpt");
    fs::write(&target, "old").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.0.join("latest.mgpt");
    symlink("real/model.mgpt", &link).unwrap();
    save(&link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(checkpoint::load(&target).unwrap(), small_checkpoint());
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o640);
}

#[cfg(unix)]
#[test]
fn a_link_to_what_is_not_there_yet_is_followed() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new("dangling");
    fs::create_dir(folder.0.join("disk")).unwrap();
    fs::create_dir(folder.0.join("links")).unwrap();
    let target = folder.0.join("disk/model.mgpt");
    // A link by a path from its own folder, one to that link, and one by a whole path.
    let [near, second, whole] = ["links/near", "second", "whole"].map(|name| folder.0.join(name));
    symlink("../disk/model.mgpt", &near).unwrap();
    symlink("links/near", &second).unwrap();
    symlink(&target, &whole).unwrap();
    for link in [near, second, whole] {
        save(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(checkpoint::load(&target).unwrap(), small_checkpoint());
        fs::remove_file(&target).unwrap();
    }
    // Where links lead nowhere, they stay, and the path that was asked for is named.
    let (nowhere, circle) = (folder.0.join("nowhere"), folder.0.join("circle"));
    symlink("no such folder/model.mgpt", &nowhere).unwrap();
    symlink("circle", &circle).unwrap();
    for link in [nowhere, circle] {
        let message = save(&link).unwrap_err().to_string();
        assert!(message.contains(link.to_str().unwrap()), "{message}");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
    assert_eq!(folder.names(), ["circle", "disk", "links", "nowhere", "second", "whole"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_says_so_and_devices_stay() {
    use std::io::Read;
    use std::os::unix::fs::FileTypeExt;

    // A pipe of our own comes first: if it were replaced, so would be the machine's /dev/full below.
    let folder = Folder::new("devices");
    let pipe = folder.0.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Linux opens a pipe at both ends without waiting, and keeps 64 KiB of it.
    let mut other_end = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    save(&pipe).unwrap();
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo(), "the pipe was replaced");
    let mut read = vec![0; small_checkpoint().len()];
    other_end.read_exact(&mut read).unwrap();
    assert_eq!(read, small_checkpoint());

    let message = save("/dev/full").unwrap_err().to_string();
    assert!(message.contains("/dev/full") && message.contains("make room"), "{message}");
    let message = checkpoint::load("/dev/zero").unwrap_err().to_string();
    assert!(message.contains("/dev/zero") && message.contains("not a regular file"), "{message}");
}
