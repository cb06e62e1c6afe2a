//! How much memory there is: so that a model that does not fit is refused before anything is allocated, with a word
//! on what would fit, and not by the kernel in the middle of a run.

use std::fs;
use std::path::Path;

use minigpt_core::{Backend, Dtype, GptConfig, Plan, Real, Recompute, TrainConfig};

use crate::options::human;
use crate::{Outcome, flags};

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

/// What to do about a training that does not fit, besides `--recompute blocks`, which every program that trains has.
#[derive(Debug, Clone, Copy)]
pub struct Remedy<'a> {
    /// Where a smaller batch would fit.
    pub batch: &'a str,
    /// Where not even one sequence does.
    pub model: &'a str,
}

/// Refuses a training that does not fit, before anything is allocated but the tokens of its text, which take `text`
/// bytes.
///
/// # Errors
/// If the config is invalid, or needs more than is available: then with what would fit, by `--recompute blocks` or with
/// a smaller batch.
pub fn check_training<B: Backend>(
    backend: &B,
    config: &GptConfig,
    training: &TrainConfig,
    text: usize,
    remedy: &Remedy<'_>,
) -> Outcome<()> {
    // Also where nobody can tell how much memory there is.
    training.plan(config, backend).map_err(|error| flags::config_error(&error))?;
    let budget = available().map(|available| available.saturating_add(text));
    budget.map_or(Ok(()), |budget| training_fits(backend, config, training, (text, budget), remedy))
}

fn training_fits<B: Backend>(
    backend: &B,
    config: &GptConfig,
    training: &TrainConfig,
    (text, available): (usize, usize),
    remedy: &Remedy<'_>,
) -> Outcome<()> {
    let needs = |training: &TrainConfig| -> Outcome<Needs> {
        Ok(Needs::of_training(backend, config, training)?.and("text", text))
    };
    needs(training)?.fit("training", available, || {
        let frugal = TrainConfig { recompute: Recompute::Blocks, ..training.clone() };
        if needs(&frugal).is_ok_and(|needs| needs.total() <= available) {
            return "with --recompute blocks it fits".into();
        }
        let largest = |settings: &TrainConfig| {
            let beside = text.saturating_add(average_bytes(backend, config, settings).ok()?);
            let batch = settings.largest_batch(config, backend, available.saturating_sub(beside))?;
            let at_once = TrainConfig { batch, ..settings.clone() }.sequences_at_once(config, backend);
            let slices = if at_once < batch { format!(", {at_once} at once") } else { String::new() };
            Some(format!("the largest batch that fits is {batch}{slices}: {}", remedy.batch))
        };
        let with_blocks = || Some(format!("with --recompute blocks, {}", largest(&frugal)?));
        let smaller = || format!("not even one sequence fits: {}", remedy.model);
        largest(training).or_else(with_blocks).unwrap_or_else(smaller)
    })
}

/// Refuses a model that a [`Trainer`](minigpt_core::Trainer) with these settings has no room to evaluate, by a program
/// that will hold so many bytes `more` than it does now.
///
/// # Errors
/// If the config is invalid, or needs more than is available.
pub fn check_evaluation<B: Backend>(
    backend: &B,
    config: &GptConfig,
    settings: &TrainConfig,
    more: usize,
) -> Outcome<()> {
    let needs = Needs::of_training(backend, config, settings)?.and("files", more);
    available().map_or(Ok(()), |available| evaluation_fits(&needs, available))
}

fn evaluation_fits(needs: &Needs, available: usize) -> Outcome<()> {
    needs.fit("evaluating", available, || "it takes a machine with more memory, or a smaller model".into())
}

/// Refuses a model for which there is no room to take in so many windows at once and see all their logits.
///
/// # Errors
/// If the config is invalid, or needs more than is available.
pub fn check_logits<B: Backend>(backend: &B, config: &GptConfig, windows: usize) -> Outcome<()> {
    let plan = Plan::inference(config, B::Elem::DTYPE, windows, config.context)?;
    // The logits are read into memory of the program, beside those of the backend.
    let logits = windows.saturating_mul(config.context).saturating_mul(config.vocab_size);
    let needs = Needs::of(backend, &plan).and("logits", logits.saturating_mul(size_of::<B::Elem>()));
    available().map_or(Ok(()), |available| evaluation_fits(&needs, available))
}

/// Refuses a model whose decoding, with prompts of which up to `prefill` tokens go through the model at once, does not
/// fit.
///
/// # Errors
/// If the config is invalid, or needs more than is available.
pub fn check_decoding<B: Backend>(
    backend: &B,
    config: &GptConfig,
    prefill: usize,
    cache: Dtype,
) -> Outcome<()> {
    decoding_fits(backend, config, prefill, cache, |_| {})
}

/// The same of a model whose weights are used where they lie, and take no memory of their own.
///
/// # Errors
/// As [`check_decoding`].
pub fn check_decoding_in_place<B: Backend>(backend: &B, config: &GptConfig, prefill: usize) -> Outcome<()> {
    decoding_fits(backend, config, prefill, B::Elem::DTYPE, |plan| plan.bytes.parameters = 0)
}

fn decoding_fits<B: Backend>(
    backend: &B,
    config: &GptConfig,
    prefill: usize,
    cache: Dtype,
    change: impl FnOnce(&mut Plan),
) -> Outcome<()> {
    let mut plan = Plan::decoding_with(config, B::Elem::DTYPE, 1, prefill.max(1), cache)?;
    change(&mut plan);
    available().map_or(Ok(()), |available| {
        let smaller = || "it takes a machine with more memory, or a smaller model or context".into();
        Needs::of(backend, &plan).fit("decoding", available, smaller)
    })
}

/// What the average of the weights takes, beside the training that made it, once it is a model of its own.
fn average_bytes<B: Backend>(backend: &B, config: &GptConfig, training: &TrainConfig) -> Outcome<usize> {
    match training.average {
        Some(_) => Ok(training.plan(config, backend)?.bytes.parameters),
        None => Ok(0),
    }
}

/// Bytes, and what they are for.
struct Needs(Vec<(&'static str, usize)>);

impl Needs {
    fn of<B: Backend>(backend: &B, plan: &Plan) -> Needs {
        Needs(plan.bytes.categories().to_vec()).and("workspace", plan.workspace_bytes(backend))
    }

    fn of_training<B: Backend>(backend: &B, config: &GptConfig, training: &TrainConfig) -> Outcome<Needs> {
        let needs = Needs::of(backend, &training.plan(config, backend)?);
        let average = average_bytes(backend, config, training)?;
        Ok(needs.and("tokens", training.token_bytes(config, backend)).and("averaged model", average))
    }

    fn and(mut self, what: &'static str, bytes: usize) -> Needs {
        self.0.push((what, bytes));
        self
    }

    fn total(&self) -> usize {
        self.0.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    fn fit(&self, what: &str, available: usize, remedy: impl FnOnce() -> String) -> Outcome<()> {
        if self.total() <= available {
            return Ok(());
        }
        let parts = self.0.iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {}", human(*bytes))).collect();
        Err(format!(
            "{what} needs {} ({}), and {} are available: {}",
            human(self.total()),
            parts.join(", "),
            human(available),
            remedy()
        )
        .into())
    }
}

/// The most memory that this process has held at once, in bytes; `None` where it cannot be told.
pub fn peak() -> Option<usize> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

#[cfg(test)]
mod tests {
    use minigpt_core::Reference;

    use super::*;
    use crate::testing::Scratch;

    const CHANGE: Remedy<'_> = Remedy { batch: "change it", model: "shrink it" };

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
        let settings =
            |batch, recompute| TrainConfig { batch, time: 8, recompute, ..TrainConfig::constant(1e-3) };
        let needs = |settings: &TrainConfig| {
            settings.plan(&config, &backend).unwrap().bytes.total() + settings.token_bytes(&config, &backend)
        };
        let fits = |settings: &TrainConfig, budget| {
            training_fits(&backend, &config, settings, (0, budget), &CHANGE)
                .map_err(|error| error.to_string())
        };
        let (cheap, blocks) = (Recompute::Cheap, Recompute::Blocks);
        let budget = needs(&settings(5, cheap));
        assert_eq!(fits(&settings(5, cheap), budget), Ok(()));
        let error = fits(&settings(6, cheap), budget).unwrap_err();
        assert!(error.starts_with("training needs ") && error.contains("parameters "), "{error}");
        assert!(error.contains(", tokens 576 B)"), "{error}");
        assert!(error.ends_with("with --recompute blocks it fits"), "{error}");
        let error = fits(&settings(60, cheap), budget).unwrap_err();
        assert!(error.ends_with("the largest batch that fits is 5: change it"), "{error}");
        let small = needs(&settings(1, blocks));
        let error = fits(&settings(60, cheap), small).unwrap_err();
        let expected = "with --recompute blocks, the largest batch that fits is 1: change it";
        assert!(error.ends_with(expected), "{error}");
        let error = fits(&settings(60, blocks), small).unwrap_err();
        assert!(error.ends_with(" available: the largest batch that fits is 1: change it"), "{error}");
        let error = fits(&settings(6, cheap), 100).unwrap_err();
        assert!(error.ends_with("not even one sequence fits: shrink it"), "{error}");
        // The text has its part in the sum.
        let with_text = |batch, budget| {
            let fits = training_fits(&backend, &config, &settings(batch, cheap), (1000, budget), &CHANGE);
            fits.map_err(|error| error.to_string())
        };
        assert_eq!(with_text(5, budget + 1000), Ok(()));
        let error = with_text(60, budget + 1000).unwrap_err();
        assert!(error.contains(", text 1.0 kB), and "), "{error}");
        assert!(error.ends_with("the largest batch that fits is 5: change it"), "{error}");
    }

    #[test]
    fn the_model_that_an_average_becomes_counts_too() {
        let backend = Reference::<f32>::new();
        let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(4, 8) };
        let settings = |batch| TrainConfig {
            batch,
            time: 8,
            recompute: Recompute::Blocks,
            average: Some(0.9),
            ..TrainConfig::constant(1e-3)
        };
        let plan = settings(5).plan(&config, &backend).unwrap();
        let training = plan.bytes.total() + settings(5).token_bytes(&config, &backend);
        let room = training + plan.bytes.parameters;
        assert_eq!(Needs::of_training(&backend, &config, &settings(5)).unwrap().total(), room);
        let fits = |batch, room| training_fits(&backend, &config, &settings(batch), (0, room), &CHANGE);
        fits(5, room).unwrap();
        assert!(fits(5, room - 1).is_err());
        let error = fits(60, room).unwrap_err().to_string();
        assert!(error.contains(", averaged model "), "{error}");
        assert!(error.ends_with("the largest batch that fits is 5: change it"), "{error}");
    }

    #[test]
    fn an_evaluation_that_does_not_fit_is_advised_no_flag() {
        let backend = Reference::<f32>::new();
        let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(4, 8) };
        let settings = TrainConfig { batch: 2, time: 8, ..TrainConfig::constant(0.0) };
        let needs = Needs::of_training(&backend, &config, &settings).unwrap();
        let alone = needs.total();
        let needs = needs.and("files", 1000);
        evaluation_fits(&needs, alone + 1000).unwrap();
        let error = evaluation_fits(&needs, alone + 999).unwrap_err().to_string();
        assert!(error.starts_with("evaluating needs ") && error.contains(", files 1.0 kB)"), "{error}");
        assert!(error.ends_with("it takes a machine with more memory, or a smaller model"), "{error}");
        let large = GptConfig { d_model: 1 << 24, ..config };
        let refused = check_evaluation(&backend, &large, &settings, 0);
        // Only Linux tells how much memory there is.
        assert_eq!(refused.is_err(), cfg!(target_os = "linux"));
    }

    #[test]
    fn a_batch_that_goes_in_slices_is_advised_where_it_fits() {
        let backend = minigpt_cpu::Cpu::builder().threads(1).build().unwrap();
        let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(4, 256) };
        let settings = |batch| TrainConfig { batch, time: 256, ..TrainConfig::constant(1e-3) };
        let at_once = |batch| settings(batch).sequences_at_once(&config, &backend);
        assert_eq!([3, 4, 9, 10].map(at_once), [3, 4, 3, 4]);
        let plan = settings(9).plan(&config, &backend).unwrap();
        let room =
            plan.bytes.total() + plan.workspace_bytes(&backend) + settings(9).token_bytes(&config, &backend);
        let fits = |batch| {
            let fits = training_fits(&backend, &config, &settings(batch), (0, room), &CHANGE);
            fits.map_err(|error| error.to_string())
        };
        assert_eq!((fits(3), fits(9)), (Ok(()), Ok(())));
        for batch in [4, 10, 1 << 40] {
            let error = fits(batch).unwrap_err();
            assert!(error.ends_with("the largest batch that fits is 9, 3 at once: change it"), "{error}");
        }
    }

    #[test]
    fn a_model_beyond_memory_is_refused() {
        let config = GptConfig { layers: 1, heads: 1, d_model: 1 << 24, d_ff: 8, ..GptConfig::new(4, 8) };
        let error = check_decoding(&Reference::<f32>::new(), &config, 1, Dtype::F32).unwrap_err().to_string();
        assert!(
            error.starts_with("decoding needs ") && error.contains("smaller model or context"),
            "{error}"
        );
        // Its weights are what does not fit.
        assert!(error.contains("parameters "), "{error}");
        check_decoding_in_place(&Reference::<f32>::new(), &config, 1).unwrap();
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
