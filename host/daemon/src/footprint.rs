//! Releases the program's code and constants from this process's memory.
//!
//! The kernel maps 16 pages per fault (fault-around), and they count towards the process until they are unmapped. Releasing
//! them after start takes the idle daemon with its workers from 19 MB to 10 MB; the next use maps them again from the page
//! cache.

/// Unmaps all pages of the program's file between its headers and the end of its code.
#[expect(unsafe_code, reason = "the linker's symbols and madvise are unsafe")]
pub(crate) fn release() {
    use rustix::mm::{Advice, madvise};

    unsafe extern "C" {
        /// First byte of the program's file in memory.
        static __executable_start: u8;
        /// End of its code. Everything that relocation writes to comes later.
        static etext: u8;
    }

    let page = rustix::param::page_size();
    let start = &raw const __executable_start;
    let length = ((&raw const etext).addr() - start.addr()) / page * page;
    // SAFETY: the range holds only mappings of the program's file that are never written, so each page comes back from the
    // file as it was. They stay mapped for as long as the process lives.
    let released = unsafe { madvise(start.cast_mut().cast(), length, Advice::LinuxDontNeed) };
    // The range may have gaps between two mappings, which madvise reports after it has released the rest.
    debug_assert!(matches!(released, Ok(()) | Err(rustix::io::Errno::NOMEM)), "{released:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_runs_on_with_less_memory() {
        let resident_file_pages = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(2).unwrap().parse::<u64>().unwrap()
        };
        let before = resident_file_pages();
        release();
        let after = resident_file_pages();
        assert!(after < before, "pages of files: {before} before, {after} after");
    }
}
