//! Random numbers that are fit for secrets. The manifest asks for them with `random = true` under `[allow]`; without it the
//! board refuses the function.

use alloc::vec::Vec;

use crate::host;

/// At most 65,536 of them at a time: asking for more ends the run.
pub fn bytes(len: usize) -> Vec<u8> {
    host::random_bytes(len)
}

pub fn u64() -> u64 {
    host::random_u64()
}
