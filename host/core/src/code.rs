//! Compiled code, as it is held for the workers.

use bytes::Bytes;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::isa::Class;

/// Compiled code in a memory file whose contents and length can no longer change.
#[derive(Debug)]
pub struct SealedCode {
    file: OwnedFd,
    len: usize,
}

impl SealedCode {
    /// Wraps a file that the daemon sealed, with the length that the daemon reports.
    pub fn received(file: OwnedFd, len: usize) -> Self {
        Self { file, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl AsFd for SealedCode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Compiled code that the daemon holds for its workers.
#[derive(Clone, Debug)]
pub enum Code {
    Sealed(Arc<SealedCode>),
    /// Sent in the frame: where code is interpreted, and where no system call filter restricts what a worker opens.
    Plain(Bytes),
    /// A script, and the engine that runs it.
    Script {
        archive: Bytes,
        engine: Arc<EngineCode>,
    },
}

impl Code {
    /// The code, or of a script its archive. Empty for code in a sealed file.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Sealed(_) => &[],
            Self::Plain(code) | Self::Script { archive: code, .. } => code,
        }
    }
}

/// The compiled engine for scripts of one class. All scripts of the class share it.
#[derive(Debug)]
pub struct EngineCode {
    pub class: Class,
    pub code: Code,
}
