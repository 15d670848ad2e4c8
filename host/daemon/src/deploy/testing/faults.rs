//! Disk faults: loss of unsynced writes, a full disk, loss of power at any step.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Shared with the test that drives it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    steps: u64,
    /// Step before which the power fails.
    cut_at: Option<u64>,
    is_cut: bool,
    /// Bytes until the disk is full.
    room: Option<u64>,
    /// Effects that the disk may lose, newest last.
    unsynced: Vec<Effect>,
}

#[derive(Debug)]
enum Effect {
    /// The file's contents; its length may survive.
    Contents(PathBuf),
    Chunk {
        path: PathBuf,
        offset: u64,
        len: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        before: Option<Vec<u8>>,
    },
    Remove {
        path: PathBuf,
        before: Vec<u8>,
    },
}

impl Faults {
    /// Number of file operations so far.
    pub(crate) fn steps(&self) -> u64 {
        self.lock().steps
    }

    pub(crate) fn cut_power_at(&self, step: u64) {
        self.lock().cut_at = Some(step);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.lock().is_cut
    }

    pub(crate) fn set_room(&self, bytes: Option<u64>) {
        self.lock().room = bytes;
    }

    /// Applies a loss of power. `lost` decides for each unsynced effect whether it is lost.
    pub(crate) fn lose(&self, mut lost: impl FnMut() -> bool) {
        let mut inner = self.lock();
        while let Some(effect) = inner.unsynced.pop() {
            match effect {
                Effect::Contents(path) => {
                    if lost() && path.is_file() {
                        let len = fs::metadata(&path).unwrap().len();
                        fs::write(&path, vec![0; len as usize / 2]).unwrap();
                    }
                }
                Effect::Chunk { path, offset, len } => {
                    if lost() && path.is_file() {
                        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                        file.write_all_at(&vec![0; len], offset).unwrap();
                    }
                }
                Effect::Rename { from, to, before } => {
                    if lost() && to.is_file() {
                        fs::rename(&to, from).unwrap();
                        if let Some(before) = before {
                            fs::write(to, before).unwrap();
                        }
                    }
                }
                Effect::Remove { path, before } => {
                    if lost() && !path.exists() {
                        fs::write(path, before).unwrap();
                    }
                }
            }
        }
    }

    pub(crate) fn create(&self, path: &Path, len: usize) -> io::Result<()> {
        let mut inner = self.step()?;
        inner.use_room(len)?;
        inner.unsynced.push(Effect::Contents(path.to_owned()));
        Ok(())
    }

    pub(crate) fn write_at(&self, path: &Path, len: usize, offset: u64) -> io::Result<()> {
        let mut inner = self.step()?;
        inner.use_room(len)?;
        inner.unsynced.push(Effect::Chunk { path: path.to_owned(), offset, len });
        Ok(())
    }

    pub(crate) fn sync(&self, path: &Path) -> io::Result<()> {
        self.step()?.unsynced.retain(|effect| match effect {
            Effect::Contents(of) | Effect::Chunk { path: of, .. } => of != path,
            _ => true,
        });
        Ok(())
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.step()?;
        for effect in &mut inner.unsynced {
            match effect {
                Effect::Contents(path) | Effect::Chunk { path, .. } if path == from => *path = to.to_owned(),
                _ => {}
            }
        }
        inner.unsynced.push(Effect::Rename { from: from.to_owned(), to: to.to_owned(), before: fs::read(to).ok() });
        Ok(())
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.step()?;
        if let Ok(before) = fs::read(path) {
            inner.unsynced.push(Effect::Remove { path: path.to_owned(), before });
        }
        Ok(())
    }

    pub(crate) fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.step()?.unsynced.retain(|effect| match effect {
            Effect::Rename { to, .. } => to.parent() != Some(folder),
            Effect::Remove { path, .. } => path.parent() != Some(folder),
            _ => true,
        });
        Ok(())
    }

    fn step(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        inner.is_cut |= inner.cut_at.is_some_and(|at| inner.steps >= at);
        if inner.is_cut {
            return Err(io::Error::other("the power failed"));
        }
        inner.steps += 1;
        Ok(inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

impl Inner {
    fn use_room(&mut self, bytes: usize) -> io::Result<()> {
        let Some(room) = &mut self.room else { return Ok(()) };
        match room.checked_sub(bytes as u64) {
            Some(left) => {
                *room = left;
                Ok(())
            }
            None => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}
