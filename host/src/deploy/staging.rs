//! Reassembly of a module from chunks, which arrive in any order and any number of times. Each is verified by its own
//! digest and written to its place. A restart verifies the chunks on disk again, so no list of them is kept.

use std::io;

use super::disk::{Disk, MODULES, STAGING};
use super::payload::Module;
use super::reason::{Reason, Refusal};
use crate::message::Digest;

#[derive(Debug)]
pub(crate) struct Transfer {
    name: String,
    module: Module,
    have: Vec<bool>,
    received: u32,
}

#[derive(Debug)]
pub(crate) enum ChunkResult {
    /// The chunk was missing.
    Stored,
    Duplicate,
    /// Not the signed bytes; the right chunk may still arrive.
    Bad(Refusal),
    /// The order contradicts itself: no chunk can fit.
    Impossible(Refusal),
}

/// Result of assembling all chunks.
#[derive(Debug)]
pub(crate) enum Assembly {
    /// The module is in `modules` now.
    Complete,
    /// Some chunks were damaged on the disk and are missing again.
    Damaged,
    Impossible(Refusal),
}

impl Transfer {
    /// Continues an earlier transfer of the same module for the same function.
    pub(crate) fn resume(disk: &Disk, function: &str, module: Module) -> Self {
        let name = staging_name(function, &module.digest);
        let have = vec![false; module.chunks.len()];
        let mut transfer = Self { name, module, have, received: 0 };
        match disk.read(STAGING, &transfer.name) {
            // Left by an order with another size of the same module.
            Ok(bytes) if bytes.len() as u64 > transfer.module.size => transfer.forget(disk),
            Ok(bytes) => transfer.check_chunks(&bytes),
            Err(_) => {}
        }
        transfer
    }

    pub(crate) fn digest(&self) -> Digest {
        self.module.digest
    }

    pub(crate) fn chunks(&self) -> u32 {
        self.have.len() as u32
    }

    pub(crate) fn received(&self) -> u32 {
        self.received
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.received == self.chunks()
    }

    pub(crate) fn add_chunk(&mut self, disk: &Disk, index: u32, bytes: &[u8]) -> io::Result<ChunkResult> {
        let chunks = self.chunks();
        let bad = |reason, detail| Ok(ChunkResult::Bad(Refusal::new(reason, detail)));
        let Some(have) = self.have.get(index as usize) else {
            return bad(
                Reason::ChunkIndex,
                format!("chunk {index} does not exist: the module has {chunks} chunks (0 to {})", chunks - 1),
            );
        };
        if *have {
            return Ok(ChunkResult::Duplicate);
        }
        let digest = super::digest(bytes);
        if digest != self.module.chunks[index as usize] {
            return match self.module.chunks.iter().position(|known| *known == digest) {
                Some(other) => bad(Reason::ChunkIndex, format!("chunk {index} of {chunks} is chunk {other}")),
                None => bad(
                    Reason::DigestMismatch,
                    format!("chunk {index} of {chunks} does not have the signed digest; push it again"),
                ),
            };
        }
        let range = self.module.range(index);
        let expected = range.end - range.start;
        if bytes.len() as u64 != expected {
            let detail =
                format!("chunk {index} of {chunks} was signed with {} bytes instead of {expected}", bytes.len());
            return Ok(ChunkResult::Impossible(Refusal::new(Reason::SizeMismatch, detail)));
        }
        disk.write_at(STAGING, &self.name, bytes, range.start)?;
        self.have[index as usize] = true;
        self.received += 1;
        Ok(ChunkResult::Stored)
    }

    /// Verifies the whole module and moves it to `modules`.
    pub(crate) fn complete(&mut self, disk: &Disk) -> io::Result<Assembly> {
        let bytes = disk.read(STAGING, &self.name)?;
        self.check_chunks(&bytes);
        if !self.is_complete() {
            return Ok(Assembly::Damaged);
        }
        if bytes.len() as u64 != self.module.size || super::digest(&bytes) != self.module.digest {
            let detail = format!("the chunks are right, but together they are not module {}", self.module.digest);
            return Ok(Assembly::Impossible(Refusal::new(Reason::DigestMismatch, detail)));
        }
        if let Err(error) = disk.finish((STAGING, &self.name), (MODULES, &module_name(&self.module.digest))) {
            // After a failed sync the contents of the disk are unknown, whatever is read back.
            self.forget(disk);
            return Err(error);
        }
        Ok(Assembly::Complete)
    }

    /// Deletes all chunks.
    pub(crate) fn forget(&mut self, disk: &Disk) {
        let _ = disk.remove(STAGING, &self.name);
        self.have.fill(false);
        self.received = 0;
    }

    fn check_chunks(&mut self, bytes: &[u8]) {
        self.received = 0;
        for (index, have) in self.have.iter_mut().enumerate() {
            let range = self.module.range(index as u32);
            let chunk = bytes.get(range.start as usize..range.end as usize);
            *have = chunk.is_some_and(|chunk| super::digest(chunk) == self.module.chunks[index]);
            self.received += u32::from(*have);
        }
    }
}

/// A function's name contains no dot.
pub(crate) fn staging_name(function: &str, digest: &Digest) -> String {
    format!("{function}.{digest}")
}

pub(crate) fn module_name(digest: &Digest) -> String {
    format!("{digest}.wasm")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        _dir: tempfile::TempDir,
        disk: Disk,
        wasm: Vec<u8>,
        module: Module,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("deploy")).unwrap();
        let wasm: Vec<u8> = (0..5000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let module = Module::of(&wasm, 1024);
        Fixture { _dir: dir, disk, wasm, module }
    }

    impl Fixture {
        fn start(&self) -> Transfer {
            Transfer::resume(&self.disk, "warm", self.module.clone())
        }

        fn chunk(&self, index: u32) -> &[u8] {
            let range = self.module.range(index);
            &self.wasm[range.start as usize..range.end as usize]
        }

        #[track_caller]
        fn check_bad(&self, index: u32, bytes: &[u8], expected: Reason) {
            match self.start().add_chunk(&self.disk, index, bytes).unwrap() {
                ChunkResult::Bad(refusal) => assert_eq!(refusal.reason, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn chunks_arrive_in_any_order_and_survive_a_restart() {
        let fixture = fixture();
        let mut transfer = fixture.start();
        for index in [4, 1, 1] {
            transfer.add_chunk(&fixture.disk, index, fixture.chunk(index)).unwrap();
        }
        assert_eq!((transfer.received(), transfer.chunks()), (2, 5));
        let mut transfer = fixture.start();
        assert_eq!(transfer.received(), 2);
        assert!(matches!(transfer.add_chunk(&fixture.disk, 4, fixture.chunk(4)).unwrap(), ChunkResult::Duplicate));
        for index in [0, 3, 2] {
            assert!(matches!(
                transfer.add_chunk(&fixture.disk, index, fixture.chunk(index)).unwrap(),
                ChunkResult::Stored
            ));
        }
        assert!(transfer.is_complete());
        assert!(matches!(transfer.complete(&fixture.disk).unwrap(), Assembly::Complete));
        assert_eq!(fixture.disk.read(MODULES, &module_name(&fixture.module.digest)).unwrap(), fixture.wasm);
        assert!(fixture.disk.list(STAGING).unwrap().is_empty());
    }

    #[test]
    fn any_flipped_byte_of_a_chunk_is_seen() {
        let fixture = fixture();
        for place in 0..1024 {
            let mut bytes = fixture.chunk(2).to_vec();
            bytes[place] ^= 0x10;
            fixture.check_bad(2, &bytes, Reason::DigestMismatch);
        }
        assert!(fixture.disk.list(STAGING).unwrap().is_empty());
    }

    #[test]
    fn a_chunk_with_the_wrong_number() {
        let fixture = fixture();
        fixture.check_bad(2, fixture.chunk(3), Reason::ChunkIndex);
        fixture.check_bad(5, fixture.chunk(0), Reason::ChunkIndex);
        fixture.check_bad(u32::MAX, b"", Reason::ChunkIndex);
        fixture.check_bad(0, &fixture.chunk(0)[1..], Reason::DigestMismatch);
        fixture.check_bad(0, b"", Reason::DigestMismatch);
    }

    /// The declared size is smaller or larger than the sum of the chunks.
    #[test]
    fn sizes_that_no_chunk_can_fit() {
        let fixture = fixture();
        for size in [4097, 5001] {
            let module = Module { size, ..fixture.module.clone() };
            let mut transfer = Transfer::resume(&fixture.disk, "warm", module);
            match transfer.add_chunk(&fixture.disk, 4, fixture.chunk(4)).unwrap() {
                ChunkResult::Impossible(refusal) => assert_eq!(refusal.reason, Reason::SizeMismatch),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn right_chunks_of_a_wrong_whole() {
        let fixture = fixture();
        let module = Module { digest: Digest([3; 32]), ..fixture.module.clone() };
        let mut transfer = Transfer::resume(&fixture.disk, "warm", module);
        for index in 0..5 {
            transfer.add_chunk(&fixture.disk, index, fixture.chunk(index)).unwrap();
        }
        match transfer.complete(&fixture.disk).unwrap() {
            Assembly::Impossible(refusal) => assert_eq!(refusal.reason, Reason::DigestMismatch),
            other => panic!("{other:?}"),
        }
        assert!(fixture.disk.list(MODULES).unwrap().is_empty());
    }

    #[test]
    fn a_chunk_that_rots_on_the_disk_is_missing_again() {
        let fixture = fixture();
        let mut transfer = fixture.start();
        for index in 0..5 {
            transfer.add_chunk(&fixture.disk, index, fixture.chunk(index)).unwrap();
        }
        let name = staging_name("warm", &fixture.module.digest);
        fixture.disk.write_at(STAGING, &name, b"rot", 2000).unwrap();
        assert!(matches!(transfer.complete(&fixture.disk).unwrap(), Assembly::Damaged));
        assert_eq!(transfer.received(), 4);
        transfer.add_chunk(&fixture.disk, 1, fixture.chunk(1)).unwrap();
        assert!(matches!(transfer.complete(&fixture.disk).unwrap(), Assembly::Complete));
    }

    #[test]
    fn a_full_disk_loses_no_stored_chunk() {
        let fixture = fixture();
        let mut transfer = fixture.start();
        fixture.disk.faults.set_room(Some(1500));
        transfer.add_chunk(&fixture.disk, 0, fixture.chunk(0)).unwrap();
        let error = transfer.add_chunk(&fixture.disk, 1, fixture.chunk(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(transfer.received(), 1);
        fixture.disk.faults.set_room(None);
        transfer.add_chunk(&fixture.disk, 1, fixture.chunk(1)).unwrap();
        assert_eq!(transfer.received(), 2);
    }
}
