//! What the generated bindings and `export!` call. Not for users.

use alloc::alloc::{Layout, alloc, dealloc, realloc as reallocate};
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};

/// A block that a call to the host reads, freed after the call.
pub struct Cleanup {
    block: NonNull<u8>,
    layout: Layout,
}

impl Cleanup {
    pub fn new(layout: Layout) -> (*mut u8, Option<Self>) {
        if layout.size() == 0 {
            return (ptr::null_mut(), None);
        }
        // SAFETY: the size is not zero.
        let Some(block) = NonNull::new(unsafe { alloc(layout) }) else { out_of_memory() };
        (block.as_ptr(), Some(Self { block, layout }))
    }

    /// Hands the block to the host for good.
    pub fn forget(self) {
        let _ = ManuallyDrop::new(self);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this layout.
        unsafe { dealloc(self.block.as_ptr(), self.layout) }
    }
}

/// The canonical ABI's allocator: the host calls it for every string and list that it passes.
///
/// # Safety
///
/// `old` is null or a block of `old_len` bytes that an earlier call returned, and `align` is a power of two.
#[inline]
pub unsafe fn realloc(old: *mut u8, old_len: usize, align: usize, new_len: usize) -> *mut u8 {
    // SAFETY: the caller's promise, which the canonical ABI makes for the host.
    let block = unsafe {
        if old_len != 0 {
            reallocate(old, Layout::from_size_align_unchecked(old_len, align), new_len)
        } else if new_len != 0 {
            alloc(Layout::from_size_align_unchecked(new_len, align))
        } else {
            return ptr::without_provenance_mut(align);
        }
    };
    if block.is_null() {
        out_of_memory();
    }
    block
}

/// The memory limit was reached. The host sees a trap right after a refused growth and reports the limit.
fn out_of_memory() -> ! {
    #[cfg(target_family = "wasm")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_family = "wasm"))]
    panic!("out of memory");
}
