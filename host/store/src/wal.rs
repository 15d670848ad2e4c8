//! Look at the write-ahead log before SQLite uses it, for commits that SQLite would leave out without a word.
//!
//! SQLite ends the log at the first frame whose checksum is wrong, as a commit that lost the power looks like that. But each
//! commit is synced before the next one begins, and the checksum of a frame continues that of the frame before. A commit
//! behind that place with the beginning of the next one means that what was synced has been damaged. What lost commits
//! leave behind one another does not continue.
//!
//! ```text
//! log     header (32 bytes), frames of this generation, frames of earlier generations
//! header  magic, version, page size, sequence, salt × 2, checksum × 2 (u32, big-endian)
//! frame   page, pages of the database (0: not the last of a commit), salt × 2, checksum × 2, page
//! ```
//!
//! The format is described in <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::folder::{self, DataFolder, PAGE_BYTES, sibling};
use super::{OpenError, salvage};
use sedge_core::time::Now;

const HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

/// What a log holds behind its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Nothing,
    /// The last commit is incomplete. It was not answered, unless it was damaged later. Others that lost the power may
    /// follow.
    OneCommit,
    /// Commits that were answered, at least this many.
    Commits(u64),
}

/// Returns what follows the frames that SQLite uses.
pub(super) fn behind_the_end(log: &Path, used_frames: u64) -> io::Result<Behind> {
    let file = match File::open(log) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Behind::Nothing),
        opened => opened?,
    };
    let length = file.metadata()?.len();
    if length < HEADER_BYTES + FRAME_HEADER_BYTES {
        return Ok(Behind::Nothing);
    }
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0)?;
    let is_valid = is_valid(&header);
    let page_bytes = if is_valid { u64::from(word(&header, 2)) } else { PAGE_BYTES };
    let frame_bytes = FRAME_HEADER_BYTES + page_bytes;
    let mut frame = [0; FRAME_HEADER_BYTES as usize];
    let mut salts = [word(&header, 4), word(&header, 5)];
    if !is_valid {
        // One sector holds the header, so it is not torn. Its frames know the salts, too.
        file.read_exact_at(&mut frame, HEADER_BYTES)?;
        salts = [word(&frame, 2), word(&frame, 3)];
    }
    let (mut commits, mut has_next) = (0, false);
    // Checksum of the frame before if it ended a commit.
    let mut ended = None;
    let mut page = vec![0; page_bytes as usize];
    for n in used_frames..(length - HEADER_BYTES) / frame_bytes {
        let at = HEADER_BYTES + n * frame_bytes;
        file.read_exact_at(&mut frame, at)?;
        if [word(&frame, 2), word(&frame, 3)] != salts {
            ended = None;
            continue;
        }
        let stored = (word(&frame, 4), word(&frame, 5));
        if let Some(before) = ended {
            file.read_exact_at(&mut page, at + FRAME_HEADER_BYTES)?;
            let is_big_endian = cfg!(target_endian = "big");
            has_next |= checksum(checksum(before, &frame[..8], is_big_endian), &page, is_big_endian) == stored;
        }
        ended = (word(&frame, 1) != 0).then_some(stored);
        commits += u64::from(ended.is_some());
    }
    Ok(match commits {
        0 => Behind::Nothing,
        commits if has_next || !is_valid => Behind::Commits(commits),
        _ => Behind::OneCommit,
    })
}

fn word(bytes: &[u8], n: usize) -> u32 {
    let bytes = bytes[4 * n..4 * n + 4].try_into().expect("four bytes are four bytes");
    u32::from_be_bytes(bytes)
}

/// Whether the header has the checksum that SQLite requires.
fn is_valid(header: &[u8; HEADER_BYTES as usize]) -> bool {
    let magic = word(header, 0);
    let sum = checksum((0, 0), &header[..24], magic & 1 == 1);
    magic & !1 == 0x377f_0682 && (word(header, 6), word(header, 7)) == sum
}

/// Continues a checksum over bytes, a multiple of 8.
fn checksum((mut first, mut second): (u32, u32), bytes: &[u8], is_big_endian: bool) -> (u32, u32) {
    let number = |n| if is_big_endian { word(bytes, n) } else { word(bytes, n).swap_bytes() };
    for n in (0..bytes.len() / 4).step_by(2) {
        first = first.wrapping_add(number(n)).wrapping_add(second);
        second = second.wrapping_add(number(n + 1)).wrapping_add(first);
    }
    (first, second)
}

/// Keeps a copy of the log beside the database, as SQLite will overwrite it.
pub(super) fn keep_copy(folder: &DataFolder, now: Now) -> io::Result<PathBuf> {
    let log = sibling(&folder.database(), "-wal");
    let copy = folder::unused(sibling(&log, &format!(".corrupt-{}", now.unix_ms / 1000)));
    let copied = fs::copy(&log, &copy).and_then(|_| File::open(&copy)?.sync_all()).and_then(|()| folder.sync());
    if copied.is_err() {
        let _ = fs::remove_file(&copy);
    }
    copied.map(|()| copy)
}

/// Keeps SQLite from deleting a log whose database is empty or missing. Returns the copy if there is one.
pub(super) fn keep_orphan(folder: &DataFolder, now: Now) -> Result<Option<PathBuf>, OpenError> {
    let database = folder.database();
    let length = |path: &Path| match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        metadata => metadata.map(|metadata| metadata.len()),
    };
    let keep = || -> io::Result<Option<PathBuf>> {
        let bytes = length(&sibling(&database, "-wal"))?;
        if bytes == 0 || length(&database)? > 0 {
            return Ok(None);
        }
        let copy = keep_copy(folder, now)?;
        tracing::error!(
            log_bytes = bytes, copy = %copy.display(),
            "the database file is empty beside a write-ahead log: reading what the log holds, a copy of it is kept"
        );
        Ok(Some(copy))
    };
    let copy = keep().map_err(|source| OpenError::Unusable { path: database.clone(), source })?;
    if copy.is_some() {
        // SQLite reads the log of a file that is not empty, and the tables of each new database begin at the same pages.
        salvage::put_new(folder).map_err(|error| error.at(&database))?;
    }
    Ok(copy)
}
