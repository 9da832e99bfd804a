//! The peak resident memory of the process.

/// The peak resident memory of this process so far, in bytes: `VmHWM` of `/proc/self/status` on Linux, `ru_maxrss` of
/// `getrusage` on other Unix systems. `None` if neither is available.
#[cfg(target_os = "linux")]
pub fn resident_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    high_water_mark(&status)
}

#[cfg(all(unix, not(target_os = "linux")))]
pub fn resident_peak() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    let peak = u64::try_from(getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss()).ok()?;
    // Apple counts bytes, the others KiB.
    Some(if cfg!(target_vendor = "apple") {
        peak
    } else {
        peak << 10
    })
}

#[cfg(not(unix))]
pub fn resident_peak() -> Option<u64> {
    None
}

#[cfg(any(target_os = "linux", test))]
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_kib() {
        let status = "Name:\tx\nVmPeak:\t  99 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 7 kB\n";
        assert_eq!(high_water_mark(status), Some(1234 * 1024));
        assert_eq!(high_water_mark("VmRSS:\t 7 kB\n"), None);
    }

    #[cfg(unix)]
    #[test]
    fn memory_that_is_used_raises_the_peak() {
        let size = 64 << 20;
        let before = resident_peak().unwrap();
        let mut used = vec![1u8; before as usize + size];
        used.iter_mut().step_by(4096).for_each(|byte| *byte += 1);
        std::hint::black_box(&used);
        assert!(resident_peak().unwrap() >= before + size as u64);
    }
}
