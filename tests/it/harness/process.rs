//! Processes and their children, read from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::str::FromStr;

/// Living children, with their arguments.
pub(crate) fn children(pid: u32) -> Vec<(u32, Vec<String>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| u32::from_str(name).ok()) else { continue };
        // A process may end between any two of these lines.
        let Some((state, parent)) = state_and_parent(child) else { continue };
        if parent == pid && state != 'Z' {
            found.push((child, arguments(child)));
        }
    }
    found
}

/// Children that run `sedge worker`.
pub(crate) fn workers(pid: u32) -> Vec<u32> {
    children(pid)
        .into_iter()
        // An emulator puts itself and the file before the arguments.
        .filter(|(_, arguments)| arguments.iter().skip(1).take(3).any(|command| command == "worker"))
        .map(|(pid, _)| pid)
        .collect()
}

/// CPU time of a process and its living children, in nanoseconds: all threads, user and kernel.
pub(crate) fn cpu_ns(pid: u32) -> u64 {
    own_cpu_ns(pid) + children(pid).into_iter().map(|(child, _)| own_cpu_ns(child)).sum::<u64>()
}

/// Proportional set size of a process and its children: shared pages are counted once.
pub(crate) fn pss_kb(pid: u32) -> u64 {
    let own = |pid| field(&read(pid, "smaps_rollup"), "Pss:");
    own(pid) + children(pid).into_iter().map(|(child, _)| own(child)).sum::<u64>()
}

/// Private memory of a process.
pub(crate) fn anonymous_kb(pid: u32) -> u64 {
    field(&read(pid, "status"), "RssAnon:")
}

/// Bytes that a process sent to the block layer: dirtied pages without truncated ones.
pub(crate) fn written_bytes(pid: u32) -> u64 {
    let io = read(pid, "io");
    field(&io, "write_bytes:") - field(&io, "cancelled_write_bytes:")
}

/// Reads `schedstat` of each thread, which counts nanoseconds; `stat` counts ticks of 10 ms.
fn own_cpu_ns(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    threads.flatten().map(|thread| thread_cpu_ns(pid, &thread.file_name().to_string_lossy())).sum()
}

pub(crate) fn thread_cpu_ns(pid: u32, thread: &str) -> u64 {
    let line = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).unwrap_or_default();
    line.split(' ').next().and_then(|running| running.parse().ok()).unwrap_or(0)
}

/// Context switches of a process and its children, by thread.
pub(crate) struct Threads {
    /// Name and count by thread id.
    switches: BTreeMap<u32, (String, u64)>,
}

impl Threads {
    pub(crate) fn of(pid: u32) -> Self {
        let mut switches = BTreeMap::new();
        for pid in std::iter::once(pid).chain(children(pid).into_iter().map(|(child, _)| child)) {
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
                let status = read(pid, &format!("task/{thread}/status"));
                let name = status.lines().find_map(|line| line.strip_prefix("Name:")).unwrap_or("?").trim().to_owned();
                let count = field(&status, "voluntary_ctxt_switches:") + field(&status, "nonvoluntary_ctxt_switches:");
                switches.insert(thread, (name, count));
            }
        }
        Self { switches }
    }

    /// Context switches since another reading, by the name of the thread.
    pub(crate) fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let mut by_name = BTreeMap::new();
        for (thread, (name, count)) in &self.switches {
            let earlier = before.switches.get(thread).map_or(0, |(_, count)| *count);
            *by_name.entry(name.clone()).or_default() += count - earlier;
        }
        by_name
    }
}

fn read(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// The number behind the name, or 0.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

/// Fields after the name, which may contain spaces and parentheses and ends with the last one.
fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}
