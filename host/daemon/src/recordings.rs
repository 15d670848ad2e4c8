//! Recordings on the disk: `<data>/recordings/<id>.rec`, written and read by a thread of its own.
//!
//! Nothing waits for it. The event loop writes the lines of a run into a buffer, of which the thread takes what has come every second,
//! or sooner when there is much: it is woken rarely, and shares no memory but the lines. When the buffers are full the recording ends
//! there, and the messages go on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use flume::{Receiver, RecvTimeoutError, Sender, TrySendError};
use tokio::sync::mpsc;

use sedge_core::board::TappedRun;
use sedge_core::deploy::reason::{Reason, Refusal};
use sedge_core::deploy::requests::{MAX_PIECES, PIECE_BYTES, Reply, RequestAnswer};
use sedge_core::recording::{Encoder, Header, Seal, Why, append_run};

/// Commands that may wait for the thread.
const MAX_WAITING: usize = 64;
/// Lines that may wait for it, of all recordings.
const MAX_WAITING_BYTES: u64 = 4 << 20;
/// Lines of one recording for which it is woken.
const WAKE_BYTES: usize = 256 << 10;
/// Replies that may wait for the event loop.
const MAX_REPLIES: usize = 2 * MAX_PIECES as usize;
/// A run is in the file after so long.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// Folder of the recordings, in the data folder.
pub(crate) const FOLDER: &str = "recordings";
const SUFFIX: &str = "rec";
const OUTCOME: &[u8] = b"{\"outcome\":";
const END: &[u8] = b"{\"end\":";

/// A part of an answer to a request.
#[derive(Debug)]
pub(crate) struct ReplyPart {
    pub(crate) id: Arc<str>,
    pub(crate) number: u32,
    pub(crate) payload: Bytes,
}

/// What the thread is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Begin {
        id: Arc<str>,
        header: Box<Header>,
        waiting: Shared,
    },
    /// Much waits.
    Write,
    End {
        id: Arc<str>,
        why: Why,
    },
    /// Send pieces of a recording of this function.
    Fetch {
        request: Arc<str>,
        function: Arc<str>,
        of: Box<str>,
        from: u32,
        pieces: u32,
    },
    Drop {
        request: Arc<str>,
        function: Arc<str>,
        of: Box<str>,
    },
}

/// Too much waits for the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// Lines of runs that wait for the thread, of one recording.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    lines: Vec<u8>,
    runs: u64,
}

type Shared = Arc<Mutex<Waiting>>;

/// Never held while something fails or waits.
fn lock(waiting: &Shared) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Handle of the thread, which ends with it.
pub(crate) struct Recordings {
    commands: Sender<Command>,
    /// Of the recordings that go on.
    waiting: BTreeMap<Arc<str>, Shared>,
    waiting_bytes: Arc<AtomicU64>,
}

impl Recordings {
    /// `max_bytes`: all recordings on the disk.
    pub(crate) fn spawn(data_dir: &Path, max_bytes: u64) -> anyhow::Result<(Self, mpsc::Receiver<ReplyPart>)> {
        let folder = data_dir.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        let (commands, received) = flume::bounded(MAX_WAITING);
        let (replies, parts) = mpsc::channel(MAX_REPLIES);
        let waiting_bytes = Arc::new(AtomicU64::new(0));
        let writer =
            Writer { folder, max_bytes, files: BTreeMap::new(), replies, waiting_bytes: Arc::clone(&waiting_bytes) };
        std::thread::Builder::new().name("recordings".into()).spawn(move || writer.run(&received))?;
        Ok((Self { commands, waiting: BTreeMap::new(), waiting_bytes }, parts))
    }

    pub(crate) fn begin(&mut self, id: Arc<str>, header: Box<Header>) -> Result<(), Overrun> {
        let waiting = Shared::default();
        self.send(Command::Begin { id: Arc::clone(&id), header, waiting: Arc::clone(&waiting) })?;
        self.waiting.insert(id, waiting);
        Ok(())
    }

    /// Never blocks for longer than the thread takes to exchange a buffer.
    pub(crate) fn run(&mut self, id: &str, run: &TappedRun) -> Result<(), Overrun> {
        // The thread gives up one that it cannot begin, or that is dropped.
        let Some(waiting) = self.waiting.get(id).filter(|waiting| Arc::strong_count(waiting) > 1) else {
            return Ok(());
        };
        if self.waiting_bytes.load(Relaxed) + run.bytes() > MAX_WAITING_BYTES {
            return Err(Overrun);
        }
        let mut waiting = lock(waiting);
        let before = waiting.lines.len();
        append_run(&run.as_recorded(), &mut waiting.lines);
        waiting.runs += 1;
        let after = waiting.lines.len();
        drop(waiting);
        self.waiting_bytes.fetch_add((after - before) as u64, Relaxed);
        if before < WAKE_BYTES && after >= WAKE_BYTES {
            // If there is no room for the command, the thread has others, and writes with each.
            let _ = self.commands.try_send(Command::Write);
        }
        Ok(())
    }

    /// Never blocks. What waits of the recording is written before it ends.
    pub(crate) fn end(&mut self, id: &Arc<str>, why: Why) -> Result<(), Overrun> {
        if let Some(given_up) = self.waiting.remove(id).filter(|waiting| Arc::strong_count(waiting) == 1) {
            self.waiting_bytes.fetch_sub(lock(&given_up).lines.len() as u64, Relaxed);
        }
        self.send(Command::End { id: Arc::clone(id), why })
    }

    /// Never blocks.
    pub(crate) fn send(&self, command: Command) -> Result<(), Overrun> {
        self.commands.try_send(command).map_err(|error| {
            if let TrySendError::Disconnected(_) = error {
                tracing::error!("the thread of the recordings has ended");
            }
            Overrun
        })
    }
}

struct Writer {
    folder: PathBuf,
    max_bytes: u64,
    /// Recordings that go on.
    files: BTreeMap<Arc<str>, Recording>,
    replies: mpsc::Sender<ReplyPart>,
    waiting_bytes: Arc<AtomicU64>,
}

struct Recording {
    function: String,
    file: File,
    encoder: Encoder,
    waiting: Shared,
    /// Takes the place of the lines that wait.
    spare: Vec<u8>,
    bytes: u64,
    has_failed: bool,
}

impl Writer {
    fn run(mut self, received: &Receiver<Command>) {
        if let Err(error) = self.finish_old() {
            tracing::warn!(%error, "failed to look through the recordings of before");
        }
        loop {
            let command = match self.files.is_empty() {
                true => received.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => received.recv_timeout(FLUSH_AFTER),
            };
            match command {
                Ok(command) => {
                    self.write();
                    self.handle(command);
                }
                Err(RecvTimeoutError::Timeout) => self.write(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.write();
        for (id, recording) in std::mem::take(&mut self.files) {
            recording.end(&id, Why::DaemonEnded);
        }
    }

    /// Writes what waits.
    fn write(&mut self) {
        for recording in self.files.values_mut() {
            self.waiting_bytes.fetch_sub(recording.write(), Relaxed);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Begin { id, header, waiting } => {
                let begun = self.begin(&id, &header, waiting);
                let reply = match begun {
                    Ok(()) => Reply::Ok(RequestAnswer { state: "recording".to_owned(), ..RequestAnswer::default() }),
                    Err(error) => {
                        tracing::error!(%error, "failed to begin a recording");
                        Reply::refused(&Refusal::new(
                            Reason::DiskFailed,
                            format!("failed to begin a recording: {error}"),
                        ))
                    }
                };
                self.reply(&id, &reply);
            }
            Command::Write => {}
            Command::End { id, why } => {
                if let Some(recording) = self.files.remove(&id) {
                    recording.end(&id, why);
                }
            }
            Command::Fetch { request, function, of, from, pieces } => {
                if let Err(refusal) = self.fetch(&request, &function, &of, from, pieces) {
                    self.reply(&request, &Reply::refused(&refusal));
                }
            }
            Command::Drop { request, function, of } => {
                let dropped = self.of_function(&function, &of).and_then(|path| {
                    self.files.remove(&*of);
                    fs::remove_file(path).map_err(|error| disk(&error))
                });
                let ok = Reply::Ok(RequestAnswer { state: "dropped".to_owned(), ..RequestAnswer::default() });
                self.reply(&request, &dropped.map_or_else(|refusal| Reply::refused(&refusal), |()| ok));
            }
        }
    }

    fn reply(&self, id: &Arc<str>, reply: &Reply) {
        // Fails only when the daemon ends.
        let _ = self.replies.blocking_send(ReplyPart { id: Arc::clone(id), number: 0, payload: reply.to_json() });
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(id).with_extension(SUFFIX)
    }

    fn begin(&mut self, id: &Arc<str>, header: &Header, waiting: Shared) -> io::Result<()> {
        self.make_room()?;
        let path = self.path(id);
        let file = File::options().write(true).create_new(true).open(&path)?;
        let mut encoder = Encoder::default();
        encoder.header(header);
        let function = header.function.clone();
        let (spare, bytes, has_failed) = (Vec::new(), 0, false);
        let mut recording = Recording { function, file, encoder, waiting, spare, bytes, has_failed };
        recording.flush();
        if recording.has_failed {
            let _ = fs::remove_file(path);
            return Err(io::Error::other("the disk took nothing"));
        }
        self.files.insert(Arc::clone(id), recording);
        Ok(())
    }

    /// Deletes the oldest recordings until half of the room is free: one may take so much.
    fn make_room(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if total <= self.max_bytes / 2 {
                break;
            }
            if self.files.keys().any(|id| self.path(id) == path) {
                continue;
            }
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }

    /// The file of a recording of this function.
    fn of_function(&self, function: &str, of: &str) -> Result<PathBuf, Refusal> {
        let not_there = || {
            let detail = format!("there is no recording {of} of {function} on this board");
            Refusal::new(Reason::NotInstalled, detail)
        };
        // It becomes part of a path.
        if of.is_empty() || !of.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(not_there());
        }
        let path = self.path(of);
        let header = header_of(&path).map_err(|_| not_there())?;
        if header.function == *function { Ok(path) } else { Err(not_there()) }
    }

    fn fetch(&mut self, request: &Arc<str>, function: &str, of: &str, from: u32, pieces: u32) -> Result<(), Refusal> {
        let path = self.of_function(function, of)?;
        let mut answer = RequestAnswer { state: "ended".to_owned(), ..RequestAnswer::default() };
        match self.files.get_mut(of) {
            Some(recording) => {
                answer.state = "recording".to_owned();
                (answer.runs, answer.bytes) = (recording.encoder.runs(), recording.bytes);
            }
            None => {
                let last = last_line(&path).map_err(|error| disk(&error))?;
                let end = serde_json::from_slice::<serde_json::Value>(&last).ok();
                let end = end.and_then(|end| serde_json::from_value(end["end"].clone()).ok());
                let end: Option<sedge_core::recording::End> = end;
                answer.runs = end.as_ref().map_or(0, |end| end.runs);
                answer.why = end.map(|end| end.why.to_string());
                answer.bytes = fs::metadata(&path).map_err(|error| disk(&error))?.len();
            }
        }
        let whole = answer.bytes.div_ceil(PIECE_BYTES as u64);
        answer.pieces = whole.saturating_sub(from.into()).min(pieces.min(MAX_PIECES).into()) as u32;
        let parts = read_pieces(&path, from, answer.pieces).map_err(|error| disk(&error))?;
        self.reply(request, &Reply::Ok(answer));
        for (number, payload) in (1..).zip(parts) {
            let _ = self.replies.blocking_send(ReplyPart { id: Arc::clone(request), number, payload });
        }
        Ok(())
    }

    /// Ends recordings over which the daemon ended, at their last whole run.
    fn finish_old(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == SUFFIX)
                && !last_line(&path)?.starts_with(END)
                && let Err(error) = finish(&path)
            {
                tracing::warn!(%error, path = %path.display(), "failed to end a recording of before");
            }
        }
        Ok(())
    }
}

impl Recording {
    /// Returns the bytes that waited.
    fn write(&mut self) -> u64 {
        let mut waiting = lock(&self.waiting);
        let runs = std::mem::take(&mut waiting.runs);
        std::mem::swap(&mut waiting.lines, &mut self.spare);
        drop(waiting);
        let mut lines = std::mem::take(&mut self.spare);
        self.encoder.seal_runs(&lines, runs);
        self.append(&lines);
        let bytes = lines.len() as u64;
        lines.clear();
        self.spare = lines;
        bytes
    }

    fn flush(&mut self) {
        let lines = std::mem::take(&mut self.encoder.lines);
        self.append(&lines);
    }

    fn append(&mut self, lines: &[u8]) {
        if self.has_failed {
            return;
        }
        match self.file.write_all(lines) {
            Ok(()) => self.bytes += lines.len() as u64,
            Err(error) => {
                tracing::error!(%error, "failed to write a recording: what follows is missing in it");
                self.has_failed = true;
            }
        }
    }

    /// One that failed is ended at the next start, at what is whole of it.
    fn end(mut self, id: &str, why: Why) {
        self.flush();
        if self.has_failed {
            return;
        }
        let end = self.encoder.end(why);
        self.flush();
        if let Err(error) = self.file.sync_all() {
            tracing::error!(%error, "failed to sync a recording");
        }
        tracing::info!(id, function = self.function, runs = end.runs, %why, "recording ended");
    }
}

fn disk(error: &io::Error) -> Refusal {
    Refusal::new(Reason::DiskFailed, format!("failed to read the recording: {error}"))
}

fn header_of(path: &Path) -> anyhow::Result<Header> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?).take(64 << 10).read_until(b'\n', &mut line)?;
    let line: serde_json::Value = serde_json::from_slice(&line)?;
    Ok(serde_json::from_value(line["recording"].clone())?)
}

/// The last line of a file, or the end of a long one.
fn last_line(path: &Path) -> io::Result<Vec<u8>> {
    const MOST: u64 = 4096;
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let lines = end.strip_suffix(b"\n").unwrap_or(&end);
    let begin = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(end[begin..].to_vec())
}

fn read_pieces(path: &Path, from: u32, pieces: u32) -> io::Result<Vec<Bytes>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(u64::from(from) * PIECE_BYTES as u64))?;
    (0..pieces)
        .map(|_| {
            let mut piece = Vec::new();
            (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            Ok(piece.into())
        })
        .collect()
}

/// Cuts a recording after its last whole run, and writes its end.
fn finish(path: &Path) -> anyhow::Result<()> {
    let mut input = BufReader::new(File::open(path)?);
    let (mut seal, mut whole, mut at) = (Seal::default(), (Seal::default(), 0), 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        at += input.read_until(b'\n', &mut line)? as u64;
        if !line.ends_with(b"\n") {
            break;
        }
        seal.add(&line);
        let is_outcome = line.starts_with(OUTCOME);
        seal.runs += u64::from(is_outcome);
        if is_outcome || whole.1 == 0 {
            whole = (seal.clone(), at);
        }
    }
    let file = File::options().write(true).open(path)?;
    file.set_len(whole.1)?;
    let mut end = serde_json::to_vec(&serde_json::json!({ "end": whole.0.end(Why::DaemonEnded) }))?;
    end.push(b'\n');
    (&file).seek(SeekFrom::End(0))?;
    (&file).write_all(&end)?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests;
