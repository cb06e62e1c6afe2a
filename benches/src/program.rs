//! What the benchmarks that are programs of their own have in common.

use clap::Parser;

/// Flags of a benchmark that is a program of its own: `cargo bench -p minigpt-benches --bench NAME -- FLAGS`.
#[derive(Debug, Clone, Parser)]
pub struct Flags {
    /// Only what has this in its name: S, M, tiny, ...
    #[arg(long)]
    pub only: Option<String>,
    /// How many rounds the candidates take turns for.
    #[arg(long, default_value_t = 20)]
    pub pairs: usize,
    /// How long to wait for the machine to be quiet, in seconds.
    #[arg(long, default_value_t = 60)]
    pub wait: u64,
    /// Given by `cargo bench`. Without it, as in `cargo test --benches`, everything runs once and nothing is measured.
    #[arg(long)]
    pub bench: bool,
}

impl Flags {
    /// How many rounds to take.
    pub fn rounds(&self) -> usize {
        if self.bench { self.pairs.max(1) } else { 1 }
    }

    /// Whether the part of this name was asked for.
    pub fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| part == only)
    }

    /// Says what machine this is and waits until it is quiet.
    pub fn begin(&self) {
        println!("{}", crate::machine::name());
        if !self.bench {
            println!("a test: everything runs once, and the figures mean nothing");
        } else if !crate::machine::wait_until_quiet(std::time::Duration::from_secs(self.wait)) {
            println!("the machine is busy with other things: trust ratios more than times");
        }
    }
}
