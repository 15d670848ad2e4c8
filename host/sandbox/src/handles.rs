//! The table of resource handles that a function of one core module holds.

use wasmtime::{Result, bail};

use sedge_core::limits::MAX_HANDLES;

#[derive(Default)]
pub struct HandleTable(Vec<Option<ResourceHandle>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceHandle {
    /// The only bucket.
    Bucket,
    /// A compare-and-swap, by its index in the host.
    Cas(u32),
    /// Standard input, output and error.
    Stream(Stream),
    /// Of a stream, which never waits.
    Pollable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Input,
    Output,
    Error,
}

impl HandleTable {
    /// Adds a handle and returns its number. 0 is never a handle, as in every component.
    pub fn add(&mut self, handle: ResourceHandle) -> Result<u32> {
        let place = self.0.iter().position(Option::is_none).unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        if place >= MAX_HANDLES {
            bail!("more than {MAX_HANDLES} handles at a time");
        }
        self.0[place] = Some(handle);
        Ok(place as u32 + 1)
    }

    pub fn bucket(&self, number: u32) -> Result<()> {
        match self.get(number)? {
            ResourceHandle::Bucket => Ok(()),
            _ => bail!("handle {number} is of another kind"),
        }
    }

    pub(crate) fn cas(&self, number: u32) -> Result<u32> {
        match self.get(number)? {
            ResourceHandle::Cas(cas) => Ok(cas),
            _ => bail!("handle {number} is of another kind"),
        }
    }

    pub(crate) fn stream(&self, number: u32) -> Result<Stream> {
        match self.get(number)? {
            ResourceHandle::Stream(stream) => Ok(stream),
            _ => bail!("handle {number} is of another kind"),
        }
    }

    pub(crate) fn pollable(&self, number: u32) -> Result<()> {
        match self.get(number)? {
            ResourceHandle::Pollable => Ok(()),
            _ => bail!("handle {number} is of another kind"),
        }
    }

    /// Removes a handle. Unknown numbers are ignored.
    pub fn remove(&mut self, number: u32) {
        if let Some(handle) = self.0.get_mut((number as usize).wrapping_sub(1)) {
            *handle = None;
        }
    }

    fn get(&self, number: u32) -> Result<ResourceHandle> {
        match self.0.get((number as usize).wrapping_sub(1)) {
            Some(Some(handle)) => Ok(*handle),
            _ => bail!("unknown handle index {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_keeps_its_kind() {
        let mut handles = HandleTable::default();
        let (bucket, cas) =
            (handles.add(ResourceHandle::Bucket).unwrap(), handles.add(ResourceHandle::Cas(7)).unwrap());
        assert_eq!((bucket, cas), (1, 2));
        assert!(handles.bucket(bucket).is_ok() && handles.bucket(cas).is_err());
        assert_eq!(handles.cas(cas).unwrap(), 7);
        for unknown in [0, 3, u32::MAX] {
            assert!(handles.bucket(unknown).is_err() && handles.cas(unknown).is_err());
            handles.remove(unknown);
        }
        handles.remove(bucket);
        assert!(handles.bucket(bucket).is_err());
        assert_eq!(handles.add(ResourceHandle::Cas(8)).unwrap(), bucket);
    }

    #[test]
    fn the_number_of_handles_is_limited() {
        let mut handles = HandleTable::default();
        for _ in 0..MAX_HANDLES {
            handles.add(ResourceHandle::Bucket).unwrap();
        }
        assert!(handles.add(ResourceHandle::Bucket).is_err());
        handles.remove(5);
        assert_eq!(handles.add(ResourceHandle::Bucket).unwrap(), 5);
    }
}
