//! The invocation on Wasmtime's interpreter, Pulley, over the same in native code: the price on 32-bit ARM boards, which
//! Cranelift does not support. Measured on this machine, with the 64-bit variant of Pulley.

use std::io;

use crate::Size;
use crate::report::{Goal, Report};

const KEY: &str = "pulley_ratio";

#[cfg(not(feature = "bench"))]
pub(crate) fn measure(report: &mut Report, _: &Size) -> io::Result<()> {
    report.add_missing(KEY, Goal::None, "run the bench as `make bench` does, with `--features bench`");
    Ok(())
}

#[cfg(feature = "bench")]
pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    use sedge_core::isa::Class;
    use sedge_sandbox::{Function, compile, running_config};
    use wasmtime::Engine;

    use crate::harness::guest::guest;
    use crate::invoke::{LIMITS, microseconds, native, settings};

    eprintln!("interpreter");
    let wasm = std::fs::read(guest("last").join("last.wasm"))?;
    let native = native(&wasm)?;
    let mut config = running_config(Class::Small);
    config.target("pulley64").expect("the feature `bench` adds this target");
    let engine = Engine::new(&config).expect("the configuration is valid");
    let code = compile::precompile(&engine, &wasm).map_err(io::Error::other)?;
    let pulley = Function::in_engine(&engine, &code, LIMITS, settings()).map_err(io::Error::other)?;
    let (mut pulley_us, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds * 4 {
        let (native, pulley) = (microseconds(&native), microseconds(&pulley));
        pulley_us.push(pulley);
        ratios.push(pulley / native);
    }
    report.add_median(KEY, ratios, Goal::None, "an invocation interpreted, over native code");
    report.add_median("pulley_us", pulley_us, Goal::None, "the invocation of invoke_fresh_us, interpreted");
    Ok(())
}
