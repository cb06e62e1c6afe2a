//! The machine: its name, how busy it is with other things, and what memory this program took.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// As many threads as the system offers.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Its processor and how many threads there are.
pub fn name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{}, {} threads", model.map_or("a processor of unknown name", |(_, name)| name.trim()), threads())
}

/// Ticks of the system's clock in a second of `/proc/stat`: 100 on every Linux.
const TICKS: f64 = 100.0;

/// Seconds that all processors together have worked since the start of the system; `None` where there is no
/// `/proc/stat`.
fn busy() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what the hypervisor gave to others disturbs as much.
    Some([0, 1, 2, 5, 6, 7].iter().filter_map(|&i| ticks.get(i)).sum::<f64>() / TICKS)
}

/// Seconds that the processors have worked for process `id`, all its threads.
fn worked(id: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold spaces; user and system time are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

/// Watches what others do on the machine while this program and its helpers work.
#[derive(Debug)]
pub struct Watch {
    own: Vec<u32>,
    begun: Instant,
    busy: Option<f64>,
    worked: f64,
}

impl Watch {
    /// From now on; `helpers` are processes that work for this one.
    pub fn start(helpers: &[u32]) -> Watch {
        let own: Vec<u32> = helpers.iter().copied().chain([std::process::id()]).collect();
        let worked = own.iter().filter_map(|&id| worked(id)).sum();
        Watch { own, begun: Instant::now(), busy: busy(), worked }
    }

    /// How many processors others kept busy, on average since the start; 0 where the system does not tell.
    pub fn foreign(&self) -> f64 {
        let (Some(before), Some(now)) = (self.busy, busy()) else { return 0.0 };
        let own = self.own.iter().filter_map(|&id| worked(id)).sum::<f64>() - self.worked;
        ((now - before - own) / self.begun.elapsed().as_secs_f64()).max(0.0)
    }
}

/// Waits until the machine has been quiet for a second, `limit` at most. Returns whether it is.
pub fn wait_until_quiet(limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let watch = Watch::start(&[]);
        sleep(Duration::from_secs(1));
        if watch.foreign() < 0.08 {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        sleep(Duration::from_secs(2));
    }
}

/// Megabytes (2^20 bytes) of memory that a line of `/proc/self/status` names: `VmRSS`, `VmHWM`.
fn status(field: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}

/// Megabytes that this program holds in memory.
pub fn resident_mb() -> Option<f64> {
    status("VmRSS")
}

/// The most megabytes that this program ever held in memory.
pub fn peak_mb() -> Option<f64> {
    status("VmHWM")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn own_work_is_not_foreign() {
        let before = worked(std::process::id()).unwrap();
        let begun = Instant::now();
        let mut x = 1u64;
        while begun.elapsed() < Duration::from_millis(100) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        // A thread beside this one may have worked too.
        assert!(worked(std::process::id()).unwrap() >= before);
        assert!(busy().unwrap() > 0.0);
        assert!(worked(u32::MAX).is_none());
    }

    #[test]
    fn memory_that_was_taken_shows_in_the_peak() {
        let before = peak_mb().unwrap();
        let taken = std::hint::black_box(vec![1u8; 256 << 20]);
        assert!(taken.iter().all(|&byte| byte == 1));
        assert!(peak_mb().unwrap() >= 250.0 && peak_mb().unwrap() >= before);
        assert!(resident_mb().unwrap() >= 250.0);
    }
}
