//! How much memory there is: so that a model that does not fit is refused before anything is allocated, with a word
//! on what would fit, and not by the kernel in the middle of a run.

use std::fs;
use std::path::Path;

/// Bytes that can still be allocated: what the machine has left, or what the control group of this process has left,
/// whichever is less. `None` where neither can be told (not Linux).
pub fn available() -> Option<usize> {
    available_under(Path::new("/"))
}

fn available_under(root: &Path) -> Option<usize> {
    let machine =
        fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| field(&text, "MemAvailable:"));
    [machine, control_group(root)].into_iter().flatten().min()
}

/// The bytes of a line like `MemAvailable:   123 kB`.
fn field(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
}

/// The least of what the process's control group and those above it have left.
fn control_group(root: &Path) -> Option<usize> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let mut least: Option<usize> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(kind), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        // Version 2 has one tree and no names of controllers; version 1 has a tree for memory.
        let (tree, limit, usage) = match kind {
            "" => ("sys/fs/cgroup", "memory.max", "memory.current"),
            kind if kind.split(',').any(|controller| controller == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let tree = root.join(tree);
        // Inside a container the path may be seen from outside: then only the tree's root exists.
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            let group = tree.join(ancestor);
            if let (Some(limit), Some(usage)) = (number(&group.join(limit)), number(&group.join(usage))) {
                let left = limit.saturating_sub(usage);
                least = Some(least.map_or(left, |least| least.min(left)));
            }
        }
    }
    least
}

/// The most memory that this process has held at once, in bytes; `None` where it cannot be told.
pub fn peak() -> Option<usize> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn put(scratch: &Scratch, path: &str, contents: &str) {
        let path = scratch.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    #[test]
    fn the_machine_counts_if_nothing_is_tighter() {
        let scratch = Scratch::new();
        assert_eq!(available_under(&scratch.path("")), None);
        put(&scratch, "proc/meminfo", "MemTotal:       9000 kB\nMemAvailable:    2000 kB\n");
        assert_eq!(available_under(&scratch.path("")), Some(2_048_000));
        put(&scratch, "proc/self/cgroup", "0::/\n");
        put(&scratch, "sys/fs/cgroup/memory.max", "max\n");
        put(&scratch, "sys/fs/cgroup/memory.current", "77\n");
        assert_eq!(available_under(&scratch.path("")), Some(2_048_000));
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let scratch = Scratch::new();
        put(&scratch, "proc/meminfo", "MemAvailable:    2000 kB\n");
        put(&scratch, "proc/self/cgroup", "0::/outer/inner\n");
        put(&scratch, "sys/fs/cgroup/outer/memory.max", "10000\n");
        put(&scratch, "sys/fs/cgroup/outer/memory.current", "4000\n");
        put(&scratch, "sys/fs/cgroup/outer/inner/memory.max", "8000\n");
        put(&scratch, "sys/fs/cgroup/outer/inner/memory.current", "1000\n");
        assert_eq!(available_under(&scratch.path("")), Some(6000));
    }

    #[test]
    fn the_first_version_of_control_groups_counts_too() {
        let scratch = Scratch::new();
        put(&scratch, "proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/seen/from/outside\n");
        put(&scratch, "sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n");
        put(&scratch, "sys/fs/cgroup/memory/memory.usage_in_bytes", "6000\n");
        assert_eq!(available_under(&scratch.path("")), Some(0));
    }
}
