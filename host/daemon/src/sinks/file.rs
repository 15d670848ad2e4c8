//! Files as a sink: JSON lines in a folder, for a USB stick or an export.
//!
//! ```text
//! <folder>/<board>-<number>-<day>.jsonl        the file with the highest number grows; others are complete
//! ```
//!
//! A batch is written, synced, and only then accepted. The file is open only meanwhile, so that a stick can be unmounted at any
//! time, and the folder is never created: where it is missing the stick is, and the disk below its mount point must not be
//! filled. A write that fails leaves at most the beginning of lines that were not accepted; the next one cuts them off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::{Answers, structured};
use sedge_core::config;
use sedge_core::forward::{Answer, Envelope};
use sedge_core::message::PublishToken;
use sedge_mqtt::Full;

/// Lines that are synced together.
const BATCH: usize = 256;

/// Read at a time in search of the last line end.
const BLOCK_BYTES: u64 = 64 << 10;

/// Handle of the thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct FileSink {
    lines: flume::Sender<(PublishToken, Envelope)>,
}

impl FileSink {
    pub(crate) fn spawn(node: &str, config: &config::FileSink, answers: Answers) -> io::Result<Self> {
        let mut folder = Folder::new(node, config);
        let (lines, receiver) = flume::bounded(config::FileSink::IN_FLIGHT);
        std::thread::Builder::new().name("file-sink".into()).spawn(move || {
            while let Ok(first) = receiver.recv() {
                let batch: Vec<_> = [first].into_iter().chain(receiver.try_iter().take(BATCH - 1)).collect();
                let answer = folder.take(&batch);
                if !batch.iter().all(|(token, _)| answers.send(*token, answer.clone())) {
                    return;
                }
            }
        })?;
        Ok(Self { lines })
    }

    /// [`Full`]: earlier records are still being written.
    pub(crate) fn send(&self, token: PublishToken, envelope: Envelope) -> Result<(), Full> {
        self.lines.try_send((token, envelope)).map_err(|_| Full)
    }
}

/// The folder and the file that grows in it.
struct Folder {
    path: PathBuf,
    /// Begin of the names of its files.
    prefix: String,
    max_file_bytes: u64,
    max_total_bytes: u64,
    current: Option<Current>,
}

/// The file that grows, as it is on the disk.
#[derive(Clone, Debug)]
struct Current {
    number: u64,
    day: String,
    /// Everything up to here is synced.
    bytes: u64,
}

impl Folder {
    fn new(node: &str, config: &config::FileSink) -> Self {
        Self {
            path: config.path.clone(),
            prefix: format!("{node}-"),
            max_file_bytes: config.max_file_bytes.get(),
            max_total_bytes: config.max_total_bytes.get(),
            current: None,
        }
    }

    /// Writes and syncs a batch, which is taken as a whole or not at all.
    fn take(&mut self, batch: &[(PublishToken, Envelope)]) -> Answer {
        match self.write(batch) {
            Ok(()) => Answer::Accepted,
            Err(error) => {
                // Perhaps another stick comes.
                self.current = None;
                Answer::Retry { reason: self.explain(&error), after: None }
            }
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        let folder = self.path.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                format!("there is no folder {folder}: put the stick in, or create the folder on it once")
            }
            io::ErrorKind::StorageFull => {
                format!("{folder} is full: lower max_total_bytes below its size, or free some space")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                format!(
                    "{folder} cannot be written ({error}): let the user of sedge write there (ReadWritePaths= of the unit)"
                )
            }
            _ => format!("failed to write to {folder}: {error}"),
        }
    }

    fn write(&mut self, batch: &[(PublishToken, Envelope)]) -> io::Result<()> {
        let mut rest = batch;
        while let Some((_, first)) = rest.first() {
            let day = day(first);
            let (mut file, mut current) = self.open(&day)?;
            let mut text = Vec::new();
            let mut taken = 0;
            for (_, envelope) in rest {
                let is_full = current.bytes + text.len() as u64 >= self.max_file_bytes;
                if taken > 0 && (is_full || self::day(envelope) > current.day) {
                    break;
                }
                serde_json::to_writer(&mut text, &structured::event(envelope)).map_err(io::Error::from)?;
                text.push(b'\n');
                taken += 1;
            }
            file.write_all(&text)?;
            file.sync_data()?;
            current.bytes += text.len() as u64;
            self.current = Some(current);
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Opens the file that a record of this day goes to, at its end.
    fn open(&mut self, day: &str) -> io::Result<(File, Current)> {
        if self.current.is_none() {
            self.current = self.newest()?;
        }
        if let Some(current) = self.current.clone()
            && current.bytes < self.max_file_bytes
            // The days of a clock that goes back stay in the file.
            && *day <= *current.day
        {
            let mut file = OpenOptions::new().read(true).write(true).open(self.file(&current))?;
            if file.metadata()?.len() != current.bytes {
                // The rest of a write that failed, or of another program.
                file.set_len(current.bytes)?;
            }
            file.seek(SeekFrom::End(0))?;
            return Ok((file, current));
        }
        let number = self.current.as_ref().map_or(0, |current| current.number) + 1;
        self.make_room()?;
        let current = Current { number, day: day.to_owned(), bytes: 0 };
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(self.file(&current))?;
        // The name of the file must survive a power cut, too.
        File::open(&self.path)?.sync_all()?;
        Ok((file, current))
    }

    fn file(&self, current: &Current) -> PathBuf {
        self.path.join(format!("{}{:06}-{}.jsonl", self.prefix, current.number, current.day))
    }

    /// Files of this board with their sizes, oldest first.
    fn files(&self) -> io::Result<Vec<Current>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((number, day)) = name.to_str().and_then(|name| self.parse(name)) else { continue };
            files.push(Current { number, day, bytes: entry.metadata()?.len() });
        }
        files.sort_by_key(|file| file.number);
        Ok(files)
    }

    fn parse(&self, name: &str) -> Option<(u64, String)> {
        let (number, day) = name.strip_prefix(&self.prefix)?.strip_suffix(".jsonl")?.split_once('-')?;
        let is_day = day.len() == 10 && day.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        Some((number.parse().ok()?, is_day.then(|| day.to_owned())?))
    }

    /// The file that grew last, without the rest of a line that a power cut left.
    fn newest(&self) -> io::Result<Option<Current>> {
        let Some(mut newest) = self.files()?.pop() else { return Ok(None) };
        newest.bytes = whole_lines(&self.file(&newest), newest.bytes)?;
        Ok(Some(newest))
    }

    /// Deletes the oldest files, so that another one has room within the bound.
    fn make_room(&self) -> io::Result<()> {
        let files = self.files()?;
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        for file in files {
            if total + self.max_file_bytes <= self.max_total_bytes {
                break;
            }
            let path = self.file(&file);
            std::fs::remove_file(&path)?;
            tracing::info!(file = %path.display(), "deleted the oldest file of a sink to make room (max_total_bytes)");
            total -= file.bytes;
        }
        Ok(())
    }
}

/// The day of a record: the beginning of its time.
fn day(envelope: &Envelope) -> String {
    envelope.property("time").and_then(|time| time.get(..10)).unwrap_or("1970-01-01").to_owned()
}

/// Length of a file up to its last line end.
fn whole_lines(path: &Path, bytes: u64) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut end = bytes;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        let mut block = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
