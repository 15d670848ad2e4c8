//! Time that this disk takes to make a small write durable, on the file system that holds the daemons' data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

const PAGE: usize = 4096;
const PAGES: u64 = 1024;

pub(crate) struct Disk {
    file: File,
    next: u64,
    /// Duration of each sync, in milliseconds.
    pub(crate) syncs: Vec<f64>,
}

impl Disk {
    /// Makes a file with all its blocks allocated, like a write-ahead log that is overwritten.
    pub(crate) fn open() -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        for page in 0..PAGES {
            file.write_all_at(&[1; PAGE], page * PAGE as u64)?;
        }
        file.sync_all()?;
        Ok(Self { file, next: 0, syncs: Vec::new() })
    }

    /// Writes and syncs a page, `times` times in a row.
    pub(crate) fn probe(&mut self, times: usize) -> io::Result<()> {
        for _ in 0..times {
            let start = Instant::now();
            self.file.write_all_at(&[2; PAGE], self.next % PAGES * PAGE as u64)?;
            self.file.sync_data()?;
            self.syncs.push(start.elapsed().as_secs_f64() * 1e3);
            self.next += 1;
        }
        Ok(())
    }
}
