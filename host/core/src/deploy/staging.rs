//! Reassembly of a module from chunks, which arrive in any order and any number of times. Each is verified by its own
//! digest and written to its place. A restart verifies the chunks on disk again, so no list of them is kept.

use super::payload::Module;
use super::reason::{Reason, Refusal};
use crate::message::Digest;

#[derive(Debug)]
pub struct Transfer {
    module: Module,
    have: Vec<bool>,
    received: u32,
}

#[derive(Debug)]
pub enum ChunkResult {
    /// The chunk is missing: write it there, then call [`Transfer::stored`].
    Missing {
        offset: u64,
    },
    Duplicate,
    /// Not the signed bytes; the right chunk may still arrive.
    Bad(Refusal),
    /// The order contradicts itself: no chunk can fit.
    Impossible(Refusal),
}

/// Result of reading all chunks.
#[derive(Debug)]
pub(crate) enum Assembly {
    Complete,
    /// Some chunks were damaged on the disk and are missing again.
    Damaged,
    Impossible(Refusal),
}

impl Transfer {
    pub fn new(module: Module) -> Self {
        Self { have: vec![false; module.chunks.len()], module, received: 0 }
    }

    /// Continues an earlier transfer of the same module for the same function. `staged`: the file with its chunks. Returns
    /// whether the file fits.
    pub fn resume(&mut self, staged: &[u8]) -> bool {
        // An order with another size of the same module may have left it.
        let fits = staged.len() as u64 <= self.module.size;
        if fits {
            self.check_chunks(staged);
        }
        fits
    }

    pub fn digest(&self) -> Digest {
        self.module.digest
    }

    pub fn chunks(&self) -> u32 {
        self.have.len() as u32
    }

    pub fn received(&self) -> u32 {
        self.received
    }

    pub fn is_complete(&self) -> bool {
        self.received == self.chunks()
    }

    pub fn check(&self, index: u32, bytes: &[u8]) -> ChunkResult {
        let chunks = self.chunks();
        let bad = |reason, detail| ChunkResult::Bad(Refusal::new(reason, detail));
        let Some(have) = self.have.get(index as usize) else {
            return bad(
                Reason::ChunkIndex,
                format!("chunk {index} does not exist: the module has {chunks} chunks (0 to {})", chunks - 1),
            );
        };
        if *have {
            return ChunkResult::Duplicate;
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
            return ChunkResult::Impossible(Refusal::new(Reason::SizeMismatch, detail));
        }
        ChunkResult::Missing { offset: range.start }
    }

    /// Counts a missing chunk that was written.
    pub fn stored(&mut self, index: u32) {
        self.have[index as usize] = true;
        self.received += 1;
    }

    /// Verifies the whole module. `staged`: the file with all chunks.
    pub(crate) fn assemble(&mut self, staged: &[u8]) -> Assembly {
        self.check_chunks(staged);
        if !self.is_complete() {
            return Assembly::Damaged;
        }
        if staged.len() as u64 != self.module.size || super::digest(staged) != self.module.digest {
            let detail = format!("the chunks are right, but together they are not module {}", self.module.digest);
            return Assembly::Impossible(Refusal::new(Reason::DigestMismatch, detail));
        }
        Assembly::Complete
    }

    /// Forgets all chunks, whose file is removed.
    pub fn forget(&mut self) {
        self.have.fill(false);
        self.received = 0;
    }

    fn check_chunks(&mut self, staged: &[u8]) {
        self.received = 0;
        for (index, have) in self.have.iter_mut().enumerate() {
            let range = self.module.range(index as u32);
            let chunk = staged.get(range.start as usize..range.end as usize);
            *have = chunk.is_some_and(|chunk| super::digest(chunk) == self.module.chunks[index]);
            self.received += u32::from(*have);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        wasm: Vec<u8>,
        module: Module,
        /// The file with the chunks.
        staged: Vec<u8>,
    }

    fn fixture() -> Fixture {
        let wasm: Vec<u8> = (0..5000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let module = Module::of(&wasm, 1024);
        Fixture { wasm, module, staged: Vec::new() }
    }

    impl Fixture {
        fn start(&self) -> Transfer {
            let mut transfer = Transfer::new(self.module.clone());
            assert!(transfer.resume(&self.staged));
            transfer
        }

        fn chunk(&self, index: u32) -> &[u8] {
            let range = self.module.range(index);
            &self.wasm[range.start as usize..range.end as usize]
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) {
            let end = offset as usize + bytes.len();
            self.staged.resize(self.staged.len().max(end), 0);
            self.staged[offset as usize..end].copy_from_slice(bytes);
        }

        fn add(&mut self, transfer: &mut Transfer, index: u32) -> ChunkResult {
            let chunk = self.chunk(index).to_vec();
            let result = transfer.check(index, &chunk);
            if let ChunkResult::Missing { offset } = result {
                self.write(offset, &chunk);
                transfer.stored(index);
            }
            result
        }

        #[track_caller]
        fn check_bad(&self, index: u32, bytes: &[u8], expected: Reason) {
            match self.start().check(index, bytes) {
                ChunkResult::Bad(refusal) => assert_eq!(refusal.reason, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn chunks_arrive_in_any_order_and_survive_a_restart() {
        let mut fixture = fixture();
        let mut transfer = fixture.start();
        for index in [4, 1, 1] {
            fixture.add(&mut transfer, index);
        }
        assert_eq!((transfer.received(), transfer.chunks()), (2, 5));
        let mut transfer = fixture.start();
        assert_eq!(transfer.received(), 2);
        assert!(matches!(fixture.add(&mut transfer, 4), ChunkResult::Duplicate));
        for index in [0, 3, 2] {
            assert!(matches!(fixture.add(&mut transfer, index), ChunkResult::Missing { .. }));
        }
        assert!(transfer.is_complete());
        assert!(matches!(transfer.assemble(&fixture.staged), Assembly::Complete));
        assert_eq!(fixture.staged, fixture.wasm);
    }

    #[test]
    fn any_flipped_byte_of_a_chunk_is_seen() {
        let fixture = fixture();
        for place in 0..1024 {
            let mut bytes = fixture.chunk(2).to_vec();
            bytes[place] ^= 0x10;
            fixture.check_bad(2, &bytes, Reason::DigestMismatch);
        }
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
            let transfer = Transfer::new(Module { size, ..fixture.module.clone() });
            match transfer.check(4, fixture.chunk(4)) {
                ChunkResult::Impossible(refusal) => assert_eq!(refusal.reason, Reason::SizeMismatch),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn right_chunks_of_a_wrong_whole() {
        let mut fixture = fixture();
        let mut transfer = Transfer::new(Module { digest: Digest([3; 32]), ..fixture.module.clone() });
        for index in 0..5 {
            fixture.add(&mut transfer, index);
        }
        match transfer.assemble(&fixture.staged) {
            Assembly::Impossible(refusal) => assert_eq!(refusal.reason, Reason::DigestMismatch),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_chunk_that_rots_on_the_disk_is_missing_again() {
        let mut fixture = fixture();
        let mut transfer = fixture.start();
        for index in 0..5 {
            fixture.add(&mut transfer, index);
        }
        fixture.write(2000, b"rot");
        assert!(matches!(transfer.assemble(&fixture.staged), Assembly::Damaged));
        assert_eq!(transfer.received(), 4);
        fixture.add(&mut transfer, 1);
        assert!(matches!(transfer.assemble(&fixture.staged), Assembly::Complete));
    }

    #[test]
    fn a_chunk_that_was_not_written_stays_missing() {
        let mut fixture = fixture();
        let mut transfer = fixture.start();
        fixture.add(&mut transfer, 0);
        assert!(matches!(transfer.check(1, fixture.chunk(1)), ChunkResult::Missing { offset: 1024 }));
        assert_eq!((transfer.received(), fixture.start().received()), (1, 1));
        fixture.add(&mut transfer, 1);
        assert_eq!(transfer.received(), 2);
    }

    #[test]
    fn a_file_that_is_too_large_for_the_module_does_not_fit() {
        let fixture = fixture();
        let mut transfer = fixture.start();
        assert!(!transfer.resume(&[0; 5001]) && transfer.resume(&[0; 5000]));
    }
}
