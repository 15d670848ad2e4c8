//! Interfaces that a function may import only if its manifest allows them: clocks and random numbers.
//!
//! Any 0.2.x is served: the linker matches compatible versions. Functions that wait are left out, because they need
//! `wasi:io`.

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};
use wasmparser::{Parser, Payload};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Result, bail, format_err};

use super::component::bindings::wasi::clocks::{monotonic_clock, wall_clock};
use super::component::bindings::wasi::random::{insecure, insecure_seed, random};
use super::host::HostState;
use sedge_core::grants::{Grants, NotGranted};

/// Number of random bytes per call. They cost no fuel.
const MAX_RANDOM_BYTES: u64 = 65_536;
const NS_PER_SEC: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// For a standard library, which imports them whether the manifest allows them or not, the host decides when they are used.
impl HostState {
    fn has_clock(&self) -> bool {
        self.library.as_ref().is_none_or(|library| library.grants.clock)
    }

    /// The next value of a clock in nanoseconds: the time of the message for a library without the permission.
    fn clock(&mut self, real: fn() -> u64) -> u64 {
        match &self.library {
            Some(library) if !library.grants.clock => library.received_at_ms.saturating_mul(NS_PER_MS),
            _ => self.draws.clock(real),
        }
    }

    fn random(&mut self, bytes: &mut [u8]) -> Result<()> {
        if self.library.as_ref().is_some_and(|library| !library.grants.random) {
            return Err(random_denied("function"));
        }
        self.draws.fill(bytes)
    }
}

impl wall_clock::Host for HostState {
    fn now(&mut self) -> Result<wall_clock::Datetime> {
        let now = self.clock(unix_ns);
        Ok(wall_clock::Datetime { seconds: now / NS_PER_SEC, nanoseconds: (now % NS_PER_SEC) as u32 })
    }

    fn resolution(&mut self) -> Result<wall_clock::Datetime> {
        match self.has_clock() {
            true => Ok(datetime(clock_getres(ClockId::Realtime))),
            false => Ok(wall_clock::Datetime { seconds: 0, nanoseconds: NS_PER_MS as u32 }),
        }
    }
}

/// Converts to a type without times before 1970, where a board without a battery may boot.
fn datetime(time: Timespec) -> wall_clock::Datetime {
    let nanoseconds = if time.tv_sec < 0 { 0 } else { time.tv_nsec as u32 };
    wall_clock::Datetime { seconds: time.tv_sec.try_into().unwrap_or(0), nanoseconds }
}

impl monotonic_clock::Host for HostState {
    fn now(&mut self) -> Result<u64> {
        Ok(self.clock(monotonic_ns))
    }

    fn resolution(&mut self) -> Result<u64> {
        Ok(if self.has_clock() { nanoseconds(clock_getres(ClockId::Monotonic)) } else { NS_PER_MS })
    }
}

/// Unix time of the board. 0 before 1970.
pub(crate) fn unix_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

fn nanoseconds(time: Timespec) -> u64 {
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    secs.saturating_mul(NS_PER_SEC) + u64::try_from(time.tv_nsec).unwrap_or(0)
}

impl random::Host for HostState {
    fn get_random_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        if len > MAX_RANDOM_BYTES {
            bail!("{len} random bytes in one call, the limit is {MAX_RANDOM_BYTES}");
        }
        let mut bytes = vec![0; len as usize];
        self.random(&mut bytes)?;
        Ok(bytes)
    }

    fn get_random_u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.random(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

impl insecure::Host for HostState {
    fn get_insecure_random_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        random::Host::get_random_bytes(self, len)
    }

    fn get_insecure_random_u64(&mut self) -> Result<u64> {
        random::Host::get_random_u64(self)
    }
}

impl insecure_seed::Host for HostState {
    fn insecure_seed(&mut self) -> Result<(u64, u64)> {
        // Hash maps of a standard library ask for it. Without the permission they have one order for all messages.
        if self.library.as_ref().is_some_and(|library| !library.grants.random) {
            return Ok((0, 0));
        }
        Ok((random::Host::get_random_u64(self)?, random::Host::get_random_u64(self)?))
    }
}

/// Why a function or a program that asked for random numbers ends.
pub(crate) fn random_denied(who: &str) -> wasmtime::Error {
    format_err!(
        "the {who} asked for random numbers, which its manifest does not allow: write `random = true` under [allow] in \
         function.toml"
    )
}

/// Fills with random bytes of the kernel.
pub(crate) fn fill(mut bytes: &mut [u8]) -> Result<()> {
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

#[cfg(all(test, feature = "compiler"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

    use super::*;
    use crate::testing::{Bench, LIMITS, NOTHING, component, message};
    use crate::{Run, Sandbox, SandboxError, ScopeState, compile};
    use sedge_core::isa::Class;
    use sedge_core::message::{FailureCode, Verdict};

    const CLOCK: Grants = Grants { clock: true, random: false };
    const RANDOM: Grants = Grants { clock: false, random: true };

    const NOW: &str = r#"(import "wasi:clocks/wall-clock@0.2.0" "now" (func $now (param i32)))"#;
    const TICKS: &str = r#"(import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $ticks (result i64)))"#;
    const BYTES: &str = r#"(import "wasi:random/random@0.2.0" "get-random-bytes" (func $bytes (param i64 i32)))"#;
    const SEED: &str = r#"(import "wasi:random/insecure-seed@0.2.0" "insecure-seed" (func $seed (param i32)))"#;
    const INSECURE: &str =
        r#"(import "wasi:random/insecure@0.2.0" "get-insecure-random-u64" (func $insecure (result i64)))"#;

    /// Rejects with the bytes at 2000.
    fn show(bytes: u32) -> String {
        format!(
            "(i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 32) (i32.const 2000))
             (i32.store (i32.const 36) (i32.const {bytes})) (i32.const 16)"
        )
    }

    fn run(items: &str, code: &str, grants: Grants) -> Run {
        Bench::default()
            .load_granted(&component(items, code), LIMITS, grants)
            .invoke(&message("a", b""), ScopeState::default())
    }

    #[track_caller]
    fn check_refused(items: &str, code: &str, import: &str, key: &str) {
        let wasm = component(items, code);
        let compiled = compile::component(&wasm, Class::Small).unwrap();
        let other = Grants { clock: key != "clock", random: key != "random" };
        for grants in [Grants::default(), other] {
            let sentence = format!(
                "the function imports `{import}@0.2.0`, which its manifest does not allow: write `{key} = true` under [allow] in function.toml"
            );
            assert_eq!(check_imports(grants, &wasm).unwrap_err().to_string(), sentence);
            let loaded = Sandbox::new().load(&compiled, LIMITS, grants, [].into());
            assert!(matches!(loaded, Err(SandboxError::NotGranted(found)) if found.to_string() == sentence));
        }
        check_imports(Grants::ALL, &wasm).unwrap();
    }

    #[test]
    fn without_a_grant_the_import_and_the_key_are_named() {
        let now = format!("(call $now (i32.const 2000)) {NOTHING}");
        check_refused(NOW, &now, "wasi:clocks/wall-clock", "clock");
        check_refused(TICKS, &format!("(drop (call $ticks)) {NOTHING}"), "wasi:clocks/monotonic-clock", "clock");
        let bytes = format!("(call $bytes (i64.const 8) (i32.const 2000)) {NOTHING}");
        check_refused(BYTES, &bytes, "wasi:random/random", "random");
        check_refused(SEED, &format!("(call $seed (i32.const 2000)) {NOTHING}"), "wasi:random/insecure-seed", "random");
        check_refused(INSECURE, &format!("(drop (call $insecure)) {NOTHING}"), "wasi:random/insecure", "random");
        check_imports(Grants::default(), &component("", NOTHING)).unwrap();
    }

    #[test]
    fn any_compatible_version_is_served() {
        let code = format!(
            "(call $now (i32.const 2000)) (if (i64.eqz (i64.load (i32.const 2000))) (then unreachable)) {NOTHING}"
        );
        let mut wasm = component(NOW, &code);
        let name = b"wasi:clocks/wall-clock@0.2.0";
        let places: Vec<usize> = (0..wasm.len() - name.len()).filter(|at| wasm[*at..].starts_with(name)).collect();
        assert!(!places.is_empty());
        places.iter().for_each(|at| wasm[at + name.len() - 1] = b'9');
        let run = Bench::default().load_granted(&wasm, LIMITS, CLOCK).invoke(&message("a", b""), ScopeState::default());
        assert_eq!(run.outcome.verdict, Verdict::Done(Vec::new()));
    }

    #[test]
    fn the_wall_clock_is_the_boards() {
        // The guest traps when the time is not within some seconds of the board's.
        let now = crate::clock::now_ms() / 1000;
        let code = format!(
            "(call $now (i32.const 2000))
             (if (i64.gt_u (i64.sub (i64.load (i32.const 2000)) (i64.const {now})) (i64.const 60)) (then unreachable))
             (if (i32.ge_u (i32.load (i32.const 2008)) (i32.const 1000000000)) (then unreachable))
             {NOTHING}"
        );
        assert_eq!(run(NOW, &code, CLOCK).outcome.verdict, Verdict::Done(Vec::new()));
    }

    #[test]
    fn the_monotonic_clock_moves_on() {
        let code = format!(
            "(global.set $before (call $ticks))
             (loop $wait (br_if $wait (i64.le_u (call $ticks) (global.get $before))))
             {NOTHING}"
        );
        let items = format!("{TICKS} (global $before (mut i64) (i64.const 0))");
        assert_eq!(run(&items, &code, CLOCK).outcome.verdict, Verdict::Done(Vec::new()));
    }

    #[test]
    fn random_numbers_differ_and_have_a_limit() {
        let seed = || {
            let hex = "(call $seed (i32.const 3000))
                (loop $each
                    (i32.store8 (i32.add (i32.const 2000) (local.get $n))
                        (i32.add (i32.const 97) (i32.and (i32.load8_u (i32.add (i32.const 3000) (local.get $n))) (i32.const 15))))
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (br_if $each (i32.lt_u (local.get $n) (i32.const 16))))";
            match run(SEED, &format!("{hex} {}", show(16)), RANDOM).outcome.verdict {
                Verdict::Failed(failure) => failure.detail,
                other => panic!("{other:?}"),
            }
        };
        let (one, other) = (seed(), seed());
        assert_eq!(one.len(), 16);
        assert_ne!(one, other);
        let bytes = |len: u64| {
            // The list is where `realloc` put it: address and length at 2000.
            let code = format!(
                "(call $bytes (i64.const {len}) (i32.const 2000))
                 (if (i32.ne (i32.load (i32.const 2004)) (i32.const {len})) (then unreachable)) {NOTHING}"
            );
            run(BYTES, &code, RANDOM).outcome.verdict
        };
        assert_eq!(bytes(10_000), Verdict::Done(Vec::new()));
        let Verdict::Failed(failure) = bytes(65_537) else { panic!("above the limit") };
        assert_eq!(
            (failure.code, &*failure.detail),
            (FailureCode::Trap, "65537 random bytes in one call, the limit is 65536")
        );
    }
}

/// Fails with the first import that is not granted. A component that has not passed `shape::check` may pass wrongly.
pub fn check_imports(grants: Grants, wasm: &[u8]) -> Result<(), NotGranted> {
    let (mut depth, mut imports) = (0, Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload {
            Ok(Payload::ModuleSection { .. } | Payload::ComponentSection { .. }) => depth += 1,
            Ok(Payload::End(_)) => depth -= 1,
            Ok(Payload::ComponentImportSection(section)) if depth == 0 => {
                imports.extend(section.into_iter().flatten().map(|import| import.name.name));
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    grants.check(imports)
}

pub(super) fn add_to_linker(grants: Grants, linker: &mut Linker<HostState>) -> Result<()> {
    if grants.clock {
        wall_clock::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
        monotonic_clock::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    }
    if grants.random {
        random::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
        insecure::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
        insecure_seed::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    }
    Ok(())
}
