//! Compiled code in an engine, and the only unsafe code of the sandbox.
//!
//! Wasmtime cannot check that compiled code is what a compiler made. The callers guarantee it: the code was made by
//! `compile::component` of this host and is authenticated by the cache's key (`deploy::cache`), or comes from a signer or a
//! folder that may bring native code (`deploy::code`). The engine refuses code of other versions and settings.
#![expect(unsafe_code, reason = "wasmtime cannot check compiled code, and mapped code must outlive its use")]

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled, Result};

use sedge_core::code::SealedCode;

/// Compiled code, loaded.
pub enum Code {
    Module(Module),
    Component(Component),
}

impl Code {
    /// Copies the bytes into memory that the engine makes executable.
    pub fn copy(engine: &Engine, code: &[u8]) -> Result<Self> {
        // SAFETY: the code is authentic, as the module's documentation says.
        Ok(unsafe {
            match Engine::detect_precompiled(code) {
                Some(Precompiled::Module) => Self::Module(Module::deserialize(engine, code)?),
                _ => Self::Component(Component::deserialize(engine, code)?),
            }
        })
    }
}

/// A sealed file, mapped readable and executable.
pub struct Image {
    at: NonNull<c_void>,
    len: usize,
}

// SAFETY: nothing writes to the memory, and this is its only owner.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    pub fn map(code: &SealedCode) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::EXEC;
        // SAFETY: the kernel chooses unused addresses.
        let at = unsafe { mmap(ptr::null_mut(), code.len(), protection, MapFlags::PRIVATE, code, 0)? };
        let at = NonNull::new(at).ok_or_else(|| io::Error::other("the code was mapped to address 0"))?;
        Ok(Self { at, len: code.len() })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped and readable for as long as the image lives, and nothing writes to them.
        unsafe { slice::from_raw_parts(self.at.as_ptr().cast(), self.len) }
    }

    /// Loads the code without a copy. The image must be dropped after the code.
    pub fn load(&self, engine: &Engine) -> Result<Code> {
        self.load_first(engine, self.len)
    }

    /// Loads code that is followed by something else.
    pub(crate) fn load_first(&self, engine: &Engine, len: usize) -> Result<Code> {
        let bytes = NonNull::slice_from_raw_parts(self.at.cast(), len.min(self.len));
        // SAFETY: the code is authentic, as the module's documentation says, and since it was sealed it can neither change
        // nor shrink. `Function` keeps the image for longer than the code.
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
        // SAFETY: it was mapped with this length, and the code in it was dropped before.
        let unmapped = unsafe { munmap(self.at.as_ptr(), self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
