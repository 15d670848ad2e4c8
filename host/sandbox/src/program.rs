//! Path of this program, for starting another process of it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Returns `/proc/self/exe`, so that a daemon whose file was replaced by an upgrade starts workers of its own version. Under
/// qemu-user that is the emulator, and the result is the program's path.
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
    fn own_is_the_kernels_link_outside_of_an_emulator() {
        assert_eq!(own(), PathBuf::from("/proc/self/exe"));
    }
}
