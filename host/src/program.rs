//! This program, as a process of it starts another one of itself.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// By way of the kernel, so that a daemon whose file an upgrade has replaced goes on with workers of its own version. Under
/// qemu-user that way leads to the emulator, and the name of the file to the program.
pub fn own() -> PathBuf {
    let kernels = PathBuf::from("/proc/self/exe");
    let named = std::env::current_exe();
    let is_other = |path: &PathBuf| match (fs::metadata(path), fs::metadata(&kernels)) {
        (Ok(named), Ok(running)) => (named.dev(), named.ino()) != (running.dev(), running.ino()),
        _ => false,
    };
    named.ok().filter(is_other).unwrap_or(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_kernels_name_unless_that_is_another_program() {
        assert_eq!(own(), PathBuf::from("/proc/self/exe"));
    }
}
