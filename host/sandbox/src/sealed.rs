//! Compiled code in sealed files, from where it is mapped to be executed.
//!
//! Writable memory never becomes executable, neither in the daemon nor in a worker. A function that breaks out of the
//! sandbox cannot make code, and the service manager may forbid it for all processes (`MemoryDenyWriteExecute`). Workers
//! share the pages.

use std::fs::File;
use std::io::{self, Write as _};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use sedge_core::code::SealedCode;

/// Whether functions run as native code. Elsewhere they are interpreted, and nothing is ever executable.
pub(crate) const IS_NATIVE: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

pub(crate) fn seal(code: &[u8]) -> io::Result<SealedCode> {
    let mut file = File::from(memfd_create("sedge-code", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(code)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(SealedCode::received(file.into(), code.len()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn sealed_code_cannot_change() {
        let code = seal(b"code").unwrap();
        let file = File::from(code.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(file.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(file.set_len(2).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"code");
    }
}
