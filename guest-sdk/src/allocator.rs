//! A bump allocator. An instance lives for one message, so memory is only handed out, from the end of the static data
//! on, inside the page that the module starts with. Only the last block can grow in place or be given back, which
//! is what a vector or a string that is being built needs.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32::{memory_grow, memory_size, unreachable};
use core::cell::Cell;
use core::hint::assert_unchecked;
use core::ptr;

const PAGE: usize = 64 << 10;

unsafe extern "C" {
    /// Given by the linker: its address is the first one after static data and stack.
    static __heap_base: u8;
}

struct Bump {
    next: Cell<*mut u8>,
}

// SAFETY: wasm32 without threads; a component has no other way to run code at the same time.
unsafe impl Sync for Bump {}

#[global_allocator]
static BUMP: Bump = Bump { next: Cell::new((&raw const __heap_base).cast_mut()) };

impl Bump {
    /// Makes `start + size` the end of the heap, or traps: there is nothing that a function could do without memory, and the
    /// host, which has just refused to grow it, reports the limit. So no caller needs code for a refusal.
    #[inline]
    fn reserve(&self, start: usize, size: usize) {
        // A block is at most 2 GiB and an address below 4 GiB: the sum can wrap.
        let Some(end) = start.checked_add(size) else { unreachable() };
        let capacity = memory_size(0) * PAGE;
        if end > capacity {
            grow(end - capacity);
        }
        self.next.set(ptr::with_exposed_provenance_mut(end));
    }
}

#[cold]
#[inline(never)]
fn grow(missing: usize) {
    if memory_grow(0, missing.div_ceil(PAGE)) == usize::MAX {
        unreachable();
    }
}

// SAFETY: blocks never overlap: each begins at or after the end of the one before, and only the last one, whose end is
// `next`, ever moves `next` back.
unsafe impl GlobalAlloc for Bump {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let next = self.next.get().expose_provenance();
        let start = (next + layout.align() - 1) & !(layout.align() - 1);
        self.reserve(start, layout.size());
        // SAFETY: the heap begins behind the stack. With this the compiler drops its callers' code for null.
        unsafe { assert_unchecked(start != 0) };
        ptr::with_exposed_provenance_mut(start)
    }

    // One copy: every place that drops something calls it.
    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if block.expose_provenance() + layout.size() == self.next.get().expose_provenance() {
            self.next.set(block);
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let start = block.expose_provenance();
        if start + layout.size() == self.next.get().expose_provenance() {
            self.reserve(start, new_size);
            // SAFETY: as in `alloc`.
            unsafe { assert_unchecked(start != 0) };
            return block;
        }
        if new_size <= layout.size() {
            return block;
        }
        // SAFETY: the caller vouches for `block` and `layout`; the new block is another one and is larger.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            ptr::copy_nonoverlapping(block, new, layout.size());
            new
        }
    }
}
