//! Gives back the memory that only starting up, or an attempt to connect, needed: pages of the program's own file, code and
//! constants.
//!
//! With every page that is touched the kernel maps the fifteen around it, and what is mapped stays and counts as this process's.
//! Starting up goes once through code that is never needed again, an attempt through code that is needed again in half a
//! minute. What is needed is mapped anew at its next use, from memory that the kernel keeps for files and may take back when it
//! is short.

use std::fs;
use std::io;
use std::ops::Range;

/// What is mapped of this program's file and cannot be lost by unmapping it: nobody has written to it.
#[derive(Debug)]
pub struct Footprint {
    unchanged: Vec<Range<usize>>,
}

impl Footprint {
    pub fn of_this_process() -> io::Result<Self> {
        let program = fs::read_link("/proc/self/exe")?;
        // A program that an upgrade has replaced has another name by now.
        let program = program.to_string_lossy().into_owned();
        Ok(Self { unchanged: unchanged(&fs::read_to_string("/proc/self/smaps")?, &program) })
    }

    /// What the kernel does not take stays as it is.
    pub fn give_back(&self) {
        for range in &self.unchanged {
            pages::give_back(range);
        }
    }
}

/// The mappings of a file that cannot be written and of which no page is this process's own. Those that relocations have
/// changed have such pages.
fn unchanged(smaps: &str, program: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Anonymous:") => {
                let is_changed = words.next() != Some("0");
                found.extend(mapping.take().filter(|_| !is_changed));
            }
            // Fields of the mapping before.
            Some(word) if word.ends_with(':') => {}
            Some(addresses) => {
                let is_fixed = matches!(words.next(), Some("r-xp" | "r--p"));
                let is_programs = line.ends_with(program) && !program.is_empty();
                mapping = range(addresses).filter(|_| is_fixed && is_programs);
            }
            None => {}
        }
    }
    found
}

fn range(addresses: &str) -> Option<Range<usize>> {
    let (start, end) = addresses.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[expect(unsafe_code, reason = "the kernel is told to forget memory")]
mod pages {
    use std::ops::Range;

    use rustix::mm::{Advice, madvise};

    pub fn give_back(range: &Range<usize>) {
        // SAFETY: the range is a mapping of the program's file that cannot be written and has no page of its own, so that each
        // page comes back from the file as it was. It is mapped for as long as the process lives.
        let _ = unsafe { madvise(range.start as *mut _, range.len(), Advice::LinuxDontNeed) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_has_written_to_is_given_back() {
        let smaps = "\
55d0-55e0 r--p 00000000 fe:00 1 /usr/bin/sedge
Rss:                 100 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55e0-55f0 r-xp 00010000 fe:00 1 /usr/bin/sedge
Anonymous:             0 kB
55f0-5600 r--p 00020000 fe:00 1 /usr/bin/sedge
Anonymous:             4 kB
5600-5610 rw-p 00030000 fe:00 1 /usr/bin/sedge
Anonymous:             0 kB
7f00-7f10 r-xp 00000000 fe:00 2 /lib/libc.so.6
Anonymous:             0 kB
7f20-7f30 rw-p 00000000 00:00 0
Anonymous:             0 kB
";
        assert_eq!(unchanged(smaps, "/usr/bin/sedge"), vec![0x55d0..0x55e0, 0x55e0..0x55f0]);
        assert!(unchanged(smaps, "/usr/bin/sedge (deleted)").is_empty());
        assert!(unchanged(smaps, "").is_empty());
    }

    #[test]
    fn a_process_goes_on_with_less() {
        let resident = || {
            let statm = fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(2).unwrap().parse::<u64>().unwrap()
        };
        let footprint = Footprint::of_this_process().unwrap();
        assert!(!footprint.unchanged.is_empty());
        let before = resident();
        footprint.give_back();
        let after = resident();
        assert!(after < before, "pages of files: {before} before, {after} after");
    }
}
