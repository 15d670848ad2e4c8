//! The canonical ABI between the host and a function that is one core module, as far as the world
//! `sedge:function/function` needs it. Texts and lists lie in the guest's memory, each with an address and a length. The
//! guest's allocator places the values that the host lowers.
//!
//! Every address and every length comes from the guest and is checked against its memory. A violation ends the run.

use wasmtime::{AsContextMut, Caller, Memory, Result, StoreContextMut, TypedFunc, bail};

use super::host::HostState;

/// The exports by which the host reaches a guest's memory.
pub struct GuestExports {
    pub memory: Memory,
    /// Parameters: old address, old size, alignment, new size. Returns the new address.
    pub(crate) realloc: TypedFunc<(u32, u32, u32, u32), u32>,
}

/// An address and a length, in the layout of the guest's memory.
pub(crate) type PtrLen = [u8; 8];

/// One call: a guest's call to the host, or the host's to the guest.
///
/// The [`GuestExports`] are here meanwhile and not in [`HostState`], so that the allocator cannot call the host.
pub(crate) struct CallContext<'a> {
    store: StoreContextMut<'a, HostState>,
    guest: GuestExports,
    /// Number of bytes that the guest may still pass to the host.
    budget: usize,
}

/// Serves a call of the guest to the host by `work`.
pub(crate) fn host_call<R>(
    mut caller: Caller<'_, HostState>,
    work: impl FnOnce(&mut CallContext<'_>) -> Result<R>,
) -> Result<R> {
    let Some(guest) = caller.data_mut().guest.take() else {
        bail!("the guest called the host before it was ready, or while it allocated memory for the host");
    };
    let mut call = CallContext::new(caller.as_context_mut(), guest);
    let result = work(&mut call)?;
    // After an error the guest does not run again.
    let guest = call.guest;
    caller.data_mut().guest = Some(guest);
    Ok(result)
}

impl<'a> CallContext<'a> {
    pub(crate) fn new(store: StoreContextMut<'a, HostState>, guest: GuestExports) -> Self {
        let budget = store.data().limits.transfer_bytes();
        Self { store, guest, budget }
    }

    pub(crate) fn into_guest(self) -> GuestExports {
        self.guest
    }

    pub(crate) fn host(&mut self) -> &mut HostState {
        self.store.data_mut()
    }

    /// Returns the guest's memory, to read, and the host at the same time.
    pub(crate) fn reader(&mut self) -> (Reader<'_>, &mut HostState) {
        let (memory, host) = self.guest.memory.data_and_store_mut(&mut self.store);
        (Reader { memory, budget: &mut self.budget }, host)
    }

    /// Copies bytes into memory that the guest allocates.
    pub(crate) fn lower_bytes(&mut self, bytes: &[u8]) -> Result<PtrLen> {
        let at = self.allocate(1, bytes.len())?;
        self.write(at, bytes)?;
        Ok(slice(at, bytes.len()))
    }

    /// Lowers a list of texts.
    pub(crate) fn lower_strings<'t>(&mut self, texts: impl ExactSizeIterator<Item = &'t str>) -> Result<PtrLen> {
        self.lower_list(texts.map(|text| [text]))
    }

    /// Lowers a list of pairs of texts.
    pub(crate) fn lower_string_pairs<'t>(
        &mut self,
        pairs: impl ExactSizeIterator<Item = (&'t str, &'t str)>,
    ) -> Result<PtrLen> {
        self.lower_list(pairs.map(|(name, value)| [name, value]))
    }

    fn lower_list<'t, const N: usize>(&mut self, list: impl ExactSizeIterator<Item = [&'t str; N]>) -> Result<PtrLen> {
        let len = list.len();
        let at = self.allocate(4, len.saturating_mul(N * size_of::<PtrLen>()))?;
        let mut place = at;
        for text in list.flatten() {
            let text = self.lower_bytes(text.as_bytes())?;
            self.write(place, &text)?;
            // Cannot overflow: the whole list was allocated.
            place += size_of::<PtrLen>() as u32;
        }
        Ok(slice(at, len))
    }

    /// Writes the result of a call to the address that the guest gave.
    pub(crate) fn write_result(&mut self, at: u32, align: u32, result: &[u8]) -> Result<()> {
        if !at.is_multiple_of(align) {
            bail!("pointer not aligned");
        }
        self.write(at, result)
    }

    pub(crate) fn allocate(&mut self, align: u32, len: usize) -> Result<u32> {
        let Ok(len) = u32::try_from(len) else { bail!("{len} bytes are more than a guest can address") };
        let at = self.guest.realloc.call(&mut self.store, (0, 0, align, len))?;
        if !at.is_multiple_of(align) {
            bail!("realloc return: result not aligned");
        }
        let end = u64::from(at) + u64::from(len);
        if end > self.guest.memory.data_size(&self.store) as u64 {
            bail!("realloc return: beyond end of memory");
        }
        Ok(at)
    }

    pub(crate) fn write(&mut self, at: u32, bytes: &[u8]) -> Result<()> {
        let memory = self.guest.memory.data_mut(&mut self.store);
        match memory.get_mut(at as usize..).and_then(|memory| memory.get_mut(..bytes.len())) {
            Some(place) => place.copy_from_slice(bytes),
            None => bail!("pointer out of bounds of memory"),
        }
        Ok(())
    }
}

/// A guest's memory.
pub(crate) struct Reader<'a> {
    memory: &'a [u8],
    budget: &'a mut usize,
}

impl<'a> Reader<'a> {
    /// Returns the bytes at `at`. They count each time, because a guest may name the same bytes many times.
    pub(crate) fn bytes(&mut self, at: u32, len: u32) -> Result<&'a [u8]> {
        self.read("list", at, len as usize, len as usize)
    }

    pub(crate) fn text(&mut self, at: u32, len: u32) -> Result<&'a str> {
        Ok(str::from_utf8(self.read("string", at, len as usize, len as usize)?)?)
    }

    /// Returns the elements of a list, `N` bytes each, that take `cost` bytes each in the host.
    pub(crate) fn list<const N: usize>(&mut self, at: u32, len: u32, align: u32, cost: usize) -> Result<&'a [[u8; N]]> {
        let times = |size: usize| (len as usize).saturating_mul(size);
        let bytes = self.read("list", at, times(N), times(cost))?;
        if !at.is_multiple_of(align) {
            bail!("list pointer is not aligned");
        }
        Ok(bytes.as_chunks().0)
    }

    /// Returns the record at the address `at`.
    pub(crate) fn record<const N: usize>(&self, at: u32, align: u32) -> Result<&'a [u8; N]> {
        if !at.is_multiple_of(align) {
            bail!("return pointer not aligned");
        }
        match self.memory.get(at as usize..).and_then(|memory| memory.first_chunk()) {
            Some(record) => Ok(record),
            None => bail!("pointer out of bounds of memory"),
        }
    }

    fn read(&mut self, what: &str, at: u32, len: usize, cost: usize) -> Result<&'a [u8]> {
        let Some(bytes) = self.memory.get(at as usize..).and_then(|memory| memory.get(..len)) else {
            bail!("{what} pointer/length out of bounds of memory");
        };
        match self.budget.checked_sub(cost) {
            Some(left) => *self.budget = left,
            None => return Err(TransferLimitExceeded.into()),
        }
        Ok(bytes)
    }
}

/// One call passed more than [`transfer_bytes`](sedge_core::limits::Limits::transfer_bytes) to the host.
#[derive(Debug, thiserror::Error)]
#[error("one call passed more bytes to the host than the limit allows")]
pub(crate) struct TransferLimitExceeded;

/// Reads 32 bits at an offset in a record.
pub(crate) fn u32_at(record: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*record[offset..].first_chunk().expect("the offset lies within the record"))
}

pub(crate) fn u64_at(record: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*record[offset..].first_chunk().expect("the offset lies within the record"))
}

fn slice(at: u32, len: usize) -> PtrLen {
    let mut slice = [0; 8];
    slice[..4].copy_from_slice(&at.to_le_bytes());
    slice[4..].copy_from_slice(&(len as u32).to_le_bytes());
    slice
}

#[cfg(all(test, feature = "compiler"))]
mod tests;
