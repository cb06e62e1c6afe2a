//! How much memory there is: so that a model that does not fit is refused before anything is allocated, with a word
//! on what would fit, and not by the kernel in the middle of a run.

use std::fs;
use std::path::Path;

use minigpt_core::plan::Logits;
use minigpt_core::{Backend, GptConfig, Plan, Real, Recompute, TrainConfig};

use crate::Outcome;
use crate::options::human;

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
    number(text, name)?.checked_mul(1024)
}

/// The number that follows `name` at the beginning of a line.
fn number(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The least of what the process's control group and those above it have left. Cached files count as left: the kernel
/// gives them up before it refuses memory.
fn control_group(root: &Path) -> Option<usize> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let whole = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let mut least: Option<usize> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(kind), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        // Version 2 has one tree and no names of controllers; version 1 has a tree for memory.
        let (tree, limit, usage, caches) = match kind {
            "" => ("sys/fs/cgroup", "memory.max", "memory.current", ["active_file ", "inactive_file "]),
            kind if kind.split(',').any(|controller| controller == "memory") => {
                let caches = ["total_active_file ", "total_inactive_file "];
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", caches)
            }
            _ => continue,
        };
        let tree = root.join(tree);
        // Inside a container the path may be seen from outside: then only the tree's root exists.
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            let group = tree.join(ancestor);
            if let (Some(limit), Some(usage)) = (whole(&group.join(limit)), whole(&group.join(usage))) {
                let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
                let cached = caches.iter().filter_map(|name| number(&stat, name)).sum();
                let left = limit.saturating_sub(usage.saturating_sub(cached));
                least = Some(least.map_or(left, |least| least.min(left)));
            }
        }
    }
    least
}

/// Refuses a training that does not fit, before anything is allocated; `remedy` says how to change the batch.
///
/// # Errors
/// If the config is invalid, or needs more than is available: then with what would fit, by `--recompute blocks` or with
/// a smaller batch.
pub fn check_training<B: Backend>(
    backend: &B,
    config: &GptConfig,
    training: &TrainConfig,
    remedy: &str,
) -> Outcome<()> {
    let TrainConfig { batch, time, recompute, .. } = *training;
    let at_once = training.sequences_at_once(backend);
    let plan = Plan::training_with(config, B::Elem::DTYPE, at_once, time, recompute)?;
    let Some(available) = available() else { return Ok(()) };
    training_fits(backend, &plan, available, remedy)?;
    windows_fit(batch, time, available, remedy)
}

/// The tokens and targets of a whole batch lie in the program's memory, also where the model takes them slice by slice.
fn windows_fit(batch: usize, time: usize, available: usize, remedy: &str) -> Outcome<()> {
    let sequence = time.saturating_mul(2 * size_of::<u32>());
    let needed = batch.saturating_mul(sequence);
    if needed <= available {
        return Ok(());
    }
    Err(format!(
        "the tokens of a batch need {}, and {} are available: the largest batch that fits is {}: {remedy}",
        human(needed),
        human(available),
        available / sequence.max(1)
    )
    .into())
}

fn training_fits<B: Backend>(backend: &B, plan: &Plan, available: usize, remedy: &str) -> Outcome<()> {
    fits("training", backend, plan, available, || {
        let workspace = |plan: &Plan| backend.workspace_bytes(plan);
        let largest = |recompute| {
            Plan::largest_batch(&plan.config, B::Elem::DTYPE, plan.time, recompute, available, workspace)
        };
        match (largest(plan.recompute), largest(Recompute::Blocks)) {
            (_, Some(batch)) if batch >= plan.batch => "with --recompute blocks it fits".into(),
            (Some(batch), _) => format!("the largest batch that fits is {batch}: {remedy}"),
            (None, Some(batch)) => {
                format!("with --recompute blocks, the largest batch that fits is {batch}: {remedy}")
            }
            (None, None) => "not even one sequence fits: make the model or the context smaller".into(),
        }
    })
}

/// Refuses a model whose decoding, with prompts of up to a context at once, does not fit.
///
/// # Errors
/// If the config is invalid, or needs more than is available.
pub fn check_decoding<B: Backend>(backend: &B, config: &GptConfig) -> Outcome<()> {
    let context = config.context;
    let plan = Plan::inference(config, B::Elem::DTYPE, 1, context, Logits::Last, context)?;
    available().map_or(Ok(()), |available| {
        fits("decoding", backend, &plan, available, || "make the model or the context smaller".into())
    })
}

fn fits<B: Backend>(
    what: &str,
    backend: &B,
    plan: &Plan,
    available: usize,
    remedy: impl FnOnce() -> String,
) -> Outcome<()> {
    let workspace = backend.workspace_bytes(plan);
    let needed = plan.bytes.total().saturating_add(workspace);
    if needed <= available {
        return Ok(());
    }
    let categories = plan.bytes.categories().into_iter().chain([("workspace", workspace)]);
    let parts: Vec<String> = categories
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", human(bytes)))
        .collect();
    Err(format!(
        "{what} needs {} ({}), and {} are available: {}",
        human(needed),
        parts.join(", "),
        human(available),
        remedy()
    )
    .into())
}

/// The most memory that this process has held at once, in bytes; `None` where it cannot be told.
pub fn peak() -> Option<usize> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

#[cfg(test)]
mod tests {
    use minigpt_core::{Dtype, Reference};

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
    fn files_that_the_kernel_keeps_cached_do_not_count_as_taken() {
        let scratch = Scratch::new();
        put(&scratch, "proc/self/cgroup", "0::/\n");
        put(&scratch, "sys/fs/cgroup/memory.max", "10000\n");
        put(&scratch, "sys/fs/cgroup/memory.current", "9500\n");
        let stat = "anon 1500\nfile 8000\nshmem 1000\ninactive_file 4000\nactive_file 3000\n";
        put(&scratch, "sys/fs/cgroup/memory.stat", stat);
        assert_eq!(available_under(&scratch.path("")), Some(7500));
    }

    #[test]
    fn what_fits_is_said() {
        let backend = Reference::<f32>::new();
        let config = GptConfig { layers: 4, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(4, 8) };
        let plan = |batch, recompute| Plan::training_with(&config, Dtype::F32, batch, 8, recompute).unwrap();
        let fits = |plan: &Plan, budget| training_fits(&backend, plan, budget, "change it");
        let (cheap, blocks) = (Recompute::Cheap, Recompute::Blocks);
        let budget = plan(5, cheap).bytes.total();
        assert!(fits(&plan(5, cheap), budget).is_ok());
        let error = fits(&plan(6, cheap), budget).unwrap_err().to_string();
        assert!(error.starts_with("training needs ") && error.contains("parameters "), "{error}");
        assert!(error.ends_with("with --recompute blocks it fits"), "{error}");
        let error = fits(&plan(60, cheap), budget).unwrap_err().to_string();
        assert!(error.ends_with("the largest batch that fits is 5: change it"), "{error}");
        let small = plan(1, blocks).bytes.total();
        let error = fits(&plan(60, cheap), small).unwrap_err().to_string();
        let expected = "with --recompute blocks, the largest batch that fits is 1: change it";
        assert!(error.ends_with(expected), "{error}");
        let error = fits(&plan(60, blocks), small).unwrap_err().to_string();
        assert!(error.ends_with(" available: the largest batch that fits is 1: change it"), "{error}");
        let error = fits(&plan(6, cheap), 100).unwrap_err().to_string();
        assert!(error.contains("not even one sequence fits"), "{error}");
    }

    #[test]
    fn a_model_beyond_memory_is_refused() {
        let config = GptConfig { layers: 1, heads: 1, d_model: 1 << 24, d_ff: 8, ..GptConfig::new(4, 8) };
        let error = check_decoding(&Reference::<f32>::new(), &config).unwrap_err().to_string();
        assert!(error.starts_with("decoding needs ") && error.contains("context smaller"), "{error}");
    }

    #[test]
    fn the_first_version_of_control_groups_counts_too() {
        let scratch = Scratch::new();
        put(&scratch, "proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/seen/from/outside\n");
        put(&scratch, "sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n");
        put(&scratch, "sys/fs/cgroup/memory/memory.usage_in_bytes", "6000\n");
        assert_eq!(available_under(&scratch.path("")), Some(0));
        put(&scratch, "sys/fs/cgroup/memory/memory.stat", "active_file 1\ntotal_active_file 2000\n");
        assert_eq!(available_under(&scratch.path("")), Some(1000));
    }
}
