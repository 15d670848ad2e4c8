//! The address space that the sandbox takes, against what it would take with Wasmtime's own settings.

use std::process::Command;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, setrlimit};
use wasmtime::{Config, Engine, Instance, InstanceAllocationStrategy, Module, Store};

use super::guest::{LIMITS, NOTHING, code, message};
use super::{Sandbox, State};

/// Set for the child, because no limit is lifted again.
const CHILD: &str = "SEDGE_TEST_CONFINED";
/// As in `tests/it/boards.rs`.
const ADDRESSES_BYTES: u64 = 600_000 << 10;

#[test]
fn confined() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    println!();
    let function = code("", NOTHING);
    let wasm = wat::parse_str("(module (memory 1))").unwrap();
    setrlimit(Resource::As, Rlimit { current: Some(ADDRESSES_BYTES), maximum: Some(ADDRESSES_BYTES) }).unwrap();
    let mut sandbox = Sandbox::new();
    let run = sandbox.load(&function, LIMITS, Arc::from([])).map(|it| it.invoke(&message("t", b""), State::default()));
    println!("sandbox: {}", run.is_ok_and(|run| run.outputs() == 0));
    let on_demand = Engine::new(&Config::new()).and_then(|engine| {
        let module = Module::new(&engine, &wasm)?;
        Instance::new(&mut Store::new(&engine, ()), &module, &[])
    });
    println!("usual memory: {}", on_demand.is_ok());
    let mut pooled = Config::new();
    pooled.allocation_strategy(InstanceAllocationStrategy::pooling());
    println!("usual pool: {}", Engine::new(&pooled).is_ok());
}

#[test]
fn the_sandbox_fits_where_the_usual_reservations_do_not() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::room_tests::confined", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for line in ["sandbox: true", "usual memory: false", "usual pool: false"] {
        assert!(said.lines().any(|it| it == line), "no {line:?}: {said}");
    }
}
