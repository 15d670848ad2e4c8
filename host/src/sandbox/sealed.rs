//! Compiled code in files that nobody can change any more, and mapped from there to be executed. So memory that can be written
//! never becomes executable, neither in the daemon nor in a worker: a function that breaks out of the sandbox cannot make
//! code, and the service manager may forbid it for all processes (`MemoryDenyWriteExecute`). Workers share the pages.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use wasmtime::CustomCodeMemory;

/// Whether functions run as code of the processor. Elsewhere they are interpreted, and nothing is ever executable.
pub const IS_NATIVE: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Compiled code in a file in memory that nobody can change any more.
#[derive(Debug)]
pub struct SealedCode {
    file: OwnedFd,
    len: usize,
}

impl SealedCode {
    pub fn seal(code: &[u8]) -> io::Result<Self> {
        let mut file = File::from(memfd_create("sedge-code", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.write_all(code)?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self { file: file.into(), len: code.len() })
    }

    /// What the daemon has sealed for a worker, and its word for how long it is.
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

/// For engines that make nothing executable: what they run is so already, or they run nothing.
pub struct SealedCodeMemory;

impl CustomCodeMemory for SealedCodeMemory {
    fn required_alignment(&self) -> usize {
        1
    }

    fn publish_executable(&self, _: *const u8, _: usize) -> wasmtime::Result<()> {
        Ok(())
    }

    fn unpublish_executable(&self, _: *const u8, _: usize) -> wasmtime::Result<()> {
        Ok(())
    }
}

pub use mapped::Image;

#[expect(unsafe_code, reason = "that the code is right and its memory lasts is known here and not to wasmtime")]
mod mapped {
    use std::ffi::c_void;
    use std::io;
    use std::ptr::{self, NonNull};

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use wasmtime::component::Component;
    use wasmtime::{Engine, Module, Precompiled};

    use super::super::Code;
    use super::SealedCode;

    /// A sealed file, in memory that can be read and executed.
    pub struct Image {
        at: NonNull<c_void>,
        len: usize,
    }

    // SAFETY: it is memory that nobody writes to, and this is its only owner.
    unsafe impl Send for Image {}
    // SAFETY: as above.
    unsafe impl Sync for Image {}

    impl Image {
        pub fn new(code: &SealedCode) -> io::Result<Self> {
            let protection = ProtFlags::READ | ProtFlags::EXEC;
            // SAFETY: the kernel chooses a place where nothing else is.
            let at = unsafe { mmap(ptr::null_mut(), code.len(), protection, MapFlags::PRIVATE, code, 0)? };
            let at = NonNull::new(at).ok_or_else(|| io::Error::other("it was mapped to address 0"))?;
            Ok(Self { at, len: code.len() })
        }

        /// The image must be dropped after the code.
        pub(in crate::sandbox) fn load(&self, engine: &Engine) -> wasmtime::Result<Code> {
            let bytes = NonNull::slice_from_raw_parts(self.at.cast(), self.len);
            // SAFETY: the code was made by `compile::component` of this host and is authenticated by the cache's key, or comes
            // from somebody who may send native code (`deploy::code`), before it is sealed, since when it can neither change
            // nor shrink. The only caller keeps the image for longer than what is loaded. The engine refuses other versions
            // and settings.
            Ok(unsafe {
                match Engine::detect_precompiled(bytes.as_ref()) {
                    Some(Precompiled::Module) => Code::Module(Module::deserialize_raw(engine, bytes)?),
                    _ => Code::Component(Component::deserialize_raw(engine, bytes)?),
                }
            })
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            // SAFETY: it was mapped with this length, and what was made of it is gone.
            let unmapped = unsafe { munmap(self.at.as_ptr(), self.len) };
            debug_assert_eq!(unmapped, Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn nobody_changes_what_is_sealed() {
        let code = SealedCode::seal(b"code").unwrap();
        let file = File::from(code.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(file.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(file.set_len(2).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"code");
    }
}
