//! What the machine says of itself.

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// What the kernel holds where rules can be: what is allocated by `kmalloc` (in use, not merely set aside) and by
/// `vmalloc`, and per-CPU memory. The rest of the machine is in it, too, so only differences say something.
///
/// # Errors
/// `/proc/meminfo` or `/proc/slabinfo` cannot be read.
pub fn kernel_memory() -> io::Result<u64> {
    let (kmalloc, slabs) = slabs(&fs::read_to_string("/proc/slabinfo")?);
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_matches([':', ' ']).split(' ').next()?.parse::<u64>().ok()? * 1024)
    };
    // What is too large for a slab is counted with them all the same.
    let large = field("Slab").unwrap_or(0).saturating_sub(slabs);
    let others: u64 = ["Percpu", "VmallocUsed"].into_iter().filter_map(field).sum();
    Ok(kmalloc + large + others)
}

/// Bytes in use in the caches of `kmalloc`, and bytes of the pages of all caches.
fn slabs(slabinfo: &str) -> (u64, u64) {
    let (mut used, mut pages) = (0, 0);
    // name active all size per_slab pages_per_slab : tunables ... : slabdata active_slabs slabs shared
    for line in slabinfo.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |place: usize| fields.get(place).and_then(|n| n.parse::<u64>().ok());
        let (Some(active), Some(size), Some(per_slab), Some(slabs)) =
            (number(1), number(3), number(5), number(14))
        else {
            continue;
        };
        if line.starts_with("kmalloc") {
            used += active * size;
        }
        pages += slabs * per_slab * 4096;
    }
    (used, pages)
}

/// CPU time of the calling thread. Packets that the kernel handles inside one of its system calls are in it.
///
/// # Errors
/// Those of the system call.
pub fn thread_cpu() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Keeps the calling thread on one CPU, the last of those that it may use. It stays where it is if that fails.
pub fn pin() {
    let this = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(this) else { return };
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    if let Some(cpu) = last
        && one.set(cpu).is_ok()
    {
        let _ = sched_setaffinity(this, &one);
    }
}

/// Waits until the machine is nearly idle, such as after namespaces were removed, but not for longer than this.
pub fn settle(at_most: Duration) {
    const QUIET: f64 = 0.15;
    let deadline = Instant::now() + at_most;
    let mut before = busy_and_all();
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(200));
        let now = busy_and_all();
        if let (Some((busy0, all0)), Some((busy, all))) = (before, now)
            && all > all0
            && (busy.saturating_sub(busy0)) as f64 / ((all - all0) as f64) < QUIET
        {
            return;
        }
        before = now;
    }
}

/// Ticks of all CPUs since the start.
fn busy_and_all() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; the guests' are in user.
    let all: u64 = ticks.iter().take(8).sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_summed_by_what_is_in_use() {
        let text = "slabinfo - version: 2.1\n\
                    # name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
                    dentry 10 42 192 21 1 : tunables 0 0 0 : slabdata 2 2 0\n\
                    kmalloc-cg-64 5 128 64 64 1 : tunables 0 0 0 : slabdata 2 2 0\n";
        assert_eq!(slabs(text), (5 * 64, 4 * 4096));
    }

    #[test]
    fn a_busy_thread_uses_cpu_time() {
        let begin = thread_cpu().unwrap();
        while thread_cpu().unwrap() < begin + Duration::from_millis(2) {}
        assert!(thread_cpu().unwrap() >= begin + Duration::from_millis(2));
    }
}
