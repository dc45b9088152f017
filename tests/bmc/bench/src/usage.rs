//! What the kernel says a process took.

use std::{fs, time::Duration};

use anyhow::Context as _;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

/// Processor time so far, of the program and of the kernel for it, in seconds.
pub(crate) fn cpu(who: UsageWho) -> anyhow::Result<f64> {
    let usage = getrusage(who)?;
    let seconds = |time: TimeVal| {
        let whole = Duration::from_secs(time.tv_sec().unsigned_abs());
        (whole + Duration::from_micros(time.tv_usec().unsigned_abs())).as_secs_f64()
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// A line of `/proc/self/status`, in MB.
pub(crate) fn memory(line: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|text| text.strip_prefix(line)).context("the kernel tells it")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// Median, least and most.
pub(crate) fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    (at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}
