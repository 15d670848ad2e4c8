//! What a function reaches only because its manifest asks: the clocks and random numbers, by their standard names.
//!
//! Any 0.2.x of the interfaces is served: the linker matches versions that are compatible. What waits is left out, so that
//! `wasi:io` is not needed.

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};
use wasmparser::{Parser, Payload};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Result, bail};

use super::component::bindings::wasi::clocks::{monotonic_clock, wall_clock};
use super::component::bindings::wasi::random::{insecure, insecure_seed, random};
use super::host::Host;
use crate::manifest::Allow;

/// Bytes that are made in one call. They are not paid for with fuel.
const MAX_RANDOM_BYTES: u64 = 65_536;

/// Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Grants {
    pub clock: bool,
    pub random: bool,
}

/// An import that the manifest does not allow.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "it imports `{import}`, which its manifest does not allow: write `{key} = true` under [allow] in function.toml"
)]
pub struct NotGranted {
    pub import: String,
    pub key: &'static str,
}

impl From<&Allow> for Grants {
    fn from(allow: &Allow) -> Self {
        Self { clock: allow.clock, random: allow.random }
    }
}

impl Grants {
    /// What a component may be checked against when its manifest is not at hand.
    pub const ALL: Self = Self { clock: true, random: true };

    /// The first import that is not granted. `wasm` has passed `shape::check`; of a component that has not, nothing is said.
    pub fn check(self, wasm: &[u8]) -> Result<(), NotGranted> {
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload {
                Ok(Payload::ModuleSection { .. } | Payload::ComponentSection { .. }) => depth += 1,
                Ok(Payload::End(_)) => depth -= 1,
                Ok(Payload::ComponentImportSection(section)) if depth == 0 => {
                    section.into_iter().flatten().try_for_each(|import| self.check_name(import.name.name))?;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// An import by its name, with or without a version.
    pub fn check_name(self, import: &str) -> Result<(), NotGranted> {
        let refused = |key| Err(NotGranted { import: import.to_owned(), key });
        match import.split('/').next() {
            Some("wasi:clocks") if !self.clock => refused("clock"),
            Some("wasi:random") if !self.random => refused("random"),
            _ => Ok(()),
        }
    }

    pub(super) fn add_to_linker(self, linker: &mut Linker<Host>) -> Result<()> {
        if self.clock {
            wall_clock::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
            monotonic_clock::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
        }
        if self.random {
            random::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
            insecure::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
            insecure_seed::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
        }
        Ok(())
    }
}

impl wall_clock::Host for Host {
    fn now(&mut self) -> Result<wall_clock::Datetime> {
        Ok(wall_now())
    }

    fn resolution(&mut self) -> Result<wall_clock::Datetime> {
        Ok(wall_resolution())
    }
}

pub(super) fn wall_now() -> wall_clock::Datetime {
    datetime(clock_gettime(ClockId::Realtime))
}

pub(super) fn wall_resolution() -> wall_clock::Datetime {
    datetime(clock_getres(ClockId::Realtime))
}

/// The type has no time before 1970; a board without a battery may well boot there.
fn datetime(time: Timespec) -> wall_clock::Datetime {
    let nanoseconds = if time.tv_sec < 0 { 0 } else { time.tv_nsec as u32 };
    wall_clock::Datetime { seconds: time.tv_sec.try_into().unwrap_or(0), nanoseconds }
}

impl monotonic_clock::Host for Host {
    fn now(&mut self) -> Result<u64> {
        Ok(monotonic_now())
    }

    fn resolution(&mut self) -> Result<u64> {
        Ok(monotonic_resolution())
    }
}

pub(super) fn monotonic_now() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

pub(super) fn monotonic_resolution() -> u64 {
    nanoseconds(clock_getres(ClockId::Monotonic))
}

fn nanoseconds(time: Timespec) -> u64 {
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    secs.saturating_mul(1_000_000_000) + u64::try_from(time.tv_nsec).unwrap_or(0)
}

impl random::Host for Host {
    fn get_random_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        random_bytes(len)
    }

    fn get_random_u64(&mut self) -> Result<u64> {
        random_u64()
    }
}

impl insecure::Host for Host {
    fn get_insecure_random_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        random_bytes(len)
    }

    fn get_insecure_random_u64(&mut self) -> Result<u64> {
        random_u64()
    }
}

impl insecure_seed::Host for Host {
    fn insecure_seed(&mut self) -> Result<(u64, u64)> {
        Ok((random_u64()?, random_u64()?))
    }
}

pub(super) fn random_bytes(len: u64) -> Result<Vec<u8>> {
    if len > MAX_RANDOM_BYTES {
        bail!("{len} random bytes in one call, the limit is {MAX_RANDOM_BYTES}");
    }
    let mut bytes = vec![0; len as usize];
    fill(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn random_u64() -> Result<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn fill(mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(filled) => bytes = &mut bytes[filled..],
            // More than 256 bytes may be interrupted.
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("no random numbers: {error}"),
        }
    }
    Ok(())
}
